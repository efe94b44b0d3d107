"""The transport over the library `requests`, for sync code.

The steps of one request:

1. `RequestsTransport.send` prepares the request with the session's headers, cookies, parameters and
   authentication.
2. The session's adapter finds a pool. `track` changes the pool's connection class, so that
   connections record their progress in a `Urllib3Exchange`.
3. urllib3 connects, sends the request and reads the response head.
4. `requests` calls the session's hooks with the response. `_HookRecorder` has added two hooks. The
   first hook records the response. The last hook removes the `location` header. Otherwise,
   `requests` prepares the redirect, and reads the whole body.
5. `send` puts the `location` header back, so that the user can read it, and returns the response.
   The body has not been read yet, unless a hook has read the body.
6. The caller reads the body piece by piece. `TrackedResponse.pieces` yields the received bytes, and
   `SyncBody` decodes them.
7. At the end, the connection returns to the pool. If the body is closed early, or after
   an error, the connection is closed.
"""

from __future__ import annotations

from functools import partial
from io import BytesIO
from typing import Any

import requests
from requests import exceptions
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.cookies import RequestsCookieJar
from urllib3 import HTTPHeaderDict, HTTPResponse  # urllib3 is a dependency of `requests`.
from urllib3.exceptions import HTTPError

from flux0.adapters.shared.bodies import OpenBodies, SyncBody
from flux0.adapters.shared.failures import failure
from flux0.adapters.shared.limits import ACCEPT_ENCODING, MAX_IDLE_CONNECTIONS
from flux0.adapters.shared.misplaced import check_type, transport_repr
from flux0.adapters.shared.proxies import PYSOCKS_SCHEMES, EnvironmentProxies
from flux0.adapters.urllib3.body import Urllib3Source, request_body, translate_error
from flux0.adapters.urllib3.connection import Urllib3Exchange, check_urllib3
from flux0.adapters.urllib3.pools import close_pools, track
from flux0.domain.errors import (
    ConnectError,
    Flux0Error,
    InvalidArgument,
    ProtocolError,
    ReadTimeout,
    mark_user_error,
)
from flux0.domain.headers import Headers, merge_cookies
from flux0.domain.http import is_framed
from flux0.ports import ByteStream, Request, Response, Timeout
from flux0.runtime.processes import PerProcess


class RequestsTransport:
    """Sends HTTP requests with the `requests` library, over your session or a built-in session.

    Your session is used with its proxies, certificates, authentication, cookies, headers, hooks and
    adapters, and is never closed. Exceptions from its hooks, authentication and adapters are
    re-raised unchanged. flux0 tracks the session's connections, in order to know whether a
    request was sent.

    The built-in session uses proxies and certificates from the environment. It reads no passwords
    from `.netrc` and stores no cookies.

    The timeouts come from the request. The pool timeout has an effect only if an adapter has
    `pool_block=True`. Redirects are not followed. If an adapter of your session retries requests,
    `InvalidArgument` is raised.
    """

    def __init__(self, session: requests.Session | None = None) -> None:
        check_urllib3()
        check_type("session", session, requests.Session)
        for adapter in () if session is None else session.adapters.values():
            _reject_retries(adapter)
        self._user_session = session
        self._connections = PerProcess(partial(_Connections, session))

    def __repr__(self) -> str:
        return transport_repr(self, session=self._user_session)

    def send(self, request: Request) -> Response[ByteStream]:
        """Send `request` once, and return the response when its head was received."""
        connections = self._connections.get()
        response = _send(connections, request)
        headers = _headers(response)
        body = SyncBody(Urllib3Source(_raw_response(response), request.timeout.read))
        connections.bodies.add(body)
        return Response(response.status_code, headers, body, response, not is_framed(headers))

    def close(self) -> None:
        """Close the connections and the open bodies, unless you passed in the session."""
        if self._user_session is None:
            self._connections.get().close()


class _Connections:
    def __init__(self, session: requests.Session | None) -> None:
        self.session = _make_session() if session is None else session
        self.proxies = EnvironmentProxies("requests", PYSOCKS_SCHEMES) if session is None else None
        self.bodies = OpenBodies()

    def close(self) -> None:
        self.session.close()
        self.bodies.close()


def _make_session() -> requests.Session:
    session = requests.Session()
    session.cookies = _NoCookies()
    # If `auth` is None, requests reads credentials from the file .netrc. Therefore, set `auth` to a
    # function that does not change the request.
    session.auth = lambda prepared: prepared
    for prefix in ("https://", "http://"):
        # The adapter creates a pool with a slot for one connection, and `track` adds the other
        # slots. urllib3 itself adds slots one by one, which takes longer than an API call.
        session.mount(prefix, _TrackingAdapter(pool_maxsize=1))
    return session


class _NoCookies(RequestsCookieJar):
    """A cookie jar that stores no cookies, and acquires no lock.

    `CookieJar` acquires its lock before its `try` statement. If a signal handler raises an
    exception between the two, the lock stays held, and all later calls wait forever.
    """

    def extract_cookies(self, response: Any, request: Any) -> None:
        """Do nothing. `requests` calls this method for each response."""


def _reject_retries(adapter: BaseAdapter) -> None:
    if isinstance(adapter, HTTPAdapter):
        retries = adapter.max_retries
        if retries.total or retries.total is None or retries.status_forcelist:
            advice = "mount an adapter without max_retries, and use RetryConfig"
            problem = f"has an adapter with max_retries, which might send a request twice: {advice}"
            raise InvalidArgument("session", problem)


def _send(connections: _Connections, request: Request) -> requests.Response:
    session = connections.session
    prepared = _prepare(session, request)
    # Pass `session.verify` as an argument, because environment variables override the attribute
    # `verify`.
    settings = session.merge_environment_settings(prepared.url, {}, True, session.verify, None)  # noqa: FBT003
    if connections.proxies is not None:
        proxy = connections.proxies.proxy_for(request.url)
        settings["proxies"] = {} if proxy is None else {"all": proxy}
    _track_connections(session, prepared, settings)
    recorder = _HookRecorder(prepared)
    with Urllib3Exchange(request) as exchange:
        try:
            timeouts = request.timeout.connect, request.timeout.read
            response = session.send(prepared, timeout=timeouts, allow_redirects=False, **settings)
        except BaseException as error:
            if recorder.response is not None and not _is_about(error, prepared):
                recorder.response.close()
                mark_user_error(error, sent=True)
                raise  # A user's hook raised `error`, so re-raise it unchanged.
            if isinstance(error, requests.HTTPError) and error.response is not None:
                return error.response  # A user's hook called `raise_for_status` of the response.
            has_cause = any(isinstance(argument, Exception) for argument in error.args)
            if isinstance(error, exceptions.Timeout) and not has_cause:
                # The HTTPAdapter of requests always puts an error of urllib3 into its timeout
                # error. `error` contains no other error, so the user's own adapter raised it.
                raise failure(ReadTimeout, error, request.timeout) from error
            known = isinstance(error, (exceptions.RequestException, HTTPError))
            if known or error is exchange.failure:
                raise translate_error(error, exchange) from error
            mark_user_error(error, sent=exchange.sent)
            raise
        finally:
            # Break a reference cycle: the response refers to its hooks, which refer to `recorder`.
            recorder.response = None
    response.headers.update(recorder.location)
    return response


def _prepare(session: requests.Session, request: Request) -> Any:
    headers = {"Accept-Encoding": ACCEPT_ENCODING, **request.headers}
    # Remove the call's cookies, because a session adds its own cookies only to a request without a
    # cookie header. The code below adds the call's cookies.
    cookies = headers.pop("cookie", None)
    body = request_body(request.body)
    unprepared = requests.Request(request.method, request.url, headers, data=body)
    try:
        prepared: Any = session.prepare_request(unprepared)
    except exceptions.InvalidHeader as error:
        invalid = failure(ProtocolError, error, request.timeout)
        invalid.sent = "no"
        raise invalid from error
    except (exceptions.InvalidURL, exceptions.MissingSchema) as error:
        raise failure(ConnectError, error, Timeout()) from error
    # User code, such as an authentication class, has raised the Flux0Error.
    except Flux0Error as error:
        mark_user_error(error)
        raise
    if cookies is not None:
        own = prepared.headers.get("cookie", "")
        prepared.headers["cookie"] = merge_cookies(own, cookies)
    # An authorization header of the call replaces the authorization header that the
    # `requests.Session` has added.
    if "authorization" in request.headers:
        prepared.headers["authorization"] = request.headers["authorization"]
    return prepared


class _TrackingAdapter(HTTPAdapter):
    def get_connection_with_tls_context(
        self, request: Any, verify: Any, proxies: Any = None, cert: Any = None
    ) -> Any:
        tls = {"verify": verify, "proxies": proxies, "cert": cert}
        return _tracked_pool(self, super().get_connection_with_tls_context, request, tls)

    def close(self) -> None:
        for manager in (self.poolmanager, *self.proxy_manager.copy().values()):
            close_pools(manager)


def _track_connections(session: requests.Session, prepared: Any, settings: Any) -> None:
    try:
        adapter = session.get_adapter(prepared.url)
    except exceptions.InvalidSchema as error:
        raise failure(ConnectError, error, Timeout()) from error
    if isinstance(adapter, HTTPAdapter) and not isinstance(adapter, _TrackingAdapter):
        _reject_retries(adapter)
        tls = {name: settings[name] for name in ("verify", "proxies", "cert")}
        _tracked_pool(adapter, adapter.get_connection_with_tls_context, prepared, tls)


def _tracked_pool(adapter: HTTPAdapter, get: Any, request: Any, tls: dict[str, Any]) -> Any:
    try:
        pool = get(request, **tls)
        adapter.cert_verify(pool, request.url, tls["verify"], tls["cert"])  # type: ignore[no-untyped-call]
    except (HTTPError, OSError) as error:  # The errors of `requests` are OSErrors, too.
        raise failure(ConnectError, error, Timeout()) from error
    track(pool, MAX_IDLE_CONNECTIONS if isinstance(adapter, _TrackingAdapter) else None)
    return pool


class _HookRecorder:
    """Adds a hook before the user's hooks, and a hook after the user's hooks.

    The first hook records the response. If an error is raised afterwards, a user's hook may have
    raised it. The last hook removes the header `location`, because `requests` reads the whole body
    of a response with this header, and closes it.

    Attributes:
        response: The response that the adapter returned, or None.
        location: The removed headers.
    """

    def __init__(self, prepared: requests.PreparedRequest) -> None:
        self.response: requests.Response | None = None
        self.location: dict[str, str] = {}
        hooks: list[Any] = prepared.hooks["response"]
        hooks.insert(0, self._record)
        hooks.append(self._hide_location)

    def _record(self, response: requests.Response, **_: Any) -> None:
        self.response = response

    def _hide_location(self, response: requests.Response, **_: Any) -> None:
        if "location" in response.headers:
            self.location["location"] = response.headers.pop("location")


def _raw_response(response: requests.Response) -> Any:
    raw: Any = response.raw
    # A user's hook can have read the body, which only the private attribute `_content` shows. If
    # the adapter is a user's class, `raw` can be any file object.
    if vars(response)["_content"] is not False or not hasattr(raw, "read1"):
        return HTTPResponse(BytesIO(response.content), preload_content=False)
    if hasattr(raw, "release_conn"):
        return raw
    return HTTPResponse(raw, preload_content=False)


def _headers(response: requests.Response) -> Headers:
    fields = getattr(response.raw, "headers", None)
    # Prefer the headers of urllib3, because `response.headers` joins repeated fields.
    return Headers(
        tuple((fields if isinstance(fields, HTTPHeaderDict) else response.headers).items())
    )


def _is_about(error: BaseException, prepared: requests.PreparedRequest) -> bool:
    # Compare URLs instead of request objects, because an authentication class can send a copy of
    # the request.
    return (
        isinstance(error, exceptions.RequestException)
        and getattr(error.request, "url", None) == prepared.url
    )
