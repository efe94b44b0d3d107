"""The system clock as a `Time`, with alarms that run in a background thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from functools import partial
from math import inf
from os import urandom
from threading import TIMEOUT_MAX, Lock, current_thread
from typing import Final

from flux0.domain.errors import ConnectError
from flux0.ports import Time
from flux0.runtime.event_loop import sleep
from flux0.runtime.processes import NO_WAIT, PerProcess, start_thread
from flux0.runtime.waker import Waker

# The alarm thread waits at most this number of seconds at once. On some systems, `Lock.acquire`
# raises OverflowError for much longer waits.
_MAX_WAIT: Final = 3600.0
# A subinterpreter without daemon threads waits at its end until the alarm thread has seen that no
# alarm is left. There, the alarm thread looks for alarms after this number of seconds.
_MAX_WAIT_WITHOUT_DAEMONS: Final = 0.5


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
    starts with the first alarm, and ends when it wakes and no alarm is left. The other threads
    acquire no lock, because a signal handler can interrupt them at any time.
    """

    def __init__(self) -> None:
        self._alarms: dict[object, tuple[float, Callable[[], object]]] = {}
        # The thread that calls the alarms holds `_calling`. A second thread ends at once.
        self._calling = Lock()
        self._changed = Waker()
        self._next_moment = inf

    def add(self, moment: float, act: Callable[[], object]) -> Callable[[], object]:
        alarm = object()
        self._alarms[alarm] = moment, act
        if not self._calling.locked():
            # While Python exits, no thread can be started.
            with suppress(ConnectError):
                start_thread(self._run_alarms, "flux0-alarms")
        elif moment < self._next_moment:
            self._changed.wake()
        # The function that `add` returns must not acquire a lock, because finalizers can call it.
        return partial(self._alarms.pop, alarm, None)

    def _run_alarms(self) -> None:
        # Look for alarms again after the release of `_calling`: another thread may have added an
        # alarm before, and has started no thread.
        while self._alarms and self._calling.acquire(NO_WAIT):
            try:
                while self._alarms:
                    self._call_and_wait()
            finally:
                self._calling.release()

    def _call_and_wait(self) -> None:
        # While `_next_moment` is infinite, each new alarm ends the wait below.
        self._next_moment = inf
        # While this thread waits, it must not refer to an alarm: the alarm of an ended call refers
        # to the call's response and connection.
        self._call_due()
        moments = [moment for moment, _ in self._alarms.copy().values()]
        if moments:
            self._next_moment = min(moments)
            longest = _MAX_WAIT if current_thread().daemon else _MAX_WAIT_WITHOUT_DAEMONS
            self._changed.wait(min(max(self._next_moment - time.monotonic(), 0), longest))

    def _call_due(self) -> None:
        by_moment = sorted(self._alarms.copy().items(), key=lambda alarm: alarm[1][0])
        now = time.monotonic()
        for alarm, (moment, act) in by_moment:
            if moment <= now and self._alarms.pop(alarm, None) is not None:
                # If the function of one alarm raises an exception, the alarm thread must still
                # call the other alarms' functions.
                with suppress(Exception):
                    act()
