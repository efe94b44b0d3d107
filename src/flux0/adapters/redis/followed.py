"""A turn that another process reads, and its copy in this process."""

from __future__ import annotations

from collections.abc import Callable
from logging import getLogger
from typing import Any, Final, final
from weakref import ref

from flux0.adapters.redis import scripts
from flux0.adapters.redis.commands import Command, Settings, TurnName, as_bytes, as_text, run_script
from flux0.adapters.redis.outage import Outage
from flux0.adapters.redis.worker import Checked, Steps, Worker
from flux0.domain.background_errors import ReaderLost, TurnStoreError
from flux0.domain.errors import Flux0Error
from flux0.runtime.turn_log import LogEnd, TurnLog

# Each server-sent event ends with a blank line, and contains no other blank line.
_END_OF_EVENT: Final = b"\n\n"
# One command reads at most this number of entries from a turn's stream in Redis.
_MAX_ENTRIES: Final = 100

_READER_LOST: Final = "the process that read the turn has ended, or it cannot reach Redis"
_EVENTS_LOST: Final = "Redis no longer has all events of the turn"
_UNREACHABLE: Final = "Redis, which has the events of the turn, could not be reached"
_UNREADABLE: Final = "a background turn of another process cannot be read from Redis"
_READABLE: Final = "the background turn can be read from Redis again"


def read(name: TurnName, process: str, first: int, reader: str = "", *, asks: bool) -> Command:
    """Return the command that reads a turn's events, from the number `first`.

    Redis then notifies `process` of each new event. If `asks` is True, Redis also asks the process
    `reader` to check the turn.
    """
    values = process, first, _MAX_ENTRIES, int(asks), reader
    return run_script(scripts.READ, name.keys, *values)


def lose(info: str, process: str, settings: Settings) -> Command:
    """Return the command that ends a turn with the error `ReaderLost`, if `process` reads it."""
    # The process may still read the turn, and only be unable to reach Redis.
    end = LogEnd(ReaderLost(_READER_LOST), is_of_copy=True).to_json()
    return run_script(scripts.LOSE, (info, f"{info}:log"), process, end, settings.keep_ms)


@final
class FollowedTurn:
    """A turn that another process reads. All readers in this process share one copy of its log.

    The turn is read when Redis notifies this process of new events, and at least once in each
    lease, because a notification can be lost.

    Args:
        name: The turn's name in Redis.
        log: This process's copy of the turn's log. It grows until the turn has ended, or until the
            copy is unreferenced.
        worker: The worker whose thread runs the method `steps`.
        lease: The lease of this process, which shows whether Redis accepts commands.
        turns: The turns that this process follows. The turn removes itself when its copy is
            unreferenced.

    Attributes:
        log: A function that returns the copy, or None if the copy is unreferenced.
        process: The name of the process that reads the turn.
        outage: Since when Redis has not returned the turn's next events.
    """

    def __init__(
        self,
        name: TurnName,
        log: TurnLog,
        worker: Worker,
        lease: Checked,
        turns: dict[str, FollowedTurn],
    ) -> None:
        self.log: Callable[[], TurnLog | None] = ref(log, lambda _: worker.submit(self.steps))
        self.process: str = ""
        self.outage: Outage = Outage(worker.clock, _READABLE, name)
        self._name = name
        self._worker = worker
        self._lease = lease
        self._turns = turns
        self._is_lost = False
        # After `_asks_at`, the next command that reads the turn also asks the process that reads
        # the turn. A timer reads the turn a whole lease after the last command.
        self._asks_at = 0.0
        # A question that no process has heard is repeated up to this time. Later, the process that
        # reads the turn must have connected, or it listens at another node of a cluster.
        self._repeats_until = worker.clock.now() + worker.settings.lease

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
                # Ask the process that reads the turn to check the turn, because Redis can show an
                # ended turn as running, or miss events. A question can be lost, too: ask again in
                # each lease.
                now = worker.clock.now()
                if asks := now >= self._asks_at:
                    self._ask_later(now)
                command = read(name, settings.process, last + 1, self.process, asks=asks)
                if not self.update((yield command)):
                    return
            # Remove this `FollowedTurn` only if no newer copy of the same turn has replaced it.
            if self.log() is None and turns.get(name.info, self) is self:
                turns.pop(name.info, None)
                yield "HDEL", name.info, f"@{settings.process}"
        except Exception as error:
            self.outage.fail(_UNREACHABLE)
            if not (yield from self._lease.is_accepted()):
                raise
            # The copy may have ended meanwhile, or it is unreferenced, so it has no readers.
            if not self.is_running:
                return
            # Redis has responded with an error or with invalid data. Wait until the process that
            # reads the turn has restored the events.
            worker.report(self.outage, f"{_UNREADABLE}: {name.shown}", error)
            self._wait()

    def update(self, reply: Any) -> bool:
        """Append events to this process's copy of the turn's log.

        `reply` is Redis's reply to the command `read`. Return False if the caller must wait before
        it sends the command again.
        """
        log = self.log()
        if log is None:
            return True
        if not reply:
            return self._miss()
        _, process, last, end, trace_parent, entries, listeners = reply
        self.process = as_text(process)
        log.trace_parent = as_text(trace_parent) or None
        has_grown = _extend(log, entries)
        if log.last < int(last):
            return has_grown or self._miss()
        # If the end is not valid JSON, the data in Redis are wrong, and the outage continues.
        known_end = LogEnd.from_json(as_bytes(end)) if end else None
        self.outage.respond()
        if known_end is not None:
            log.finish(known_end)
            return True
        now = self._worker.clock.now()
        if has_grown and self._asks_at:
            self._ask_later(now)
        if not listeners and now < self._repeats_until:
            return self._wait()
        # Read the turn again, even without a notification.
        self._worker.set_timer(self.steps, self._worker.settings.lease)
        return False

    def ask(self) -> None:
        """Read the turn now, and ask the process that reads it: a question may have been lost."""
        self._asks_at = 0.0
        self._repeats_until = self._worker.clock.now() + self._worker.settings.lease
        self._worker.submit(self.steps)

    def check(self) -> None:
        """End this process's copy if Redis does not respond for its turn. Safe in any thread."""
        if not self.is_running:
            return
        limit, redis = self._worker.settings.give_up, self._worker.redis
        if redis.seconds >= limit:
            self.give_up(TurnStoreError, _UNREACHABLE)
        elif self.outage.seconds >= limit:
            problem = self.outage.error
            if problem == _EVENTS_LOST:
                self.outage.warn(f"{problem}: {self._name.shown}")
            self.give_up(TurnStoreError, problem)

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

    def _ask_later(self, now: float) -> None:
        self._asks_at = now + self._worker.settings.lease / 2

    def _miss(self) -> bool:
        self.outage.fail(_EVENTS_LOST)
        return self._wait()

    def _wait(self) -> bool:
        self._asks_at = 0.0
        self._worker.set_timer(self.steps, self._worker.settings.renew)
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
