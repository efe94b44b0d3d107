"""What a turn's stream hands out: status events, chunks, and anything newer than this library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

from attrs import frozen

from flux0.domain.enums import EventSource, SessionStatus
from flux0.domain.models import StatusData


@frozen
class JSONPatchOperation:
    """One operation of RFC 6902. `value` is plain JSON; operations without one leave it None.

    The server's document allows `add` and `replace`; the others work and reach the wire too. An
    unknown `op` stays as its text.
    """

    op: str
    path: str
    value: Any = None
    from_: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return this operation as RFC 6902 writes it."""
        has_value = self.value is not None or self.op not in {"remove", "move", "copy"}
        return {
            "op": self.op,
            **({} if self.from_ is None else {"from": self.from_}),
            "path": self.path,
            **({"value": self.value} if has_value else {}),
        }


@frozen
class ChunkEvent:
    """A piece of a message in the making: operations on the document named `event_id`.

    Chunks apply in the order in which they arrive; `seq` is no guide, since some agents send 0
    throughout. `timestamp` is in seconds since 1970, UTC.
    """

    event: ClassVar[str] = "chunk"
    correlation_id: str
    event_id: str
    seq: int
    patches: tuple[JSONPatchOperation, ...]
    metadata: Mapping[str, Any]
    timestamp: float | None = None

    def to_sse(self) -> bytes:
        """Return the event as the server writes it on a stream."""
        data = {
            "correlation_id": self.correlation_id,
            "event_id": self.event_id,
            "seq": self.seq,
            "patches": [patch.to_json() for patch in self.patches],
            "metadata": dict(self.metadata),
            **({} if self.timestamp is None else {"timestamp": self.timestamp}),
        }
        return _written(self.event, data)


@frozen
class StatusEvent:
    """A change in what the agent is doing. `id` is often empty and never a stored event's id."""

    event: ClassVar[str] = "status"
    type: ClassVar[str] = "status"
    id: str
    correlation_id: str
    source: EventSource | str
    data: StatusData
    metadata: Mapping[str, Any] | None = None

    @property
    def status(self) -> SessionStatus | str:
        """The status itself, out of `data`."""
        return self.data.status

    def to_sse(self) -> bytes:
        """Return the event as the server writes it on a stream."""
        offset, more = self.data.acknowledged_offset, self.data.data
        data = {
            "id": self.id,
            "source": self.source,
            "type": self.type,
            "correlation_id": self.correlation_id,
            "data": {
                "type": self.data.type,
                **({} if offset is None else {"acknowledged_offset": offset}),
                "status": self.status,
                **({} if more is None else {"data": more}),
            },
            "metadata": None if self.metadata is None else dict(self.metadata),
        }
        return _written(self.event, data, self.id)


@frozen
class UnknownEvent:
    """An event whose name this library does not know, with its data as the text that was sent."""

    event: str
    data: str
    id: str = ""

    def to_sse(self) -> bytes:
        """Return the event as the server writes it on a stream."""
        return _framed(self.event, self.data, self.id or None)


StreamEvent: TypeAlias = ChunkEvent | StatusEvent | UnknownEvent


def _written(name: str, data: dict[str, Any], id: str | None = None) -> bytes:
    import json  # noqa: PLC0415 - not needed to import this package

    return _framed(name, json.dumps(data), id)


def _framed(name: str, data: str, id: str | None) -> bytes:
    # A name or an id with a line break would begin a field of its own; no stream brings one.
    lines = [
        f"event: {name}",
        *([] if id is None else [f"id: {id}"]),
        *(f"data: {line}" for line in data.split("\n")),
    ]
    return "\n".join((*lines, "\n")).encode()
