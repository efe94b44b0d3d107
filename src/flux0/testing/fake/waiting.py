"""How code that uses a fake waits: for a moment of its clock, or for somebody to do something.

What a fake does is written once, as a flow that yields each wait; `perform` waits as synchronous
code does, `perform_async` as asynchronous code does.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import suppress
from threading import Condition
from typing import Protocol, TypeAlias, TypeVar

from attrs import frozen

from flux0.adapters.support.event_loop import Loop, running_loop

T = TypeVar("T")


@frozen
class Wait:
    """A wait for a moment, in seconds since 1970; without one, for any change since `seen`.

    `timeout` says that the moment is the end of a timeout, which passes whoever moves the clock.
    `patience` is how many real seconds a change may take.
    """

    moment: float | None = None
    seen: int = 0
    timeout: bool = False
    patience: float | None = None


Waits: TypeAlias = Generator[Wait, None, T]


class Changes:
    """Tells the threads and tasks that wait when something has happened.

    Attributes:
        count: how many things have happened.
    """

    def __init__(self) -> None:
        self.count: int = 0
        self._condition = Condition()
        self._wake: list[Callable[[], None]] = []

    def tell(self) -> None:
        """Wake everybody who waits."""
        with self._condition:
            self.count += 1
            self._condition.notify_all()
            wake, self._wake = self._wake, []
        for one in wake:
            one()

    def wait(self, wait: Wait) -> None:
        """Return once something has happened since `wait.seen`."""
        with self._condition:
            if not self._condition.wait_for(lambda: self.count != wait.seen, wait.patience):
                raise _out_of_patience(wait)

    async def wait_async(self, wait: Wait) -> None:
        """Return once something has happened since `wait.seen`."""
        from anyio import Event, move_on_after  # noqa: PLC0415 - slow to import

        loop, event = running_loop(), Event()
        with self._condition:
            if self.count != wait.seen:
                return
            self._wake.append(lambda: call_soon(loop, event.set))
        with move_on_after(wait.patience):
            await event.wait()
            return
        raise _out_of_patience(wait)


class Clock(Protocol):
    """What a wait needs of a clock."""

    changes: Changes

    def wait_until(self, moment: float, *, timeout: bool = False) -> None:
        """Return when it is `moment`."""
        ...

    async def wait_until_async(self, moment: float, *, timeout: bool = False) -> None:
        """Return when it is `moment`."""
        ...


def perform(waits: Waits[T], clock: Clock) -> T:
    """Return what a flow returns, and wait as synchronous code does."""
    try:
        while True:
            wait = next(waits)
            if wait.moment is None:
                clock.changes.wait(wait)
            else:
                clock.wait_until(wait.moment, timeout=wait.timeout)
    except StopIteration as stop:
        result: T = stop.value
        return result


async def perform_async(waits: Waits[T], clock: Clock) -> T:
    """Return what a flow returns, and wait as asynchronous code does."""
    try:
        while True:
            wait = next(waits)
            if wait.moment is None:
                await clock.changes.wait_async(wait)
            else:
                await clock.wait_until_async(wait.moment, timeout=wait.timeout)
    except StopIteration as stop:
        result: T = stop.value
        return result


def call_soon(loop: Loop, act: Callable[[], object]) -> None:
    """Have an event loop call `act`, from any thread; nothing is done if the loop has ended."""
    with suppress(RuntimeError):
        if hasattr(loop, "run_sync_soon"):
            loop.run_sync_soon(act)
        else:
            loop.call_soon_threadsafe(act)


def _out_of_patience(wait: Wait) -> AssertionError:
    return AssertionError(
        f"an agent waits at a gate, and nobody has opened it for {wait.patience:g} s: "
        "call open() on it, from another thread or task than the one that reads"
    )
