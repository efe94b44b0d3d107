"""The transport over httpx, sync and async."""

from __future__ import annotations

import socket
import ssl
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import AsyncGeneratorType
from typing import Protocol, TypeVar, cast

import httpx

from flux0.adapters._decompression import Inflater
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
from flux0.event_loop import PerLoop, close_soon, running_loop, shielded, unwind
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
        headers: httpx.Headers,
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
        headers: httpx.Headers,
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

    A client passed in keeps its proxies, certificates, authentication, cookies and hooks, and is
    never closed here. One made here keeps no cookies. Timeouts are the request's; redirects are
    not followed.
    """

    def __init__(
        self, client: HttpClient | None = None, async_client: AsyncHttpClient | None = None
    ) -> None:
        self._client = client
        self._async_client = async_client
        self._own_client = _OwnClient(self)
        self._own_async_clients = PerLoop(_make_async_client, httpx.AsyncClient.aclose)

    def send(self, request: Request) -> Response[ByteStream]:
        """Send `request` once; see `Transport.send`."""
        client: HttpClient = self._client or self._own_client.get()
        try:
            built = _build(client, request)
            response = client.send(built, stream=True, follow_redirects=False)
        except _RAISED as error:
            raise _translated(error) from error
        body = _Body(_Reading(request, built, response), self)
        if self._client is None:
            self._own_client.reads(body)
        return _answer(response, body)

    def close(self) -> None:
        """Close the synchronous client and all that is read over it, unless it is the user's."""
        self._own_client.close()

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        """Send `request` once; see `AsyncTransport.send_async`."""
        client: AsyncHttpClient = self._async_client or await self._own_async_clients.get()
        try:
            built = _build(client, request)
            if request.body is not None:
                built.stream = _WholeBody(request.body)
            response = await client.send(built, stream=True, follow_redirects=False)
        except _RAISED as error:
            raise _translated(error) from error
        return _answer(response, _AsyncBody(_Reading(request, built, response), self))

    async def close_async(self) -> None:
        """Close the running loop's client, unless it is the user's."""
        await self._own_async_clients.close_async()


class _OwnClient:
    """The synchronous client that is made here, when first needed and again after closing."""

    def __init__(self, owner: HttpxTransport) -> None:
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._bodies: weakref.WeakSet[_Body] = weakref.WeakSet()
        weakref.finalize(owner, self.close)

    def get(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                self._client = httpx.Client(limits=_LIMITS, cookies=_no_cookies())
            return self._client

    def reads(self, body: _Body) -> None:
        """Know of a body, to end its reading when the client is closed."""
        with self._lock:
            self._bodies.add(body)

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
            bodies = list(self._bodies)
        for body in bodies:
            body.close()
        if client is not None:
            client.close()


def _make_async_client() -> httpx.AsyncClient:
    return httpx.AsyncClient(limits=_LIMITS, cookies=_no_cookies())


def _no_cookies() -> CookieJar:
    """Return a jar that takes none: a cookie of the server's would change who the user is."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=()))


def _build(client: HttpClient | AsyncHttpClient, request: Request) -> httpx.Request:
    timeout = request.timeout
    return client.build_request(
        request.method,
        request.url,
        headers=httpx.Headers(list(request.headers.pairs), encoding="latin-1"),
        content=request.body,
        timeout=httpx.Timeout(
            connect=timeout.connect, read=timeout.read, write=timeout.write, pool=timeout.pool
        ),
    )


class _WholeBody(httpx.AsyncByteStream):
    """A request's body. httpx's own is a generator, of which trio warns when sending breaks off."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Pieces(iter((self._body,)))


class _Pieces:
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration


def _answer(response: httpx.Response, body: Body) -> Response[Body]:
    headers = Headers(tuple(response.headers.multi_items()))
    return Response(response.status_code, headers, body, response)


class _Reading:
    """What both kinds of body know of a response while they read it."""

    def __init__(self, request: Request, built: httpx.Request, response: httpx.Response) -> None:
        self.response = response
        self.closed = False
        self.ended = False
        coding = response.headers.get("content-encoding", "").strip().lower()
        # httpx takes a gzip without its end for a whole one, and builds all that a piece grows to.
        self.inflater = Inflater() if coding in ("gzip", "x-gzip", "deflate") else None
        # Other codings are httpx's business.
        self.raw = self.inflater is not None or coding in ("", "identity")
        streaming = request.stream and response.is_success
        self._retained: list[bytes] | None = None if streaming else []
        if streaming and "timeout" in built.extensions:
            # httpcore looks the read timeout up once more when it begins to read the body.
            built.extensions["timeout"]["read"] = request.timeout.idle

    def may_go_on(self) -> bool:
        """Whether there is more to read; raises if the body was left before its end."""
        if self.closed and not self.ended:
            raise ConnectionInterrupted("the body was closed before its end")
        return not self.ended

    def took(self, piece: bytes) -> bytes:
        if self._retained is not None:
            self._retained.append(piece)
        return piece

    def end(self) -> None:
        """Take the end of the response's framing."""
        if self.closed:  # Whoever closed it meanwhile may have been what ended it.
            raise ConnectionInterrupted("the body was closed while it was read")
        if self.inflater is not None:
            self.inflater.end()
        self.ended = True
        if self._retained is not None:
            # As `Response.read` does, so that users find the body in `raw_response`.
            self.response._content = b"".join(self._retained)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


class _Body:
    """The body of a response, pulled by synchronous code."""

    def __init__(self, reading: _Reading, transport: HttpxTransport) -> None:
        response = reading.response
        self._reading = reading
        self._transport = transport  # Its client must outlive the body.
        self._raw = response.iter_raw() if reading.raw else response.iter_bytes()
        self._inflated: Iterator[bytes] = iter(())
        self._busy = threading.Lock()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        reading = self._reading
        with self._busy:
            try:
                piece = self._pull() if reading.may_go_on() else None
            except BaseException as error:
                reading.closed = True
                _close(reading.response)
                if isinstance(error, _RAISED):
                    raise _translated(error) from error
                raise
        if piece is None:
            raise StopIteration
        return piece

    def _pull(self) -> bytes | None:
        """Return the next piece, or None at the end."""
        reading = self._reading
        while True:
            for piece in self._inflated:
                return reading.took(piece)
            data = next(self._raw, None)
            if data is None:
                reading.end()
                return None
            if reading.inflater is None:
                return reading.took(data)
            self._inflated = reading.inflater.feed(data)

    def close(self) -> None:
        reading = self._reading
        reading.closed = True
        if self._busy.acquire(blocking=False):
            try:
                _close(reading.response)
            finally:
                self._busy.release()
        elif not reading.response.is_closed:
            # Another thread is reading, and would wait on if its socket were closed under it.
            _shut_down(reading.response)

    def __del__(self) -> None:
        self.close()


def _close(response: httpx.Response) -> None:
    with suppress(*_RAISED):
        response.close()


def _shut_down(response: httpx.Response) -> None:
    stream = response.extensions.get("network_stream")
    # Other exchanges share a connection of HTTP/2.
    if stream is not None and response.http_version != "HTTP/2":
        with suppress(OSError):
            # Not that of SSLSocket, which would drop the TLS layer under the reader.
            socket.socket.shutdown(stream.get_extra_info("socket"), socket.SHUT_RDWR)


class _AsyncBody:
    """The body of a response, pulled by asynchronous code."""

    def __init__(self, reading: _Reading, transport: HttpxTransport) -> None:
        response = reading.response
        self._reading = reading
        self._transport = transport
        raw = response.aiter_raw() if reading.raw else response.aiter_bytes()
        self._raw = cast("AsyncGeneratorType[bytes, None]", raw)
        self._inflated: Iterator[bytes] = iter(())
        # Not __del__, which comes too late for a generator that is garbage together with this.
        release = partial(_release, response, self._raw)
        self._forgotten = weakref.finalize(self, close_soon, running_loop(), release)
        self._forgotten.atexit = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        reading = self._reading
        try:
            piece = await self._pull() if reading.may_go_on() else None
        except BaseException as error:
            reading.closed = True
            if isinstance(error, Exception):
                await self.close_async()
            if isinstance(error, _RAISED):
                raise _translated(error) from error
            raise
        if piece is None:
            self._forgotten.detach()
            raise StopAsyncIteration
        return piece

    async def _pull(self) -> bytes | None:
        """Return the next piece, or None at the end."""
        reading = self._reading
        while True:
            for piece in self._inflated:
                return reading.took(piece)
            data = await anext(self._raw, None)
            if data is None:
                reading.end()
                return None
            if reading.inflater is None:
                return reading.took(data)
            self._inflated = reading.inflater.feed(data)

    async def close_async(self) -> None:
        reading = self._reading
        reading.closed = True
        self._forgotten.detach()
        if not reading.response.is_closed:
            await shielded(partial(_release, reading.response, self._raw))


async def _release(response: httpx.Response, raw: AsyncGeneratorType[bytes, None]) -> None:
    if not raw.ag_running:  # If it is, another task waits, and gets an error from what follows.
        with suppress(*_RAISED):
            await unwind(raw)
    with suppress(*_RAISED):
        await response.aclose()


# UnicodeError: the resolver was given a host name that the standard library cannot encode.
_RAISED = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, ssl.SSLError, UnicodeError)

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
_ENDED_EARLY = ("closed connection", "Server disconnected", "ConnectionTerminated")


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
