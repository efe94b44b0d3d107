"""The time of a fake server."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from heapq import heappop, heappush
from itertools import count
from random import Random
from threading import Lock

from flux0.adapters.support.event_loop import sleep
from flux0.ports import Time
from flux0.testing.fake.waiting import Changes

_START = 1_767_225_600.0  # 2026-01-01T00:00:00Z


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
        self.changes: Changes = Changes()
        self._now = float(start)
        self._sleep = sleep
        self._random = Random(0)  # noqa: S311 - it spreads retries, alike in every run
        self._lock = Lock()
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._order = count()

    def now(self) -> float:
        """Return the time in seconds since 1970, UTC."""
        return self._now

    def monotonic(self) -> float:
        """Return the time in seconds; see `Time.monotonic`."""
        return self._now

    def utc_now(self) -> datetime:
        """Return the date and time, in UTC."""
        return datetime.fromtimestamp(self._now, timezone.utc)

    def sleep(self, seconds: float) -> None:
        """Let `seconds` pass, as a wait."""
        self.wait_until(self._now + seconds)

    async def sleep_async(self, seconds: float) -> None:
        """Let `seconds` pass, as a wait that does not block the event loop."""
        await self.wait_until_async(self._now + seconds)

    def jitter(self) -> float:
        """Return a number from 0 to 1, the same in every run."""
        return self._random.random()

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass, and have agents do what they do meanwhile."""
        self._move_to(self._now + seconds)

    def at(self, moment: float, act: Callable[[], object]) -> None:
        """Have `act` called when it is `moment`, by whoever moves the clock."""
        with self._lock:
            heappush(self._due, (moment, next(self._order), act))

    def wait_until(self, moment: float, *, timeout: bool = False) -> None:
        """Return when it is `moment`. A `timeout` passes whoever moves this clock.

        Raises:
            ClockStandsStill: it is earlier, and only the test moves this clock.
        """
        seconds = self._seconds_until(moment, timeout=timeout)
        if seconds > 0 and self._sleep is not None:
            self._sleep(seconds)
        self._move_to(moment)

    def move_to(self, moment: float) -> None:
        """Make it `moment`, whoever moves this clock; do nothing if it is later already."""
        self.wait_until(moment, timeout=True)

    async def wait_until_async(self, moment: float, *, timeout: bool = False) -> None:
        """Return when it is `moment`, as `wait_until` does, without blocking the event loop."""
        seconds = self._seconds_until(moment, timeout=timeout)
        if seconds > 0 and self._sleep is not None:
            from anyio import CapacityLimiter, to_thread  # noqa: PLC0415 - slow to import

            await to_thread.run_sync(
                self._sleep, seconds, abandon_on_cancel=True, limiter=CapacityLimiter(1)
            )
        else:
            await sleep(0)
        self._move_to(moment)

    def _seconds_until(self, moment: float, *, timeout: bool) -> float:
        seconds = moment - self._now
        if seconds > 0 and not (self.moves_by_itself or timeout):
            raise ClockStandsStill(
                f"nothing comes for another {seconds:g} s, and the clock stands still: "
                f"call advance({seconds:g}) on it, or use a FakeClock that moves by itself"
            )
        return seconds

    def _move_to(self, moment: float) -> None:
        while True:
            with self._lock:
                if not self._due or self._due[0][0] > moment:
                    self._now = max(self._now, moment)
                    break
                due, _, act = heappop(self._due)
                self._now = max(self._now, due)
            act()
        self.changes.tell()
