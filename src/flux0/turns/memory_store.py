"""A store of background turns in the memory of one process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from threading import RLock
from time import monotonic
from typing import final
from weakref import WeakKeyDictionary

from flux0.domain import arguments
from flux0.domain.errors import TurnRunning
from flux0.runtime.processes import PerProcess
from flux0.runtime.turn_log import TurnLog
from flux0.turn_store import TurnStore


@final
class MemoryTurnStore(TurnStore):
    """Keeps background turns in memory. Other processes cannot join them.

    A forked child starts with an empty store.

    Args:
        keep_seconds: The time in seconds for which a turn is kept after its end.
        clock: Returns the current time in seconds.
    """

    blocking: bool = False

    def __init__(
        self, *, keep_seconds: float = 300.0, clock: Callable[[], float] = monotonic
    ) -> None:
        self._keep_seconds = arguments.interval("keep_seconds", keep_seconds)
        self._clock = clock
        self._next_cleaning = 0.0
        self._turns: PerProcess[dict[str, TurnLog]] = PerProcess(dict)
        self._ended_at: WeakKeyDictionary[TurnLog, float] = WeakKeyDictionary()
        # The lock is reentrant, because a signal handler can start a turn in a thread that holds
        # the lock.
        self._changing = PerProcess(RLock)

    def claim(self, session_id: str, log: TurnLog, *, refuse: bool) -> TurnLog | None:
        """Make `log` the turn of the session; see `TurnStore.claim`."""
        with self._changing.get():
            self._remove_expired()
            turns = self._turns.get()
            previous = turns.get(session_id)
            if refuse and previous is not None and not previous.is_ended:
                raise TurnRunning("a turn of the session is running")
            log.on_end = partial(self._record_end, log)
            turns[session_id] = log
            return previous

    def release(self, session_id: str, log: TurnLog, previous: TurnLog | None) -> None:
        """Undo `claim`; see `TurnStore.release`."""
        with self._changing.get():
            turns = self._turns.get()
            if turns.get(session_id) is log:
                del turns[session_id]
                if previous is not None:
                    turns[session_id] = previous

    def find(self, session_id: str) -> TurnLog | None:
        """Return the turn of the session that is running or kept; see `TurnStore.find`."""
        log = self._turns.get().get(session_id)
        return None if log is None or self._is_expired(log) else log

    def close(self) -> None:
        """Remove all turns."""
        self._turns.get().clear()

    def _record_end(self, log: TurnLog) -> None:
        self._ended_at[log] = self._clock()

    def _remove_expired(self) -> None:
        # Check all turns only from time to time, because there may be many.
        if self._clock() >= self._next_cleaning:
            self._next_cleaning = self._clock() + self._keep_seconds / 10
            turns = self._turns.get()
            for session_id, log in tuple(turns.items()):
                if self._is_expired(log):
                    del turns[session_id]

    def _is_expired(self, log: TurnLog) -> bool:
        return self._clock() > self._ended_at.get(log, inf) + self._keep_seconds
