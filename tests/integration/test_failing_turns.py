"""Turns that are refused, and turns that break off, on the real server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any

import pytest

from flux0 import ChunkEvent, Flux0, HTTPValidationError, StreamIdleTimeout, StreamInterrupted
from flux0.models import BadRequestError, InvalidArgument
from integration.ways import few_ways
from support.modes import MakeClient, in_mode, run
from support.relay import Relay
from support.server import Flux0Server
from support.transports import WAYS, Way
from support.turns import appended, perform, stored_by_agent


async def test_a_turn_that_is_refused_leaves_the_connection_usable(
    make_client: MakeClient, relay: Relay, session_id: str
) -> None:
    async with make_client(server_url=relay.url) as flux0:
        create_event = flux0.sessions.create_event_async
        for _ in range(5):
            refusals: list[dict[str, Any]] = [{"source": "system"}, {"type_": "custom"}]
            for refused in refusals:
                with pytest.raises(HTTPValidationError, match="Only") as caught:
                    await create_event(session_id=session_id, content="Hi", **refused)
                assert caught.value.data.detail == ()
            with pytest.raises(BadRequestError, match="abcdefghij"):
                await create_event(session_id="abcdefghij", content="Hi")
        assert (await flux0.sessions.list_events_async(session_id=session_id)).data == ()
    assert relay.connections == 1


@few_ways
async def test_a_turn_without_content_is_not_sent(make_client: MakeClient, nowhere: str) -> None:
    async with make_client(server_url=nowhere) as flux0:
        with pytest.raises(InvalidArgument, match="content must not be empty"):
            await flux0.sessions.create_event_async(session_id="abcdefghij", content="")


async def test_a_crashed_agent_is_an_idle_stream(make_client: MakeClient, session_id: str) -> None:
    async with make_client(stream_idle_timeout_ms=500) as flux0:
        async with await perform(
            flux0, session_id, {"text": "Hi", "pieces": 2}, {"crash": "boom"}
        ) as stream:
            assert [appended(await anext(stream)) for _ in range(2)] == ["H", "i"]
            for _ in range(2):
                with pytest.raises(StreamIdleTimeout, match="after 2 events") as caught:
                    await anext(stream)
            assert not stream.finished
        assert caught.value.event_count == 2
        assert caught.value.__cause__ is not None
        (message,) = await stored_by_agent(flux0, session_id)
        assert caught.value.correlation_id == stream.correlation_id == message.correlation_id


@few_ways
async def test_an_agent_that_never_says_that_it_is_done_is_an_idle_stream(
    make_client: MakeClient, session_id: str
) -> None:
    async with make_client(stream_idle_timeout_ms=500) as flux0:
        stream = await perform(flux0, session_id, {"text": "Hi"}, {"end": False})
        assert appended(await anext(stream)) == "Hi"
        with pytest.raises(StreamIdleTimeout):
            await anext(stream)


def test_a_server_that_dies_interrupts_every_turn(own_server: Flux0Server, fresh_name: str) -> None:
    everybody = Barrier(len(WAYS) + 1, timeout=30)

    async def be_interrupted(way: Way) -> None:
        flux0 = in_mode(way.mode, Flux0(own_server.url, transport=way.make_transport()))
        async with flux0:
            session = await flux0.sessions.create_async(agent_id=own_server.agent_id)
            stream = await perform(flux0, session.id, {"text": "Hi"}, {"wait": fresh_name})
            event = await anext(stream)
            everybody.wait()  # Each has come so far; then the server is dead.
            everybody.wait()
            with pytest.raises(StreamInterrupted, match="after 1 event") as caught:
                await anext(stream)
            assert not stream.finished
        assert isinstance(event, ChunkEvent)
        assert caught.value.correlation_id == event.correlation_id
        assert caught.value.event_count == 1
        assert caught.value.__cause__ is not None

    with ThreadPoolExecutor(len(WAYS)) as threads:
        running = [threads.submit(run, way.mode, partial(be_interrupted, way)) for way in WAYS]
        everybody.wait()
        own_server.kill()
        everybody.wait()
        for each in running:
            each.result()
