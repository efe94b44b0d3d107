"""The time of a fake server."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from random import Random
from threading import Lock

from flux0.ports import Time

_START = 1_767_225_600.0  # 2026-01-01T00:00:00Z


class ClockStandsStill(AssertionError):
    """Something waits on a clock that only the test moves, and the test is what waits."""


class FakeClock(Time):
    """A clock that passes only when it is told to, so that no test waits.

    Args:
        start: what it shows first, in seconds since 1970, UTC.
        moves_by_itself: whether a wait moves it on. Otherwise the test moves it with `advance`,
            and a wait for a moment that has not come raises `ClockStandsStill`.
        sleep: is called with the seconds of each wait that moves the clock. With `time.sleep` the
            waits are real, as a demonstration wants them; it then blocks asynchronous code too.
    """

    def __init__(
        self,
        start: float = _START,
        *,
        moves_by_itself: bool = True,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self._now = float(start)
        self._moves_by_itself = moves_by_itself
        self._sleep = sleep
        self._random = Random(0)  # noqa: S311 - it spreads retries, alike in every run
        self._lock = Lock()

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
        """Let `seconds` pass, as a wait."""
        self.sleep(seconds)

    def jitter(self) -> float:
        """Return a number from 0 to 1, the same in every run."""
        return self._random.random()

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        with self._lock:
            self._now += seconds

    def wait_until(self, moment: float) -> None:
        """Return when it is `moment`.

        Raises:
            ClockStandsStill: it is earlier, and only the test moves this clock.
        """
        seconds = moment - self._now
        if seconds <= 0:
            return
        if not self._moves_by_itself:
            raise ClockStandsStill(
                f"nothing comes for another {seconds:g} s, and the clock stands still: "
                f"call advance({seconds:g}) on it, or have a FakeClock that moves by itself"
            )
        self.move_to(moment)

    def move_to(self, moment: float) -> None:
        """Make it `moment`, whoever moves this clock; do nothing if it is later already."""
        seconds = moment - self._now
        if seconds > 0 and self._sleep is not None:
            self._sleep(seconds)
        with self._lock:
            self._now = max(self._now, moment)
