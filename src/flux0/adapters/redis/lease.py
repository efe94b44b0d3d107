"""This process's lease in Redis, and the leases of processes whose turns this process copies."""

from __future__ import annotations

from logging import getLogger
from time import monotonic
from typing import Final, final

from attrs import define, field

from flux0.adapters.redis import scripts
from flux0.adapters.redis.commands import run_script
from flux0.adapters.redis.followed import FollowedTurn
from flux0.adapters.redis.published import PublishedTurn
from flux0.adapters.redis.worker import Steps, Worker

_UNREACHABLE: Final = "Redis cannot be reached: relays of background turns wait in other processes"
_REACHABLE: Final = "Redis can be reached again"


@final
@define(eq=False)
class Lease:
    """Renews this process's lease in Redis, and ends turns whose reading process has no lease.

    A lease is a key that expires if its process does not renew it.

    Args:
        worker: The worker whose thread runs the method `steps`.
        published: The turns that this process reads, by their keys in Redis.
        followed: The turns that other processes read, and that this process copies, by their keys.
    """

    _worker: Worker
    _published: dict[str, PublishedTurn]
    _followed: dict[str, FollowedTurn]
    _count: int = 0
    # `_seen` maps each other process to its lease's counter, and to the time of the last change.
    _seen: dict[str, tuple[object, float]] = field(factory=dict[str, "tuple[object, float]"])
    _is_reachable: bool = True

    def steps(self) -> Steps[None]:
        settings = self._worker.settings
        try:
            yield from self.renew()
            running = [turn for turn in self._followed.values() if turn.is_running]
            seen, self._seen = self._seen, {}
            for process in {turn.process for turn in running}:
                count, now = (yield ("GET", process)), monotonic()
                last, since = seen.get(process, (None, now))
                # `count` is the counter in the lease of `process`. Each renewal changes `count`. If
                # the lease has expired, `count` is None.
                self._seen[process] = count, since if count in (last, None) else now
                if now - self._seen[process][1] >= settings.expiry:
                    for turn in running:
                        turn.lose(process)
        except Exception as error:
            # While Redis is unreachable, no process can renew its lease. When Redis is reachable
            # again, each process has the full time of a lease to renew it.
            self._seen = {}
            if self._is_reachable:
                # Log the text instead of the error: an application can store the log record, and
                # the traceback of a stored error keeps turns in memory.
                getLogger("flux0").warning("%s: %s", _UNREACHABLE, str(error.__cause__ or error))
            self._is_reachable = False
            raise
        if not self._is_reachable:
            getLogger("flux0").info(_REACHABLE)
        self._is_reachable = True
        if running or self._published:
            self._worker.set_timer(self.steps, settings.renew)

    def renew(self) -> Steps[None]:
        settings = self._worker.settings
        self._count += 1
        count, expiry_ms = self._count, round(settings.expiry * 1000)
        previous = yield run_script(scripts.RENEW, (settings.process,), count, expiry_ms)
        # The previous renewal has stored the counter `count - 1` in Redis. If the counter in Redis
        # is lower, Redis may have lost data. Publish and follow all turns again.
        if int(previous or 0) < count - 1:
            for turns in (self._published, self._followed):
                for turn in turns.values():
                    self._worker.submit(turn.steps)
