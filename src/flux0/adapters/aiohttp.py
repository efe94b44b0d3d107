"""The transport over aiohttp, for asynchronous code under asyncio."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, TypeAlias, cast
from urllib.request import getproxies, proxy_bypass
from weakref import finalize

import aiohttp
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL  # aiohttp's own type of URL

from flux0.adapters.support.aiohttp_wire import RequestBody, Wire
from flux0.adapters.support.decompression import decoder_for
from flux0.adapters.support.event_loop import PerLoop
from flux0.domain.errors import (
    ClientClosed,
    ConnectError,
    ConnectionInterrupted,
    ConnectTimeout,
    Flux0Error,
    InvalidArgument,
    PoolTimeout,
    ProtocolError,
    ReadTimeout,
    TLSError,
    TransportError,
    WriteTimeout,
)
from flux0.domain.headers import Headers
from flux0.ports import AsyncByteStream, Request, Response

# A turn holds its connection for as long as the agent thinks, so a busy process needs many.
_MAX_CONNECTIONS: Final = 1000
# Less than the 5 seconds after which a flux0 server closes a connection that nobody uses.
_KEEPALIVE_SECONDS: Final = 4.0
_MAX_HEADER_BYTES: Final = 64 * 1024


class AiohttpTransport:
    """Sends requests over aiohttp, with a session of the user's or sessions made when first needed.

    A session passed in keeps its connector, proxy, certificates, cookies, middleware and traces,
    belongs to the event loop that it was made in, and is never closed here. One made here obeys the
    proxies that the environment names, and keeps no cookies; to go without those proxies, pass
    `aiohttp.ClientSession()`. Timeouts are the request's: aiohttp has a single one for waiting for
    a free connection and for making it, and that is `pool`; `connect` limits each address that is
    tried. Redirects are not followed, and aiohttp's own retries are off.

    Raises:
        InvalidArgument: `session` is something else, such as a wrapper that sends by itself.
    """

    def __init__(self, session: aiohttp.ClientSession | None = None) -> None:
        if session is not None and not isinstance(cast("object", session), aiohttp.ClientSession):
            problem = f"is {session!r}, and must be an aiohttp.ClientSession"
            raise InvalidArgument("session", f"{problem}: pass the one that it wraps")
        self._session = session
        self._own_sessions = PerLoop(_make_session, aiohttp.ClientSession.close)
        self._proxies: dict[URL, str | None] = {}
        if session is not None and _TOLD not in session.trace_configs:
            session.trace_configs.insert(0, _TELLING)
            session.trace_configs.append(_TOLD)

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        """Send `request` once; see `AsyncTransport.send_async`."""
        _check_loop()
        url = _url(request)
        session = self._session
        proxy = None
        if session is None:
            session = await self._own_sessions.get()
            proxy = self._proxy(url.origin())
        elif session.closed:
            raise ClientClosed("the aiohttp session is closed")
        exchange = _Exchange(request, url)
        response = await exchange.run(session, proxy)
        wire = exchange.body.wire
        if response.connection is not None and response.connection.transport is not None:
            wire = Wire.of(response.connection.transport)
        body = _Body(request, response, wire, self)
        fields = (
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in response.raw_headers
        )
        return Response(response.status, Headers(tuple(fields)), body, response)

    async def close_async(self) -> None:
        """Close the running loop's session, unless it is the user's."""
        await self._own_sessions.close_async()

    def _proxy(self, origin: URL) -> str | None:
        """Return the proxy that the environment names for requests to `origin`."""
        if origin not in self._proxies:
            proxies = getproxies()
            proxy = proxies.get(origin.scheme) or proxies.get("all")
            if proxy is None or proxy_bypass(f"{origin.host}:{origin.port}"):
                self._proxies[origin] = None
            else:
                self._proxies[origin] = proxy if "://" in proxy else f"http://{proxy}"
        return self._proxies[origin]


def _make_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=_MAX_CONNECTIONS, keepalive_timeout=_KEEPALIVE_SECONDS
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[_TOLD],
    )


def _check_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        message = "aiohttp works under asyncio only: use HttpxTransport under trio"
        raise Flux0Error(message) from None


def _url(request: Request) -> URL:
    try:
        url = URL(request.url, encoded=True)
        url.port  # noqa: B018 - checked when first looked at
        if url.scheme not in ("http", "https") or not url.raw_host:
            raise ValueError("it begins with http:// or https:// and the name of a server")
    except ValueError as error:
        raise ConnectError(f"the URL leads nowhere: {error}") from error
    return url


def _middlewares(session: aiohttp.ClientSession) -> Sequence[aiohttp.ClientMiddlewareType]:
    """Return a session's own middlewares, which those of a request replace.

    aiohttp has no public name for them. Without its own around them and inside of them, a request
    could be sent twice, and what they raise could not be told from what aiohttp raises.
    """
    return session._middlewares  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


class _Exchange:
    """One request on its way to the head of its answer, and what is known of it."""

    def __init__(self, request: Request, url: URL) -> None:
        self._request = request
        self._url = url
        self.body = RequestBody(request.body or b"", request.timeout.write)
        self._sent = False
        self._failure: Exception | None = None  # What aiohttp itself has raised last.
        self._step = ""  # What aiohttp does, by the name of its last trace event.
        self._telling = False  # Whether it is telling the user's traces of an event.

    async def run(
        self, session: aiohttp.ClientSession, proxy: str | None
    ) -> aiohttp.ClientResponse:
        """Send the request and return the answer when its head is in."""
        timeout = self._request.timeout
        _EXCHANGE.set(self)
        try:
            return await session.request(
                self._request.method,
                self._url.with_user(None),
                headers=self._headers(),
                skip_auto_headers=("Content-Type",) if self._request.body is None else None,
                data=self.body,
                allow_redirects=False,
                raise_for_status=False,
                auto_decompress=False,
                proxy=proxy,
                middlewares=(self._outermost, *_middlewares(session), self._innermost),
                max_line_size=_MAX_HEADER_BYTES,
                max_field_size=_MAX_HEADER_BYTES,
                timeout=aiohttp.ClientTimeout(
                    connect=timeout.pool, sock_connect=timeout.connect, sock_read=timeout.read
                ),
            )
        except _Theirs as carrier:
            theirs = carrier.error
        finally:
            _EXCHANGE.set(None)
        raise theirs  # Outside of the block, so that it is as it was.

    def _headers(self) -> list[tuple[str, str]]:
        headers = self._request.headers
        pairs = [pair for pair in headers.pairs if pair[0].lower() != "authorization"]
        if "accept-encoding" not in headers:
            pairs.append(("accept-encoding", "gzip"))  # What is undone here, and no more.
        return pairs

    async def _outermost(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Complete the request, and keep the errors of the user's middlewares as they are."""
        _EXCHANGE.set(None)  # A middleware may send requests of its own.
        authorization = self._request.headers.get("authorization")
        if authorization is not None:
            request.headers["Authorization"] = authorization
        elif self._url.user is not None and "Authorization" not in request.headers:
            login = b64encode(f"{self._url.user}:{self._url.password or ''}".encode())
            request.headers["Authorization"] = f"Basic {login.decode()}"
        if self._request.body is None and request.method in request.GET_METHODS:
            del request.headers["Content-Length"]
        try:
            return await handler(request)
        except Exception as error:
            if error is self._failure:
                raise self._translated(error) from error
            # aiohttp would send a GET again, or make another error of it.
            if isinstance(error, (OSError, aiohttp.ServerDisconnectedError)):
                raise _Theirs(error) from error
            raise

    async def _innermost(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Have aiohttp send the request; take note of whether it did, and of what it raises."""
        if request.loop is not asyncio.get_running_loop():
            raise Flux0Error("the aiohttp session belongs to another event loop")
        if "Expect" in request.headers:
            problem = "has expect, for whose 100 Continue aiohttp waits without end"
            raise InvalidArgument("headers", problem)
        body = self.body
        while True:
            body.prepare()
            self._telling = False
            known = request.body is body  # A middleware may have replaced it.
            try:
                response = await handler(request)
                if not known or body.begun or not body.reused:
                    return response
                response.close()  # It was there before the request was.
            except Exception as error:
                if body.unfit:
                    continue
                if self._telling:
                    raise self._of_trace(error) from None
                self._failure = error
                raise
            finally:
                self._sent = self._sent or body.begun or not known

    def _of_trace(self, error: Exception) -> BaseException:
        """Return what the user's trace has raised, which aiohttp wraps while it connects."""
        if self._step in _SENDING:
            return self.body.failure or error
        wrappers: tuple[type[Exception], ...] = (aiohttp.ConnectionTimeoutError,)
        if self._step.startswith("dns"):
            wrappers += (aiohttp.ClientConnectorDNSError,)
        return (isinstance(error, wrappers) and error.__cause__) or error

    def note(self, step: str, *, telling: bool) -> None:
        """Take note of what aiohttp does, and of whether the user's traces are yet to be told."""
        self._step, self._telling = step, telling
        if step in ("connection_reuseconn", "connection_create_start"):
            self.body.reused = step == "connection_reuseconn"

    def _translated(self, error: Exception) -> Exception:
        """Return the error of ours that one of aiohttp's stands for, or itself if there is none."""
        if isinstance(self.body.failure, WriteTimeout):
            return self.body.failure
        unsent = not self._sent and self._step in _CONNECTING
        kinds = _UNSENT if unsent else _SENT
        kind = next((to for raised, to in kinds if isinstance(error, raised)), None)
        if kind is ConnectTimeout and self._step == "connection_queued_start":
            kind = PoolTimeout
        return error if kind is None else kind(str(error) or type(error).__name__)


class _Theirs(Exception):
    """Carries an error of the user's past aiohttp."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


# What aiohttp raises before a byte is sent, and after; the first that fits counts.
_Kinds: TypeAlias = tuple[tuple[type[Exception], type[TransportError]], ...]
_UNSENT: Final[_Kinds] = (
    (asyncio.TimeoutError, ConnectTimeout),
    (aiohttp.ClientSSLError, TLSError),
    (aiohttp.ServerFingerprintMismatch, TLSError),
    (aiohttp.ClientError, ConnectError),
    (HttpProcessingError, ConnectError),  # Of a proxy.
    (OSError, ConnectError),
    (UnicodeError, ConnectError),  # The standard library cannot encode the name of the host.
)
_SENT: Final[_Kinds] = (
    (asyncio.TimeoutError, ReadTimeout),
    (aiohttp.ClientConnectionError, ConnectionInterrupted),
    (aiohttp.ClientError, ProtocolError),
    (OSError, ConnectionInterrupted),
)

# aiohttp's trace events: before it has a connection, once it has one, and while it sends.
_CONNECTING: Final = (
    *("connection_queued_start", "connection_queued_end", "connection_create_start"),
    *("dns_resolvehost_start", "dns_resolvehost_end", "dns_cache_hit", "dns_cache_miss"),
)
_CONNECTED: Final = ("connection_create_end", "connection_reuseconn")
_SENDING: Final = ("request_headers_sent", "request_chunk_sent")

_FRAMING: Final = ("Content-Length", "Transfer-Encoding")

# The exchange whose request is handed to aiohttp right now.
_EXCHANGE: ContextVar[_Exchange | None] = ContextVar("flux0_aiohttp_exchange", default=None)


class _TraceContext(SimpleNamespace):
    def __init__(self, **given: Any) -> None:
        super().__init__(exchange=_EXCHANGE.get(), **given)


def _trace(*, telling: bool) -> aiohttp.TraceConfig:
    config = aiohttp.TraceConfig(_TraceContext)

    async def tell(step: str, _session: object, context: Any, _params: object) -> None:
        if context.exchange is not None:  # Otherwise the request is the user's own.
            context.exchange.note(step, telling=telling)

    for step in (*_CONNECTING, *_CONNECTED, *_SENDING):
        getattr(config, f"on_{step}").append(partial(tell, step))
    config.freeze()
    return config


# One is told before the user's own traces, the other after them.
_TELLING: Final = _trace(telling=True)
_TOLD: Final = _trace(telling=False)


class _Body:
    """The body of a response."""

    def __init__(
        self,
        request: Request,
        response: aiohttp.ClientResponse,
        wire: Wire | None,
        transport: AiohttpTransport,
    ) -> None:
        streaming = request.streams(response.status)
        self._silence = request.timeout.idle if streaming else request.timeout.read
        self._retained: list[bytes] | None = None if streaming else []
        self._response = response
        self._content = response.content
        self._wire = wire
        self._transport = transport  # Its session must outlive the body.
        self._decoder = decoder_for(response.headers.get("Content-Encoding", ""))
        self._decoded: Iterator[bytes] = iter(())
        self._ended = self._closed = self._expired = False
        self._forgotten: finalize[..., _Body] | None = None
        connection = response.connection
        if connection is not None and connection.protocol is not None and wire is not None:
            # aiohttp's timeout also runs while nobody reads; ours begins anew with each wait.
            connection.protocol.read_timeout = None
            connection.protocol.start_timeout()
            wire.watch(response.content)
            # Not __del__, which comes too late for a connection that is garbage together with this.
            loop = asyncio.get_running_loop()
            self._forgotten = finalize(self, _release_soon, loop, response, wire)
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
        if piece is None:
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
        _release(self._response, self._wire)

    async def _next(self) -> bytes | None:
        """Return the next piece, decompressed, which may be empty, or None at the end."""
        for piece in self._decoded:
            return piece
        data = await self._receive()
        if not data:
            self._end()
            return None
        if self._decoder is None:
            return data
        self._decoded = self._decoder.feed(data)
        return next(self._decoded, b"")

    async def _receive(self) -> bytes:
        """Return what has arrived, after waiting for it if need be, or nothing at the end."""
        content = self._content
        try:
            if self._closed:
                raise aiohttp.ClientConnectionError("the body is closed")
            data = content.read_nowait()
            if data or content.at_eof():
                return data
            if self._silence is None:
                return await content.readany()
            loop = asyncio.get_running_loop()
            timer = loop.call_later(self._silence, self._expire, content.total_bytes)
            try:
                return await content.readany()
            finally:
                timer.cancel()
        except (aiohttp.ClientError, HttpProcessingError, OSError, RuntimeError) as error:
            data = b"" if self._closed else _withheld(content)
            if data:
                return data
            raise self._failed(error) from error

    def _expire(self, seen: int) -> None:
        if self._content.total_bytes == seen:  # Otherwise bytes came at the same time.
            self._expired = True
            self._content.set_exception(aiohttp.SocketTimeoutError("nothing came for too long"))

    def _failed(self, error: Exception) -> TransportError:
        kind: type[TransportError] = ConnectionInterrupted
        if self._expired:
            kind = ReadTimeout
        elif self._wire is not None and isinstance(self._wire.failure, HttpProcessingError):
            kind = ProtocolError
        return kind(str(error) or type(error).__name__)

    def _end(self) -> None:
        """Take the end of the body."""
        if self._decoder is not None:
            self._decoder.end()
        lost = None if self._wire is None else self._wire.failure
        if isinstance(lost, OSError) and self._response.headers.keys().isdisjoint(_FRAMING):
            # aiohttp takes every end of such a connection for the end of the body.
            raise ConnectionInterrupted(str(lost)) from lost
        if self._retained is not None:
            # So that users find the body in `raw_response`.
            body, loop = b"".join(self._retained), asyncio.get_running_loop()
            content = aiohttp.StreamReader(BaseProtocol(loop), len(body), loop=loop)
            content.feed_data(body)
            content.feed_eof()
            self._response.content = content


def _withheld(content: aiohttp.StreamReader) -> bytes:
    """Return what came before a failure, which aiohttp withholds once it has failed."""
    failure = content.exception()
    if failure is None:
        return b""
    content.set_exception(cast("Exception", None))
    try:
        return content.read_nowait()
    finally:
        content.set_exception(failure)


def _release_soon(
    loop: asyncio.AbstractEventLoop, response: aiohttp.ClientResponse, wire: Wire
) -> None:
    """Have `loop` give up the connection, from any thread: garbage is collected in any."""
    try:
        loop.call_soon_threadsafe(_release, response, wire)
    except RuntimeError:  # The loop is closed.
        wire.shut_down()
        with suppress(RuntimeError):
            response.release()


def _release(response: aiohttp.ClientResponse, wire: Wire | None) -> None:
    """Give up the connection, unless the whole body is in, and end whoever waits for more."""
    if wire is not None:
        wire.watch(None)
    if not response.closed:
        if wire is not None:
            wire.abort()  # Closing would wait for the other side to end its TLS.
        response.close()
