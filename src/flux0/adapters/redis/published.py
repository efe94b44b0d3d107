"""A turn that this process reads, and that it publishes in Redis."""

from __future__ import annotations

from functools import partial
from typing import Final, final

from attrs import define, field

from flux0.adapters.redis.commands import Batch, TurnName, as_bytes, stop_request
from flux0.adapters.redis.worker import SharedObjects, Steps
from flux0.runtime.processes import run_in_new_thread
from flux0.runtime.turn_log import TurnLog

_REPLACED: Final = "another turn of the session was started while Redis could not be reached"


@final
@define(eq=False)
class PublishedTurn:
    """A turn that this process reads. Its log is copied to Redis, in batches.

    Args:
        name: The name of the turn.
        log: The log of the turn.
        shared: The objects that all turns of this process share.
        published: The turns of this process. The turn removes itself when Redis has its end.

    Attributes:
        name: The name of the turn.
        log: The log of the turn.
        is_released: Whether the session must not have this turn.
    """

    name: TurnName
    log: TurnLog
    _shared: SharedObjects
    _published: dict[str, PublishedTurn]
    is_released: bool = False
    is_repeated: bool = True
    _sent: int = 0
    _is_watching: bool = False
    _stop_request: bytes = b""
    _replaced: bytes = field(factory=partial(stop_request, _REPLACED))

    def steps(self) -> Steps[None]:
        """Send all events that Redis does not have yet, and the end. Renew the lease."""
        while self.name.id in self._published:
            self._watch()
            try:
                batch = self._next_batch()
                reply = yield self._shared.commands.append(
                    self.name,
                    self.log.max_bytes,
                    batch,
                    is_released=self.is_released,
                    replaced=self._replaced,
                )
            except Exception:  # noqa: BLE001 - the client may be of another library
                self._shared.worker.retry(self)
                return
            self._sent = int(reply[0])
            self._obey(as_bytes(reply[1]))
            if batch.end and self._sent == batch.last:
                self._shared.worker.cancel_timer(self)
                self._published.pop(self.name.id, None)
            elif self._sent == batch.last and not batch.is_cut:
                self._shared.worker.set_timer(self, self._shared.lease.renew_seconds)
                # `_on_change` may have been called before the command was sent.
                if self.log.has_more(self._sent):
                    self._shared.worker.submit(self)
                return

    def _watch(self) -> None:
        if not self._is_watching:
            self._is_watching = True
            self.log.on_change(self._on_change)

    def _on_change(self) -> None:
        self._is_watching = False
        self._shared.worker.submit(self)

    def _next_batch(self) -> Batch:
        end = self.log.end  # Get the end first: after the end, no event is added.
        kept = self.log.first
        after = max(self._sent, kept - 1)
        events = self.log.read(after)  # Raises an error if events were dropped since then.
        last = after + len(events) if events else self._sent
        is_cut = last < self.log.last
        encoded_end = b"" if end is None or is_cut else end.to_json()
        return Batch(self._sent, after + 1, last, b"".join(events), kept, encoded_end, is_cut)

    def _obey(self, request: bytes) -> None:
        """Stop the turn if this was requested, and not before."""
        if request not in (b"", self._stop_request):
            self._stop_request = request
            reason = request.partition(b" ")[2].decode()
            # The function may block: the stream is closed.
            run_in_new_thread(partial(self.log.stop, reason))
