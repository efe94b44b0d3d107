"""What the core asks of the world, and the values that cross the line.

An adapter implements one of these protocols over one outside library and lets nothing of that
library through but `Response.raw_response` and the `__cause__` of an error.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime
from threading import Lock
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, final

from attrs import field, frozen

from flux0.domain.headers import Headers
from flux0.domain.http import is_success
from flux0.domain.retrying import RetryConfig
from flux0.domain.stream_events import StreamEvent

T = TypeVar("T")
Body_co = TypeVar("Body_co", covariant=True)


@frozen
class Timeout:
    """The timeouts of one request, in seconds. None means no limit.

    `connect` limits the attempt to connect to each address, with the TLS handshake. `pool` limits
    the wait for a free connection of the pool. `write` and `read` limit the wait for the next bytes
    of the request and of the response. `idle` replaces `read` in the body of a streaming response.
    """

    connect: float | None = 10.0
    read: float | None = 60.0
    write: float | None = 60.0
    pool: float | None = 10.0
    idle: float | None = 600.0


@final
class Interrupt:
    """Ends a synchronous exchange whose head is still to come, from another thread.

    A transport that can be woken says how with `on_fire`, as soon as it knows the socket, and calls
    `clear` when the head is in, or sending has failed: from then on the socket may be another's.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._wake: Callable[[], object] | None = None
        self.fired: bool = False

    def on_fire(self, wake: Callable[[], object]) -> None:
        """Have `wake` called, which is quick and does not raise, or call it if it is due."""
        with self._lock:
            self._wake = wake
            if self.fired:
                wake()

    def clear(self) -> None:
        """Forget how to wake the transport."""
        with self._lock:
            self._wake = None

    def fire(self) -> None:
        """End the exchange, or if the socket is not known yet, as soon as it is."""
        with self._lock:
            self.fired = True
            if self._wake is not None:
                self._wake()


@frozen
class Request:
    """One HTTP request, whole.

    `url` is absolute, already percent-encoded, and has no credentials. `operation` is the call's
    name for people, such as `agents.list`; `route` its path with placeholders. `stream` says that
    the body of a successful answer is read piece by piece, as it arrives. `retries` is the policy
    of this call, `attempt` counts from 1, and `deadline` is when the whole call must be over, by
    the client's `Time`. A transport heeds none of the three: its timeouts are set to fit. A
    synchronous transport heeds `interrupt`, if it can be woken while it waits.
    """

    method: str
    url: str
    headers: Headers
    body: bytes | None = None
    stream: bool = False
    timeout: Timeout = Timeout()
    operation: str = ""
    route: str = ""
    retries: RetryConfig | None = None
    attempt: int = 1
    deadline: float | None = None
    interrupt: Interrupt = field(factory=Interrupt, eq=False, repr=False)

    def is_streaming(self, status_code: int) -> bool:
        """Return whether the body of an answer with this status is read as it arrives."""
        return self.stream and is_success(status_code)


class ByteStream(Protocol):
    """The body of a response, decompressed, not read yet.

    Iterating yields each piece as soon as its bytes arrive, and ends only where the response's
    framing says that the body is whole. A piece is empty if what arrived holds no content yet, such
    as the first bytes of compressed data. The connection is released at the end, on an error, on
    `close`, and when the stream is garbage collected.

    Raises:
        ReadTimeout: nothing came for the request's `idle` (streaming) or `read` timeout.
        ConnectionInterrupted: the connection broke off, or ended early.
        ProtocolError: framing or compression is broken.
    """

    def __iter__(self) -> Iterator[bytes]:
        """Return the one iterator of the pieces."""
        ...

    def close(self) -> None:
        """Release the connection, at once and without raising; harmless when repeated."""
        ...


class AsyncByteStream(Protocol):
    """A `ByteStream` for asynchronous code, with the same duties and errors."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Return the one iterator of the pieces."""
        ...

    async def close_async(self) -> None:
        """Release the connection, even when cancelled; harmless when repeated."""
        ...


@frozen
class Response(Generic[Body_co]):
    """The head of an answer, with its body still to be read.

    From a transport, `body` is a stream, which whoever holds the response reads to its end or
    closes. Once it was read whole, `body` is the bytes. `raw_response` is the HTTP library's own
    response. `close_delimited` says that nothing but the end of the connection ends the body, as in
    HTTP/1.0: a server that was killed then looks as if it had finished.
    """

    status_code: int
    headers: Headers
    body: Body_co
    raw_response: Any = None
    close_delimited: bool = False


class Time(ABC):
    """The time that a client goes by: durations, dates, waiting, and the chance in waiting.

    A client goes by real time, unless its transport has a `Time` as its attribute `time`. One whose
    time is not real, such as a fake, brings that along, so that no test waits for a retry.
    """

    @abstractmethod
    def monotonic(self) -> float:
        """Return seconds that never go back, for measuring durations."""

    @abstractmethod
    def utc_now(self) -> datetime:
        """Return the date and time, in UTC, for reading dates such as that of a `Retry-After`."""

    @abstractmethod
    def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""

    @abstractmethod
    async def sleep_async(self, seconds: float) -> None:
        """Wait for `seconds` without blocking the event loop."""

    @abstractmethod
    def jitter(self) -> float:
        """Return a random number from 0 to 1, by which a wait before a retry is shortened."""

    def alarm(self, moment: float, act: Callable[[], object]) -> Callable[[], object]:  # noqa: ARG002 - see below
        """Have `act` called when `monotonic` is `moment`; return a function that cancels it.

        It is called from another thread. A time that passes only while somebody waits by it needs
        no alarm, and this one never goes off.
        """
        return _nothing


def _nothing() -> None:
    """Cancel an alarm that never goes off."""


class Transport(Protocol):
    """Sends requests, for synchronous code. One transport may be used by many threads at once.

    A transport whose time is not real has a `Time` as its attribute `time`.
    """

    def send(self, request: Request) -> Response[ByteStream]:
        """Send `request` once and return the answer when its headers are in, whatever its status.

        No redirect is followed and nothing is sent twice.

        Raises:
            ConnectError: no connection came about, and it is known that no byte of the request
                was sent (`ConnectTimeout`, `PoolTimeout` and `TLSError` among them). A client sends
                the request again, even a POST, so where the transport cannot tell it raises one of
                the others.
            ReadTimeout, WriteTimeout: the server was too slow.
            ConnectionInterrupted: the connection broke off before the headers were in.
            ProtocolError: the answer is not HTTP.
        """
        ...

    def close(self) -> None:
        """Close what this transport opened itself; what the user passed in stays open."""
        ...


class AsyncTransport(Protocol):
    """Sends requests, for asynchronous code, under asyncio and trio."""

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        """Send `request` once and return the answer when its headers are in, whatever its status.

        No redirect is followed and nothing is sent twice. Raises as `Transport.send` does. A
        cancelled call leaves no connection behind.
        """
        ...

    async def close_async(self) -> None:
        """Close what this transport opened itself; what the user passed in stays open."""
        ...


class Shared(ABC):
    """A transport that several clients share, such as a fake server.

    Each client uses one that `for_client` returns; closing that leaves the others alone.
    """

    @abstractmethod
    def for_client(self) -> Any:
        """Return a `Transport`, an `AsyncTransport`, or both, for one client."""


class ServerSentEvent(NamedTuple):
    """One dispatched event of a `text/event-stream` (WHATWG HTML, "Interpreting an event stream").

    `event` is `"message"` where the stream named none; `id` is the last event id in force; `retry`
    is the reconnection time in milliseconds that this block set, or None.
    """

    event: str
    data: str
    id: str = ""
    retry: int | None = None


class EventStreamParser(Protocol):
    """Turns the bytes of an event stream into events, however the bytes are split."""

    @property
    def pending(self) -> bool:
        """Whether bytes are held that no blank line has completed: a block or line cut short."""
        ...

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """Take the next bytes, of any size, and return the events they complete.

        Raises:
            EventTooLarge: one event grew past the parser's limit.
        """
        ...


class Codec(Protocol):
    """Turns the server's JSON into models and back.

    Every method raises `DecodeError` for text that is not JSON and for JSON of the wrong shape.
    Fields that a model does not know are ignored.
    """

    def decode(self, model: type[T], body: bytes) -> T:
        """Return the model that `body` holds as JSON; `object` gives plain JSON."""
        ...

    def decode_event(self, event: ServerSentEvent) -> StreamEvent:
        """Return what one event of a turn's stream says."""
        ...

    def encode(self, value: Any) -> bytes:
        """Return a model or plain JSON as the server reads it."""
        ...

    def from_dict(self, model: type[T], data: Any) -> T:
        """Return the model that plain JSON stands for."""
        ...
