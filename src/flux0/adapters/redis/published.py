"""A turn that this process reads from the flux0 server and copies to Redis."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from time import monotonic
from typing import Final, final

from attrs import define, field

from flux0.adapters.redis import scripts
from flux0.adapters.redis.commands import Command, TurnName, as_bytes, run_script
from flux0.adapters.redis.outage import Outage
from flux0.adapters.redis.worker import Checked, Steps, Worker
from flux0.domain.background_errors import TurnStoreError
from flux0.runtime.event_loop import do_nothing
from flux0.runtime.processes import run_in_new_thread
from flux0.runtime.turn_log import TurnLog

_UNPUBLISHED: Final = "a background turn of this process cannot be stored in Redis"
_PUBLISHED: Final = "the background turn can be stored in Redis again"
_REPLACED: Final = "another message was sent on the session while Redis had lost this turn"


@final
@define(eq=False)
class PublishedTurn:
    """A turn that this process reads. Its log is copied to Redis, in batches.

    Args:
        name: The turn's name in Redis.
        generation: A number that is larger than the generations of the session's earlier turns.
        log: The turn's log.
        worker: The worker whose thread runs the method `steps`.
        lease: The lease of this process, which shows whether Redis accepts commands.
        turns: The turns that this process reads, by their keys in Redis. The turn removes itself
            when its end is stored in Redis.

    Attributes:
        name: The turn's name in Redis.
        log: The turn's log.
        is_released: True if the turn's message was not sent, so that the turn is not its session's
            turn.
    """

    name: TurnName
    _generation: int
    log: TurnLog
    _worker: Worker
    _lease: Checked
    _turns: dict[str, PublishedTurn]
    is_released: bool = False
    _sent: int = 0
    _unwatch: Callable[[], object] = do_nothing
    _stop_request: bytes = b""
    _expires: float = inf
    _outage: Outage = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._outage = Outage(self._worker.clock, _PUBLISHED, self.name)

    def steps(self) -> Steps[None]:
        worker = self._worker
        try:
            yield from self._publish()
        except TurnStoreError as error:
            # The worker or a timer repeats `steps`. Until then, a new event must not repeat it.
            self._unwatch()
            if not (yield from self._lease.is_accepted()):
                raise
            self._outage.fail(error.problem)
            worker.report(self._outage, f"{_UNPUBLISHED}: {self.name.shown}", error)
            worker.set_timer(self.steps, worker.settings.renew)

    def _publish(self) -> Steps[None]:
        settings = self._worker.settings
        if self.log.is_ended:
            self._expires = min(self._expires, monotonic() + settings.keep)
        while self.name.info in self._turns and monotonic() < self._expires:
            self._unwatch()
            self._unwatch = self.log.on_change(partial(self._worker.submit, self.steps))
            last, is_end, command = self._next_batch()
            reply = yield command
            if not reply:
                values = self._generation, settings.process, self.log.max_bytes, settings.ttl_ms
                yield run_script(scripts.RESTORE, self.name.keys, *values, settings.everyone)
                continue
            self._outage.respond()
            self._sent = int(reply[0])
            self._obey(as_bytes(reply[1]))
            if is_end and self._sent == last:
                break
            if not self.log.has_more(self._sent):
                # `steps` must run again after some time, even without new events, so that the
                # turn's keys in Redis do not expire.
                self._worker.set_timer(self.steps, settings.keep / 3)
                return
        self._unwatch()
        self._turns.pop(self.name.info, None)

    def _next_batch(self) -> tuple[int, bool, Command]:
        # Read `end` before the events. If `end` is set, no event is added later, so no event is
        # missed.
        end = self.log.end
        kept = self.log.first
        after = max(self._sent, kept - 1)
        # `TurnLog.read` raises an error if the log has dropped the next event.
        events = self.log.read(after)
        last = after + len(events) if events else self._sent
        encoded_end = b"" if end is None or last < self.log.last else end.to_json()
        facts = b"end %s\n" % encoded_end if encoded_end else b""
        if self._sent == 0 and self.log.trace_parent is not None:
            facts += f"trace_parent {self.log.trace_parent}\n".encode()
        settings = self._worker.settings
        command = run_script(
            scripts.APPEND,
            (self.name.session, *self.name.keys),
            0 if self.is_released else self._generation,
            settings.keep_ms if encoded_end else settings.ttl_ms,
            self._sent,
            last,
            kept,
            b"".join(events),
            facts,
        )
        return last, bool(encoded_end), command

    def _obey(self, request: bytes) -> None:
        if request not in (b"", self._stop_request):
            self._stop_request = request
            reason = request.partition(b" ")[2].decode() or _REPLACED
            # Another thread calls `stop`, because closing the stream can block, and the worker's
            # thread must not wait.
            run_in_new_thread(partial(self.log.stop, reason))
