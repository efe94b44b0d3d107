"""`FakeTransport`: sync and async calls, scripts, recorded calls, expectations and checks."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
from contextlib import suppress
from threading import Thread, current_thread
from typing import Any, cast
from unittest.mock import ANY

import pytest
from attrs import evolve

from flux0 import BackoffStrategy, ClientClosed, EventType, Flux0, RetryConfig
from flux0.domain.errors import ConnectError, ConnectionInterrupted, Flux0Error, ReadTimeout
from flux0.domain.headers import Headers
from flux0.models import ChunkEvent, ConflictError
from flux0.ports import Request, Timeout
from flux0.testing import (
    CallResponse,
    CallTool,
    ClockStandsStill,
    Delay,
    Drop,
    FakeClock,
    FakeTransport,
    FallSilent,
    Fault,
    GiveResult,
    Pause,
    Reason,
    Refuse,
    Report,
    Respond,
    Say,
    Split,
    Stall,
    Truncate,
)
from support.fakes import JSON, kinds, message_to, new_session, post, request
from support.in_memory import in_both_loops, in_every_mode
from support.modes import in_mode
from support.transports import Mode


@in_every_mode
async def test_conversation_is_streamed_and_stored(mode: Mode) -> None:
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
async def test_leaving_an_async_for_loop_closes_the_stream(mode: Mode) -> None:
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


def test_import_flux0_does_not_load_testing_and_testing_loads_no_http_library() -> None:
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


def ask_for_text(flux0: Flux0, session_id: str, content: str = "Hi") -> str:
    return "".join(flux0.sessions.create_event(session_id=session_id, content=content).text())


def test_each_script_is_used_for_one_turn_and_then_the_reply() -> None:
    fake = FakeTransport("default")
    session_id = new_session(fake)
    with Flux0(transport=fake) as flux0:
        assert ask_for_text(flux0, session_id) == "default"
        fake.script("one", [Say("two")])
        fake.script(lambda message: [Say(message.content)])
        assert [ask_for_text(flux0, session_id) for _ in range(4)] == [
            "one",
            "two",
            "Hi",
            "default",
        ]
    fake.script("first", "second")
    bodies = [post(fake, new_session(fake)) for _ in range(2)]
    texts = [
        b"".join(body) for body in reversed(bodies)
    ]  # Scripts are used in the order of sending.
    assert [b"second" in texts[0], b"first" in texts[1]] == [True, True]
    fake.assert_all_used()


@pytest.mark.parametrize(
    "fault",
    [
        *(Truncate(after_events=4), Truncate(after_events=4, clean=True), Stall(after_events=4)),
        *(Drop(after_acting=True), Delay(31)),
    ],
    ids=repr,
)
def test_scripts_of_streams_that_a_fault_cuts_are_used_up(fault: Fault) -> None:
    fake = FakeTransport()
    fake.script([Say("One", pieces=3), Say("Two", pieces=2, pause=1), Say("Three")])
    fake.inject(fault, operation="sessions.create_event")
    with Flux0(transport=fake, timeout_ms=20_000) as flux0, suppress(Flux0Error):
        list(flux0.conversation(agent=fake.agent_id).send("Hi"))
    fake.assert_all_used()
    fake.assert_no_open_streams()


def test_scripts_are_not_used_up_if_the_reader_leaves_before_the_cut() -> None:
    fake = FakeTransport()
    fake.script([Say("One", pieces=2, pause=1), Say("Two")])
    fake.inject(Truncate(after_events=2), operation="sessions.create_event")
    with Flux0(transport=fake) as flux0:
        conversation = flux0.conversation(agent=fake.agent_id)
        with conversation.send("Hi") as stream:
            next(stream)
    with pytest.raises(AssertionError, match="script 1: its turn stopped after 0 steps"):
        fake.assert_all_used()


def test_assert_all_used_lists_unused_scripts_faults_and_expectations() -> None:
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
        "some scripts, faults or expected calls were not used:",
        "script 2: its turn stopped after 1 step",
        "script 3: no turn has used it",
        "script 4: no turn has used it",
        "fault not applied: Refuse(raises=<class 'flux0.ConnectError'>), "
        "Stall(after_events=None, after_bytes=None) for 2 more calls of agents.list",
        "fault not applied: Split(sizes=(1,)) for 1 more call",
        "expected but not called: agents.create(name='N')",
    ]


# --- open streams


def test_assert_no_open_streams_lists_open_responses() -> None:
    fake = FakeTransport()
    streaming = post(fake, new_session(fake))
    listing = fake.send(request("GET", "/api/agents")).body
    with pytest.raises(AssertionError) as caught:
        fake.assert_no_open_streams()
    assert re.search(
        r"responses left open:\nsessions.create_event\(.*'Hi'\)\nagents", str(caught.value)
    )
    assert (len(list(streaming)), list(streaming)) == (1, [])
    listing.close()
    fake.assert_no_open_streams()
    fake.send(request("GET", "/api/agents"))  # Dropping a body does not close it.
    with pytest.raises(AssertionError, match="left open"):
        fake.assert_no_open_streams()


def test_closing_a_client_interrupts_only_its_streams() -> None:
    fake = FakeTransport([Say("Hello", pieces=5, pause=1)])
    clients = [Flux0(transport=fake) for _ in range(2)]
    streams = [flux0.conversation(agent=fake.agent_id).send("Hi") for flux0 in clients]
    for stream in streams:
        next(stream)
    clients[0].close()
    with pytest.raises(ClientClosed):
        next(streams[0])
    assert len(list(streams[1])) == 4
    assert [kinds(fake, f"s00000000{n}") for n in (1, 2)] == [["message"], ["message"] * 2]
    with pytest.raises(AssertionError, match="left open") as caught:
        fake.assert_no_open_streams()
    assert str(caught.value).count("create_event") == 1
    clients[1].close()


@in_both_loops
async def test_closing_an_async_client_interrupts_only_its_streams(mode: Mode) -> None:
    fake = FakeTransport([Say("Hello", pieces=5, pause=1)])
    async with Flux0(transport=fake) as other:
        conversation = await other.conversation_async(agent=fake.agent_id)
        async with await conversation.send("Hi") as stream:
            async with Flux0(transport=fake) as flux0:
                closed = await flux0.conversation_async(agent=fake.agent_id)
                await anext(await closed.send("Hi"))
            assert len([event async for event in stream]) == 5
    assert [kinds(fake, f"s00000000{n}") for n in (1, 2)] == [["message"] * 2, ["message"]]


def test_read_timeout_expires_on_a_clock_that_only_the_test_moves() -> None:
    fake = FakeTransport(clock=FakeClock(moves_by_itself=False))
    fake.inject(Delay(9), times=2)
    with pytest.raises(ClockStandsStill):
        fake.send(request("GET", "/api/agents", timeout=Timeout(read=10)))
    began = fake.clock.now()
    with pytest.raises(ReadTimeout):
        fake.send(request("GET", "/api/agents", timeout=Timeout(read=9)))
    assert fake.clock.now() - began == 9


@pytest.mark.parametrize("moves_by_itself", [True, False])
def test_timeout_of_a_read_ends_the_body(moves_by_itself: bool) -> None:
    fake = FakeTransport(FallSilent(), clock=FakeClock(moves_by_itself=moves_by_itself))
    body = fake.send(message_to(new_session(fake))).body
    for error in (ReadTimeout, ConnectionInterrupted):
        with pytest.raises(error):
            body.read(1)
        fake.assert_no_open_streams()


# --- calls


def test_calls_are_recorded_with_their_arguments() -> None:
    fake = FakeTransport()
    session_id = new_session(fake)
    with Flux0(transport=fake, headers={"x-mine": "yes"}) as flux0:
        ask_for_text(flux0, session_id, "How are you?")
        flux0.sessions.list_events(session_id=session_id, min_offset=1, types=["message"])
        flux0.sessions.list_events(session_id=session_id)
    created, message, listed, listed_all = fake.calls
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
    assert listed_all.arguments == {"session_id": session_id}
    # Equal calls may have different times and responses.
    assert message == evolve(message, time=0.0, response=None)


def test_user_of_a_call_is_percent_decoded() -> None:
    fake = FakeTransport()
    for cookie, user in (("flux0_user_sub=ann%20lee", "ann lee"), ("a=b", None)):
        fake.send(request("GET", "/api/agents", headers={"cookie": cookie}))
        assert fake.calls[-1].user == user


def test_argument_in_the_path_is_not_replaced_by_the_query() -> None:
    fake = FakeTransport()
    fake.send(request("GET", "/api/sessions/0123456789?session_id=x&y=1"))
    assert fake.calls[0].arguments == {"session_id": "0123456789", "y": "1"}


@pytest.mark.parametrize("body", [b"\xff", b"{", b"[" * 100_000])
def test_bodies_that_are_not_json_are_recorded_as_bytes(body: bytes) -> None:
    fake = FakeTransport()
    fake.send(Request("POST", "http://fake/nope?a=b", Headers(tuple(JSON.items())), body))
    (call,) = fake.calls
    assert (call.operation, call.body, call.arguments) == ("", body, {"a": "b"})
    assert str(call) == "POST /nope(a='b')"


def test_calls_are_recorded_with_time_and_response() -> None:
    fake = FakeTransport([Pause(5), Say("Hello")])
    began = fake.clock.now()
    fake.inject(Respond(429, retry_after=2), Split(1))
    fake.inject(Refuse(), operation="sessions.create")
    at_once = RetryConfig(backoff=BackoffStrategy(initial_interval=0))
    with Flux0(transport=fake, retry_config=at_once) as flux0:
        session = flux0.sessions.create(agent_id=fake.agent_id)
        ask_for_text(flux0, session.id)
        flux0.agents.list()
    failed, refused, created, turn, listed = fake.calls
    assert [call.time - began for call in fake.calls] == [0, 2, 2, 2, 7]
    assert isinstance(failed.response, CallResponse)
    assert (failed.response.status_code, failed.response.headers["retry-after"]) == (429, "2")
    assert isinstance(refused.response, ConnectError)
    assert isinstance(created.response, CallResponse)
    assert created.response.body["id"] == session.id
    assert isinstance(turn.response, CallResponse)
    assert (turn.response.status_code, turn.response.body) == (200, None)
    assert isinstance(listed.response, CallResponse)
    assert len(listed.response.body["data"]) == 1


def test_reset_deletes_all_but_the_first_agent() -> None:
    fake = FakeTransport([Say("Hello", pieces=2, pause=1)])
    fake.script("used", lambda _: cast("Any", 5))
    for _ in range(2):
        post(fake, new_session(fake)).close()
    body = post(fake, new_session(fake))
    fake.send(request("GET", "/api/agents"))
    fake.script("One")
    fake.expect("agents.list")
    with pytest.raises(AssertionError, match="unexpected: sessions"):
        fake.send(request("GET", "/api/sessions"))
    fake.inject(Refuse())
    agent_id = fake.agent_id
    with pytest.raises(AssertionError, match="an agent raised TypeError"):
        fake.assert_nothing_unexpected()
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
        session_id = flux0.sessions.create(agent_id=agent_id).id
        assert ask_for_text(flux0, session_id) == "Hello"
        fake.script("first")
        assert ask_for_text(flux0, session_id) == "first"


def test_assert_called_returns_the_last_matching_call() -> None:
    fake = FakeTransport()
    session_id = new_session(fake)
    with Flux0(transport=fake) as flux0:
        ask_for_text(flux0, session_id, "1")
        ask_for_text(flux0, session_id, "second")
        flux0.sessions.list_events(session_id=session_id, min_offset=3, types=["tool", "message"])
    assert fake.assert_called("sessions.create_event").body["content"] == "second"
    assert fake.assert_called("sessions.create_event", content="1") == fake.calls[1]
    with pytest.raises(AssertionError, match="content: expected 1, got '1'"):
        fake.assert_called("sessions.create_event", content=1)
    fake.assert_called("sessions.create_event", content=ANY, type=EventType.MESSAGE)
    fake.assert_called("sessions.list_events", min_offset=3, types=("tool", "message"))
    fake.assert_called("sessions.list_events", min_offset="3")


def test_assert_called_shows_the_nearest_call() -> None:
    fake = FakeTransport()
    with pytest.raises(
        AssertionError, match=r"agents.list\(\) was not called\nthere were no calls"
    ):
        fake.assert_called("agents.list")
    session_id = new_session(fake)
    with Flux0(transport=fake) as flux0:
        ask_for_text(flux0, session_id, "Hello there")
        ask_for_text(flux0, session_id, "Something else")
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


def test_nearest_call_has_the_same_operation_if_possible() -> None:
    fake = FakeTransport()
    name = "Drizzle, who knows the weather"
    with Flux0(transport=fake) as flux0:
        flux0.agents.list()
        flux0.agents.create(name=name, type_="fake")
    with pytest.raises(AssertionError, match=r"nearest: agents\.list\(\)"):
        fake.assert_called("agents.list", name=name)


def test_unexpected_call_shows_the_nearest_expected_call() -> None:
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
        fake.inject(Respond(409))
        with pytest.raises(AssertionError, match=r"expected agents.list, got sessions.list"):
            flux0.sessions.list()
        with pytest.raises(ConflictError):  # An unexpected call does not use up the fault.
            flux0.agents.create(name="Drizzle", type_="fake", description="D")
        flux0.agents.list()
        with pytest.raises(AssertionError, match="no more calls are expected"):
            flux0.agents.list()
        fake.expect("agents.list")
        with pytest.raises(AssertionError, match=r"expected agents\.list, got PUT /api/agents"):
            fake.send(request("PUT", "/api/agents"))
        flux0.agents.list()
    fake.assert_all_used()
    with pytest.raises(
        AssertionError, match=r"^unexpected calls or errors:\nunexpected: agents.create\("
    ):
        fake.assert_nothing_unexpected()


# --- time


@in_both_loops
async def test_clients_can_sleep_on_the_clock_of_the_fake(mode: Mode) -> None:
    threads: list[Thread] = []
    fake = FakeTransport(clock=FakeClock(sleep=lambda _: threads.append(current_thread())))
    began = fake.time.monotonic()
    fake.time.sleep(1.5)
    await fake.time.sleep_async(2.5)
    assert fake.time.monotonic() - began == 4.0
    assert [thread is current_thread() for thread in threads] == [True, False]
