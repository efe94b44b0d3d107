"""What may be an agent, and the steps that each kind of it comes to."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Generator, Iterable
from itertools import takewhile
from typing import TYPE_CHECKING, TypeAlias, cast

from attrs import field, frozen

from flux0.testing.fake.steps import AgentStep, Say

if TYPE_CHECKING:
    from flux0.domain.models import Event


@frozen
class UserMessage:
    """What a fake agent answers: the message of one turn, and whom it reached."""

    content: str
    session_id: str
    user_id: str
    agent_id: str
    agent_name: str
    agent_type: str
    correlation_id: str
    stored: Callable[[], tuple[Event, ...]] = field(default=tuple, eq=False, repr=False)

    @property
    def history(self) -> tuple[Event, ...]:
        """What the session has stored before this message, oldest first."""
        own = self.correlation_id
        return tuple(takewhile(lambda event: event.correlation_id != own, self.stored()))


# What an agent does: a text is a `Say` of it.
Steps: TypeAlias = str | AgentStep | Iterable[str | AgentStep] | None
Given: TypeAlias = Steps | AsyncIterable[str | AgentStep]
AgentFunction: TypeAlias = Callable[[UserMessage], Given | Awaitable[Given]]
# A function is called in each turn.
Reply: TypeAlias = str | AgentStep | Iterable[str | AgentStep] | AgentFunction


def agent_of(reply: Reply) -> AgentFunction:
    """Return the function that makes the steps of each turn that is answered with `reply`."""
    if callable(reply):
        return reply
    steps = tuple(steps_of(reply))
    return lambda _: steps


def steps_of(given: Steps) -> Generator[AgentStep, None, None]:
    """Return the steps that an agent has returned, or yields."""
    if given is None:
        return
    one = isinstance(given, (str, AgentStep))
    try:
        for step in cast("Iterable[str | AgentStep]", (given,) if one else given):
            if not isinstance(step, (str, AgentStep)):  # pyright: ignore[reportUnnecessaryIsInstance] - users yield what they like
                raise TypeError(f"an agent yields texts and steps of flux0.testing, not {step!r}")
            yield Say(step) if isinstance(step, str) else step
    finally:
        if isinstance(given, Generator):
            given.close()
