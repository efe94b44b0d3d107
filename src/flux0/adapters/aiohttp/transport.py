"""The transport over aiohttp, for asynchronous code under asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final, cast
from weakref import finalize

import aiohttp
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL  # aiohttp's own type of URL

from flux0.adapters.aiohttp.exchange import AFTER_USER_TRACES, BEFORE_USER_TRACES, AiohttpExchange
from flux0.adapters.aiohttp.protocol_shim import NEVER, ProtocolShim
from flux0.adapters.shared.bodies import AsyncPulledBody
from flux0.adapters.shared.failures import failure
from flux0.adapters.shared.limits import MAX_CONNECTIONS, MAX_IDLE_SECONDS
from flux0.adapters.shared.misplaced import refuse_misplaced, transport_repr
from flux0.adapters.shared.proxies import EnvironmentProxies
from flux0.domain.errors import (
    ClientClosed,
    ConnectError,
    ConnectionInterrupted,
    Flux0Error,
    InvalidArgument,
    ProtocolError,
    ReadTimeout,
    TransportError,
)
from flux0.domain.headers import Headers
from flux0.domain.http import is_framed, is_success
from flux0.ports import AsyncByteStream, Request, Response, Timeout
from flux0.runtime.event_loop import PerLoop


class AiohttpTransport:
    """Sends requests over aiohttp, with a session of the user's or sessions made when first needed.

    A session passed in keeps its connector, proxy, certificates, cookies, middlewares and traces,
    belongs to the event loop that it was made in, and is never closed here. One made here obeys the
    proxies that the environment names, which `AiohttpTransport(aiohttp.ClientSession())` does not,
    and keeps no cookies. Timeouts are the request's: aiohttp has a single one for waiting for a
    free connection and for making it, and that is `pool`; `connect` limits each address that is
    tried. Redirects are not followed, and aiohttp's own retries are off.

    Raises:
        InvalidArgument: `session` is not a session; it may be something that wraps one.
    """

    def __init__(self, session: aiohttp.ClientSession | None = None) -> None:
        if session is not None:
            refuse_misplaced("session", session, "aiohttp")
            if not isinstance(cast("object", session), aiohttp.ClientSession):
                problem = f"is {session!r}, and must be an aiohttp.ClientSession"
                raise InvalidArgument("session", f"{problem}: pass the one that it wraps")
            if AFTER_USER_TRACES not in session.trace_configs:
                session.trace_configs.insert(0, BEFORE_USER_TRACES)
                session.trace_configs.append(AFTER_USER_TRACES)
        self._session = session
        self._own_sessions = PerLoop(_make_session, aiohttp.ClientSession.close)
        self._proxies = EnvironmentProxies("aiohttp")

    def __repr__(self) -> str:
        return transport_repr(self, session=self._session)

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        """Send `request` once; see `AsyncTransport.send_async`."""
        url = _url(request.url)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            message = "aiohttp works under asyncio only: use HttpxTransport under trio"
            raise Flux0Error(message) from None
        session, proxy = self._session, None
        if session is None:
            session = await self._own_sessions.get()
            proxy = self._proxies.proxy_for(request.url)
        elif session.closed:
            raise ClientClosed("the aiohttp session is closed")
        exchange = AiohttpExchange(request, url)
        response = await exchange.run(session, proxy)
        wire = exchange.body.wire
        if response.connection is not None and response.connection.transport is not None:
            wire = ProtocolShim.of(
                response.connection.transport
            )  # Another, if the user's code sent it.
        pairs = (
            (str(name, "latin-1"), str(value, "latin-1")) for name, value in response.raw_headers
        )
        headers = Headers(tuple(pairs))
        body = _Body(request, response, wire, self, close_delimited=not is_framed(headers))
        return Response(response.status, headers, body, response, body.close_delimited)

    async def close_async(self) -> None:
        """Close the running loop's session, unless it is the user's."""
        await self._own_sessions.close_async()


def _make_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS, keepalive_timeout=MAX_IDLE_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[AFTER_USER_TRACES],
    )


def _url(text: str) -> URL:
    try:
        url = URL(text, encoded=True)
        if not text.isascii():
            url = url.with_host(url.raw_host or "")  # Which encodes it.
        if url.scheme in ("http", "https") and url.host and url.port is not None:
            return url
        problem = ValueError("it does not begin with http:// or https:// and a server's name")
    except ValueError as error:
        problem = error
    raise ConnectError(f"the URL leads nowhere: {problem}") from problem


# RuntimeError: the connection was closed, which aiohttp has not told the reader yet.
_RAISED: Final = (aiohttp.ClientError, HttpProcessingError, OSError, RuntimeError)


class _Body(AsyncPulledBody):
    """The body of a response."""

    def __init__(
        self,
        request: Request,
        response: aiohttp.ClientResponse,
        wire: ProtocolShim | None,
        transport: AiohttpTransport,
        *,
        close_delimited: bool,
    ) -> None:
        super().__init__(response.headers.get("Content-Encoding", ""))
        timeout = request.timeout
        self._silence = timeout.idle if request.is_streaming(response.status) else timeout.read
        self._begun = self._expired = False
        self.close_delimited = close_delimited
        self._loop = asyncio.get_running_loop()
        self._response = response
        self._content = response.content
        self._wire = wire
        self._transport = transport  # Its session must outlive the body.
        # Users read the body of an error again, from `raw_response`.
        if not is_success(response.status):
            self.retained = []
        self._forgotten: finalize[..., _Body] | None = None
        protocol = None if response.connection is None else response.connection.protocol
        if protocol is not None and wire is not None:  # Otherwise the whole body is there.
            # aiohttp's timeout also runs while nobody reads; ours begins anew with each wait.
            protocol.read_timeout = None
            protocol.start_timeout()
            wire.watch(response.content)
            # Not __del__, which comes too late for a connection that is garbage together with this.
            # At Python's end too, since aiohttp warns of what is open then.
            self._forgotten = finalize(self, _release_soon, self._loop, response, wire)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = await self.pull()
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def close_async(self) -> None:
        self.closed = True
        self._release()

    def _release(self) -> None:
        if self._forgotten is not None and self._wire is not None:
            self._forgotten.detach()
            _release(self._response, self._wire)

    async def _receive(self) -> bytes | None:
        try:
            data = self._content.read_nowait()
            if not data and not self._content.at_eof():
                data = await self._wait()
            elif not data and not self._begun:
                data = await self._response.read()  # A middleware may have read it.
            self._begun = True
        except _RAISED:
            data = b"" if self.closed else _withheld(self._content)
            if not data:
                raise
        lost = None if self._wire is None else self._wire.failure
        # aiohttp takes every end of a connection for that of a body which ends with it.
        if not data and isinstance(lost, OSError) and self.close_delimited:
            raise lost
        return data or None

    async def _wait(self) -> bytes:
        silence = NEVER if self._silence is None else self._silence
        timer = self._loop.call_later(silence, self._expire, self._content.total_bytes)
        try:
            return await self._content.readany()
        finally:
            timer.cancel()

    def _expire(self, seen: int) -> None:
        if self._content.total_bytes == seen:  # Otherwise bytes came at the same time.
            self._expired = True
            self._content.set_exception(aiohttp.SocketTimeoutError("no data received"))

    async def _on_finished(self) -> None:
        self._release()
        if self.retained is not None:
            body = b"".join(self.retained)
            content = aiohttp.StreamReader(BaseProtocol(self._loop), len(body), loop=self._loop)
            content.feed_data(body)
            content.feed_eof()
            self._response.content = content

    async def _on_failure(self, _error: BaseException) -> None:
        self._release()

    def _translate_error(self, error: BaseException) -> TransportError | None:
        if not isinstance(error, _RAISED):
            return None
        kind: type[TransportError] = ReadTimeout if self._expired else ConnectionInterrupted
        lost = None if self._wire is None else self._wire.failure
        if any(isinstance(each, HttpProcessingError) for each in (error, lost)):
            kind = ProtocolError
        timeout = Timeout(read=self._silence)
        return failure(kind, lost or error, timeout, head_received=True)


def _withheld(content: aiohttp.StreamReader) -> bytes:
    """Return what came before a failure, which aiohttp withholds from then on."""
    failure = content.exception()
    content.set_exception(cast("Exception", None))
    data = content.read_nowait()
    content.set_exception(cast("Exception", failure))
    return data


def _release_soon(
    loop: asyncio.AbstractEventLoop, response: aiohttp.ClientResponse, wire: ProtocolShim
) -> None:
    """Have `loop` give up the connection, from any thread: garbage is collected in any."""
    try:
        loop.call_soon_threadsafe(_release, response, wire)
    except RuntimeError:  # The loop is closed.
        wire.shut_down()
        with suppress(RuntimeError):
            response.release()


def _release(response: aiohttp.ClientResponse, wire: ProtocolShim) -> None:
    """Give up the connection, unless the whole body is in, and end whoever waits for more."""
    if not response.closed:
        wire.abort()  # Closing would wait for the other side to end its TLS.
        response.close()
