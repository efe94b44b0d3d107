"""The bytes that all contestants are given: turns, and lists as the server answers them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_METADATA = {"agent_id": "q8XvYgZc1s", "agent_name": "Drizzle"}
_TURN = "RID(q8XvYgZc1sT0pQe5WnB)::process"
CREATED = "2026-11-25T13:31:36.114237Z"
ENDS = {"LF": b"\n", "CRLF": b"\r\n", "CR": b"\r"}


def chunk(number: int, text: str) -> dict[str, Any]:
    """Return the JSON of one chunk, with a piece of text."""
    return {
        "correlation_id": _TURN,
        "event_id": "r9Sslo7BYr",
        "seq": number,
        "patches": [{"op": "add", "path": "/-", "value": text}],
        "metadata": _METADATA,
        "timestamp": 1795559230.75 + number / 8,
    }


def event(number: int, size: int, end: bytes = b"\n") -> bytes:
    """Return one event of a stream, of `size` bytes."""

    def written(text: str) -> bytes:
        data = json.dumps(chunk(number, text)).encode()
        return b"event: chunk" + end + b"data: " + data + end + end

    words = f"word {number} "
    missing = max(0, size - len(written(words)))
    return written(words + ("lorem ipsum " * (missing // 12 + 1))[:missing])


def turn(size: int, count: int, end: bytes = b"\n") -> list[bytes]:
    """Return the events of a turn, each of `size` bytes."""
    return [event(number, size, end) for number in range(count)]


def pieces(data: bytes, size: int) -> list[bytes]:
    """Return `data` cut into pieces of `size` bytes."""
    return [data[start : start + size] for start in range(0, len(data), size)]


def texts(events: list[bytes]) -> list[str]:
    """Return the JSON of each event."""
    return [each.partition(b"data: ")[2].decode().rstrip() for each in events]


def agents(count: int) -> Iterator[dict[str, Any]]:
    """Return agents as the server lists them."""
    for number in range(count):
        yield {
            "id": f"a{number:09}",
            "name": f"Agent {number}",
            "type": "weather",
            "description": None,
            "created_at": CREATED,
        }


def sessions(count: int) -> Iterator[dict[str, Any]]:
    """Return sessions as the server lists them."""
    for number in range(count):
        yield {
            "id": f"s{number:09}",
            "agent_id": "q8XvYgZc1s",
            "user_id": "anonymous",
            "title": f"Title {number}",
            "consumption_offsets": {"client": number},
            "created_at": CREATED,
        }


def events(count: int) -> Iterator[dict[str, Any]]:
    """Return stored events as the server lists them: each second one is a message."""
    for number in range(count):
        message = number % 2 == 0
        status = {"type": "status", "status": "processing", "data": {"detail": "x"}}
        said: dict[str, Any] = {
            "type": "message",
            "participant": {"id": "q8XvYgZc1s", "name": "Drizzle"},
            "parts": [{"type": "content", "content": f"It rains for the {number}th time."}],
        }
        yield {
            "id": f"e{number:09}",
            "source": "ai_agent",
            "type": "message" if message else "status",
            "offset": number,
            "correlation_id": _TURN,
            "data": said if message else status,
            "metadata": None,
            "deleted": False,
            "created_at": CREATED,
        }


def listing(items: Iterator[dict[str, Any]]) -> bytes:
    """Return the body of the server's answer."""
    return json.dumps({"data": list(items)}, separators=(",", ":")).encode()
