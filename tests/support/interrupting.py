"""Acts at each await of a coroutine, one await for each run: a deterministic search for faults."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from contextlib import suppress
from itertools import product
from typing import Any

import trio

from support.modes import run
from support.transports import ASYNC, Mode

_DONE = object()


class Interrupted:
    """Runs a coroutine, and acts when it is suspended for the nth time: `act` may raise an error.

    Attributes:
        has_acted: Whether the coroutine was suspended n times.
    """

    def __init__(
        self, work: Coroutine[Any, Any, Any], number: int, act: Callable[[], object]
    ) -> None:
        self._work = work
        self._number = number
        self._act = act
        self.has_acted: bool = False

    def __await__(self) -> Generator[Any, Any, Any]:
        steps, left = self._work.__await__(), self._number
        awaited = next(steps, _DONE)
        while awaited is not _DONE:
            left -= 1
            try:
                if left == 0:
                    self.has_acted = True
                    self._act()
                resume, argument = steps.send, (yield awaited)
            except BaseException as error:  # noqa: BLE001 - raised in the coroutine
                resume, argument = steps.throw, error
            try:
                awaited = resume(argument)
            except StopIteration:
                awaited = _DONE


def with_modes(actions: Iterable[str]) -> list[tuple[Mode, str]]:
    """Return each action with each mode. Only a coroutine of asyncio can get any error."""
    return [way for way in product(ASYNC, actions) if way != ("trio", "error")]


def act_of(action: str, start: Callable[[], object]) -> Callable[[], object] | None:
    """Return `act` for `interrupt`: to cancel, to raise an error, or to `start` another action."""

    def fail() -> None:
        raise ZeroDivisionError

    acts: Mapping[str, Callable[[], object] | None] = {"cancel": None, "error": fail}
    return acts.get(action, start)


def at_each_await(mode: Mode, attempt: Callable[[int], Coroutine[Any, Any, bool]]) -> None:
    """Call `attempt(1)`, `attempt(2)` and so on, until a call returns False.

    `attempt(number)` interrupts a coroutine when it is suspended for the nth time, and returns
    whether it was suspended n times.
    """

    async def interrupt_at_each_await() -> None:
        number = 1
        while await attempt(number):
            number += 1
        assert number > 1

    run(mode, interrupt_at_each_await)


async def interrupt(
    mode: Mode,
    work: Coroutine[Any, Any, Any],
    number: int,
    act: Callable[[], object] | None = None,
) -> bool:
    """Run a coroutine, and act when it is suspended for the nth time: by default, cancel it.

    Return whether it was suspended n times.
    """
    if mode == "trio":
        scope = trio.CancelScope()
        steps = Interrupted(work, number, act or scope.cancel)
        with scope:
            await steps
        return steps.has_acted

    async def run() -> None:
        await interrupted

    task = asyncio.ensure_future(run())
    interrupted = Interrupted(work, number, act or task.cancel)
    with suppress(asyncio.CancelledError):
        await task
    return interrupted.has_acted
