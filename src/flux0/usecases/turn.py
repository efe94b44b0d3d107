"""The stream of a turn as a state machine without I/O.

The inputs are the bytes of the body, the waits for them, the end of the body, or a transport error.
The outputs are events, and at most one failure. The streams in `flux0.client.streams` do the I/O.

    state     input               next state   when
    OPEN      feed                OPEN         all complete events in the bytes are valid
    OPEN      feed                FAILED       an event is invalid or too large; earlier events are
                                               returned first
    OPEN      add_wait            FAILED       the idle timeout expired
    OPEN      on_end              FINISHED     the body ended after a complete event
    OPEN      on_end              FAILED       the body ended in the middle of an event
    OPEN      on_transport_error  FAILED       the connection failed, or the read timeout expired
    FINISHED  mark_interrupted    FAILED       the server has not stored all messages of the turn

The state is FAILED if `failure` is not None. The streams record whether the state is FINISHED.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from flux0.domain.stream_events import StreamEvent
from flux0.domain.timeouts import duration
from flux0.flows import CallRequest
from flux0.ports import Codec, EventStreamParser

E = TypeVar("E", bound=Flux0Error)


class Turn:
    """The state of one turn while its stream is read.

    Args:
        parser: parses the bytes into server-sent events.
        codec: decodes the server-sent events.
        request: the request that started the turn.
        idle_timeout: the longest time between two events, in seconds. Only events reset it,
            comments do not.

    Attributes:
        timeout: the timeout of the next read: the rest of the idle timeout.
        correlation_id: the id of the turn; None until an event with an id was received.
        event_count: the number of events so far.
        failure: the error of the stream; None if the turn has not failed. The stream first yields
            all events that were received before the error, and then raises the error.
    """

    def __init__(
        self, parser: EventStreamParser, codec: Codec, request: CallRequest, idle_timeout: float
    ) -> None:
        self._parser = parser
        self._decode = codec.decode_event
        self._request = request
        self._idle_timeout = idle_timeout
        self.timeout: float = idle_timeout
        self.correlation_id: str | None = None
        self.event_count: int = 0
        self.failure: Flux0Error | None = None

    def feed(self, data: bytes) -> Sequence[StreamEvent]:
        """Return the events that `data` completes.

        The caller must process these events first, and then check `failure`. If there are no
        events, the caller must call `add_wait`.
        """
        events: list[StreamEvent] = []
        failure: DecodeError | EventTooLarge | None = None
        try:
            for event in self._parser.feed(data):
                events.append(self._decode(event))  # noqa: PERF401 - keep the events before a failure
        except (DecodeError, EventTooLarge) as error:
            failure = error
        self.event_count += len(events)
        if events:
            self.timeout = self._idle_timeout
        if self.correlation_id is None:
            ids = (getattr(event, "correlation_id", None) for event in events)
            self.correlation_id = next((id_ for id_ in ids if id_ is not None), None)
        if failure is not None:
            self._set_failure(failure)
        return events

    def add_wait(self, seconds: float) -> None:
        """Record how long the reader waited for data that completed no event.

        The idle timeout limits the sum of all waits since the last event. Comments and partial
        events do not reset the sum, because they do not show that the agent is running.
        """
        self.timeout -= seconds
        if self.timeout <= 0 and self.failure is None:
            self._fail_idle()

    def on_end(self) -> None:
        """Handle the end of the body. The turn fails if the body ends in the middle of an event."""
        self.feed(b"")  # Some parsers raise `EventTooLarge` only in the next call.
        if self.failure is None and self._parser.pending:
            self.mark_interrupted("the stream ended in the middle of an event")

    def on_transport_error(self, error: TransportError) -> None:
        """Handle an error of the transport while the body is read."""
        if isinstance(error, ReadTimeout):
            failure = self._fail_idle()
        else:
            failure = self.mark_interrupted(f"the stream was interrupted: {error}")
        failure.__cause__ = error.__cause__ or error

    def mark_interrupted(self, problem: str) -> StreamError:
        """Fail the turn because its stream ended too early, and return the failure."""
        return self._set_failure(StreamInterrupted(f"{problem} {self._so_far()}"))

    def _fail_idle(self) -> StreamError:
        waited = duration(self._idle_timeout)
        limit = f"no event for {waited} (idle timeout; set stream_idle_timeout_ms)"
        cause = "the agent may have crashed, or another client may use the session"
        return self._set_failure(StreamIdleTimeout(f"{limit}; {cause} {self._so_far()}"))

    def attach_request(self, error: E) -> E:
        """Add the request to `error`, and the turn to a `StreamError`. Return `error`."""
        error.attach_request(self._request.operation, self._request.method, self._request.url)
        error.sent = "yes" if self.event_count else "maybe"
        if isinstance(error, StreamError):
            error.correlation_id, error.event_count = self.correlation_id, self.event_count
        return error

    def _set_failure(self, failure: E) -> E:
        self.failure = self.attach_request(failure)
        return failure

    def _so_far(self) -> str:
        turn = "" if self.correlation_id is None else f" of turn {self.correlation_id}"
        return f"(after {self.event_count} {'event' if self.event_count == 1 else 'events'}{turn})"
