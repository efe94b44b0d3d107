"""Tool calls joined with their results, which come in different messages."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from flux0.domain.enums import EventSource, EventType
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.messages.tool_calls import joined_tool_calls
from flux0.domain.models import (
    ContentPart,
    ControlOptions,
    Event,
    EventData,
    MessageData,
    ToolCall,
    ToolCallPart,
    ToolData,
    ToolResult,
)

SUNNY = ToolResult({"sky": "sunny"}, {}, ControlOptions("auto"))


def message(*parts: Any) -> TurnMessage:
    return TurnMessage("m", "t", EventType.MESSAGE, MessageData(parts))


def results(*calls: ToolCall) -> TurnMessage:
    return TurnMessage("r", "t", EventType.TOOL, ToolData(calls))


def asked(call_id: Any, tool: str = "weather") -> ToolCallPart:
    return ToolCallPart(call_id, tool, {"city": "SF"})


def open_call(call_id: Any, tool: str = "weather") -> ToolCall:
    return ToolCall(call_id, tool, {"city": "SF"})


def answered(call_id: Any, tool: str = "weather", result: ToolResult | None = SUNNY) -> ToolCall:
    return ToolCall(call_id, tool, {"city": "SF"}, result)


def test_a_call_has_its_result_once_that_is_there() -> None:
    call = message(asked("1"))

    assert joined_tool_calls([call]) == (open_call("1"),)
    assert joined_tool_calls([call, results(answered("1"))]) == (answered("1"),)
    assert joined_tool_calls(iter([results(answered("1")), call])) == (answered("1"),)


def test_calls_come_in_the_order_in_which_they_were_asked_for() -> None:
    messages = [
        message(asked("1"), ContentPart("and"), asked("2", "time")),
        results(answered("3"), answered("2", "time")),
        message(asked("3")),
    ]

    assert joined_tool_calls(messages) == (open_call("1"), answered("2", "time"), answered("3"))


def test_a_result_that_nobody_asked_for_is_no_call() -> None:
    assert joined_tool_calls([results(answered("1"))]) == ()


def test_other_parts_and_other_data_are_no_calls() -> None:
    unknown: dict[str, Any] = {
        "type": "function",
        "tool_call_id": "1",
        "tool_name": "weather",
        "args": {},
    }

    assert joined_tool_calls([message(ContentPart("hi"), unknown)]) == ()
    assert joined_tool_calls([event({"type": "newer", "parts": []})]) == ()
    assert joined_tool_calls([]) == ()


def test_of_several_results_the_last_counts() -> None:
    error = ToolCall("1", "weather", {}, error="too late")

    assert joined_tool_calls([message(asked("1")), results(answered("1"), error)]) == (error,)


def event(data: EventData) -> Event:
    return Event(
        id="e",
        correlation_id="t",
        type=EventType.MESSAGE,
        source=EventSource.AI_AGENT,
        offset=0,
        data=data,
        deleted=False,
        created_at=datetime(2026, 1, 1, tzinfo=timezone.utc),
    )


def test_stored_events_and_live_messages_are_joined_alike() -> None:
    stored = event(MessageData((asked("1"),)))

    assert joined_tool_calls([stored, results(answered("1"))]) == (answered("1"),)
    assert joined_tool_calls([message(asked("1")), event(ToolData((answered("1"),)))]) == (
        answered("1"),
    )


def test_an_agent_may_name_its_calls_by_anything() -> None:
    for odd in (["1"], {"id": 1}, 1, None):
        messages = [message(asked(odd), asked("1")), results(answered(odd), answered("1"))]

        assert joined_tool_calls(messages) == (open_call(odd), answered("1"))
