"""The thread that waits for messages of other processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from attrs import define, field

from flux0.adapters.redis.commands import as_bytes
from flux0.adapters.redis.worker import RedisClient
from flux0.runtime.waker import Waker


@final
@define(eq=False)
class Listener:
    """Receives the messages of some channels, over one connection.

    Args:
        client: The client of Redis.
        channels: The names of the channels.
        on_message: A function that is called with each message. The message is None if messages may
            have been lost: after each connection and after each failure.
        on_tick: A function that is called regularly.
        tick_seconds: The longest time in seconds between two of these calls.
    """

    _client: RedisClient
    _channels: tuple[str, ...]
    _on_message: Callable[[str | None], object]
    _on_tick: Callable[[], object]
    _tick_seconds: float
    _is_stopped: bool = False
    _stopped: Waker = field(factory=Waker)

    def stop(self) -> None:
        """End `run` after the next message, or after `tick_seconds`."""
        self._is_stopped = True
        self._stopped.wake()

    def run(self) -> None:
        while not self._is_stopped:
            try:
                self._receive()
            except Exception:  # noqa: BLE001 - the client may be of another library
                self._on_message(None)
                self._on_tick()
                self._stopped.wait(self._tick_seconds)

    def _receive(self) -> None:
        subscriber = self._client.pubsub()
        try:
            subscriber.subscribe(*self._channels)
            while not self._is_stopped:
                message = subscriber.get_message(timeout=self._tick_seconds)
                self._on_tick()
                if message is not None:
                    is_message = message["type"] == "message"
                    self._on_message(as_bytes(message["data"]).decode() if is_message else None)
        finally:
            subscriber.close()
