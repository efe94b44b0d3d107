"""Readers of a log: waiting, heartbeats, errors, and unreferenced relays."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import CodeType, FrameType
from typing import Any

import anyio
import pytest

from flux0 import BackgroundTurns, Flux0
from flux0.domain.background_errors import TurnStoreError
from flux0.domain.errors import Flux0Error, StreamIdleTimeout, StreamInUse
from flux0.domain.locks import Busy
from flux0.relay_format import FLUX0, HEARTBEAT
from flux0.runtime.event_loop import do_nothing, running_loop
from flux0.runtime.turn_log import LogEnd, TurnLog
from flux0.testing import FakeTransport, Gate, Say
from flux0.turns.log_relay import (
    AsyncRelay,
    LogReader,
    OpenRelays,
    Pieces,
    Relay,
    turn_pieces,
    wait_for_end,
    wait_for_end_async,
)
from support.in_memory import chunk, events_of, in_both_loops, status
from support.modes import run
from support.plain_format import PlainFormat
from support.transports import ASYNC, SYNC, Mode

TIMEOUT = 20.0


class WatchedLog(TurnLog):
    """A log that knows the readers that wait for it."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__("turn-1", max_bytes, lambda _: None)
        self.waiting: list[object] = []

    def on_change(self, wake: Callable[[], object]) -> Callable[[], object]:
        cancel_call, reader = super().on_change(wake), object()

        def cancel() -> None:
            self.waiting.remove(reader)
            cancel_call()

        self.waiting.append(reader)
        return cancel


def new_log(*events: bytes, max_bytes: int = 1000) -> WatchedLog:
    log = WatchedLog(max_bytes)
    for event in events:
        log.append(event)
    return log


def relayed(log: TurnLog, *, after: int = 0, heartbeat: float | None = None) -> Relay:
    return Relay(turn_pieces(LogReader(log, after), FLUX0), heartbeat)


def relayed_async(log: TurnLog, heartbeat: float | None = None) -> AsyncRelay:
    return AsyncRelay(turn_pieces(LogReader(log), FLUX0), heartbeat)


async def gathered(pieces: AsyncRelay) -> list[bytes]:
    return [piece async for piece in pieces]


class ChangingLog(TurnLog):
    """A log that changes just before a reader begins to wait for a change."""

    def __init__(self, change: Callable[[TurnLog], object]) -> None:
        super().__init__("turn-1", 1000, lambda _: None)
        self._change = change

    def on_change(self, wake: Callable[[], object]) -> Callable[[], object]:
        self._change(self)
        return super().on_change(wake)


def add_event(log: TurnLog) -> None:
    log.append(b"1")


def end(log: TurnLog) -> None:
    log.finish(LogEnd())


CHANGES = pytest.mark.parametrize("change", [add_event, end])


@CHANGES
def test_change_before_a_reader_waits_is_not_missed(change: Callable[[TurnLog], object]) -> None:
    assert LogReader(ChangingLog(change)).wait(TIMEOUT)


@CHANGES
@pytest.mark.parametrize("mode", ASYNC)
def test_change_before_a_task_waits_is_not_missed(
    mode: Mode, change: Callable[[TurnLog], object]
) -> None:
    async def wait() -> None:
        with anyio.fail_after(TIMEOUT):
            assert await LogReader(ChangingLog(change)).wait_async(None)

    run(mode, wait)


def test_sync_relay_yields_events_as_they_arrive_and_comments_between_them() -> None:
    log = new_log(b"1")
    pieces = relayed(log, heartbeat=0.001)
    assert [next(pieces), next(pieces), next(pieces)] == [b"1", HEARTBEAT, HEARTBEAT]
    log.append(b"2")
    log.finish(LogEnd())
    assert list(pieces) == [b"2"]


@in_both_loops
async def test_async_relay_yields_events_as_they_arrive_and_comments_between_them(
    mode: Mode,
) -> None:
    log = new_log(b"1")
    pieces = relayed_async(log, 0.001)
    assert [await anext(pieces) for _ in range(3)] == [b"1", HEARTBEAT, HEARTBEAT]
    log.append(b"2")
    log.finish(LogEnd())
    assert await gathered(pieces) == [b"2"]
    assert await gathered(pieces) == []


@in_both_loops
async def test_closed_async_relay_ends(mode: Mode) -> None:
    log = new_log(b"1")
    pieces = relayed_async(log)
    assert await anext(pieces) == b"1"
    log.append(b"2")
    await pieces.aclose()
    assert await gathered(pieces) == []


def test_relay_in_another_thread_is_woken_by_each_event_and_by_the_end() -> None:
    log = new_log()
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(list, relayed(log))
        for number in (b"1", b"2", b"3"):
            while not log.waiting:
                threading.Event().wait(0.001)
            log.append(number)
        while not log.waiting:
            threading.Event().wait(0.001)
        log.finish(LogEnd(StreamIdleTimeout("no event")))
        *events, last = reading.result(TIMEOUT)
    assert b"".join(events) == b"123"
    assert last == (
        b'event: error\nid: 4\ndata: {"type": "StreamIdleTimeout", "message": "no event"}\n\n'
    )


@pytest.mark.parametrize("mode", ASYNC)
def test_task_is_woken_by_events_from_another_thread(mode: Mode) -> None:
    log = new_log()

    def write() -> None:
        for number in (b"1", b"2"):
            while not log.waiting:
                threading.Event().wait(0.001)
            log.append(number)
        log.finish(LogEnd())

    async def read() -> None:
        assert b"".join(await gathered(relayed_async(log))) == b"12"

    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(write)
        run(mode, read)
        writing.result(TIMEOUT)


@pytest.mark.parametrize("end", [LogEnd(), LogEnd(Flux0Error(""))], ids=["ended", "failed"])
def test_relay_that_is_too_slow_gets_an_error_without_a_number(end: LogEnd) -> None:
    """With a number, a browser would continue after an event that it has not received."""
    log = new_log(b"12345", b"12345", max_bytes=10)
    pieces = relayed(log)
    assert next(pieces) == b"1234512345"
    for _ in range(10):
        log.append(b"12345")
    log.finish(end)
    (error,) = pieces
    assert error.startswith(b"event: error\ndata: ")
    assert json.loads(error.split(b"data: ")[1])["type"] == "TurnTooLarge"


def test_agents_error_is_replaced_and_keeps_its_number_between_other_events() -> None:
    """With another number, a browser that reconnects misses events, or gets them twice."""
    first, second, last = chunk("a"), status("error", "no model"), status("typing", 1)
    events = [b"id: %d\n" % number + event for number, event in enumerate((first, second, last), 1)]
    log = new_log(*events)
    log.finish(LogEnd())
    data = b"".join(relayed(log))
    decoded = events_of(data)
    assert [line for line in data.splitlines() if line[:3] == b"id:"] == [
        b"id: 1",
        b"id: 2",
        b"id: 3",
    ]
    assert [decoded[0], decoded[2]] == events_of(first + last)
    assert b"no model" not in data
    assert b"The agent reported an error" in data


@pytest.mark.parametrize(
    ("end", "last"),
    [
        (LogEnd(), b"end\n"),
        (LogEnd(StreamIdleTimeout("no event")), b"StreamIdleTimeout 4\n"),
        (LogEnd(TurnStoreError("no connection"), is_of_copy=True), b"TurnStoreError None\n"),
    ],
)
def test_relay_in_another_format_has_its_start_its_heartbeats_and_its_end(
    end: LogEnd, last: bytes
) -> None:
    log = new_log(chunk("a"), status("typing"))
    pieces = Relay(turn_pieces(LogReader(log), PlainFormat().encoder()), 0.001)
    assert [next(pieces) for _ in range(3)] == [b"start\n", b"1 a\n2 typing\n", b"alive\n"]
    log.append(chunk("b"))
    log.finish(end)
    assert list(pieces) == [b"3 b\n", last]


@pytest.mark.parametrize("after", [3, 500])
def test_relay_after_the_last_number_yields_nothing_more(after: int) -> None:
    log = new_log(b"1", b"2")
    log.finish(LogEnd(StreamIdleTimeout("no event")))
    assert list(relayed(log, after=after)) == []
    assert len(list(relayed(log, after=2))) == 1


@pytest.mark.parametrize("after", [2, 5])
def test_error_that_ends_only_a_copy_has_no_number_and_is_never_left_out(after: int) -> None:
    """Another process adds events to the turn, and the browser may have received them from it."""
    log = new_log(b"1", b"2")
    log.finish(LogEnd(TurnStoreError("no connection"), is_of_copy=True))
    (error,) = relayed(log, after=after)
    assert error.startswith(b'event: error\ndata: {"type": "TurnStoreError"')


def test_relay_after_a_number_that_is_not_copied_yet_waits_for_the_next_number() -> None:
    log = new_log(b"1")
    pieces = relayed(log, after=2, heartbeat=0.001)
    assert next(pieces) == HEARTBEAT
    log.append(b"2")
    assert next(pieces) == HEARTBEAT
    log.append(b"3")
    assert next(pieces) == b"3"


def test_sync_wait_returns_at_once_if_an_event_was_added_after_the_last_read() -> None:
    log = new_log(b"1")
    reader = LogReader(log)
    assert reader.wait(None)
    assert not log.waiting


@in_both_loops
async def test_sync_wait_in_the_event_loop_that_reads_the_turn_is_rejected(mode: Mode) -> None:
    log = new_log()
    log.loop = running_loop()
    for wait in (LogReader(log).wait, partial(wait_for_end, log)):
        with pytest.raises(Flux0Error, match="use the _async method"):
            wait(TIMEOUT)
    assert (mode, log.waiting) == (mode, [])


@in_both_loops
async def test_async_wait_returns_at_once_if_an_event_was_added_after_the_last_read(
    mode: Mode,
) -> None:
    log = new_log(b"1")
    reader = LogReader(log)
    assert await reader.wait_async(None)
    assert not log.waiting


def test_unreferenced_sync_relays_leave_nothing_behind() -> None:
    log = new_log(b"1")
    pieces: list[Any] = [relayed(log, heartbeat=0.001) for _ in range(3)]
    assert [next(pieces[1]), next(pieces[2])] == [b"1"] * 2
    assert [next(pieces[1]), next(pieces[2])] == [HEARTBEAT] * 2
    references = [weakref.ref(each) for each in pieces]
    del pieces
    assert not log.waiting
    assert [reference() for reference in references] == [None] * 3


@in_both_loops
async def test_unreferenced_and_cancelled_async_relays_leave_nothing_behind(mode: Mode) -> None:
    log = new_log(b"1")
    pieces = [relayed_async(log, 0.001) for _ in range(3)]
    for expected in (b"1", HEARTBEAT):
        assert await anext(pieces[1]) == await anext(pieces[2]) == expected
    references = [weakref.ref(each) for each in pieces]
    del pieces
    await anyio.sleep(0)  # The event loop refers to the last timeout until the next step.
    gc.collect()
    assert [reference() for reference in references] == [None] * 3

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(gathered, relayed_async(log))
        while not log.waiting:
            await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()
    assert not log.waiting


@pytest.mark.parametrize("mode", ASYNC)
@pytest.mark.parametrize("ends_turn", [True, False])
def test_end_in_a_signal_handler_wakes_a_relay_whose_loop_waits_for_io(
    mode: Mode, ends_turn: bool
) -> None:
    log, relays = new_log(), OpenRelays()

    def send_signal() -> None:
        while not log.waiting:
            threading.Event().wait(0.001)
        threading.Event().wait(0.05)  # The loop usually waits for I/O now.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    async def read() -> None:
        pieces = await gathered(AsyncRelay(relays.pieces(LogReader(log), FLUX0), None))
        assert len(pieces) == (0 if ends_turn else 1)

    def end(_: int, __: object) -> None:
        log.finish(LogEnd()) if ends_turn else relays.end()

    before = signal.signal(signal.SIGUSR1, end)
    try:
        with ThreadPoolExecutor(1) as threads:
            sending = threads.submit(send_signal)
            run(mode, read)
            sending.result(TIMEOUT)
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("mode", SYNC + ASYNC)
def test_closed_reader_ends_although_its_thread_or_task_waits(mode: Mode) -> None:
    log, relays = new_log(b"1"), OpenRelays()

    async def read() -> list[bytes]:
        pieces = relays.pieces(LogReader(log), FLUX0)
        if mode == "sync":
            return list(Relay(pieces, None))
        return await gathered(AsyncRelay(pieces, None))

    results: list[bytes] = []

    async def run_relay() -> None:
        results.extend(await read())

    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(run, mode, run_relay)
        while not log.waiting:
            threading.Event().wait(0.001)
        relays.end()
        reading.result(TIMEOUT)
    event, hint = results
    assert event == b"1"
    assert hint.startswith(b"event: reconnect\nretry: 1000\n")
    assert not log.waiting


@in_both_loops
async def test_relay_is_open_from_its_first_piece_until_it_is_closed(mode: Mode) -> None:
    relays = OpenRelays()
    for _ in range(2):
        pieces = AsyncRelay(relays.pieces(LogReader(new_log(b"1")), FLUX0), None)
        assert len(relays) == 0
        assert await anext(pieces) == b"1"
        assert len(relays) == 1
        await pieces.aclose()
    assert len(relays) == 0


def test_relay_that_is_opened_after_the_end_of_all_relays_asks_to_connect_again_at_once() -> None:
    relays = OpenRelays()
    relays.end()
    assert relays.are_ended
    (hint,) = Relay(relays.pieces(LogReader(new_log(b"1")), FLUX0), None)
    assert hint.startswith(b"event: reconnect\n")
    assert len(relays) == 0


def test_reader_that_is_closed_before_it_waits_ends() -> None:
    relays = OpenRelays()
    log = ChangingLog(lambda _: relays.end())
    pieces = Relay(relays.pieces(LogReader(log), FLUX0), None)
    assert next(pieces).startswith(b"event: reconnect\n")


@pytest.mark.parametrize("mode", ASYNC)
def test_relay_can_be_read_in_a_second_event_loop(mode: Mode) -> None:
    log = new_log(b"1")
    pieces = relayed_async(log, 0.001)
    for expected in (b"1", HEARTBEAT):

        async def read(expected: bytes = expected) -> None:
            assert await anext(pieces) == expected
            assert await anext(pieces) == HEARTBEAT

        run(mode, read)


def test_waiting_relay_of_a_closed_loop_does_not_disturb_the_turn() -> None:
    log = new_log()
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(do_nothing)  # It gets the loop's open tasks.
    task = loop.create_task(gathered(relayed_async(log)))
    while not log.waiting:
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    log.append(b"1")
    log.finish(LogEnd())
    del task
    gc.collect()


def test_wait_for_end_continues_after_an_event() -> None:
    class Growing(WatchedLog):
        """A log with an event after the first wait, and the end after the second."""

        def on_change(self, wake: Callable[[], object]) -> Callable[[], object]:
            cancel = super().on_change(wake)
            self.finish(LogEnd()) if self.last else self.append(b"event")
            return cancel

    assert wait_for_end(Growing(1000), TIMEOUT)


@in_both_loops
async def test_cancelled_async_relay_closes_its_pieces(mode: Mode) -> None:
    """So closing the relay of a stream stops its agent."""
    closed, received = list[bool](), list[bytes]()

    def pieces() -> Pieces:
        try:
            yield LogReader(new_log())
        finally:
            closed.append(True)

    relay = AsyncRelay(pieces(), None)

    async def read() -> None:
        received.append(await anext(relay))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert (closed, received) == ([True], [])


def test_sync_relay_that_is_interrupted_while_it_waits_closes_its_pieces() -> None:
    closed: list[bool] = []

    def interrupt(_: TurnLog) -> None:
        raise KeyboardInterrupt

    def pieces() -> Pieces:
        try:
            yield LogReader(ChangingLog(interrupt))
        finally:
            closed.append(True)

    relay = Relay(pieces(), None)
    with pytest.raises(KeyboardInterrupt):
        next(relay)
    assert closed == [True]
    assert list(relay) == []


def test_wait_for_end_returns_whether_the_turn_has_ended() -> None:
    log = new_log()
    assert not wait_for_end(log, 0.001)
    assert not wait_for_end(log, -1)
    with ThreadPoolExecutor(1) as threads:
        # The largest `drain_seconds`. Python's locks do not accept it.
        waits = threads.submit(wait_for_end, log, 10.0**12)
        while not log.waiting:
            threading.Event().wait(0.001)
        log.append(b"1")
        log.finish(LogEnd())
        assert waits.result(TIMEOUT)
    assert wait_for_end(log, -1)


@in_both_loops
async def test_wait_for_end_async_returns_whether_the_turn_has_ended(mode: Mode) -> None:
    log = new_log()
    assert not await wait_for_end_async(log, 0.001)
    assert not await wait_for_end_async(log, -1)
    results: list[bool] = []

    async def wait() -> None:
        results.append(await wait_for_end_async(log, TIMEOUT))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        while not log.waiting:
            await anyio.sleep(0.001)
        log.append(b"1")
        log.finish(LogEnd())
    assert results == [True]
    assert await wait_for_end_async(log, -1)


@in_both_loops
async def test_thousand_relays_of_one_turn_get_all_events(mode: Mode) -> None:
    log, number = new_log(max_bytes=10**6), 50
    results: list[bytes] = []

    async def read() -> None:
        results.append(b"".join(await gathered(relayed_async(log))))

    async with anyio.create_task_group() as tasks:
        for _ in range(1000):
            tasks.start_soon(read)
        for each in range(number):
            log.append(str(each).encode())
            if each % 10 == 0:
                await anyio.sleep(0.001)
        log.finish(LogEnd())
    assert results == [b"".join(str(each).encode() for each in range(number))] * 1000


@in_both_loops
async def test_late_wake_for_an_earlier_event_does_not_end_the_wait(mode: Mode) -> None:
    log = new_log(chunk("a"))
    reader = LogReader(log)
    assert await reader.wait_async(None)
    reader.read()
    with anyio.move_on_after(0.01):
        await reader.wait_async(None)  # The reader has a waker now.
    waker = reader._async_waker  # pyright: ignore[reportPrivateUsage] - no other way to wake it too late
    assert waker is not None
    async with anyio.create_task_group() as tasks:

        async def add() -> None:
            while not log.waiting:
                await anyio.lowlevel.checkpoint()
            waker.wake()
            for _ in range(10):
                await anyio.lowlevel.checkpoint()
            log.append(chunk("b"))

        tasks.start_soon(add)
        assert await reader.wait_async(TIMEOUT)
    assert reader.read() == [chunk("b")]


@pytest.mark.parametrize("kind", [Relay, AsyncRelay])
def test_relay_that_is_closed_while_another_thread_encodes_an_event_ends_after_the_event(
    kind: type[Relay | AsyncRelay],
) -> None:
    encodes, continues, freed = threading.Event(), threading.Event(), list[str]()

    def pieces() -> Pieces:
        try:
            encodes.set()
            assert continues.wait(TIMEOUT)
            yield b"encoded"
            raise AssertionError("the relay continues after `close`")
        finally:
            freed.append("closed")

    relay: Any = kind(pieces(), None)

    def read() -> Any:
        return next(relay) if kind is Relay else asyncio.run(anext(relay))

    with ThreadPoolExecutor(1) as thread:
        piece = thread.submit(read)
        assert encodes.wait(TIMEOUT)
        try:
            relay.close() if kind is Relay else asyncio.run(relay.aclose())
            assert freed == []
        finally:
            continues.set()
        assert piece.result(TIMEOUT) == b"encoded"
    assert freed == ["closed"]
    with pytest.raises((StopIteration, StopAsyncIteration)):
        read()


def test_relay_that_another_thread_is_closing_ends() -> None:
    closing, release = threading.Event(), threading.Event()

    def pieces() -> Pieces:
        try:
            yield b"a"
        finally:
            closing.set()
            assert release.wait(10)

    relay = Relay(pieces(), None)
    assert next(relay) == b"a"
    with ThreadPoolExecutor(1) as thread:
        closed = thread.submit(relay.close)
        assert closing.wait(10)
        with pytest.raises(StopIteration):
            next(relay)
        release.set()
        closed.result()


def test_relay_that_is_read_by_its_own_encoder_is_in_use() -> None:
    def pieces() -> Pieces:
        next(relay)
        yield b"a"

    relay = Relay(pieces(), None)
    with pytest.raises(StreamInUse):
        next(relay)


@in_both_loops
async def test_async_relay_is_read_by_one_task_only(mode: Mode) -> None:
    gate, fake = Gate(), FakeTransport()
    fake.script([gate])
    async with Flux0(transport=fake) as client:
        conversation = await client.conversation_async(agent=fake.agent_id)
        turns = BackgroundTurns()
        relay = (await turns.start_async(conversation, mode)).relay_async()

        async def read() -> None:
            async for _ in relay:
                pass

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            while not gate.reached:
                await anyio.sleep(0)
            for _ in range(100):
                await anyio.sleep(0)
            with pytest.raises(StreamInUse):
                await anext(relay)
            gate.open()
        await turns.close_async()


def test_lock_that_an_encoder_cannot_acquire_does_not_end_the_relay_silently() -> None:
    def pieces() -> Pieces:
        yield b"a"
        raise Busy

    relay = Relay(pieces(), None)
    assert next(relay) == b"a"
    with pytest.raises(StreamInUse):
        next(relay)


def test_closing_a_relay_of_a_background_turn_wakes_the_thread_that_reads_it() -> None:
    fake, gate = FakeTransport(), Gate()
    fake.script([Say("a"), gate])
    with Flux0(transport=fake) as client, ThreadPoolExecutor(1) as thread:
        turns = BackgroundTurns()
        turn = turns.start(client.conversation(agent=fake.agent_id), "Hi")
        relay: Any = turn.relay(heartbeat_ms=None)
        while turn.event_count == 0:
            threading.Event().wait(0.001)
        reader = thread.submit(threading.get_ident).result()
        reading = thread.submit(list, relay)
        while not is_called(reader, LogReader.wait.__code__):
            threading.Event().wait(0.001)
        relay.close()
        assert b"".join(reading.result(timeout=5)).startswith(b"event: chunk\nid: 1\n")
        gate.open()
        turns.close()


def is_called(thread: int, code: CodeType) -> bool:
    """Return whether the thread has called this function, which has not returned."""
    frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage] - documented, for debugging
    frame = frames.get(thread)
    return any(called is code for called in codes_of(frame))


def codes_of(frame: FrameType | None) -> Iterator[CodeType]:
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back
