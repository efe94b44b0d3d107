"""Turns that are refused, and turns that break off, on the real server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flux0 import (
    ChunkEvent,
    HTTPValidationError,
    StreamIdleTimeout,
    StreamInterrupted,
)
from flux0.models import (
    BadRequestError,
    InvalidArgument,
)
from support.modes import MakeClient
from support.relay import Relay
from support.server import Flux0Server
from support.turns import appended, perform, stored_by_agent

# --- what is refused


@pytest.mark.parametrize("refused", [{"source": "system"}, {"type_": "custom"}], ids=str)
async def test_what_no_turn_begins_with_is_refused_and_the_connection_kept(
    make_client: MakeClient, relay: Relay, session_id: str, refused: dict[str, Any]
) -> None:
    async with make_client(server_url=relay.url) as flux0:
        for _ in range(30):
            with pytest.raises(HTTPValidationError, match="Only") as caught:
                await flux0.sessions.create_event_async(
                    session_id=session_id, content="Hi", **refused
                )
            assert caught.value.data.detail == ()
        assert (await flux0.sessions.list_events_async(session_id=session_id)).data == ()
    assert relay.connections == 1


async def test_a_turn_of_a_session_that_does_not_exist_is_refused(
    make_client: MakeClient, relay: Relay
) -> None:
    async with make_client(server_url=relay.url) as flux0:
        for _ in range(3):
            with pytest.raises(BadRequestError, match="abcdefghij"):
                await perform(flux0, "abcdefghij", {"text": "Hi"})
    assert relay.connections == 1


async def test_a_turn_without_content_is_not_sent(make_client: MakeClient, nowhere: str) -> None:
    async with make_client(server_url=nowhere) as flux0:
        with pytest.raises(InvalidArgument, match="content must not be empty"):
            await flux0.sessions.create_event_async(session_id="abcdefghij", content="")


@pytest.mark.parametrize("wrong", ["../{}", "{}/", "{}?x=", "a/b?c", "{}/events/stream#", "%2e%2e"])
async def test_the_id_of_a_session_reaches_no_other_route(
    make_client: MakeClient, session_id: str, wrong: str
) -> None:
    wrong = wrong.format(session_id)
    async with make_client() as flux0:
        with pytest.raises(InvalidArgument, match="session_id"):
            await perform(flux0, wrong, {"text": "Hi"})
        with pytest.raises(InvalidArgument, match="session_id"):
            await flux0.sessions.list_events_async(session_id=wrong)
        with pytest.raises(InvalidArgument, match="session_id"):
            await flux0.sessions.retrieve_async(session_id=wrong)
        assert (await flux0.sessions.list_events_async(session_id=session_id)).data == ()


@pytest.mark.parametrize("wrong", ["", ".", "..", "\ud800"])
async def test_what_no_url_can_hold_as_the_id_of_a_session_is_not_sent(
    make_client: MakeClient, nowhere: str, wrong: str
) -> None:
    async with make_client(server_url=nowhere) as flux0:
        with pytest.raises(InvalidArgument, match="session_id"):
            await perform(flux0, wrong, {"text": "Hi"})
        with pytest.raises(InvalidArgument, match="session_id"):
            await flux0.sessions.retrieve_async(session_id=wrong)
        with pytest.raises(InvalidArgument, match="session_id"):
            await flux0.sessions.list_events_async(session_id=wrong)


# --- what goes wrong on the way


async def test_a_crashed_agent_is_an_idle_stream(make_client: MakeClient, session_id: str) -> None:
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


async def test_a_server_that_dies_interrupts_the_turn(
    make_client: MakeClient, own_server: Callable[[], Flux0Server], fresh_name: str
) -> None:
    server = own_server()
    async with make_client(server_url=server.url) as flux0:
        session = await flux0.sessions.create_async(agent_id=server.agent_id)
        async with await perform(flux0, session.id, {"text": "Hi"}, {"wait": fresh_name}) as stream:
            event = await anext(stream)
            server.kill()
            with pytest.raises(StreamInterrupted, match="after 1 event") as caught:
                await anext(stream)
            assert not stream.finished
    assert isinstance(event, ChunkEvent)
    assert caught.value.correlation_id == event.correlation_id
    assert caught.value.event_count == 1
    assert caught.value.__cause__ is not None
