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
# aiohttp emits a warning if a larger body is a `bytes` object, so a larger body is sent as a file.
_MAX_BYTES_BODY: Final = 1024 * 1024
_TLS_ERRORS: Final = (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch)
_HTTP_ERRORS: Final = (aiohttp.ClientResponseError, HttpProcessingError)
# UnicodeError is raised by Python if the host name is invalid.
LIBRARY_ERRORS: Final = (aiohttp.ClientError, HttpProcessingError, OSError, UnicodeError)


class AiohttpExchange(Exchange):
    # The flux0 error that replaces `failure`, the last error of aiohttp; None if there is none.
    _translated: Exception | None = None

    async def run(
        self, request: Request, url: URL, session: aiohttp.ClientSession, proxy: str | None
    ) -> aiohttp.ClientResponse:
        method, body = request.method, request.body
        headers = CIMultiDict(request.headers.pairs)
        self._authorization = headers.popall("authorization", ())
        self._cookies = headers.popall("cookie", ())
        headers.setdefault("accept-encoding", ACCEPT_ENCODING)
        # The argument `middlewares` of `session.request` replaces the session's middlewares,
        # which have no public name. So pass them, too.
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
            # If the user closes the session, aiohttp cancels the tasks that wait for a connection.
            # Report the closed session instead of the cancellation.
            if session.closed and isinstance(error, (RuntimeError, asyncio.CancelledError)):
                raised = errors.ClientClosed("the aiohttp session is closed")
        if raised is not self._translated:
            errors.mark_user_error(raised, sent=self.sent)
        # Raise the error after the `except` block: Python does not change its `__context__` here.
        raise raised

    async def _call_middlewares(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Call the user's middlewares, and wrap errors after which aiohttp repeats a request."""
        # If the session has authentication, `session.request` rejects an authorization header. It
        # also replaces the request's cookies with the session's cookies. So `run` removes both
        # headers, and this method adds them again.
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
        # Raise the error after the `except` block: inside the block, Python stores the original
        # error, which may show credentials, in `__context__`.
        raise raised

    async def _call_aiohttp(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if request.loop is not asyncio.get_running_loop():
            raise errors.Flux0Error("the aiohttp session belongs to another event loop")
        while True:
            # aiohttp has no public hook for the connections of a user's session. Therefore `_send`
            # replaces the method that aiohttp calls when it has a connection.
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
                # uvloop has cached the old class's methods. Set the protocol again, so that
                # uvloop calls the new class's methods.
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
    while error.__cause__ is not None and isinstance(error, aiohttp.ClientConnectionError):
        error = error.__cause__
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return aiohttp.ServerDisconnectedError()
    if isinstance(error, _HTTP_ERRORS):
        return HttpProcessingError(message=error.message.partition(":")[0])
    return error
