"""The state of one exchange over httpx or httpx2, and the flux0 errors for its failures."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Final
from weakref import ref

from flux0.adapters.httpx.library import Library
from flux0.adapters.shared.exchange import Exchange
from flux0.adapters.shared.failures import (
    failure,
    login_rejected_by_proxy,
    proxy_unreachable,
    refused_by_proxy,
)
from flux0.domain.errors import (
    ConnectError,
    ConnectionInterrupted,
    ConnectTimeout,
    PoolTimeout,
    ProtocolError,
    ReadTimeout,
    TLSError,
    TransportError,
    TransportTimeout,
    WriteTimeout,
    chain,
)
from flux0.domain.http import framing_problem, version_problem
from flux0.ports import Request
from flux0.runtime.event_loop import do_nothing

# If the server has closed an HTTP/2 connection, the error message of httpcore contains
# `_TERMINATED`.
_TERMINATED = "ConnectionTerminated"
# If a SOCKS proxy rejects the login, or demands another login method, the error message of httpcore
# starts with a string of `_LOGIN_REJECTED`.
_LOGIN_REJECTED = ("Requested ", "Invalid username/password")
# The packages that httpcore uses, and whose exceptions can pass through httpcore.
_PACKAGES = ("h11", "h2", "socksio", "anyio", "trio")
_CONNECTED = ("connect_tcp.complete", "connect_unix_socket.complete", "start_tls.complete")


# The value of `current_exchange` is a weak reference to the exchange of the running thread or task.
# Timers of asyncio, and tasks that the user's hooks start, keep copies of the context. A strong
# reference in a copy would keep the exchange in memory.
current_exchange: Final[ContextVar[Callable[[], HttpxExchange | None]]] = ContextVar(
    "current_exchange", default=do_nothing
)


class HttpxExchange(Exchange):
    """Records the progress of one exchange from the trace events of httpcore.

    Inside its `with` block, the exchange is `current_exchange`.

    The HTTP library's request refers to the exchange's trace function. Therefore the exchange must
    not refer to the request, because a reference cycle delays garbage collection.

    Attributes:
        library: The HTTP library that sends the request: httpx or httpx2.
        is_built_in: Whether the client is built-in, and not the user's client.
        lease: The exchange's place in the pool of a built-in client, and its connection; or None.
        head_received: Whether the response head was received.
        head_bytes: The number of bytes in interim responses and the response head so far.
        head_start: The response's first received bytes, for an error message.
        connection: The `HttpxConnection` that sends the request, or None if it is not tracked.
        multiplexed: Whether other exchanges share the connection, as in HTTP/2.
    """

    def __init__(
        self, library: Library, built: Any, request: Request, *, is_built_in: bool = False
    ) -> None:
        super().__init__(request)
        self.library = library
        self.is_built_in: bool = is_built_in
        self.lease: Any = None
        self.head_received: bool = False
        self.head_bytes: int = 0
        self.head_start: bytes = b""
        self.connection: Any = None
        self.multiplexed: bool = False
        self._url = built.url
        self._user_trace = built.extensions.get("trace")
        # `_traced` is True if httpcore has reported a trace event for this exchange.
        self._traced = False
        self._connecting_to: tuple[str, int] | None = None

    def __enter__(self) -> None:
        self._token = current_exchange.set(ref(self))

    def __exit__(self, *_: object) -> None:
        current_exchange.reset(self._token)
        self.interrupt.clear()

    def awaits_head(self, connection: object) -> bool:
        """Return whether the bytes that `connection` receives now belong to this response's head.

        `connection` can belong to another exchange, because a thread with a copy of the context can
        send another request while `current_exchange` is this exchange.
        """
        return self.sent and not self.head_received and self.connection in (connection, None)

    def trace(self, event: str, info: dict[str, Any]) -> None:
        self._record_step(event, info)
        if self._user_trace is not None:
            self._user_trace(event, info)

    async def trace_async(self, event: str, info: dict[str, Any]) -> None:
        self._record_step(event, info)
        if self._user_trace is not None:
            await self._user_trace(event, info)

    def _record_step(self, event: str, info: dict[str, Any]) -> None:
        self._traced = True
        protocol, _, step = event.partition(".")
        if step == "send_request_headers.started":
            # httpcore sends CONNECT requests to a proxy. Do not record a CONNECT request as the
            # user's request.
            self.sent: bool = self.sent or info["request"].method != b"CONNECT"
            if protocol == "http2":
                self.multiplexed = True
                self.interrupt.clear()
        elif step == "receive_response_headers.complete" and self.sent:
            self.head_received = True
            if not self.multiplexed:
                self._check_head(*info["return_value"])
        elif step == "connect_tcp.started":
            self._connecting_to = info["host"], info["port"]
        elif step in _CONNECTED:
            self._connecting_to = None
            self.bind_socket(info["return_value"].get_extra_info("socket"))
        elif step.endswith(".failed"):
            self.failure: BaseException | None = info["exception"]

    def _check_head(
        self, version: bytes, _status: int, _reason: bytes, fields: list[tuple[bytes, bytes]]
    ) -> None:
        """Raise `RemoteProtocolError` for an unknown HTTP version, and for an ambiguous body end.

        httpcore accepts such responses. The end is ambiguous if the fields content-length and
        transfer-encoding imply different ends.
        """
        length, coding = (
            [value.decode("latin-1") for field, value in fields if field.lower() == name]
            for name in (b"content-length", b"transfer-encoding")
        )
        problem = version_problem(version + b" ")
        if length and coding:
            problem = framing_problem(", ".join(length), ", ".join(coding))
        if problem is not None:
            raise self.library.httpcore.RemoteProtocolError(problem)

    def bind_socket(self, sock: Any) -> None:
        if not self.multiplexed:
            self.shut_down_on_interrupt(sock)

    def abandon(self) -> Iterator[Any]:
        """Remove the connections of a failed exchange from the exchange, and yield them.

        The caller must close them. Drop `failure`, whose traceback keeps the body in memory.
        """
        self.failure = None
        # If an exchange fails during the handshake with a proxy, httpcore does not close the
        # connection.
        if self.connection is not None and self.connection.connecting:
            yield self.connection
        if self.lease is not None and (unused := self.lease.release(reusable=False)):
            yield unused

    def translate(self, error: Any, built: Any) -> TransportError | None:
        """Return the flux0 error for an exception that `client.send` raised.

        If the user's code raised the exception, return None. `built` is the request that was sent.
        """
        httpx, httpcore = self.library
        cause = error.__cause__
        if isinstance(error, httpx.RequestError):
            if self.is_built_in:
                # Set `error.request`, as `httpx.Client` does, because user code can read this
                # attribute.
                error.request = built
            # Do not translate the error of another request, which a user's hook has sent. If
            # httpcore has reported trace events, translate only the errors of httpcore, and
            # RemoteProtocolError, which httpx raises for a redirect with an invalid `location`.
            # Without trace events, translate all errors, because a custom transport can have raised
            # the error.
            from_httpcore = package_of(cause) == httpcore.__name__
            known = from_httpcore or isinstance(error, httpx.RemoteProtocolError)
            if _request_of(error) is not built or (self._traced and not known):
                return None
        elif not self.raised_by_httpcore(error):
            return None
        # httpcore raises the errors in `before_events` before it reports a trace event or sends a
        # byte. If another error is raised without a trace event, a custom transport can have sent
        # the request, so treat the request as sent.
        before_events = (httpcore.PoolTimeout, httpcore.UnsupportedProtocol)
        traced = self._traced or isinstance(cause, before_events)
        return self.to_transport_error(error, sent=self.sent or not traced)

    def raised_by_httpcore(self, error: BaseException) -> bool:
        return error is self.failure and self.is_known(error)

    def is_known(self, error: BaseException) -> bool:
        """Return whether the class of `error` belongs to the HTTP library or to the system.

        An exception of a signal handler passes through httpcore, too, and has another class.
        """
        packages = self.library.httpx.__name__, self.library.httpcore.__name__, *_PACKAGES
        return isinstance(error, OSError) or package_of(error) in packages

    def to_transport_error(self, error: BaseException, *, sent: bool = True) -> TransportError:
        httpx, httpcore = self.library
        if not sent and (isinstance(error, httpx.ProxyError) or package_of(error) == "socksio"):
            return _proxy_failure(str(error))
        kind: type[TransportError] = ProtocolError
        if isinstance(error, (httpx.TimeoutException, httpcore.TimeoutException)):
            same_name = (ReadTimeout, WriteTimeout) if sent else (PoolTimeout,)
            kind = TransportTimeout if sent else ConnectTimeout
            kind = next((each for each in same_name if each.__name__ == type(error).__name__), kind)
        elif not sent:
            kind = TLSError if _is_tls_failure(error) else ConnectError
        elif self._is_interruption(error):
            kind = ConnectionInterrupted
        if not self._traced and error.__cause__ is None and str(error):
            # The user's custom transport raised `error`, so keep the message of `error`.
            return kind(str(error))
        translated = failure(kind, error, self.timeout, head_received=self.head_received)
        if self._connecting_to not in (None, self._server_address()):
            return proxy_unreachable(translated, "{}:{}".format(*self._connecting_to))
        return translated

    def _server_address(self) -> tuple[str, int]:
        url = self._url
        port: int = url.port or (443 if url.scheme == "https" else 80)
        return url.raw_host.decode("ascii").strip("[]"), port

    def _is_interruption(self, error: BaseException) -> bool:
        httpx, httpcore = self.library
        network_errors = httpx.NetworkError, httpcore.NetworkError, httpx.ProxyError, OSError
        if isinstance(error, network_errors):
            return True
        if self.connection is not None:
            ended = self.multiplexed and _TERMINATED in str(error)
            return ended or bool(self.connection.at_eof)
        # flux0 has neither opened nor wrapped this connection, so the cause of `error` is unknown.
        # If httpcore has opened the connection, an interruption is the most likely cause.
        return self._traced


def package_of(value: object) -> str:
    return type(value).__module__.partition(".")[0]


def _request_of(error: Any) -> object:
    try:
        return error.request
    except RuntimeError:  # httpx raises RuntimeError if `error` has no request.
        return None


def _proxy_failure(message: str) -> ConnectError:
    if message == "Malformed reply":
        return ConnectError("the proxy does not support SOCKS5")
    if message.startswith(_LOGIN_REJECTED):
        return login_rejected_by_proxy()
    _, of_socks, reason = message.partition("Proxy Server could not connect: ")
    return refused_by_proxy(reason.rstrip(".").lower() if of_socks else message)


def _is_tls_failure(error: BaseException) -> bool:
    # If a TLS handshake fails, Python raises `SSLError` itself or `SSLCertVerificationError`. The
    # other subclasses of `SSLError` mean that the connection was closed.
    kinds = ssl.SSLError, ssl.SSLCertVerificationError
    return any(type(each) in kinds for each in chain(error))
