"""Reports the first event and the end of a turn to the observers and the log."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from flux0.domain.locks import Busy, TryLock
from flux0.domain.stored_models import Participant
from flux0.flows import CallRequest
from flux0.middleware.logging import log_relayed_turn
from flux0.middleware.observing import Observers
from flux0.observers import TurnEnd
from flux0.runtime.processes import RUNNING


class TurnReport:
    """Reports one turn to the observers. Times are measured from the creation of this object.

    One thread may receive the first event while another thread closes the stream. Then one thread
    makes both reports, in their order. The other thread does not wait, because observers may wait
    for locks.

    Attributes:
        session_id: The session's id.
        agent: The agent; its id is None if the user passed only a session id.
        seconds_to_first_event: The time until the first event; None before the first event.
        is_relayed: Whether the turn is relayed. If it is, its error is logged, because relays show
            only a general sentence.
    """

    def __init__(
        self,
        observers: Observers,
        clock: Callable[[], float],
        request: CallRequest,
        session_id: str,
        agent: Participant,
    ) -> None:
        self._observers = observers
        self._call = request.call
        self._clock = clock
        self._start = self._clock()
        self._process = RUNNING.id
        self.session_id: str = session_id
        self.agent: Participant = agent
        self.seconds_to_first_event: float | None = None
        self.is_relayed = False
        # Several threads can end the turn at the same time. Each thread adds the time to `_ends`,
        # and only the first time is used.
        self._ends: list[float] = []
        self._waiting: deque[Callable[[], None]] = deque()
        # `_is_observed` is stored for `postpone`, which finalizers call. A finalizer must not call
        # `is_turn_observed`, whose first call imports the module logging.
        self._is_observed = observers.is_turn_observed()
        self._reporting = TryLock()
        self._is_complete = False
        observers.flush()

    @property
    def seconds(self) -> float | None:
        return self._ends[0] if self._ends else None

    @property
    def trace_parent(self) -> str | None:
        """The `traceparent` for the turn's span, from the first observer that returns a value."""
        return self._observers.trace_parent(self._call)

    def unconfirmed_end(self) -> None:
        self._observers.unconfirmed_end()

    def first_event(self) -> None:
        self.seconds_to_first_event = seconds = self._clock() - self._start
        self._waiting.append(partial(self._observers.first_event, self._call, seconds))
        self._report()

    def mark_ended(self) -> None:
        """Record the time of the end, unless it was recorded already. Safe in finalizers."""
        self._ends.append(self._clock() - self._start)

    def postpone(self, report_end: Callable[[], None]) -> None:
        """Report the turn's end later: the client's next call calls `report_end`.

        Safe in finalizers.
        """
        if self._is_observed:
            self._observers.postpone(report_end)

    def end(self, describe: Callable[[bool], TurnEnd], *, failed: bool) -> None:
        """Report the turn's end, unless the end was reported already.

        A forked child does not report the turns of its parent, because the parent reports them.

        Args:
            describe: A function that returns the `TurnEnd`, with the messages if its argument is
                True.
            failed: Whether an error has ended the turn. Such an end is always logged.
        """
        self._waiting.append(partial(self._report_end, describe, failed))
        self._report()

    def _report(self) -> None:
        # Check `_waiting` again after the lock was released: while this thread held the lock,
        # another thread may have added a report to `_waiting` without waiting for the lock.
        with suppress(Busy):
            while self._waiting:
                with self._reporting:
                    while self._waiting:
                        report = self._waiting.popleft()
                        if not self._is_complete:
                            report()

    def _report_end(self, describe: Callable[[bool], TurnEnd], failed: bool) -> None:
        self._is_complete = True
        observers = self._observers
        if RUNNING.id != self._process:
            return
        if failed or observers.is_turn_observed():
            turn = describe(bool(observers))
            observers.turn_ended(self._call, turn, is_relayed=self.is_relayed)
        if self.is_relayed:
            log_relayed_turn(describe(bool(observers)))
