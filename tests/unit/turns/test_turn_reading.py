"""How a background turn reads the end of its stream."""

from __future__ import annotations

from threading import Thread
from typing import Any

import pytest

from flux0 import (
    BackgroundTurn,
    BackgroundTurns,
    ConnectionInterrupted,
    Flux0,
    ReaderLost,
    RetryConfig,
    StreamInterrupted,
)
from flux0.ports import Response
from flux0.testing import FakeTransport
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import WaitForRelease, http_response
from support.ending import ends_soon
from support.in_memory import (
    SSE,
    Hang,
    Script,
    chunk,
    in_every_mode,
    response_from,
    script,
    scripted_response,
    tape,
)
from support.logged import logged_errors
from support.modes import in_mode, run
from support.sending import over
from support.transports import ASYNC, WAYS, Mode, Way
from unit.turns.test_endings import close_delimited, stored


async def started(mode: Mode, *responses: Response[Any]) -> tuple[BackgroundTurn, Script]:
    transport = script(*responses)
    client = in_mode(mode, Flux0(transport=transport, retry_config=RetryConfig("none")))
    conversation = await client.conversation_async(session="s")
    return await in_mode(mode, BackgroundTurns()).start_async(conversation, "Hi"), transport


@in_every_mode
async def test_unconfirmed_end_with_stored_messages_is_not_finished(mode: Mode) -> None:
    turn, _ = await started(mode, close_delimited(chunk("a")), stored("a"))
    reply = await turn.wait_async()
    assert (reply.text, reply.finished) == ("a", False)
    (piece,) = [piece async for piece in turn.relay_async()]
    assert b"\nid: 1\n" in piece


@in_every_mode
async def test_truncated_turn_ends_with_an_error_for_all_readers(mode: Mode) -> None:
    turn, transport = await started(mode, close_delimited(chunk("a")), stored())
    with pytest.raises(StreamInterrupted, match="has not stored all its messages"):
        await turn.wait_async()
    *_, last = [piece async for piece in turn.relay_async()]
    assert last.startswith(b"event: error\nid: 2\n")
    assert len(transport.requests) == 2


@in_every_mode
async def test_error_of_a_turn_is_logged_because_its_relays_do_not_show_it(mode: Mode) -> None:
    steps = chunk("a"), ConnectionInterrupted("reset")
    with logged_errors() as messages:
        turn, _ = await started(mode, scripted_response(*steps, headers=SSE))
        *_, last = [piece async for piece in turn.relay_async()]
    assert b"reset" not in last
    assert ["the stream was interrupted: reset" in message for message in messages] == [True]


ONE_EVENT = http_response(
    chunk("a"), WaitForRelease(), headers=list(SSE.items()), framing="chunked"
)


@over(*WAYS)
@pytest.mark.parametrize("end", ["stop", "close", "client"])
async def test_stop_and_close_end_a_turn_that_waits_for_the_server(way: Way, end: str) -> None:
    with ByteServer(ONE_EVENT) as server:
        client = in_mode(way.mode, Flux0(server.url, transport=way.make_transport()))
        turns = in_mode(way.mode, BackgroundTurns())
        conversation = await client.conversation_async(session="s")
        turn = await turns.start_async(conversation, "Hi")
        relay = turn.relay_async()
        await anext(relay)
        with ends_soon():
            if end == "stop":
                assert await turns.stop_async("s")
            elif end == "close":
                await turns.close_async()
            else:
                await client.close_async()
            (last,) = [piece async for piece in relay]
        assert last.startswith(b"event: error\nid: 2\n")
        assert (b"TurnStopped" if end == "stop" else b"ClientClosed") in last
        server.wait_until_closed()
        await client.close_async()


@pytest.mark.parametrize("mode", ASYNC)
def test_end_of_the_event_loop_ends_its_turns(mode: Mode, caplog: pytest.LogCaptureFixture) -> None:
    turns: list[BackgroundTurn] = []
    recorded = tape(chunk("a"), Hang())

    async def start() -> None:
        turn, _ = await started(mode, response_from(recorded, headers=SSE))
        turns.append(turn)
        await anext(turn.relay_async())

    run(mode, start)
    problem = "the event loop or the thread that read the background turn has ended"
    assert f'"ReaderLost", "message": "{problem}"'.encode() in list(turns[0].relay())[-1]
    with pytest.raises(ReaderLost):
        turns[0].wait()
    assert recorded.releases
    assert caplog.messages == [f"{problem}: session={turns[0].session_id}"]


def test_thread_that_cannot_be_started_closes_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Thread) -> None:
        raise RuntimeError("can't start new thread")

    fake, turns = FakeTransport(), BackgroundTurns()
    with Flux0(transport=fake) as client:
        conversation = client.conversation(agent=fake.agent_id)
        with monkeypatch.context() as patched:
            patched.setattr(Thread, "start", fail)
            with pytest.raises(ConnectionInterrupted, match="no thread could be started") as caught:
                turns.start(conversation, "Hi")
        assert caught.value.sent == "maybe"
        fake.assert_no_open_streams()
        assert turns.join(conversation.session_id) is None
        assert turns.start(conversation, "Hi", running="refuse").wait().text == "Hello"
