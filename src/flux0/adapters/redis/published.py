"""A turn that this process reads, and that it publishes in Redis."""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import Final, final

from attrs import define

from flux0.adapters.redis.commands import Command, TurnName, as_bytes
from flux0.adapters.redis.worker import SharedObjects, Steps
from flux0.runtime.processes import run_in_new_thread
from flux0.runtime.turn_log import TurnLog

_REPLACED: Final = "another message was sent on the session while Redis had lost this turn"


@final
@define(eq=False)
class PublishedTurn:
    """A turn that this process reads. Its log is copied to Redis, in batches.

    Args:
        name: The name of the turn.
        generation: The generation of its claim, as a number.
        log: The log of the turn.
        shared: The objects that all turns of this process share. The turn removes itself when Redis
            has its end.

    Attributes:
        name: The name of the turn.
        is_released: Whether the session must not have this turn.
    """

    name: TurnName
    _generation: int
    _log: TurnLog
    _shared: SharedObjects
    is_released: bool = False
    is_repeated: bool = True
    _sent: int = 0
    _is_watching: bool = False
    _stop_request: bytes = b""
    _expires: float | None = None

    def log(self) -> TurnLog:
        return self._log

    def steps(self) -> Steps[None]:
        shared = self._shared
        while self.name.info in shared.turns:
            self._watch()
            try:
                last, end, command = self._next_batch()
                reply = yield command
                if not reply:
                    self._sent = 0
                    yield shared.commands.restore(self.name, self._log.max_bytes)
                    continue
            except Exception:  # noqa: BLE001 - the client may be of another library
                self._retry()
                return
            self._sent = int(reply[0])
            self._obey(as_bytes(reply[1]))
            if end and self._sent == last:
                self._remove()
            elif not self._log.has_more(self._sent):
                shared.worker.set_timer(self, shared.times.keep / 3)  # Redis must keep the turn.
                return

    def _retry(self) -> None:
        if self._log.is_ended:
            now = monotonic()
            self._expires = self._expires or now + self._shared.times.keep
            if now > self._expires:
                self._remove()
                return
        self._shared.worker.retry(self)

    def _remove(self) -> None:
        self._shared.worker.cancel_timer(self)
        self._shared.turns.pop(self.name.info, None)

    def _watch(self) -> None:
        if not (self._is_watching or self._log.is_ended):  # An ended log would keep this method.
            self._is_watching = True
            self._log.on_change(self._on_change)

    def _on_change(self) -> None:
        self._is_watching = False
        self._shared.worker.submit(self)

    def _next_batch(self) -> tuple[int, bytes, Command]:
        end = self._log.end  # Get the end first: after the end, no event is added.
        kept = self._log.first
        after = max(self._sent, kept - 1)
        events = self._log.read(after)  # Raises an error if events were dropped since then.
        last = after + len(events) if events else self._sent
        encoded_end = b"" if end is None or last < self._log.last else end.to_json()
        numbers = (self._sent, after + 1, last, kept)
        generation = 0 if self.is_released else self._generation
        append = self._shared.commands.append
        command = append(self.name, generation, numbers, b"".join(events), encoded_end)
        return last, encoded_end, command

    def _obey(self, request: bytes) -> None:
        """Stop the turn if `request` is a new request to stop."""
        if request not in (b"", self._stop_request):
            self._stop_request = request
            reason = request.partition(b" ")[2].decode() or _REPLACED
            # The function may block: the stream is closed.
            run_in_new_thread(partial(self._log.stop, reason))
