"""Streamed turns that end or are interrupted, with the real server."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from flux0 import (
    ChunkEvent,
    Flux0,
    HTTPValidationError,
    StatusEvent,
    StreamIdleTimeout,
    StreamInterrupted,
    to_dict,
)
from flux0.models import BadRequestError, ClientClosed, ContentPart, MessageData
from integration.ways import few_ways
from support.modes import MakeClient, at_once, call_blocking, in_mode, run
from support.relay import Relay
from support.server import Flux0Server
from support.transports import WAYS, Way
from support.turns import appended, perform, rest_of, stored_by_agent

# --- events


async def test_text_is_streamed_in_chunks_and_stored_as_one_message(
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
async def test_unknown_status_and_numbers_are_passed_through(
    make_client: MakeClient, session_id: str
) -> None:
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


async def test_events_keep_their_content_and_order(
    make_client: MakeClient, session_id: str, fresh_name: str
) -> None:
    texts = ["é😀 \u2028\u2029\x85 \x00 \ufeff", 'line\r\n\r\ndata: {"no": "event"}\n\n', "\ud83d"]
    texts += [f"{n} é{'x' * (n % 50)}" for n in range(100)]
    # Two alternating messages. Their `seq` sometimes restarts at 0, as with some agents.
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
    received: list[dict[str, Any]] = [to_dict(event) for event in events]
    times = [event["timestamp"] for event in received]
    assert times == sorted(times)
    for event, chunk in zip(received, chunks, strict=True):
        assert {name: event[name] for name in ("event_id", "seq", "patches")} == {
            name: chunk[name] for name in ("event_id", "seq", "patches")
        }
        assert event["metadata"]["n"] == chunk["metadata"]["n"]


# --- timing and concurrency


async def test_events_arrive_while_the_agent_is_still_working(
    make_client: MakeClient, server: Flux0Server, session_id: str, fresh_name: str
) -> None:
    script: list[dict[str, Any]] = [
        {"text": "Before", "pieces": 3},
        {"wait": fresh_name},
        {"text": "After"},
    ]
    async with make_client() as flux0, await perform(flux0, session_id, *script) as stream:
        # The agent waits until these have arrived. Otherwise the idle timeout would expire.
        assert [appended(await anext(stream)) for _ in range(3)] == ["Be", "fo", "re"]
        assert not stream.finished
        server.release(fresh_name)
        assert [appended(event) for event in await rest_of(stream)] == ["After"]
        assert stream.finished


async def test_new_turn_closes_the_open_turn_of_its_session(
    make_client: MakeClient, server: Flux0Server, way: Way, session_id: str, fresh_name: str
) -> None:
    async with make_client() as flux0:
        other = await flux0.sessions.create_async(agent_id=server.agent_id)
        first = await perform(flux0, session_id, {"text": "One"}, {"wait": fresh_name})
        assert appended(await anext(first)) == "One"
        elsewhere = await perform(flux0, other.id, {"text": "Two"})
        # The server would cancel this turn, too, if the first turn was not closed before.
        second = await perform(flux0, session_id, {"text": "Three"}, {"text": "Four"})
        await call_blocking(way.mode, server.wait_cancelled, fresh_name)
        assert [appended(event) for event in await rest_of(second)] == ["Three", "Four"]
        assert [appended(event) for event in await rest_of(elsewhere)] == ["Two"]
        with pytest.raises(ClientClosed):
            await anext(first)


async def test_concurrent_turns_get_their_own_events_and_are_stored(
    make_client: MakeClient, server: Flux0Server, way: Way
) -> None:
    async def turns(flux0: Flux0, number: int) -> None:
        session = await flux0.sessions.create_async(agent_id=server.agent_id)
        for turn in range(3):
            script = [{"text": f"{number}.{turn}.{part}"} for part in range(3)]
            received = [appended(each) async for each in await perform(flux0, session.id, *script)]
            assert received == [step["text"] for step in script]
        stored = await stored_by_agent(flux0, session.id)
        assert [event.type for event in stored] == ["message"] * 9

    async with make_client() as flux0:
        await at_once(way.mode, *(lambda n=n: turns(flux0, n) for n in range(4)))


# --- failures


async def test_connection_is_reused_after_an_error_response(
    make_client: MakeClient, relay: Relay, session_id: str
) -> None:
    async with make_client(server_url=relay.url) as flux0:
        create_event = flux0.sessions.create_event_async
        for _ in range(5):
            invalid_options: list[dict[str, Any]] = [{"source": "system"}, {"type_": "custom"}]
            for options in invalid_options:
                with pytest.raises(HTTPValidationError, match="Only") as caught:
                    await create_event(session_id=session_id, content="Hi", **options)
                assert caught.value.data.detail == ()
            with pytest.raises(BadRequestError, match="abcdefghij"):
                await create_event(session_id="abcdefghij", content="Hi")
        assert (await flux0.sessions.list_events_async(session_id=session_id)).data == ()
    assert relay.connections == 1


async def test_stream_of_a_crashed_agent_ends_with_the_idle_timeout(
    make_client: MakeClient, session_id: str
) -> None:
    async with make_client(stream_idle_timeout_ms=500) as flux0:
        async with await perform(
            flux0, session_id, {"text": "Hi", "pieces": 2}, {"crash": "boom"}
        ) as stream:
            assert [appended(await anext(stream)) for _ in range(2)] == ["H", "i"]
            with pytest.raises(StreamIdleTimeout, match="after 2 events") as caught:
                await anext(stream)
            with pytest.raises(StreamIdleTimeout):
                await anext(stream)
            assert not stream.finished
        assert caught.value.event_count == 2
        assert caught.value.__cause__ is not None
        (message,) = await stored_by_agent(flux0, session_id)
        assert caught.value.correlation_id == stream.correlation_id == message.correlation_id


def test_killed_server_interrupts_the_turns_of_all_transports(
    server_python: str, tmp_path: Path, fresh_name: str
) -> None:
    barrier = Barrier(len(WAYS) + 1, timeout=30)

    async def be_interrupted(way: Way) -> None:
        flux0 = in_mode(way.mode, Flux0(server.url, transport=way.make_transport()))
        async with flux0:
            session = await flux0.sessions.create_async(agent_id=server.agent_id)
            stream = await perform(flux0, session.id, {"text": "Hi"}, {"wait": fresh_name})
            event = await anext(stream)
            barrier.wait()  # All turns have begun. At the next line, the server was killed.
            barrier.wait()
            with pytest.raises(StreamInterrupted, match="after 1 event") as caught:
                await anext(stream)
            assert not stream.finished
        assert isinstance(event, ChunkEvent)
        assert caught.value.correlation_id == event.correlation_id
        assert caught.value.event_count == 1
        assert caught.value.__cause__ is not None

    with Flux0Server(server_python, tmp_path) as server, ThreadPoolExecutor(len(WAYS)) as threads:
        running = [threads.submit(run, way.mode, partial(be_interrupted, way)) for way in WAYS]
        barrier.wait()
        server.kill()
        barrier.wait()
        for each in running:
            each.result()
