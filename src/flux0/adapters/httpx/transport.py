"""The transports over httpx and httpx2, which have the same interface.

A call passes these steps:

1. `send` chooses the client: the user's client, or a built-in client for the URL's proxy.
2. The client builds a request of httpx or httpx2. flux0 adds a trace function to this request. The
   trace function records steps 4 to 6 in an `HttpxExchange` (`exchange.py`), as its `Progress`.
   During steps 3 to 6, `current_exchange` is this exchange.
3. The client sends the request. The user's hooks and authentication run in this step.
4. The exchange gets a connection (`connections.py`): from the pool of httpcore, or from the pool of
   a built-in client (`pools.py`), as a `Lease`. A new connection connects: `Step.CONNECTING`.
5. httpcore starts to send the request: `Step.SENDING`. If an error is raised after this step, the
   error indicates that the server may have received the request. The phase of the connection is
   `_Sending`, and then `_ReadingHead`.
6. httpcore receives the response head: `Step.HEAD_RECEIVED`. `send` returns the response. If the
   head announces a chunked body, the phase of the connection is `_ChunkedHead`.
7. The caller pulls the body piece by piece, and flux0 decompresses each piece (`body.py`). The
   phase is `_ReadingContent` if flux0 decodes the chunks, or else `_ReadingBody`.
8. At the end, the lease returns the connection to the pool. If surplus bytes were received, the
   pool closes the connection.
9. If reading fails, or if the body is closed early or garbage-collected, flux0 shuts the
   connection down. Over HTTP/2, it does not, because other exchanges share the connection.

The exchange translates exceptions from the HTTP library into flux0 errors.
"""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator
from functools import cache, partial
from inspect import iscoroutinefunction
from typing import Any, ClassVar, Protocol, TypeVar, cast, runtime_checkable

from flux0.adapters.httpx.body import AsyncHttpxSource, SyncHttpxSource
from flux0.adapters.httpx.cancellation import Uninterrupted
from flux0.adapters.httpx.clients import BuiltInClients, track_client
from flux0.adapters.httpx.exchange import HttpxExchange, current_exchange
from flux0.adapters.httpx.library import Library
from flux0.adapters.shared.bodies import AsyncBody, SyncBody
from flux0.adapters.shared.failures import failure
from flux0.adapters.shared.limits import ACCEPT_ENCODING
from flux0.adapters.shared.misplaced import refuse_misplaced, transport_repr
from flux0.adapters.shared.proxies import EnvironmentProxies
from flux0.domain.errors import (
    ClientClosed,
    ConnectError,
    Flux0Error,
    InvalidArgument,
    mark_user_error,
)
from flux0.domain.headers import Headers
from flux0.domain.http import is_framed, is_success
from flux0.ports import AsyncByteStream, ByteStream, Request, Response
from flux0.runtime.event_loop import PerLoop, shielded
from flux0.runtime.processes import PerProcess

Body = TypeVar("Body")


class _BuildsRequests(Protocol):
    def build_request(
        self, method: str, url: Any, *, content: Any, headers: Any, timeout: Any
    ) -> Any:
        """Create a request with the client's defaults."""
        ...


@runtime_checkable
class HttpClient(_BuildsRequests, Protocol):
    """The methods of `httpx.Client` or `httpx2.Client` that flux0 calls."""

    def send(self, request: Any, *, stream: bool, follow_redirects: bool) -> Any:
        """Send a request that `build_request` has created."""
        ...


@runtime_checkable
class AsyncHttpClient(_BuildsRequests, Protocol):
    """The methods of `httpx.AsyncClient` or `httpx2.AsyncClient` that flux0 calls."""

    async def send(self, request: Any, *, stream: bool, follow_redirects: bool) -> Any:
        """Send a request that `build_request` has created."""
        ...


class HttpxFamilyTransport:
    """The base class of `HttpxTransport` and `Httpx2Transport`."""

    _name: ClassVar[str]

    def __init__(
        self, client: HttpClient | None = None, async_client: AsyncHttpClient | None = None
    ) -> None:
        library = self._library = Library.load(self._name)
        _check_client("client", client, self._name, is_async=False)
        _check_client("async_client", async_client, self._name, is_async=True)
        self._client = track_client(client, library)
        self._async_client = track_client(async_client, library)
        schemes = "http", "https", "socks5", "socks5h"
        self._proxies = EnvironmentProxies(self._name, schemes)
        create = partial(BuiltInClients, library)
        self._built_in_clients = PerProcess(partial(create, is_async=False))
        # The finalizer of a transport closes clients, but no bodies. Each body refers to its
        # transport, so an unreferenced transport has no open body. At exit, Python cannot start a
        # thread to close a body.
        weakref.finalize(self, self._built_in_clients.discard, BuiltInClients.close_clients)
        self._built_in_async_clients: PerLoop[BuiltInClients] = PerLoop(
            partial(create, is_async=True), BuiltInClients.close_async
        )
        self._request_body = _request_body_class(library.httpx.AsyncByteStream)

    def __repr__(self) -> str:
        return transport_repr(self, client=self._client, async_client=self._async_client)

    @property
    def serves_sync(self) -> bool:
        """Whether sync calls work: the user passed a sync client or no client at all."""
        return self._client is not None or self._async_client is None

    @property
    def serves_async(self) -> bool:
        """Whether async calls work: the user passed an async client or no client at all."""
        return self._async_client is not None or self._client is None

    def send(self, request: Request) -> Response[ByteStream]:
        """Send `request` once, and return the response when its head was received."""
        if not self.serves_sync:
            advice = "use the methods that end in _async, or pass a sync client as client="
            raise Flux0Error(f"the transport has an async client only: {advice}")
        built_in = None if self._client is not None else self._built_in_clients.get()
        client, built, exchange = self._prepare(self._client, built_in, request)
        built.extensions["trace"] = exchange.trace
        try:
            response = self._send(client, built, exchange)
            body = SyncBody(SyncHttpxSource(request, built, exchange, response, self))
        except BaseException:
            for connection in exchange.abandon():
                connection.close()
            raise
        if built_in is not None:
            built_in.bodies.add(body)
        return _to_response(response, body)

    def _send(self, client: Any, built: Any, exchange: HttpxExchange) -> Any:
        token = current_exchange.set(weakref.ref(exchange))
        try:
            return client.send(built, stream=True, follow_redirects=False)
        except Exception as error:
            response = self._handle_error(error, client, built, exchange)
            if response is None:
                raise
            return response
        finally:
            current_exchange.reset(token)
            exchange.interrupt.clear()

    def close(self) -> None:
        """Close the built-in sync clients and their open bodies. The user's client stays open."""
        self._built_in_clients.discard(BuiltInClients.close)

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        """The async version of `send`."""
        if not self.serves_async:
            raise Flux0Error(
                "the transport has a sync client only: pass an async client as async_client=, or "
                "pass the transport to Flux0, which runs its async calls in threads"
            )
        built_in = await self._built_in_async_clients.get() if self._async_client is None else None
        client, built, exchange = self._prepare(self._async_client, built_in, request)
        built.extensions["trace"] = exchange.trace_async
        if request.body is not None:
            built.stream = self._request_body(request.body)
        work = self._send_async(client, built, exchange, request)
        return await Uninterrupted(work)

    async def _send_async(
        self, client: Any, built: Any, exchange: HttpxExchange, request: Request
    ) -> Response[AsyncByteStream]:
        token = current_exchange.set(weakref.ref(exchange))
        try:
            try:
                response = await client.send(built, stream=True, follow_redirects=False)
            except Exception as error:
                response = self._handle_error(error, client, built, exchange)
                if response is None:
                    raise
            body = AsyncBody(AsyncHttpxSource(request, built, exchange, response, self))
        except BaseException:
            for connection in exchange.abandon():
                await shielded(connection.aclose)
            raise
        finally:
            current_exchange.reset(token)
            exchange.interrupt.clear()
        return _to_response(response, body)

    async def close_async(self) -> None:
        """Close the running event loop's built-in clients. The user's client stays open."""
        await self._built_in_async_clients.close_async()

    def _prepare(
        self, client: Any, built_in: BuiltInClients | None, request: Request
    ) -> tuple[Any, Any, HttpxExchange]:
        if built_in is not None:
            client = built_in.get(request.url, self._proxies.proxy_for(request.url))
        if getattr(client, "is_closed", False):
            raise self._client_closed()
        httpx, timeout = self._library.httpx, request.timeout
        # Build the request without the call's cookies, because an httpx client adds its own cookies
        # only to a request without a cookie header. The code below adds the call's cookies.
        pairs = request.headers.without(("cookie",)).pairs
        if "accept-encoding" not in request.headers:
            pairs += (("accept-encoding", ACCEPT_ENCODING),)
        try:
            headers = httpx.Headers(pairs, encoding="latin-1")
            limits = timeout.connect, timeout.read, timeout.write, timeout.pool
            options = {"content": request.body, "headers": headers, "timeout": limits}
            built: Any = client.build_request(request.method, request.url, **options)
        # httpx raises UnicodeError if the host name of a URL is invalid.
        except (httpx.InvalidURL, UnicodeError) as error:
            raise failure(ConnectError, error, timeout) from error
        cookies = request.headers.get_all("cookie")
        if cookies:
            merged = _to_headers(built.headers).merge(Headers((("cookie", "; ".join(cookies)),)))
            built.headers = httpx.Headers(merged.pairs, encoding="latin-1")
        return (
            client,
            built,
            HttpxExchange(self._library, request, built.extensions.get("trace")),
        )

    def _handle_error(self, error: Any, client: Any, built: Any, exchange: HttpxExchange) -> Any:
        """Raise the flux0 error for an error that `client.send` raised.

        If a hook called `raise_for_status`, return the response. If the user's code raised `error`
        for another reason, return None: the caller must re-raise `error`.

        Raises:
            TransportError: The HTTP library failed to send the request.
            ClientClosed: The client, or its event loop, is closed.
        """
        translated: Flux0Error | None = None
        if isinstance(error, self._library.httpx.HTTPStatusError):
            if error.request is built and not is_success(error.response.status_code):
                return error.response
        elif isinstance(error, RuntimeError):
            if getattr(client, "is_closed", False) or "loop is closed" in str(error):
                translated = self._client_closed()
                translated.sent = "maybe" if exchange.sent else "no"
        else:
            translated = exchange.translate(error, built)
        try:
            if translated is not None:
                raise translated from error
        finally:
            # Break a reference cycle: the error's traceback refers to this frame.
            translated = None
        # Only a user's client calls user code, such as hooks. The user code can have raised
        # `error`.
        if client in (self._client, self._async_client):
            mark_user_error(error, sent=exchange.sent)
        return None

    def _client_closed(self) -> ClientClosed:
        return ClientClosed(f"the {self._name} client or its event loop is closed")


class HttpxTransport(HttpxFamilyTransport):
    """Sends requests over httpx, with your clients or with built-in clients.

    Your client keeps its proxies, certificates, authentication, cookies and hooks, and flux0 never
    closes it. flux0 tracks the connections that your client opens after you pass it, and never
    reuses a connection with surplus bytes. Built-in clients are created at the first use, and store
    no cookies. Timeouts come from the `Flux0` client, not from your client. Redirects are not
    followed.

    Args:
        client: An `httpx.Client`, for sync calls.
        async_client: An `httpx.AsyncClient`, for async calls.

    Raises:
        MissingDependency: httpx is not installed.
        InvalidArgument: An argument is not a client of httpx.
    """

    _name: ClassVar[str] = "httpx"


class Httpx2Transport(HttpxFamilyTransport):
    """Sends requests over httpx2, in the same way as `HttpxTransport` over httpx.

    httpx2 needs Python 3.11 or newer.

    Args:
        client: An `httpx2.Client`, for sync calls.
        async_client: An `httpx2.AsyncClient`, for async calls.

    Raises:
        MissingDependency: httpx2 is not installed.
        InvalidArgument: An argument is not a client of httpx2.
    """

    _name: ClassVar[str] = "httpx2"


def _check_client(argument: str, client: object, library: str, *, is_async: bool) -> None:
    if client is None:
        return
    refuse_misplaced(argument, client, library)
    if hasattr(client, "send_async"):
        raise InvalidArgument(argument, "is a transport: pass it as transport=")
    for method in ("build_request", "send"):
        if not hasattr(client, method):
            problem = f"must be like an {library}.Client: {type(client).__name__} has no {method}"
            raise InvalidArgument(argument, problem)
    if iscoroutinefunction(cast("Any", client).send) is not is_async:
        kind, other = ("a sync", "client") if is_async else ("an async", "async_client")
        raise InvalidArgument(argument, f"is {kind} client: pass it as {other}=")


def _to_response(response: Any, body: Body) -> Response[Body]:
    headers = _to_headers(response.headers)
    framed = response.http_version == "HTTP/2" or is_framed(headers)
    # If a response has no network stream, an application in this process (ASGI or WSGI) created the
    # response, and no connection can close before the body is complete.
    close_delimited = "network_stream" in response.extensions and not framed
    return Response(response.status_code, headers, body, response, close_delimited)


def _to_headers(fields: Any) -> Headers:
    pairs = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in fields.raw)
    return Headers(tuple(pairs))


@cache
def _request_body_class(base: type[Any]) -> type[Any]:
    """Return a class for the bodies of async requests, derived from `base`.

    `base` is `AsyncByteStream` of httpx or httpx2. The libraries' own bodies are async generators.
    If sending fails, the generator stays suspended, and trio warns about it.
    """

    class RequestBody(base):  # type: ignore[misc] # the class is not known
        def __init__(self, body: bytes) -> None:
            self._body = body

        def __aiter__(self) -> AsyncIterator[bytes]:
            self._unsent = self._body
            return self

        async def __anext__(self) -> bytes:
            unsent, self._unsent = self._unsent, b""
            if not unsent:
                raise StopAsyncIteration
            return unsent

    return RequestBody
