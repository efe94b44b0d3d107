"""Events of a stream: `to_sse`, the form in which the server sends them."""

from __future__ import annotations

import json
import pickle
from typing import Any, cast

import pytest
from attrs import evolve

from flux0 import ChunkEvent, StatusEvent, UnknownEvent
from flux0.domain.stored_models import StatusData
from flux0.domain.stream_events import JSONPatchOperation, StreamEvent
from support.in_memory import chunk, events_of, frame, status
from unit.domain.messages.test_accumulator import CASES

CHUNK: dict[str, Any] = json.loads(chunk("a").split(b"data: ")[1])
OFFSET: dict[str, Any] = {
    "id": "x",
    "source": "ai_agent",
    "type": "status",
    "correlation_id": "c",
    "data": {"type": "status", "status": "ok", "acknowledged_offset": 0, "data": {}},
    "metadata": {"a": 1},
}


@pytest.mark.parametrize(
    "event",
    [
        ChunkEvent(
            "RID(1)::2",
            "m1",
            3,
            (
                JSONPatchOperation("add", "/-", {"é": [1, None, "\u2028\n"]}),
                JSONPatchOperation("move", "/a", from_="/b"),
                JSONPatchOperation("remove", "/a"),
            ),
            {"agent_name": "Drizzle"},
            1795559230.7,
        ),
        ChunkEvent("c", "m", 0, (), {}),
        *events_of(
            status("processing", {"detail": "x"}) + status("typing") + frame("status", OFFSET)
        ),
        *events_of(frame("status", {**OFFSET, "timestamp": 1795559230.7})),
        UnknownEvent("note", "one\ntwo\n", "7"),
        UnknownEvent("message", ""),
    ],
)
def test_to_sse_can_be_parsed_back_to_the_event(event: StreamEvent) -> None:
    if event == UnknownEvent("message", ""):
        assert (
            event.to_sse() == b"event: message\ndata: \n\n"
        )  # Parsers ignore an event with empty data.
    else:
        assert events_of(event.to_sse()) == [event]
        assert events_of(evolve(event).to_sse()) == [event]


def test_to_sse_has_the_same_bytes_as_the_server() -> None:
    for case in CASES:
        for block in case["wire"].split("\n\n")[:-1]:
            written = f"{block}\n\n".encode()
            (event,) = events_of(written)
            assert event.to_sse() == evolve(event).to_sse() == written


def test_nan_and_infinity_become_null_because_browsers_cannot_parse_them() -> None:
    patch = b'{"op": "add", "path": "/-", "value": [1e999, {"a": NaN}]}'
    data = json.dumps({**CHUNK, "patches": ["patch"], "metadata": {"b": -1e999}}).encode()
    (event,) = events_of(b"event: chunk\ndata: " + data.replace(b'"patch"', patch) + b"\n\n")
    (unknown,) = events_of(b"event: note\ndata: NaN\n\n")

    written = event.to_sse().partition(b"data: ")[2]
    assert (
        written
        == data.replace(
            b'"patch"', b'{"op": "add", "path": "/-", "value": [null, {"a": null}]}'
        ).replace(b"-Infinity", b"null")
        + b"\n\n"
    )
    assert unknown.to_sse() == b"event: note\ndata: NaN\n\n", "its data may not be JSON"


def test_unknown_members_are_kept_by_to_sse_also_in_changed_and_unpickled_events() -> None:
    patch = {"op": "add", "path": "/-", "value": "a", "hint": 1}
    data = {"type": "status", "status": "ok", "hint": [1]}
    for written in (
        frame("chunk", {**CHUNK, "patches": [patch], "mode": {"new": [1]}}),
        frame("status", {**OFFSET, "data": data, "timestamp": 1.5, "new": None}).replace(
            b"data:", b"id: x\ndata:"
        ),
    ):
        (event,) = events_of(written)
        assert event.to_sse() == written
        assert pickle.loads(pickle.dumps(event)).to_sse() == written  # noqa: S301 - pickled above
        changed = evolve(cast("Any", event), correlation_id="other")
        assert json.loads(changed.to_sse().split(b"data: ")[1]) == {
            **json.loads(written.split(b"data: ")[1]),
            "correlation_id": "other",
        }


def test_members_without_a_value_are_left_out() -> None:
    assert b"null" not in ChunkEvent("c", "m", 0, (), {}).to_sse()
    plain = StatusEvent("", "c", "ai_agent", StatusData("ok"))
    assert json.loads(plain.to_sse().partition(b"data: ")[2]) == {
        "id": "",
        "source": "ai_agent",
        "type": "status",
        "correlation_id": "c",
        "data": {"type": "status", "status": "ok"},
        "metadata": None,
    }


ID_OF = [("", b""), ("7", b"7"), ("x\nevent: chunk", None), ("\u2028", None), ("é", "é".encode())]


@pytest.mark.parametrize(("id", "sent"), ID_OF)
def test_id_of_a_status_is_sent_unless_it_could_add_a_line(id: str, sent: bytes | None) -> None:
    (event,) = events_of(frame("status", {**OFFSET, "id": id}))
    assert isinstance(event, StatusEvent)
    fields = event.to_sse().split(b"\ndata: ")[0].split(b"\n")
    assert fields == [b"event: status", *([] if sent is None else [b"id: " + sent])]
    assert event.to_sse("3").startswith(b"event: status\nid: 3\ndata: ")
