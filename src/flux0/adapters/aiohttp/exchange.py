"""One request over aiohttp, on its way to the head of its answer, and what goes wrong with it."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, TypeAlias

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL  # aiohttp's own type of URL

from flux0.adapters.aiohttp.protocol_shim import RequestBody
from flux0.adapters.shared.exchange import Exchange
from flux0.adapters.shared.failures import failure, refused_by_proxy
from flux0.adapters.shared.limits import ACCEPT_ENCODING
from flux0.domain.errors import (
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
    mark_user_error,
)
from flux0.ports import Request

_MAX_HEADER_BYTES: Final = 64 * 1024


class AiohttpExchange(Exchange):
    """One request on its way to the head of its answer, and what is known of it."""

    def __init__(self, request: Request, url: URL) -> None:
        super().__init__(request)
        self._request = request
        self._url = url
        self.body: RequestBody = RequestBody(request.body or b"", request.timeout.write)
        self._step = ""  # What aiohttp does, by the name of its last trace event.
        self._telling = False  # Whether it is telling the user's traces of an event.
        self._own_error: Exception | None = None  # The error of flux0 for `failure`.

    async def run(
        self, session: aiohttp.ClientSession, proxy: str | None
    ) -> aiohttp.ClientResponse:
        """Send the request and return the answer when its head is in."""
        # Those of a request replace the session's, for which aiohttp has no public name. Without
        # ours around and inside of them, a request could be sent twice, and what they raise could
        # not be told from what aiohttp raises.
        theirs = session._middlewares  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        timeout = self.timeout
        _EXCHANGE.set(self)
        try:
            return await session.request(
                self._request.method,
                self._url,
                headers=self._headers(),
                skip_auto_headers=("Content-Type",) if self._request.body is None else None,
                data=self.body,
                allow_redirects=False,
                raise_for_status=False,
                auto_decompress=False,
                proxy=proxy,
                middlewares=(self._outermost, *theirs, self._innermost),
                max_line_size=_MAX_HEADER_BYTES,
                max_field_size=_MAX_HEADER_BYTES,
                timeout=aiohttp.ClientTimeout(
                    connect=timeout.pool, sock_connect=timeout.connect, sock_read=timeout.read
                ),
            )
        except _UserError as carrier:
            error = carrier.error
        except Flux0Error as raised:
            if raised is not self._own_error:
                mark_user_error(raised, sent=self.sent)
            raise
        finally:
            _EXCHANGE.set(None)
        mark_user_error(error, sent=self.sent)
        raise error  # Outside of the block, so that it is as it was.

    def _headers(self) -> list[tuple[str, str]]:
        headers = self._request.headers
        pairs = [pair for pair in headers.pairs if pair[0].lower() != "authorization"]
        if "accept-encoding" not in headers:
            pairs.append(("accept-encoding", ACCEPT_ENCODING))
        return pairs

    async def _outermost(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Complete the request, and keep the errors of the user's middlewares as they are."""
        _EXCHANGE.set(None)  # A middleware may send requests of its own.
        authorization = self._request.headers.get("authorization")
        if authorization is not None:
            request.headers["Authorization"] = authorization
        if self._request.body is None and request.method in request.GET_METHODS:
            del request.headers["Content-Length"]
        try:
            return await handler(request)
        except Exception as error:
            if error is self.failure:
                self._own_error = self._translated(error)
                raise self._own_error from error
            # aiohttp would send a GET again, or make another error of it.
            if isinstance(error, (OSError, aiohttp.ServerDisconnectedError)):
                raise _UserError(error) from error
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
                response.close()  # It came before the request went out, so it answers another.
            except Exception as error:
                if body.unfit:
                    continue
                if self._telling:
                    raise self._of_trace(error) from None
                self.failure = error
                raise
            finally:
                self.sent = self.sent or body.begun or not known

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
        if isinstance(error, aiohttp.ClientHttpProxyError):
            return refused_by_proxy(f"{error.status} {error.message}")
        unsent = not self.sent and self._step in _CONNECTING
        kinds = _UNSENT if unsent else _SENT
        kind = next((to for raised, to in kinds if isinstance(error, raised)), None)
        if kind is ConnectTimeout and self._step == "connection_queued_start":
            kind = PoolTimeout
        return error if kind is None else failure(kind, error, self.timeout)


class _UserError(Exception):
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

# The exchange whose request is handed to aiohttp right now.
_EXCHANGE: ContextVar[AiohttpExchange | None] = ContextVar("flux0_aiohttp_exchange", default=None)


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
BEFORE_USER_TRACES: Final = _trace(telling=True)
AFTER_USER_TRACES: Final = _trace(telling=False)
