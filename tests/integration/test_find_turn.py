"""`find_turn` with the real server, after the connection was cut and while the agent writes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from attrs import frozen

from flux0 import RetryConfig
from flux0.models import AgentError, Flux0Error, StatusData
from integration.ways import few_ways
from support.modes import MakeClient
from support.relay import Relay
from support.server import Flux0Server
from support.turns import new_user


@frozen
class Place:
    """A place in an exchange where the relay cuts the connection.

    Attributes:
        marker: the first bytes that are not forwarded.
        sent: `sent` of the error.
        is_stored: whether the server stores the message.
    """

    marker: bytes
    sent: str
    is_stored: bool


PLACES = {
    "before the request": Place(b"POST /api/sessions/", "maybe", is_stored=False),
    "before the response head": Place(b"content-type: text/event-stream", "maybe", is_stored=True),
    "before the first event": Place(b"event: chunk", "maybe", is_stored=True),
    "within the turn": Place(b'"value": "Two"', "yes", is_stored=True),
}


def content_of(*script: dict[str, Any]) -> str:
    return json.dumps(script)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
async def test_message_is_found_after_the_connection_was_cut(
    make_client: MakeClient, server: Flux0Server, relay: Relay, place: Place, fresh_name: str
) -> None:
    content = content_of({"text": "One"}, {"text": "Two"}, {"wait": fresh_name}, {"text": "Three"})
    options = {"server_url": relay.url, "retry_config": RetryConfig("none")}
    async with make_client(**options) as flux0, make_client() as direct:
        session = await flux0.sessions.create_async(agent_id=server.agent_id)
        chat = await flux0.conversation_async(session=session)
        relay.cut_before(place.marker)
        with pytest.raises(Flux0Error) as caught:
            await chat.ask(content)

        same = await direct.conversation_async(session=session)
        turn = await same.find_turn(content, since=0, wait_ms=1_000 if place.is_stored else 0)
        assert caught.value.sent == place.sent
        assert (turn is not None) is place.is_stored
        if turn is not None:
            assert turn.message.text == content
            assert "One\nTwo".startswith(turn.text)
        if place.sent == "yes":
            assert getattr(caught.value, "correlation_id", None) == getattr(
                turn, "correlation_id", ""
            )


@few_ways
async def test_since_separates_turns_with_the_same_message(
    make_client: MakeClient, session_id: str
) -> None:
    content = content_of({"status": "typing"}, {"text": "Hi"})
    async with make_client() as flux0:
        chat = await flux0.conversation_async(session=session_id)
        offsets: list[int] = []
        for _ in range(3):
            offsets.append(await chat.next_offset())
            await chat.ask(content)
        turns = [await chat.find_turn(content, since=offset) for offset in offsets]
        missing = await chat.find_turn(content, since=await chat.next_offset(), wait_ms=0)
    assert [turn and turn.offset for turn in turns] == offsets == [0, 3, 6]
    assert [turn and turn.text for turn in turns] == ["Hi"] * 3
    assert len({turn.correlation_id for turn in turns if turn}) == 3
    assert missing is None


@few_ways
async def test_stored_turn_has_the_error_that_the_agent_reported(
    make_client: MakeClient, session_id: str
) -> None:
    scripts = [{"error": {"code": 7}}], [{"text": "Hm"}, {"error": None}], [{"text": "Hi"}]
    failed, without_data, short = (content_of(*script) for script in scripts)
    async with make_client() as flux0:
        chat = await flux0.conversation_async(session=session_id)
        for content in (failed, without_data):
            with pytest.raises(AgentError):
                await chat.ask(content)
        await chat.ask(short)
        turns = [await chat.find_turn(each, since=0) for each in (failed, without_data, short)]
    errors = [turn.error for turn in turns if turn]
    assert errors == [StatusData("error", data={"code": 7}), StatusData("error"), None]
    assert [turn and turn.text for turn in turns] == ["", "Hm", "Hi"]


@few_ways
async def test_turn_is_found_while_the_agent_is_writing(
    make_client: MakeClient, server: Flux0Server, session_id: str, fresh_name: str
) -> None:
    content = content_of({"text": "One"}, {"wait": fresh_name}, {"text": "Two"})
    async with make_client() as flux0:
        chat = await flux0.conversation_async(session=session_id)
        async with await chat.send(content) as stream:
            assert await chat.find_turn(content, since=0)
            await anext(stream)
            turn = await chat.find_turn(correlation_id=stream.correlation_id)
            assert turn
            assert turn.text in ("", "One")
            server.release(fresh_name)
            await stream.final_messages()
        complete = await chat.find_turn(correlation_id=stream.correlation_id)
    assert complete
    assert (complete.message, complete.text) == (turn.message, "One\nTwo")


@few_ways
async def test_every_user_can_read_a_session_but_it_belongs_to_one(
    make_client: MakeClient, server: Flux0Server
) -> None:
    owner, other = (new_user()["cookie"].removeprefix("flux0_user_sub=") for _ in range(2))
    async with make_client() as flux0:
        own = await flux0.conversation_async(agent=server.agent_id, user=owner)
        await own.ask(content_of({"text": "Secret"}))
        foreign = await flux0.conversation_async(session=own.session_id, user=other)
        read = await foreign.find_turn(content_of({"text": "Secret"}), since=0)
        written = await foreign.ask(content_of({"text": "Injected"}))
        assert read
        assert (read.text, written.text) == ("Secret", "Injected")
        assert await own.belongs_to_user()
        assert not await foreign.belongs_to_user()
