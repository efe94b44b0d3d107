"""The bytes for all libraries: event streams, and lists in the server's format."""

from __future__ import annotations

import json
from itertools import cycle, islice
from typing import Any

ENDS = {"LF": b"\n", "CRLF": b"\r\n", "CR": b"\r"}

_AGENT_ID, _TURN = "q8XvYgZc1s", "RID(q8XvYgZc1sT0pQe5WnB)::process"
# In a list, each `#` is replaced by the item's number.
_CREATED = {"created_at": "2026-11-25T13:31:36.114237Z"}
AGENT = {"id": "a#", "name": "Agent #", "type": "weather", "description": None, **_CREATED}
SESSION = {
    "id": "s#",
    "agent_id": _AGENT_ID,
    "user_id": "anonymous",
    "title": "Title #",
    "consumption_offsets": {"client": 12},
    **_CREATED,
}
_PARTICIPANT = {"id": _AGENT_ID, "name": "Drizzle"}
_PARTS = [{"type": "content", "content": "It rains for the #th time."}]
_DATA = (
    {"type": "message", "participant": _PARTICIPANT, "parts": _PARTS},
    {"type": "status", "status": "processing", "data": {"detail": "#"}},
)
EVENTS = tuple(
    {
        "id": "e#",
        "source": "ai_agent",
        "offset": 123,
        "correlation_id": _TURN,
        "metadata": None,
        "deleted": False,
        **_CREATED,
        "type": data["type"],
        "data": data,
    }
    for data in _DATA
)


def listing(count: int, *kinds: dict[str, Any]) -> bytes:
    """Return the body of a list response with `count` items, which repeat `kinds` in order."""
    items = islice(cycle(json.dumps(kind) for kind in kinds), count)
    numbered = (item.replace("#", f"{number:09}") for number, item in enumerate(items))
    return f'{{"data":[{",".join(numbered)}]}}'.encode()


def chunk(number: int, text: str = "") -> str:
    """Return the JSON of a chunk event, whose text contains its number."""
    patch = {"op": "add", "path": "/-", "value": f"word {number} {text}"}
    return json.dumps(
        {
            "correlation_id": _TURN,
            "event_id": "r9Sslo7BYr",
            "seq": number,
            "patches": [patch],
            "metadata": {"agent_id": _AGENT_ID, "agent_name": "Drizzle"},
            "timestamp": 1795559230.75 + number / 8,
        }
    )


def turn(size: int, count: int, end: bytes = b"\n") -> list[bytes]:
    """Return the events of a turn. Each has about `size` bytes, or more if that is too short."""

    def event(number: int, text: str) -> bytes:
        data = chunk(number, text).encode()
        return b"event: chunk" + end + b"data: " + data + end + end

    text = ("lorem ipsum " * (size // 12 + 1))[: max(0, size - len(event(0, "")))]
    return [event(number, text) for number in range(count)]


def texts(events: list[bytes]) -> list[str]:
    """Return the JSON of each event."""
    return [each.partition(b"data: ")[2].decode().rstrip() for each in events]
