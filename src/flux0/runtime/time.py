"""Real time, with alarms."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from os import urandom
from threading import Condition, Thread
from typing import Final

from flux0.ports import Time
from flux0.runtime.event_loop import sleep
from flux0.runtime.processes import PerProcess

_LONGEST_NAP: Final = 3600.0  # A wait of more than some systems can wait is an OverflowError.


class SystemTime(Time):
    """The time of the machine."""

    def __init__(self) -> None:
        self._alarms = PerProcess(_Alarms)

    def monotonic(self) -> float:
        """Return seconds that never go back; see `Time.monotonic`."""
        return time.monotonic()

    def utc_now(self) -> datetime:
        """Return the date and time, in UTC."""
        return datetime.now(timezone.utc)

    def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""
        time.sleep(seconds)

    async def sleep_async(self, seconds: float) -> None:
        """Wait for `seconds` under asyncio or trio."""
        await sleep(seconds)

    def jitter(self) -> float:
        """Return a random number from 0 to 1."""
        return int.from_bytes(urandom(4), "big") / 0xFFFFFFFF

    def alarm(self, moment: float, act: Callable[[], object]) -> Callable[[], object]:
        """Have `act` called when `monotonic` is `moment`; return a function that cancels it."""
        return self._alarms.get().add(moment, act)


def _moment(alarm: tuple[object, tuple[float, Callable[[], object]]]) -> float:
    return alarm[1][0]


class _Alarms:
    """The alarms of one process; one thread watches them while there are any."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._alarms: dict[object, tuple[float, Callable[[], object]]] = {}
        self._next = 0.0
        self._thread: Thread | None = None

    def add(self, moment: float, act: Callable[[], object]) -> Callable[[], object]:
        alarm = object()
        with self._changed:
            self._alarms[alarm] = moment, act
            if self._thread is None:
                thread = Thread(target=self._watch, name="flux0-alarms", daemon=True)
                with suppress(RuntimeError):  # An interpreter that is ending starts no thread.
                    thread.start()
                    self._thread = thread
            elif moment < self._next:
                self._changed.notify()
        # Without the lock, since a finalizer may call it.
        return lambda: self._alarms.pop(alarm, None)

    def _watch(self) -> None:
        while True:
            now = time.monotonic()
            for alarm, (moment, act) in sorted(self._alarms.copy().items(), key=_moment):
                if moment <= now and self._alarms.pop(alarm, None) is not None:
                    with suppress(Exception):  # One that fails must not stop the others.
                        act()
            with self._changed:
                moments = [moment for moment, _ in self._alarms.copy().values()]
                if not moments:
                    self._thread = None
                    return
                self._next = min(moments)
                self._changed.wait(min(self._next - time.monotonic(), _LONGEST_NAP))
