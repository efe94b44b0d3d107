"""Reports the first event and the end of a turn to the observers and the log."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Lock

from flux0.domain.stored_models import Participant
from flux0.flows import CallRequest
from flux0.middleware.observing import Observers
from flux0.observers import TurnEnd
from flux0.runtime.processes import OwnerProcess


class TurnReport:
    """Reports one turn to the observers. Its times are measured from its creation.

    Attributes:
        session_id: The id of the session.
        agent: The agent; None if only the first chunk event names it.
        clock: Returns the current time in seconds.
        seconds_to_first_event: The time until the first event; None before the first event.
        seconds: The time until the end of the turn; None before the end.
    """

    def __init__(
        self, observers: Observers, request: CallRequest, session_id: str, agent: Participant
    ) -> None:
        self._observers = observers
        self._request = request
        self.clock: Callable[[], float] = observers.clock
        self._start = self.clock()
        self._once = Lock()
        self._owner = OwnerProcess()
        self.session_id: str = session_id
        self.agent: Participant = agent
        self.seconds_to_first_event: float | None = None
        self.seconds: float | None = None
        observers.flush()

    def unconfirmed_end(self) -> None:
        """Log a warning that the end of the turn is not confirmed, once for each client."""
        self._observers.unconfirmed_end()

    def first_event(self) -> None:
        """Report the first event of the turn to the observers."""
        self.seconds_to_first_event = self.clock() - self._start
        self._observers.first_event(self._request.call, self.seconds_to_first_event)

    def end(self, describe: Callable[[bool], TurnEnd], *, later: bool) -> None:
        """Report the end of the turn, unless the end was reported already.

        A forked child does not report the turns of its parent, because the parent reports them.

        Args:
            describe: Returns the `TurnEnd`, which contains the messages if the argument is True.
            later: Pass True if the garbage collector may be calling. Then the observers are called
                later, because they may wait for locks.
        """
        if not self._once.acquire(blocking=False):
            return
        self.seconds = self.clock() - self._start
        observers = self._observers
        if later or observers.is_turn_observed():
            report = partial(self._report, describe(bool(observers)))
            if later:
                observers.postpone(report)
            else:
                report()

    def _report(self, turn: TurnEnd) -> None:
        if not self._owner.is_inherited():
            self._observers.turn_ended(self._request.call, turn)
