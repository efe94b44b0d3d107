"""This process's lease in Redis, and the leases of processes whose turns this process copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

from attrs import define, field

from flux0.adapters.redis import scripts
from flux0.adapters.redis.commands import run_script
from flux0.adapters.redis.followed import FollowedTurn
from flux0.adapters.redis.outage import Outage
from flux0.adapters.redis.published import PublishedTurn
from flux0.adapters.redis.worker import Steps, Worker
from flux0.domain.background_errors import TurnStoreError

_UNREACHABLE: Final = "Redis cannot be reached: relays of background turns wait in other processes"
_REACHABLE: Final = "Redis can be reached again"


@final
@define(eq=False)
class Lease:
    """Renews this process's lease in Redis, and ends turns whose reading process has no lease.

    A lease is a key that expires if its process does not renew it. The renewal also shows whether
    Redis accepts commands, because it changes only a key of this process.

    Args:
        worker: The worker whose thread runs the method `steps`.
        published: The turns that this process reads, by their keys in Redis.
        followed: The turns that other processes read, and that this process copies, by their keys.
        on_recovery: A function that is called if Redis accepts the renewal after an outage.

    Attributes:
        outage: Since when Redis does not accept the renewal.
    """

    _worker: Worker
    _published: dict[str, PublishedTurn]
    _followed: dict[str, FollowedTurn]
    _on_recovery: Callable[[], object]
    outage: Outage = field(init=False)
    _count: int = field(default=0, init=False)
    # `_others` maps each other process to its lease's counter, and to the time since when the
    # process has not changed the counter.
    _others: dict[str, tuple[object, Outage]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.outage = Outage(self._worker.clock, _REACHABLE)
        self._others = {}

    def steps(self) -> Steps[None]:
        settings = self._worker.settings
        # Without turns, the lease is renewed only during an outage, so that its end is noticed.
        has_failed = self.outage.error or self._worker.redis.error
        if not (self._has_turns() or (has_failed and not self._worker.is_retired)):
            return
        yield from self.renew()
        running = [turn for turn in self._followed.values() if turn.is_running]
        others, self._others = self._others, {}
        for process in {turn.process for turn in running}:
            known = others.get(process, (None, Outage(self._worker.clock)))
            if (yield from self._check(process, *known)) >= settings.expiry:
                for turn in running:
                    turn.lose(process)
        if running or self._published:
            self._worker.set_timer(self.steps, settings.renew)

    def renew(self) -> Steps[None]:
        """Renew the lease. Raises a `TurnStoreError` if Redis does not accept it.

        After an error, the renewal is repeated until Redis accepts it.
        """
        settings = self._worker.settings
        self._count += 1
        count = self._count
        try:
            key = (settings.process,)
            previous = yield run_script(scripts.RENEW, key, count, settings.expiry_ms)
        except TurnStoreError as error:
            # While Redis is unreachable, no process can renew its lease. When Redis is reachable
            # again, each process has the full time of a lease to renew it.
            self._others = {}
            if not self.outage.error:
                # The copies of turns do not get their events, either: measure since when.
                for copied in self._followed.values():
                    self._worker.submit(copied.steps)
            self.outage.fail(error.problem)
            # The copies may have ended while the renewal waited for a reply.
            if self._published or self._followed:
                self.outage.warn(f"{_UNREACHABLE}: {self._worker.named(error)}")
            if not self._worker.redis.error:
                self._worker.failures += 1
                self._worker.drop_connections()
            self._worker.set_timer(self.steps, settings.renew)
            raise
        if self.outage.respond():
            self._on_recovery()
        # The previous renewal has stored the counter `count - 1` in Redis. If the counter in Redis
        # is lower, Redis may have lost data. Publish and follow all turns again.
        if int(previous or 0) < count - 1:
            for turns in (self._published, self._followed):
                for turn in turns.values():
                    self._worker.submit(turn.steps)

    def is_accepted(self) -> Steps[bool]:
        """Return whether Redis accepts the commands of this process, after one was rejected.

        If Redis accepts the renewal, the rejected command's key is wrong, and not Redis.
        """
        if self._worker.is_unreachable or self.outage.error:
            return False
        try:
            yield from self.renew()
        except TurnStoreError:
            return False
        return True

    def _check(self, process: str, last: object, outage: Outage) -> Steps[float]:
        """Return the seconds since when another process has not renewed its lease."""
        try:
            count = yield "GET", process
        except TurnStoreError:
            if self._worker.is_unreachable:
                raise
            return 0.0
        # `count` is the counter in the lease of `process`. Each renewal changes `count`. If the
        # lease has expired, `count` is None.
        if count not in (last, None):
            outage.respond()
        outage.expect()
        self._others[process] = count, outage
        return outage.seconds

    def _has_turns(self) -> bool:
        return bool(self._published) or any(turn.is_running for turn in self._followed.values())
