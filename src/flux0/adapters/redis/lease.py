"""The lease of this process, and the leases of the processes whose turns it follows."""

from __future__ import annotations

from logging import getLogger
from time import monotonic
from typing import Final, final

from attrs import define, field

from flux0.adapters.redis.followed import FollowedTurn
from flux0.adapters.redis.worker import SharedObjects, Steps

_UNREACHABLE: Final = "Redis cannot be reached: relays of background turns wait in other processes"
_REACHABLE: Final = "Redis can be reached again"


@final
@define(eq=False)
class LeaseJob:
    """Renews the lease of this process, and ends the turns of other processes that are lost.

    It runs while this process reads or follows a turn.
    """

    _shared: SharedObjects
    is_repeated: bool = False
    _count: int = 0
    # For each process: the counter of its lease, and when it changed last.
    _seen: dict[str, tuple[object, float]] = field(factory=dict[str, "tuple[object, float]"])
    _is_reachable: bool = True

    @property
    def followed(self) -> list[FollowedTurn]:
        turns = self._shared.turns.copy().values()
        return [turn for turn in turns if isinstance(turn, FollowedTurn)]

    def steps(self) -> Steps[None]:
        worker, times = self._shared.worker, self._shared.times
        try:
            yield from self.renew()
            running = [turn for turn in self.followed if turn.is_running]
            seen, self._seen = self._seen, {}
            for process in {turn.process for turn in running}:
                count, now = (yield self._shared.commands.lease(process)), monotonic()
                last, since = seen.get(process, (None, now))
                # The key of an expired lease is missing: the process has not renewed it.
                self._seen[process] = count, since if count in (last, None) else now
                if now - self._seen[process][1] >= times.expiry:
                    for turn in running:
                        turn.lose(process)
        except Exception as error:  # noqa: BLE001 - the client may be of another library
            self._seen = {}  # Meanwhile, the processes cannot renew their leases, either.
            if self._is_reachable:
                # A log record must not refer to the error, whose traceback refers to turns.
                getLogger("flux0").warning("%s: %s", _UNREACHABLE, str(error.__cause__ or error))
            self._is_reachable = False
            worker.retry(self)
            return
        if not self._is_reachable:
            getLogger("flux0").info(_REACHABLE)
        self._is_reachable = True
        if running or len(self._shared.turns) > len(self.followed):
            worker.set_timer(self, times.renew)

    def renew(self) -> Steps[None]:
        self._count += 1
        expected = self._count
        count: int = yield self._shared.commands.renew()
        if count != expected:
            self._count = count
            for turn in self._shared.turns.copy().values():
                self._shared.worker.submit(turn)
