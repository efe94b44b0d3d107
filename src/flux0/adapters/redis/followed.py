"""A turn that another process reads, and its copy in this process."""

from __future__ import annotations

from collections.abc import Callable
from logging import getLogger
from time import monotonic
from typing import Any, Final, final
from weakref import ref

from flux0.adapters.redis.commands import TurnName, as_bytes, as_text
from flux0.adapters.redis.worker import SharedObjects, Steps
from flux0.domain.errors import Flux0Error, ReaderLost, TurnStoreError
from flux0.runtime.turn_log import LogEnd, TurnLog

# A server-sent event ends with a blank line, and contains no other blank line.
_END_OF_EVENT: Final = b"\n\n"

_READER_LOST: Final = "the process that read the turn has ended, or it cannot reach Redis"
_EVENTS_LOST: Final = "Redis no longer has all events of the turn"


@final
class FollowedTurn:
    """A turn that another process reads. All readers in this process share one copy of its log.

    Args:
        name: The name of the turn.
        log: The copy of its log. It grows until the turn has ended, or until it is unreferenced.
        shared: The objects that all turns of this process share. The turn removes itself when its
            copy is unreferenced.

    Attributes:
        log: Returns the copy, or None if it is unreferenced.
        process: The name of the process that reads the turn.
    """

    is_repeated: bool = True

    def __init__(self, name: TurnName, log: TurnLog, shared: SharedObjects) -> None:
        self.log: Callable[[], TurnLog | None] = ref(log, lambda _: shared.worker.submit(self))
        self.process: str = ""
        self._name = name
        self._shared = shared
        self._is_lost = False
        self._missing_since: float | None = None

    @property
    def is_running(self) -> bool:
        log = self.log()
        return log is not None and not log.is_ended

    def steps(self) -> Steps[None]:
        commands, worker, turns = self._shared.commands, self._shared.worker, self._shared.turns
        try:
            while self.is_running:
                if self._is_lost:
                    self._is_lost = False
                    end = LogEnd(ReaderLost(_READER_LOST)).to_json()
                    if (yield commands.lose(self._name, self.process, end)):
                        getLogger("flux0").warning("%s: turn=%s", _READER_LOST, self._name.info)
                # Keep no reference while Redis is asked: the copy may be unreferenced.
                last = log.last if (log := self.log()) else 0
                del log
                reply = yield commands.read(self._name, last + 1)
                if not self.update(reply):
                    if self._missing_since is not None:
                        yield commands.wake(self.process, self._name.info)
                    return
            worker.cancel_timer(self)
            # A newer copy of the same turn may have replaced this copy.
            if self.log() is None and turns.get(self._name.info) is self:
                del turns[self._name.info]
                yield commands.leave(self._name)
        except Exception:  # noqa: BLE001 - the client may be of another library
            if worker.waiting_seconds:
                worker.retry(self)
            else:  # Redis has responded, but with an error, or with invalid data.
                self._wait_for_events()

    def update(self, reply: Any) -> bool:
        """Append the events in a reply to `Commands.read`. Return whether to send it again."""
        log = self.log()
        if log is None:
            return True
        if not reply:
            return self._wait_for_events()
        _, process, last, end, entries = reply
        self.process = as_text(process)
        has_grown = _extend(log, entries)
        if log.last < int(last):
            return has_grown or self._wait_for_events()
        if end:
            log.finish(LogEnd.from_json(as_bytes(end)))
        self._missing_since = None
        return bool(end)

    def give_up(self, error: Flux0Error) -> None:
        """End the copy, although the turn may be running. Safe in any thread."""
        log = self.log()
        if log is not None:
            error.sent = "maybe"
            log.finish(LogEnd(error, is_of_copy=True))

    def lose(self, process: str) -> None:
        """End the turn if this process reads it, because the process is lost."""
        if process == self.process:
            self._is_lost = True
            self._shared.worker.submit(self)

    def _wait_for_events(self) -> bool:
        """Wait until the reading process has restored the events; end the copy if it does not."""
        now = monotonic()
        self._missing_since = self._missing_since or now
        if now - self._missing_since < self._shared.times.expiry:
            self._shared.worker.set_timer(self, self._shared.times.renew)
        else:
            self.give_up(TurnStoreError(_EVENTS_LOST))
        return False


def _extend(log: TurnLog, entries: Any) -> bool:
    last = log.last
    for id_, events in zip(entries[::2], entries[1::2], strict=True):
        number = int(as_bytes(id_).partition(b"-")[0])
        new = [event + _END_OF_EVENT for event in as_bytes(events).split(_END_OF_EVENT)[:-1]]
        known = max(log.last + 1 - number, 0)
        if known < len(new):
            log.extend(number + known, new[known:])
    return log.last > last
