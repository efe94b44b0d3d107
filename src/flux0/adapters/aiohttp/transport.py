"""The transport over aiohttp, for async code under asyncio.

A call passes these steps:

1. `send_async` starts an `AiohttpExchange`, which calls `ClientSession.request`. The session's
   middlewares run between two middlewares of flux0. The inner middleware records the errors of
   aiohttp, and the outer middleware replaces them with flux0 errors. Errors from user code are
   unchanged.
2. aiohttp takes a connection from the pool or opens a connection. It calls `AiohttpExchange._send`,
   which rejects stale connections, and then sends the request. A request is sent only once.
3. `AiohttpConnection` is in the state `_Head` until it has received a complete response head. It
   limits the wait for the head, and rejects data that is not HTTP.
4. `AiohttpConnection` is in the state `_Body` until its next request. It limits the bytes that are
   not content, such as chunk sizes.
5. `_AiohttpSource` reads the content. At the end, aiohttp returns the connection to the pool. If
   the body is closed early, cancelled, interrupted or garbage-collected, the connection is aborted.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import lru_cache
from typing import Any, ClassVar, cast

import aiohttp
from yarl import URL  # The package yarl is a dependency of aiohttp.

from flux0.adapters.aiohttp import exchange
from flux0.adapters.shared.bodies import AsyncBody
from flux0.adapters.shared.connecting import refuse_without_sockets
from flux0.adapters.shared.exchange import shut_down
from flux0.adapters.shared.limits import MAX_CONNECTIONS, MAX_IDLE_SECONDS
from flux0.adapters.shared.misplaced import check_type, transport_repr
from flux0.adapters.shared.proxies import EnvironmentProxies
from flux0.domain import errors
from flux0.domain.headers import Headers
from flux0.domain.http import is_framed
from flux0.ports import AsyncByteStream, Request, Response, Timeout
from flux0.runtime.event_loop import Loop, PerLoop, call_soon, is_blocked_by_caller


class AiohttpTransport:
    """Sends requests over aiohttp, with your session or with built-in sessions.

    Your session keeps its settings, cookies, middlewares and traces, and flux0 never closes it. It
    can only be used in the event loop that created it. Built-in sessions store no cookies, and use
    the environment's proxy settings. The connect timeout includes the wait for a free
    connection.
    """

    def __init__(self, session: aiohttp.ClientSession | None = None) -> None:
        check_type("session", session, aiohttp.ClientSession)
        self._session = session
        self._own_sessions = PerLoop(_make_session, aiohttp.ClientSession.close)
        self._proxies = EnvironmentProxies("aiohttp")

    def __repr__(self) -> str:
        return transport_repr(self, session=self._session)

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        """Send `request` once, and return the response when its head was received."""
        url = _parse_url(request.url)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise errors.Flux0Error("aiohttp needs asyncio: use HttpxTransport in trio") from None
        session, proxy = self._session, None
        if session is None:
            session = await self._own_sessions.get()
            proxy = self._proxies.proxy_for(request.url)
        response = await exchange.AiohttpExchange(request).run(request, url, session, proxy)
        pairs = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in response.raw_headers]
        headers, body = Headers(tuple(pairs)), AsyncBody(_AiohttpSource(response, self))
        return Response(response.status, headers, body, response, not is_framed(response.headers))

    async def close_async(self) -> None:
        """Close the running event loop's built-in session. Your session stays open."""
        await self._own_sessions.close_async()


def _make_session(limit: int = MAX_CONNECTIONS) -> aiohttp.ClientSession:
    refuse_without_sockets("aiohttp")
    connector = aiohttp.TCPConnector(limit=limit, keepalive_timeout=MAX_IDLE_SECONDS)
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())


@lru_cache(128)
def _parse_url(text: str) -> URL:
    try:
        url = URL(text, encoded=True)
        if not text.isascii():
            # `with_host` encodes an international host name, such as `bücher.example`, in ASCII.
            url = url.with_host(url.raw_host or "")
        if url.scheme in ("http", "https") and url.host and url.port is not None:
            return url
        problem = "it must begin with http:// or https:// and the name of a server"
        raise ValueError(problem)  # noqa: TRY301
    except ValueError as error:
        raise errors.ConnectError(f"the URL is not valid: {error}") from error


class _AiohttpSource:
    """Receives one response body over aiohttp.

    It refers to its transport (`owner`), because the built-in session of an unreferenced transport
    is closed.
    """

    # At exit, close the open responses, because aiohttp emits a warning for each open response.
    close_at_exit: ClassVar[bool] = True

    def __init__(self, response: aiohttp.ClientResponse, owner: object) -> None:
        self.coding: str = response.headers.get("Content-Encoding", "")
        self._response, self._content, self._owner = response, response.content, owner
        self._received = False
        # `_connection` is None if aiohttp has received the whole body and released the connection.
        self._connection = response.connection and cast("Any", response.connection).protocol

    async def receive(self, timeout: float | None) -> bytes | None:
        connection, raised = self._connection, None
        try:
            if connection is not None:
                connection.start_wait(timeout)
            data = await self._content.readany()
            if connection is not None:
                connection.deadline = None
            if not data and not self._received:
                # If the user's middleware has already read the body, `readany` returns no bytes,
                # and `read` returns the body again.
                data = await self._response.read()
        except exchange.LIBRARY_ERRORS as first:
            # If the parser of aiohttp has raised `first`, `AiohttpConnection` can have replaced it.
            error = cast("Exception", self._content.exception() or first)
            # Return the bytes that were received before `error`. `read_nowait` raises the error
            # that is stored in `_content`, so remove the stored error while `read_nowait` is
            # called.
            self._content.set_exception(cast("Exception", None))
            data = self._content.read_nowait()
            self._content.set_exception(error)
            # aiohttp raises the same error object for all closed responses, and keeps the object in
            # memory. Therefore, remove the error's traceback, which refers to the stream.
            error.__traceback__ = first.__traceback__ = None
            raised = exchange.without_secrets(error)
        if raised is not None and (self._response.closed or not data):
            # Raise the error after the `except` block. Inside the block, Python stores the original
            # error in `__context__`, and the original error can contain credentials.
            raise raised
        self._received = True
        return data or None

    async def close(self) -> None:
        if not self._response.closed:
            self._response.close()

    finish = close

    def close_from_finalizer(self, loop: Loop) -> None:
        """Close the response in its event loop, because a finalizer may run in any thread."""
        response = self._response
        is_scheduled = call_soon(loop, response.close)
        # If `response.connection` is None, aiohttp has received the whole body, and can use the
        # connection for another request. In this case, do not shut the connection down.
        if not is_scheduled or (is_blocked_by_caller(loop) and response.connection is not None):
            transport = None if self._connection is None else self._connection.transport
            shut_down(transport and transport.get_extra_info("socket"))
        if not is_scheduled:
            # If a reader waits for data, the first call of `release` raises an error, so call
            # `release` twice.
            for _ in range(2):
                with suppress(RuntimeError):
                    response.release()

    def translate_error(
        self, error: BaseException, timeout: float | None
    ) -> errors.TransportError | None:
        if not isinstance(error, exchange.LIBRARY_ERRORS):
            return None
        # aiohttp raises the same error object for all closed responses, and keeps the object in
        # memory. Therefore, remove the error's traceback, which refers to the stream.
        error.__traceback__ = None
        return exchange.translate(error, Timeout(read=timeout), sent=True, head_received=True)
