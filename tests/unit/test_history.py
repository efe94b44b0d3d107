"""A session's stored events and the messages of a live turn, as one list that has each once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from attrs import evolve

from flux0.domain.enums import EventSource, EventType, SessionStatus
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.messages.history import joined_history
from flux0.domain.models import (
    ContentPart,
    Event,
    MessageData,
    ReasoningPart,
    StatusData,
    ToolCall,
    ToolCallPart,
    ToolData,
)

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def live(text: str, turn: str = "t1", **changes: Any) -> TurnMessage:
    """Return a message as a stream rebuilt it."""
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


def test_what_is_stored_by_now_is_told_once_and_the_rest_comes_last() -> None:
    messages = [live("a"), TOOL, live("b", metadata={"k": [1]}), live("c")]
    history = all_stored(messages[:3])

    assert joined_history(history, messages) == (*history, messages[3])
    assert joined_history(iter(history), iter(messages)) == (*history, messages[3])
    assert joined_history(history, []) == tuple(history)
    assert joined_history([], messages) == tuple(messages)
    assert joined_history([], []) == ()


def test_only_messages_and_tool_results_are_history() -> None:
    said = all_stored([live("a"), TOOL])
    status = evolve(said[0], type=EventType.STATUS, data=StatusData(SessionStatus.TYPING))
    custom = evolve(said[0], type="custom", data={"type": "custom"})
    newer = evolve(said[0], type="newer", data={"type": "newer"})

    assert joined_history([status, said[0], custom, said[1], newer], []) == tuple(said)


def test_of_two_equal_messages_each_is_told() -> None:
    twice = [live("yes", event_id="m1"), live("yes", event_id="m2")]

    assert joined_history([], twice) == tuple(twice)
    one = all_stored(twice[:1])
    assert joined_history(one, twice) == (*one, twice[1])
    both = all_stored(twice)
    assert joined_history(both, twice) == tuple(both)
    assert joined_history(both, twice[:1]) == tuple(both)


def test_messages_that_differ_are_told_apart() -> None:
    history = all_stored([live("a")])

    for other in (
        live("a", turn="t2"),
        live("ab"),
        live("a", metadata={"node": "n"}),
        live("a", data=MessageData((ReasoningPart("a"),))),
        live("a", type=EventType.TOOL),
    ):
        assert joined_history(history, [other]) == (*history, other)


def test_what_is_stored_keeps_the_server_s_order() -> None:
    first, second, third = messages = [live("a"), live("b"), live("c")]
    history = all_stored([third, first])

    assert joined_history(history, messages) == (*history, second)


def test_all_of_a_history_has_source_type_and_text() -> None:
    thought = live("r", data=MessageData((ReasoningPart("Let me see"), ReasoningPart({"no": 1}))))
    parts = (ContentPart("I ask."), ToolCallPart("c1", "weather", {"city": "SF"}))
    asked, said = live("q", data=MessageData(parts)), live("Sunny")
    question = evolve(stored(live("How is it?")), source=EventSource.USER)

    history = joined_history([question], [thought, asked, TOOL, said])

    texts = [f"{message.source}: {message.text}" for message in history]
    assert texts[:2] == ["user: How is it?", "ai_agent: "]
    assert texts[2:] == ["ai_agent: I ask.", "ai_agent: ", "ai_agent: Sunny"]
    assert [message.reasoning for message in history] == ["", "Let me see", "", "", ""]
    call = ToolCall("c1", "weather", {"city": "SF"})
    assert [message.tool_calls for message in history] == [(), (), (call,), (call,), ()]
    assert {message.type for message in history} == {EventType.MESSAGE, EventType.TOOL}
    status = evolve(question, data=StatusData(SessionStatus.TYPING))
    assert (status.text, status.reasoning, status.tool_calls) == ("", "", ())
