"""The clock of a fake server, and the functions that perform waits in sync and async code.

The fake's code is a generator, which yields a `Wait` instead of waiting. `perform` runs the
generator in sync code, and `perform_async` runs it in async code.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Generator
from contextlib import closing
from datetime import datetime, timezone
from functools import partial
from math import inf
from operator import itemgetter
from random import Random
from threading import Event, RLock
from typing import TypeAlias, TypeVar, cast

from attrs import evolve, frozen

from flux0.ports import Time
from flux0.runtime.event_loop import call_soon, running_loop, sleep

T = TypeVar("T")

_START = 1_767_225_600.0  # The fake's clock starts at 2026-01-01T00:00:00Z.


@frozen
class Wait:
    """A wait until a moment on the clock, or for a change that `FakeClock.notify` reports.

    Attributes:
        moment: the wait's end, in seconds since 1970. If it is None, the wait ends at the next
            change, when the number of changes exceeds `seen`.
        seen: the number of changes that the caller has already handled.
        is_timeout: whether a timeout expires at `moment`. Such a wait moves the clock even with
            `moves_by_itself=False`.
        real_timeout: the longest wait for a change, in real seconds.
    """

    moment: float | None = None
    seen: int = 0
    is_timeout: bool = False
    real_timeout: float | None = None


Waits: TypeAlias = Generator[Wait, None, T]


class ClockStandsStill(AssertionError):
    """Raised if code waits on a `FakeClock(moves_by_itself=False)`, which only `advance` moves."""

    # Tracebacks show the name `flux0.testing.ClockStandsStill`, which users import, although this
    # module defines the class.
    __module__ = "flux0.testing"


class FakeClock(Time):
    """A simulated clock: waits take no real time, unless you pass `sleep`.

    If a thread moves the clock to the end of an agent's pause, the thread then runs the agent.

    Args:
        start: the initial time, in seconds since 1970 (UTC). The default is 2026-01-01.
        moves_by_itself: whether a wait moves the clock forward. If False, only `advance` moves it,
            and waiting for a later time raises `ClockStandsStill`.
        sleep: a function that is called with the seconds of each wait that moves the clock. Pass
            `time.sleep` for real waits, for example in a demo. Async code calls it in a
            worker thread.
        follow: a function that returns seconds since 1970, such as `time.time`. The clock is never
            earlier than this function. By default, only waits and `advance` move the clock.
    """

    def __init__(
        self,
        start: float = _START,
        *,
        moves_by_itself: bool = True,
        sleep: Callable[[float], object] | None = None,
        follow: Callable[[], float] | None = None,
    ) -> None:
        self.moves_by_itself = moves_by_itself
        # `changes` is the number of calls of `notify` so far. `Wait.seen` is compared with this
        # number.
        self.changes: int = 0
        self._moved_to = float(start)
        self._follow = follow
        self._sleep = sleep
        self._random = Random(0)  # noqa: S311 - jitter that is the same in every run
        # The lock is reentrant, because a finalizer can call `notify` in a thread that already
        # holds the lock.
        self._lock = RLock()
        self._wake: list[Callable[[], object]] = []
        self._due: list[tuple[float, Callable[[], object]]] = []

    def now(self) -> float:
        """Return the time in seconds since 1970 (UTC)."""
        return max(self._moved_to, self._follow()) if self._follow else self._moved_to

    monotonic = now

    def utc_now(self) -> datetime:
        return datetime.fromtimestamp(self.now(), timezone.utc)

    def sleep(self, seconds: float) -> None:
        self.wait(Wait(self.now() + seconds))

    async def sleep_async(self, seconds: float) -> None:
        await self.wait_async(Wait(self.now() + seconds))

    def jitter(self) -> float:
        """Return a number from 0 to 1. The sequence is the same in each run."""
        return self._random.random()

    def advance(self, seconds: float) -> None:
        """Move the clock by `seconds`, and run the agents whose pauses end in this time."""
        self._move_to(self.now() + seconds)

    def call_at(self, moment: float, act: Callable[[], object]) -> None:
        """Call `act` when the clock reaches `moment`, in the thread that moves the clock."""
        with self._lock:
            insort(self._due, (moment, act), key=itemgetter(0))

    def notify(self) -> None:
        """Wake the threads and tasks that wait for a change, such as an event of an agent."""
        with self._lock:
            self.changes += 1
            wake, self._wake = self._wake, []
        for wake_waiter in wake:
            wake_waiter()

    def wait(self, wait: Wait) -> None:
        """Wait until `wait.moment`. If `wait.moment` is None, wait for the next change.

        Raises:
            ClockStandsStill: the clock has `moves_by_itself=False`, and `wait.moment` is in the
                future.
            AssertionError: no change happened within `wait.real_timeout`, or the wait never ends.
        """
        if wait.moment is None:
            changed = Event()
            if self._must_wait(wait, changed.set) and not changed.wait(wait.real_timeout):
                raise _gate_not_opened(wait)
            return
        if pause := self._pause_before(wait.moment, wait):
            pause()
        self._move_to(wait.moment)

    async def wait_async(self, wait: Wait) -> None:
        """The async version of `wait`: it does not block the event loop."""
        import anyio.to_thread  # noqa: PLC0415 - slow to import

        if wait.moment is None:
            changed = anyio.Event()
            if self._must_wait(wait, partial(call_soon, running_loop(), changed.set)):
                with anyio.move_on_after(wait.real_timeout):
                    await changed.wait()
                if not changed.is_set():
                    raise _gate_not_opened(wait)
            return
        if pause := self._pause_before(wait.moment, wait):
            limiter = anyio.CapacityLimiter(1)
            await anyio.to_thread.run_sync(pause, abandon_on_cancel=True, limiter=limiter)
        else:
            await sleep(0)
        self._move_to(wait.moment)

    def reaches(self, moment: float | None) -> bool:
        """Return whether a wait until `moment` ends even if no test calls `advance`."""
        end = inf if moment is None else moment
        return end <= self.now() or (self.moves_by_itself and end < inf)

    def _must_wait(self, wait: Wait, wake: Callable[[], object]) -> bool:
        """Return True if nothing changed since `wait.seen`. The next change then calls `wake`."""
        with self._lock:
            if must_wait := self.changes == wait.seen:
                self._wake.append(wake)
            return must_wait

    def _pause_before(self, moment: float, wait: Wait) -> Callable[[], object] | None:
        seconds = moment - self.now()
        if seconds <= 0:
            return None
        if moment == inf:
            problem = "this call would never end: no more data is sent, and it has no read timeout"
            raise AssertionError(problem)
        if not (self.moves_by_itself or wait.is_timeout):
            problem = f"waiting for another {seconds:g} s on a FakeClock that only the test moves"
            advice = f"first call advance({seconds:g}), or use FakeClock(moves_by_itself=True)"
            raise ClockStandsStill(f"{problem}: {advice}")
        return None if self._sleep is None else partial(self._sleep, seconds)

    def _move_to(self, moment: float) -> None:
        while True:
            with self._lock:
                if not self._due or self._due[0][0] > moment:
                    self._moved_to = max(self._moved_to, moment)
                    break
                due, act = self._due.pop(0)
                self._moved_to = max(self._moved_to, due)
            act()
        self.notify()


def perform(waits: Waits[T], clock: FakeClock) -> T:
    with closing(waits):
        try:
            while True:
                clock.wait(next(waits))
        except StopIteration as stop:
            return cast("T", stop.value)


async def perform_async(waits: Waits[T], clock: FakeClock, *, in_real_time: bool = False) -> T:
    """The async version of `perform`: waits do not block the event loop.

    If `in_real_time` is True, and a wait can end only if the test calls `advance`, this function
    sleeps until the next change, such as an event of an agent. After a change that does not end the
    wait, `waits` must yield the wait again.
    """
    # If the task is cancelled, `closing` closes the generator `waits` at once, and the fake ends
    # the call.
    with closing(waits):
        try:
            while True:
                seen, wait = clock.changes, next(waits)
                if in_real_time and not clock.reaches(wait.moment):
                    wait = evolve(wait, moment=None, seen=seen)
                await clock.wait_async(wait)
        except StopIteration as stop:
            return cast("T", stop.value)


def _gate_not_opened(wait: Wait) -> AssertionError:
    problem = f"an agent waited at a Gate that was not opened within {wait.real_timeout:g} s"
    advice = "call open() on the gate, in another thread or task than the stream's reader"
    return AssertionError(f"{problem}: {advice}")
