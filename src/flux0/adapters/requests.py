"""The transport over requests, for synchronous code."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from http.cookiejar import DefaultCookiePolicy
from io import BytesIO
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import requests
from requests import exceptions
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase, HTTPBasicAuth
from requests.utils import get_auth_from_url
from urllib3 import HTTPResponse, Retry  # What requests is made of, and lets through.
from urllib3.exceptions import HTTPError

from flux0.adapters.support.processes import PerProcess
from flux0.adapters.support.urllib3_response import (
    ACCEPT_ENCODING,
    Blocks,
    Reading,
    ResponseBody,
    translated,
)
from flux0.domain.errors import (
    ConnectError,
    ConnectionInterrupted,
    ConnectTimeout,
    ProtocolError,
    ReadTimeout,
    TransportError,
)
from flux0.domain.headers import Headers
from flux0.ports import ByteStream, Request, Response

T = TypeVar("T")

# So many are kept for the next requests; more can be in use at a time.
_KEPT_CONNECTIONS: Final = 100


class RequestsTransport:
    """Sends requests over requests, through a session of the user's or one made here.

    A session passed in keeps its proxies, certificates, authentication, cookies, headers, hooks and
    adapters, and is never closed here. One made here takes proxies and certificates from the
    environment, as requests does, but no passwords from `.netrc`, and keeps no cookies.

    Timeouts are the request's, but requests does not limit the wait for a connection of a pool
    that blocks, and writes with the timeout for connecting, which is then the longest that each
    64 KiB of a body may take. Redirects are not followed, and the retries of adapters are off.
    """

    def __init__(self, session: requests.Session | None = None) -> None:
        self._own = session is None
        self._sessions = PerProcess(partial(_Session, session))

    def send(self, request: Request) -> Response[ByteStream]:
        """Send `request` once; see `Transport.send`."""
        session = self._sessions.get()
        response = _send(session.requests, request)
        streaming = request.streams(response.status_code)
        reading = Reading(_raw(response), session.readings)
        if streaming:
            reading.set_timeout(request.timeout.idle)
        retain = None if streaming else partial(_retain, response)
        return Response(
            response.status_code,
            _headers(response),
            ResponseBody(reading, retain),
            response,
        )

    def close(self) -> None:
        """Close the connections, and what is read over them, unless the session is the user's."""
        if self._own:
            self._sessions.get().close()


class _Session:
    """The connections of one process.

    Attributes:
        requests: the session of the user's, or one made here.
        readings: what is read over it.
    """

    def __init__(self, session: requests.Session | None) -> None:
        self.requests = _make_session() if session is None else session
        self.readings: set[Reading] = set()

    def close(self) -> None:
        self.requests.close()
        for reading in list(self.readings):
            reading.close()


def _make_session() -> requests.Session:
    session = requests.Session()
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
    session.auth = _UserinfoAuth()
    for prefix in ("https://", "http://"):
        session.mount(prefix, HTTPAdapter(pool_maxsize=_KEPT_CONNECTIONS))
    return session


class _UserinfoAuth(AuthBase):
    """Sends what the URL names; without an auth, requests puts .netrc over any other header."""

    def __call__(self, prepared: requests.PreparedRequest) -> requests.PreparedRequest:
        name, password = get_auth_from_url(prepared.url or "")
        if name or password:
            HTTPBasicAuth(name, password)(prepared)
        return prepared


def _send(session: requests.Session, request: Request) -> requests.Response:
    try:
        prepared = _prepared(session, request)
        location = _HiddenLocation()
        prepared.register_hook("response", location.hide)
        url: str = prepared.url
        # A `verify` of the session would give way to the environment, were it not named here.
        settings = session.merge_environment_settings(url, {}, True, session.verify, None)  # noqa: FBT003
        response = _without_retries(session, url).send(
            prepared,
            timeout=(request.timeout.connect, request.timeout.read),
            allow_redirects=False,
            **settings,
        )
    except requests.HTTPError as error:
        if error.response is None:
            raise _translated(error) from error
        return error.response  # A hook calls raise_for_status.
    except (requests.RequestException, HTTPError, OSError, UnicodeError) as error:
        raise _translated(error) from error
    location.show(response)
    return response


def _prepared(session: requests.Session, request: Request) -> Any:
    prepared: Any = session.prepare_request(
        requests.Request(
            request.method,
            request.url,
            headers={"accept-encoding": ACCEPT_ENCODING, **request.headers},
            data=request.body,
        )
    )
    prepared.body = Blocks.of(prepared.body)
    url: str = prepared.url
    if not url.startswith(request.url):
        # requests undoes encodings that it takes to be needless, such as that of dots.
        given = urlsplit(request.url)
        parts = urlsplit(url)._replace(path=given.path)
        if not session.params:
            parts = parts._replace(query=given.query)
        prepared.url = parts.geturl()
    return prepared


class _HiddenLocation:
    """Keeps a redirect's location from requests, which would read the body and close it."""

    def __init__(self) -> None:
        self._location: str | None = None

    def hide(self, response: requests.Response, **_: Any) -> None:
        self._location = response.headers.pop("location", None)

    def show(self, response: requests.Response) -> None:
        if self._location is not None:
            response.headers["location"] = self._location


def _without_retries(session: requests.Session, url: str) -> requests.Session:
    """Return `session`, or one that shares all it has but sends only once."""
    adapter = session.get_adapter(url)
    if not isinstance(adapter, HTTPAdapter):
        return session
    retries = adapter.max_retries
    if not retries.total and retries.total is not None and not retries.status_forcelist:
        return session
    sending_once = _copied(adapter)
    sending_once.max_retries = Retry(0, read=False)
    borrowed = _copied(session)
    borrowed.adapters = OrderedDict({"": sending_once})
    return borrowed


def _copied(original: T) -> T:
    """Return a copy that shares the attributes; copy.copy() would open pools of its own."""
    copy = object.__new__(type(original))
    copy.__dict__.update(original.__dict__)
    return copy


def _raw(response: requests.Response) -> HTTPResponse:
    """Return what the body is read from."""
    if vars(response)["_content"] is not False:  # A hook has read it.
        return HTTPResponse(BytesIO(response.content), preload_content=False)
    raw: Any = response.raw
    # An adapter that is not made on urllib3 may give any file.
    return raw if isinstance(raw, HTTPResponse) else HTTPResponse(raw, preload_content=False)


def _headers(response: requests.Response) -> Headers:
    raw: object = response.raw
    fields = raw.headers if isinstance(raw, HTTPResponse) else response.headers
    return Headers(tuple(fields.items()))


def _retain(response: requests.Response, body: bytes) -> None:
    # As `Response.content` does, so that users find the body in `raw_response`.
    vars(response).update(_content=body, _content_consumed=True)


_TRANSLATIONS: tuple[tuple[type[Exception], type[TransportError]], ...] = (
    (exceptions.InvalidURL, ConnectError),
    (exceptions.InvalidSchema, ConnectError),
    (exceptions.MissingSchema, ConnectError),
    (exceptions.ConnectTimeout, ConnectTimeout),
    (exceptions.Timeout, ReadTimeout),
    (exceptions.ConnectionError, ConnectionInterrupted),
    (exceptions.RequestException, ProtocolError),
)


def _translated(error: Exception) -> TransportError:
    if isinstance(error, requests.RequestException) and not _wraps(error):
        kind = next(to for raised, to in _TRANSLATIONS if isinstance(error, raised))
        return kind(str(error) or type(error).__name__)
    if type(error) is OSError:  # A file of certificates is not where the session says.
        return ConnectError(str(error))
    return translated(error)


def _wraps(error: Exception) -> bool:
    return any(isinstance(each, Exception) for each in (*error.args, error.__cause__))
