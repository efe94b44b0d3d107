"""The stored events of a fake: messages from chunks, and invalid events."""

from __future__ import annotations

import math
from typing import Any

import pytest

from flux0.models import (
    ChunkEvent,
    ContentPart,
    MessageData,
    ReasoningPart,
)
from flux0.testing import (
    AgentStep,
    FakeTransport,
    Report,
    Say,
    SendChunk,
)
from support.fakes import ask, begin, turn


def add(path: str, value: Any) -> dict[str, Any]:
    return {"op": "add", "path": path, "value": value}


READY = Report("ready", event_id="e1")


def raw(*patches: dict[str, Any], seq: int = 0, **metadata: Any) -> SendChunk:
    return SendChunk("e1", patches, seq, metadata)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([raw(add("/-", "x"))], []),
        ([READY, raw(add("/-", "x")), READY, READY], [ContentPart("x")]),
        ([raw(add("/-", "x")), READY, raw(add("/-", "y")), READY], [*map(ContentPart, "xy")]),
        ([raw(add("/a", 1), seq=5), READY], []),
        (
            [raw(add("/a", 1)), raw(add("/b", 2), seq=2), raw(add("/c", 3), seq=1), READY],
            [ContentPart({"a": 1, "c": 3})],
        ),
        ([raw(add("/a", [])), raw(add("/a/-", 1), seq=7), raw(add("/b", 2), seq=8), READY],
         [ContentPart({"a": [1], "b": 2})]),
        ([raw(add("/a", [])), raw(add("/a/-", 1), add("/b", 2), seq=7), READY],
         [ContentPart({"a": [1], "b": 2})]),
        ([SendChunk("", [add("/-", "x")]), Report("ready")], []),
        ([raw(add("/a", 1), seq=5, kind="reasoning"), raw(add("/a", 2)), READY],
         [ReasoningPart({"a": 2})]),
        ([raw(add("/-", "x"), {"op": "remove", "path": "/9"}), raw(add("/-", "y")), READY],
         [ContentPart("xy")]),
        ([raw(add("/a", 1), {"op": "move", "path": "/b", "from": "/a"}), READY],
         [ContentPart({"b": 1})]),
        ([raw(add("/-", "x"), agent_name=None), READY], []),
    ],
)  # fmt: skip
def test_chunks_become_messages(steps: list[AgentStep], expected: list[Any]) -> None:
    _, stored = turn(FakeTransport(steps))
    said = [event.data for event in stored if isinstance(event.data, MessageData)]
    assert [part for data in said for part in data.parts] == expected


def test_inapplicable_chunks_are_not_streamed() -> None:
    steps = [raw(add("/-", "x"), {"op": "remove", "path": "/9"}), raw(add("/a", 1), seq=9)]
    assert turn(FakeTransport(steps))[0] == []


def test_chunk_metadata_are_merged_with_the_agents() -> None:
    steps: list[AgentStep] = [raw(add("/-", "x"), mood="good", agent_id=None), READY]
    (event,), (stored,) = turn(FakeTransport(steps))
    assert isinstance(event, ChunkEvent)
    assert event.metadata == {"agent_name": "Fake", "mood": "good"}
    assert stored.metadata == {"mood": "good"}


def test_nan_is_streamed_but_stored_as_null() -> None:
    fake, session_id, body = begin([Report("typing", [1e16, math.nan])])
    assert b"[1e+16, NaN]" in b"".join(body)
    listed = ask(fake, "GET", f"/api/sessions/{session_id}/events").body
    assert b"[1e+16,null]" in listed


TOOL_CALL: dict[str, Any] = {
    "type": "tool_call",
    "tool_call_id": "c1",
    "tool_name": "n",
    "args": {},
}


TOOL_RESULT: dict[str, Any] = {**TOOL_CALL, "data": {"result": 1}}


@pytest.mark.parametrize(
    "steps",
    [
        [Report("bogus")],
        [Say("\ud800")],
        [raw(add("/tool_calls", [{**TOOL_CALL, "type": "x"}])), READY],
        [raw(add("/tool_calls", [{**TOOL_CALL, "tool_name": None}])), READY],
        [raw(add("/tool_call_results", [{**TOOL_RESULT, "tool_call_id": 5}])), READY],
        [raw(add("/tool_call_results", [{**TOOL_RESULT, "args": []}])), READY],
    ],
)
def test_one_invalid_event_makes_listing_return_500(steps: list[AgentStep]) -> None:
    fake, session_id, body = begin(steps)
    list(body)
    response = ask(fake, "GET", f"/api/sessions/{session_id}/events")
    assert (response.status_code, response.body) == (500, b"Internal Server Error")
    assert ask(fake, "GET", f"/api/sessions/{session_id}/events?source=user").status_code == 200


def test_events_have_offsets_from_0_and_distinct_increasing_times() -> None:
    """The clock stands still: the agent never waits."""
    fake, session_id, body = begin([Report("typing"), Say("a"), Say("b")])
    list(body)
    events = ask(fake, "GET", f"/api/sessions/{session_id}/events").json["data"]
    assert [event["offset"] for event in events] == [0, 1, 2, 3]
    times = [event["created_at"] for event in events]
    assert times == sorted(set(times))
