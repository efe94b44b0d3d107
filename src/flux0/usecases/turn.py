"""A turn's stream as a state machine: bytes in, events out; end or failure in, verdict out.

    OPEN --feed--> OPEN       an event was complete and readable, or none was complete yet
    OPEN --feed--> BROKEN     an event could not be read, or none came for the idle timeout; the
                              events before are handed out first
    OPEN --end---> FINISHED   the body was whole, and so was the last event
    OPEN --end---> BROKEN     the body ended within an event
    OPEN --on_transport_error--> BROKEN     the transport failed, or fell silent
    FINISHED --mark_interrupted--> BROKEN    the server has not stored what the turn said

It does no I/O: the streams of `flux0.client.streams` pump it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import TypeVar

from flux0.domain.errors import (
    DecodeError,
    EventTooLarge,
    Flux0Error,
    ReadTimeout,
    StreamError,
    StreamIdleTimeout,
    StreamInterrupted,
    TransportError,
)
from flux0.domain.stream_events import StreamEvent, UnknownEvent
from flux0.domain.timeouts import duration
from flux0.ports import Codec, EventStreamParser, Request

E = TypeVar("E", bound=Flux0Error)


class Turn:
    """One turn as it streams in.

    Args:
        parser: makes server-sent events of the bytes.
        codec: makes the turn's events of those.
        request: what began the turn. Its idle timeout limits the wait for an event, whatever else
            comes.

    Attributes:
        correlation_id: names the turn; None until an event has told it.
        event_count: how many events came so far.
        failure: what broke the turn; to be raised once the events before it are handed out.
    """

    def __init__(self, parser: EventStreamParser, codec: Codec, request: Request) -> None:
        self._parser = parser
        self._decode = codec.decode_event
        self._request = request
        idle = request.timeout.idle
        self._idle = inf if idle is None else idle
        self._waited = 0.0
        self.correlation_id: str | None = None
        self.event_count: int = 0
        self.failure: Flux0Error | None = None

    def feed(self, data: bytes, waited: float = 0.0) -> Sequence[StreamEvent]:
        """Return the events that `data` completes; check `failure` when they are handed out.

        `waited` is how long it took to come, in seconds. Comments keep a connection alive, but an
        agent that sends nothing else has crashed: the wait is counted until an event comes.
        """
        events: list[StreamEvent] = []
        try:
            for event in self._parser.feed(data):
                events.append(self._decode(event))  # noqa: PERF401 - those before a failure count
        except (DecodeError, EventTooLarge) as error:
            self._set_failure(error)
        self.event_count += len(events)
        self._waited = 0.0 if events else self._waited + waited
        if self.correlation_id is None:
            self.correlation_id = _correlation_id(events)
        if self._waited > self._idle and self.failure is None:
            self._fall_silent()
        return events

    def end(self) -> None:
        """Take the end of the body, which is a failure within an event."""
        self.feed(b"")  # A parser may have kept an event that is too large for the next feed.
        if self.failure is None and self._parser.pending:
            self.mark_interrupted("the stream ended within an event")

    def on_transport_error(self, error: TransportError) -> None:
        """Take a failure of the transport."""
        if isinstance(error, ReadTimeout):
            failure = self._fall_silent()
        else:
            failure = self.mark_interrupted(f"the stream was cut off: {error}")
        failure.__cause__ = error.__cause__ or error

    def mark_interrupted(self, problem: str) -> StreamError:
        """Take it that more was to come than did."""
        return self._set_failure(StreamInterrupted(f"{problem} {self._so_far()}"))

    def _fall_silent(self) -> StreamError:
        limit = f"no event for {duration(self._idle)} (idle timeout; set stream_idle_timeout_ms)"
        problem = f"{limit} {self._so_far()}"
        return self._set_failure(StreamIdleTimeout(problem))

    def attach_request(self, error: Flux0Error) -> None:
        """Have an error tell of this turn."""
        error.attach_request(self._request.operation, self._request.method, self._request.url)
        if isinstance(error, StreamError):
            error.correlation_id, error.event_count = self.correlation_id, self.event_count

    def _set_failure(self, failure: E) -> E:
        self.attach_request(failure)
        self.failure = failure
        return failure

    def _so_far(self) -> str:
        turn = "" if self.correlation_id is None else f" of turn {self.correlation_id}"
        return f"(after {self.event_count} {'event' if self.event_count == 1 else 'events'}{turn})"


def _correlation_id(events: Sequence[StreamEvent]) -> str | None:
    for event in events:
        if not isinstance(event, UnknownEvent):
            return event.correlation_id
    return None
