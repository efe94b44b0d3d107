"""The transport over httpx, sync and async."""

from __future__ import annotations

import ssl
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import suppress
from typing import Protocol, TypeVar, cast

import httpx

from flux0.domain.errors import (
    ConnectError,
    ConnectionInterrupted,
    ConnectTimeout,
    PoolTimeout,
    ProtocolError,
    ReadTimeout,
    TLSError,
    TransportError,
    WriteTimeout,
)
from flux0.domain.headers import Headers
from flux0.event_loop import PerLoop, close_soon, unwind
from flux0.ports import AsyncByteStream, ByteStream, Request, Response

Body = TypeVar("Body")

# A turn holds its connection for as long as the agent thinks, so a busy process needs many.
_LIMITS = httpx.Limits(max_connections=1000, max_keepalive_connections=100)


class HttpClient(Protocol):
    """The part of `httpx.Client` that is used."""

    def build_request(
        self,
        method: str,
        url: str,
        *,
        content: bytes | None,
        headers: list[tuple[str, str]],
        timeout: httpx.Timeout,
    ) -> httpx.Request:
        """Return a request with the client's own defaults in it."""
        ...

    def send(
        self, request: httpx.Request, *, stream: bool, follow_redirects: bool
    ) -> httpx.Response:
        """Send a request."""
        ...


class AsyncHttpClient(Protocol):
    """The part of `httpx.AsyncClient` that is used."""

    def build_request(
        self,
        method: str,
        url: str,
        *,
        content: bytes | None,
        headers: list[tuple[str, str]],
        timeout: httpx.Timeout,
    ) -> httpx.Request:
        """Return a request with the client's own defaults in it."""
        ...

    async def send(
        self, request: httpx.Request, *, stream: bool, follow_redirects: bool
    ) -> httpx.Response:
        """Send a request."""
        ...


class HttpxTransport:
    """Sends requests over httpx, with clients of the user's or clients made when first needed.

    A client passed in keeps its proxies, certificates, authentication and hooks, and is never
    closed here. Timeouts are the request's; redirects are not followed.
    """

    def __init__(
        self, client: HttpClient | None = None, async_client: AsyncHttpClient | None = None
    ) -> None:
        self._client = client
        self._async_client = async_client
        self._own_clients = PerLoop(_make_async_client, httpx.AsyncClient.aclose)
        self._making = threading.Lock()
        self._close_own: weakref.finalize[..., HttpxTransport] | None = None

    def send(self, request: Request) -> Response[ByteStream]:
        """Send `request` once; see `Transport.send`."""
        client = self._client or self._make_client()
        try:
            built = _build(client, request)
            response = client.send(built, stream=True, follow_redirects=False)
        except _RAISED as error:
            raise _translated(error) from error
        return _answer(response, _Body(_Reading(request, built, response), self))

    def close(self) -> None:
        """Close the synchronous client, unless it is the user's."""
        if self._close_own is not None:
            self._close_own()

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        """Send `request` once; see `AsyncTransport.send_async`."""
        client: AsyncHttpClient = self._async_client or await self._own_clients.get()
        try:
            built = _build(client, request)
            response = await client.send(built, stream=True, follow_redirects=False)
        except _RAISED as error:
            raise _translated(error) from error
        return _answer(response, _AsyncBody(_Reading(request, built, response), self))

    async def close_async(self) -> None:
        """Close the running loop's client, unless it is the user's."""
        await self._own_clients.close_async()

    def _make_client(self) -> HttpClient:
        with self._making:
            if self._client is None:
                client = httpx.Client(limits=_LIMITS)
                self._close_own = weakref.finalize(self, client.close)
                self._client = client
            return self._client


def _make_async_client() -> httpx.AsyncClient:
    return httpx.AsyncClient(limits=_LIMITS)


def _build(client: HttpClient | AsyncHttpClient, request: Request) -> httpx.Request:
    timeout = request.timeout
    return client.build_request(
        request.method,
        request.url,
        headers=list(request.headers.pairs),
        content=request.body,
        timeout=httpx.Timeout(
            connect=timeout.connect, read=timeout.read, write=timeout.write, pool=timeout.pool
        ),
    )


def _answer(response: httpx.Response, body: Body) -> Response[Body]:
    headers = Headers(tuple(response.headers.multi_items()))
    return Response(response.status_code, headers, body, response)


class _Reading:
    """What both kinds of body keep of a response while they read it."""

    def __init__(self, request: Request, built: httpx.Request, response: httpx.Response) -> None:
        self.response = response
        streaming = request.stream and response.is_success
        self._retained: list[bytes] | None = None if streaming else []
        if streaming and "timeout" in built.extensions:
            # httpcore looks the read timeout up once more when it begins to read the body.
            built.extensions["timeout"]["read"] = request.timeout.idle

    def took(self, piece: bytes) -> bytes:
        if self._retained is not None:
            self._retained.append(piece)
        return piece

    def ended(self) -> None:
        if self._retained is not None:
            # As `Response.read` does, so that users find the body in `raw_response`.
            self.response._content = b"".join(self._retained)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


class _Body:
    """The body of a response, pulled by synchronous code."""

    def __init__(self, reading: _Reading, transport: HttpxTransport) -> None:
        self._reading = reading
        self._transport = transport  # Its client must outlive the body.

    def __iter__(self) -> Iterator[bytes]:
        reading = self._reading
        try:
            for piece in reading.response.iter_bytes():
                if piece:
                    yield reading.took(piece)
        except _RAISED as error:
            raise _translated(error) from error
        reading.ended()

    def close(self) -> None:
        with suppress(*_RAISED):
            self._reading.response.close()

    def __del__(self) -> None:
        self.close()


class _AsyncBody:
    """The body of a response, pulled by asynchronous code."""

    def __init__(self, reading: _Reading, transport: HttpxTransport) -> None:
        self._reading = reading
        self._transport = transport
        self._pieces = cast("AsyncGenerator[bytes, None]", reading.response.aiter_bytes())

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            async for piece in self._pieces:
                if piece:
                    return self._reading.took(piece)
        except _RAISED as error:
            raise _translated(error) from error
        self._reading.ended()
        raise StopAsyncIteration

    async def close_async(self) -> None:
        await _release(self._reading.response, self._pieces)

    def __del__(self) -> None:
        response, pieces = self._reading.response, self._pieces
        if not response.is_closed:
            close_soon(lambda: _release(response, pieces))


async def _release(response: httpx.Response, pieces: AsyncGenerator[bytes, None]) -> None:
    with suppress(*_RAISED):
        if not response.is_closed:
            await unwind(pieces)
            await response.aclose()


# UnicodeError: the resolver was given a host name that the standard library cannot encode.
_RAISED = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, UnicodeError)

_TRANSLATIONS: tuple[tuple[type[Exception], type[TransportError]], ...] = (
    (httpx.ConnectTimeout, ConnectTimeout),
    (httpx.PoolTimeout, PoolTimeout),
    (httpx.ReadTimeout, ReadTimeout),
    (httpx.WriteTimeout, WriteTimeout),
    (httpx.ConnectError, ConnectError),
    (httpx.ProxyError, ConnectError),
    (httpx.UnsupportedProtocol, ConnectError),
    (httpx.InvalidURL, ConnectError),
    (UnicodeError, ConnectError),
    (httpx.NetworkError, ConnectionInterrupted),
    (httpx.StreamError, ConnectionInterrupted),
)

# What h11 and httpcore say when a connection ends where HTTP goes on.
_ENDED_EARLY = ("peer closed connection", "Server disconnected", "ConnectionTerminated")


def _translated(error: Exception) -> TransportError:
    kind = next((to for raised, to in _TRANSLATIONS if isinstance(error, raised)), ProtocolError)
    text = str(error) or type(error).__name__
    if kind is ConnectError and _is_tls(error):
        kind = TLSError
    elif kind is ProtocolError and any(words in text for words in _ENDED_EARLY):
        kind = ConnectionInterrupted
    return kind(text)


def _is_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False
