"""Readers of a log: waiting, heartbeats, errors, and unreferenced relays."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest

from flux0.domain.errors import StreamIdleTimeout, TurnStoreError
from flux0.relay_format import HEARTBEAT
from flux0.runtime.turn_log import LogEnd, TurnLog
from flux0.turns.log_relay import (
    AsyncLogRelay,
    LogReader,
    relay_log,
    wait_for_end,
    wait_for_end_async,
)
from support.in_memory import in_both_loops
from support.modes import run
from support.transports import ASYNC, Mode

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


async def gathered(pieces: AsyncLogRelay) -> list[bytes]:
    return [piece async for piece in pieces]


def test_sync_relay_yields_events_as_they_arrive_and_comments_between_them() -> None:
    log = new_log(b"1")
    pieces = relay_log(log, 0, 0.001)
    assert [next(pieces), next(pieces), next(pieces)] == [b"1", HEARTBEAT, HEARTBEAT]
    log.append(b"2")
    log.finish(LogEnd())
    assert list(pieces) == [b"2"]


@in_both_loops
async def test_async_relay_yields_events_as_they_arrive_and_comments_between_them(
    mode: Mode,
) -> None:
    log = new_log(b"1")
    pieces = AsyncLogRelay(log, 0, 0.001)
    assert [await anext(pieces) for _ in range(3)] == [b"1", HEARTBEAT, HEARTBEAT]
    log.append(b"2")
    log.finish(LogEnd())
    assert await gathered(pieces) == [b"2"]
    assert await gathered(pieces) == []


@in_both_loops
async def test_closed_async_relay_ends(mode: Mode) -> None:
    pieces = AsyncLogRelay(new_log(b"1", b"2"), 0, None)
    assert await anext(pieces) == b"1"
    await pieces.aclose()
    assert await gathered(pieces) == []


def test_relay_in_another_thread_is_woken_by_each_event_and_by_the_end() -> None:
    log = new_log()
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(list, relay_log(log, 0, None))
        for number in (b"1", b"2", b"3"):
            while not log.waiting:
                threading.Event().wait(0.001)
            log.append(number)
        while not log.waiting:
            threading.Event().wait(0.001)
        log.finish(LogEnd(StreamIdleTimeout("no event")))
        *events, last = reading.result(TIMEOUT)
    assert events == [b"1", b"2", b"3"]
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
        assert await gathered(AsyncLogRelay(log, 0, None)) == [b"1", b"2"]

    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(write)
        run(mode, read)
        writing.result(TIMEOUT)


def test_relay_that_is_too_slow_gets_an_error_without_a_number() -> None:
    """With a number, a browser would continue after an event that it has not received."""
    log = new_log(b"12345", b"12345", max_bytes=10)
    pieces = relay_log(log, 0, None)
    assert [next(pieces), next(pieces)] == [b"12345"] * 2
    for _ in range(10):
        log.append(b"12345")
    log.finish(LogEnd())
    (error,) = pieces
    assert error.startswith(b"event: error\ndata: ")
    assert json.loads(error.split(b"data: ")[1])["type"] == "TurnTooLarge"


@pytest.mark.parametrize("after", [3, 500])
def test_relay_after_the_last_number_yields_nothing_more(after: int) -> None:
    log = new_log(b"1", b"2")
    log.finish(LogEnd(StreamIdleTimeout("no event")))
    assert list(relay_log(log, after, None)) == []
    assert len(list(relay_log(log, 2, None))) == 1


@pytest.mark.parametrize("after", [2, 5])
def test_error_that_ends_only_a_copy_has_no_number_and_is_never_left_out(after: int) -> None:
    """Another process adds events to the turn, and the browser may have received them from it."""
    log = new_log(b"1", b"2")
    log.finish(LogEnd(TurnStoreError("no connection"), is_of_copy=True))
    (error,) = relay_log(log, after, None)
    assert error.startswith(b'event: error\ndata: {"type": "TurnStoreError"')


def test_relay_after_a_number_that_is_not_copied_yet_waits_for_the_next_number() -> None:
    log = new_log(b"1")
    pieces = relay_log(log, 2, 0.001)
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
async def test_async_wait_returns_at_once_if_an_event_was_added_after_the_last_read(
    mode: Mode,
) -> None:
    log = new_log(b"1")
    reader = LogReader(log)
    assert await reader.wait_async(None)
    assert not log.waiting


def test_unreferenced_sync_relays_leave_nothing_behind() -> None:
    log = new_log(b"1")
    pieces: list[Any] = [relay_log(log, 0, 0.001) for _ in range(3)]
    assert [next(pieces[1]), next(pieces[2])] == [b"1"] * 2
    assert [next(pieces[1]), next(pieces[2])] == [HEARTBEAT] * 2
    references = [weakref.ref(each) for each in pieces]
    del pieces
    assert not log.waiting
    assert [reference() for reference in references] == [None] * 3


@in_both_loops
async def test_unreferenced_and_cancelled_async_relays_leave_nothing_behind(mode: Mode) -> None:
    log = new_log(b"1")
    pieces = [AsyncLogRelay(log, 0, 0.001) for _ in range(3)]
    for expected in (b"1", HEARTBEAT):
        assert await anext(pieces[1]) == await anext(pieces[2]) == expected
    references = [weakref.ref(each) for each in pieces]
    del pieces
    await anyio.sleep(0)  # The event loop refers to the last timeout until the next step.
    gc.collect()
    assert [reference() for reference in references] == [None] * 3

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(gathered, AsyncLogRelay(log, 0, None))
        while not log.waiting:
            await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()
    assert not log.waiting


def ignore_open_tasks(_: object, __: object) -> None:
    """An exception handler of asyncio, which reports open tasks of closed loops."""


def test_waiting_relay_of_a_closed_loop_does_not_disturb_the_turn() -> None:
    log = new_log()
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(ignore_open_tasks)
    task = loop.create_task(gathered(AsyncLogRelay(log, 0, None)))
    while not log.waiting:
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    log.append(b"1")
    log.finish(LogEnd())
    del task
    gc.collect()


def test_wait_for_end_returns_whether_the_turn_has_ended() -> None:
    log = new_log()
    assert not wait_for_end(log, 0.001)
    assert not wait_for_end(log, -1)
    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(wait_for_end, log, TIMEOUT)
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
    counts: list[int] = []

    async def read() -> None:
        counts.append(len(await gathered(AsyncLogRelay(log, 0, None))))

    async with anyio.create_task_group() as tasks:
        for _ in range(1000):
            tasks.start_soon(read)
        for each in range(number):
            log.append(str(each).encode())
            if each % 10 == 0:
                await anyio.sleep(0.001)
        log.finish(LogEnd())
    assert counts == [number] * 1000
