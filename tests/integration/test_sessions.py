"""Sessions, by way of the client, on the real server."""

from __future__ import annotations

from uuid import uuid4

import pytest

from flux0 import HTTPValidationError
from flux0.models import BadRequestError, InvalidArgument, NotFoundError
from support.modes import MakeClient
from support.server import Flux0Server
from support.turns import new_user


async def test_a_session_is_created_and_found_again(
    make_client: MakeClient, server: Flux0Server
) -> None:
    async with make_client() as flux0:
        session = await flux0.sessions.create_async(agent_id=server.agent_id, title="Fog 雾")
        found = await flux0.sessions.retrieve_async(session_id=session.id)
    assert (session.agent_id, session.title) == (server.agent_id, "Fog 雾")
    assert session.created_at.utcoffset() is not None
    assert found == session


async def test_an_id_may_be_chosen_and_chosen_twice(
    make_client: MakeClient, server: Flux0Server
) -> None:
    chosen, user = uuid4().hex[:10], new_user()
    async with make_client(headers=user) as flux0:
        for _ in range(2):
            session = await flux0.sessions.create_async(agent_id=server.agent_id, id=chosen)
            assert session.id == chosen
        assert [listed.id for listed in await flux0.sessions.list_async()] == [chosen, chosen]


async def test_a_session_may_greet(make_client: MakeClient, server: Flux0Server) -> None:
    async with make_client() as flux0:
        session = await flux0.sessions.create_async(agent_id=server.agent_id, allow_greeting=True)
        # The released server neither streams nor stores what the agent then says.
        assert (await flux0.sessions.list_events_async(session_id=session.id)).data == ()


async def test_a_title_has_at_most_200_characters(
    make_client: MakeClient, server: Flux0Server
) -> None:
    async with make_client() as flux0:
        session = await flux0.sessions.create_async(agent_id=server.agent_id, title="雾" * 200)
        assert session.title == "雾" * 200
        with pytest.raises(InvalidArgument, match="title must have at most 200 characters"):
            await flux0.sessions.create_async(agent_id=server.agent_id, title="雾" * 201)


async def test_a_session_with_an_agent_that_does_not_exist_is_refused(
    make_client: MakeClient,
) -> None:
    async with make_client() as flux0:
        with pytest.raises(BadRequestError, match="abcdefghij") as caught:
            await flux0.sessions.create_async(agent_id="abcdefghij")
        assert caught.value.status_code == 400
        with pytest.raises(HTTPValidationError, match="agent_id") as refused:
            await flux0.sessions.create_async(agent_id="short")
    assert [problem.loc for problem in refused.value.data.detail] == [("body", "agent_id")]


async def test_each_user_lists_their_own_sessions(
    make_client: MakeClient, server: Flux0Server
) -> None:
    ann, bob = new_user(), new_user()
    async with make_client() as flux0:
        create = flux0.sessions.create_async
        anns = [await create(agent_id=server.agent_id, http_headers=ann) for _ in range(2)]
        bobs = [await create(agent_id=server.agent_id, http_headers=bob)]
        assert [*await flux0.sessions.list_async(http_headers=ann)] == anns
        assert [*await flux0.sessions.list_async(http_headers=bob)] == bobs
        everybodys = await flux0.sessions.list_async()
    assert len({session.user_id for session in anns + bobs}) == 2
    assert not {session.id for session in anns + bobs} & {session.id for session in everybodys}


async def test_sessions_are_listed_by_agent(make_client: MakeClient, server: Flux0Server) -> None:
    async with make_client(headers=new_user()) as flux0:
        other = await flux0.agents.create_async(name="Other", type_="scripted")
        ours = await flux0.sessions.create_async(agent_id=server.agent_id)
        theirs = await flux0.sessions.create_async(agent_id=other.id)
        list_sessions = flux0.sessions.list_async
        assert (await list_sessions()).data == (ours, theirs)
        assert (await list_sessions(agent_id=other.id)).data == (theirs,)
        assert (await list_sessions(agent_id=server.agent_id)).data == (ours,)


async def test_a_session_that_does_not_exist_is_not_found(make_client: MakeClient) -> None:
    async with make_client() as flux0:
        with pytest.raises(NotFoundError, match="abcdefghij"):
            await flux0.sessions.retrieve_async(session_id="abcdefghij")
        with pytest.raises(HTTPValidationError, match="session_id"):
            await flux0.sessions.retrieve_async(session_id="short")
