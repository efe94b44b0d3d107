"""Turns as they stream in, by way of the client, on the real server."""

from __future__ import annotations

import math
from typing import Any

import pytest

from flux0 import ChunkEvent, EventSource, Flux0, StatusEvent, to_dict
from flux0.models import ClientClosed, ContentPart, MessageData
from integration.ways import few_ways
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


@few_ways
@pytest.mark.parametrize("why", [{"exception": "bad"}, "bad", None], ids=str)
async def test_an_error_comes_with_whatever_the_agent_says(
    make_client: MakeClient, session_id: str, why: object
) -> None:
    async with make_client() as flux0:
        error, text = await rest_of(
            await perform(flux0, session_id, {"error": why}, {"text": "Sorry"})
        )
        status, _ = await stored_by_agent(flux0, session_id)
    assert isinstance(error, StatusEvent)
    assert (error.status, error.data.data) == ("error", why)
    assert (error.type, error.source) == ("status", EventSource.AI_AGENT)
    assert status.data == error.data
    assert appended(text) == "Sorry"


@few_ways
async def test_what_is_not_known_comes_as_it_is(make_client: MakeClient, session_id: str) -> None:
    data = {"ratio": math.nan, "limit": math.inf}
    async with make_client() as flux0:
        status, text = await rest_of(
            await perform(flux0, session_id, {"status": "newer", "data": data}, {"text": "Hi"})
        )
    assert isinstance(status, StatusEvent)
    assert status.status == "newer"
    assert math.isnan(status.data.data["ratio"])
    assert status.data.data["limit"] == math.inf
    assert appended(text) == "Hi"


async def test_events_come_as_the_agent_said_them_and_in_that_order(
    make_client: MakeClient, session_id: str, fresh_name: str
) -> None:
    texts = ["é😀 \u2028\u2029\x85 \x00 \ufeff", 'line\r\n\r\ndata: {"no": "event"}\n\n', "\ud83d"]
    texts += [f"{n} é{'x' * (n % 50)}" for n in range(100)]
    # Two messages in turns, each with a seq that starts anew now and then, as some agents send it.
    chunks: list[dict[str, Any]] = [
        {
            "event_id": f"{fresh_name}-{n % 2}",
            "seq": n % 7,
            "patches": [{"op": "add", "path": "/-", "value": text}],
            "metadata": {"n": n},
        }
        for n, text in enumerate(texts)
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
    said: list[dict[str, Any]] = [to_dict(event) for event in events]
    times = [event["timestamp"] for event in said]
    assert times == sorted(times)
    for event, chunk in zip(said, chunks, strict=True):
        assert {name: event[name] for name in ("event_id", "seq", "patches")} == {
            name: chunk[name] for name in ("event_id", "seq", "patches")
        }
        assert event["metadata"]["n"] == chunk["metadata"]["n"]


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


async def test_a_session_has_one_open_turn(
    make_client: MakeClient, server: Flux0Server, way: Way, session_id: str, fresh_name: str
) -> None:
    async with make_client() as flux0:
        other = await flux0.sessions.create_async(agent_id=server.agent_id)
        first = await perform(flux0, session_id, {"text": "One"}, {"wait": fresh_name})
        assert appended(await anext(first)) == "One"
        elsewhere = await perform(flux0, other.id, {"text": "Two"})
        # Only if the first is closed before it begins does the server leave this one alone.
        second = await perform(flux0, session_id, {"text": "Three"}, {"text": "Four"})
        await call_blocking(way.mode, server.wait_cancelled, fresh_name)
        assert [appended(event) for event in await rest_of(second)] == ["Three", "Four"]
        assert [appended(event) for event in await rest_of(elsewhere)] == ["Two"]
        with pytest.raises(ClientClosed):
            await anext(first)


async def test_many_turns_at_once_keep_their_events_apart_and_are_all_stored(
    make_client: MakeClient, server: Flux0Server, way: Way
) -> None:
    async def turns(flux0: Flux0, number: int) -> None:
        session = await flux0.sessions.create_async(agent_id=server.agent_id)
        for turn in range(3):
            script = [{"text": f"{number}.{turn}.{part}"} for part in range(3)]
            said = [appended(each) async for each in await perform(flux0, session.id, *script)]
            assert said == [step["text"] for step in script]
        stored = await stored_by_agent(flux0, session.id)
        assert [event.type for event in stored] == ["message"] * 9

    async with make_client() as flux0:
        await at_once(way.mode, *(lambda n=n: turns(flux0, n) for n in range(4)))
