"""The system clock as a `Time`, with alarms that run in a background thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from os import urandom
from threading import TIMEOUT_MAX, Condition, Thread
from typing import Final

from flux0.ports import Time
from flux0.runtime.event_loop import sleep
from flux0.runtime.processes import PerProcess

# The alarm thread waits at most this number of seconds at once. On some systems, `Condition.wait`
# raises OverflowError for much longer waits.
_MAX_WAIT: Final = 3600.0


class SystemTime(Time):
    def __init__(self) -> None:
        self._alarms = PerProcess(_Alarms)

    def monotonic(self) -> float:
        return time.monotonic()

    def utc_now(self) -> datetime:
        return datetime.now(timezone.utc)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def sleep_or_wake(self, seconds: float, wait: Callable[[float], object]) -> None:
        wait(min(seconds, TIMEOUT_MAX))

    async def sleep_async(self, seconds: float) -> None:
        await sleep(seconds)

    def jitter(self) -> float:
        return int.from_bytes(urandom(4), "big") / 0xFFFFFFFF

    def alarm(self, moment: float, act: Callable[[], object]) -> Callable[[], object]:
        return self._alarms.get().add(moment, act)


class _Alarms:
    """The alarms of one process, and the thread that calls them.

    One thread calls all alarms, while `threading.Timer` starts a thread for each alarm. The thread
    starts with the first alarm, and ends when it wakes and no alarm is left.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._alarms: dict[object, tuple[float, Callable[[], object]]] = {}
        self._next_moment = 0.0
        self._thread: Thread | None = None

    def add(self, moment: float, act: Callable[[], object]) -> Callable[[], object]:
        alarm = object()
        with self._changed:
            self._alarms[alarm] = moment, act
            if self._thread is None:
                thread = Thread(target=self._run_alarms, name="flux0-alarms", daemon=True)
                # `thread.start` raises RuntimeError while Python exits.
                with suppress(RuntimeError):
                    thread.start()
                    self._thread = thread
            elif moment < self._next_moment:
                self._changed.notify()
        # The function that `add` returns must not acquire a lock, because finalizers can call it.
        return lambda: self._alarms.pop(alarm, None)

    def _run_alarms(self) -> None:
        while True:
            now = time.monotonic()
            by_moment = sorted(self._alarms.copy().items(), key=lambda alarm: alarm[1][0])
            for alarm, (moment, act) in by_moment:
                if moment <= now and self._alarms.pop(alarm, None) is not None:
                    # If the function of one alarm raises an exception, the alarm thread must still
                    # call the other alarms' functions.
                    with suppress(Exception):
                        act()
            with self._changed:
                moments = [moment for moment, _ in self._alarms.copy().values()]
                if not moments:
                    self._thread = None
                    return
                self._next_moment = min(moments)
                self._changed.wait(min(self._next_moment - time.monotonic(), _MAX_WAIT))
