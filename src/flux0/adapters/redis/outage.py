"""Since when does a part of Redis not respond? One answer for commands, connections and turns."""

from __future__ import annotations

from logging import getLogger
from time import monotonic
from typing import final

from flux0.adapters.redis.commands import TurnName


@final
class AwakeClock:
    """A clock that stops while the process is suspended, for example by SIGSTOP.

    While a process is suspended, it receives no replies, although Redis responds. The threads of
    the store call `now` more often than once in `longest_step` seconds, unless the process is
    suspended. Therefore, the clock advances at most `longest_step` seconds between two calls.
    """

    def __init__(self, longest_step: float) -> None:
        self._longest_step = longest_step
        # The clock's time and the system's time of the last call are in one tuple, so that threads
        # never combine the values of two calls.
        self._last: tuple[float, float] = 0.0, monotonic()

    def now(self) -> float:
        seconds, last = self._last
        system = monotonic()
        seconds += min(system - last, self._longest_step)
        self._last = seconds, system
        return seconds


@final
class Outage:
    """The time since when one part does not respond, and the log lines about this time.

    A part is Redis, a connection, a turn in Redis, or the lease of another process.
    `expect` starts the outage, and `respond` ends the outage. If the part responds in time, the
    outage lasts only as long as one command.

    Args:
        clock: The clock that measures the time.
        recovery: The text that is logged if the part responds after `warn` was called.
        turn: The turn that `recovery` is about. Its name is added to the text.

    Attributes:
        error: The last error; empty if there was none since the last response.
        is_covered: Whether the warning about another part names the cause of this outage.
    """

    def __init__(self, clock: AwakeClock, recovery: str = "", turn: TurnName | None = None) -> None:
        self._clock = clock
        self._recovery = recovery
        self._turn = turn
        self._since: float | None = None
        self._is_logged = False
        self.error: str = ""
        self.is_covered: bool = False

    @property
    def seconds(self) -> float:
        """The seconds since when the part does not respond; 0 if no response is missing."""
        since = self._since
        return 0.0 if since is None else self._clock.now() - since

    def expect(self) -> None:
        """Record that a response is expected from now on. Does nothing during an outage."""
        if self._since is None:
            self._since = self._clock.now()

    def fail(self, error: str) -> None:
        """Record that the part responded with an error, or not at all."""
        self.expect()
        self.error = error

    def respond(self) -> bool:
        """Record that the part has responded. Return True if there was an error before."""
        had_failed, was_logged = bool(self.error), self._is_logged
        self._since, self._is_logged, self.error, self.is_covered = None, False, "", False
        if was_logged:
            turn = f": {self._turn.shown}" if self._turn else ""
            getLogger("flux0").info("%s%s", self._recovery, turn)
        return had_failed

    def warn(self, problem: str) -> None:
        """Log the problem, once until the part responds.

        The log record contains only text: an application can store the record, and the traceback
        of a stored error keeps turns in memory.
        """
        if not self._is_logged:
            self._is_logged = True
            getLogger("flux0").warning("%s", problem)
