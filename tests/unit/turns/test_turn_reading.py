"""How a background turn reads the end of its stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from functools import partial
from threading import Event, Thread
from typing import Any

import pytest
import trio

from flux0 import (
    BackgroundTurn,
    BackgroundTurns,
    ClientClosed,
    ConnectionInterrupted,
    Flux0,
    Flux0Error,
    ReaderLost,
    RetryConfig,
    StreamInterrupted,
    TurnStopped,
)
from flux0.client import background_turns
from flux0.domain.headers import Headers
from flux0.observers import Call, Observer, TurnEnd
from flux0.ports import Response
from flux0.runtime.event_loop import do_nothing, running_loop, start_task
from flux0.runtime.turn_log import TurnLog
from flux0.testing import FakeTransport
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import WaitForRelease, http_response
from flux0.turns import background_turn
from flux0.turns.background_turn import TaskReading, ThreadReading
from flux0.turns.log_relay import wait_for_end_async
from support.background import Server, error_in, gathered
from support.ending import ends_soon
from support.in_memory import (
    SSE,
    FailingBody,
    Hang,
    Script,
    chunk,
    close_delimited,
    in_every_mode,
    in_simulated_time,
    response_from,
    script,
    scripted_response,
    stored,
    tape,
)
from support.interrupting import act_of, at_each_await, interrupt, with_modes
from support.logged import logged_errors
from support.modes import in_mode, pause, run, unwrapped
from support.sending import over
from support.streams import opened
from support.transports import ASYNC, SYNC, WAYS, Mode, Way


async def begun(mode: Mode, transport: Script) -> tuple[BackgroundTurn, BackgroundTurns]:
    client = in_mode(mode, Flux0(transport=transport, retry_config=RetryConfig("none")))
    conversation = await client.conversation_async(session="s")
    turns = in_mode(mode, BackgroundTurns())
    return await turns.start_async(conversation, "Hi"), turns


async def started(mode: Mode, *responses: Response[Any]) -> tuple[BackgroundTurn, Script]:
    transport = script(*responses)
    turn, _ = await begun(mode, transport)
    return turn, transport


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
    with pytest.raises(StreamInterrupted, match="has not stored all messages of the turn"):
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


@in_every_mode
async def test_turn_that_is_stopped_twice_while_its_message_is_sent_ends_with_the_first_reason(
    mode: Mode,
) -> None:
    ended, sent = list[object](), Event()
    kind: Any = ThreadReading if mode == "sync" else TaskReading
    reading = kind(partial(TurnLog, "turn-1", 1000), ended.append)
    for reason in ("first", "second"):
        reading.stop(TurnStopped(reason))
    assert reading.log.loop is (None if mode == "sync" else running_loop())
    assert (reading.log.end, ended) == (None, [])

    def wait() -> Hang | None:
        if mode != "sync":
            return Hang()
        sent.wait(20)
        return None

    stream = opened(mode, tape(wait))
    reading.start(unwrapped(stream))
    if mode != "sync":
        await wait_for_end_async(reading.log, 20)
    sent.set()

    assert reading.log.end is not None
    assert isinstance(reading.log.end.error, TurnStopped)
    assert reading.log.end.error.problem == "first"
    assert ended[0] is reading
    with pytest.raises(ClientClosed, match=r"first$"):
        async with stream:
            raise AssertionError("entered")


@pytest.mark.parametrize("mode", SYNC + ASYNC)
def test_exception_of_user_code_ends_the_turn_and_is_logged(
    mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    run(mode, partial(fail_in_user_code, mode))
    assert "ZeroDivisionError: a bug" in caplog.text


async def fail_in_user_code(mode: Mode) -> None:
    def fail(_: object) -> Any:
        yield "a"
        raise ZeroDivisionError("a bug")

    server = Server(mode, fail)
    turn = await server.turns.start_async(await server.conversation(), "Hi")
    with pytest.raises(Flux0Error, match="raised ZeroDivisionError") as caught:
        await turn.wait_async()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert error_in((await gathered(turn.relay_async()))[-1])[0] == "Flux0Error"
    assert "a bug" not in error_in((await gathered(turn.relay_async()))[-1])[1]


def test_thread_that_reads_a_turn_has_the_context_variables_of_the_caller() -> None:
    """An observer, for example, needs them."""
    variable: ContextVar[str] = ContextVar("variable", default="none")
    seen: list[str] = []

    class Ends(Observer):
        def on_turn_end(self, call: Call, turn: TurnEnd) -> None:
            seen.append(variable.get())

    fake, turns = FakeTransport(), BackgroundTurns()
    client = Flux0(transport=fake, observers=[Ends()])
    variable.set("of the caller")
    turns.start(client.conversation(agent=fake.agent_id), "Hi").wait()
    turns.close()
    assert seen == ["of the caller"]


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

    trio.run(start) if mode == "trio" else asyncio.run(start())
    problem = "the event loop or the thread that read the background turn has ended"
    end = b'"type": "ReaderLost", "message": "The answer was interrupted"'
    assert end in list(turns[0].relay())[-1]
    with pytest.raises(ReaderLost, match=problem):
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


@in_simulated_time
async def test_stopped_turn_ends_although_its_stream_cannot_be_closed(mode: Mode) -> None:
    body = FailingBody(tape(chunk("a"), Hang()))
    response = Response(200, Headers(tuple(SSE.items())), body, raw_response=object())
    turn, turns = await begun(mode, script(response))
    relay = turn.relay_async()
    await anext(relay)
    assert await turns.stop_async("s")
    (last,) = [piece async for piece in relay]
    assert b"TurnStopped" in last


@pytest.mark.parametrize("way", [way for way in WAYS if way.mode == "asyncio"], ids=str)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_turn_of_a_closed_loop_closes_its_connection(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_turns, "_CHECK_SECONDS", 0.01)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(do_nothing)

    async def start() -> BackgroundTurn:
        conversation = await client.conversation_async(session="s")
        turn = await turns.start_async(conversation, "Hi")
        await anext(turn.relay_async())
        return turn

    with ByteServer(ONE_EVENT) as server:
        client, turns = Flux0(server.url, transport=way.make_transport()), BackgroundTurns()
        turn = loop.run_until_complete(start())
        tasks = asyncio.all_tasks(loop)
        loop.close()
        with ends_soon(), pytest.raises(ReaderLost):
            turn.wait()
        server.wait_until_closed()
        for task in tasks:  # anyio would keep the task, and its socket, forever.
            coroutine: Any = task.get_coro()
            coroutine.close()


EXPECTED = {
    "cancel": ReaderLost,
    "error": Flux0Error,
    "stop": TurnStopped,
    "close": ClientClosed,
    "close the client": ClientClosed,
}


@pytest.mark.parametrize(("mode", "action"), with_modes(EXPECTED))
def test_turn_has_an_end_although_its_reading_is_interrupted_at_any_await(
    mode: Mode, action: str
) -> None:
    async def interrupt_reading(number: int) -> bool:
        server, has_acted, acting = Server(mode, ["a", "b"]), list[bool](), list[bool]()
        conversation = await server.conversation()

        async def act() -> None:
            if action == "stop":
                await server.turns.stop_async(conversation.session_id)
            else:
                await (server.turns if action == "close" else server.client).close_async()
            acting.clear()

        def start_action() -> None:
            acting.append(True)
            start_task(act)

        async def read(run: Callable[[], Coroutine[Any, Any, None]]) -> None:
            has_acted.append(await interrupt(mode, run(), number, act_of(action, start_action)))

        def start_reading(run: Callable[[], Coroutine[Any, Any, None]]) -> object:
            return start_task(partial(read, run))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(background_turn, "start_task", start_reading)
            turn = await server.turns.start_async(conversation, "Hi")
        with ends_soon():
            try:
                assert (await turn.wait_async()).text == "a\nb"
            except EXPECTED[action]:
                assert b"event: error" in b"".join([piece async for piece in turn.relay_async()])
            while acting or not has_acted:
                await pause(mode)
            if not action.startswith("close"):
                again = await server.turns.start_async(conversation, "Hi", running="refuse")
                assert (await again.wait_async()).text == "a\nb"
            await server.turns.close_async()
            await server.client.close_async()
        server.fake.assert_no_open_streams()
        return has_acted[0]

    at_each_await(mode, interrupt_reading)
