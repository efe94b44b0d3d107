"""Finding a turn in the stored events of its session: after an error, or while the turn runs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flux0 import AsyncConversation, Flux0, StoredTurn
from flux0.domain.api_errors import BadRequestError
from flux0.domain.errors import (
    AgentError,
    ConnectionInterrupted,
    Flux0Error,
    InvalidArgument,
    StreamInterrupted,
    TransportTimeout,
)
from flux0.domain.stored_models import StatusData
from flux0.ports import Response
from flux0.testing import (
    CallTool,
    Delay,
    Drop,
    Fail,
    FakeTransport,
    Fault,
    Gate,
    GiveResult,
    Pause,
    Reason,
    Report,
    Respond,
    Say,
    Truncate,
)
from support.in_memory import in_every_mode, script, scripted_response
from support.modes import in_mode, result_of
from support.transports import Mode

POST = "sessions.create_event"
LIST = "sessions.list_events"


def client(mode: Mode, fake: FakeTransport, **options: Any) -> Flux0:
    return in_mode(mode, Flux0(transport=fake, **options))


def found(turn: StoredTurn | None) -> StoredTurn:
    assert turn is not None
    return turn


def stored_messages(*offsets: int) -> Response[Any]:
    """Return a response with a user message at each offset."""
    message: dict[str, Any] = {
        "type": "message",
        "participant": {},
        "parts": [{"type": "content", "content": "Hi"}],
    }
    event = {"id": "e", "correlation_id": "RID(1)::2", "source": "user", "type": "message"}
    rest = {"data": message, "deleted": False, "created_at": "2026-01-01T00:00:00Z"}
    events = [{**event, **rest, "offset": offset} for offset in offsets]
    return scripted_response(json.dumps({"data": events}).encode())


async def fail_to_ask(chat: AsyncConversation, content: str) -> Flux0Error:
    """Ask a question, which must fail, and return the error."""
    with pytest.raises(Flux0Error) as caught:
        await result_of(chat.ask(content))
    return caught.value


@in_every_mode
async def test_find_turn_returns_the_message_and_the_reply(mode: Mode) -> None:
    weather = CallTool("weather", {"city": "SF"})
    fake = FakeTransport([Reason("Hm"), weather, GiveResult(weather, "sunny"), "Sunny.", "Bye."])

    async with client(mode, fake) as flux0:
        chat = await flux0.conversation_async(agent=fake.agent_id)
        reply = await result_of(chat.ask("Weather?"))
        turn = found(await chat.find_turn("Weather?", since=0))

        assert (turn.message.text, turn.offset) == ("Weather?", 0)
        assert turn.text == reply.text == "Sunny.\nBye."
        assert [call.tool_name for call in turn.tool_calls] == ["weather"]
        assert [call.result and call.result.data for call in turn.tool_calls] == ["sunny"]
        assert [message.data for message in turn.messages] == [
            message.data for message in reply.messages
        ]
        assert {event.correlation_id for event in (turn.message, *turn.messages)} == {
            turn.correlation_id
        }
        assert await chat.find_turn(correlation_id=turn.correlation_id) == turn


@in_every_mode
async def test_stored_turn_has_the_error_that_the_agent_reported(mode: Mode) -> None:
    fake = FakeTransport()
    fake.script([Say("Hm"), Fail("first"), Fail({"code": 7})], [Report("typing"), Say("Hi")])

    async with client(mode, fake) as flux0:
        chat = await flux0.conversation_async(agent=fake.agent_id)
        caught = await fail_to_ask(chat, "Weather?")
        await result_of(chat.ask("Hello"))
        failed = found(await chat.find_turn("Weather?", since=0))
        short = found(await chat.find_turn("Hello", since=0))

    assert isinstance(caught, AgentError)
    assert failed.error == StatusData("error", data={"code": 7})
    assert failed.correlation_id == caught.correlation_id
    assert (failed.text, len(failed.messages), len(failed.statuses)) == ("Hm", 1, 2)
    assert short.error is None
    assert [status.status for status in short.statuses] == ["typing"]


@in_every_mode
async def test_since_excludes_older_messages_with_the_same_text(mode: Mode) -> None:
    fake = FakeTransport()
    fake.script("First.", "Second.", "Third.")

    async with client(mode, fake) as flux0:
        chat = await flux0.conversation_async(agent=fake.agent_id)
        offsets: list[int] = []
        for _ in range(2):
            offsets.append(await chat.next_offset())
            await result_of(chat.ask("Hi"))
        after = await chat.next_offset()

        turns = [found(await chat.find_turn("Hi", since=offset)) for offset in offsets]
        assert [turn.offset for turn in turns] == offsets
        assert [turn.text for turn in turns] == ["First.", "Second."]
        assert await chat.find_turn("Hi", since=turns[1].offset + 1, wait_ms=0) is None
        assert await chat.find_turn("Hi", since=after, wait_ms=0) is None
        await result_of(chat.ask("Hi"))
        assert found(await chat.find_turn("Hi", since=after)).text == "Third."


@in_every_mode
async def test_next_offset_is_the_offset_of_the_next_message(mode: Mode) -> None:
    fake = FakeTransport([Say("One"), Say("Two")])

    async with client(mode, fake) as flux0:
        chat = await flux0.conversation_async(agent=fake.agent_id)
        for _ in range(3):
            offset = await chat.next_offset()
            await result_of(chat.ask("Hi"))
            events = await flux0.sessions.list_events_async(session_id=chat.session_id)
            assert events[offset].offset == offset
            assert (events[offset].source, len(events)) == ("user", offset + 3)


@in_every_mode
async def test_next_offset_follows_the_largest_offset(mode: Mode) -> None:
    for offsets, expected in (((3, 7, 5), 8), ((-5,), 0), ((2**63 - 1, 0), 2**63)):
        transport = script(*[stored_messages(*offsets) for _ in range(2)])
        async with in_mode(mode, Flux0(transport=transport)) as flux0:
            chat = await flux0.conversation_async(session="0123456789")
            assert await chat.next_offset() == expected


@in_every_mode
async def test_find_turn_accepts_each_offset_that_next_offset_returns(mode: Mode) -> None:
    """The server has no limit for offsets."""
    transport = script(stored_messages(2**63), stored_messages(2**63 + 1))

    async with in_mode(mode, Flux0(transport=transport)) as flux0:
        chat = await flux0.conversation_async(session="0123456789")
        since = await chat.next_offset()
        assert found(await chat.find_turn("Hi", since=since)).offset == since

    assert f"min_offset={since}" in transport.requests[1].url


# Each row: a fault while a message is sent, the error's attribute `sent`, and whether
# the server stores the message.
FAULTS: list[tuple[Fault, str, bool]] = [
    (Drop(), "maybe", False),
    (Drop(after_acting=True), "maybe", True),
    (Truncate(after_events=0), "maybe", True),
    (Truncate(after_bytes=20), "maybe", True),
    (Truncate(after_events=1), "yes", True),
    (Respond(503), "maybe", False),
    (Respond(400), "no", False),
]


@in_every_mode
async def test_turn_is_found_after_an_error_if_the_message_is_stored(mode: Mode) -> None:
    """The turn is found by its text, because the error may have no correlation id yet."""
    for fault, sent, is_stored in FAULTS:
        fake = FakeTransport("Sunny.")
        async with client(mode, fake) as flux0:
            chat = await flux0.conversation_async(agent=fake.agent_id)
            await result_of(chat.ask("Weather?"))
            since = await chat.next_offset()
            fake.inject(fault, operation=POST)
            error = await fail_to_ask(chat, "Weather?")

            assert error.sent == sent
            turn = await chat.find_turn("Weather?", since=since, wait_ms=0)
            assert (turn is not None) is is_stored
            if turn is not None:
                assert (turn.offset, turn.text) == (since, "Sunny.")
            if isinstance(error, StreamInterrupted) and error.correlation_id is not None:
                assert found(turn).correlation_id == error.correlation_id


@in_every_mode
async def test_messages_that_are_not_stored_yet_are_missing_in_a_turn(mode: Mode) -> None:
    gates = [Gate(), Gate()]
    fake = FakeTransport([gates[0], Say("One"), gates[1], Say("Two")])

    async with client(mode, fake) as flux0:
        chat = await flux0.conversation_async(agent=fake.agent_id)
        stream = await chat.send("Hi")
        assert found(await chat.find_turn("Hi", since=0)).messages == ()
        gates[0].open()
        await anext(stream)
        turn = found(await chat.find_turn("Hi", since=0))
        assert (turn.text, turn.correlation_id) == ("One", stream.correlation_id)
        gates[1].open()
        await result_of(stream.final_messages())
        assert found(await chat.find_turn("Hi", since=0)).text == "One\nTwo"


@in_every_mode
async def test_message_of_an_interrupted_agent_has_no_reply(mode: Mode) -> None:
    fake = FakeTransport([Pause(1), Say("Never")])

    async with client(mode, fake) as flux0:
        chat = await flux0.conversation_async(agent=fake.agent_id)
        fake.inject(Truncate(after_events=0), operation=POST)
        error = await fail_to_ask(chat, "Hi")
        fake.clock.advance(10)

        assert error.sent == "maybe"
        assert found(await chat.find_turn("Hi", since=0)).messages == ()


# --- waiting


@in_every_mode
async def test_find_turn_lists_events_until_wait_ms_has_passed(mode: Mode) -> None:
    fake = FakeTransport()

    async with client(mode, fake) as flux0:
        chat = await flux0.conversation_async(agent=fake.agent_id)
        given: list[tuple[dict[str, Any], float, int]] = [
            ({}, 1, 5),
            ({"wait_ms": 0}, 0, 1),
            ({"wait_ms": 50}, 0.05, 2),
            ({"wait_ms": 10_000}, 10, 8),
        ]
        for options, seconds, requests in given:
            calls, began = len(fake.calls), fake.clock.now()
            assert await chat.find_turn("Hi", since=0, **options) is None
            assert round(fake.clock.now() - began, 3) == seconds
            assert [call.operation for call in fake.calls[calls:]] == [LIST] * requests


@in_every_mode
async def test_message_that_is_stored_while_find_turn_waits_is_found(mode: Mode) -> None:
    fake = FakeTransport("Late.")

    async with client(mode, fake) as flux0:
        session = await flux0.sessions.create_async(agent_id=fake.agent_id)
        chat = await flux0.conversation_async(session=session)

        def send_late() -> None:
            with Flux0(transport=fake) as other:
                other.conversation(session=session.id).ask("Hi")

        began = fake.clock.now()
        fake.clock.call_at(began + 0.25, send_late)
        assert found(await chat.find_turn("Hi", since=0)).text == "Late."
        assert round(fake.clock.now() - began, 3) == 0.3


@in_every_mode
async def test_find_turn_with_a_correlation_id_waits_one_second_by_default(mode: Mode) -> None:
    fake = FakeTransport()

    async with client(mode, fake) as flux0:
        chat = await flux0.conversation_async(agent=fake.agent_id)
        began = fake.clock.now()
        assert await chat.find_turn(correlation_id="RID(0)::0") is None
        assert round(fake.clock.now() - began, 3) == 1
        assert {call.arguments["correlation_id"] for call in fake.calls[1:]} == {"RID(0)::0"}


@in_every_mode
async def test_timeout_ms_limits_find_turn_as_a_whole(mode: Mode) -> None:
    fake = FakeTransport()

    async with client(mode, fake) as flux0:
        chat = await flux0.conversation_async(agent=fake.agent_id)
        with pytest.raises(TransportTimeout, match=r"0\.5 s"):
            await chat.find_turn("Hi", since=0, timeout_ms=500)


@in_every_mode
async def test_failed_request_of_find_turn_is_retried(mode: Mode) -> None:
    fake = FakeTransport("Sunny.")

    async with client(mode, fake) as flux0:
        chat = await flux0.conversation_async(agent=fake.agent_id)
        await result_of(chat.ask("Hi"))
        fake.inject(Drop(), Delay(1), operation=LIST)
        assert found(await chat.find_turn("Hi", since=0)).text == "Sunny."
        fake.inject(Drop(), operation=LIST, times=3)
        with pytest.raises(ConnectionInterrupted):
            await chat.find_turn("Hi", since=0)


# --- users and arguments


@in_every_mode
async def test_invalid_arguments_of_find_turn_are_rejected_before_sending(mode: Mode) -> None:
    fake = FakeTransport()
    given: list[tuple[dict[str, Any], str]] = [
        ({}, "content"),
        ({"content": "Hi", "correlation_id": "RID(1)::2"}, "content"),
        ({"content": "Hi"}, "since"),
        ({"content": "Hi", "since": -1}, "since"),
        ({"content": "Hi", "since": "0"}, "since"),
        ({"content": "", "since": 0}, "content"),
        ({"content": 7, "since": 0}, "content"),
        ({"correlation_id": ""}, "correlation_id"),
        ({"correlation_id": 7}, "correlation_id"),
        ({"content": "Hi", "since": 0, "wait_ms": -1}, "wait_ms"),
        ({"content": "Hi", "since": 0, "wait_ms": None}, "wait_ms"),
        ({"content": "Hi", "since": 0, "wait_ms": "1"}, "wait_ms"),
    ]

    async with client(mode, fake) as flux0:
        chat = await flux0.conversation_async(session="0123456789")
        for options, argument in given:
            with pytest.raises(InvalidArgument) as caught:
                await chat.find_turn(**options)
            assert caught.value.argument == argument

    assert fake.calls == ()


@in_every_mode
async def test_find_turn_in_an_unknown_session_raises_bad_request(mode: Mode) -> None:
    fake = FakeTransport()

    async with client(mode, fake) as flux0:
        chat = await flux0.conversation_async(session="0123456789")
        with pytest.raises(BadRequestError, match="session with ID 0123456789"):
            await chat.find_turn("Hi", since=0)
        with pytest.raises(BadRequestError, match="session with ID 0123456789"):
            await chat.next_offset()
