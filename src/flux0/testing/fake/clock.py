"""The time of a fake server, and how code that uses a fake waits.

What a fake does is written once, as a flow that yields each wait; `perform` waits as synchronous
code does, `perform_async` as asynchronous code does.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Generator
from contextlib import closing
from datetime import datetime, timezone
from functools import partial
from operator import itemgetter
from random import Random
from threading import Event, RLock
from typing import TypeAlias, TypeVar

from attrs import frozen

from flux0.ports import Time
from flux0.runtime.event_loop import call_soon, running_loop, sleep

T = TypeVar("T")

_START = 1_767_225_600.0  # 2026-01-01T00:00:00Z


@frozen
class Wait:
    """A wait for a moment, in seconds since 1970; without one, for any change since `seen`."""

    moment: float | None = None
    seen: int = 0
    timeout: bool = False  # The moment ends a timeout, which passes whoever moves the clock.
    patience: float | None = None  # How many real seconds a change may take.


Waits: TypeAlias = Generator[Wait, None, T]


class ClockStandsStill(AssertionError):
    """Something waits on a clock that only the test moves, and the test is what waits."""


class FakeClock(Time):
    """A clock that moves only when it is told to, so that no test waits.

    What agents do after a pause happens while the clock is moved past its end.

    Args:
        start: what it shows first, in seconds since 1970, UTC.
        moves_by_itself: whether a wait moves it on. Otherwise the test moves it with `advance`,
            and a wait for a moment that has not come raises `ClockStandsStill`.
        sleep: is called with the seconds of each wait that moves the clock. With `time.sleep` the
            waits are real, as a demonstration wants them. Asynchronous code calls it in a thread.
    """

    def __init__(
        self,
        start: float = _START,
        *,
        moves_by_itself: bool = True,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self.moves_by_itself = moves_by_itself
        self.changes: int = 0  # How many things have happened that somebody may wait for.
        self._now = float(start)
        self._sleep = sleep
        self._random = Random(0)  # noqa: S311 - it spreads retries, alike in every run
        self._lock = RLock()  # Whoever holds it may be interrupted by a finalizer, which tells.
        self._wake: list[Callable[[], object]] = []
        self._due: list[tuple[float, Callable[[], object]]] = []

    def now(self) -> float:
        """Return the time in seconds since 1970, UTC."""
        return self._now

    monotonic = now

    def utc_now(self) -> datetime:
        """Return the date and time, in UTC."""
        return datetime.fromtimestamp(self._now, timezone.utc)

    def sleep(self, seconds: float) -> None:
        """Let `seconds` pass, as a wait."""
        self.wait(Wait(self._now + seconds))

    async def sleep_async(self, seconds: float) -> None:
        """Let `seconds` pass, as a wait that does not block the event loop."""
        await self.wait_async(Wait(self._now + seconds))

    def jitter(self) -> float:
        """Return a number from 0 to 1, the same in every run."""
        return self._random.random()

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass, and have agents do what they do meanwhile."""
        self._move_to(self._now + seconds)

    def at(self, moment: float, act: Callable[[], object]) -> None:
        """Have `act` called when it is `moment`, by whoever moves the clock."""
        with self._lock:
            insort(self._due, (moment, act), key=itemgetter(0))

    def tell(self) -> None:
        """Wake the threads and tasks that wait for a change."""
        with self._lock:
            self.changes += 1
            wake, self._wake = self._wake, []
        for one in wake:
            one()

    def wait(self, wait: Wait) -> None:
        """Wait for a moment, or for a change; raise AssertionError if that cannot come."""
        if wait.moment is None:
            changed = Event()
            if self._will_wake(wait, changed.set) and not changed.wait(wait.patience):
                raise _out_of_patience(wait)
            return
        if pause := self._pause_before(wait.moment, wait):
            pause()
        self._move_to(wait.moment)

    async def wait_async(self, wait: Wait) -> None:
        """Wait as `wait` does, without blocking the event loop."""
        import anyio.to_thread  # noqa: PLC0415 - slow to import

        if wait.moment is None:
            changed = anyio.Event()
            if self._will_wake(wait, partial(call_soon, running_loop(), changed.set)):
                with anyio.move_on_after(wait.patience):
                    await changed.wait()
                if not changed.is_set():
                    raise _out_of_patience(wait)
            return
        if pause := self._pause_before(wait.moment, wait):
            limiter = anyio.CapacityLimiter(1)
            await anyio.to_thread.run_sync(pause, abandon_on_cancel=True, limiter=limiter)
        else:
            await sleep(0)
        self._move_to(wait.moment)

    def _will_wake(self, wait: Wait, wake: Callable[[], object]) -> bool:
        """Have `wake` called at the next change, unless there was one that the wait is for."""
        with self._lock:
            if waits := self.changes == wait.seen:
                self._wake.append(wake)
            return waits

    def _pause_before(self, moment: float, wait: Wait) -> Callable[[], object] | None:
        """Return what takes real time until it is `moment`, if anything does."""
        seconds = moment - self._now
        if seconds <= 0:
            return None
        if not (self.moves_by_itself or wait.timeout):
            raise ClockStandsStill(
                f"nothing comes for another {seconds:g} s, and the clock stands still: "
                f"call advance({seconds:g}) on it, or use a FakeClock that moves by itself"
            )
        return None if self._sleep is None else partial(self._sleep, seconds)

    def _move_to(self, moment: float) -> None:
        while True:
            with self._lock:
                if not self._due or self._due[0][0] > moment:
                    self._now = max(self._now, moment)
                    break
                due, act = self._due.pop(0)
                self._now = max(self._now, due)
            act()
        self.tell()


def perform(waits: Waits[T], clock: FakeClock) -> T:
    """Return what a flow returns, and wait as synchronous code does."""
    with closing(waits):
        try:
            while True:
                clock.wait(next(waits))
        except StopIteration as stop:
            result: T = stop.value
            return result


async def perform_async(waits: Waits[T], clock: FakeClock) -> T:
    """Return what a flow returns, and wait as asynchronous code does."""
    with closing(waits):  # At once, if the code is cancelled: the garbage would wait.
        try:
            while True:
                await clock.wait_async(next(waits))
        except StopIteration as stop:
            result: T = stop.value
            return result


def _out_of_patience(wait: Wait) -> AssertionError:
    return AssertionError(
        f"an agent waits at a gate, and nobody has opened it for {wait.patience:g} s: "
        "call open() on it, from another thread or task than the one that reads"
    )
