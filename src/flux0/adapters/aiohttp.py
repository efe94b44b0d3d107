"""The transport over aiohttp, for asynchronous code under asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from math import inf
from traceback import walk_tb
from typing import TYPE_CHECKING, Final, cast
from weakref import finalize

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL  # aiohttp's own type of URL

from flux0.adapters.support.decompression import decoder_for
from flux0.adapters.support.event_loop import PerLoop
from flux0.domain.errors import (
    ClientClosed,
    ConnectError,
    ConnectionInterrupted,
    ConnectTimeout,
    Flux0Error,
    PoolTimeout,
    ProtocolError,
    ReadTimeout,
    TLSError,
    TransportError,
    WriteTimeout,
)
from flux0.domain.headers import Headers
from flux0.ports import AsyncByteStream, Request, Response

if TYPE_CHECKING:
    from aiohttp.http import StreamWriter

# A turn holds its connection for as long as the agent thinks, so a busy process needs many.
_MAX_CONNECTIONS: Final = 1000
# Less than the 5 seconds after which a flux0 server closes a connection that nobody uses.
_KEEPALIVE_SECONDS: Final = 4.0
_MAX_HEADER_BYTES: Final = 64 * 1024
# Up to this size a body fits into the buffer of a connection, so that writing it never waits.
_SMALL_BODY_BYTES: Final = 32 * 1024
_WRITE_BYTES: Final = 64 * 1024
_LOOK_SECONDS: Final = 1.0


class AiohttpTransport:
    """Sends requests over aiohttp, with a session of the user's or sessions made when first needed.

    A session passed in keeps its connector, proxy, certificates, cookies and middleware, belongs to
    the event loop that it was made in, and is never closed here. One made here takes nothing from
    the environment and keeps no cookies. Timeouts are the request's: aiohttp has a single one for
    waiting for a free connection and for making it, and that is `pool`; `connect` limits each
    address that is tried. Redirects are not followed, and aiohttp's own retries are off. It writes
    the values of header fields in UTF-8.
    """

    def __init__(self, session: aiohttp.ClientSession | None = None) -> None:
        self._session = session
        self._own_sessions = PerLoop(_make_session, aiohttp.ClientSession.close)
        given = () if session is None else session._middlewares  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - those of a request replace them
        self._middlewares: tuple[aiohttp.ClientMiddlewareType, ...] = (_unrepeated, *given)

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        """Send `request` once; see `AsyncTransport.send_async`."""
        loop = _running_loop()
        session = self._session
        if session is None:
            session = await self._own_sessions.get()
        elif session.closed:
            raise ClientClosed("the aiohttp session is closed")
        elif session._loop is not loop:  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - its public name is deprecated
            raise Flux0Error("the aiohttp session belongs to another event loop")
        response = await self._send(session, request)
        body = _Body(request, response, loop, self)
        return Response(response.status, _response_headers(response), body, response)

    async def close_async(self) -> None:
        """Close the running loop's session, unless it is the user's."""
        await self._own_sessions.close_async()

    async def _send(
        self, session: aiohttp.ClientSession, request: Request
    ) -> aiohttp.ClientResponse:
        timeout = request.timeout
        try:
            return await session.request(
                request.method,
                _url(request),
                headers=_request_headers(request),
                data=_data(request),
                allow_redirects=False,
                raise_for_status=False,
                auto_decompress=False,
                middlewares=self._middlewares,
                timeout=aiohttp.ClientTimeout(
                    connect=timeout.pool, sock_connect=timeout.connect, sock_read=timeout.read
                ),
            )
        except _RAISED as error:
            raise _translated(error) from error


def _make_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=_MAX_CONNECTIONS, keepalive_timeout=_KEEPALIVE_SECONDS
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        max_line_size=_MAX_HEADER_BYTES,
        max_field_size=_MAX_HEADER_BYTES,
    )


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        message = "aiohttp works under asyncio only: use HttpxTransport under trio"
        raise Flux0Error(message) from None


def _url(request: Request) -> URL:
    try:
        url = URL(request.url, encoded=True)
        url.port  # noqa: B018 - checked when first looked at
    except ValueError as error:
        raise ConnectError(f"{request.url!r} is not a URL: {error}") from error
    return url


async def _unrepeated(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Turn the errors that make aiohttp send a request again into some that do not."""
    try:
        return await handler(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _translated(error) from error


def _request_headers(request: Request) -> list[tuple[str, str]]:
    pairs = list(request.headers.pairs)
    if "accept-encoding" not in request.headers:
        pairs.append(("accept-encoding", "gzip"))  # What is undone here, and no more.
    return pairs


def _response_headers(response: aiohttp.ClientResponse) -> Headers:
    fields = response.raw_headers
    try:
        return Headers(tuple((name.decode(), value.decode()) for name, value in fields))
    except UnicodeDecodeError:
        return Headers(
            tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in fields)
        )


def _data(request: Request) -> bytes | aiohttp.Payload | None:
    body = request.body
    if body is None or len(body) <= _SMALL_BODY_BYTES:
        return body
    return _LargeBody(body, request.timeout.write)


class _LargeBody(aiohttp.Payload):
    """A body whose writing may have to wait for the server, which aiohttp would do without end."""

    def __init__(self, body: bytes, silence: float | None) -> None:
        super().__init__(body)
        self._size = len(body)
        self._body = body
        self._silence = silence

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self._body.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        socket = cast("StreamWriter", writer).transport  # None if the connection is lost already.
        try:
            for start in range(0, len(self._body), _WRITE_BYTES):
                piece = self._body[start : start + _WRITE_BYTES]
                await asyncio.wait_for(writer.write(piece), self._silence)
            await asyncio.wait_for(writer.drain(), self._silence)
        except BaseException as error:
            _abort(socket)  # Closing would wait until the server has taken what is written.
            if isinstance(error, asyncio.TimeoutError):
                raise WriteTimeout("the server did not take the request's body") from error
            raise


class _Body:
    """The body of a response."""

    def __init__(
        self,
        request: Request,
        response: aiohttp.ClientResponse,
        loop: asyncio.AbstractEventLoop,
        transport: AiohttpTransport,
    ) -> None:
        streaming = request.streams(response.status)
        silence = request.timeout.idle if streaming else request.timeout.read
        self._silence = inf if silence is None else silence
        self._retained: list[bytes] | None = None if streaming else []
        self._response = response
        self._content = response.content
        self._loop = loop
        self._transport = transport  # Its session must outlive the body.
        self._decoder = decoder_for(response.headers.get("Content-Encoding", ""))
        self._decoded: Iterator[bytes] = iter(())
        self._ended = False
        self._closed = False
        self._wait_ends = inf
        self._timer: asyncio.TimerHandle | None = None
        self._socket: asyncio.Transport | None = None
        self._forgotten: finalize[..., _Body] | None = None
        connection = response.connection
        self._protocol = None if connection is None else connection.protocol
        if self._protocol is not None:  # Otherwise the whole body came along with the head.
            # Its timeout also runs while nobody reads; ours begins anew with each wait.
            self._protocol.read_timeout = None
            self._protocol.start_timeout()
            # aiohttp forgets it when the connection is lost, but it too is to be closed then.
            self._socket = self._protocol.transport
            # Not __del__, which comes too late for a connection that is garbage together with this.
            self._forgotten = finalize(self, _release_soon, loop, response, self._socket)
            self._forgotten.atexit = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._ended:
            raise StopAsyncIteration
        try:
            piece = await self._next()
        except TransportError:
            await self.close_async()
            raise
        if not piece:
            self._ended = True
            await self.close_async()
            raise StopAsyncIteration
        if self._retained is not None:
            self._retained.append(piece)
        return piece

    async def close_async(self) -> None:
        self._closed = True
        if self._forgotten is not None:
            self._forgotten.detach()
        _release(self._response, self._socket)

    async def _next(self) -> bytes:
        """Return the next piece, decompressed, or an empty one at the end."""
        while True:
            for piece in self._decoded:
                return piece
            data = await self._receive()
            if not data:
                self._end()
                return b""
            if self._decoder is None:
                return data
            self._decoded = self._decoder.feed(data)

    async def _receive(self) -> bytes:
        """Return what has arrived, after waiting for it if need be, or nothing at the end."""
        content = self._content
        try:
            if self._closed:
                raise aiohttp.ClientConnectionError("the body is closed")
            data = content.read_nowait()
            if data or content.at_eof():
                return data
            self._wait_ends = self._loop.time() + self._silence
            self._look(content.total_bytes)
            try:
                return await content.readany()
            finally:
                if self._timer is not None:
                    self._timer.cancel()
        except _RAISED as error:
            # What came before the failure is handed out first.
            data = b"" if self._closed else content._read_nowait(-1)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
            if data:
                return data
            raise _translated(error) from error

    def _look(self, seen: int) -> None:
        """End the wait for bytes if it is time to, or look again later.

        aiohttp does not always tell who reads a body that its connection is closed: not where the
        framing breaks, nor where the session is closed.
        """
        content = self._content
        if content.total_bytes != seen:  # They came at the same time as the timer.
            return
        now = self._loop.time()
        failure = None if self._protocol is None else self._protocol.exception()
        if failure is not None:
            content.set_exception(failure)
        elif now >= self._wait_ends:
            content.set_exception(aiohttp.SocketTimeoutError("nothing came for too long"))
        else:
            when = min(self._wait_ends, now + _LOOK_SECONDS)
            self._timer = self._loop.call_at(when, self._look, seen)

    def _end(self) -> None:
        """Take the end of the body."""
        if self._decoder is not None:
            self._decoder.end()
        headers = self._response.headers
        if (
            self._protocol is not None
            and "Content-Length" not in headers
            and "Transfer-Encoding" not in headers
        ):
            # aiohttp takes every end of such a connection for the end of the body.
            error = self._protocol.exception()
            if isinstance(error, OSError):
                raise _translated(error) from error
        if self._retained is not None:
            # As `ClientResponse.read` does, so that users find the body in `raw_response`.
            self._response._body = b"".join(self._retained)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


def _release_soon(
    loop: asyncio.AbstractEventLoop,
    response: aiohttp.ClientResponse,
    socket: asyncio.Transport | None,
) -> None:
    """Have `loop` give up the connection, from any thread: garbage is collected in any."""
    with suppress(RuntimeError):  # The loop is closed.
        try:
            loop.call_soon_threadsafe(_release, response, socket)
        except RuntimeError:
            response.release()


def _release(response: aiohttp.ClientResponse, socket: asyncio.Transport | None) -> None:
    """Give up the connection, unless the whole body is in, and end whoever waits for more."""
    if response.closed:
        return
    if response.content.exception() is None:
        response.content.set_exception(aiohttp.ClientConnectionError("the body is closed"))
    _abort(socket)  # Closing would wait for the other side to end its TLS.
    response.close()


def _abort(socket: asyncio.Transport | None) -> None:
    if socket is not None:
        socket.abort()


# UnicodeError: the resolver was given a host name that the standard library cannot encode.
_RAISED = (aiohttp.ClientError, HttpProcessingError, asyncio.TimeoutError, UnicodeError)

_TRANSLATIONS: tuple[tuple[type[Exception], type[TransportError]], ...] = (
    (aiohttp.ConnectionTimeoutError, ConnectTimeout),
    (asyncio.TimeoutError, ReadTimeout),
    (aiohttp.ClientSSLError, TLSError),
    (aiohttp.ServerFingerprintMismatch, TLSError),
    (aiohttp.ClientConnectorError, ConnectError),
    (aiohttp.ClientHttpProxyError, ConnectError),
    (aiohttp.InvalidURL, ConnectError),
    (aiohttp.NonHttpUrlClientError, ConnectError),
    (UnicodeError, ConnectError),
    (aiohttp.ClientConnectionError, ConnectionInterrupted),
)

_ENDED_EARLY = "payload is not completed"  # aiohttp, of a body whose connection ended before it


def _translated(error: BaseException) -> TransportError:
    text = str(error) or type(error).__name__
    broken = ConnectionInterrupted if _ENDED_EARLY in text else ProtocolError
    kind = next((to for raised, to in _TRANSLATIONS if isinstance(error, raised)), broken)
    if kind is ConnectTimeout and _waited_for_free_connection(error):
        kind = PoolTimeout
    elif isinstance(error.__cause__, WriteTimeout):
        kind = WriteTimeout
    return kind(text)


def _waited_for_free_connection(error: BaseException) -> bool:
    """Whether a timeout passed in aiohttp's pool, by the function that it interrupted."""
    cause: BaseException | None = error
    while cause is not None:
        for frame, _ in walk_tb(cause.__traceback__):
            if frame.f_code.co_name == "_wait_for_available_connection":
                return True
        cause = cause.__cause__ or cause.__context__
    return False
