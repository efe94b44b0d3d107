"""A turn's stream as a state machine: bytes in, events out; end or failure in, verdict out.

    OPEN --feed--> OPEN       an event was complete and readable, or none was complete yet
    OPEN --feed--> BROKEN     an event could not be read, or none came for the idle timeout; the
                              events before are handed out first
    OPEN --end---> FINISHED   the body was whole, and so was the last event
    OPEN --end---> BROKEN     the body ended within an event
    OPEN --fail--> BROKEN     the transport failed, or fell silent
    FINISHED --doubt--> BROKEN    the server has not stored what the turn said

It does no I/O: the streams of `flux0.client.streams` pump it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from flux0.domain.errors import (
    DecodeError,
    EventTooLarge,
    Flux0Error,
    ReadTimeout,
    StreamIdleTimeout,
    StreamInterrupted,
    TransportError,
)
from flux0.domain.messages.accumulator import DEFAULT_MAX_TURN_BYTES
from flux0.domain.messages.transcript import Transcript
from flux0.domain.stream_events import StreamEvent, UnknownEvent
from flux0.ports import Codec, EventStreamParser


class Turn:
    """One turn as it streams in.

    Args:
        parser: makes server-sent events of the bytes.
        codec: makes the turn's events of those.
        idle: the longest wait for an event, in seconds, whatever else comes; None sets no limit.
        max_turn_bytes: how much the rebuilt messages may hold, as `MessageAccumulator` counts it.

    Attributes:
        transcript: what the turn has said, for whoever hands its events out to fold them into.
        correlation_id: names the turn; None until an event has told it.
        event_count: how many events came so far.
        failure: what broke the turn; to be raised once the events before it are handed out.
    """

    def __init__(
        self,
        parser: EventStreamParser,
        codec: Codec,
        *,
        idle: float | None = None,
        max_turn_bytes: int = DEFAULT_MAX_TURN_BYTES,
    ) -> None:
        self._parser = parser
        self._decode = codec.decode_event
        self._idle = inf if idle is None else idle
        self._waited = 0.0
        self.transcript: Transcript = Transcript(max_turn_bytes=max_turn_bytes)
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
        except DecodeError as error:
            self.failure = error
        except EventTooLarge as error:
            self.failure = EventTooLarge(
                error.limit,
                correlation_id=self.correlation_id,
                event_count=self.event_count,
            )
        self.event_count += len(events)
        self._waited = 0.0 if events else self._waited + waited
        if self._waited > self._idle and self.failure is None:
            self.failure = self._silent()
        if self.correlation_id is None:
            self.correlation_id = _correlation_id(events)
        return events

    def end(self) -> None:
        """Take the end of the body, which is a failure within an event."""
        self.feed(b"")  # A parser may have kept an event that is too large for the next feed.
        if self.failure is None and self._parser.pending:
            self.failure = self._cut_short("the stream ended within an event")

    def fail(self, error: TransportError) -> None:
        """Take a failure of the transport."""
        silent = isinstance(error, ReadTimeout)
        failure = self._silent() if silent else self._cut_short(f"the stream was cut off: {error}")
        failure.__cause__ = error.__cause__ or error
        self.failure = failure

    def doubt(self, problem: str) -> None:
        """Take what is known against an end that looked whole."""
        self.failure = self._cut_short(problem)

    def _cut_short(self, problem: str) -> StreamInterrupted:
        return StreamInterrupted(
            f"{problem} {self._so_far()}",
            correlation_id=self.correlation_id,
            event_count=self.event_count,
        )

    def _silent(self) -> StreamIdleTimeout:
        return StreamIdleTimeout(
            f"the stream was silent for too long {self._so_far()}",
            correlation_id=self.correlation_id,
            event_count=self.event_count,
        )

    def _so_far(self) -> str:
        return f"(after {self.event_count} events of turn {self.correlation_id})"


def _correlation_id(events: Sequence[StreamEvent]) -> str | None:
    for event in events:
        if not isinstance(event, UnknownEvent):
            return event.correlation_id
    return None
