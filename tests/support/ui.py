"""Encodes events in the relay formats of chat components."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from flux0.domain.errors import Flux0Error
from flux0.domain.stream_events import (
    ChunkEvent,
    JSONPatchOperation,
    StatusEvent,
    StreamEvent,
)
from flux0.relay_format import RelayFormat
from support.in_memory import CORRELATION_ID, new_turn, status

AGENT = {"agent_id": "a1", "agent_name": "Drizzle"}


def chunk(path: str, *values: Any, event_id: str = "m", **metadata: Any) -> ChunkEvent:
    """Return a chunk that adds each value at `path`."""
    patches = tuple(JSONPatchOperation("add", path, value) for value in values)
    return ChunkEvent(CORRELATION_ID, event_id, 0, patches, {**AGENT, **metadata})


def replaced(value: Any) -> ChunkEvent:
    """Return a chunk that replaces the whole message `m`."""
    return ChunkEvent(CORRELATION_ID, "m", 0, (JSONPatchOperation("replace", "", value),), AGENT)


def text(value: str, event_id: str = "m", **metadata: Any) -> ChunkEvent:
    """Return a chunk that appends `value` to the answer."""
    return chunk("/-", value, event_id=event_id, **metadata)


def call(args: Any, call_id: str = "c", index: int = 0, event_id: str = "calls") -> ChunkEvent:
    """Return a chunk that starts a call to `weather`."""
    value = {"type": "tool_call", "tool_call_id": call_id, "tool_name": "weather", "args": args}
    return chunk(f"/tool_calls/{index}", value, event_id=event_id)


def args(piece: Any, index: int = 0, event_id: str = "calls") -> ChunkEvent:
    """Return a chunk that appends to the arguments of a call."""
    return chunk(f"/tool_calls/{index}/args/-", piece, event_id=event_id)


def result(value: Any, call_id: str = "c", event_id: str = "results") -> ChunkEvent:
    """Return a chunk with the result of a call."""
    item = {"tool_call_id": call_id, "tool_name": "weather", "data": {"result": value}, "args": {}}
    return chunk("/tool_call_results/0", item, event_id=event_id)


def status_event(name: str, data: Any = None) -> StatusEvent:
    """Return a status event."""
    ((event, _),), _ = new_turn().feed(status(name, data))
    assert isinstance(event, StatusEvent)
    return event


def pieces_of(
    format: RelayFormat, events: Iterable[StreamEvent], error: Flux0Error | None = None
) -> list[bytes]:
    """Return the bytes of a relay: for its start, each event, and its end or error."""
    encoder = format.encoder()
    encoded = [encoder.start(), *map(encoder.event, events)]
    return [*encoded, encoder.end() if error is None else encoder.error(error)]


def objects_of(
    format: RelayFormat, *events: StreamEvent, error: Flux0Error | None = None
) -> list[Any]:
    """Return a relay's blocks: JSON objects as dicts, all other blocks as strings."""
    blocks = b"".join(pieces_of(format, events, error)).decode().split("\n\n")
    assert blocks.pop() == ""
    texts = [block.removeprefix("data: ") for block in blocks]
    return [json.loads(text) if text.startswith("{") else text for text in texts]
