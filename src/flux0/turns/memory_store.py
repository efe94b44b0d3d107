"""A store of background turns in the memory of one process."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from threading import RLock
from time import monotonic
from typing import final

from attrs import define

from flux0.domain import arguments
from flux0.domain.errors import TurnRunning
from flux0.runtime.processes import PerProcess
from flux0.runtime.turn_log import TurnLog
from flux0.turn_store import TurnStore


@define(eq=False)
class _Kept:
    """A turn, and the time of its end; infinity while it is running."""

    log: TurnLog
    ended_at: float = inf


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
        self._turns: PerProcess[dict[str, _Kept]] = PerProcess(dict)
        # The lock is reentrant, because a signal handler can start a turn in a thread that holds
        # the lock.
        self._changing = PerProcess(RLock)

    def claim(self, session_id: str, log: TurnLog, *, refuse: bool) -> TurnLog | None:
        """Make `log` the turn of the session; see `TurnStore.claim`."""
        with self._changing.get():
            self._remove_expired()
            turns = self._turns.get()
            kept = turns.get(session_id)
            running = None if kept is None or kept.log.is_ended else kept.log
            if running is not None and refuse:
                raise TurnRunning("a turn of the session is running")
            self._add(session_id, log)
            return running

    def release(self, session_id: str, log: TurnLog, previous: TurnLog | None) -> None:
        """Undo `claim`; see `TurnStore.release`."""
        with self._changing.get():
            turns = self._turns.get()
            kept = turns.get(session_id)
            if kept is not None and kept.log is log:
                del turns[session_id]
                if previous is not None and not previous.is_ended:
                    self._add(session_id, previous)

    def find(self, session_id: str) -> TurnLog | None:
        """Return the turn of the session that is running or kept; see `TurnStore.find`."""
        kept = self._turns.get().get(session_id)
        return None if kept is None or self._is_expired(kept) else kept.log

    def close(self) -> None:
        """Remove all turns."""
        self._turns.get().clear()

    def _add(self, session_id: str, log: TurnLog) -> None:
        self._turns.get()[session_id] = kept = _Kept(log)

        def on_end() -> None:
            kept.ended_at = self._clock()

        log.on_end = on_end

    def _remove_expired(self) -> None:
        # Check all turns only from time to time, because there may be many.
        if self._clock() >= self._next_cleaning:
            self._next_cleaning = self._clock() + self._keep_seconds / 10
            turns = self._turns.get()
            for session_id, kept in tuple(turns.items()):
                if self._is_expired(kept):
                    del turns[session_id]

    def _is_expired(self, kept: _Kept) -> bool:
        return self._clock() > kept.ended_at + self._keep_seconds
