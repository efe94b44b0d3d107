"""`BackgroundTurns`: starting, joining, stopping and closing background turns."""

# The moment has no public name.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import re
import threading
import tracemalloc
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest

from flux0 import (
    AgentError,
    AsyncConversation,
    AsyncEventStream,
    BackgroundTurn,
    BackgroundTurns,
    ClientClosed,
    ConnectError,
    EventStream,
    Flux0,
    Flux0Error,
    Flux0Format,
    InvalidArgument,
    MemoryTurnStore,
    ReaderLost,
    StoreState,
    StreamInterrupted,
    TurnRunning,
    TurnStats,
    TurnStopped,
    TurnStore,
    TurnStoreError,
    TurnTooLarge,
)
from flux0.adapters.ui import AiSdkFormat
from flux0.client import background_turns
from flux0.flows import CallRequest, Flow, SendFlow, Sleep
from flux0.ports import Response
from flux0.runtime.event_loop import Loop, do_nothing, has_ended, running_loop
from flux0.runtime.turn_log import LogEnd, TurnLog
from flux0.testing import (
    AgentStep,
    CallTool,
    Fail,
    FakeTransport,
    Gate,
    GiveResult,
    Pause,
    Reason,
    Refuse,
    Report,
    Respond,
    Say,
    Truncate,
)
from flux0.turns import background_turn
from flux0.turns.log_relay import wait_for_end
from support.background import TIMEOUT, Server, error_in, gathered, reached, taken
from support.cost import calls_made
from support.ending import ends_soon
from support.forking import in_child
from support.garbage_collection import no_garbage_collection
from support.in_memory import (
    SSE,
    chunk,
    in_both_loops,
    in_every_mode,
    script,
    scripted_response,
)
from support.interrupting import act_of, at_each_await, interrupt, with_modes
from support.logged import logged_errors
from support.modes import at_once, close_iterator, in_mode, pause, run, unwrapped
from support.transports import ASYNC, SYNC, WAYS, Mode, Way

ANOTHER_MESSAGE = "stopped by another message on its session"
TOOL = CallTool("weather", {"city": "SF"})
TURN: list[AgentStep] = [
    Report("processing"),
    Reason("Hm"),
    TOOL,
    GiveResult(TOOL, "é"),
    Say("Sunny.", pieces=3),
]


def relays(turn: BackgroundTurn, number: int) -> list[AsyncIterator[bytes]]:
    return [turn.relay_async() for _ in range(number)]


async def joined_turn(server: Server, conversation: AsyncConversation) -> BackgroundTurn:
    turn = await server.turns.join_async(conversation.session_id)
    assert turn is not None
    return turn


def error_free(piece: bytes) -> bool:
    return not piece.startswith(b"event: error\n")


def without_numbers(pieces: Iterable[bytes]) -> list[bytes]:
    """Return the events without their field `id`, after checking that the ids count from 1."""
    for number, piece in enumerate(pieces, 1):
        assert re.findall(rb"^id: (.*)$", piece, re.MULTILINE) == [str(number).encode()]
    return [re.sub(rb"^id:.*\n", b"", piece, flags=re.MULTILINE) for piece in pieces]


@in_every_mode
async def test_turn_is_read_to_its_end_without_a_reader(mode: Mode) -> None:
    gate = Gate()
    server = Server(mode, [Say("It is"), gate, Say("sunny.")])
    conversation = await server.conversation()
    turn = await server.turns.start_async(conversation, "Hi")
    assert turn.is_running
    gate.open()
    while (await joined_turn(server, conversation)).is_running:
        await pause(mode)
    assert server.stored_by(conversation) == ["It is", "sunny."]
    server.fake.assert_no_open_streams()


@in_every_mode
async def test_log_has_the_error_of_the_agent_once_for_all_relays(mode: Mode) -> None:
    server = Server(mode, [Fail("no model")])
    conversation = await server.conversation()
    with logged_errors() as messages:
        turn = await server.turns.start_async(conversation, "Hi")
        relays = [await gathered(turn.relay_async(format=AiSdkFormat())) for _ in range(2)]
    assert relays[0] == relays[1]
    assert b"The agent reported an error" in b"".join(relays[0])
    (message,) = messages
    assert "no model" in message
    own = b"".join(await gathered(turn.relay_async()))
    assert b"no model" not in own
    assert b'"data": "The agent reported an error"' in own
    assert own.startswith(b"event: status\nid: 1\n")
    shown = Flux0Format(error_text=lambda error: error.problem)
    assert b"no model" in b"".join(await gathered(turn.relay_async(format=shown)))
    with pytest.raises(AgentError, match="no model"):
        await turn.wait_async()


@in_every_mode
async def test_relay_has_the_bytes_of_a_stream_and_numbers_as_ids(mode: Mode) -> None:
    server = Server(mode, TURN)
    conversation = await server.conversation()
    async with await conversation.send("Hi") as stream:
        expected = [re.sub(rb"id:.*\n", b"", event.to_sse()) async for event in stream]
    server.fake.script(TURN)
    turn = await server.turns.start_async(conversation, "Hi")
    pieces = without_numbers(await gathered(turn.relay_async()))

    def normal(piece: bytes) -> bytes:
        return re.sub(rb'("[a-z_]*id": ")[^"]*|[0-9.]{8,}', rb"\1", piece)

    assert list(map(normal, pieces)) == list(map(normal, expected))


@in_every_mode
async def test_closing_a_relay_does_not_end_the_turn(mode: Mode) -> None:
    gate = Gate()
    server = Server(mode, [Say("It is"), gate, Say("sunny.")])
    turn = await server.turns.start_async(await server.conversation(), "Hi")
    unread, first = relays(turn, 2)
    await close_iterator(unread)
    assert error_free(await anext(first))
    await close_iterator(first)
    assert turn.is_running
    gate.open()
    assert (await turn.wait_async()).text == "It is\nsunny."


@in_every_mode
async def test_relays_continue_after_a_number_and_at_different_speeds(mode: Mode) -> None:
    gate = Gate()
    server = Server(mode, [Say("abc", pieces=3), gate, Say("def", pieces=3)])
    turn = await server.turns.start_async(await server.conversation(), "Hi")
    unread, slow, fast = relays(turn, 3)
    begin = [await taken(slow, 1), await taken(fast, 3)]
    gate.open()
    rest = await gathered(fast)
    assert not turn.is_running
    whole = await gathered(unread)
    assert len(whole) == 6
    assert begin[1] + b"".join(rest) == b"".join(whole)
    assert begin[0] + b"".join(await gathered(slow)) == b"".join(whole)
    assert without_numbers(whole)
    for after, rest in ((None, whole), ("", whole), (0, whole), ("2", whole[2:]), (6, [])):
        assert await gathered(turn.relay_async(after=after)) == rest


@in_every_mode
async def test_join_returns_the_running_or_kept_turn_until_keep_seconds_have_passed(
    mode: Mode,
) -> None:
    gate, now = Gate(), [1000.0]
    store = MemoryTurnStore(keep_seconds=60, clock=lambda: now[0])
    server = Server(mode, ["a", gate, "b"], store)
    conversation = await server.conversation()
    assert await server.turns.join_async(conversation.session_id) is None

    turn = await server.turns.start_async(conversation, "Hi")
    joined = await joined_turn(server, conversation)
    assert (joined.id, joined.session_id) == (turn.id, conversation.session_id)
    assert joined.is_running
    gate.open()
    assert (await joined.wait_async()).text == "a\nb"

    now[0] += 60
    kept = await joined_turn(server, conversation)
    assert (await kept.wait_async()).text == "a\nb"
    now[0] += 0.1
    assert await server.turns.join_async(conversation.session_id) is None


@in_every_mode
async def test_stop_ends_all_relays_with_the_same_error(mode: Mode) -> None:
    server = Server(mode, [Say("abc", pieces=3), Gate()])
    conversation = await server.conversation()
    turn = await server.turns.start_async(conversation, "Hi")
    first, second = relays(turn, 2)
    await taken(first, 3)

    assert await server.turns.stop_async(conversation.session_id)
    (last,) = await gathered(first)
    assert error_in(last) == ("TurnStopped", "the turn was stopped")
    assert b"\nid: 4\n" in last
    assert (await gathered(second))[3:] == [last]
    assert await gathered(turn.relay_async(after=3)) == [last]
    assert await gathered(turn.relay_async(after=4)) == []
    server.fake.assert_no_open_streams()
    with pytest.raises(TurnStopped) as caught:
        await turn.wait_async()
    assert caught.value.correlation_id
    assert (caught.value.event_count, caught.value.sent) == (3, "yes")

    assert not await server.turns.stop_async(conversation.session_id)
    assert not await server.turns.stop_async("unknown")


@in_every_mode
async def test_second_message_stops_the_running_turn(mode: Mode) -> None:
    server = Server(mode)
    server.fake.script(["a", Gate()], "b")
    conversation = await server.conversation()
    first = await server.turns.start_async(conversation, "Hi")
    second = await server.turns.start_async(conversation, "Hi again")

    kind, message = error_in((await gathered(first.relay_async()))[-1])
    assert kind == "TurnStopped"
    assert ANOTHER_MESSAGE in message
    assert (await second.wait_async()).text == "b"
    assert (await joined_turn(server, conversation)).id == second.id != first.id


@in_every_mode
async def test_invalid_message_does_not_stop_the_running_turn(mode: Mode) -> None:
    gate = Gate()
    server = Server(mode, ["a", gate, "b"])
    conversation = await server.conversation()
    turn = await server.turns.start_async(conversation, "Hi")
    with pytest.raises(InvalidArgument, match="content must not be empty"):
        await server.turns.start_async(conversation, "")
    assert (await joined_turn(server, conversation)).id == turn.id
    gate.open()
    assert (await turn.wait_async()).text == "a\nb"


@pytest.mark.parametrize(
    "option",
    [
        {"timeout_ms": -1},
        {"http_headers": {"a": "b\n"}},
        {"extra_body": {"content": "Hi"}},
        {"stream_idle_timeout_ms": "1"},
        {"timeout": 1},
    ],
    ids=lambda option: next(iter(option)),
)
@pytest.mark.parametrize("mode", SYNC + ASYNC)
def test_invalid_option_does_not_stop_the_running_turn(mode: Mode, option: Any) -> None:
    async def start_with_option() -> None:
        gate = Gate()
        server = Server(mode, ["a", gate, "b"])
        conversation = await server.conversation()
        turn = await server.turns.start_async(conversation, "Hi")
        sent = len(server.fake.calls)
        with pytest.raises((InvalidArgument, TypeError), match=next(iter(option))):
            await server.turns.start_async(conversation, "Hi", **option)
        assert len(server.fake.calls) == sent
        assert (await joined_turn(server, conversation)).id == turn.id
        gate.open()
        assert (await turn.wait_async()).text == "a\nb"
        await server.turns.close_async()

    run(mode, start_with_option)


def test_client_without_a_sync_transport_does_not_stop_the_running_turn() -> None:
    server = Server("sync", ["a", Gate()])
    conversation = Flux0(transport=server.fake).conversation(agent=server.fake.agent_id)
    turn = server.real.start(conversation, "Hi")
    other = Flux0(async_transport=server.fake).conversation(session=conversation.session_id)
    with pytest.raises(Flux0Error, match="has only an async transport"):
        server.real.start(other, "Hi")
    assert turn.is_running
    server.real.close()


@pytest.mark.parametrize("mode", SYNC + ASYNC)
@pytest.mark.parametrize("method", ["start", "stop"])
def test_message_is_not_sent_if_the_end_of_the_running_turn_is_not_known(
    mode: Mode, method: str
) -> None:
    async def lose_the_store() -> None:
        store = MemoryTurnStore()
        server = Server(mode, store=store)
        conversation = await server.conversation()

        def stop(_: str) -> None:
            error = TurnStoreError("Redis could not be reached")
            error.sent = "maybe"
            copy.finish(LogEnd(error, is_of_copy=True))

        copy = TurnLog("copy", 1000, stop)
        store.claim(conversation.session_id, copy, refuse=True)
        sent = len(server.fake.calls)
        call = (
            partial(server.turns.start_async, conversation, "Hi")
            if method == "start"
            else partial(server.turns.stop_async, conversation.session_id)
        )
        with pytest.raises(TurnStoreError, match="Redis could not be reached") as caught:
            await call()
        assert caught.value.sent == "no"
        assert len(server.fake.calls) == sent
        assert (await joined_turn(server, conversation)).id == "copy"

    run(mode, lose_the_store)


@pytest.mark.parametrize("mode", SYNC + ASYNC)
def test_replaced_turn_is_removed_from_memory_without_the_garbage_collector(
    mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> Any:
        yield "a"
        raise ZeroDivisionError("a bug")

    async def replace_turns() -> None:
        server = Server(mode, "End")
        conversation = await server.conversation()
        logs: list[weakref.ref[TurnLog]] = []
        replies: list[tuple[str, Any]] = [
            ("finished", "End"),
            ("stopped", ["Stopped", Gate()]),
            ("user error", fail),
            ("truncated", ["a", "b"]),
            ("last", "End"),
        ]
        for name, reply in replies:
            server.fake.script(reply)
            if name == "truncated":
                server.fake.inject(Truncate(after_events=1))
            turn = await server.turns.start_async(conversation, "Hi")
            logs.append(weakref.ref(unwrapped(turn)._log))
            relay = turn.relay_async()
            await anext(relay)
            if name != "stopped":
                with contextlib.suppress(Flux0Error):
                    await turn.wait_async()
        while [log() is None for log in logs] != [True, True, True, True, False]:
            await pause(mode)

    # The log handlers of pytest keep the exceptions.
    monkeypatch.setattr(background_turn, "log_failed_background_turn", do_nothing)
    with no_garbage_collection():
        run(mode, replace_turns)


def kept_objects() -> int:
    kinds = (TurnLog, EventStream, AsyncEventStream, Flux0Error)
    return sum(issubclass(type(each), kinds) for each in gc.get_objects())


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_failed_turns_are_removed_from_memory_without_the_garbage_collector(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The log handlers of pytest keep the exceptions.
    monkeypatch.setattr(logging.getLogger("flux0"), "disabled", True)
    fake = FakeTransport(["a", "b"])

    async def fail_turns() -> None:
        async with in_mode(way.mode, Flux0(url, transport=way.make_transport())) as client:
            conversation = await client.conversation_async(agent=fake.agent_id)
            turns = in_mode(way.mode, BackgroundTurns())
            for fault in (Truncate(after_events=1), Truncate(after_bytes=9), Respond(500)):
                fake.inject(fault)
                with contextlib.suppress(Flux0Error):
                    turn = await turns.start_async(conversation, "Hi")
                    await turn.wait_async()
            await turns.close_async()

    with fake.serve() as url, no_garbage_collection():
        before = kept_objects()
        run(way.mode, fail_turns)
        while kept_objects() > before:
            threading.Event().wait(0.01)


@in_every_mode
async def test_second_message_is_refused_while_a_turn_is_running(mode: Mode) -> None:
    gate = Gate()
    server = Server(mode, ["a", gate, "b"])
    conversation = await server.conversation()
    turn = await server.turns.start_async(conversation, "Hi")
    sent = len(server.fake.calls)
    with pytest.raises(TurnRunning) as caught:
        await server.turns.start_async(conversation, "Hi again", running="refuse")
    assert caught.value.sent == "no"
    assert len(server.fake.calls) == sent

    gate.open()
    assert (await turn.wait_async()).text == "a\nb"
    again = await server.turns.start_async(conversation, "Hi again", running="refuse")
    assert (await again.wait_async()).text == "a\nb"


@in_every_mode
async def test_plain_message_on_the_session_ends_the_background_turn(mode: Mode) -> None:
    server = Server(mode)
    server.fake.script(["a", Gate()], "b")
    conversation = await server.conversation()
    turn = await server.turns.start_async(conversation, "Hi")
    async with await conversation.send("Hi again") as stream:
        await stream.final_messages()

    end = error_in((await gathered(turn.relay_async()))[-1])
    assert end == ("ClientClosed", "The answer was interrupted")
    with pytest.raises(ClientClosed, match="closed by another message on its session"):
        await turn.wait_async()


@in_every_mode
async def test_closing_the_client_ends_its_background_turns(mode: Mode) -> None:
    server = Server(mode, ["a", Gate()])
    turn = await server.turns.start_async(await server.conversation(), "Hi")
    with ends_soon():
        await server.client.close_async()
    end = error_in((await gathered(turn.relay_async()))[-1])
    assert end == ("ClientClosed", "The answer was interrupted")
    with pytest.raises(ClientClosed, match="this Flux0 client is closed: create a new client"):
        await turn.wait_async()


@in_every_mode
async def test_close_stops_the_turns_and_rejects_later_messages(mode: Mode) -> None:
    server = Server(mode, ["a", Gate()])
    conversation = await server.conversation()
    turn = await server.turns.start_async(conversation, "Hi")
    with ends_soon():
        await server.turns.close_async()
    assert server.real.stats().is_draining
    assert error_in((await gathered(turn.relay_async()))[-1]) == (
        "ClientClosed",
        "The answer was interrupted",
    )
    sent = len(server.fake.calls)
    with pytest.raises(ClientClosed, match="BackgroundTurns is closed"):
        await server.turns.start_async(conversation, "Hi")
    assert len(server.fake.calls) == sent
    assert await server.turns.join_async(conversation.session_id) is None
    with ends_soon():  # The rejected message has left nothing to wait for.
        await server.turns.close_async()


@in_every_mode
async def test_close_waits_for_running_turns_up_to_drain_seconds(mode: Mode) -> None:
    gate = Gate()
    server = Server(mode, [Say("a"), gate, Say("b")])
    turn = await server.turns.start_async(await server.conversation(), "Hi")
    await reached(mode, gate)
    threading.Timer(0.05, gate.open).start()
    with ends_soon():
        await server.turns.close_async(drain_seconds=TIMEOUT)
    assert (await turn.wait_async()).text == "a\nb"


@in_every_mode
async def test_close_that_is_interrupted_or_cancelled_stops_the_turns(mode: Mode) -> None:
    class Interruption(BaseException):
        pass

    def interrupted(*_: object) -> None:
        raise Interruption

    server = Server(mode, Gate())
    turn = await server.turns.start_async(await server.conversation(), "Hi")
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Interruption):
        patch.setattr(background_turns, "wait_for_end", interrupted)
        with anyio.CancelScope() if mode != "sync" else contextlib.nullcontext() as scope:
            if scope is not None:
                scope.cancel()
            await server.turns.close_async(drain_seconds=60.0)
            pytest.fail("the wait was not interrupted")
    with ends_soon():
        with pytest.raises(ClientClosed):
            await turn.wait_async()
        await server.turns.close_async()


@in_every_mode
async def test_limits_of_closing_apply_to_all_turns_together(mode: Mode) -> None:
    now, waits = [100.0], list[float]()

    def wait(_: TurnLog, seconds: float) -> None:
        waits.append(seconds)
        now[0] += 4

    async def wait_async(log: TurnLog, seconds: float) -> None:
        wait(log, seconds)

    server = Server(mode, Gate())
    for _ in range(2):
        await server.turns.start_async(await server.conversation(), "Hi")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(background_turns, "monotonic", lambda: now[0])
        patch.setattr(background_turns, "wait_for_end", wait)
        patch.setattr(background_turns, "wait_for_end_async", wait_async)
        await server.turns.close_async(drain_seconds=7)
    assert waits == [7, 3, 10, 6]


@in_every_mode
async def test_stats_count_running_turns_and_open_relays_and_show_the_state_of_the_store(
    mode: Mode,
) -> None:
    def numbers(turns: int, relays: int, *, is_draining: bool) -> TurnStats:
        return TurnStats(turns, relays, is_draining, BlockingStore.STATE)

    gate = Gate()
    server = Server(mode, [Say("a"), gate, Say("b")], BlockingStore())
    assert server.real.stats() == numbers(0, 0, is_draining=False)
    turn = await server.turns.start_async(await server.conversation(), "Hi")
    first, second, unread = relays(turn, 3)
    assert server.real.stats() == numbers(1, 0, is_draining=False)
    for relay in (first, second):
        await anext(relay)
    assert server.real.stats() == numbers(1, 2, is_draining=False)
    await close_iterator(first)
    await close_iterator(unread)
    assert server.real.stats() == numbers(1, 1, is_draining=False)
    gate.open()
    await gathered(second)
    await turn.wait_async()
    while server.real.stats().running_turns:
        await pause(mode)
    server.real.end_relays()
    assert server.real.stats() == numbers(0, 0, is_draining=True)


@in_every_mode
async def test_message_that_could_not_be_sent_leaves_no_turn(mode: Mode) -> None:
    server = Server(mode)
    conversation = await server.conversation()
    server.fake.inject(Refuse(), times=3)
    with pytest.raises(ConnectError) as caught:
        await server.turns.start_async(conversation, "Hi")
    assert caught.value.sent == "no"
    assert await server.turns.join_async(conversation.session_id) is None

    server.fake.reset()
    turn = await server.turns.start_async(await server.conversation(), "Hi", running="refuse")
    assert (await turn.wait_async()).text == "Hi"


@in_every_mode
async def test_last_turn_can_be_joined_after_a_message_that_could_not_be_sent(mode: Mode) -> None:
    server = Server(mode)
    conversation = await server.conversation()
    turn = await server.turns.start_async(conversation, "Hi")
    await turn.wait_async()
    server.fake.inject(Refuse(), times=3)
    with pytest.raises(ConnectError):
        await server.turns.start_async(conversation, "Hi")
    joined = await joined_turn(server, conversation)
    assert (joined.id, (await joined.wait_async()).text) == (turn.id, "Hi")


@in_every_mode
async def test_errors_of_the_turn_are_raised_by_wait_and_relayed_last(mode: Mode) -> None:
    server = Server(mode, ["a", "b"])
    conversation = await server.conversation()
    server.fake.inject(Truncate(after_events=1))
    turn = await server.turns.start_async(conversation, "Hi")
    with pytest.raises(StreamInterrupted) as caught:
        await turn.wait_async()
    assert caught.value.correlation_id
    assert [message.text for message in caught.value.messages] == ["a"]
    first, last = await gathered(turn.relay_async())
    assert error_in(last)[0] == "StreamInterrupted"
    assert error_free(first)


@in_every_mode
async def test_error_of_the_agent_is_raised_by_wait_and_is_an_event_of_the_relay(
    mode: Mode,
) -> None:
    server = Server(mode, ["a", Fail({"code": 7}), "b"])
    turn = await server.turns.start_async(await server.conversation(), "Hi")
    with pytest.raises(AgentError) as caught:
        await turn.wait_async()
    assert caught.value.data == {"code": 7}
    assert [message.text for message in caught.value.messages] == ["a"]
    assert len(without_numbers(await gathered(turn.relay_async()))) == 3


@in_every_mode
async def test_turn_of_an_agent_that_failed_and_does_not_complete_ends_after_5_s(
    mode: Mode,
) -> None:
    server = Server(mode, ["a", Fail("no model"), Pause(3600), "never sent"])
    conversation = await server.conversation()
    began = server.fake.clock.monotonic()
    with logged_errors() as messages:
        turn = await server.turns.start_async(conversation, "Hi")
        *_, status, last = await gathered(turn.relay_async())
    assert server.fake.clock.monotonic() - began == 5
    assert status.startswith(b"event: status\nid: 2\n")
    assert error_in(last) == ("AgentError", "The agent reported an error")
    assert len(messages) == 1
    assert not turn.is_running
    server.fake.assert_no_open_streams()
    server.fake.script(["Sunny."])
    second = await server.turns.start_async(conversation, "Hi", running="refuse")
    assert (await second.wait_async()).text == "Sunny."


@in_every_mode
async def test_stop_during_sending_ends_the_turn_as_soon_as_it_is_sent(mode: Mode) -> None:
    store = MemoryTurnStore()
    server = Server(mode, ["a", Gate()], store)
    conversation = await server.conversation()
    results: list[Any] = []

    async def send() -> None:
        results.append(await server.turns.start_async(conversation, "Hi"))

    async def stop() -> None:
        while not server.transport.holds:
            await pause(mode)
        log = store.find(conversation.session_id)
        assert log is not None
        log.stop("the reason")
        log.stop("a later reason")
        server.transport.is_open.set()

    server.transport.is_open.clear()
    await at_once(mode, send, stop)
    with ends_soon():
        kind, message = error_in((await gathered(results[0].relay_async()))[-1])
    assert (kind, message) == ("TurnStopped", "the reason")
    server.fake.assert_no_open_streams()


@in_every_mode
async def test_stop_waits_for_a_turn_that_is_started_later(mode: Mode) -> None:
    """A request to stop may arrive while the request with the message is still being checked."""

    class Store(BlockingStore):
        searches = 0

        def find(self, session_id: str) -> TurnLog | None:
            self.searches += 1
            return super().find(session_id)

    store = Store()
    server = Server(mode, ["a", Gate(timeout=TIMEOUT), "never sent"], store)
    conversation = await server.conversation()
    results: list[Any] = []

    async def stop() -> None:
        results.append(await server.turns.stop_async(conversation.session_id, wait_ms=60_000))

    async def start() -> None:
        while store.searches < 2:
            await pause(mode)
        turn = await server.turns.start_async(conversation, "Hi")
        with pytest.raises(TurnStopped, match="the turn was stopped"):
            await turn.wait_async()

    await at_once(mode, stop, start)
    assert results == [True]
    assert not await server.turns.stop_async(conversation.session_id, wait_ms=1)
    assert not await server.turns.stop_async(conversation.session_id)
    server.fake.assert_no_open_streams()


@pytest.mark.parametrize("mode", SYNC + ASYNC)
def test_message_is_not_sent_if_the_running_turn_does_not_end(
    mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_turns, "_MAX_STOP_SECONDS", 0.01)
    run(mode, partial(start_after_a_turn_that_does_not_end, mode))


async def start_after_a_turn_that_does_not_end(mode: Mode) -> None:
    store, reasons = MemoryTurnStore(), list[str]()
    server = Server(mode, store=store)
    conversation = await server.conversation()
    stuck = TurnLog("stuck", 1000, reasons.append)
    store.claim(conversation.session_id, stuck, refuse=True)
    sent = len(server.fake.calls)
    with pytest.raises(TurnRunning, match=r"did not end within 0\.01 s after it was stopped"):
        await server.turns.start_async(conversation, "Hi")
    with pytest.raises(TurnRunning):
        await server.turns.stop_async(conversation.session_id)
    assert len(server.fake.calls) == sent
    assert len(reasons) == 2
    assert (await joined_turn(server, conversation)).id == "stuck"
    stuck.finish(LogEnd())


@pytest.mark.parametrize(
    ("error", "kind", "problem"),
    [
        (ZeroDivisionError, Flux0Error, "the message could not be sent: ZeroDivisionError"),
        (ConnectError, ConnectError, "a secret"),
    ],
)
@pytest.mark.parametrize("mode", SYNC + ASYNC)
def test_readers_see_only_the_class_of_an_exception_that_prevents_sending_unless_it_is_of_flux0(
    mode: Mode, error: type[Exception], kind: type[Flux0Error], problem: str
) -> None:
    run(mode, partial(fail_to_send, mode, error, kind, problem))


async def fail_to_send(
    mode: Mode, error: type[Exception], kind: type[Flux0Error], problem: str
) -> None:
    store = MemoryTurnStore()
    server = Server(mode, store=store)
    conversation = await server.conversation()
    joined: list[TurnLog | None] = []

    def fail(request: CallRequest, _: SendFlow) -> Flow[Response[Any]]:
        yield Sleep(0)
        joined.append(store.find(conversation.session_id))
        raise error("a secret")

    client = in_mode(mode, Flux0(transport=server.transport, middleware=[fail]))
    failing = await client.conversation_async(session=conversation.session_id)
    with pytest.raises(error):
        await server.turns.start_async(failing, "Hi")
    (log,) = joined
    assert log is not None
    assert log.end is not None
    shown = log.end.error
    assert shown is not None
    assert (type(shown), shown.problem) == (kind, problem)


@in_every_mode
async def test_second_close_waits_for_the_end_of_a_message_that_is_being_sent(mode: Mode) -> None:
    """Only then, the store is closed."""
    ends: list[bool] = []

    class Store(BlockingStore):
        blocking = False

        def claim(self, session_id: str, log: TurnLog, *, refuse: bool) -> TurnLog | None:
            self.log = log
            return self._store.claim(session_id, log, refuse=refuse)

        def close(self) -> None:
            ends.append(self.log.is_ended)

    server = Server(mode, ["a", Gate()], Store())
    conversation = await server.conversation()

    async def send() -> None:
        turn = await server.turns.start_async(conversation, "Hi")
        assert error_in((await gathered(turn.relay_async()))[-1])[0] == "ClientClosed"

    async def close_turns() -> None:
        while not server.transport.holds:
            await pause(mode)
        opening = threading.Timer(0.05, server.transport.is_open.set)
        opening.start()
        with ends_soon():
            await server.turns.close_async()
        opening.join()

    server.transport.is_open.clear()
    await at_once(mode, send, close_turns)
    assert ends == [True]


def test_start_while_the_turns_are_closed_is_rejected_or_its_turn_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The message is sent after `close_async` has listed the turns to stop."""
    server = Server("sync")
    own = server.real._own.get()
    list_turns = own.running
    conversation = server.fake_conversation()

    def list_and_start() -> Any:
        listed = list_turns()
        with pytest.raises(ClientClosed):
            server.real.start(conversation, "Hi")
        return listed

    monkeypatch.setattr(own, "running", list_and_start)
    asyncio.run(server.real.close_async())


@in_every_mode
async def test_turn_that_exceeds_max_turn_bytes_is_read_to_its_end_but_not_kept(
    mode: Mode,
) -> None:
    server = Server(mode, Say("Hello", pieces=5), max_turn_bytes=400)
    turn = await server.turns.start_async(await server.conversation(), "Hi")
    while turn.is_running:
        await pause(mode)
    assert turn.event_count == 5
    with pytest.raises(TurnTooLarge, match="larger than 400 bytes"):
        await turn.wait_async()


@in_every_mode
async def test_turn_has_ended_when_close_returns(mode: Mode) -> None:
    server = Server(mode, ["a", Gate()])
    turn = await server.turns.start_async(await server.conversation(), "Hi")
    await server.turns.close_async()
    assert not turn.is_running


def test_thread_that_reads_a_turn_does_not_keep_the_process_running() -> None:
    server, before = Server("sync", ["a", Gate()]), {*threading.enumerate()}
    turn = server.real.start(server.fake_conversation(), "Hi")
    started = {*threading.enumerate()} - before
    (reading,) = (each for each in started if "background-turn" in each.name)
    assert reading.daemon
    server.real.stop(turn.session_id)


@pytest.mark.parametrize("reads", [True, False])
def test_turns_of_a_loop_that_is_closed_with_open_tasks_end(
    reads: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Event loops are checked until their turns have ended, not only once."""
    gate, checked = Gate(), threading.Event()

    def check(loop: Loop) -> bool:
        checked.set()
        return has_ended(loop)

    monkeypatch.setattr(background_turns, "_CHECK_SECONDS", 0.01)
    monkeypatch.setattr(background_turns, "has_ended", check)
    server = Server("asyncio", ["a", gate])
    loop = asyncio.new_event_loop()

    async def start() -> BackgroundTurn:
        turn = await server.turns.start_async(await server.conversation(), "Hi")
        if reads:
            await anext(turn.relay_async())
        return turn

    turns = [loop.run_until_complete(start()) for _ in range(2)]
    assert checked.wait(TIMEOUT)
    loop.set_exception_handler(do_nothing)
    loop.close()
    for turn in turns:
        assert error_in(list(turn.relay(heartbeat_ms=None))[-1])[0] == "ReaderLost"
    lost = {line.rpartition("=")[2] for line in caplog.messages}
    assert lost == {turn.session_id for turn in turns}
    gate.open()
    gc.collect()


def test_message_that_a_closed_loop_was_sending_leaves_no_running_turn() -> None:
    """The turn of another loop continues."""
    gate = Gate()
    server = Server("asyncio", ["a", gate, "b"])
    loop = asyncio.new_event_loop()
    server.transport.is_open.clear()

    async def begin() -> tuple[str, asyncio.Task[BackgroundTurn]]:
        conversation = await server.conversation()
        sending = asyncio.create_task(server.turns.start_async(conversation, "Hi"))
        while not server.transport.holds:
            await asyncio.sleep(0.001)
        return conversation.session_id, sending

    session_id, sending = loop.run_until_complete(begin())
    loop.set_exception_handler(do_nothing)
    loop.close()
    server.transport.is_open.set()

    async def join_while_another_turn_is_running() -> None:
        turn = await server.turns.start_async(await server.conversation(), "Hi")
        joined = await server.turns.join_async(session_id)
        assert joined is not None
        with pytest.raises(ReaderLost):
            await joined.wait_async()
        gate.open()
        assert (await turn.wait_async()).text == "a\nb"

    asyncio.run(join_while_another_turn_is_running())
    del sending
    gc.collect()


def test_message_that_was_stopped_before_its_loop_was_closed_keeps_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(background_turns, "_CHECK_SECONDS", 0.01)
    store = MemoryTurnStore()
    server = Server("asyncio", store=store)
    loop = asyncio.new_event_loop()
    server.transport.is_open.clear()

    async def begin() -> tuple[TurnLog | None, asyncio.Task[BackgroundTurn]]:
        conversation = await server.conversation()
        sending = asyncio.create_task(server.turns.start_async(conversation, "Hi"))
        while not server.transport.holds:
            await asyncio.sleep(0.001)
        return store.find(conversation.session_id), sending

    log, sending = loop.run_until_complete(begin())
    assert log is not None
    log.stop("the reason")
    loop.set_exception_handler(do_nothing)
    loop.close()
    assert wait_for_end(log, TIMEOUT)
    assert log.end is not None
    assert isinstance(log.end.error, TurnStopped)
    server.transport.is_open.set()
    del sending
    gc.collect()


def test_stop_ends_the_turn_of_a_loop_that_does_not_run() -> None:
    server = Server("asyncio", ["a", Gate()])
    loop = asyncio.new_event_loop()

    async def start() -> BackgroundTurn:
        return await server.turns.start_async(await server.conversation(), "Hi")

    turn = loop.run_until_complete(start())
    assert server.real.stop(turn.session_id)
    assert error_in(list(turn.relay())[-1])[0] == "TurnStopped"
    server.fake.assert_no_open_streams()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


@in_both_loops
async def test_unreferenced_turns_are_read_to_their_end(mode: Mode) -> None:
    gate = Gate()
    server = Server(mode, [Say("a"), gate, Say("b")])
    conversation = await server.conversation()
    await server.turns.start_async(conversation, "Hi")
    del server.real, server.turns
    await reached(mode, gate)
    gc.collect()
    gate.open()
    while len(server.stored_by(conversation)) < 2:
        await pause(mode)


class BlockingStore(TurnStore):
    """A store whose methods must not be called in the event loop, because they may block."""

    STATE = StoreState(is_available=False, failures=3, followed_turns=2)

    def __init__(self) -> None:
        self._store = MemoryTurnStore()
        self.entered = threading.Event()
        self.is_open = threading.Event()
        self.is_open.set()

    def claim(self, session_id: str, log: TurnLog, *, refuse: bool) -> TurnLog | None:
        self._check()
        stop = log.stop

        def stop_turn(reason: str) -> None:
            self._check()
            stop(reason)

        log.stop = stop_turn
        return self._store.claim(session_id, log, refuse=refuse)

    def release(self, session_id: str, log: TurnLog, previous: TurnLog | None) -> None:
        self._store.release(session_id, log, previous)

    def find(self, session_id: str) -> TurnLog | None:
        self._check()
        return self._store.find(session_id)

    def state(self) -> StoreState:
        return self.STATE

    def close(self) -> None:
        self._check()
        self._store.close()

    def _check(self) -> None:
        with pytest.raises(RuntimeError):
            running_loop()
        self.entered.set()
        assert self.is_open.wait(TIMEOUT)


@in_both_loops
async def test_store_that_may_block_is_called_in_threads(mode: Mode) -> None:
    server = Server(mode, ["a", Gate()], BlockingStore())
    conversation = await server.conversation()
    turn = await server.turns.start_async(conversation, "Hi")
    assert (await joined_turn(server, conversation)).id == turn.id
    assert await server.turns.stop_async(conversation.session_id)
    await server.turns.close_async()


@in_both_loops
async def test_store_that_may_block_cannot_be_used_without_a_thread(mode: Mode) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    server = Server(mode, store=BlockingStore())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(TurnStoreError, match="no thread could be started"):
            await server.turns.join_async("session")


@in_both_loops
async def test_cancelled_start_leaves_no_turn(mode: Mode) -> None:
    store = BlockingStore()
    server = Server(mode, store=store)
    conversation = await server.conversation()
    store.is_open.clear()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.turns.start_async, conversation, "Hi")
        await anyio.to_thread.run_sync(store.entered.wait)
        tasks.cancel_scope.cancel()
    sent = len(server.fake.calls)
    store.is_open.set()
    while not await claimed_and_released(server, conversation):
        await pause(mode)
    assert len(server.fake.calls) == sent

    server.transport.is_open.clear()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.turns.start_async, conversation, "Hi")
        while not server.transport.holds:
            await pause(mode)
        tasks.cancel_scope.cancel()
    assert await server.turns.join_async(conversation.session_id) is None


@in_both_loops
async def test_start_that_is_cancelled_during_its_claim_keeps_the_running_turn(mode: Mode) -> None:
    claimed, may_return = threading.Event(), threading.Event()
    may_return.set()

    class SlowStore(BlockingStore):
        def claim(self, session_id: str, log: TurnLog, *, refuse: bool) -> TurnLog | None:
            previous = super().claim(session_id, log, refuse=refuse)
            claimed.set()
            assert may_return.wait(TIMEOUT)
            return previous

    gate = Gate()
    server = Server(mode, ["a", gate], SlowStore())
    conversation = await server.conversation()
    running = await server.turns.start_async(conversation, "Hi")
    claimed.clear()
    may_return.clear()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.turns.start_async, conversation, "Hi")
        await anyio.to_thread.run_sync(claimed.wait)
        tasks.cancel_scope.cancel()
    may_return.set()
    while any(each.name == "flux0-call" for each in threading.enumerate()):
        await pause(mode)
    assert (await joined_turn(server, conversation)).id == running.id
    gate.open()
    assert (await running.wait_async()).text == "a"
    await server.turns.close_async()


Operation = Callable[[Server, AsyncConversation, Gate], Coroutine[Any, Any, Any]]


async def drain(server: Server, _: AsyncConversation, gate: Gate) -> None:
    gate.open()
    await server.turns.close_async(drain_seconds=TIMEOUT)


async def wait_for_reply(server: Server, conversation: AsyncConversation, gate: Gate) -> None:
    turn = await server.turns.join_async(conversation.session_id)
    if turn is None:
        assert server.turns.stats().is_draining
        return
    relay = turn.relay_async()
    await anext(relay)
    gate.open()
    async for _ in relay:
        pass
    await turn.wait_async()


CALLS: Mapping[str, Operation] = {
    "start": lambda server, conversation, _: server.turns.start_async(conversation, "Hi"),
    "stop": lambda server, conversation, _: server.turns.stop_async(conversation.session_id),
    "close": lambda server, _, __: server.turns.close_async(),
    "drain": drain,
    "wait": wait_for_reply,
}
# Concurrent calls at an await of another call.
ACTIONS: Mapping[str, Operation] = {
    "start": CALLS["start"],
    "stop": CALLS["stop"],
    "close": CALLS["close"],
    "close the client": lambda server, _, __: server.client.close_async(),
}


async def interrupted_call(mode: Mode, name: str, action: str, number: int) -> bool:
    """Interrupt a call at its nth await while a turn is running, and check the other calls.

    Return whether the call had this await.
    """
    gate, has_acted, results = Gate(), True, list[Any]()
    server = Server(mode, ["a", gate, "b"], BlockingStore())
    conversation = await server.conversation()
    turn = await server.turns.start_async(conversation, "Hi")

    async def call() -> None:
        results.append(await CALLS[name](server, conversation, gate))

    async def act() -> None:
        with contextlib.suppress(Flux0Error):
            await ACTIONS[action](server, conversation, gate)

    async with anyio.create_task_group() as tasks:
        with contextlib.suppress(Flux0Error, ZeroDivisionError), ends_soon():
            interruption = act_of(action, partial(tasks.start_soon, act))
            has_acted = await interrupt(mode, call(), number, interruption)
    # The thread of a cancelled call continues.
    while any(each.name == "flux0-call" for each in threading.enumerate()):
        await pause(mode)

    with ends_soon():
        if action in ("cancel", "error") and has_acted:
            if name == "wait":
                gate.open()
                assert (await turn.wait_async()).text == "a\nb"
            if name in ("stop", "wait") or (name == "start" and not results):
                assert (await joined_turn(server, conversation)).id == turn.id
        await server.turns.stop_async(conversation.session_id)
        assert not turn.is_running
        server.fake.script("next")
        start = server.turns.start_async(conversation, "Hi", running="refuse")
        if name in ("close", "drain") or (action.startswith("close") and has_acted):
            with pytest.raises(ClientClosed):
                await start
        else:
            assert (await (await start).wait_async()).text == "next"
        await server.turns.close_async()
        await server.client.close_async()
    assert server.real.stats().running_turns == 0
    server.fake.assert_no_open_streams()
    return has_acted


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("mode", "action"), with_modes(("cancel", "error", *ACTIONS)))
def test_all_calls_work_after_one_was_interrupted_at_any_await(
    mode: Mode, name: str, action: str
) -> None:
    at_each_await(mode, partial(interrupted_call, mode, name, action))


async def claimed_and_released(server: Server, conversation: AsyncConversation) -> bool:
    return await server.turns.join_async(conversation.session_id) is None


def test_forked_child_does_not_inherit_turns() -> None:
    gate = Gate()
    server = Server("sync", ["a", gate, "b"])
    conversation = Flux0(transport=server.fake).conversation(agent=server.fake.agent_id)
    turn = server.real.start(conversation, "Hi")
    while not gate.reached:
        threading.Event().wait(0.001)

    def use_in_child() -> None:
        assert server.real.join(conversation.session_id) is None
        assert error_in(list(turn.relay())[-1])[0] == "ReaderLost"
        # A thread of the parent may hold the lock of the inherited fake.
        fake = Server("sync", ["c"]).fake
        own = Flux0(transport=fake).conversation(agent=fake.agent_id)
        assert server.real.start(own, "Hi").wait().text == "c"
        server.real.close()

    in_child(use_in_child)
    gate.open()
    assert turn.wait().text == "a\nb"


@in_every_mode
async def test_invalid_arguments_are_rejected_and_nothing_is_sent(mode: Mode) -> None:
    server = Server(mode)
    conversation = await server.conversation()
    sent = len(server.fake.calls)
    other: Any = in_mode("asyncio" if mode == "sync" else "sync", Flux0(transport=server.fake))
    wrong = unwrapped(await other.conversation_async(session=conversation.session_id))
    hint = "pass it to start_async" if mode == "sync" else "pass it to start"
    with pytest.raises(
        InvalidArgument,
        match=f"conversation must be of type .*Conversation, not .*Conversation: {hint}$",
    ):
        await server.turns.start_async(wrong, "Hi")
    with pytest.raises(InvalidArgument, match=r"conversation must be a .*Conversation, not "):
        await server.turns.start_async(other, "Hi")
    wait: Any = "wait"
    with pytest.raises(InvalidArgument, match="running must be"):
        await server.turns.start_async(conversation, "Hi", running=wait)
    for method in (server.turns.join_async, server.turns.stop_async):
        with pytest.raises(InvalidArgument, match="session_id"):
            await method(wrong)
    with pytest.raises(InvalidArgument, match="drain_seconds"):
        await server.turns.close_async(drain_seconds=-1)
    assert not server.real.stats().is_draining
    assert len(server.fake.calls) == sent


@pytest.mark.parametrize(
    ("options", "match"),
    [({"store": {}}, "store must be a TurnStore"), ({"max_turn_bytes": 0}, "max_turn_bytes")],
)
def test_invalid_options_are_rejected(options: Any, match: str) -> None:
    with pytest.raises(InvalidArgument, match=match):
        BackgroundTurns(**options)


@pytest.mark.parametrize("mode", ASYNC)
def test_sync_call_in_the_event_loop_of_a_running_turn_raises_at_once(mode: Mode) -> None:
    gate = Gate()
    server = Server(mode, ["a", gate, "b"])

    async def call_sync_methods() -> None:
        conversation = await server.conversation()
        turn = await server.turns.start_async(conversation, "Hi")
        assert error_free(await anext(turn.relay_async()))
        relay = turn.relay()
        assert error_free(next(relay))
        sync = Flux0(transport=server.fake).conversation(session=turn.session_id)
        for wait in (
            turn.wait,
            lambda: next(relay),
            lambda: server.real.stop(turn.session_id),
            lambda: server.real.start(sync, "Hi"),
            server.real.close,
        ):
            with pytest.raises(Flux0Error, match="use the _async method"):
                wait()
        assert (await joined_turn(server, conversation)).id == turn.id
        gate.open()
        assert (await turn.wait_async()).text == "a\nb"
        assert not server.real.stop(turn.session_id)
        assert server.real.start(sync, "Hi").wait().text == "a\nb"
        await server.turns.close_async()

    run(mode, call_sync_methods)


def test_relayed_event_costs_little_more_than_an_event_of_a_stream() -> None:
    """The events arrive together. Their JSON is not encoded again, and they share each wait."""

    async def read(stream: AsyncEventStream) -> None:
        assert [event async for event in stream]

    async def relay(stream: AsyncEventStream) -> None:
        assert [piece async for piece in stream.relay()]

    async def relay_background(conversation: AsyncConversation) -> None:
        turn = await BackgroundTurns().start_async(conversation, "Hi")
        assert [piece async for piece in turn.relay_async()]

    async def run_turn(events: int, run: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
        transport = script(scripted_response(chunk("x") * events, headers=SSE))
        conversation = await Flux0(async_transport=transport).conversation_async(session="s")
        await run(conversation if run is relay_background else await conversation.send("Hi"))

    def cost_of_event(run: Callable[[Any], Coroutine[Any, Any, None]]) -> float:
        _, few, many = (  # The first turn imports modules and fills caches.
            calls_made(partial(asyncio.run, run_turn(events, run))) for events in (100, 100, 200)
        )
        return (many - few) / 100

    costs = {run: cost_of_event(run) for run in (read, relay, relay_background)}
    assert costs[relay] <= 1.3 * costs[read]
    assert costs[relay_background] <= 1.3 * costs[read]


def test_memory_of_kept_turns_is_little_more_than_their_bytes() -> None:
    server = Server("sync", Say("x" * 80, pieces=80))
    client = Flux0(transport=server.fake)

    def run_turn() -> int:
        conversation = client.conversation(agent=server.fake.agent_id)
        turn = server.real.start(conversation, "Hi")
        turn.wait()
        return sum(map(len, turn.relay()))

    def memory_of_turns(number: int) -> tuple[int, int]:
        """Return the bytes of this number of turns, and the memory that is used after them."""
        kept = sum(run_turn() for _ in range(number))
        server.fake.reset()
        gc.collect()
        return kept, tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        # The first turns allocate memory that does not grow with the number of turns.
        _, before = memory_of_turns(4)
        kept, after = memory_of_turns(16)
    finally:
        tracemalloc.stop()
    assert after - before < 1.5 * kept
