"""A fake as a transport: for any kind of code, with its scripts, and with what it remembers."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
from unittest.mock import ANY

import pytest

from flux0 import BackoffStrategy, EventType, Flux0, RetryConfig, StreamInterrupted
from flux0.domain.errors import ConnectError, ConnectionInterrupted
from flux0.domain.headers import Headers
from flux0.models import ChunkEvent
from flux0.ports import Request
from flux0.testing import (
    AgentStep,
    CallResponse,
    CallTool,
    Fail,
    FakeTransport,
    FallSilent,
    GiveResult,
    Pause,
    Reason,
    Refuse,
    Report,
    Respond,
    Say,
    Split,
    Stall,
)
from support.fakes import JSON, new_session, post, request
from support.in_memory import in_both_loops, in_every_mode
from support.modes import in_mode
from support.transports import Mode


@in_every_mode
async def test_a_whole_conversation(mode: Mode) -> None:
    call = CallTool("get_weather", {"location": "San Francisco"})
    fake = FakeTransport([Reason("Hm."), call, GiveResult(call, "fog"), Say("It is foggy.")])
    async with in_mode(mode, Flux0(transport=fake)) as flux0:
        (agent,) = await flux0.agents.list_async()
        session = await flux0.sessions.create_async(agent_id=agent.id, title="Weather")
        async with await flux0.sessions.create_event_async(
            session_id=session.id, content="How is the weather?"
        ) as stream:
            assert len([event async for event in stream]) == 6
            assert stream.finished
        stored = await flux0.sessions.list_events_async(session_id=session.id)
    assert [event.type for event in stored] == ["message", "message", "message", "tool", "message"]
    fake.assert_no_open_streams()


@in_both_loops
async def test_leaving_an_asynchronous_loop_leaves_the_turn(mode: Mode) -> None:
    fake = FakeTransport([Say("Hello", pieces=5)])
    flux0 = Flux0(transport=fake)
    session = await flux0.sessions.create_async(agent_id=fake.agent_id)
    async for event in await flux0.sessions.create_event_async(session_id=session.id, content="Hi"):
        assert isinstance(event, ChunkEvent)
        break
    gc.collect()
    fake.assert_no_open_streams()
    await flux0.close_async()
    fake.assert_no_open_streams()


def test_importing_flux0_loads_nothing_of_it_and_it_loads_no_http_library() -> None:
    program = """
import sys
import flux0
assert "flux0.testing" not in sys.modules
import flux0.testing
loaded = {name.partition(".")[0] for name in sys.modules}
print(*sorted(loaded & {"aiohttp", "anyio", "cattrs", "httpx", "pytest", "requests", "urllib3"}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == ""


# --- scripts


def said(flux0: Flux0, session_id: str, content: str = "Hi") -> str:
    return "".join(flux0.sessions.create_event(session_id=session_id, content=content).text())


def test_scripts_answer_one_turn_each_and_then_the_reply_does() -> None:
    fake = FakeTransport("default")
    session_id = new_session(fake)
    with Flux0(transport=fake) as flux0:
        assert said(flux0, session_id) == "default"
        fake.script("one", [Say("two")])
        fake.script(lambda message: [Say(message.content)])
        assert [said(flux0, session_id) for _ in range(4)] == ["one", "two", "Hi", "default"]
    fake.script("first", "second")
    bodies = [post(fake, new_session(fake)) for _ in range(2)]
    texts = [b"".join(body) for body in reversed(bodies)]  # The order of reading does not count.
    assert [b"second" in texts[0], b"first" in texts[1]] == [True, True]
    fake.assert_all_used()


@pytest.mark.parametrize(
    "script",
    [
        [Say("Hello"), Report("completed")],
        [Say("I am"), Fail("lost"), Pause(1), Say("here")],
        [Say("Hello"), FallSilent(), Say("never")],
    ],
)
def test_a_script_that_has_come_to_its_point_is_used_up(script: list[AgentStep]) -> None:
    fake = FakeTransport()
    fake.script(script)
    post(fake, new_session(fake)).close()
    fake.assert_all_used()


def test_what_was_not_used_is_told() -> None:
    fake = FakeTransport()
    fake.script("used", [Report("typing"), Say("ab", pieces=2, pause=1), Say("Hi")], [], "not used")
    fake.inject(Refuse(), Stall(), times=2, operation="agents.list")
    fake.expect("sessions.create")
    fake.expect("sessions.create_event")
    fake.expect("sessions.create_event")
    fake.expect("agents.create", name="N")
    session_id = new_session(fake)
    list(post(fake, session_id))
    post(fake, session_id).close()
    fake.inject(Split(1))
    with pytest.raises(AssertionError) as caught:
        fake.assert_all_used()
    assert str(caught.value).splitlines() == [
        "not all was used:",
        "script 2: its turn was left after 1 step",
        "script 3: no turn has used it",
        "script 4: no turn has used it",
        "never happened: Refuse(raises=<class 'flux0.ConnectError'>), "
        "Stall(after_events=None, after_bytes=None) for 2 calls of agents.list",
        "never happened: Split(sizes=(1,)) for 1 calls",
        "never called: agents.create(name='N')",
    ]


# --- streams that are left open


def test_a_stream_that_is_open_is_told() -> None:
    fake = FakeTransport()
    streaming = post(fake, new_session(fake))
    listing = fake.send(request("GET", "/api/agents")).body
    with pytest.raises(AssertionError) as caught:
        fake.assert_no_open_streams()
    assert re.search(r"left open:\nsessions.create_event\(.*'Hi'\)\nagents", str(caught.value))
    assert (len(list(streaming)), list(streaming)) == (1, [])
    listing.close()
    fake.assert_no_open_streams()
    fake.send(request("GET", "/api/agents"))  # Letting go of it is no way to close it.
    with pytest.raises(AssertionError, match="left open"):
        fake.assert_no_open_streams()


def test_closing_a_client_cuts_off_its_streams_alone() -> None:
    fake = FakeTransport([Say("Hello", pieces=5, pause=1)])
    clients = [Flux0(transport=fake) for _ in range(2)]
    streams = [flux0.conversation(agent=fake.agent_id).send("Hi") for flux0 in clients]
    for stream in streams:
        next(stream)
    clients[0].close()
    with pytest.raises(StreamInterrupted):
        next(streams[0])
    assert len(list(streams[1])) == 4
    with pytest.raises(AssertionError, match="left open") as caught:
        fake.assert_no_open_streams()
    assert str(caught.value).count("create_event") == 1
    clients[1].close()


@in_both_loops
async def test_closing_an_asynchronous_client_cuts_off_its_streams_alone(mode: Mode) -> None:
    fake = FakeTransport([Say("Hello", pieces=5, pause=1)])
    async with Flux0(transport=fake) as other:
        conversation = await other.conversation_async(agent=fake.agent_id)
        async with await conversation.send("Hi") as stream:
            async with Flux0(transport=fake) as flux0:
                await flux0.agents.list_async()
            assert len([event async for event in stream]) == 5


# --- calls


def test_calls_are_remembered_with_what_they_say() -> None:
    fake = FakeTransport()
    session_id = new_session(fake)
    with Flux0(transport=fake, headers={"x-mine": "yes"}) as flux0:
        said(flux0, session_id, "How are you?")
        flux0.sessions.list_events(session_id=session_id, min_offset=1, types=["message"])
    created, message, listed = fake.calls
    assert (created.operation, created.method, created.path) == (
        "sessions.create",
        "POST",
        "/api/sessions",
    )
    assert message.body == {"type": "message", "source": "user", "content": "How are you?"}
    assert message.arguments == {**message.body, "session_id": session_id}
    assert message.headers["X-Mine"] == "yes"
    assert str(message) == (
        f"sessions.create_event(session_id='{session_id}', type='message', source='user', "
        "content='How are you?')"
    )
    assert listed.query == {"min_offset": "1", "types": "message"}
    assert listed.body == ["message"]
    assert listed.arguments == {"session_id": session_id, "min_offset": "1", "types": ["message"]}


@pytest.mark.parametrize("body", [b"\xff", b"{", b"[" * 100_000])
def test_a_body_that_is_not_json_is_remembered_as_bytes(body: bytes) -> None:
    fake = FakeTransport()
    fake.send(Request("POST", "http://fake/nope?a=b", Headers(tuple(JSON.items())), body))
    (call,) = fake.calls
    assert (call.operation, call.body, call.arguments) == ("", body, {"a": "b"})
    assert str(call) == "POST /nope(a='b')"


def test_calls_know_when_they_were_made_and_what_came_of_them() -> None:
    fake = FakeTransport([Pause(5), Say("Hello")])
    began = fake.clock.now()
    fake.inject(Respond(429, retry_after=2), Split(1))
    fake.inject(Refuse(), operation="sessions.create")
    at_once = RetryConfig(backoff=BackoffStrategy(initial_interval=0))
    with Flux0(transport=fake, retry_config=at_once) as flux0:
        session = flux0.sessions.create(agent_id=fake.agent_id)
        said(flux0, session.id)
        flux0.agents.list()
    failed, refused, created, turn, listed = fake.calls
    assert [call.time - began for call in fake.calls] == [0, 2, 2, 2, 7]
    assert isinstance(failed.answer, CallResponse)
    assert (failed.answer.status_code, failed.answer.headers["retry-after"]) == (429, "2")
    assert isinstance(refused.answer, ConnectError)
    assert isinstance(created.answer, CallResponse)
    assert created.answer.body["id"] == session.id
    assert isinstance(turn.answer, CallResponse)
    assert (turn.answer.status_code, turn.answer.body) == (200, None)
    assert isinstance(listed.answer, CallResponse)
    assert len(listed.answer.body["data"]) == 1


def test_a_fake_begins_anew() -> None:
    fake = FakeTransport([Say("Hello", pieces=2, pause=1)])
    body = post(fake, new_session(fake))
    fake.send(request("GET", "/api/agents"))
    fake.script("One")
    fake.inject(Refuse())
    fake.expect("agents.list")
    agent_id = fake.agent_id
    fake.reset()
    with pytest.raises(ConnectionInterrupted):
        list(body)
    fake.assert_all_used()
    fake.assert_no_open_streams()
    fake.assert_nothing_unexpected()
    assert (fake.calls, fake.agent_id) == ((), agent_id)
    with Flux0(transport=fake) as flux0:
        assert len(flux0.agents.list()) == 1
        assert flux0.sessions.list().data == ()
        assert said(flux0, flux0.sessions.create(agent_id=agent_id).id) == "Hello"


def test_a_call_that_was_made_is_found() -> None:
    fake = FakeTransport()
    session_id = new_session(fake)
    with Flux0(transport=fake) as flux0:
        said(flux0, session_id, "first")
        said(flux0, session_id, "second")
        flux0.sessions.list_events(session_id=session_id, min_offset=3, types=["tool", "message"])
    assert fake.assert_called("sessions.create_event").body["content"] == "second"
    assert fake.assert_called("sessions.create_event", content="first") == fake.calls[1]
    fake.assert_called("sessions.create_event", content=ANY, type=EventType.MESSAGE)
    fake.assert_called("sessions.list_events", min_offset=3, types=("tool", "message"))
    fake.assert_called("sessions.list_events", min_offset="3")


def test_a_call_that_was_not_made_is_explained_by_the_nearest_one() -> None:
    fake = FakeTransport()
    with pytest.raises(AssertionError, match=r"agents.list\(\) was not called\nno call was made"):
        fake.assert_called("agents.list")
    session_id = new_session(fake)
    with Flux0(transport=fake) as flux0:
        said(flux0, session_id, "Hello there")
        said(flux0, session_id, "Something else")
    with pytest.raises(AssertionError) as caught:
        fake.assert_called("sessions.create_event", content="Hello, there", title="T", type={1})
    assert str(caught.value).splitlines() == [
        "sessions.create_event(content='Hello, there', title='T', type={1}) was not called",
        f"nearest: sessions.create_event(session_id='{session_id}', type='message', source='user', "
        "content='Hello there')",
        "  content: expected 'Hello, there', got 'Hello there'",
        "  title: expected 'T', got nothing",
        "  type: expected {1}, got 'message'",
    ]


def test_an_unexpected_call_is_explained_by_the_nearest_expected_one() -> None:
    fake = FakeTransport()
    fake.expect("agents.list")
    fake.expect("agents.create", name="Drizzle", description="D")
    with Flux0(transport=fake) as flux0:
        with pytest.raises(AssertionError) as caught:
            flux0.agents.create(name="Dazzle", type_="fake")
        assert str(caught.value).splitlines() == [
            "unexpected: agents.create(name='Dazzle', type='fake')",
            "nearest expected: agents.create(name='Drizzle', description='D')",
            "  name: expected 'Drizzle', got 'Dazzle'",
            "  description: expected 'D', got nothing",
        ]
        with pytest.raises(AssertionError, match=r"expected agents.list, got sessions.list"):
            flux0.sessions.list()
        flux0.agents.create(name="Drizzle", type_="fake", description="D")
        flux0.agents.list()
        with pytest.raises(AssertionError, match="no more calls are expected"):
            flux0.agents.list()
        fake.expect("agents.list")
        with pytest.raises(AssertionError, match=r"expected agents\.list, got PUT /api/agents"):
            fake.send(request("PUT", "/api/agents"))
        flux0.agents.list()
    fake.assert_all_used()
    with pytest.raises(AssertionError, match=r"^not expected:\nunexpected: agents.create\("):
        fake.assert_nothing_unexpected()


# --- the time of a client that waits


@in_both_loops
async def test_a_client_may_sleep_on_the_fakes_clock(mode: Mode) -> None:
    fake = FakeTransport()
    began = fake.time.monotonic()
    fake.time.sleep(1.5)
    await fake.time.sleep_async(2.5)
    assert fake.time.monotonic() - began == 4.0
