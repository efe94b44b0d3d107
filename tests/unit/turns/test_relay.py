"""`relay`: the format of events, heartbeats, errors, and closing."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any, cast

import anyio
import pytest

from flux0 import Flux0, StatusEvent, UnknownEvent
from flux0.domain.errors import (
    ConnectionInterrupted,
    InvalidArgument,
    StreamInterrupted,
    StreamInUse,
)
from flux0.domain.headers import Headers
from flux0.ports import Response
from flux0.relay_format import Flux0Format, RelayEncoder, RelayFormat
from flux0.runtime.event_loop import do_nothing
from flux0.testing import (
    AgentStep,
    CallTool,
    Fail,
    FakeTransport,
    Gate,
    GiveResult,
    Pause,
    Reason,
    Report,
    Say,
)
from support.background import background_turn, error_in
from support.ending import ends_soon
from support.forking import in_child
from support.garbage_collection import no_garbage_collection
from support.in_memory import (
    CORRELATION_ID,
    SSE,
    FailingBody,
    Hang,
    begin,
    chunk,
    events_of,
    frame,
    in_both_loops,
    in_every_mode,
    script,
    status,
    tape,
)
from support.logged import logged_errors
from support.modes import in_mode, pause
from support.plain_format import PlainFormat
from support.streams import open_async, open_sync
from support.transports import Mode

HEARTBEAT = b": heartbeat\n"
TOOL = CallTool("weather", {"city": "SF"})
TURN: list[AgentStep] = [
    Report("processing"),
    Reason("Hm"),
    TOOL,
    GiveResult(TOOL, "é"),
    Say("Sunny.", pieces=3),
]


async def gathered(pieces: Iterator[bytes] | AsyncIterator[bytes]) -> list[bytes]:
    if isinstance(pieces, Iterator):
        return list(pieces)
    return [piece async for piece in pieces]


def test_comment_between_events_is_not_an_event() -> None:
    """A blank line after a comment would be an empty message for the server's React hook."""
    assert events_of(chunk("a") + HEARTBEAT + chunk("b")) == events_of(chunk("a") + chunk("b"))
    assert (chunk("a") + HEARTBEAT + chunk("b")).count(b"\n\n") == 2


@in_every_mode
async def test_relay_yields_all_events_of_the_turn(mode: Mode) -> None:
    fake = FakeTransport(TURN)
    async with in_mode(mode, Flux0(transport=fake)) as flux0:
        chat = await flux0.conversation_async(agent=fake.agent_id)
        async with await chat.send("Hi") as stream:
            expected = [event async for event in stream]
        fake.script(TURN)
        stream = await chat.send("Hi")
        relayed = stream.relay()
        pieces = await gathered(getattr(relayed, "_real", relayed))

    events = events_of(b"".join(pieces))
    assert [type(event) for event in events] == [type(event) for event in expected]
    assert stream.finished
    fake.assert_no_open_streams()


def test_sync_relay_yields_comments_while_idle_and_closing_it_closes_the_stream() -> None:
    closing = threading.Event()

    def idle() -> bytes:
        assert closing.wait(20)
        raise ConnectionInterrupted("the socket was shut down")

    recorded = tape(chunk("a"), idle)
    pieces = open_sync(recorded).relay(heartbeat_ms=1)

    while (piece := next(pieces)) == HEARTBEAT:
        pass  # On a busy machine, comments may be yielded before the first event.
    assert piece == chunk("a")
    assert [next(pieces), next(pieces)] == [HEARTBEAT] * 2
    closing.set()
    pieces.close()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue] - as a web server does

    assert recorded.releases


@in_both_loops
async def test_async_relay_yields_comments_while_idle_and_closing_it_closes_the_stream(
    mode: Mode,
) -> None:
    recorded = tape(chunk("a"), Hang())
    pieces: Any = open_async(recorded).relay(heartbeat_ms=1)

    while (piece := await anext(pieces)) == HEARTBEAT:
        pass  # On a busy machine, comments may be yielded before the first event.
    assert piece == chunk("a")
    assert [await anext(pieces), await anext(pieces)] == [HEARTBEAT] * 2
    await pieces.aclose()
    while not recorded.releases:
        await anyio.lowlevel.checkpoint()


@in_both_loops
async def test_cancelling_the_relay_closes_the_stream(mode: Mode) -> None:
    recorded = tape(chunk("a"), Hang())

    async def serve() -> None:
        async for _ in open_async(recorded).relay(heartbeat_ms=None):
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
    while not recorded.releases:
        await anyio.lowlevel.checkpoint()


def test_relay_whose_reader_is_cancelled_before_it_starts_closes_the_stream() -> None:
    recorded = tape(chunk("a"), Hang())

    async def serve() -> None:
        relay = open_async(recorded).relay()
        reading = asyncio.ensure_future(anext(relay))
        # The loop calls it between the relay's first step and the first step of its reader.
        asyncio.get_running_loop().call_soon(cancel_all)
        with pytest.raises(asyncio.CancelledError):
            await reading
        while not recorded.releases:
            await asyncio.sleep(0)

    def cancel_all() -> None:
        main = asyncio.current_task()
        for task in asyncio.all_tasks() - {main, serving[0]}:
            task.cancel()

    async def main() -> None:
        serving.append(asyncio.ensure_future(serve()))
        await serving[0]

    serving: list[asyncio.Task[None]] = []
    asyncio.run(main())


def test_relay_reads_the_stream_although_another_task_runs_before_the_task_of_the_relay() -> None:
    async def read() -> None:
        stream = open_async(tape(chunk("a")))
        steps = anext(stream.relay()), anext(stream)
        piece, error = await asyncio.gather(*steps, return_exceptions=True)
        assert piece == chunk("a")
        assert isinstance(error, StreamInUse)

    asyncio.run(read())


def test_relay_whose_loop_is_closed_closes_the_stream() -> None:
    recorded = tape(chunk("a"), Hang())

    async def begin_relay() -> AsyncIterator[bytes]:
        relay = open_async(recorded).relay()
        assert await anext(relay) == chunk("a")
        return relay

    loop = asyncio.new_event_loop()
    relays = [loop.run_until_complete(begin_relay())]
    loop.set_exception_handler(do_nothing)  # The exception handler gets the relay's open task.
    loop.close()
    relays.clear()
    assert recorded.releases


def test_closing_the_relay_does_not_wait_for_its_reader() -> None:
    """In some transports, only the idle timeout ends a waiting read."""
    ended, finished = threading.Event(), threading.Event()

    def stuck() -> bytes:
        assert ended.wait(20)
        finished.set()
        raise ConnectionInterrupted("closed")

    recorded = tape(chunk("a"), stuck)
    pieces: Any = open_sync(recorded).relay()
    assert next(pieces) == chunk("a")
    pieces.close()
    assert recorded.releases
    assert not finished.is_set()
    ended.set()
    assert finished.wait(20)


def test_relay_may_be_finalized_in_its_reader_thread() -> None:
    """The garbage collector can finalize an object in any thread."""
    dropped, returned = threading.Event(), threading.Event()

    def drop() -> bytes:
        assert dropped.wait(20)
        relays.clear()
        returned.set()
        return chunk("b")

    recorded = tape(chunk("a"), drop)
    relays: list[Any] = [open_sync(recorded).relay()]
    assert next(relays[0]) == chunk("a")
    dropped.set()
    assert returned.wait(20)
    assert recorded.releases


@in_both_loops
async def test_async_relay_may_be_finalized_in_another_thread(mode: Mode) -> None:
    recorded = tape(chunk("a"), Hang())
    relays = [open_async(recorded).relay(heartbeat_ms=None)]
    assert await anext(relays[0]) == chunk("a")
    await anyio.to_thread.run_sync(relays.clear)
    while not recorded.releases:
        await anyio.sleep(0.001)


def test_closing_the_relay_in_another_thread_ends_the_wait_for_its_next_piece() -> None:
    closed = threading.Event()

    def idle() -> bytes:
        assert closed.wait(20)
        raise ConnectionInterrupted("the socket was shut down")

    pieces: Any = open_sync(tape(chunk("a"), idle)).relay(heartbeat_ms=None)
    assert next(pieces) == chunk("a")
    with ThreadPoolExecutor(1) as threads:
        rest = threads.submit(list, pieces)
        pieces.close()
        assert rest.result(20) == []
    closed.set()


def test_relay_in_a_forked_child_ends_with_an_error() -> None:
    pieces = open_sync(tape(chunk("a"), chunk("b"))).relay()

    def read() -> None:
        (error,) = pieces
        assert b"ReaderLost" in error

    assert chunk("a") in next(pieces)
    in_child(read)
    assert b"error" not in b"".join(pieces)


def test_relay_without_a_thread_ends_with_an_error_event(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = open_sync(tape(chunk("a")))

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        events = list(stream.relay())
    assert len(events) == 1
    assert b"event: error" in events[0]
    assert b'"type": "ConnectError"' in events[0]
    assert not stream.is_open


@in_every_mode
async def test_second_relay_gets_an_error_and_the_first_continues(mode: Mode) -> None:
    gate = Gate()
    fake = FakeTransport([Say("a"), gate, Say("b")])
    async with in_mode(mode, Flux0(transport=fake)) as flux0:
        chat = await flux0.conversation_async(agent=fake.agent_id)
        stream = await chat.send("Hi")
        first, second = stream.relay(), stream.relay()
        begin = await anext(first)
        while not (gate.reached and stream.is_being_read):
            await pause(mode)
        (error,) = await gathered(getattr(second, "_real", second))
        gate.open()
        rest = await gathered(getattr(first, "_real", first))
        assert stream.finished

    (event,) = events_of(error)
    assert isinstance(event, UnknownEvent)
    assert json.loads(event.data)["type"] == "StreamInUse"
    assert len(events_of(begin + b"".join(rest))) == stream.event_count


BIG = chunk("x" * 700)


def reads_ahead(first: bytes) -> int:
    """Return how many events like `BIG` are read if a web server has taken only its first piece.

    The stream is read as long as at most 64 KiB wait.
    """
    return (64 * 1024 + len(first)) // len(BIG) + 1


def test_closing_the_relay_stops_the_reader_that_waits_for_a_slow_browser() -> None:
    recorded = tape(*[BIG] * 300)
    others = set(threading.enumerate())
    with open_sync(recorded) as stream:
        pieces: Any = stream.relay()
        full = reads_ahead(next(pieces))
        (reader,) = set(threading.enumerate()) - others
        while recorded.reads < full:
            reader.join(0.001)
        pieces.close()
        assert not stream.is_open

    reader.join(20)
    assert not reader.is_alive()
    assert recorded.reads == full
    assert recorded.releases


@in_both_loops
async def test_closing_the_async_relay_stops_the_reader_that_waits_for_a_slow_browser(
    mode: Mode,
) -> None:
    recorded = tape(*[BIG] * 300)
    async with open_async(recorded) as stream:
        pieces: Any = stream.relay()
        full = reads_ahead(await anext(pieces))
        while recorded.reads < full:
            await anyio.lowlevel.checkpoint()
        await pieces.aclose()
        while not recorded.releases:
            await anyio.lowlevel.checkpoint()
    assert recorded.reads == full


@in_every_mode
async def test_slow_browser_gets_all_events_in_pieces_of_limited_size(mode: Mode) -> None:
    recorded = tape(*[BIG] * 300)
    stream = open_sync(recorded) if mode == "sync" else open_async(recorded)
    relay = in_mode(mode, cast("Any", stream)).relay()

    pieces = [await anext(relay)]
    full = reads_ahead(pieces[0])
    while recorded.reads < full:
        await pause(mode)
    pieces += [piece async for piece in relay]

    assert b"".join(pieces) == BIG * 300
    assert max(map(len, pieces)) <= 64 * 1024 + len(BIG)
    assert stream.finished


@in_every_mode
async def test_relay_yields_an_error_as_the_last_event(mode: Mode) -> None:
    recorded = tape(chunk("a"), ConnectionInterrupted("gone"))
    stream = open_sync(recorded) if mode == "sync" else open_async(recorded)

    *pieces, last = await gathered(stream.relay(heartbeat_ms=None))

    assert pieces == [chunk("a")]
    (event,) = events_of(last)
    assert isinstance(event, UnknownEvent)
    assert event.event == "error"
    assert json.loads(event.data) == {
        "type": "StreamInterrupted",
        "message": "The exchange with the flux0 server failed",
    }
    assert recorded.releases


@in_every_mode
async def test_stream_of_a_failed_relay_is_freed_without_the_garbage_collector(mode: Mode) -> None:
    recorded = tape(chunk("a"), ConnectionInterrupted("gone"))
    stream = open_sync(recorded) if mode == "sync" else open_async(recorded)
    freed = weakref.ref(stream)
    with no_garbage_collection():
        assert len(await gathered(stream.relay(heartbeat_ms=None))) == 2
        del stream
        while freed() is not None:
            await pause(mode)


@in_every_mode
async def test_error_text_chooses_the_message_of_an_error(mode: Mode) -> None:
    recorded = tape(ConnectionInterrupted("gone"))
    stream = open_sync(recorded) if mode == "sync" else open_async(recorded)
    shown = Flux0Format(error_text=lambda error: f"Sorry: {error.problem}")
    (last,) = await gathered(stream.relay(heartbeat_ms=None, format=shown))
    assert b'"message": "Sorry: the stream was interrupted: gone' in last


@in_every_mode
async def test_text_of_the_agents_error_is_replaced(mode: Mode) -> None:
    """A chunk with the same text is not changed."""
    text = '"status": "error"'
    recorded = tape(status("error", {"exception": "secret"}), chunk(text), status("typing", 1))
    stream = open_sync(recorded) if mode == "sync" else open_async(recorded)
    pieces = await gathered(stream.relay(heartbeat_ms=None))
    error, same, typing = events_of(b"".join(pieces))
    assert isinstance(error, StatusEvent)
    assert (error.status, error.data.data) == ("error", "The agent reported an error")
    assert chunk(text) in b"".join(pieces)
    assert (same.type, typing) == ("chunk", *events_of(status("typing", 1)))


@in_every_mode
async def test_log_has_the_complete_error_of_a_relayed_turn_once(mode: Mode) -> None:
    recorded = tape(status("error", "no model"), ConnectionInterrupted("gone"))
    stream = open_sync(recorded) if mode == "sync" else open_async(recorded)
    with logged_errors() as messages:
        await gathered(stream.relay(heartbeat_ms=None))
    first, second = messages
    assert "the agent reported an error: no model" in first
    assert f"session=s turn={CORRELATION_ID}" in first
    assert "the stream was interrupted: gone" in second


@in_every_mode
async def test_error_of_a_stream_that_is_not_relayed_is_not_logged(mode: Mode) -> None:
    recorded = tape(status("error", "no model"), ConnectionInterrupted("gone"))
    stream: Any = open_sync(recorded) if mode == "sync" else open_async(recorded)
    with logged_errors() as messages, pytest.raises(StreamInterrupted):
        [event async for event in in_mode(mode, stream)]
    assert messages == []


@pytest.mark.parametrize("heartbeat_ms", [0, -1, True, "1"])
def test_invalid_heartbeat_ms_is_rejected(heartbeat_ms: Any) -> None:
    with pytest.raises(InvalidArgument, match="heartbeat_ms"):
        open_sync(tape()).relay(heartbeat_ms=heartbeat_ms)


@in_every_mode
async def test_format_encodes_the_start_the_events_and_the_end(mode: Mode) -> None:
    recorded = tape(status("typing") + frame("note", {}), chunk("a"))
    stream = open_sync(recorded) if mode == "sync" else open_async(recorded)

    pieces = await gathered(stream.relay(heartbeat_ms=None, format=PlainFormat()))

    assert pieces[0] == b"start\n"
    assert b"".join(pieces) == b"start\n1 typing\n3 a\nend\n"


@in_every_mode
async def test_format_encodes_an_error_instead_of_the_end(mode: Mode) -> None:
    recorded = tape(chunk("a"), ConnectionInterrupted("gone"))
    stream = open_sync(recorded) if mode == "sync" else open_async(recorded)

    pieces = await gathered(stream.relay(heartbeat_ms=None, format=PlainFormat()))

    assert pieces == [b"start\n", b"1 a\n", b"StreamInterrupted None\n"]


def test_format_encodes_an_error_before_the_first_event() -> None:
    stream = open_sync(tape(chunk("a"), chunk("b")))
    with stream:
        loop = iter(stream)
        next(loop)
        assert b"".join(stream.relay(format=PlainFormat())) == b"start\nStreamInUse None\n"


def test_format_encodes_the_heartbeats() -> None:
    closing = threading.Event()

    def idle() -> bytes:
        assert closing.wait(20)
        raise ConnectionInterrupted("the socket was shut down")

    pieces = open_sync(tape(idle)).relay(heartbeat_ms=1, format=PlainFormat())
    while next(pieces) != b"alive\n":
        pass
    closing.set()
    pieces.close()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue] - as a web server does


@in_both_loops
async def test_format_encodes_the_heartbeats_of_an_async_relay(mode: Mode) -> None:
    pieces: Any = open_async(tape(Hang())).relay(heartbeat_ms=1, format=PlainFormat())
    while await anext(pieces) != b"alive\n":
        pass
    await pieces.aclose()


@pytest.mark.parametrize("format", [None, "ai", PlainFormat])
def test_invalid_format_is_rejected(format: Any) -> None:
    with pytest.raises(InvalidArgument, match="format must be a RelayFormat, not"):
        open_sync(tape()).relay(format=format)
    with pytest.raises(InvalidArgument, match="format must be a RelayFormat, not"):
        background_turn([]).relay(format=format)


@in_every_mode
async def test_relay_raises_other_exceptions_to_its_reader(mode: Mode) -> None:
    recorded = tape(chunk("a"), ZeroDivisionError("a bug"))
    stream = open_sync(recorded) if mode == "sync" else open_async(recorded)

    with pytest.raises(ZeroDivisionError, match="a bug"):
        await gathered(stream.relay())


class BrokenFormat(RelayFormat):
    """A format that raises an exception."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def encoder(self) -> RelayEncoder:
        raise self._error


@in_every_mode
async def test_error_of_the_format_closes_the_stream(mode: Mode) -> None:
    for error in (ZeroDivisionError("a bug"), SystemExit("an exit")):
        recorded = tape(chunk("a"))
        stream = open_sync(recorded) if mode == "sync" else open_async(recorded)
        with pytest.raises(type(error), match=str(error)):
            await gathered(stream.relay(format=BrokenFormat(error)))
        assert not stream.is_open
        while not recorded.releases:
            await anyio.lowlevel.checkpoint()


@in_every_mode
async def test_relay_ends_5_s_after_an_error_of_the_agent_but_a_loop_reads_on(mode: Mode) -> None:
    fake = FakeTransport(["a", Fail("no model"), Pause(60), "b"])
    client = in_mode(mode, Flux0(transport=fake))
    conversation = await client.conversation_async(agent=fake.agent_id)
    async with await conversation.send("Hi") as stream:
        assert len([event async for event in stream]) == 3
    began = fake.clock.monotonic()
    stream = await conversation.send("Hi")
    *_, status, last = await gathered(stream.relay())
    assert b'"status": "error"' in status
    assert error_in(last) == ("AgentError", "The agent reported an error")
    assert fake.clock.monotonic() - began == 5
    assert not stream.is_open
    fake.assert_no_open_streams()


@in_both_loops
async def test_heartbeats_are_encoded_only_when_they_are_sent(mode: Mode) -> None:
    class NoHeartbeats(PlainFormat):
        def encoder(self) -> RelayEncoder:
            encoder = super().encoder()
            encoder.heartbeat = None  # type: ignore[assignment, method-assign]
            return encoder

    stream = open_async(tape(chunk("a"), status("completed")))
    pieces = await gathered(stream.relay(heartbeat_ms=None, format=NoHeartbeats()))
    assert b"".join(pieces) == b"start\n1 a\n2 completed\nend\n"


def test_relay_raises_exceptions_that_exit_the_process_to_its_reader() -> None:
    """`pytest.fail` raises such an exception, too."""
    with pytest.raises(SystemExit):
        list(open_sync(tape(chunk("a"), SystemExit())).relay())


@in_every_mode
async def test_error_of_closing_the_stream_is_raised_to_the_reader_of_the_relay(mode: Mode) -> None:
    body = FailingBody(tape(chunk("a")))
    response = Response(200, Headers(tuple(SSE.items())), body, raw_response=object())
    stream = await begin(mode, script(response))
    with pytest.raises(OSError, match="cannot be closed"):
        await gathered(stream.relay())


def test_relay_that_is_interrupted_after_its_thread_has_started_closes_the_stream() -> None:
    """The thread reads ahead until 64 KiB wait. Without a close, it waits forever."""
    recorded = tape(chunk("a"), *[chunk("x" * 500)] * 400, Hang())
    stream = open_sync(recorded)
    relay = stream.relay()

    def interrupt(frame: FrameType, event: str, _: object) -> None:
        if event == "return" and frame.f_code.co_name == "start_thread":
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(relay)
    with ends_soon():
        while stream.is_open:
            threading.Event().wait(0.001)
