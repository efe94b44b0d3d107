"""The events of a turn's stream: status events, chunk events, and events of unknown types.

The attribute `type` distinguishes the classes: `"status"`, `"chunk"` or `"unknown"`. The codec
reads two attributes of each class in the union `StreamEvent`: `event` is the event's name in the
stream, and `type_in_json` says whether the JSON has the member `type` (default: True).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeAlias

from attrs import asdict, frozen

from flux0.domain.enums import EventSource, SessionStatus
from flux0.domain.extensible import Extensible, with_extra
from flux0.domain.stored_models import StatusData


@frozen
class JSONPatchOperation(Extensible):
    """One JSON Patch operation (RFC 6902).

    Agents normally send `add` and `replace`, but may send the other operations, too.

    Attributes:
        op: the operation's name, such as `add`.
        path: a JSON Pointer to the value to change.
        value: plain JSON; None for operations without a value.
        from_: a JSON Pointer to the source; only for `move` and `copy`.
    """

    op: str
    path: str
    value: Any = None
    from_: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return this operation as plain JSON, in the form of RFC 6902."""
        has_value = self.value is not None or self.op not in {"remove", "move", "copy"}
        operation = {
            "op": self.op,
            **({} if self.from_ is None else {"from": self.from_}),
            "path": self.path,
            **({"value": self.value} if has_value else {}),
        }
        return with_extra(operation, self.extra)


@frozen
class ChunkEvent(Extensible):
    """A change to a message that the agent is writing.

    Use `MessageAccumulator` to build messages from chunk events. Chunk events must be applied in
    the order in which they arrive.

    Attributes:
        event: the event's name in the stream, `"chunk"`.
        type: `"chunk"`.
        correlation_id: the id of the event's turn.
        event_id: the message's id in this stream; the stored event has a different id.
        seq: a sequence number. Do not sort by it, because some agents always send 0.
        patches: the operations to apply to the message's JSON document.
        metadata: the agent's name and id, and further details from the agent.
        timestamp: the event's time in seconds since 1970, UTC; None if the server sent none.
    """

    event: ClassVar[str] = "chunk"
    type: ClassVar[Literal["chunk"]] = "chunk"
    type_in_json: ClassVar[bool] = False
    correlation_id: str
    event_id: str
    seq: int
    patches: tuple[JSONPatchOperation, ...]
    metadata: Mapping[str, Any]
    timestamp: float | None = None

    def to_sse(self, id: str | None = None) -> bytes:
        """Encode the event as in the server's stream, including the members in `extra`.

        Args:
            id: The encoded event's field `id`. By default, the event has no such field.
        """
        data = asdict(self, recurse=False, filter=lambda _, value: value is not None)
        data["patches"] = [patch.to_json() for patch in self.patches]
        data["metadata"] = dict(self.metadata)
        return _encoded(self.event, with_extra(data, data.pop("extra")), id)


@frozen
class StatusEvent(Extensible):
    """A change of the agent's status.

    Attributes:
        event: the event's name in the stream, `"status"`.
        type: `"status"`.
        id: the id in the stream, which is often empty. The stored event has a different id.
        correlation_id: the id of the event's turn.
        source: the author, normally `EventSource.AI_AGENT`.
        data: the agent's new status, and its details.
        metadata: further data of the agent, as plain JSON; None if there are none.
        timestamp: the event's time in seconds since 1970, UTC; None if the server sent none.
    """

    event: ClassVar[str] = "status"
    type: ClassVar[Literal["status"]] = "status"
    id: str
    correlation_id: str
    source: EventSource | str
    data: StatusData
    metadata: Mapping[str, Any] | None = None
    timestamp: float | None = None

    @property
    def status(self) -> SessionStatus | str:
        """The status in `data`."""
        return self.data.status

    def to_sse(self, id: str | None = None) -> bytes:
        """Encode the event as in the server's stream, including the members in `extra`.

        Args:
            id: The field `id` of the encoded event. By default, it is the event's id. An id with
                control characters is left out, because line breaks add fields to the event.
        """
        offset, details = self.data.acknowledged_offset, self.data.data
        status = {
            "type": self.data.type,
            **({} if offset is None else {"acknowledged_offset": offset}),
            "status": self.status,
            **({} if details is None else {"data": details}),
        }
        data = {
            "id": self.id,
            "source": self.source,
            "type": self.type,
            "correlation_id": self.correlation_id,
            "data": with_extra(status, self.data.extra),
            "metadata": None if self.metadata is None else dict(self.metadata),
            **({} if self.timestamp is None else {"timestamp": self.timestamp}),
        }
        own = self.id if self.id.isprintable() else None
        return _encoded(self.event, with_extra(data, self.extra), own if id is None else id)


@frozen
class UnknownEvent:
    """An event with a name that flux0 does not know.

    Attributes:
        type: `"unknown"`.
        event: the event's name in the stream.
        data: the event's data as text, which flux0 does not parse.
        id: the event's id in the stream; empty if there is none.
    """

    type: ClassVar[Literal["unknown"]] = "unknown"
    type_in_json: ClassVar[bool] = False
    event: str
    data: str
    id: str = ""

    def to_sse(self, id: str | None = None) -> bytes:
        """Encode the event as in the server's stream.

        Args:
            id: The field `id` of the encoded event. By default, it is the event's id.
        """
        return _framed(self.event, self.data, id or self.id or None)


StreamEvent: TypeAlias = ChunkEvent | StatusEvent | UnknownEvent
"""An event of a stream."""


def _encoded(name: str, data: dict[str, Any], id: str | None) -> bytes:
    from flux0.domain.json_text import json_text  # noqa: PLC0415 - not needed for the import

    return _framed(name, json_text(data), id)


def _framed(name: str, data: str, id: str | None) -> bytes:
    # `name` and `id` are not escaped: the parser and `StatusEvent.to_sse` ensure that neither
    # contains a line break, so neither can add fields to the event.
    lines = [
        f"event: {name}",
        *([] if id is None else [f"id: {id}"]),
        *(f"data: {line}" for line in data.split("\n")),
    ]
    return "\n".join((*lines, "\n")).encode()
