"""Turns as they stream in, by way of the client, on the real server."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from flux0 import (
    ChunkEvent,
    EventSource,
    Flux0,
    StatusEvent,
)
from flux0.models import (
    ClientClosed,
    ContentPart,
    MessageData,
    ReasoningPart,
    ToolCallPart,
    ToolData,
)
from support.modes import MakeClient, at_once, call_blocking
from support.server import Flux0Server
from support.transports import Way
from support.turns import appended, perform, rest_of, stored_by_agent

# --- what comes


async def test_a_text_comes_in_pieces_and_is_stored_whole(
    make_client: MakeClient, server: Flux0Server, session_id: str
) -> None:
    async with make_client() as flux0:
        async with await perform(flux0, session_id, {"text": "Hello there", "pieces": 3}) as stream:
            assert (stream.correlation_id, stream.event_count) == (None, 0)
            events = await rest_of(stream)
            assert (stream.finished, stream.event_count) == (True, 3)
            assert stream.headers["content-type"].startswith("text/event-stream")
        (message,) = await stored_by_agent(flux0, session_id)
    assert [appended(event) for event in events] == ["Hel", "lo t", "here"]
    for event in events:
        assert isinstance(event, ChunkEvent)
        assert event.metadata == {"agent_id": server.agent_id, "agent_name": "Scripted"}
        assert event.correlation_id == stream.correlation_id == message.correlation_id
    assert isinstance(message.data, MessageData)
    assert message.data.parts == (ContentPart("Hello there"),)


async def test_reasoning_and_tools_come_and_are_stored(
    make_client: MakeClient, session_id: str
) -> None:
    call: dict[str, Any] = {"id": "c1", "name": "get_weather", "args": {"location": "Paris"}}
    async with make_client() as flux0:
        async with await perform(
            flux0,
            session_id,
            {"reason": "Let me see."},
            {"tool_call": call},
            {"tool_result": {**call, "result": [{"sky": "foggy"}]}},
        ) as stream:
            first, begin, *args, result = await rest_of(stream)
        stored = await stored_by_agent(flux0, session_id)
    assert appended(first) == "Let me see."
    assert isinstance(begin, ChunkEvent)
    assert begin.patches[0].path == "/tool_calls/0"
    pieces = [event.patches[0].value for event in args if isinstance(event, ChunkEvent)]
    assert json.loads("".join(pieces)) == {"location": "Paris"}
    assert isinstance(result, ChunkEvent)
    assert [patch.path for patch in result.patches] == [
        "/tool_call_results",
        "/tool_call_results/-",
    ]
    assert {event.correlation_id for event in stored} == {stream.correlation_id}
    thought, asked, got = (event.data for event in stored)
    assert isinstance(thought, MessageData)
    assert thought.parts == (ReasoningPart("Let me see."),)
    assert isinstance(asked, MessageData)
    assert asked.parts == (ToolCallPart("c1", "get_weather", {"location": "Paris"}),)
    assert isinstance(got, ToolData)
    (tool,) = got.tool_calls
    assert (tool.tool_call_id, tool.args) == ("c1", {"location": "Paris"})
    assert tool.result is not None
    assert tool.result.data == [{"sky": "foggy"}]


@pytest.mark.parametrize("why", [{"exception": "bad"}, "bad", None], ids=str)
async def test_an_error_comes_with_whatever_the_agent_says(
    make_client: MakeClient, session_id: str, why: object
) -> None:
    async with make_client() as flux0:
        async with await perform(flux0, session_id, {"error": why}, {"text": "Sorry"}) as stream:
            error, text = await rest_of(stream)
        status, _ = await stored_by_agent(flux0, session_id)
    assert isinstance(error, StatusEvent)
    assert (error.status, error.data.data) == ("error", why)
    assert (error.type, error.source) == ("status", EventSource.AI_AGENT)
    assert status.data == error.data
    assert appended(text) == "Sorry"


async def test_a_status_that_is_not_known_comes_as_its_text(
    make_client: MakeClient, session_id: str
) -> None:
    async with make_client() as flux0:
        stream = await perform(flux0, session_id, {"status": "newer"}, {"text": "Hi"})
        status, text = await rest_of(stream)
    assert isinstance(status, StatusEvent)
    assert status.status == "newer"
    assert appended(text) == "Hi"


async def test_events_come_as_the_agent_said_them_and_in_that_order(
    make_client: MakeClient, session_id: str, fresh_name: str
) -> None:
    # Two messages in turns, each with a seq that starts anew now and then, as some agents send it.
    chunks = [
        {
            "event_id": f"{fresh_name}-{n % 2}",
            "seq": n % 7,
            "patches": [patch],
            "metadata": {"n": n},
        }
        for n, patch in enumerate(
            {"op": "add", "path": "/-", "value": f"{n} é{'x' * (n % 50)}"} for n in range(100)
        )
    ]
    script: list[dict[str, Any]] = [{"chunk": chunk} for chunk in chunks]
    script.insert(50, {"status": "typing", "event_id": fresh_name, "data": {"half": True}})
    async with make_client() as flux0:
        stream = await perform(flux0, session_id, *script)
        events = await rest_of(stream)
    assert stream.finished
    typing = events.pop(50)
    assert isinstance(typing, StatusEvent)
    assert (typing.id, typing.status, typing.data.data) == (fresh_name, "typing", {"half": True})
    said = [event for event in events if isinstance(event, ChunkEvent)]
    assert [
        {
            "event_id": event.event_id,
            "seq": event.seq,
            "patches": [
                {"op": patch.op, "path": patch.path, "value": patch.value}
                for patch in event.patches
            ],
            "metadata": {"n": event.metadata["n"]},
        }
        for event in said
    ] == chunks
    times = [event.timestamp for event in said if event.timestamp is not None]
    assert len(times) == 100
    assert times == sorted(times)


@pytest.mark.parametrize(
    "text", ["é😀 \u2028\u2029\x85 \x00 \ufeff", 'line\r\n\r\ndata: {"no": "event"}\n\n', "\ud83d"]
)
async def test_any_text_comes_through(
    make_client: MakeClient, session_id: str, fresh_name: str, text: str
) -> None:
    patch = {"op": "add", "path": "/-", "value": text}
    chunk = {"event_id": fresh_name, "seq": 0, "patches": [patch]}
    async with make_client() as flux0:
        events = await rest_of(await perform(flux0, session_id, {"chunk": chunk}))
    assert [appended(event) for event in events] == [text]


async def test_a_number_that_json_does_not_know_comes_through(
    make_client: MakeClient, session_id: str
) -> None:
    async with make_client() as flux0:
        data = {"ratio": math.nan, "limit": math.inf}
        stream = await perform(
            flux0, session_id, {"status": "typing", "data": data}, {"text": "Hi"}
        )
        status, text = await rest_of(stream)
    assert isinstance(status, StatusEvent)
    assert math.isnan(status.data.data["ratio"])
    assert status.data.data["limit"] == math.inf
    assert appended(text) == "Hi"


# --- when it comes


async def test_what_was_said_comes_while_the_agent_thinks_on(
    make_client: MakeClient, server: Flux0Server, session_id: str, fresh_name: str
) -> None:
    script: list[dict[str, Any]] = [
        {"text": "Before", "pieces": 3},
        {"wait": fresh_name},
        {"text": "After"},
    ]
    async with make_client() as flux0, await perform(flux0, session_id, *script) as stream:
        # The agent goes on only when these have come; else the stream's idle timeout ends it.
        assert [appended(await anext(stream)) for _ in range(3)] == ["Be", "fo", "re"]
        assert not stream.finished
        server.release(fresh_name)
        assert [appended(event) for event in await rest_of(stream)] == ["After"]
        assert stream.finished


async def test_a_turn_may_take_longer_than_a_call(make_client: MakeClient, session_id: str) -> None:
    async with make_client(timeout_ms=300) as flux0:
        stream = await perform(flux0, session_id, {"pause_ms": 600}, {"text": "Hi"})
        assert [appended(event) for event in await rest_of(stream)] == ["Hi"]


async def test_two_sessions_do_not_touch_each_other(
    make_client: MakeClient, server: Flux0Server, session_id: str, fresh_name: str
) -> None:
    async with make_client() as flux0:
        other = await flux0.sessions.create_async(agent_id=server.agent_id)
        async with await perform(
            flux0, session_id, {"text": "One"}, {"wait": fresh_name}, {"text": "Two"}
        ) as slow:
            assert appended(await anext(slow)) == "One"
            async with await perform(flux0, other.id, {"text": "Three"}) as quick:
                assert [appended(event) for event in await rest_of(quick)] == ["Three"]
            server.release(fresh_name)
            assert [appended(event) for event in await rest_of(slow)] == ["Two"]
        assert slow.correlation_id != quick.correlation_id


async def test_a_session_has_one_open_turn(
    make_client: MakeClient, server: Flux0Server, way: Way, session_id: str, fresh_name: str
) -> None:
    async with make_client() as flux0:
        first = await perform(flux0, session_id, {"text": "One"}, {"wait": fresh_name})
        assert appended(await anext(first)) == "One"
        # Only if the first is closed before it begins does the server leave this one alone.
        second = await perform(flux0, session_id, {"text": "Two"}, {"text": "Three"})
        await call_blocking(way.mode, server.wait_cancelled, fresh_name)
        assert [appended(event) for event in await rest_of(second)] == ["Two", "Three"]
        with pytest.raises(ClientClosed):
            await anext(first)


async def test_many_turns_at_once_keep_their_events_apart(
    make_client: MakeClient, server: Flux0Server, way: Way
) -> None:
    async def one_turn(flux0: Flux0, number: int) -> None:
        session = await flux0.sessions.create_async(agent_id=server.agent_id)
        script = [{"text": f"{number}.{part}"} for part in range(10)]
        async with await perform(flux0, session.id, *script) as stream:
            said = [appended(event) for event in await rest_of(stream)]
        assert said == [step["text"] for step in script]

    async with make_client() as flux0:
        await at_once(way.mode, *(lambda n=n: one_turn(flux0, n) for n in range(8)))


async def test_turns_that_are_read_to_the_end_are_all_stored(
    make_client: MakeClient, server: Flux0Server
) -> None:
    async with make_client() as flux0:
        stored: list[str] = []
        for _ in range(2):
            session = await flux0.sessions.create_async(agent_id=server.agent_id)
            for _ in range(20):
                async for _ in await perform(flux0, session.id, {"text": "Hi"}):
                    pass
            stored += [event.type for event in await stored_by_agent(flux0, session.id)]
    assert stored == ["message"] * 40
