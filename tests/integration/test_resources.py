"""Agents, sessions and stored events, with the real server."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import pytest

from flux0 import EventSource, EventType, HTTPValidationError
from flux0.models import Agent, BadRequestError, Event, InvalidArgument, NotFoundError
from integration.ways import few_ways
from support.modes import MakeClient
from support.server import Flux0Server
from support.turns import new_user, perform, rest_of

# --- agents


async def test_agents_are_created_retrieved_and_listed(
    make_client: MakeClient, server: Flux0Server
) -> None:
    async with make_client() as flux0:
        before = datetime.now(timezone.utc)
        create = flux0.agents.create_async
        plain = await create(name="Drizzle", type_="scripted")
        described = await create(name="雨", type_="scripted", description="é \u2028 😀" * 100)
        found = await flux0.agents.retrieve_async(agent_id=described.id)
        listed = await flux0.agents.list_async()
    assert (plain.name, plain.type, plain.description) == ("Drizzle", "scripted", None)
    assert (described.name, described.description) == ("雨", "é \u2028 😀" * 100)
    assert abs(described.created_at - before) < timedelta(minutes=1)
    assert found == described
    assert tuple(listed) == listed.data
    assert {type(each) for each in listed} == {Agent}
    assert {plain.id, described.id, server.agent_id} <= {each.id for each in listed}


@few_ways
async def test_validation_errors_have_a_message_or_details(make_client: MakeClient) -> None:
    async with make_client() as flux0:
        with pytest.raises(HTTPValidationError, match="'nonesuch' is not supported") as caught:
            await flux0.agents.create_async(name="Drizzle", type_="nonesuch")
        with pytest.raises(HTTPValidationError, match="agent_id: String should have") as detailed:
            await flux0.agents.retrieve_async(agent_id="short")
    assert (caught.value.status_code, caught.value.data.detail) == (422, ())
    assert "nonesuch" in caught.value.body
    assert caught.value.headers["content-type"] == "application/json"
    (problem,) = detailed.value.data.detail
    assert (problem.loc, problem.type) == (("path", "agent_id"), "string_too_short")
    assert problem.msg in detailed.value.message
    assert problem.input == "short"


async def test_special_characters_in_ids_do_not_change_the_route(make_client: MakeClient) -> None:
    async with make_client() as flux0:
        for agent_id in ("a b+cd;e=f", "é456789012"):
            with pytest.raises(NotFoundError, match=f"ID {agent_id} not found".replace("+", r"\+")):
                await flux0.agents.retrieve_async(agent_id=agent_id)
        with pytest.raises(HTTPValidationError):
            await flux0.agents.retrieve_async(agent_id="x" * 5000)


@few_ways
async def test_ids_that_would_change_the_path_are_rejected(
    make_client: MakeClient, session_id: str
) -> None:
    invalid = ["", ".", "../agents", f"../{session_id}", f"{session_id}/", f"{session_id}?x="]
    async with make_client() as flux0:
        for each in (*invalid, f"{session_id}/events/stream#", "%2e%2e", "a%2Fb", "\n", "\ud800"):
            with pytest.raises(InvalidArgument, match="agent_id"):
                await flux0.agents.retrieve_async(agent_id=each)
            for call in (flux0.sessions.retrieve_async, flux0.sessions.list_events_async):
                with pytest.raises(InvalidArgument, match="session_id"):
                    await call(session_id=each)
            with pytest.raises(InvalidArgument, match="session_id"):
                await flux0.sessions.create_event_async(session_id=each, content="[]")
        assert (await flux0.sessions.list_events_async(session_id=session_id)).data == ()


# --- sessions


@few_ways
async def test_created_session_can_be_retrieved(
    make_client: MakeClient, server: Flux0Server
) -> None:
    async with make_client() as flux0:
        session = await flux0.sessions.create_async(agent_id=server.agent_id, title="雾" * 200)
        found = await flux0.sessions.retrieve_async(session_id=session.id)
        with pytest.raises(HTTPValidationError, match=r"body\.title: .* at most 200 characters"):
            await flux0.sessions.create_async(agent_id=server.agent_id, title="雾" * 201)
    assert (session.agent_id, session.title) == (server.agent_id, "雾" * 200)
    assert session.created_at.utcoffset() is not None
    assert found == session


@few_ways
async def test_metadata_and_mode_are_rejected_by_the_released_server(
    make_client: MakeClient, server: Flux0Server
) -> None:
    async with make_client() as flux0:
        plain = await flux0.sessions.create_async(agent_id=server.agent_id)
        with pytest.raises(HTTPValidationError) as caught:
            await flux0.sessions.create_async(agent_id=server.agent_id, metadata={}, mode="record")
        with pytest.raises(HTTPValidationError, match=r"body\.metadata: Extra inputs"):
            await flux0.conversation_async(agent=server.agent_id, metadata={"a": 1})
    assert (plain.metadata, plain.mode) == (None, None)
    assert [(problem.loc, problem.type) for problem in caught.value.data.detail] == [
        (("body", "metadata"), "extra_forbidden"),
        (("body", "mode"), "extra_forbidden"),
    ]


@few_ways
async def test_id_of_a_session_can_be_chosen_and_used_twice(
    make_client: MakeClient, server: Flux0Server
) -> None:
    chosen = uuid4().hex[:10]
    async with make_client(headers=new_user()) as flux0:
        for _ in range(2):
            session = await flux0.sessions.create_async(agent_id=server.agent_id, id=chosen)
            assert session.id == chosen
        assert [listed.id for listed in await flux0.sessions.list_async()] == [chosen, chosen]


@few_ways
async def test_greeting_is_allowed_but_not_stored_by_the_server(
    make_client: MakeClient, server: Flux0Server
) -> None:
    async with make_client() as flux0:
        session = await flux0.sessions.create_async(agent_id=server.agent_id, allow_greeting=True)
        # The released server neither streams nor stores the agent's greeting.
        assert (await flux0.sessions.list_events_async(session_id=session.id)).data == ()


@few_ways
async def test_unknown_ids_are_rejected_by_the_server(make_client: MakeClient) -> None:
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


@few_ways
async def test_sessions_are_listed_by_user_and_agent(
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
        anonymous = await list_sessions()
    assert ours.user_id == theirs.user_id != bobs.user_id
    assert not {ours.id, theirs.id, bobs.id} & {session.id for session in anonymous}


@few_ways
async def test_sessions_without_a_user_belong_only_to_the_user_anonymous(
    make_client: MakeClient, server: Flux0Server
) -> None:
    """`user=` therefore rejects this name; see the unit tests of `arguments.user`."""
    async with make_client() as flux0:
        session = await flux0.sessions.create_async(agent_id=server.agent_id)

        async def owns(**options: Any) -> bool:
            listed = await flux0.sessions.list_async(**options)
            return session.id in {each.id for each in listed}

        assert await owns()
        for value in ("anonymous", '"anonymous"', " anonymous; a=b", ""):
            assert await owns(http_headers={"cookie": f"flux0_user_sub={value}"})
        for user in ("Anonymous", " anonymous ", '"anonymous"', "an%6Fnymous", "anonymous;"):
            assert not await owns(user=user)


# --- events

# A turn with each type of event, in the order in which they are stored.
WEATHER = {"id": "c1", "name": "get_weather", "args": {"location": "San Francisco"}}
TURN: list[dict[str, Any]] = [
    {"status": "processing"},
    {"tool_call": WEATHER},
    {"tool_result": {**WEATHER, "result": {"sky": "foggy"}}},
    {"text": "It is foggy."},
]
STORED = ["message", "status", "message", "tool", "message"]


async def test_stored_events_are_filtered(make_client: MakeClient, session_id: str) -> None:
    async with make_client() as flux0:
        assert (await flux0.sessions.list_events_async(session_id=session_id)).data == ()
        for _ in range(2):
            await rest_of(await perform(flux0, session_id, *TURN))
        stored = (await flux0.sessions.list_events_async(session_id=session_id)).data
        assert [event.type for event in stored] == STORED * 2
        offsets = [event.offset for event in stored]
        assert offsets == sorted(set(offsets))
        first, second = dict.fromkeys(event.correlation_id for event in stored)
        everything: dict[str, Any] = {
            "min_offset": offsets[1],
            "source": "ai_agent",
            "correlation_id": second,
            "types": ["message"],
        }
        filters: list[tuple[dict[str, Any], Callable[[Event], bool]]] = [
            ({"min_offset": 0}, lambda event: True),
            ({"min_offset": offsets[2]}, lambda event: event.offset >= offsets[2]),
            ({"min_offset": offsets[-1] + 1}, lambda event: False),
            ({"source": "user"}, lambda event: event.source == "user"),
            ({"source": EventSource.AI_AGENT}, lambda event: event.source == "ai_agent"),
            ({"correlation_id": first}, lambda event: event.correlation_id == first),
            ({"correlation_id": "no"}, lambda event: False),
            ({"types": [EventType.MESSAGE]}, lambda event: event.type == "message"),
            ({"types": iter(["custom"])}, lambda event: False),
            ({"types": ["message", EventType.TOOL]}, lambda event: event.type != "status"),
            ({"types": ("status", "tool", "status")}, lambda event: event.type != "message"),
            ({"types": ["message", "tool", "status", "custom"]}, lambda event: True),
            (everything, lambda event: event in (stored[7], stored[9])),
        ]
        for options, matches in filters:
            events = await flux0.sessions.list_events_async(session_id=session_id, **options)
            assert [*events] == [event for event in stored if matches(event)]


@few_ways
async def test_unknown_event_type_is_sent_to_the_server(
    make_client: MakeClient, session_id: str
) -> None:
    async with make_client() as flux0:
        with pytest.raises(HTTPValidationError, match="Input should be 'message'"):
            await flux0.sessions.list_events_async(session_id=session_id, types=["newer"])
