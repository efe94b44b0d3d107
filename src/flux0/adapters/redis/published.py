"""A turn that this process reads, and that it publishes in Redis."""

from __future__ import annotations

from functools import partial
from typing import Final, final

from flux0.adapters.redis.commands import Batch, Commands, Lease, TurnName, as_bytes, stop_request
from flux0.adapters.redis.worker import Steps, Worker
from flux0.runtime.processes import run_in_new_thread
from flux0.runtime.turn_log import TurnLog

# The size in bytes after which a batch takes no more events.
_BATCH_BYTES: Final = 64 * 1024
_REPLACED: Final = "another turn of the session was started while Redis could not be reached"


@final
class PublishedTurn:
    """A turn that this process reads. Its log is copied to Redis, in batches.

    Args:
        name: The name of the turn.
        log: The log of the turn.
        commands: Creates the commands of this process.
        worker: Sends the commands.
        lease: The times of the leases of all turns.
        published: The turns of this process. The turn removes itself when Redis has its end.

    Attributes:
        name: The name of the turn.
        log: The log of the turn.
        is_released: Whether the session must not have this turn.
    """

    is_repeated: bool = True

    def __init__(
        self,
        name: TurnName,
        log: TurnLog,
        commands: Commands,
        worker: Worker,
        lease: Lease,
        published: dict[str, PublishedTurn],
    ) -> None:
        self.name: TurnName = name
        self.log: TurnLog = log
        self.is_released: bool = False
        self._commands = commands
        self._worker = worker
        self._lease = lease
        self._published = published
        self._sent = 0
        self._is_watching = False
        self._stop_request = b""
        self._replaced = stop_request(_REPLACED)

    def steps(self) -> Steps[None]:
        """Send all events that Redis does not have yet, and the end. Renew the lease."""
        while True:
            self._watch()
            try:
                batch = self._next_batch()
                reply = yield self._commands.append(
                    self.name,
                    self.log.max_bytes,
                    batch,
                    is_released=self.is_released,
                    replaced=self._replaced,
                )
            except Exception:  # noqa: BLE001 - the client may be of another library
                self._worker.retry(self)
                return
            self._sent = int(reply[0])
            self._obey(as_bytes(reply[1]))
            if batch.end and self._sent == batch.last:
                self._worker.cancel_timer(self)
                self._published.pop(self.name.id, None)
                return
            if self._sent == batch.last and not batch.is_cut:
                # `_on_change` is called after the next event, or was called in the meantime.
                self._worker.set_timer(self, self._lease.renew_seconds)
                return

    def _watch(self) -> None:
        if not self._is_watching:
            self._is_watching = True
            self.log.on_change(self._on_change)

    def _on_change(self) -> None:
        self._is_watching = False
        self._worker.submit(self)

    def _next_batch(self) -> Batch:
        end = self.log.end  # Get the end first: after the end, no event is added.
        kept = self.log.first
        after = max(self._sent, kept - 1)
        available = self.log.read(after)  # Raises an error if events were dropped since then.
        size = count = 0
        for event in available:
            size += len(event)
            count += 1
            if size >= _BATCH_BYTES:
                break
        events = b"".join(available[:count])
        last = after + count if count else self._sent
        is_cut = count < len(available)
        encoded_end = b"" if end is None or is_cut else end.to_json()
        return Batch(self._sent, after + 1, last, events, kept, encoded_end, is_cut)

    def _obey(self, request: bytes) -> None:
        """Stop the turn if this was requested, and not before."""
        if request not in (b"", self._stop_request):
            self._stop_request = request
            reason = request.partition(b" ")[2].decode()
            # The function may block: the stream is closed.
            run_in_new_thread(partial(self.log.stop, reason))
