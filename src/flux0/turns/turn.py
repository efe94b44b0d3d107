"""The stream of a turn without I/O: its bytes become events (`Turn`), and it changes its state.

The inputs of `Turn` are the body's bytes, the seconds of each wait for bytes, the body's end, and
errors of the transport. The outputs are events, and the error that ends the turn. `LifeCycle` has
the states of the stream. The streams in `flux0.turns.streams` do the I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, TypeAlias, TypeVar

from attrs import define, field

from flux0.domain.enums import SessionStatus
from flux0.domain.errors import (
    AgentError,
    DecodeError,
    EventTooLarge,
    Flux0Error,
    ReadTimeout,
    StreamError,
    StreamIdleTimeout,
    StreamInterrupted,
    TransportError,
)
from flux0.domain.stream_events import StatusEvent, StreamEvent
from flux0.domain.timeouts import duration
from flux0.flows import CallRequest
from flux0.ports import Codec, EventStreamParser, ServerSentEvent

E = TypeVar("E", bound=Flux0Error)
# The idle timeout of a relayed turn in seconds, after the agent has reported an error. The server
# does not end the stream of an agent that has failed without the status `completed`.
AFTER_AGENT_ERROR: Final = 5.0
# `Received` lists events that were received together, each with its server-sent event.
Received: TypeAlias = list[tuple[StreamEvent, ServerSentEvent]]


class Turn:
    """Parses and decodes the stream of one turn, until a failure.

    Args:
        parser: parses the bytes into server-sent events.
        codec: decodes the server-sent events.
        request: the request that started the turn.
        idle_timeout: the longest time between two events, in seconds. Only events reset this
            timeout, not comments.

    Attributes:
        timeout: the next read's timeout, in seconds: the time until the idle timeout expires.
        correlation_id: the turn's id; None until an event with an id was received.
        event_count: the number of events so far.
    """

    def __init__(
        self, parser: EventStreamParser, codec: Codec, request: CallRequest, idle_timeout: float
    ) -> None:
        self._parser = parser
        self._decode = codec.decode_event
        self._request = request
        self._idle_timeout = idle_timeout
        self._agent_error: StatusEvent | None = None
        self._is_relayed = False
        self.timeout: float = idle_timeout
        self.correlation_id: str | None = None
        self.event_count: int = 0

    def mark_relayed(self) -> None:
        """End the turn with an `AgentError` if no event follows an agent's error for 5 s."""
        self._is_relayed = True
        self._shorten_timeout()

    def _shorten_timeout(self) -> None:
        if self._is_relayed and self._agent_error is not None:
            self._idle_timeout = min(self._idle_timeout, AFTER_AGENT_ERROR)
            self.timeout = min(self.timeout, AFTER_AGENT_ERROR)

    def feed(self, data: bytes, waited: float = 0.0) -> tuple[Received, Flux0Error | None]:
        """Parse the body's next bytes; return the complete events and the error that ends the turn.

        The error is None while the turn continues. Only events reset the idle timeout, because
        comments and partial events do not show that the agent is running. If `data` completes no
        event, the seconds in `waited`, which reading `data` took, are subtracted from the attribute
        `timeout`.
        """
        events: Received = []
        failure: Flux0Error | None = None
        try:
            for encoded in self._parser.feed(data):
                events.append((self._decode(encoded), encoded))
        except (DecodeError, EventTooLarge) as error:
            failure = error
        self.event_count += len(events)
        if self.correlation_id is None:
            ids = (getattr(event, "correlation_id", None) for event, _ in events)
            self.correlation_id = next((id_ for id_ in ids if id_ is not None), None)
        if failure is not None:
            self.attach_request(failure)
        for event, _ in events:
            if type(event) is StatusEvent and event.status == SessionStatus.ERROR:
                self._agent_error = event
        if events:
            self.timeout = self._idle_timeout
            if self._agent_error is not None:
                self._shorten_timeout()
        elif failure is None:
            self.timeout -= waited
            failure = self._idle_failure() if self.timeout <= 0 else None
        return events, failure

    def on_end(self) -> Flux0Error | None:
        # The parser can find an event that is too large, but raise `EventTooLarge` only at the next
        # call of `feed`. Without this last call of `feed`, the error is lost.
        _, failure = self.feed(b"")
        if failure is None and self._parser.pending:
            failure = self.interrupted("the stream ended in the middle of an event")
        return failure

    def on_transport_error(self, error: TransportError) -> StreamError:
        failure = (
            self._idle_failure()
            if isinstance(error, ReadTimeout)
            else self.interrupted(f"the stream was interrupted: {error}")
        )
        failure.__cause__ = error.__cause__ or error
        return failure

    def interrupted(self, problem: str) -> StreamInterrupted:
        return self.attach_request(StreamInterrupted(f"{problem} {self._so_far()}"))

    def _idle_failure(self) -> StreamError:
        if self._is_relayed and self._agent_error is not None:
            return self.attach_request(AgentError(self._agent_error.data.data))
        waited = duration(self._idle_timeout)
        limit = f"no event for {waited} (idle timeout; set stream_idle_timeout_ms)"
        cause = "the agent may have crashed, or another client may use the session"
        return self.attach_request(StreamIdleTimeout(f"{limit}; {cause} {self._so_far()}"))

    def attach_request(self, error: E) -> E:
        error.attach_request(self._request.operation, self._request.method, self._request.url)
        error.sent = "yes" if self.event_count else "maybe"
        if isinstance(error, StreamError):
            error.correlation_id, error.event_count = self.correlation_id, self.event_count
        return error

    def _so_far(self) -> str:
        turn = "" if self.correlation_id is None else f" of turn {self.correlation_id}"
        return f"(after {self.event_count} {'event' if self.event_count == 1 else 'events'}{turn})"


class State(Enum):
    """A state of a stream. In the states CLOSED, ENDED and FAILED, its connection is released.

    state            next state    when
    OPEN             ENTERED       a `with` block begins: leaving a loop no longer closes the stream
    OPEN, ENTERED    CLOSING       the stream or its client is closed, or a loop was left in OPEN
    OPEN, ENTERED    ENDED         the body ended after a complete event
    OPEN, ENTERED    FAILED        an event is invalid or too large, no event was received within
                                   the idle timeout, the connection failed, or the body ended in the
                                   middle of an event
    CLOSING          CLOSED        the connection was released
    ENDED            FAILED        the server has not stored all messages of the turn
    """

    OPEN = "open"
    ENTERED = "open in a with block"
    CLOSING = "closing"
    CLOSED = "closed"
    ENDED = "ended"
    FAILED = "failed"


_NEXT: Final[Mapping[State, tuple[State, ...]]] = {
    State.OPEN: (State.ENTERED, State.CLOSING, State.ENDED, State.FAILED),
    State.ENTERED: (State.CLOSING, State.ENDED, State.FAILED),
    State.CLOSING: (State.CLOSED,),
    State.CLOSED: (),
    State.ENDED: (State.FAILED,),
    State.FAILED: (),
}

READABLE: Final = (State.OPEN, State.ENTERED)


@define(eq=False)
class Transition:
    """The change of a stream to a new state.

    Attributes:
        state: The new state.
        reason: The reason why the stream was closed; empty in other states.
        failure: The error with which the stream failed; None in other states.
    """

    state: State
    reason: str = ""
    failure: Flux0Error | None = None
    # Several threads can append the next transition to this list at the same time. Only the first
    # item in the list has an effect.
    next: list[Transition] = field(factory=list["Transition"], init=False)


class LifeCycle:
    """The states that one stream has reached.

    The reader, other threads, signal handlers and finalizers may change the state at the same time.
    A change takes no lock: it appends to a list, which Python does in a single operation.

    Attributes:
        is_readable: False if the stream is or will soon be in another state than OPEN or ENTERED.
            It is faster than `current`.
    """

    def __init__(self) -> None:
        self._current = Transition(State.OPEN)
        self.is_readable: bool = True

    @property
    def current(self) -> Transition:
        last = self._current
        while last.next:
            last = last.next[0]
        self._current = last
        return last

    def move(self, new: Transition) -> bool:
        """Change the stream's state to `new.state`.

        Return False if the current state does not allow this change (see `State`).
        """
        while new.state in _NEXT[(current := self.current).state]:
            if new.state is not State.ENTERED:
                self.is_readable = False
            current.next.append(new)
            if current.next[0] is new:
                return True
        return False
