"""A turn that another process reads, and its copy in this process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any, Final, final
from weakref import ref

from flux0.adapters.redis.commands import TurnName, as_bytes
from flux0.adapters.redis.worker import SharedObjects, Steps
from flux0.domain.errors import Flux0Error, ReaderLost, TurnStoreError
from flux0.runtime.turn_log import LogEnd, TurnLog

# A server-sent event ends with a blank line, and contains no other blank line.
_END_OF_EVENT: Final = b"\n\n"
# After the announced end of a lease, Redis may need a moment to expire its key.
_EXPIRY_SECONDS: Final = 0.005

_READER_LOST: Final = "the process that read the turn has ended, or it cannot reach Redis"
_EVENTS_LOST: Final = "Redis no longer has all events of the turn"
_UNREACHABLE: Final = "Redis, which has the events of the turn, could not be reached"


@final
class FollowedTurn:
    """A turn that another process reads. All readers in this process share one copy of its log.

    Args:
        name: The name of the turn.
        log: The copy of its log. It grows until the turn has ended, or until it is unreferenced.
        shared: The objects that all turns of this process share.
        followed: The turns that this process follows. The turn removes itself when its copy is
            unreferenced.

    Attributes:
        log: Returns the copy, or None if it is unreferenced.
    """

    is_repeated: bool = True

    def __init__(
        self, name: TurnName, log: TurnLog, shared: SharedObjects, followed: dict[str, FollowedTurn]
    ) -> None:
        self.log: Callable[[], TurnLog | None] = ref(log, lambda _: shared.worker.submit(self))
        self.name: TurnName = name
        self._commands = shared.commands
        self._worker = shared.worker
        self._lease = shared.lease
        self._followed = followed
        self._failing_since: float | None = None
        self._missing_since: float | None = None

    def steps(self) -> Steps[None]:
        """Read all events that the copy does not have yet, and the end."""
        while (log := self.log()) is not None and not log.is_ended:
            first = log.last + 1
            del log  # Keep no reference while Redis is asked: the copy may be unreferenced.
            try:
                reply = yield self._commands.read(self.name, first)
                is_continued = self.update(reply)
            except Exception:  # noqa: BLE001 - the client may be of another library
                self._record_failure()
                return
            self._failing_since = None
            if not is_continued:
                return
        self._worker.cancel_timer(self)
        # A newer copy of the same turn may have replaced this copy.
        if log is None and self._followed.get(self.name.id) is self:
            del self._followed[self.name.id]
            with suppress(Exception):  # After a failure, the key expires.
                yield self._commands.leave(self.name)

    def update(self, reply: Any) -> bool:
        """Add the content of a reply to `Commands.read`. Return whether `steps` must continue."""
        log = self.log()
        if log is None:
            return True
        lease_ms = 0
        if reply:
            _, last, end, lease_ms, entries = reply
            has_grown = _extend(log, entries)
            if log.last < int(last):
                if not has_grown:
                    self.give_up(TurnStoreError(_EVENTS_LOST))
                return has_grown
            if end:
                log.finish(LogEnd.from_json(as_bytes(end)))
                return True
        self._check_lease(lease_ms / 1000)
        return False

    def give_up(self, error: Flux0Error) -> None:
        """End the copy, although the turn may be running. Safe in any thread."""
        log = self.log()
        if log is not None:
            error.sent = "maybe"
            log.finish(LogEnd(error, is_of_copy=True))

    def check_failure(self, seconds: float) -> None:
        """End the copy if Redis has been unreachable for too long. Safe in any thread."""
        if seconds >= self._lease.total_seconds:
            self.give_up(TurnStoreError(_UNREACHABLE))

    def _record_failure(self) -> None:
        now = monotonic()
        if self._failing_since is None:
            self._failing_since = now
        self._worker.retry(self)
        self.check_failure(now - self._failing_since)

    def _check_lease(self, seconds: float) -> None:
        """Look again when the lease may have expired. End the copy if it is missing for too long.

        Redis may have been unreachable. Then the reader needs some time to renew the lease.
        """
        now = monotonic()
        if seconds > 0:
            self._missing_since = None
            self._worker.set_timer(self, seconds + _EXPIRY_SECONDS)
            return
        if self._missing_since is None:
            self._missing_since = now
        left = self._missing_since + self._lease.grace_seconds - now
        if left > 0:
            self._worker.set_timer(self, min(left, self._lease.renew_seconds))
        else:
            self.give_up(ReaderLost(_READER_LOST))


def _extend(log: TurnLog, entries: Any) -> bool:
    """Add the events in the entries of the stream. Return whether there was a new event."""
    last = log.last
    for id_, events in zip(entries[::2], entries[1::2], strict=True):
        number = int(as_bytes(id_).partition(b"-")[0])
        new = [event + _END_OF_EVENT for event in as_bytes(events).split(_END_OF_EVENT)[:-1]]
        known = max(log.last + 1 - number, 0)
        if known < len(new):
            log.extend(number + known, new[known:])
    return log.last > last
