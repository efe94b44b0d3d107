"""Sends a request over aiohttp, receives the response head, and translates errors of aiohttp."""

from __future__ import annotations

import asyncio
from functools import partial
from io import BytesIO
from typing import Any, Final

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict  # The packages multidict and yarl are dependencies of aiohttp.
from yarl import URL

from flux0.adapters.aiohttp.connection import AiohttpConnection
from flux0.adapters.shared.exchange import Exchange
from flux0.adapters.shared.failures import failure, proxy_unreachable, refused_by_proxy
from flux0.adapters.shared.limits import ACCEPT_ENCODING
from flux0.domain import errors
from flux0.domain.headers import merge_cookies
from flux0.ports import Request, Timeout

_MAX_LINE_BYTES: Final = 64 * 1024
# A request body with more than `_MAX_BYTES_BODY` bytes is sent as a file, because aiohttp emits a
# warning if such a body is a `bytes` object.
_MAX_BYTES_BODY: Final = 1024 * 1024
_TLS_ERRORS: Final = (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch)
_HTTP_ERRORS: Final = (aiohttp.ClientResponseError, HttpProcessingError)
# Python raises UnicodeError if the host name of a URL is invalid.
LIBRARY_ERRORS: Final = (aiohttp.ClientError, HttpProcessingError, OSError, UnicodeError)


class AiohttpExchange(Exchange):
    sent: bool = False
    # `_translated` is the flux0 error that replaces `failure`, the last error of aiohttp.
    # `_translated` is None if there is no such error.
    _translated: Exception | None = None

    async def run(
        self, request: Request, url: URL, session: aiohttp.ClientSession, proxy: str | None
    ) -> aiohttp.ClientResponse:
        method, body = request.method, request.body
        headers = CIMultiDict(request.headers.pairs)
        self._authorization = headers.popall("authorization", ())
        self._cookies = headers.popall("cookie", ())
        headers.setdefault("accept-encoding", ACCEPT_ENCODING)
        # The argument `middlewares` of `session.request` replaces the session's own middlewares.
        # Therefore, pass the session's middlewares, too. They have no public name.
        users = session._middlewares  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        try:
            return await session.request(
                method,
                url,
                headers=headers,
                skip_auto_headers=("Content-Type",) if body is None and method != "GET" else None,
                data=BytesIO(body) if body and len(body) > _MAX_BYTES_BODY else body,
                proxy=proxy,
                middlewares=(self._call_middlewares, *users, self._call_aiohttp),
                timeout=aiohttp.ClientTimeout(connect=self.timeout.connect),
                allow_redirects=False,
                raise_for_status=False,
                auto_decompress=False,
                max_line_size=_MAX_LINE_BYTES,
                max_field_size=_MAX_LINE_BYTES,
            )
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - raised below
            raised: BaseException = error.args[0] if isinstance(error, _UserError) else error
            # If the user closes the aiohttp session, aiohttp cancels each task that waits for a
            # connection. Raise `ClientClosed` instead of the cancellation.
            if session.closed and isinstance(error, (RuntimeError, asyncio.CancelledError)):
                raised = errors.ClientClosed("the aiohttp session is closed")
        if raised is not self._translated:
            errors.mark_user_error(raised, sent=self.sent)
        # Inside the `except` block, Python would change `__context__` of the error, so raise the
        # error after the block.
        raise raised

    async def _call_middlewares(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        # `run` has removed the authorization header, because `session.request` rejects the header
        # if the session has authentication. `run` has also removed the cookie header, because
        # `session.request` replaces the header with the session's cookies. Add both headers again.
        if self._authorization:
            request.headers["Authorization"] = ", ".join(self._authorization)
        if self._cookies:
            own = request.headers.get("Cookie", "")
            request.headers["Cookie"] = merge_cookies(own, "; ".join(self._cookies))
        try:
            return await handler(request)
        except Exception as error:  # noqa: BLE001 - raised below
            raised = error
            if error is self.failure:
                raised = self._translated = translate(error, self.timeout, sent=self.sent)
        if isinstance(raised, (OSError, aiohttp.ServerDisconnectedError)):
            raised = _UserError(raised)
        # Raise the error after the `except` block. Inside the block, Python stores the original
        # error in `__context__`, and the original error can contain credentials.
        raise raised

    async def _call_aiohttp(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if request.loop is not asyncio.get_running_loop():
            raise errors.Flux0Error("the aiohttp session belongs to another event loop")
        while True:
            # aiohttp calls `request.send` when the request has got a connection. Replace this
            # method with `_send`, because aiohttp has no public hook for the connections of a
            # user's session.
            request.send = partial(self._send, request.send)  # type: ignore[method-assign]
            try:
                return await handler(request)
            except _StaleConnectionError:
                continue
            except LIBRARY_ERRORS as error:
                self.failure: BaseException | None = error
                raise
            finally:
                del request.send  # Break a reference cycle: `request.send` refers to `request`.

    async def _send(self, send: Any, connection: Any) -> Any:
        protocol = connection.protocol
        if not isinstance(protocol, AiohttpConnection):
            protocol.__class__ = AiohttpConnection
            if connection.transport is not None:
                # uvloop has cached the methods of the connection's old class. Set the protocol
                # again, so that uvloop calls the methods of the new class.
                connection.transport.set_protocol(protocol)
        elif protocol.is_stale():
            raise _StaleConnectionError
        protocol.await_head(self.timeout.read)
        self.sent = True
        return await send(connection)


class _StaleConnectionError(Exception):
    """The pooled connection was closed, or has received surplus bytes."""


class _UserError(Exception):
    """Wraps an error from user code. Without this class, aiohttp sends the request again."""


def translate(
    error: Exception, timeout: Timeout, *, sent: bool, head_received: bool = False
) -> errors.TransportError:
    kind: type[errors.TransportError]
    if isinstance(error, asyncio.TimeoutError):
        kind = errors.ReadTimeout if sent else errors.ConnectTimeout
    elif sent:
        invalid = isinstance(error, _HTTP_ERRORS)
        kind = errors.ProtocolError if invalid else errors.ConnectionInterrupted
    else:
        kind = errors.TLSError if isinstance(error, _TLS_ERRORS) else errors.ConnectError
    cause = without_secrets(error)
    translated = failure(kind, cause, timeout, head_received=head_received)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        translated = refused_by_proxy(f"{error.status} {error.message}")
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        translated = proxy_unreachable(translated, f"{error.host}:{error.port}")
    translated.__cause__ = cause
    return translated


def without_secrets(error: BaseException) -> BaseException:
    own = (
        each
        for each in errors.chain(error)
        if each.__cause__ is None or not isinstance(each, aiohttp.ClientConnectionError)
    )
    error = next(own, error)
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return aiohttp.ServerDisconnectedError()
    if isinstance(error, _HTTP_ERRORS):
        return HttpProcessingError(message=error.message.partition(":")[0])
    return error
