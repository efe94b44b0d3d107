"""What is known of one exchange over httpx, or a library made like it, and of how it failed."""

from __future__ import annotations

import ssl
from typing import Any

from flux0.adapters.shared.exchange import Exchange
from flux0.adapters.shared.failures import failure, refused_by_proxy
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
)
from flux0.ports import Request

# What h11 and httpcore say when a connection ends where HTTP goes on.
_ENDED_EARLY = ("closed connection", "Server disconnected", "ConnectionTerminated")
_CONNECTED = ("connect_tcp.complete", "connect_unix_socket.complete", "start_tls.complete")


class HttpxExchange(Exchange):
    """One exchange, as httpcore tells of it by the request's extension `trace`.

    It does not know the request, which would be a circle that only the collector ends.

    Attributes:
        library, core: such as the modules httpx and httpcore.
        answered: whether the head of the answer is in.
        received: how many bytes have come before.
    """

    def __init__(self, library: Any, core: Any, built: Any, request: Request) -> None:
        super().__init__(request)
        self.library = library
        self.core = core
        self.answered: bool = False
        self.received: int = 0
        self._url = built.url
        self._others = built.extensions.get("trace")
        self._traced = False
        self._withheld: list[tuple[bytes, bytes]] = []

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Take note of an event, and tell whom else the request was to tell."""
        self._note(event, info)
        if self._others is not None:
            self._others(event, info)

    async def trace_async(self, event: str, info: dict[str, Any]) -> None:
        """Take note of an event of an asynchronous client, and tell whom else it was to tell."""
        self._note(event, info)
        if self._others is not None:
            await self._others(event, info)

    def _note(self, event: str, info: dict[str, Any]) -> None:
        self._traced = True
        protocol, _, step = event.partition(".")
        if step == "send_request_headers.started":
            # A tunnel through a proxy is asked for by a request of its own.
            self.sent = self.sent or info["request"].method != b"CONNECT"
            if protocol == "http2":
                self.clear_interrupt()  # Other exchanges share the connection.
        elif step == "receive_response_headers.complete" and self.sent:
            self.answered = True
            self._withhold_location(info["return_value"][-1])
        elif step in _CONNECTED:
            self.use(info["return_value"])
        elif step.endswith(".failed"):
            self.failure = info["exception"]

    def _withhold_location(self, fields: list[tuple[bytes, bytes]]) -> None:
        """Take a location away that the library cannot read: it would drop the whole answer."""
        location = [field for field in fields if field[0].lower() == b"location"]
        if location and not self._is_understood(location):
            self._withheld = location
            fields[:] = [field for field in fields if field not in location]

    def _is_understood(self, location: list[tuple[bytes, bytes]]) -> bool:
        try:
            to = self.library.URL(self.library.Headers(location)["location"])
            self._url.join(to)
            return bool(to.host or not to.scheme)  # The library would put a host into it.
        except (self.library.InvalidURL, ValueError):
            return False

    def complete(self, response: Any) -> None:
        """Put the removed location back into the library's response."""
        if self._withheld:
            response.headers = self.library.Headers([*response.headers.raw, *self._withheld])

    def use(self, stream: Any) -> None:
        """Take note of the connection that the answer will come over."""
        self.shut_down_on_interrupt(stream.get_extra_info("socket"))

    def translated(self, error: Exception, request: Any) -> TransportError | None:
        """Return the error of ours for what sending raised; None if the user's code raised it."""
        library, core, cause = self.library, self.core, error.__cause__
        of_core = isinstance(
            cause,
            (
                core.TimeoutException,
                core.NetworkError,
                core.ProtocolError,
                core.ProxyError,
                core.UnsupportedProtocol,
            ),
        )
        if isinstance(error, library.RequestError):
            # That of a request which a hook sends is the hook's. A transport of the user's, which
            # nothing traces, speaks by these errors too.
            known = _request_of(error) is request and (of_core or not self._traced)
        else:
            known = self.failed_by(error)
        if not known:
            return None
        # These come before anything is traced.
        early = isinstance(cause, (core.PoolTimeout, core.UnsupportedProtocol))
        return self.failed(error, sent=self.sent or not (self._traced or early))

    def failed_by(self, error: BaseException) -> bool:
        """Return whether httpcore told of this error as what went wrong last."""
        return error is self.failure and isinstance(error, Exception)

    def failed(self, error: BaseException, *, sent: bool = True) -> TransportError:
        """Return the error of ours for one of the library's."""
        library = self.library
        if isinstance(error, library.ProxyError) and not sent:
            return refused_by_proxy(str(error))
        kind: type[TransportError] = ProtocolError
        if isinstance(error, library.TimeoutException):
            kinds = (
                ((library.ReadTimeout, ReadTimeout), (library.WriteTimeout, WriteTimeout))
                if sent
                else ((library.PoolTimeout, PoolTimeout), (Exception, ConnectTimeout))
            )
            kind = next((to for raised, to in kinds if isinstance(error, raised)), TransportTimeout)
        elif not sent:
            kind = TLSError if _refuses_tls(error) else ConnectError
        elif isinstance(error, (library.NetworkError, library.ProxyError, OSError)) or any(
            words in str(error) for words in _ENDED_EARLY
        ):
            kind = ConnectionInterrupted
        if not self._traced and error.__cause__ is None and str(error):
            return kind(str(error))  # A transport of the user's has said so.
        return failure(kind, error, self.timeout, head_received=self.answered)


def _request_of(error: Any) -> object:
    try:
        return error.request
    except RuntimeError:  # It has none.
        return None


def _refuses_tls(error: BaseException | None) -> bool:
    """Return whether TLS was refused. The subclasses stand for a connection that only ended."""
    while error is not None:
        if type(error) in (ssl.SSLError, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False
