"""Replies that a test has prepared for single turns, and how far they were used."""

from __future__ import annotations

from collections.abc import Iterator

from flux0.testing.fake.steps import AgentStep, Reply, UserMessage, steps_of


class Script:
    """A reply that is used once; calling it makes the steps of its turn."""

    def __init__(self, reply: Reply) -> None:
        self._steps = steps_of(reply)
        self._begun = False
        self._done = 0
        self._finished = False

    def __call__(self, message: UserMessage) -> Iterator[AgentStep]:
        """Iterate over the steps, and count those that were done."""
        self._begun = True
        for step in self._steps(message):
            yield step
            self._done += 1
        self._finished = True

    @property
    def problem(self) -> str | None:
        """What is left of it, in words; None if all of it was used."""
        if self._finished:
            return None
        if not self._begun:
            return "no turn has used it"
        return f"its turn was left after {self._done} {'step' if self._done == 1 else 'steps'}"
