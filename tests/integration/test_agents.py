"""Agents, by way of the client, on the real server."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from flux0 import HTTPValidationError
from flux0.models import Agent, InvalidArgument, NotFoundError
from integration.ways import few_ways
from support.modes import MakeClient
from support.server import Flux0Server


async def test_agents_are_created_found_and_listed(
    make_client: MakeClient, server: Flux0Server
) -> None:
    async with make_client() as flux0:
        before = datetime.now(timezone.utc)
        create = flux0.agents.create_async
        plain = await create(name="Drizzle", type_="scripted")
        told = await create(name="雨", type_="scripted", description="é \u2028 😀" * 100)
        found = await flux0.agents.retrieve_async(agent_id=told.id)
        listed = await flux0.agents.list_async()
    assert (plain.name, plain.type, plain.description) == ("Drizzle", "scripted", None)
    assert (told.name, told.description) == ("雨", "é \u2028 😀" * 100)
    assert abs(told.created_at - before) < timedelta(minutes=1)
    assert found == told
    assert tuple(listed) == listed.data
    assert {type(each) for each in listed} == {Agent}
    assert {plain.id, told.id, server.agent_id} <= {each.id for each in listed}


@few_ways
async def test_a_type_that_the_server_has_no_code_for_is_refused_in_words(
    make_client: MakeClient,
) -> None:
    async with make_client() as flux0:
        with pytest.raises(HTTPValidationError, match="'nonesuch' is not supported") as caught:
            await flux0.agents.create_async(name="Drizzle", type_="nonesuch")
    assert caught.value.status_code == 422
    assert caught.value.data.detail == ()
    assert "nonesuch" in caught.value.body
    assert caught.value.headers["content-type"] == "application/json"


@few_ways
async def test_an_id_that_cannot_be_one_is_refused_in_detail(make_client: MakeClient) -> None:
    async with make_client() as flux0:
        with pytest.raises(HTTPValidationError, match="agent_id: String should have") as caught:
            await flux0.agents.retrieve_async(agent_id="short")
    (problem,) = caught.value.data.detail
    assert problem.loc == ("path", "agent_id")
    assert problem.type == "string_too_short"
    assert problem.msg in caught.value.message
    assert problem.input == "short"


async def test_an_id_that_does_not_exist_reaches_no_other_route(make_client: MakeClient) -> None:
    async with make_client() as flux0:
        for agent_id in ("a b+cd;e=f", "é456789012"):
            with pytest.raises(NotFoundError, match=f"ID {agent_id} not found".replace("+", r"\+")):
                await flux0.agents.retrieve_async(agent_id=agent_id)
        with pytest.raises(HTTPValidationError):
            await flux0.agents.retrieve_async(agent_id="x" * 5000)


@few_ways
async def test_what_no_url_can_hold_as_an_id_is_not_sent(
    make_client: MakeClient, session_id: str
) -> None:
    wrong = ["", ".", "../agents", f"../{session_id}", f"{session_id}/", f"{session_id}?x="]
    async with make_client() as flux0:
        for each in (*wrong, f"{session_id}/events/stream#", "%2e%2e", "a%2Fb", "\n", "\ud800"):
            with pytest.raises(InvalidArgument, match="agent_id"):
                await flux0.agents.retrieve_async(agent_id=each)
            for call in (flux0.sessions.retrieve_async, flux0.sessions.list_events_async):
                with pytest.raises(InvalidArgument, match="session_id"):
                    await call(session_id=each)
            with pytest.raises(InvalidArgument, match="session_id"):
                await flux0.sessions.create_event_async(session_id=each, content="[]")
        assert (await flux0.sessions.list_events_async(session_id=session_id)).data == ()
