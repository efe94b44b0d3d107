"""Sessions, by way of the client, on the real server."""

from __future__ import annotations

from uuid import uuid4

import pytest

from flux0 import HTTPValidationError
from flux0.models import BadRequestError, InvalidArgument, NotFoundError
from integration.ways import few_ways
from support.modes import MakeClient
from support.server import Flux0Server
from support.turns import new_user

pytestmark = few_ways


async def test_a_session_is_created_and_found_again(
    make_client: MakeClient, server: Flux0Server
) -> None:
    async with make_client() as flux0:
        session = await flux0.sessions.create_async(agent_id=server.agent_id, title="雾" * 200)
        found = await flux0.sessions.retrieve_async(session_id=session.id)
        with pytest.raises(InvalidArgument, match="title must have at most 200 characters"):
            await flux0.sessions.create_async(agent_id=server.agent_id, title="雾" * 201)
    assert (session.agent_id, session.title) == (server.agent_id, "雾" * 200)
    assert session.created_at.utcoffset() is not None
    assert found == session


async def test_an_id_may_be_chosen_and_chosen_twice(
    make_client: MakeClient, server: Flux0Server
) -> None:
    chosen = uuid4().hex[:10]
    async with make_client(headers=new_user()) as flux0:
        for _ in range(2):
            session = await flux0.sessions.create_async(agent_id=server.agent_id, id=chosen)
            assert session.id == chosen
        assert [listed.id for listed in await flux0.sessions.list_async()] == [chosen, chosen]


async def test_a_session_may_greet(make_client: MakeClient, server: Flux0Server) -> None:
    async with make_client() as flux0:
        session = await flux0.sessions.create_async(agent_id=server.agent_id, allow_greeting=True)
        # The released server neither streams nor stores what the agent then says.
        assert (await flux0.sessions.list_events_async(session_id=session.id)).data == ()


async def test_what_does_not_exist_is_refused(make_client: MakeClient) -> None:
    async with make_client() as flux0:
        with pytest.raises(BadRequestError, match="abcdefghij") as caught:
            await flux0.sessions.create_async(agent_id="abcdefghij")
        with pytest.raises(HTTPValidationError, match="agent_id") as refused:
            await flux0.sessions.create_async(agent_id="short")
        with pytest.raises(NotFoundError, match="abcdefghij"):
            await flux0.sessions.retrieve_async(session_id="abcdefghij")
        with pytest.raises(HTTPValidationError, match="session_id"):
            await flux0.sessions.retrieve_async(session_id="short")
        with pytest.raises(BadRequestError, match="abcdefghij"):
            await flux0.sessions.list_events_async(session_id="abcdefghij")
    assert caught.value.status_code == 400
    assert [problem.loc for problem in refused.value.data.detail] == [("body", "agent_id")]


async def test_each_user_lists_their_own_sessions_by_agent(
    make_client: MakeClient, server: Flux0Server
) -> None:
    ann, bob = new_user(), new_user()
    async with make_client() as flux0:
        create, list_sessions = flux0.sessions.create_async, flux0.sessions.list_async
        other = await flux0.agents.create_async(name="Other", type_="scripted")
        ours = await create(agent_id=server.agent_id, http_headers=ann)
        theirs = await create(agent_id=other.id, http_headers=ann)
        bobs = await create(agent_id=server.agent_id, http_headers=bob)
        assert (await list_sessions(http_headers=bob)).data == (bobs,)
        assert (await list_sessions(http_headers=ann)).data == (ours, theirs)
        for agent_id, expected in ((other.id, theirs), (server.agent_id, ours)):
            listed = await list_sessions(agent_id=agent_id, http_headers=ann)
            assert listed.data == (expected,)
        everybodys = await list_sessions()
    assert ours.user_id == theirs.user_id != bobs.user_id
    assert not {ours.id, theirs.id, bobs.id} & {session.id for session in everybodys}
