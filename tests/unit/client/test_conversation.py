"""Conversations: opening, users, turns and history."""

from __future__ import annotations

from copy import copy
from datetime import datetime, timezone
from typing import Any

import pytest
from attrs import evolve

from flux0 import AsyncConversation, Flux0, to_json
from flux0.domain.api_errors import BadRequestError, HTTPValidationError
from flux0.domain.errors import AgentError, AgentNotFound, DecodeError, InvalidArgument
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.stored_models import ConsumptionOffsets, Event, MessageData, Session, ToolData
from flux0.flows import CallRequest, Flow, SendFlow
from flux0.observers import Call, Observer
from flux0.ports import Response
from flux0.testing import (
    AgentStep,
    CallTool,
    Fail,
    FakeTransport,
    GiveResult,
    Pause,
    Reason,
    Report,
    Say,
)
from flux0.usecases.options import CallOptions
from support.in_memory import in_every_mode, script, scripted_response as json_answer
from support.modes import in_mode, result_of, unwrapped
from support.transports import Mode

WEATHER = CallTool("weather", {"city": "SF"})
TURN: list[AgentStep] = [
    Report("processing"),
    Reason("Hm"),
    WEATHER,
    GiveResult(WEATHER, "sunny"),
    Say("Sunny."),
]


def client(mode: Mode, fake: FakeTransport, **options: Any) -> Flux0:
    return in_mode(mode, Flux0(transport=fake, **options))


def operations(fake: FakeTransport) -> list[str]:
    return [call.operation for call in fake.calls]


def said(messages: tuple[Event | TurnMessage, ...]) -> list[object]:
    """Return the contents of messages and the results of tools."""
    contents: list[object] = []
    for message in messages:
        if isinstance(message.data, MessageData):
            contents += [getattr(part, "content", part) for part in message.data.parts]
        elif isinstance(message.data, ToolData):
            contents += [call.result and call.result.data for call in message.data.tool_calls]
    return contents


# --- opening


@in_every_mode
async def test_conversation_with_agent_creates_a_session(mode: Mode) -> None:
    fake = FakeTransport()

    async with client(mode, fake) as flux0:
        (agent,) = await flux0.agents.list_async()
        for given in (agent, agent.id):
            chat = await flux0.conversation_async(agent=given, title="Fog")
            assert getattr(chat.session, "title", "") == "Fog"
            fake.assert_called("sessions.create", agent_id=agent.id, title="Fog")
        untitled = await flux0.conversation_async(agent=agent)
        assert getattr(untitled.session, "title", "") is None
        assert len(await flux0.sessions.list_async()) == 3


@in_every_mode
async def test_observers_get_the_known_agent_of_a_conversation(mode: Mode) -> None:
    agents: list[tuple[str | None, str | None]] = []

    class AgentRecorder(Observer):
        def on_call_start(self, call: Call) -> None:
            agents.append((call.agent_id, call.agent_name))

    fake = FakeTransport()
    async with client(mode, fake, observers=[AgentRecorder()]) as flux0:
        agent = await flux0.agents.retrieve_async(agent_id=fake.agent_id)
        by_agent = await flux0.conversation_async(agent=agent)
        session = await flux0.sessions.retrieve_async(session_id=by_agent.session_id)
        agents.clear()
        await result_of(by_agent.ask("Hi"))
        await result_of((await flux0.conversation_async(session=session)).ask("Hi"))
    assert agents == [(agent.id, agent.name), (agent.id, None)]


@in_every_mode
async def test_conversation_with_session_continues_it(mode: Mode) -> None:
    fake = FakeTransport()

    async with client(mode, fake) as flux0:
        session = await flux0.sessions.create_async(agent_id=fake.agent_id)
        by_value = await flux0.conversation_async(session=session)
        assert by_value.session is session
        assert operations(fake) == ["sessions.create"]
        by_id = await flux0.conversation_async(session=session.id)
        assert by_id.session is None
        assert by_value.session_id == by_id.session_id == session.id
        assert operations(fake) == ["sessions.create"]
        await result_of(by_id.ask("Hi"))
        assert operations(fake) == ["sessions.create", "sessions.create_event"]
        unknown = await flux0.conversation_async(session="x" * 10)
        with pytest.raises(BadRequestError, match="Session with ID xxxxxxxxxx not found"):
            await unknown.ask("Hi")


SESSION = Session(
    id="0123456789",
    agent_id="0123456789",
    user_id="u",
    created_at=datetime(2026, 1, 1, tzinfo=timezone.utc),
    consumption_offsets=ConsumptionOffsets(),
)


@in_every_mode
async def test_invalid_arguments_of_conversation_are_rejected_before_sending(mode: Mode) -> None:
    fake = FakeTransport()
    given: list[tuple[dict[str, Any], str]] = [
        ({}, "agent"),
        ({"agent": "a", "session": "s"}, "agent"),
        ({"agent": SESSION}, "agent"),
        ({"agent": 7}, "agent"),
        ({"agent": ""}, "agent_id"),
        ({"session": 7}, "session"),
        ({"session": ""}, "session_id"),
        ({"session": SESSION, "title": "Fog"}, "title"),
        ({"agent": "a", "title": 7}, "title"),
    ]

    async with client(mode, fake) as flux0:
        for options, argument in given:
            with pytest.raises(InvalidArgument) as caught:
                await flux0.conversation_async(**options)
            assert caught.value.argument == argument

    assert fake.calls == ()


@in_every_mode
async def test_new_session_with_an_id_that_no_url_can_contain_is_a_decode_error(
    mode: Mode,
) -> None:
    """The session exists, so the error does not say that nothing was sent."""
    for id_ in ("../../x", "a b?", "..", "", "a\nb"):
        created = json_answer(to_json(evolve(SESSION, id=id_)).encode(), status=201)
        async with in_mode(mode, Flux0(transport=script(created))) as flux0:
            with pytest.raises(DecodeError, match="id: must ") as caught:
                await flux0.conversation_async(agent="0123456789")

        assert (caught.value.field, caught.value.sent) == ("id", "maybe")
        assert caught.value.operation == "sessions.create"


@in_every_mode
async def test_error_for_a_name_as_agent_says_how_to_get_an_agent_by_name(mode: Mode) -> None:
    async with client(mode, FakeTransport(agent_name="Drizzle")) as flux0:
        for call in (
            flux0.conversation_async(agent="Drizzle"),
            flux0.agents.retrieve_async(agent_id="Drizzle"),
        ):
            with pytest.raises(HTTPValidationError) as caught:
                await call
            assert str(caught.value).endswith(
                "agent_id: String should have at least 10 characters; 'Drizzle' is not an id: "
                "use client.agents.first(name='Drizzle') to get an agent by name"
            )
            assert str(copy(caught.value)) == str(caught.value)


@in_every_mode
async def test_repr_of_a_conversation_shows_its_session_and_its_user(mode: Mode) -> None:
    name = "Conversation" if mode == "sync" else "AsyncConversation"
    async with client(mode, FakeTransport()) as flux0:
        for user, shown in (("ada", ", user='ada'"), (None, "")):
            chat = await flux0.conversation_async(session="0123456789", user=user)
            assert repr(unwrapped(chat)) == f"{name}(session='0123456789'{shown})"


# --- users


@in_every_mode
async def test_user_name_may_have_any_characters(mode: Mode) -> None:
    names = ["Ada Lovelace", "José", "日本", 'a"b;c,d\\e', "100%", "100%25", "a\r\nb", " "]
    fake = FakeTransport()

    async with client(mode, fake) as flux0:
        for name in (*names, *names):
            chat = await flux0.conversation_async(agent=fake.agent_id, user=name)
            assert fake.calls[-1].user == name
            assert await chat.belongs_to_user()
            assert len(await flux0.sessions.list_async()) == 0

    cookies = [call.headers["cookie"] for call in fake.calls if "cookie" in call.headers]
    assert cookies[0] == "flux0_user_sub=Ada%20Lovelace"
    assert {call.user for call in fake.calls} == {*names, None}


@in_every_mode
async def test_every_call_of_a_conversation_sends_the_user_cookie(mode: Mode) -> None:
    for user, cookie in (("ada", "flux0_user_sub=ada"), (None, None)):
        fake = FakeTransport()
        async with client(mode, fake) as flux0:
            chat = await flux0.conversation_async(agent=fake.agent_id, user=user)
            stream = await chat.send("Hi")
            await result_of(stream.final_messages())
            await result_of(stream.stored_events())
            await chat.history()
            again = await flux0.conversation_async(session=chat.session_id, user=user)
            await again.history(extra_query={"new": "1"})

        assert fake.calls[-1].arguments["new"] == "1"
        assert operations(fake) == [
            *("sessions.create", "sessions.create_event"),
            *("sessions.list_events", "sessions.list_events", "sessions.list_events"),
        ]
        assert {call.headers.get("cookie") for call in fake.calls} == {cookie}


@in_every_mode
async def test_each_user_name_is_a_separate_user(mode: Mode) -> None:
    fake = FakeTransport()

    async with client(mode, fake) as flux0:
        users = ("ada", "bob@example.org", "a=b%20c!#$&'()*+-./:<>?[]^_`{|}~", None)
        chats = [await flux0.conversation_async(agent=fake.agent_id, user=user) for user in users]

    assert len({getattr(chat.session, "user_id", "") for chat in chats}) == len(users)


BAD_USERS: list[Any] = ["", "\ud800", 7, b"ada", True, ["ada"]]


@in_every_mode
async def test_user_that_is_not_a_nonempty_text_is_rejected(mode: Mode) -> None:
    fake = FakeTransport()
    ways: list[dict[str, Any]] = [
        {"agent": fake.agent_id},
        {"session": "0123456789"},
        {"session": SESSION},
    ]

    async with client(mode, fake) as flux0:
        for user in BAD_USERS:
            for options in ways:
                with pytest.raises(InvalidArgument) as caught:
                    await flux0.conversation_async(user=user, **options)
                assert caught.value.argument == "user"

    assert fake.calls == ()


@in_every_mode
async def test_methods_of_a_conversation_send_its_user_and_their_options(mode: Mode) -> None:
    fake = FakeTransport()

    async with client(mode, fake) as flux0:
        chat = await flux0.conversation_async(agent=fake.agent_id, user="ada")
        assert await chat.next_offset() == 0
        options: CallOptions = {"http_headers": {"cookie": "a=1"}}
        assert await chat.find_turn("Hi", since=0, wait_ms=0, **options) is None
        assert await chat.belongs_to_user(**options)

    cookies = [call.headers.get("cookie") for call in fake.calls]
    assert cookies == [*["flux0_user_sub=ada"] * 2, *["a=1; flux0_user_sub=ada"] * 2]


@in_every_mode
async def test_session_belongs_only_to_the_user_who_created_it(mode: Mode) -> None:
    fake = FakeTransport("Hello.")

    async with client(mode, fake) as flux0:
        for owner in ("ada", None):
            chat = await flux0.conversation_async(agent=fake.agent_id, user=owner)
            for user in ("ada", "eve", None):
                same = await flux0.conversation_async(session=chat.session_id, user=user)
                assert await same.belongs_to_user() is (user == owner)
                # The server also accepts messages from a user who does not own the session.
                assert (await result_of(same.ask("Hi"))).text == "Hello."
        unknown = await flux0.conversation_async(session="0123456789", user="ada")
        assert await unknown.belongs_to_user() is False


# --- history


async def finished_turn(chat: AsyncConversation, content: str) -> tuple[TurnMessage, ...]:
    messages: tuple[TurnMessage, ...] = await result_of((await chat.send(content)).final_messages())
    return messages


@in_every_mode
async def test_history_returns_messages_and_tool_results_in_order(mode: Mode) -> None:
    fake = FakeTransport()
    fake.script(TURN, "Bye")

    async with client(mode, fake) as flux0:
        chat = await flux0.conversation_async(agent=fake.agent_id)
        assert await chat.history() == ()
        await finished_turn(chat, "How is it?")
        await finished_turn(chat, "Thanks")
        history = await chat.history()

    asked, thought, called, *rest = said(history)
    assert asked == "How is it?"
    assert getattr(thought, "reasoning", None) == "Hm"
    assert getattr(called, "tool_name", None) == "weather"
    assert rest == ["sunny", "Sunny.", "Thanks", "Bye"]
    assert fake.assert_called("sessions.list_events").body == ["message", "tool"]


@in_every_mode
async def test_history_with_live_messages_has_each_message_once(mode: Mode) -> None:
    fake = FakeTransport()
    pause, twice = Pause(1), Say("Twice")
    fake.script("Once", [pause, twice, pause, twice, pause, Say("Not yet", pieces=2, pause=1)])

    async with client(mode, fake) as flux0:
        chat = await flux0.conversation_async(agent=fake.agent_id)
        before = await finished_turn(chat, "1")
        stream = await chat.send("2")
        said_before = ["1", "Once", "2"]
        assert said(await chat.history(before)) == said_before
        for live in (["Twice"], ["Twice"] * 2, ["Twice", "Twice", "Not"]):
            await anext(stream)
            assert said(await chat.history(stream.messages)) == said_before + live
        final = await result_of(stream.final_messages())
        history = await chat.history()
        assert said(history) == [*said_before, "Twice", "Twice", "Not yet"]
        assert await chat.history((*before, *final)) == history


# --- asking


@in_every_mode
async def test_ask_returns_the_reply(mode: Mode) -> None:
    fake = FakeTransport(TURN)

    async with client(mode, fake) as flux0:
        chat = await flux0.conversation_async(agent=fake.agent_id, user="ada")
        reply = await result_of(chat.ask("Weather?", timeout_ms=5000))

        assert (reply.text, str(reply)) == ("Sunny.", "Sunny.")
        assert [call.result and call.result.data for call in reply.tool_calls] == ["sunny"]
        assert len(reply.messages) == 4
    fake.assert_no_open_streams()


# --- cookies


@in_every_mode
async def test_user_cookie_is_merged_with_other_cookies(mode: Mode) -> None:
    fake = FakeTransport()

    async with client(mode, fake, headers={"Cookie": "a=1=1; flux0_user_sub=eve"}) as flux0:
        chat = await flux0.conversation_async(agent=fake.agent_id, user="ada")
        await result_of(chat.ask("Hi", http_headers={"cookie": "b=2; a=3"}))

    assert [call.headers.get("cookie") for call in fake.calls] == [
        "a=1=1; flux0_user_sub=ada",
        "a=3; flux0_user_sub=ada; b=2",
    ]


# --- fields of a newer server


@in_every_mode
async def test_extra_query_and_body_are_sent_with_the_message_only(mode: Mode) -> None:
    fake = FakeTransport()

    async with client(mode, fake) as flux0:
        chat = await flux0.conversation_async(agent=fake.agent_id)
        with pytest.raises(HTTPValidationError, match="Extra inputs are not permitted"):
            await result_of(chat.ask("Hi", extra_body={"mode": "replay"}))
        await result_of(chat.ask("Hi", extra_query={"mode": "re play"}))
        stream = await result_of(chat.send("Hi", extra_query={"a": "b"}))
        await result_of(stream.final_messages())
        await result_of(stream.stored_events())

    queries = [dict(call.query) for call in fake.calls]
    assert queries[:4] == [{}, {}, {"mode": "re play"}, {"a": "b"}]
    assert operations(fake)[4:] == ["sessions.list_events"]
    assert "a" not in queries[4]


@in_every_mode
async def test_options_of_conversation_are_sent_with_the_new_session_only(mode: Mode) -> None:
    fake = FakeTransport()
    fields: dict[str, Any] = {"timeout_ms": 30_000, "extra_query": {"a": "b"}}

    async with client(mode, fake) as flux0:
        with pytest.raises(HTTPValidationError, match=r"body\.metadata: Extra inputs"):
            await flux0.conversation_async(agent=fake.agent_id, metadata={})
        chat = await flux0.conversation_async(agent=fake.agent_id, user="ada", **fields)
        await result_of(chat.ask("Hi"))

        new: dict[str, Any] = {"title": "Rain", "metadata": {}, "mode": "auto", **fields}
        for name, value in new.items():
            options: dict[str, Any] = {name: value}
            with pytest.raises(InvalidArgument, match=f"{name} is for a new session"):
                await flux0.conversation_async(session=chat.session_id, **options)
        for target in ({"agent": fake.agent_id}, {"session": chat.session_id}):
            options = {**target, "user_id": "ada"}
            with pytest.raises(TypeError, match="unexpected keyword argument 'user_id'"):
                await flux0.conversation_async(**options)

    _, created, sent = fake.calls
    assert (dict(created.query), dict(sent.query)) == ({"a": "b"}, {})
    assert created.headers["cookie"] == sent.headers["cookie"] == "flux0_user_sub=ada"


@in_every_mode
async def test_metadata_and_mode_of_a_new_session_are_stored_by_a_newer_server(mode: Mode) -> None:
    fake = FakeTransport(newer_server=True)

    async with client(mode, fake) as flux0:
        chat = await flux0.conversation_async(
            agent=fake.agent_id, metadata={"theme": "dark"}, mode="manual"
        )
        stored = await flux0.sessions.retrieve_async(session_id=chat.session_id)

    assert chat.session == stored
    assert (stored.metadata, stored.mode, stored.extra) == ({"theme": "dark"}, "manual", {})


@in_every_mode
async def test_server_url_applies_to_the_whole_conversation(mode: Mode) -> None:
    urls: list[str] = []

    def record(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        urls.append(request.url)
        return send(request)

    async with client(mode, FakeTransport(), middleware=[record]) as flux0:
        agent = await flux0.agents.first_async()
        chat = await flux0.conversation_async(agent=agent, server_url="http://other")
        await result_of(chat.ask("Hi"))
        same = await flux0.conversation_async(session=chat.session_id, server_url="http://other")
        await same.history()

    assert [url.partition("/api")[0] for url in urls[1:]] == ["http://other"] * (len(urls) - 1)
    assert len(urls) >= 4


@in_every_mode
async def test_stored_events_of_a_stream_and_of_its_error_accept_options(mode: Mode) -> None:
    fake = FakeTransport([Say("Oh"), Fail("the cause")])

    async with client(mode, fake) as flux0:
        chat = await flux0.conversation_async(agent=fake.agent_id)
        stream = await chat.send("Hi")
        with pytest.raises(AgentError) as caught:
            await result_of(stream.final_messages())
        await result_of(stream.stored_events(extra_query={"a": "1"}))
        await result_of(caught.value.stored_events(extra_query={"a": "2"}))

    assert [call.query.get("a") for call in fake.calls[-2:]] == ["1", "2"]


# --- the first agent


@in_every_mode
async def test_first_returns_matching_agent_or_error_lists_all_agents(mode: Mode) -> None:
    fake = FakeTransport()

    async with client(mode, fake) as flux0:
        (existing,) = await flux0.agents.list_async()
        made = await flux0.agents.create_async(name="Helper", type_=existing.type)

        assert (await flux0.agents.first_async()).id == fake.agent_id
        assert await flux0.agents.first_async(name="Helper") == made
        assert (await flux0.agents.first_async(type_=existing.type)).id == fake.agent_id
        with pytest.raises(AgentNotFound, match="no agent of type 'x' and name 'Helper'") as caught:
            await flux0.agents.first_async(type_="x", name="Helper")
        assert made in caught.value.agents
        assert "'Helper' of type" in str(caught.value)


def test_error_of_first_without_agents_says_how_to_create_an_agent() -> None:
    with (
        Flux0(transport=script(json_answer(b'{"data": []}'))) as flux0,
        pytest.raises(AgentNotFound, match=r"agents: none; create one with agents.create\(name="),
    ):
        flux0.agents.first()
