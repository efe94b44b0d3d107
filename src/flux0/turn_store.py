"""The interface of stores, which let several processes find and copy each background turn."""

from __future__ import annotations

from abc import ABC, abstractmethod

from attrs import frozen

from flux0.runtime.turn_log import TurnLog


@frozen
class StoreState:
    """The state of a store in one process.

    Attributes:
        is_available: Whether the last command of this process to Redis was successful. True if
            there was no command.
        failures: The number of commands of this process that failed because Redis could not be
            used. Commands that are sent together count as one command.
        followed_turns: The number of running turns of other processes that this process copies.
    """

    is_available: bool = True
    failures: int = 0
    followed_turns: int = 0


@frozen
class TurnStats:
    """The numbers of background turns and relays in one process.

    Attributes:
        running_turns: The number of running turns that this process reads.
        open_relays: The number of open relays. A relay is open from its first piece to its end, or
            until it is closed.
        is_draining: Whether `end_relays` or `close` was called.
        store: The state of the turn store in this process.
    """

    running_turns: int
    open_relays: int
    is_draining: bool
    store: StoreState


class TurnStore(ABC):
    """The interface of turn stores, with which several processes find each background turn.

    Several threads may call the methods at the same time. If `blocking` is True, async code calls
    them in worker threads. Only the process that claimed a turn adds events to its log; the store
    copies the log for other processes, and never delays or fails the turn.

    A store can be created before the process forks. Each child is another process: it does not use
    the threads and connections of its parent, and the turns of its parent are turns of another
    process. `flux0.testing.contract.TurnStoreContract` has the tests that a store must pass.

    Attributes:
        blocking: Whether `claim`, `find` and `TurnLog.stop` may block, for example on a network.
    """

    blocking: bool = True

    @abstractmethod
    def claim(self, session_id: str, log: TurnLog, *, refuse: bool) -> TurnLog | None:
        """Replace the session's turn, in all processes, with a new turn with the empty log `log`.

        After this call, the store copies the events and the end of `log` for other processes. The
        store keeps the log of an ended turn for a while.

        Returns:
            The log of the session's previous turn; None if the session had no turn. If the previous
            turn is still running, the caller stops it, and waits until it has ended. If it has
            already ended, a store may return None, provided that `release` can restore it.

        Raises:
            TurnRunning: A turn is running, and `refuse` is True.
            TurnStoreError: The store cannot be used. The session keeps its previous turn.
        """

    @abstractmethod
    def release(self, session_id: str, log: TurnLog, previous: TurnLog | None) -> None:
        """Undo `claim`, because the message was not sent. `log` has ended without events.

        The previous turn, running or ended, becomes the session's turn again. `previous` is the
        result of `claim`. If a newer turn has replaced `log` in the meantime, the newer turn stays.

        This method never blocks and never raises, even in an async task that was cancelled. It may
        undo the claim later, in another thread, but later calls in the same process see the result.
        """

    @abstractmethod
    def find(self, session_id: str) -> TurnLog | None:
        """Return the log of the session's running or kept turn; None if there is no such turn.

        In the process that reads a running turn, this method may return the turn until it has
        ended, even if another process has started a newer turn on the session.

        If another process reads the turn, the result is a copy of the log, which grows until the
        turn has ended. From the first event on, the copy has the turn's `trace_parent`. If the
        reading process is killed, the copy ends with a `ReaderLost`. All callers in this process
        get the same copy. The store has only a weak reference to a copy, so the garbage collector
        can free it when no caller uses it.

        Raises:
            TurnStoreError: The store cannot be used.
        """

    def state(self) -> StoreState:
        """Return the state of the store in this process, without waiting."""
        return StoreState()

    @abstractmethod
    def close(self) -> None:
        """End the store's threads, close its connections, and end all copied logs with an error.

        The caller stops the turns of this process before this call. A second call has no effect.
        """
