"""A relay format that is easy to compare: one line for each piece of a relay."""

from __future__ import annotations

from flux0.domain.errors import Flux0Error
from flux0.domain.stream_events import ChunkEvent, StatusEvent, StreamEvent
from flux0.relay_format import RelayEncoder, RelayFormat


class PlainFormat(RelayFormat):
    """Writes the text of each chunk and the name of each status; unknown events have no bytes."""

    def encoder(self) -> RelayEncoder:
        """Return a new encoder that numbers the events."""
        return _PlainEncoder()


class _PlainEncoder(RelayEncoder):
    def __init__(self) -> None:
        self._count = 0

    def start(self) -> bytes:
        return b"start\n"

    def event(self, event: StreamEvent) -> bytes:
        self._count += 1
        if isinstance(event, ChunkEvent):
            return f"{self._count} {event.patches[0].value}\n".encode()
        return f"{self._count} {event.status}\n".encode() if isinstance(event, StatusEvent) else b""

    def error(self, error: Flux0Error, number: int | None = None) -> bytes:
        return f"{type(error).__name__} {number}\n".encode()

    def heartbeat(self) -> bytes:
        return b"alive\n"

    def end(self) -> bytes:
        return b"end\n"
