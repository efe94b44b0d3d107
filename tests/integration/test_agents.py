"""Agents, by way of the client, on the real server."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from flux0 import HTTPValidationError
from flux0.models import Agent, InvalidArgument, NotFoundError
from support.modes import MakeClient
from support.server import Flux0Server


async def test_the_agents_of_the_server_are_listed(
    make_client: MakeClient, server: Flux0Server
) -> None:
    async with make_client() as flux0:
        agents = await flux0.agents.list_async()
    assert server.agent_id in [agent.id for agent in agents.data]
    assert tuple(agents) == agents.data
    assert {type(agent) for agent in agents} == {Agent}


@pytest.mark.parametrize("description", ["Knows the weather.", "é \u2028 😀" * 1000, None])
async def test_an_agent_is_created_and_found_again(
    make_client: MakeClient, description: str | None
) -> None:
    async with make_client() as flux0:
        before = datetime.now(timezone.utc)
        agent = await flux0.agents.create_async(
            name="Drizzle 雨", type_="scripted", description=description
        )
        found = await flux0.agents.retrieve_async(agent_id=agent.id)
        listed = await flux0.agents.list_async()
    assert (agent.name, agent.type, agent.description) == ("Drizzle 雨", "scripted", description)
    assert abs(agent.created_at - before) < timedelta(minutes=1)
    assert found == agent
    assert agent in listed


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


async def test_an_agent_that_does_not_exist_is_not_found(make_client: MakeClient) -> None:
    async with make_client() as flux0:
        with pytest.raises(NotFoundError, match="abcdefghij") as caught:
            await flux0.agents.retrieve_async(agent_id="abcdefghij")
    assert caught.value.status_code == 404


async def test_an_id_that_cannot_be_one_is_refused_in_detail(make_client: MakeClient) -> None:
    async with make_client() as flux0:
        with pytest.raises(HTTPValidationError, match="agent_id: String should have") as caught:
            await flux0.agents.retrieve_async(agent_id="short")
    (problem,) = caught.value.data.detail
    assert problem.loc == ("path", "agent_id")
    assert problem.type == "string_too_short"
    assert problem.msg in caught.value.message
    assert problem.input == "short"


@pytest.mark.parametrize("agent_id", ["a b+c", "a;b=c", "é", "x" * 5000])
async def test_an_id_reaches_no_other_route(make_client: MakeClient, agent_id: str) -> None:
    async with make_client() as flux0:
        with pytest.raises((NotFoundError, HTTPValidationError)):
            await flux0.agents.retrieve_async(agent_id=agent_id)


@pytest.mark.parametrize(
    "agent_id", ["", ".", "../agents", "a/b?c", "a#b", "a%2Fb", "\n", "\ud800"]
)
async def test_what_no_url_can_hold_as_an_id_is_not_sent(
    make_client: MakeClient, agent_id: str, nowhere: str
) -> None:
    async with make_client(server_url=nowhere) as flux0:
        with pytest.raises(InvalidArgument, match="agent_id"):
            await flux0.agents.retrieve_async(agent_id=agent_id)
