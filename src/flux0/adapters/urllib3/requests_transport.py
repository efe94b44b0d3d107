"""The transport over requests, for synchronous code."""

from __future__ import annotations

from functools import partial
from http.cookiejar import DefaultCookiePolicy
from io import BytesIO
from typing import Any, Final

import requests
from requests import exceptions
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3 import HTTPHeaderDict, HTTPResponse  # What requests is made of, and lets through.
from urllib3.exceptions import HTTPError

from flux0.adapters.shared.bodies import OpenBodies, SyncBody
from flux0.adapters.shared.failures import failure
from flux0.adapters.shared.limits import ACCEPT_ENCODING, MAX_IDLE_CONNECTIONS
from flux0.adapters.shared.misplaced import shown
from flux0.adapters.shared.proxies import EnvironmentProxies
from flux0.adapters.urllib3.body import Urllib3Body, in_blocks, translated
from flux0.adapters.urllib3.connection import Urllib3Exchange, require, watch
from flux0.domain.errors import ConnectError, InvalidArgument, ProtocolError, ReadTimeout
from flux0.domain.headers import Headers
from flux0.domain.http import is_framed, is_success
from flux0.ports import ByteStream, Request, Response, Timeout
from flux0.runtime.processes import PerProcess

_PROXIES: Final = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")


class RequestsTransport:
    """Sends requests over requests, through a session of the user's or one made here.

    A session passed in keeps its proxies, certificates, authentication, cookies, headers, hooks and
    adapters, and is never closed here. Its connections are watched, to know what was sent. One made
    here takes proxies and certificates from the environment, but no passwords from `.netrc`, and
    keeps no cookies. What hooks, authentication and adapters raise is raised as
    it is.

    Timeouts are the request's, but requests does not limit the wait for a connection of a pool
    that blocks. Redirects are not followed, and a session whose adapters retry is refused.
    """

    def __init__(self, session: requests.Session | None = None) -> None:
        require("session", session, requests.Session)
        for adapter in () if session is None else session.adapters.values():
            _refuse_retries(adapter)
        self._given = session
        self._sessions = PerProcess(partial(_Connections, session))

    def __repr__(self) -> str:
        return shown(self, session=self._given)

    def send(self, request: Request) -> Response[ByteStream]:
        """Send `request` once; see `Transport.send`."""
        session = self._sessions.get()
        response = _send(session, request)
        status = response.status_code
        headers = _headers(response)
        # The content of an error is read here, and users find it in the response all the same.
        retain = None if is_success(status) else partial(_retain, response)
        reading = Urllib3Body(_raw(response), request.timeout, retain)
        if request.is_streaming(status):
            reading.set_timeout(request.timeout.idle)
        body = SyncBody(reading)
        session.bodies.add(body)
        return Response(status, headers, body, response, not is_framed(headers))

    def close(self) -> None:
        """Close the connections, and what is read over them, unless the session is the user's."""
        if self._given is None:
            self._sessions.get().close()


class _Connections:
    """The connections of one process.

    Attributes:
        requests: the session of the user's, or one made here.
        proxies: those that one made here goes through.
        bodies: what is read over it.
    """

    def __init__(self, session: requests.Session | None) -> None:
        self.requests = _make_session() if session is None else session
        self.proxies = EnvironmentProxies("requests", _PROXIES) if session is None else None
        self.bodies = OpenBodies()

    def close(self) -> None:
        self.requests.close()
        self.bodies.close()


def _make_session() -> requests.Session:
    session = requests.Session()
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
    session.auth = lambda prepared: prepared  # Without any, requests looks into .netrc.
    for prefix in ("https://", "http://"):
        session.mount(prefix, _OwnAdapter(pool_maxsize=MAX_IDLE_CONNECTIONS))
    return session


def _refuse_retries(adapter: BaseAdapter) -> None:
    if isinstance(adapter, HTTPAdapter):
        retries = adapter.max_retries
        if retries.total or retries.total is None or retries.status_forcelist:
            problem = "has an adapter with max_retries, and might send a request twice: mount one "
            raise InvalidArgument("session", f"{problem}without, and see RetryConfig for retries")


def _send(over: _Connections, request: Request) -> requests.Response:
    session = over.requests
    prepared = _prepared(session, request)
    # A `verify` of the session would give way to the environment, were it not named here.
    settings = session.merge_environment_settings(prepared.url, {}, True, session.verify, None)  # noqa: FBT003
    if over.proxies is not None:
        proxy = over.proxies.proxy_for(request.url)
        settings["proxies"] = {} if proxy is None else {"all": proxy}
    _watch(session, prepared, settings)
    head = _HookedAnswer(prepared)
    with Urllib3Exchange(request) as exchange:
        try:
            response = session.send(
                prepared,
                timeout=(request.timeout.connect, request.timeout.read),
                allow_redirects=False,
                **settings,
            )
        except BaseException as error:
            if head.response is not None and not _is_of(error, prepared):
                head.response.close()  # What hooks raise is theirs.
                raise
            if isinstance(error, requests.HTTPError) and error.response is not None:
                return error.response  # A hook calls raise_for_status.
            if isinstance(error, exceptions.Timeout) and not _wraps(error):
                # Of an adapter that is not requests' own.
                raise failure(ReadTimeout, error, request.timeout) from error
            known = isinstance(error, (exceptions.RequestException, HTTPError))
            if known or error is exchange.failure:
                raise translated(error, exchange) from error
            raise
        finally:
            head.response = None  # It has the request, and that has the hooks: a reference cycle.
    head.show_location(response)
    return response


def _prepared(session: requests.Session, request: Request) -> Any:
    headers = {"Accept-Encoding": ACCEPT_ENCODING, **request.headers}
    given = requests.Request(request.method, request.url, headers, data=in_blocks(request.body))
    try:
        prepared: Any = session.prepare_request(given)
    except exceptions.InvalidHeader as error:
        raise failure(ProtocolError, error, request.timeout) from error
    except (exceptions.InvalidURL, exceptions.MissingSchema) as error:
        raise failure(ConnectError, error, Timeout()) from error
    # A header field that was asked for counts more than what the session knows.
    if "authorization" in request.headers:
        prepared.headers["authorization"] = request.headers["authorization"]
    return prepared


class _OwnAdapter(HTTPAdapter):
    """Makes connections that note what is sent."""

    def get_connection_with_tls_context(
        self, request: Any, verify: Any, proxies: Any = None, cert: Any = None
    ) -> Any:
        get = super().get_connection_with_tls_context
        return _tracked_pool(self, get, request, verify=verify, proxies=proxies, cert=cert)


def _watch(session: requests.Session, prepared: Any, settings: Any) -> None:
    """Have the connections that the request may go over note it; nothing is sent here."""
    try:
        adapter = session.get_adapter(prepared.url)
    except exceptions.InvalidSchema as error:
        raise failure(ConnectError, error, Timeout()) from error
    if isinstance(adapter, HTTPAdapter) and not isinstance(adapter, _OwnAdapter):
        _refuse_retries(adapter)
        tls = {name: settings[name] for name in ("verify", "proxies", "cert")}
        _tracked_pool(adapter, adapter.get_connection_with_tls_context, prepared, **tls)


def _tracked_pool(
    adapter: HTTPAdapter, get: Any, request: Any, *, verify: Any, proxies: Any, cert: Any
) -> Any:
    """Return the pool that `get` gives, once its connections note what is sent."""
    try:
        pool = get(request, verify, proxies, cert)
        adapter.cert_verify(pool, request.url, verify, cert)  # type: ignore[no-untyped-call]
    except (HTTPError, OSError) as error:  # Errors of requests are OSErrors, too.
        raise failure(ConnectError, error, Timeout()) from error
    watch(pool)
    return pool


class _HookedAnswer:
    """Watches the head of the answer go through the hooks.

    Attributes:
        response: the answer, as the adapter gave it, if there is one.
    """

    def __init__(self, prepared: requests.PreparedRequest) -> None:
        self.response: requests.Response | None = None
        self._location: str | None = None
        hooks: list[Any] = prepared.hooks["response"]
        hooks.insert(0, self._note)
        hooks.append(self._hide_location)

    def _note(self, response: requests.Response, **_: Any) -> None:
        self.response = response

    def _hide_location(self, response: requests.Response, **_: Any) -> None:
        # requests would read the body of a redirect, however long, and close it.
        self._location = response.headers.pop("location", None)

    def show_location(self, response: requests.Response) -> None:
        if self._location is not None:
            response.headers["location"] = self._location


def _raw(response: requests.Response) -> Any:
    """Return what the body is read from."""
    raw: Any = response.raw
    # A hook may have read it, which nothing public of requests tells. An adapter may give any file.
    if vars(response)["_content"] is not False or not hasattr(raw, "read1"):
        return HTTPResponse(BytesIO(response.content), preload_content=False)
    if hasattr(raw, "release_conn"):
        return raw
    return HTTPResponse(raw, preload_content=False)


def _headers(response: requests.Response) -> Headers:
    fields = getattr(response.raw, "headers", None)  # Those of urllib3 keep repeated ones apart.
    return Headers(
        tuple((fields if isinstance(fields, HTTPHeaderDict) else response.headers).items())
    )


def _retain(response: requests.Response, body: bytes) -> None:
    response.raw = BytesIO(body)


def _is_of(error: BaseException, prepared: requests.PreparedRequest) -> bool:
    """Whether an error of requests is about this request, which authentication may send again."""
    return (
        isinstance(error, exceptions.RequestException)
        and getattr(error.request, "url", None) == prepared.url
    )


def _wraps(error: Exception) -> bool:
    return any(isinstance(each, Exception) for each in error.args)
