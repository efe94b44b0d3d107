"""`AgUiFormat`: the events of each kind of message, errors, and the run's end."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve

from flux0.adapters.ui import AgUiFormat
from flux0.domain.background_errors import TurnStopped
from flux0.domain.errors import StreamInterrupted
from flux0.domain.stream_events import StreamEvent
from flux0.relay_format import general_text
from support.in_memory import CORRELATION_ID
from support.ui import args, call, chunk, objects_of, result, status_event, text

RUN = {"threadId": "thread", "runId": "run"}
START, FINISH = {"type": "RUN_STARTED", **RUN}, {"type": "RUN_FINISHED", **RUN}
FORMAT = AgUiFormat("thread", "run")
TOOL = {"toolCallId": f"{CORRELATION_ID}/c"}
REASONING_ID, TEXT_ID = f"{CORRELATION_ID}/r-1", f"{CORRELATION_ID}/m-2"
GONE = StreamInterrupted("gone")
IDS = "messageId", "toolCallId"


def events_of(*events: StreamEvent) -> list[Any]:
    """Return the events of a run, without its start and its end."""
    first, *encoded, last = objects_of(FORMAT, *events)
    assert (first, last) == (START, FINISH)
    return encoded


def test_text_and_reasoning_are_streamed_piece_by_piece() -> None:
    assert events_of(text("Hm", "r", kind="reasoning"), text("H"), text("i")) == [
        {"type": "REASONING_START", "messageId": REASONING_ID},
        {
            "type": "REASONING_MESSAGE_START",
            "messageId": REASONING_ID,
            "role": "reasoning",
        },
        {"type": "REASONING_MESSAGE_CONTENT", "messageId": REASONING_ID, "delta": "Hm"},
        {"type": "REASONING_MESSAGE_END", "messageId": REASONING_ID},
        {"type": "REASONING_END", "messageId": REASONING_ID},
        {"type": "TEXT_MESSAGE_START", "messageId": TEXT_ID, "role": "assistant"},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": TEXT_ID, "delta": "H"},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": TEXT_ID, "delta": "i"},
        {"type": "TEXT_MESSAGE_END", "messageId": TEXT_ID},
    ]


@pytest.mark.parametrize(("value", "content"), [("Sunny", "Sunny"), ({"a": 1}, '{"a": 1}')])
def test_tool_call_ends_before_its_result(value: Any, content: str) -> None:
    assert events_of(call({"city": "SF"}), result(value)) == [
        {"type": "TOOL_CALL_START", **TOOL, "toolCallName": "weather"},
        {"type": "TOOL_CALL_ARGS", **TOOL, "delta": '{"city":"SF"}'},
        {"type": "TOOL_CALL_END", **TOOL},
        {
            "type": "TOOL_CALL_RESULT",
            **TOOL,
            "messageId": f"{CORRELATION_ID}/c-result",
            "content": content,
            "role": "tool",
        },
    ]


def test_tool_call_with_invalid_arguments_ends_before_the_run() -> None:
    assert events_of(call([]), args("{"))[-1] == {"type": "TOOL_CALL_END", **TOOL}


def test_json_content_is_an_activity_and_statuses_are_custom_events() -> None:
    assert events_of(status_event("typing"), chunk("/rows", [1])) == [
        {"type": "CUSTOM", "name": "status", "value": {"status": "typing", "data": None}},
        {
            "type": "ACTIVITY_SNAPSHOT",
            "messageId": f"{CORRELATION_ID}/m",
            "activityType": "content",
            "content": {"content": {"rows": [1]}},
        },
    ]


def test_nothing_follows_an_error() -> None:
    events: list[StreamEvent] = [call([]), status_event("error", "no model"), text("lost")]
    problem = "The agent reported an error"
    last = {"type": "RUN_ERROR", "message": problem, "code": "AgentError"}
    assert objects_of(FORMAT, *events)[-2:] == [{"type": "TOOL_CALL_END", **TOOL}, last]
    assert objects_of(FORMAT, *events, error=StreamInterrupted("gone"))[-1] == last


def test_failed_turn_ends_with_a_general_sentence_or_the_text_of_a_function() -> None:
    last = {"type": "RUN_ERROR", "message": general_text(GONE), "code": "StreamInterrupted"}
    assert objects_of(FORMAT, error=GONE) == [START, last]
    shown = AgUiFormat("thread", "run", error_text=lambda error: f"Sorry: {error.problem}")
    assert objects_of(shown, error=GONE) == [START, {**last, "message": "Sorry: gone"}]


def test_stopped_turn_ends_with_a_cancelled_run() -> None:
    *_, end, last = objects_of(FORMAT, text("Half"), error=TurnStopped("the turn was stopped"))
    assert end["type"] == "TEXT_MESSAGE_END"
    assert last == {**FINISH, "outcome": {"type": "cancelled"}}


def test_ids_that_an_agent_uses_again_in_a_later_turn_are_different() -> None:
    events = [call({}), result("Sunny"), chunk("/rows", [1]), text("Hi", "n")]
    later = [evolve(event, correlation_id="later") for event in events]
    first, second = (
        {each[name] for each in objects_of(FORMAT, *turn) for name in IDS if name in each}
        for turn in (events, later)
    )
    assert len(first) == len(second) == 4
    assert not first & second


def test_snapshot_of_the_messages_follows_the_start_of_the_run() -> None:
    messages = [{"id": "1", "role": "user", "content": "Hi"}]
    snapshot = {"type": "MESSAGES_SNAPSHOT", "messages": messages}
    assert objects_of(AgUiFormat("thread", "run", messages=messages)) == [START, snapshot, FINISH]


def test_each_relay_has_its_own_state() -> None:
    assert objects_of(FORMAT, text("a")) == objects_of(FORMAT, text("a"))


def test_empty_list_of_messages_replaces_the_messages_of_the_page() -> None:
    encoder = AgUiFormat("thread", "run", messages=[]).encoder()
    assert b'{"type":"MESSAGES_SNAPSHOT","messages":[]}' in encoder.start()
    assert b"MESSAGES_SNAPSHOT" not in FORMAT.encoder().start()
