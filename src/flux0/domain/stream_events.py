"""What a turn's stream hands out: status events, chunks, and anything newer than this library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

from attrs import frozen

from flux0.domain.enums import EventSource, SessionStatus
from flux0.domain.models import StatusData


@frozen(weakref_slot=False)
class JSONPatchOperation:
    """One operation of RFC 6902. `value` is plain JSON; operations without one leave it None.

    The server's document allows `add` and `replace`; the others work and reach the wire too. An
    unknown `op` stays as its text.
    """

    op: str
    path: str
    value: Any = None
    from_: str | None = None


@frozen(weakref_slot=False)
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


@frozen
class UnknownEvent:
    """An event whose name this library does not know, with its data as the text that was sent."""

    event: str
    data: str
    id: str = ""


StreamEvent: TypeAlias = ChunkEvent | StatusEvent | UnknownEvent
