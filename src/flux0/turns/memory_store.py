"""A store of background turns in the memory of one process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from threading import RLock
from time import monotonic
from typing import final
from weakref import WeakKeyDictionary, ref

from flux0.domain import arguments
from flux0.domain.background_errors import TurnRunning
from flux0.runtime.processes import DAEMON_THREADS, PerProcess
from flux0.runtime.time import SystemTime
from flux0.runtime.turn_log import TurnLog
from flux0.turn_store import TurnStore


@final
class MemoryTurnStore(TurnStore):
    """Keeps background turns in memory. Other processes cannot join them.

    A forked child starts with an empty store.

    Args:
        keep_seconds: The time in seconds for which a turn is kept after its end.
        clock: A function that returns the current time in seconds.
    """

    blocking: bool = False

    def __init__(
        self, *, keep_seconds: float = 300.0, clock: Callable[[], float] = monotonic
    ) -> None:
        self._keep_seconds = arguments.interval("keep_seconds", keep_seconds)
        self._clock = clock
        self._time = SystemTime()
        self._turns = PerProcess(_Turns)
        self._ended_at: WeakKeyDictionary[TurnLog, float] = WeakKeyDictionary()

    def claim(self, session_id: str, log: TurnLog, *, refuse: bool) -> TurnLog | None:
        turns = self._turns.get()
        with turns.changing:
            previous = turns.logs.get(session_id)
            if refuse and previous is not None and not previous.is_ended:
                raise TurnRunning('a turn of the session is running: wait, or pass running="stop"')
            log.on_end = partial(self._record_end, log)
            turns.logs[session_id] = log
            if not DAEMON_THREADS:
                # An alarm would delay the end of the subinterpreter.
                self._remove_expired()
            elif not turns.is_cleaning:
                turns.is_cleaning = True
                self._clean_later()
            return previous

    def release(self, session_id: str, log: TurnLog, previous: TurnLog | None) -> None:
        turns = self._turns.get()
        with turns.changing:
            while previous is not None and previous in turns.released:
                previous = turns.released[previous]
            if turns.logs.get(session_id) is not log:
                turns.released[log] = previous
            elif previous is None:
                del turns.logs[session_id]
            else:
                turns.logs[session_id] = previous

    def find(self, session_id: str) -> TurnLog | None:
        log = self._turns.get().logs.get(session_id)
        return None if log is None or self._is_expired(log) else log

    def close(self) -> None:
        """Remove all turns."""
        self._turns.get().logs.clear()

    def _record_end(self, log: TurnLog) -> None:
        self._ended_at[log] = self._clock()

    def _clean_later(self) -> None:
        # A process can have many turns, so the store looks for expired turns only ten times in
        # `keep_seconds`. The function `clean` has only a weak reference to the store, so that the
        # store can be freed before `clean` is called.
        # The reference has no callback, unlike a `WeakMethod`: an exception of a signal handler
        # could be lost in the callback.
        clean = partial(self._clean, ref(self))
        self._time.alarm(monotonic() + self._keep_seconds / 10, clean)

    @staticmethod
    def _clean(reference: ref[MemoryTurnStore]) -> None:
        if (store := reference()) is not None:
            store._remove_expired()  # noqa: SLF001 - a method of this class

    def _remove_expired(self) -> None:
        turns = self._turns.get()
        with turns.changing:
            for session_id, log in turns.logs.copy().items():
                if self._is_expired(log):
                    turns.logs.pop(session_id, None)
            turns.is_cleaning = bool(turns.logs)
        if turns.is_cleaning and DAEMON_THREADS:
            self._clean_later()

    def _is_expired(self, log: TurnLog) -> bool:
        return self._clock() > self._ended_at.get(log, inf) + self._keep_seconds


class _Turns:
    def __init__(self) -> None:
        self.logs: dict[str, TurnLog] = {}
        # `released` has the logs that were released when their session had a newer turn. The value
        # is the log before the released log. If the newer turn is released, too, the session gets
        # the log before the released log again.
        self.released: WeakKeyDictionary[TurnLog, TurnLog | None] = WeakKeyDictionary()
        self.is_cleaning = False
        # The lock is reentrant, because a signal handler can start a turn in a thread that holds
        # the lock. With a normal lock, this thread waits forever.
        self.changing = RLock()
