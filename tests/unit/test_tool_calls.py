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
CITY = {"city": "SF"}


def message(*parts: Any) -> TurnMessage:
    return TurnMessage("m", "t", EventType.MESSAGE, MessageData(parts))


def results(*calls: ToolCall) -> TurnMessage:
    return TurnMessage("r", "t", EventType.TOOL, ToolData(calls))


def asked(call_id: Any) -> ToolCallPart:
    return ToolCallPart(call_id, "weather", CITY)


def call(call_id: Any, result: ToolResult | None = None) -> ToolCall:
    return ToolCall(call_id, "weather", CITY, result)


def event(data: EventData) -> Event:
    now = datetime(2026, 1, 1, tzinfo=timezone.utc)
    return Event("e", "t", EventType.MESSAGE, EventSource.AI_AGENT, 0, data, False, now)  # noqa: FBT003


def test_a_call_has_its_result_once_that_is_there() -> None:
    answered = call("1", SUNNY)

    assert joined_tool_calls([message(asked("1"))]) == (call("1"),)
    for had_asked in (message(asked("1")), event(MessageData((asked("1"),)))):
        for had_result in (results(answered), event(ToolData((answered,)))):
            assert joined_tool_calls([had_asked, had_result]) == (answered,)
            assert joined_tool_calls(iter([had_result, had_asked])) == (answered,)


def test_calls_come_in_the_order_in_which_they_were_asked_for() -> None:
    second, third = call("2", SUNNY), call("3", SUNNY)
    messages = [
        message(asked("1"), ContentPart("and"), asked("2")),
        results(third, second),
        message(asked("3")),
    ]

    assert joined_tool_calls(messages) == (call("1"), second, third)


def test_a_result_that_nobody_asked_for_other_parts_and_other_data_are_no_calls() -> None:
    unknown: dict[str, Any] = {"type": "function", "tool_call_id": "1", "tool_name": "weather"}

    assert joined_tool_calls([results(call("1", SUNNY))]) == ()
    assert joined_tool_calls([message(ContentPart("hi"), unknown)]) == ()
    assert joined_tool_calls([event({"type": "newer", "parts": []})]) == ()
    assert joined_tool_calls([]) == ()


def test_of_several_results_the_last_counts() -> None:
    error = ToolCall("1", "weather", {}, error="too late")

    assert joined_tool_calls([message(asked("1")), results(call("1", SUNNY), error)]) == (error,)


def test_an_agent_may_name_its_calls_by_anything() -> None:
    for odd in (["1"], {"id": 1}, 1, None):
        messages = [message(asked(odd), asked("1")), results(call(odd, SUNNY), call("1", SUNNY))]

        assert joined_tool_calls(messages) == (call(odd), call("1", SUNNY))
