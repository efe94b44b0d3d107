"""The messages of turns, and conversations, with the real server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flux0 import StreamIdleTimeout, to_dict
from flux0.models import AgentError, ContentPart, Event, TurnMessage
from integration.ways import few_ways
from support.modes import MakeClient
from support.server import Flux0Server
from support.transports import Way
from support.turns import new_user, perform

pytestmark = few_ways

WEATHER: dict[str, Any] = {"id": "c1", "name": "get_weather", "args": {"location": "Paris"}}
TURN: list[dict[str, Any]] = [
    {"status": "processing"},
    {"reason": "Let me see.", "pieces": 3},
    {"tool_call": WEATHER},
    {"tool_result": {**WEATHER, "result": {"sky": "foggy"}}},
    {"text": "It is foggy.", "pieces": 4},
]


def without_ids(message: Event | TurnMessage) -> tuple[object, ...]:
    """Return the fields of a message, except for its ids and times."""
    return (message.correlation_id, message.type, message.data, message.metadata)


async def test_messages_of_a_turn_equal_the_stored_messages(
    make_client: MakeClient, session_id: str
) -> None:
    async with make_client() as flux0:
        stream = await perform(flux0, session_id, *TURN)
        messages = await stream.final_messages()
        stored = await stream.stored_events()
        (tool,) = stream.tool_calls
    assert [event.source for event in stored] == ["user", *["ai_agent"] * 5]
    assert [event.type for event in stored[:2]] == ["message", "status"]
    assert [without_ids(message) for message in messages] == [
        without_ids(event) for event in stored[2:]
    ]
    data: list[dict[str, Any]] = [to_dict(event.data) for event in stored[2:]]
    call = {"tool_call_id": "c1", "tool_name": "get_weather", "args": {"location": "Paris"}}
    assert [each["parts"] for each in data if "parts" in each] == [
        [{"type": "reasoning", "reasoning": "Let me see."}],
        [{"type": "tool_call", **call}],
        [{"type": "content", "content": "It is foggy."}],
    ]
    (called,) = data[2]["tool_calls"]
    assert {name: called[name] for name in call} == call
    assert called["result"]["data"] == {"sky": "foggy"}
    assert to_dict(tool.result) == called["result"]
    assert (stream.status, stream.error, stream.finished) == ("processing", None, True)


async def test_turn_can_be_iterated_as_text(make_client: MakeClient, session_id: str) -> None:
    async with make_client() as flux0:
        stream = await perform(flux0, session_id, *TURN)
        assert [piece async for piece in stream.text()] == ["It ", "is ", "fog", "gy."]
        assert stream.finished


async def test_error_of_the_agent_is_raised_by_final_messages_and_text(
    make_client: MakeClient, session_id: str
) -> None:
    script: list[dict[str, Any]] = [{"text": "Well"}, {"error": {"exception": "bad"}}]
    async with make_client() as flux0:
        with pytest.raises(AgentError) as caught:
            await (await perform(flux0, session_id, *script)).final_messages()
        assert caught.value.data == {"exception": "bad"}
        text = (await perform(flux0, session_id, *script)).text()
        assert await anext(text) == "Well"
        with pytest.raises(AgentError, match="bad"):
            await anext(text)


async def test_interrupted_stream_has_its_messages_and_the_stored_events(
    make_client: MakeClient, session_id: str, fresh_name: str, way: Way
) -> None:
    half = {"op": "add", "path": "/-", "value": "Half"}
    async with make_client(stream_idle_timeout_ms=500) as flux0:
        stream = await perform(
            flux0,
            session_id,
            {"text": "Complete"},
            {"chunk": {"event_id": fresh_name, "seq": 0, "patches": [half]}},
            {"crash": "boom"},
        )
        with pytest.raises(StreamIdleTimeout) as caught:
            await stream.final_messages()
        stored = caught.value.stored_events()
        events = stored if way.mode == "sync" else await stored
    assert [message.text for message in caught.value.messages] == ["Complete", "Half"]
    assert [event.source for event in events] == ["user", "ai_agent"]
    assert events[1].data.parts == (ContentPart("Complete"),)


async def test_user_name_may_have_any_characters(
    make_client: MakeClient, server: Flux0Server, fresh_name: str
) -> None:
    names = ("Ada Lovelace", "José", "日本", 'a"b;c,d\\e', "100%", "100%25", "a\r\nb", " ")
    ids: list[str] = []
    async with make_client() as flux0:
        for name in (*names, *names):
            chat = await flux0.conversation_async(agent=server.agent_id, user=name + fresh_name)
            assert await chat.belongs_to_user()
            assert chat.session
            ids.append(chat.session.user_id)
            created = await flux0.sessions.create_async(
                agent_id=server.agent_id, user=name + fresh_name
            )
            listed = await flux0.sessions.list_async(user=name + fresh_name)
            assert [session.id for session in listed][-2:] == [chat.session_id, created.id]
            assert {session.user_id for session in listed} == {ids[-1]}
    assert ids[: len(names)] == ids[len(names) :]
    assert len(set(ids)) == len(names)


async def test_conversation_belongs_to_one_user(
    make_client: MakeClient, server: Flux0Server
) -> None:
    user = f"Ünder 100% {new_user()['cookie']}"
    async with make_client() as flux0:
        chat = await flux0.conversation_async(agent=server.agent_id, user=user, title="Fog")
        assert chat.session is not None
        assert chat.session.title == "Fog"
        for content in ("One", "Two"):
            turn = await chat.send(json.dumps([{"text": content}]))
            messages = await turn.final_messages()
        again = await flux0.conversation_async(session=chat.session_id, user=user)
        history = await again.history()
        # Messages that are already stored are not repeated.
        assert await again.history(messages) == history
        listed = await flux0.sessions.list_async(user=user)
    assert [message.text for message in history] == [
        *('[{"text": "One"}]', "One"),
        *('[{"text": "Two"}]', "Two"),
    ]
    assert [session.id for session in listed] == [chat.session_id]
