"""The state of one exchange over httpx or httpx2, and the flux0 errors for its failures."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from enum import IntEnum
from inspect import CO_GENERATOR
from typing import Any, Final

from attrs import evolve, frozen

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


class Step(IntEnum):
    """The last step of an exchange that httpcore has reported. An exchange never goes back."""

    NONE = 0
    CONNECTING = 1
    SENDING = 2
    HEAD_RECEIVED = 3


@frozen
class Progress:
    """How far an exchange has progressed.

    Attributes:
        step: The last step.
        connecting_to: The host and port to which httpcore is connecting; None if it is connected.
        is_multiplexed: Whether other exchanges share the connection, as in HTTP/2.
        is_closed: Whether the response is closed. If so, its connection can already belong to
            another exchange.
    """

    step: Step = Step.NONE
    connecting_to: tuple[str, int] | None = None
    is_multiplexed: bool = False
    is_closed: bool = False


class HttpxExchange(Exchange):
    """Records the progress of one exchange from the trace events of httpcore.

    The HTTP library's request refers to the exchange's trace function. Therefore the exchange must
    not refer to the request, because a reference cycle delays garbage collection.

    Attributes:
        library: The HTTP library that sends the request: httpx or httpx2.
        lease: The exchange's place in the pool of a built-in client, and its connection; None over
            the user's client.
        connection: The `HttpxConnection` that sends the request, or None if it is not tracked.
        progress: How far the exchange has progressed. One assignment changes it.
    """

    def __init__(self, library: Library, request: Request, user_trace: Any = None) -> None:
        super().__init__(request)
        self.library = library
        self.lease: Any = None
        self.connection: Any = None
        self.progress: Progress = Progress()
        self._user_trace = user_trace

    @property
    def sent(self) -> bool:
        """Whether a part of the request may have been sent."""
        return self.progress.step >= Step.SENDING

    @property
    def is_traced(self) -> bool:
        """Whether httpcore has reported an event. A user's custom transport reports none."""
        return self.progress.step > Step.NONE

    @property
    def is_multiplexed(self) -> bool:
        return self.progress.is_multiplexed

    def awaits_head(self, connection: object) -> bool:
        """Return whether the bytes that `connection` receives now belong to this response's head.

        `connection` can belong to another exchange, because a thread with a copy of the context can
        send another request while `current_exchange` is this exchange.
        """
        progress = self.progress
        is_mine = self.connection in (connection, None)
        return progress.step == Step.SENDING and is_mine and not progress.is_multiplexed

    def trace(self, event: str, info: dict[str, Any]) -> None:
        self._record_step(event, info)
        if self._user_trace is not None:
            self._user_trace(event, info)

    async def trace_async(self, event: str, info: dict[str, Any]) -> None:
        self._record_step(event, info)
        if self._user_trace is not None:
            await self._user_trace(event, info)

    def _record_step(self, event: str, info: dict[str, Any]) -> None:
        protocol, _, step = event.partition(".")
        if not self.is_traced:
            self._advance(Step.CONNECTING)
        if step == "send_request_headers.started":
            # httpcore sends CONNECT requests to a proxy. Do not record a CONNECT request as the
            # user's request.
            if info["request"].method != b"CONNECT":
                self._advance(Step.SENDING, is_multiplexed=protocol == "http2")
            if protocol == "http2":
                self.interrupt.clear()
        elif step == "receive_response_headers.complete" and self.sent:
            self._advance(Step.HEAD_RECEIVED, is_multiplexed=self.is_multiplexed)
            if not self.is_multiplexed:
                self._check_head(*info["return_value"])
        elif step == "connect_tcp.started":
            self._advance(Step.CONNECTING, connecting_to=(info["host"], info["port"]))
        elif step in _CONNECTED:
            self._advance(Step.CONNECTING)
            self.bind_socket(info["return_value"].get_extra_info("socket"))
        elif step == "response_closed.started":
            self.progress = evolve(self.progress, is_closed=True)
        elif step.endswith(".failed"):
            self.failure: BaseException | None = info["exception"]

    def _advance(
        self,
        step: Step,
        *,
        connecting_to: tuple[str, int] | None = None,
        is_multiplexed: bool = False,
    ) -> None:
        step = max(step, self.progress.step)
        self.progress = Progress(step, connecting_to, is_multiplexed or self.is_multiplexed)

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
        if not self.is_multiplexed:
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
            if self.lease is not None:
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
            if _request_of(error) is not built or (self.is_traced and not known):
                return None
        elif not self.raised_by_httpcore(error):
            return None
        # httpcore raises the errors in `before_events` before it reports a trace event or sends a
        # byte. If another error is raised without a trace event, a custom transport can have sent
        # the request, so treat the request as sent.
        before_events = (httpcore.PoolTimeout, httpcore.UnsupportedProtocol)
        traced = self.is_traced or isinstance(cause, before_events)
        translated = self.to_transport_error(error, sent=self.sent or not traced)
        connecting_to = self.progress.connecting_to
        if connecting_to not in (None, _server_address(built.url)):
            return proxy_unreachable(translated, "{}:{}".format(*connecting_to))
        return translated

    def raised_by_httpcore(self, error: BaseException) -> bool:
        return error is self.failure and self.is_known(error)

    def is_known(self, error: BaseException) -> bool:
        """Return whether the class of `error` belongs to the HTTP library or to the system.

        An exception of a signal handler passes through httpcore, too, and has another class. A
        cancellation of trio does not inherit from `Exception`.
        """
        packages = self.library.httpx.__name__, self.library.httpcore.__name__, *_PACKAGES
        known = isinstance(error, OSError) or package_of(error) in packages
        return known and isinstance(error, Exception)

    def to_transport_error(self, error: BaseException, *, sent: bool = True) -> TransportError:
        _break_cycles(error)
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
        if not self.is_traced and error.__cause__ is None and str(error):
            # The user's custom transport raised `error`, so keep the message of `error`.
            return kind(str(error))
        head_received = self.progress.step == Step.HEAD_RECEIVED
        return failure(kind, error, self.timeout, head_received=head_received)

    def _is_interruption(self, error: BaseException) -> bool:
        httpx, httpcore = self.library
        network_errors = httpx.NetworkError, httpcore.NetworkError, httpx.ProxyError, OSError
        if isinstance(error, network_errors):
            return True
        if self.connection is not None:
            ended = self.is_multiplexed and _TERMINATED in str(error)
            return ended or bool(self.connection.at_eof)
        # flux0 has neither opened nor wrapped this connection, so the cause of `error` is unknown.
        # If httpcore has opened the connection, an interruption is the most likely cause.
        return self.is_traced


def _break_cycles(error: BaseException) -> None:
    """Break the reference cycles of `error` and its causes, so that they are freed at once.

    httpx and httpcore translate errors in generators with `contextlib.contextmanager`. The
    traceback of such an error begins with the generator's frame. That frame refers to the frame of
    its caller in `contextlib`, which refers to the error.
    """
    for each in chain(error):
        entry = each.__traceback__
        while entry is not None and entry.tb_frame.f_code.co_flags & CO_GENERATOR:
            entry = entry.tb_next
        each.__traceback__ = entry


def _server_address(url: Any) -> tuple[str, int]:
    port: int = url.port or (443 if url.scheme == "https" else 80)
    return url.raw_host.decode("ascii").strip("[]"), port


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
