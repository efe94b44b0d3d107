"""Joining stored events with live messages, and tool calls with their results."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from attrs import evolve

from flux0.domain.enums import EventSource, EventType, SessionStatus
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.messages.history import joined_history, stored_turn
from flux0.domain.messages.tool_calls import joined_tool_calls
from flux0.domain.stored_models import (
    ContentPart,
    ControlOptions,
    Event,
    EventData,
    MessageData,
    ReasoningPart,
    StatusData,
    ToolCall,
    ToolCallPart,
    ToolData,
    ToolResult,
)

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def live(text: str, turn: str = "t1", **changes: Any) -> TurnMessage:
    """Return a message that was built from a stream."""
    message = TurnMessage(
        event_id=f"live-{text}",
        correlation_id=turn,
        type=EventType.MESSAGE,
        data=MessageData((ContentPart(text),)),
    )
    return evolve(message, **changes)


def stored(message: TurnMessage, offset: int = 0) -> Event:
    """Return the event that the server stores for a message."""
    return Event(
        id=f"stored-{offset}",
        correlation_id=message.correlation_id,
        type=message.type,
        source=EventSource.AI_AGENT,
        offset=offset,
        data=message.data,
        deleted=False,
        created_at=NOW,
        metadata=message.metadata,
    )


def all_stored(messages: Sequence[TurnMessage]) -> list[Event]:
    return [stored(message, offset) for offset, message in enumerate(messages)]


TOOL = live(
    "tool", type=EventType.TOOL, data=ToolData((ToolCall("c1", "weather", {"city": "SF"}),))
)


def test_stored_messages_are_not_repeated_and_live_messages_follow() -> None:
    messages = [live("a"), TOOL, live("b", metadata={"k": [1]}), live("c")]
    history = all_stored(messages[:3])

    assert joined_history(history, messages) == (*history, messages[3])
    assert joined_history(iter(history), iter(messages)) == (*history, messages[3])
    assert joined_history(history, []) == tuple(history)
    assert joined_history([], messages) == tuple(messages)
    assert joined_history([], []) == ()


def test_history_has_only_messages_and_tool_results() -> None:
    reply = all_stored([live("a"), TOOL])
    status = evolve(reply[0], type=EventType.STATUS, data=StatusData(SessionStatus.TYPING))
    custom = evolve(reply[0], type="custom", data={"type": "custom"})
    newer = evolve(reply[0], type="newer", data={"type": "newer"})

    assert joined_history([status, reply[0], custom, reply[1], newer], []) == tuple(reply)


def test_equal_messages_are_matched_one_to_one() -> None:
    messages = [live("yes", event_id="m1"), live("yes", event_id="m2")]

    assert joined_history([], messages) == tuple(messages)
    first = all_stored(messages[:1])
    assert joined_history(first, messages) == (*first, messages[1])
    both = all_stored(messages)
    assert joined_history(both, messages) == tuple(both)
    assert joined_history(both, messages[:1]) == tuple(both)


def test_different_messages_are_not_matched() -> None:
    history = all_stored([live("a")])

    for other in (
        live("a", turn="t2"),
        live("ab"),
        live("a", metadata={"node": "n"}),
        live("a", data=MessageData((ReasoningPart("a"),))),
        live("a", type=EventType.TOOL),
    ):
        assert joined_history(history, [other]) == (*history, other)


def test_stored_events_keep_their_order() -> None:
    first, second, third = messages = [live("a"), live("b"), live("c")]
    history = all_stored([third, first])

    assert joined_history(history, messages) == (*history, second)


def test_every_item_of_a_history_has_source_type_and_text() -> None:
    thought = live("r", data=MessageData((ReasoningPart("Let me see"), ReasoningPart({"no": 1}))))
    parts = (ContentPart("I ask."), ToolCallPart("c1", "weather", {"city": "SF"}))
    asked, reply = live("q", data=MessageData(parts)), live("Sunny")
    question = evolve(stored(live("How is it?")), source=EventSource.USER)

    history = joined_history([question], [thought, asked, TOOL, reply])

    texts = [f"{message.source}: {message.text}" for message in history]
    assert texts[:2] == ["user: How is it?", "ai_agent: "]
    assert texts[2:] == ["ai_agent: I ask.", "ai_agent: ", "ai_agent: Sunny"]
    assert [message.reasoning for message in history] == ["", "Let me see", "", "", ""]
    assert [message.tool_calls for message in history] == [(), (), (call("c1"),), (call("c1"),), ()]
    assert {message.type for message in history} == {EventType.MESSAGE, EventType.TOOL}
    status = evolve(question, data=StatusData(SessionStatus.TYPING))
    assert (status.text, status.reasoning, status.tool_calls) == ("", "", ())


# --- tool calls

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
    return evolve(stored(live("")), data=data)


def test_tool_call_is_joined_with_its_result() -> None:
    finished = call("1", SUNNY)

    assert joined_tool_calls([message(asked("1"))]) == (call("1"),)
    for call_message in (message(asked("1")), event(MessageData((asked("1"),)))):
        for result_message in (results(finished), event(ToolData((finished,)))):
            assert joined_tool_calls([call_message, result_message]) == (finished,)
            assert joined_tool_calls(iter([result_message, call_message])) == (finished,)


def test_tool_calls_are_in_the_order_of_the_calls() -> None:
    second, third = call("2", SUNNY), call("3", SUNNY)
    messages = [
        message(asked("1"), ContentPart("and"), asked("2")),
        results(third, second),
        message(asked("3")),
    ]

    assert joined_tool_calls(messages) == (call("1"), second, third)


def test_results_without_a_call_and_other_parts_are_ignored() -> None:
    unknown: dict[str, Any] = {"type": "function", "tool_call_id": "1", "tool_name": "weather"}

    assert joined_tool_calls([results(call("1", SUNNY))]) == ()
    assert joined_tool_calls([message(ContentPart("hi"), unknown)]) == ()
    assert joined_tool_calls([event({"type": "newer", "parts": []})]) == ()
    assert joined_tool_calls([]) == ()


def test_last_of_several_results_is_used() -> None:
    error = ToolCall("1", "weather", {}, error="too late")

    assert joined_tool_calls([message(asked("1")), results(call("1", SUNNY), error)]) == (error,)


def test_calls_whose_id_is_not_a_string_are_not_joined() -> None:
    for odd in (["1"], {"id": 1}, 1, None):
        messages = [message(asked(odd), asked("1")), results(call(odd, SUNNY), call("1", SUNNY))]

        assert joined_tool_calls(messages) == (call(odd), call("1", SUNNY))


# --- stored turns


def of_turn(turn: str, *items: MessageData | StatusData | str) -> list[Event]:
    """Return stored events of a turn: a str is the user's message."""
    template = stored(live("", turn))
    return [
        evolve(template, source=EventSource.USER, data=MessageData((ContentPart(item),)))
        if isinstance(item, str)
        else evolve(
            template,
            type=EventType.STATUS if isinstance(item, StatusData) else EventType.MESSAGE,
            data=item,
        )
        for item in items
    ]


def reply(text: str) -> MessageData:
    return MessageData((ContentPart(text),))


def test_stored_turn_has_the_reply_without_the_message_of_the_user() -> None:
    greeting, *events = [
        *of_turn("t0", reply("Hi")),
        *of_turn("t1", "Hi", reply("a")),
        *of_turn("t2", "Hi", reply("b"), MessageData((ReasoningPart("?"),)), reply("c")),
    ]
    events[2] = evolve(events[2], offset=3)

    first, second = stored_turn([greeting, *events], "Hi"), stored_turn(events[2:], None)

    assert first is not None
    assert (first.correlation_id, first.message, first.text) == ("t1", events[0], "a")
    assert first.messages == (events[1],)
    assert second is not None
    assert (second.offset, second.text, second.messages) == (3, "b\nc", tuple(events[3:]))
    assert stored_turn([greeting], None) is None
    assert stored_turn(events, "Bye") is None


def test_error_of_a_stored_turn_is_its_last_status_error() -> None:
    errors = [StatusData(SessionStatus.ERROR, data=number) for number in (1, 2)]
    done = StatusData(SessionStatus.COMPLETED)
    turn = stored_turn(of_turn("t1", "Hi", done, *errors, done), "Hi")
    healthy = stored_turn(of_turn("t1", "Hi", done), "Hi")

    assert turn is not None
    assert turn.statuses == (done, *errors, done)
    assert turn.error is not None
    assert turn.error.data == 2
    assert healthy is not None
    assert healthy.error is None
