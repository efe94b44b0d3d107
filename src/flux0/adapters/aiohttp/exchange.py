"""One request over aiohttp until its response head is received, and the errors of aiohttp."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from traceback import walk_tb
from typing import Any, Final

import aiohttp
from aiohttp.client_middlewares import build_client_middlewares
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL  # aiohttp's own type of URL

from flux0.adapters.aiohttp.connection import TrackedConnection, WriteTimeoutError
from flux0.adapters.shared.exchange import Exchange
from flux0.adapters.shared.failures import chain, failure, proxy_unreachable, refused_by_proxy
from flux0.adapters.shared.limits import ACCEPT_ENCODING
from flux0.domain import errors
from flux0.ports import Request, Timeout

_OPTIONS: Final = {"allow_redirects": False, "raise_for_status": False, "auto_decompress": False}
_LIMITS: Final = {"max_line_size": 64 * 1024, "max_field_size": 64 * 1024}
_MAX_BYTES_BODY: Final = 1024 * 1024  # aiohttp warns about larger bodies in `bytes`.
_TLS_ERRORS: Final = (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch)
_HTTP_ERRORS: Final = (aiohttp.ClientResponseError, HttpProcessingError)
# Python raises UnicodeError for an invalid host name.
LIBRARY_ERRORS: Final = (aiohttp.ClientError, HttpProcessingError, OSError, UnicodeError)


class AiohttpExchange(Exchange):
    """The state of one request until the response head is received."""

    _translated: Exception | None = None  # The flux0 error for `failure`.

    async def run(
        self, request: Request, url: URL, session: aiohttp.ClientSession, proxy: str | None
    ) -> aiohttp.ClientResponse:
        """Send the request, and return the response when its head is received."""
        method, body, headers, times = request.method, request.body, request.headers, self.timeout
        self._authorization = headers.get("authorization")
        pairs = [*headers.pairs]
        if self._authorization is not None:
            pairs = [pair for pair in pairs if pair[0].lower() != "authorization"]
        if "accept-encoding" not in headers:
            pairs.append(("accept-encoding", ACCEPT_ENCODING))
        try:
            return await session.request(
                method,
                url,
                headers=pairs,
                skip_auto_headers=("Content-Type",) if body is None and method != "GET" else None,
                data=body if body is None or len(body) <= _MAX_BYTES_BODY else _LargeBody(body),
                proxy=proxy,
                middlewares=(self._call_middlewares,),
                timeout=aiohttp.ClientTimeout(connect=times.pool, sock_connect=times.connect),
                **_OPTIONS,
                **_LIMITS,
            )
        except Exception as error:  # noqa: BLE001 - raised below
            raised: Exception = error.args[0] if isinstance(error, _UserError) else error
        if raised is not self._translated:
            errors.mark_user_error(raised, sent=self.sent)
        raise raised  # Outside of the block, so that it is unchanged.

    async def _call_middlewares(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Call the user's middlewares, then aiohttp. Raise no error that makes aiohttp retry."""
        if self._authorization is not None:  # It may replace the authorization of the session.
            request.headers["Authorization"] = self._authorization
        call: aiohttp.ClientHandlerType = partial(self._call_aiohttp, handler)
        # The middlewares of a request replace the session's, which have no public name.
        users = request.session._middlewares  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        if users:
            call = build_client_middlewares(call, users)
        try:
            return await call(request)
        except Exception as error:  # noqa: BLE001 - raised below
            raised = error
            if error is self.failure:
                raised = self._translated = translate(error, self.timeout, sent=self.sent)
        if isinstance(raised, (OSError, aiohttp.ServerDisconnectedError)):
            raised = _UserError(raised)
        raise raised  # Outside of the block, so that no error with secrets is its `__context__`.

    async def _call_aiohttp(
        self, handler: aiohttp.ClientHandlerType, request: aiohttp.ClientRequest
    ) -> aiohttp.ClientResponse:
        """Send the request over a usable connection; record the errors of aiohttp in `failure`."""
        if request.loop is not asyncio.get_running_loop():
            raise errors.Flux0Error("the aiohttp session belongs to another event loop")
        while True:
            # aiohttp calls this method when it has a connection.
            request.send = partial(self._send, request.send)  # type: ignore[method-assign]
            try:
                return await handler(request)
            except _StaleConnectionError:
                continue
            except LIBRARY_ERRORS as error:
                for each, function in _functions(error):
                    if function.startswith("aiohttp.tracing."):  # A trace of the user raised it.
                        raise each from None
                self.failure = error
                raise
            finally:
                del request.send  # Otherwise the request would be part of a reference cycle.

    async def _send(self, send: Any, connection: Any) -> Any:
        protocol = connection.protocol
        if not isinstance(protocol, TrackedConnection):
            protocol.__class__ = TrackedConnection
            if connection.transport is not None:
                connection.transport.set_protocol(protocol)  # uvloop stores its methods.
        elif protocol.is_stale():
            raise _StaleConnectionError
        protocol.await_head(self.timeout.read, self.timeout.write)
        self.sent = True
        return await send(connection)


class _StaleConnectionError(Exception):
    """A connection of the pool cannot be used."""


class _UserError(Exception):
    """Carries an error of the user's code through aiohttp."""


class _LargeBody(aiohttp.BytesPayload):
    """A request body of any size, without aiohttp's warning about large bodies."""

    def __init__(self, body: bytes) -> None:
        aiohttp.Payload.__init__(self, body)
        self._size = len(body)


def translate(
    error: Exception, timeout: Timeout, *, sent: bool, head_received: bool = False
) -> errors.TransportError:
    """Return the flux0 error for an error of aiohttp."""
    kind: type[errors.TransportError]
    if isinstance(error, asyncio.TimeoutError):
        pooled = any("._wait_for_available_connection" in name for _, name in _functions(error))
        unsent = errors.PoolTimeout if pooled else errors.ConnectTimeout
        kind = errors.ReadTimeout if sent else unsent
        if isinstance(error, WriteTimeoutError):
            kind = errors.WriteTimeout
    elif sent:
        is_http = not isinstance(error, _HTTP_ERRORS)
        kind = errors.ConnectionInterrupted if is_http else errors.ProtocolError
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
    """Return `error`, or an error in its place if it contains headers or a password."""
    while error.__cause__ is not None and isinstance(error, aiohttp.ClientConnectionError):
        error = error.__cause__
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return aiohttp.ServerDisconnectedError()
    if isinstance(error, _HTTP_ERRORS):
        return HttpProcessingError(message=error.message.partition(":")[0])
    return error


def _functions(error: BaseException) -> Iterator[tuple[BaseException, str]]:
    """Yield the functions that an error, and each error that it wraps, passed through."""
    raised = chain(error)
    contexts = (each.__context__ for each in raised)  # The causes of timeouts on Python 3.10.
    for each in (*raised, *(it for it in contexts if isinstance(it, asyncio.CancelledError))):
        for frame, _ in walk_tb(each.__traceback__):
            yield each, f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}"
