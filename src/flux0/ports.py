"""The interfaces between flux0's core and its adapters, and the values that both exchange.

An adapter implements one of these interfaces with one third-party library. Objects of that library
appear only as `Response.raw_response` and as the `__cause__` of an error.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, final

from attrs import field, frozen

from flux0.domain.headers import Headers
from flux0.domain.http import is_success
from flux0.domain.locks import Busy, TryLock
from flux0.domain.stream_events import StreamEvent

T = TypeVar("T")
Body_co = TypeVar("Body_co", covariant=True)


@frozen
class Timeout:
    """The timeouts of one request, in seconds; None means no limit.

    Attributes:
        connect: the limit for connecting to the server. It includes attempts at all addresses of
            the host, and the TLS handshake.
        read: the limit for each wait for bytes of the response head. Reads of the body have their
            own limit, the argument `timeout` of `ByteStream.read`.
        write: the limit for each wait until the server accepts the request's next bytes.
        pool: the limit for the wait for a free connection.
    """

    connect: float | None = 10.0
    read: float | None = 60.0
    write: float | None = 60.0
    pool: float | None = 10.0


@final
class Interrupt:
    """Lets another thread stop a sync call that waits for a response head.

    The client calls `fire` at the call's deadline, or when the client is closed. If the call runs
    in a thread for async code, `fire` is called when the async call is cancelled.

    A transport that supports interrupts calls `on_fire` when it has a socket for the request. The
    transport calls `clear` when the response head was received or the exchange failed: afterwards,
    another request may use the socket.
    """

    def __init__(self) -> None:
        self._lock = TryLock()
        self._wake: Callable[[], object] | None = None
        self.fired: bool = False

    def on_fire(self, wake: Callable[[], object]) -> None:
        """Set the function that ends the wait for the response head.

        If `fire` was already called, `wake` is called at once. `wake` must return quickly and must
        not raise.
        """
        with self._lock.waiting:
            self._wake = wake
        if self.fired:
            self.fire()

    def clear(self) -> None:
        """Remove the function that `on_fire` set."""
        with self._lock.waiting:
            self._wake = None

    def fire(self) -> None:
        """Stop a call's wait for the response head.

        `fire` calls the function that was passed to `on_fire`. If `on_fire` is called later, it
        calls its function at once. Safe in signal handlers and finalizers, because this method does
        not wait for a lock.
        """
        self.fired = True
        # If another thread holds the lock, do not call `_wake` here. A thread in `on_fire` or
        # `fire` calls `_wake` itself. A thread in `clear` does not wait for the response head any
        # more.
        with suppress(Busy), self._lock:
            if self._wake is not None:
                self._wake()


@frozen
class Request:
    """One HTTP request with its complete body, and the limits for sending it.

    The client passes a subclass, `flux0.flows.CallRequest`, whose other fields are for middleware.

    Attributes:
        method: the HTTP method, in upper case.
        url: the absolute URL, percent-encoded, without a login.
        headers: the header fields of the request.
        body: the content of the request; None if it has no body.
        stream: if True, the body of a 2xx response is read piece by piece, as it arrives.
        timeout: the timeouts of this attempt, limited to the time until the call's deadline.
        interrupt: an object with which another thread can stop the wait for the response head. A
            sync transport may ignore this object.
    """

    method: str
    url: str
    headers: Headers
    body: bytes | None = None
    stream: bool = False
    timeout: Timeout = Timeout()
    interrupt: Interrupt = field(factory=Interrupt, eq=False, repr=False)

    def is_streaming(self, status_code: int) -> bool:
        """Return whether the body of a response with this status is streamed."""
        return self.stream and is_success(status_code)


class ByteStream(Protocol):
    """The decoded body of a response, which can be read once.

    The connection is released when the body ends, after an error, by `close`, or when no reference
    to the stream is left.
    """

    def read(self, timeout: float | None) -> bytes | None:
        """Return the body's next piece as soon as its bytes arrive; None at the end.

        A piece may be empty if the received bytes contain no content yet, for example the first
        bytes of compressed data. The body ends when its framing shows that it is complete; a body
        that ends earlier raises an error.

        Args:
            timeout: the limit for this read in seconds, greater than 0; None means no limit.
                Received bytes without content do not extend it.

        Raises:
            ReadTimeout: no piece was received within `timeout`.
            ConnectionInterrupted: the connection was closed or reset before the body's end.
            ProtocolError: the framing or the content coding is invalid.
            Flux0Error: another thread or task is reading the body; that read continues.
        """
        ...

    def close(self) -> None:
        """Release the connection at once. Never raises; further calls do nothing."""


class AsyncByteStream(Protocol):
    """The async version of `ByteStream`, with the same behavior and errors."""

    async def read_async(self, timeout: float | None) -> bytes | None:
        """The async version of `ByteStream.read`."""
        ...

    async def close_async(self) -> None:
        """Release the connection, even if the task is cancelled. Further calls do nothing."""


@frozen
class Response(Generic[Body_co]):
    """The head of a response, together with its body.

    Attributes:
        status_code: the response's HTTP status, such as 200.
        headers: the header fields of the response.
        body: the content as bytes if the body was read completely. A transport returns a
            `ByteStream` or an `AsyncByteStream`, which the caller must read to its end or close.
        raw_response: the HTTP library's response object.
        close_delimited: True if the body ends when the connection closes, as in HTTP/1.0. A
            close-delimited body looks complete even if the server was killed.
    """

    status_code: int
    headers: Headers
    body: Body_co
    raw_response: Any = None
    close_delimited: bool = False


class Time(ABC):
    """The clock of a client: durations, dates, sleeping, and the random part of backoff.

    A client uses the system clock unless its transport has an attribute `time`. Fake transports
    have a simulated clock, so that tests do not wait for retries.
    """

    @abstractmethod
    def monotonic(self) -> float:
        """Return the seconds of a clock that never goes backwards, for measuring durations."""

    @abstractmethod
    def utc_now(self) -> datetime:
        """Return the current date and time in UTC, for comparison with `Retry-After` dates."""

    @abstractmethod
    def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""

    def sleep_or_wake(self, seconds: float, wait: Callable[[float], object]) -> None:  # noqa: ARG002
        """Sleep for `seconds`, or until another thread ends the sleep.

        Args:
            seconds: the longest time to sleep, in seconds.
            wait: `wait(seconds)` sleeps in real time, and returns early if another thread ends the
                sleep. Simulated clocks do not call `wait`.
        """
        self.sleep(seconds)

    @abstractmethod
    async def sleep_async(self, seconds: float) -> None:
        """Wait for `seconds` without blocking the event loop."""

    @abstractmethod
    def jitter(self) -> float:
        """Return a random number from 0 to 1, by which the wait before a retry is multiplied."""

    def alarm(self, moment: float, act: Callable[[], object]) -> Callable[[], object]:  # noqa: ARG002 - for subclasses
        """Call `act` in another thread when `monotonic()` reaches `moment`.

        Return a function that cancels the alarm. This default implementation never calls `act`, and
        is sufficient for a simulated clock that advances only in `sleep`: the clock's time does not
        pass while another call blocks.
        """
        return lambda: None


class Transport(Protocol):
    """Sends requests for sync code. Many threads may use one transport at the same time.

    A transport with a simulated clock has an attribute `time`, which is a `Time`.
    """

    def send(self, request: Request) -> Response[ByteStream]:
        """Send `request` once, and return the response, with any status.

        The method returns when the response head was received. It must not follow redirects, and
        must not send the request again.

        Raises:
            ConnectError: the connection could not be established, and certainly no byte was sent;
                subclasses are `ConnectTimeout`, `PoolTimeout` and `TLSError`. After this error, the
                client retries even a POST. If the transport does not know whether bytes were sent,
                it must raise `ConnectionInterrupted` instead.
            ReadTimeout, WriteTimeout: no data was received or sent within the timeout.
            ConnectionInterrupted: the connection was closed or reset before the head was complete.
            ProtocolError: the response is not valid HTTP.
        """
        ...

    def close(self) -> None:
        """Close the connections of this transport, but not an HTTP client that the user passed."""


class AsyncTransport(Protocol):
    """Sends requests for async code, under asyncio and trio."""

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        """Send `request` once, and return the response, with any status.

        The method must not follow redirects, and raises the errors of `Transport.send`. If the call
        is cancelled, the method must close the connection.
        """
        ...

    async def close_async(self) -> None:
        """Close the connections of this transport, but not an HTTP client that the user passed."""


class Shared(ABC):
    """A transport that several clients may share, such as a fake server.

    Each client calls `for_client` to get its own transport. Closing the transport of one client
    does not affect other clients.
    """

    @abstractmethod
    def for_client(self) -> Any:
        """Return a transport for one client: a `Transport`, an `AsyncTransport`, or both."""


class ServerSentEvent(NamedTuple):
    """One event of a `text/event-stream` (WHATWG HTML, "Interpreting an event stream").

    Attributes:
        event: the name; `"message"` if the event has no field `event`.
        data: the value in the field `data`. The values of several fields `data` are joined with
            line breaks.
        id: the last event id that the stream has set so far; empty if it has set none.
        retry: the reconnection time in milliseconds; None if the event has no field `retry`.
    """

    event: str
    data: str
    id: str = ""
    retry: int | None = None


class EventStreamParser(Protocol):
    """Parses the bytes of an event stream. The bytes may be split at any position."""

    @property
    def pending(self) -> bool:
        """Whether the last event is incomplete: its final blank line is missing."""
        ...

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """Parse the next bytes, of any length, and return the events that they complete.

        Raises:
            EventTooLarge: an event is larger than the parser's limit.
        """
        ...


class Codec(Protocol):
    """Decodes the server's JSON into models, and encodes models as JSON.

    Decoding raises `DecodeError` if the text is not JSON or if the JSON does not fit the model.
    Unknown fields are stored in the model's attribute `extra`, or ignored if the model has no such
    attribute.
    """

    def decode(self, model: type[T], body: bytes) -> T:
        """Decode the JSON in `body` into `model`. If `model` is `object`, return plain JSON."""
        ...

    def decode_event(self, event: ServerSentEvent) -> StreamEvent:
        """Decode one server-sent event of a turn."""
        ...

    def encode(self, value: Any, argument: str = "value") -> bytes:
        """Encode a model or plain JSON in the form that the server accepts.

        Raises:
            InvalidArgument: JSON cannot represent `value`. The error's message names `argument`.
        """
        ...

    def from_dict(self, model: type[T], data: Any) -> T:
        """Convert plain JSON into `model`."""
        ...


__all__ = [
    "AsyncByteStream",
    "AsyncTransport",
    "ByteStream",
    "Codec",
    "EventStreamParser",
    "Interrupt",
    "Request",
    "Response",
    "ServerSentEvent",
    "Shared",
    "Time",
    "Timeout",
    "Transport",
]
