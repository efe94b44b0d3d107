"""The state of one stream."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from attrs import define, field

from flux0.domain.errors import Flux0Error


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
