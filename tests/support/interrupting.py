"""Acts at each await of a coroutine, one await for each run: a deterministic search for faults."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any

import trio

from support.transports import Mode

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


def raises(error: BaseException) -> Callable[[], None]:
    """Return a function that raises `error`. Only coroutines of asyncio can be interrupted so."""

    def act() -> None:
        raise error

    return act


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
