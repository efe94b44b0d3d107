"""The states of a stream, and the changes that are allowed."""

from __future__ import annotations

import re
from itertools import product

import pytest

from flux0.domain.errors import StreamInterrupted
from flux0.turns.turn import LifeCycle, State, Transition

# How to reach each state.
PATHS: dict[State, tuple[State, ...]] = {
    State.OPEN: (),
    State.ENTERED: (State.ENTERED,),
    State.CLOSING: (State.ENTERED, State.CLOSING),
    State.CLOSED: (State.CLOSING, State.CLOSED),
    State.ENDED: (State.ENDED,),
    State.FAILED: (State.ENTERED, State.ENDED, State.FAILED),
}


def documented() -> set[tuple[State, State]]:
    """Return the changes in the docstring's table."""
    rows = re.findall(r"^ *([A-Z, ]+?) {2,}([A-Z]+) {2,}", State.__doc__ or "", re.MULTILINE)
    return {(State[before], State[after]) for names, after in rows for before in names.split(", ")}


@pytest.mark.parametrize(("before", "after"), list(product(State, State)))
def test_only_the_documented_changes_are_possible(before: State, after: State) -> None:
    life = LifeCycle()
    for state in PATHS[before]:
        assert life.move(Transition(state))

    is_allowed = (before, after) in documented()
    assert life.move(Transition(after)) is is_allowed
    assert life.current.state is (after if is_allowed else before)
    assert life.is_readable is (life.current.state in {State.OPEN, State.ENTERED})


def test_first_of_two_changes_at_the_same_time_counts() -> None:
    """Another thread changes the state after the first thread's check."""

    class Overtaken(list[Transition]):
        def append(self, new: Transition) -> None:
            super().append(closing)
            super().append(new)

    life, closing = LifeCycle(), Transition(State.CLOSING, "closed")
    life.current.next = Overtaken()

    assert not life.move(Transition(State.FAILED, failure=StreamInterrupted("")))

    assert life.current is closing
