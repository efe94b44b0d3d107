"""One request over aiohttp until its response head is received, and the errors of aiohttp."""

from __future__ import annotations

import asyncio
from functools import lru_cache, partial
from io import BytesIO
from types import SimpleNamespace
from typing import Any, Final

import aiohttp
from aiohttp.client_middlewares import build_client_middlewares
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL  # aiohttp's own type of URL

from flux0.adapters.aiohttp.connection import TrackedConnection, WriteTimeoutError
from flux0.adapters.shared.exchange import Exchange
from flux0.adapters.shared.failures import failure, proxy_unreachable, refused_by_proxy
from flux0.adapters.shared.limits import ACCEPT_ENCODING
from flux0.adapters.shared.places import Places
from flux0.domain import errors
from flux0.ports import Request, Timeout

_OPTIONS: Final = {"allow_redirects": False, "raise_for_status": False, "auto_decompress": False}
_LIMITS: Final = {"max_line_size": 64 * 1024, "max_field_size": 64 * 1024}
_MAX_BYTES_BODY: Final = 1024 * 1024  # aiohttp warns about larger bodies in `bytes`.
_TLS_ERRORS: Final = (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch)
_HTTP_ERRORS: Final = (aiohttp.ClientResponseError, HttpProcessingError)
# The UnicodeError is raised by Python if the host name is invalid.
LIBRARY_ERRORS: Final = (aiohttp.ClientError, HttpProcessingError, OSError, UnicodeError)


@lru_cache(16)
def _client_timeout(connect: float | None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(connect=connect)


class AiohttpExchange(Exchange):
    """The state of one request until the response head is received."""

    # The exchange has a place in the limit of connections. None in a session of the user.
    places: Places | None = None
    trace_error: Exception | None = None  # The last error that a trace function raised.
    _translated: Exception | None = None  # The flux0 error for `failure`.

    async def run(
        self, request: Request, url: URL, session: aiohttp.ClientSession, proxy: str | None
    ) -> aiohttp.ClientResponse:
        """Send the request, and return the response when its head is received."""
        method, body, headers = request.method, request.body, request.headers
        self._authorization = headers.get("authorization")
        pairs = [*headers.pairs]
        if self._authorization is not None:
            pairs = [pair for pair in pairs if pair[0].lower() != "authorization"]
        if "accept-encoding" not in headers:
            pairs.append(("accept-encoding", ACCEPT_ENCODING))
        traces = session.trace_configs
        if traces and not all(isinstance(each, _RecordedTraces) for each in traces):
            traces[:] = map(_RecordedTraces, traces)
        try:
            if session.closed:
                raise errors.ClientClosed("the aiohttp session is closed")  # noqa: TRY301
            return await session.request(
                method,
                url,
                headers=pairs,
                skip_auto_headers=("Content-Type",) if body is None and method != "GET" else None,
                data=BytesIO(body) if body and len(body) > _MAX_BYTES_BODY else body,
                proxy=proxy,
                middlewares=(self._call_middlewares,),
                timeout=_client_timeout(self.timeout.connect),
                trace_request_ctx=self,
                **_OPTIONS,
                **_LIMITS,
            )
        except Exception as error:  # noqa: BLE001 - raised below
            raised: Exception = error.args[0] if isinstance(error, _UserError) else error
        finally:
            if self.places is not None and not self.sent:
                self.places.release()
        if raised is not self._translated:
            errors.mark_user_error(raised, sent=self.sent)
        raise raised  # Raised outside of the `except` block, so that `__context__` is unchanged.

    async def _call_middlewares(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Call the user's middlewares, then aiohttp. Raise no error that makes aiohttp retry."""
        # aiohttp rejects this header if the session has its own authorization, so set it here.
        if self._authorization is not None:
            request.headers["Authorization"] = self._authorization
        call: aiohttp.ClientHandlerType = partial(self._call_aiohttp, handler)
        # `_call_middlewares` replaces the middlewares of the session, which have no public name.
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
        # Raised outside of the `except` block, so that `__context__` has no secrets.
        raise raised

    async def _call_aiohttp(
        self, handler: aiohttp.ClientHandlerType, request: aiohttp.ClientRequest
    ) -> aiohttp.ClientResponse:
        """Send the request over a usable connection; record the errors of aiohttp in `failure`."""
        if request.loop is not asyncio.get_running_loop():
            raise errors.Flux0Error("the aiohttp session belongs to another event loop")
        while True:
            self.trace_error = None
            # aiohttp has no public hook for the connections of a user's session. Therefore `_send`
            # replaces the method that aiohttp calls when it has a connection. `_send` then changes
            # the class of the connection.
            request.send = partial(self._send, request.send)  # type: ignore[method-assign]
            try:
                return await handler(request)
            except _StaleConnectionError:
                continue
            except LIBRARY_ERRORS as error:
                if self.trace_error is None:
                    self.failure: BaseException | None = error
                    raise
            finally:
                del request.send  # The attribute refers to `request`: a reference cycle.
            # Raised outside of the `except` block, so that `__context__` is unchanged.
            raise self.trace_error

    async def _send(self, send: Any, connection: Any) -> Any:
        protocol = connection.protocol
        if not isinstance(protocol, TrackedConnection):
            protocol.__class__ = TrackedConnection
            if connection.transport is not None:
                # uvloop has stored the methods of the old class. Set the protocol again, so that
                # uvloop calls the methods of `TrackedConnection`.
                connection.transport.set_protocol(protocol)
        elif protocol.is_stale():
            raise _StaleConnectionError
        protocol.await_head(self.timeout.read, self.timeout.write)
        if self.places is not None:
            connection.add_callback(self.places.release)
        self.sent = True
        return await send(connection)


class _StaleConnectionError(Exception):
    """The pooled connection was closed, or has received surplus bytes."""


class _UserError(Exception):
    """A wrapper of an error of the user's code. After the error itself, aiohttp would retry."""


class _RecordedTraces(aiohttp.TraceConfig):
    """Calls the trace functions of the user's `TraceConfig`, and records their errors."""

    def __init__(self, users: aiohttp.TraceConfig) -> None:
        super().__init__(partial(self._context, users))  # type: ignore[arg-type] # any function
        for event in (name for name in dir(users) if name.startswith("on_")):
            getattr(self, event).append(partial(self._call, getattr(users, event)))
        self.freeze()

    @staticmethod
    def _context(users: aiohttp.TraceConfig, trace_request_ctx: Any) -> SimpleNamespace:
        exchange = trace_request_ctx if isinstance(trace_request_ctx, AiohttpExchange) else None
        context = users.trace_config_ctx(None if exchange else trace_request_ctx)
        return SimpleNamespace(exchange=exchange, users=context)

    @staticmethod
    async def _call(users: Any, session: object, context: Any, params: object) -> None:
        try:
            await users.send(session, context.users, params)
        except Exception as error:
            if context.exchange is not None:  # None if the user's own code sends a request.
                context.exchange.trace_error = error
            raise


def translate(
    error: Exception, timeout: Timeout, *, sent: bool, head_received: bool = False
) -> errors.TransportError:
    """Return the flux0 error for an error of aiohttp."""
    kind: type[errors.TransportError]
    if isinstance(error, asyncio.TimeoutError):
        kind = errors.ReadTimeout if sent else errors.ConnectTimeout
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
    """Return `error`, or a replacement if `error` contains headers or a password."""
    while error.__cause__ is not None and isinstance(error, aiohttp.ClientConnectionError):
        error = error.__cause__
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return aiohttp.ServerDisconnectedError()
    if isinstance(error, _HTTP_ERRORS):
        return HttpProcessingError(message=error.message.partition(":")[0])
    return error
