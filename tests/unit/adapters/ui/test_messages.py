"""`ui_messages` and `ag_ui_messages`: the messages that chat components show."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attrs import evolve

from flux0 import Flux0
from flux0.adapters.ui import ag_ui_messages, ui_messages
from flux0.domain.enums import EventType
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.stored_models import (
    ContentPart,
    ControlOptions,
    Event,
    MessageData,
    ReasoningPart,
    ToolCall,
    ToolCallPart,
    ToolData,
    ToolResult,
)
from flux0.testing import (
    AgentStep,
    CallTool,
    FakeTransport,
    GiveResult,
    Reason,
    Report,
    Say,
    SendChunk,
)
from support.ui import AGENT

TOOL = CallTool("weather", {"city": "SF"}, id="c")
PART: dict[str, Any] = {
    "type": "dynamic-tool",
    "toolCallId": "c",
    "toolName": "weather",
    "input": {"city": "SF"},
    "providerExecuted": True,
}


def history_of(*turns: list[AgentStep]) -> Iterable[Event | TurnMessage]:
    fake = FakeTransport()
    with Flux0(transport=fake) as flux0:
        chat = flux0.conversation(agent=fake.agent_id)
        for steps in turns:
            fake.script(steps)
            chat.ask("Hi")
        return chat.history()


def test_ag_ui_messages_have_each_kind_of_part() -> None:
    json_chunk = SendChunk("m", [{"op": "add", "path": "/rows", "value": [1]}], metadata=AGENT)
    steps: list[AgentStep] = [Reason("Hm"), TOOL, GiveResult(TOOL, {"sky": 1}), Say("Sunny.")]
    steps += [json_chunk, Report("ready", event_id="m")]
    messages = ag_ui_messages(history := list(history_of(steps)))
    call_id = f"{history[0].correlation_id}/c"
    assert len({message.pop("id") for message in messages}) == 6
    function = {"name": "weather", "arguments": '{"city": "SF"}'}
    assert messages == [
        {"role": "user", "content": "Hi"},
        {"role": "reasoning", "content": "Hm"},
        {
            "role": "assistant",
            "toolCalls": [{"id": call_id, "type": "function", "function": function}],
        },
        {"role": "tool", "toolCallId": call_id, "content": '{"sky": 1}'},
        {"role": "assistant", "content": "Sunny."},
        {"role": "activity", "activityType": "content", "content": {"content": {"rows": [1]}}},
    ]


def test_ag_ui_messages_of_a_running_turn_are_left_out() -> None:
    history = history_of([Say("One")], [Say("Two")])
    contents = [message["content"] for message in ag_ui_messages(history, is_running=True)]
    assert contents == ["Hi", "One", "Hi"]
    assert ag_ui_messages([], is_running=True) == []


def messages_of(*turns: list[AgentStep], is_running: bool = False) -> list[dict[str, Any]]:
    return ui_messages(history_of(*turns), is_running=is_running)


def test_turn_becomes_one_message_of_the_user_and_one_of_the_assistant() -> None:
    json_chunk = SendChunk("m", [{"op": "add", "path": "/rows", "value": [1]}], metadata=AGENT)
    steps: list[AgentStep] = [Reason("Hm"), TOOL, GiveResult(TOOL, {"sky": 1}), Say("Sunny.")]
    steps += [json_chunk, Report("ready", event_id="m")]
    user, assistant = messages_of(steps)
    assert user["role"] == "user"
    assert user["parts"] == [{"type": "text", "text": "Hi"}]
    assert assistant["role"] == "assistant"
    assert assistant["parts"] == [
        {"type": "reasoning", "text": "Hm"},
        {**PART, "state": "output-available", "output": {"sky": 1}},
        {"type": "text", "text": "Sunny."},
        {"type": "data-content", "id": assistant["parts"][3]["id"], "data": {"rows": [1]}},
    ]
    assert assistant["parts"][3]["id"]
    assert user["id"] == f"{assistant['id']}-user"


def test_calls_and_results_need_no_partner() -> None:
    (_, call) = messages_of([TOOL])
    (_, result) = messages_of([GiveResult(TOOL, 1)])
    assert call["parts"] == [{**PART, "state": "input-available"}]
    assert result["parts"] == [{**PART, "state": "output-available", "output": 1}]


def test_result_without_a_call_gets_a_call_in_ag_ui() -> None:
    """The relay of the turn adds this call, too. A call of another turn is ignored."""
    _, called, _, added, result = ag_ui_messages(history_of([TOOL], [GiveResult(TOOL, "fog")]))
    (old,), (new,) = called["toolCalls"], added["toolCalls"]
    assert new["function"] == old["function"]
    assert new["id"] != old["id"]  # Each turn has its own ids.
    assert added["id"] != result["id"]
    assert (result["toolCallId"], result["content"]) == (new["id"], "fog")


def test_calls_with_one_id_get_their_own_results() -> None:
    other = CallTool("weather", {"city": "LA"}, id="c")
    steps: list[AgentStep] = [TOOL, GiveResult(TOOL, "foggy"), other, GiveResult(other, "sunny")]
    (_, assistant) = messages_of(steps)
    shown = [(part["input"]["city"], part["output"]) for part in assistant["parts"]]
    assert shown == [("SF", "foggy"), ("LA", "sunny")]


def test_messages_of_a_running_turn_are_left_out() -> None:
    turns: list[list[AgentStep]] = [[Say("One")], [Say("Two")]]
    roles = [message["role"] for message in messages_of(*turns)]
    assert roles == ["user", "assistant", "user", "assistant"]
    running = messages_of(*turns, is_running=True)
    assert [message["role"] for message in running] == ["user", "assistant", "user"]
    assert ui_messages([], is_running=True) == []


def test_json_reasoning_is_json_content() -> None:
    turn = [TurnMessage("m", "t", EventType.MESSAGE, MessageData((ReasoningPart([1]),)))]
    (assistant,), (activity,) = ui_messages(turn), ag_ui_messages(turn)
    assert assistant["parts"] == [{"type": "data-content", "id": "m", "data": [1]}]
    content = {"activityType": "content", "content": {"content": [1]}}
    assert activity == {"id": activity["id"], "role": "activity", **content}


def test_ids_of_tool_calls_become_strings() -> None:
    number: Any = 7  # Agents may send any JSON as an id.
    called, ended = ToolCallPart(number, "weather", {}), ToolCall(number, "weather", {})
    turn = (
        TurnMessage("m", "t", EventType.MESSAGE, MessageData((called,))),
        TurnMessage("r", "t", EventType.TOOL, ToolData((ended,))),
    )
    (assistant,), (message, result) = ui_messages(turn), ag_ui_messages(turn)
    tool: dict[str, Any] = {**PART, "toolCallId": "7"}
    output: dict[str, Any] = {"input": {}, "state": "output-available", "output": None}
    assert assistant["parts"] == [{**tool, **output}]
    function = {"name": "weather", "arguments": "{}"}
    calls = [{"id": "t/7", "type": "function", "function": function}]
    assert message == {"id": message["id"], "role": "assistant", "toolCalls": calls}
    content = {"toolCallId": "t/7", "content": "null"}
    assert result == {"id": result["id"], "role": "tool", **content}


def test_parts_of_unknown_types_are_left_out() -> None:
    fake = FakeTransport("Hi")
    with Flux0(transport=fake) as flux0:
        chat = flux0.conversation(agent=fake.agent_id)
        reply = chat.ask("Hi")
    (message,) = reply.messages
    unknown = MessageData(({"type": "image"}, ContentPart("Hi")))

    (assistant,) = ui_messages([evolve(message, data=unknown)])
    assert assistant["parts"] == [{"type": "text", "text": "Hi"}]
    (shown,) = ag_ui_messages([evolve(message, data=unknown)])
    assert shown["content"] == "Hi"


def test_members_that_the_ai_sdk_rejects_are_left_out_as_in_the_relay() -> None:
    value: Any = {"a": 1, "__proto__": {}}
    called = ToolCallPart("c", "weather", value)
    ended = ToolCall("c", "weather", value, ToolResult(value, {}, ControlOptions("auto")))
    turn = (
        TurnMessage("m", "t", EventType.MESSAGE, MessageData((called, ContentPart(value)))),
        TurnMessage("r", "t", EventType.TOOL, ToolData((ended,))),
    )
    (assistant,) = ui_messages(turn)
    tool, content = assistant["parts"]
    assert (tool["input"], tool["output"], content["data"]) == ({"a": 1},) * 3


def test_value_that_is_nested_deeply_is_kept_without_the_rejected_members() -> None:
    value: Any = {"a": 1, "__proto__": {}}
    for _ in range(100_000):
        value = [value]
    turn = [TurnMessage("m", "t", EventType.MESSAGE, MessageData((ContentPart(value),)))]
    (assistant,) = ui_messages(turn)
    data = assistant["parts"][0]["data"]
    for _ in range(100_000):
        (data,) = data
    assert data == {"a": 1}
