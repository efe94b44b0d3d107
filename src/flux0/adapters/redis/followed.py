"""A turn that another process reads, and its copy in this process."""

from __future__ import annotations

from collections.abc import Callable
from logging import getLogger
from time import monotonic
from typing import Any, Final, final
from weakref import ref

from flux0.adapters.redis import scripts
from flux0.adapters.redis.commands import Command, Settings, TurnName, as_bytes, as_text, run_script
from flux0.adapters.redis.worker import Steps, Worker
from flux0.domain.background_errors import ReaderLost, TurnStoreError
from flux0.domain.errors import Flux0Error
from flux0.runtime.turn_log import LogEnd, TurnLog

# Each server-sent event ends with a blank line, and contains no other blank line.
_END_OF_EVENT: Final = b"\n\n"
# One command reads at most this number of entries from a turn's stream in Redis.
_MAX_ENTRIES: Final = 100

_READER_LOST: Final = "the process that read the turn has ended, or it cannot reach Redis"
_EVENTS_LOST: Final = "Redis no longer has all events of the turn"


def read(name: TurnName, process: str, first: int) -> Command:
    """Return the command that reads a turn's events, from the number `first`.

    Redis then notifies `process` of each new event.
    """
    return run_script(scripts.READ, name.keys, process, first, _MAX_ENTRIES)


def lose(info: str, process: str, settings: Settings) -> Command:
    """Return the command that ends a turn with the error `ReaderLost`, if `process` reads it."""
    end = LogEnd(ReaderLost(_READER_LOST)).to_json()
    return run_script(scripts.LOSE, (info, f"{info}:log"), process, end, settings.keep_ms)


@final
class FollowedTurn:
    """A turn that another process reads. All readers in this process share one copy of its log.

    Args:
        name: The turn's name in Redis.
        log: This process's copy of the turn's log. It grows until the turn has ended, or until the
            copy is unreferenced.
        worker: The worker whose thread runs the method `steps`.
        turns: The turns that this process follows. The turn removes itself when its copy is
            unreferenced.

    Attributes:
        log: A function that returns the copy, or None if the copy is unreferenced.
        process: The name of the process that reads the turn.
        is_asked: Whether the process that reads the turn was asked to check the turn. Set it to
            False if the question may have been lost.
    """

    def __init__(
        self, name: TurnName, log: TurnLog, worker: Worker, turns: dict[str, FollowedTurn]
    ) -> None:
        self.log: Callable[[], TurnLog | None] = ref(log, lambda _: worker.submit(self.steps))
        self.process: str = ""
        self._name = name
        self._worker = worker
        self._turns = turns
        self.is_asked: bool = False
        self._is_lost = False
        self._missing_since: float | None = None

    @property
    def is_running(self) -> bool:
        log = self.log()
        return log is not None and not log.is_ended

    def steps(self) -> Steps[None]:
        worker, name, turns = self._worker, self._name, self._turns
        settings = worker.settings
        try:
            while self.is_running:
                if self._is_lost:
                    self._is_lost = False
                    if (yield lose(name.info, self.process, settings)):
                        getLogger("flux0").warning("%s: turn=%s", _READER_LOST, name.info)
                # While the worker waits for Redis, no variable refers to the copied log. Therefore,
                # the copied log is freed when no reader uses it.
                last = log.last if (log := self.log()) else 0
                del log
                if not self.update((yield read(name, settings.process, last + 1))):
                    # Ask the process that reads the turn to check the turn. If this process no
                    # longer knows the turn, it ends the turn in Redis (`_end_lost`). Repeat the
                    # question until the process listens: the reply is the number of listeners.
                    if not self.is_asked:
                        self.is_asked = bool((yield "PUBLISH", self.process, name.info))
                        if not self.is_asked:
                            worker.set_timer(self.steps, settings.renew)
                    return
            # Remove this `FollowedTurn` only if no newer copy of the same turn has replaced it.
            if self.log() is None and turns.get(name.info, self) is self:
                turns.pop(name.info, None)
                yield "HDEL", name.info, f"@{settings.process}"
        except Exception:
            if worker.waiting_seconds:
                raise
            # Redis has responded with an error or with invalid data. Wait until the process that
            # reads the turn has restored the events.
            self._wait_for_events()

    def update(self, reply: Any) -> bool:
        """Append events to this process's copy of the turn's log.

        `reply` is Redis's reply to the command `read`. Return False if the caller must wait before
        it sends the command again.
        """
        log = self.log()
        if log is None:
            return True
        if not reply:
            return self._wait_for_events()
        _, process, last, end, trace_parent, entries = reply
        self.process = as_text(process)
        log.trace_parent = as_text(trace_parent) or None
        has_grown = _extend(log, entries)
        if log.last < int(last):
            return has_grown or self._wait_for_events()
        if end:
            log.finish(LogEnd.from_json(as_bytes(end)))
        self._missing_since = None
        return bool(end)

    def give_up(self, kind: type[Flux0Error], problem: str) -> None:
        """End this process's copy of the turn's log with an error. Safe in any thread.

        The turn may continue in the process that reads it.
        """
        log = self.log()
        if log is not None:
            error = kind(problem)
            error.sent = "maybe"
            log.finish(LogEnd(error, is_of_copy=True))

    def lose(self, process: str) -> None:
        """Schedule the end of this turn, if it was read by the lost process `process`."""
        if process == self.process:
            self._is_lost = True
            self._worker.submit(self.steps)

    def _wait_for_events(self) -> bool:
        settings, now = self._worker.settings, monotonic()
        self._missing_since, self.is_asked = self._missing_since or now, False
        if now - self._missing_since < settings.expiry:
            self._worker.set_timer(self.steps, settings.renew)
        else:
            self.give_up(TurnStoreError, _EVENTS_LOST)
        return False


def _extend(log: TurnLog, entries: Any) -> bool:
    before = log.last
    for id_, (_, data) in entries:
        events = [event + _END_OF_EVENT for event in as_bytes(data).split(_END_OF_EVENT)[:-1]]
        last = int(as_bytes(id_).partition(b"-")[0])
        # After Redis has lost events, the process that reads the turn adds them again, perhaps in
        # other batches. Append only the events that `log` does not have.
        if new := events[max(len(events) - last + log.last, 0) :]:
            log.extend(last + 1 - len(new), new)
    return log.last > before
