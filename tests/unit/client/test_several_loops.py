"""One client in several event loops and threads: the messages of a session are serialized."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias

import anyio
import pytest
import trio

from flux0 import (
    AiohttpTransport,
    ClientClosed,
    Flux0,
    Flux0Error,
    HttpxTransport,
    TransportTimeout,
)
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import ServerSteps, WaitForRelease, http_response
from support.forking import in_child
from support.in_memory import SSE, chunk
from support.transports import ASYNC, SYNC, WAYS, Mode, Way

ASYNC_WAYS = tuple(way for way in WAYS if way.mode != "sync")
TWO_LOOPS: list[tuple[Mode, Mode]] = [
    ("asyncio", "asyncio"),
    ("asyncio", "trio"),
    ("trio", "asyncio"),
    ("trio", "trio"),
    ("sync", "asyncio"),
    ("sync", "trio"),
    ("asyncio", "sync"),
    ("trio", "sync"),
]
MODES = SYNC + ASYNC
ANOTHER_MESSAGE = "closed by another message on its session"

Run: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


def turn(*steps: bytes | WaitForRelease) -> ServerSteps:
    return http_response(*steps, headers=list(SSE.items()), framing="chunked")


ONE_EVENT = turn(chunk("a"), WaitForRelease())
TWO_EVENTS = turn(chunk("a"), chunk("b"))


def run_in(mode: Mode, run: Run) -> None:
    """Run `run` in a new event loop, or without a loop if it contains only sync calls."""
    if mode == "asyncio":
        asyncio.run(run())
    elif mode == "trio":
        trio.run(run)
    else:
        with pytest.raises(StopIteration):
            run().send(None)


def client_for(way: Way, url: str) -> Flux0:
    """Return a client for sync and async calls. aiohttp has only async calls."""
    if way.transport != "aiohttp":
        return Flux0(url, transport=way.make_transport())
    return Flux0(url, transport=HttpxTransport(), async_transport=AiohttpTransport())


async def open_stream(mode: Mode, flux0: Flux0, session_id: str = "s", **options: Any) -> Any:
    if mode == "sync":
        return flux0.sessions.create_event(session_id=session_id, content="Hi", **options)
    return await flux0.sessions.create_event_async(session_id=session_id, content="Hi", **options)


async def read(mode: Mode, stream: Any) -> int:
    return len(list(stream)) if mode == "sync" else len([event async for event in stream])


@pytest.mark.parametrize(("first", "second"), TWO_LOOPS)
def test_message_waits_until_another_loop_has_sent_its_message(first: Mode, second: Mode) -> None:
    delayed = (WaitForRelease(), *TWO_EVENTS)
    with ByteServer(delayed, TWO_EVENTS) as server, ThreadPoolExecutor(2) as threads:
        flux0 = Flux0(server.url)

        async def send_first() -> None:
            # An open stream would be freed while its loop ends, and asyncio would warn about this.
            stream = await open_stream(first, flux0)
            stream.close() if first == "sync" else await stream.close_async()

        async def send_second() -> None:
            stream = await open_stream(second, flux0)
            assert await read(second, stream) == 2

        sending = threads.submit(run_in, first, send_first)
        server.wait_for_requests(1)
        waiting = threads.submit(run_in, second, send_second)
        with pytest.raises(TransportTimeout, match="timeout_ms"):
            flux0.sessions.create_event(session_id="s", content="Hi", timeout_ms=20)
        assert len(server.requests) == 1
        server.release()
        sending.result(20)
        waiting.result(20)

    assert len(server.requests) == 2


@pytest.mark.parametrize("way", ASYNC_WAYS, ids=str)
@pytest.mark.parametrize("second", ["asyncio", "trio", "sync"])
def test_reader_in_another_loop_gets_client_closed_before_the_message_is_sent(
    way: Way, second: Mode
) -> None:
    if (way.transport, second) == ("aiohttp", "trio"):
        second = "asyncio"
    with ByteServer(ONE_EVENT, TWO_EVENTS) as server, ThreadPoolExecutor(2) as threads:
        flux0 = client_for(way, server.url)
        reading = threading.Event()

        async def read_first() -> None:
            stream = await open_stream(way.mode, flux0)
            await anext(stream)
            reading.set()
            with pytest.raises(ClientClosed, match=ANOTHER_MESSAGE):
                await anext(stream)

        async def send_second() -> None:
            assert await read(second, await open_stream(second, flux0)) == 2

        first = threads.submit(run_in, way.mode, read_first)
        assert reading.wait(20)
        threads.submit(run_in, second, send_second).result(20)
        first.result(20)


@pytest.mark.parametrize("second", ["asyncio", "trio", "sync"])
def test_blocked_loop_limits_the_wait_and_the_message_is_not_sent(second: Mode) -> None:
    with ByteServer(ONE_EVENT, TWO_EVENTS) as server, ThreadPoolExecutor(2) as threads:
        flux0 = Flux0(server.url)
        opened, unblock = threading.Event(), threading.Event()

        async def open_first() -> None:
            stream = await open_stream("asyncio", flux0)
            opened.set()
            unblock.wait(20)
            with pytest.raises(ClientClosed, match=ANOTHER_MESSAGE):
                await read("asyncio", stream)

        async def send_second() -> None:
            with pytest.raises(TransportTimeout, match="the loop is blocked or stopped"):
                await open_stream(second, flux0, timeout_ms=100)

        first = threads.submit(run_in, "asyncio", open_first)
        assert opened.wait(20)
        run_in(second, send_second)
        assert len(server.requests) == 1
        unblock.set()
        first.result(20)


def test_sync_message_in_the_thread_of_a_task_that_reads_is_rejected() -> None:
    async def main() -> None:
        flux0 = Flux0(server.url)
        stream = await open_stream("asyncio", flux0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read, "asyncio", stream)
            while not stream.is_being_read or stream.event_count < 1:
                await anyio.lowlevel.checkpoint()
            with pytest.raises(Flux0Error, match="use the _async method"):
                flux0.sessions.create_event(session_id="s", content="Hi")
            server.release()

    with ByteServer(ONE_EVENT) as server:
        asyncio.run(main())

    assert len(server.requests) == 1


@pytest.mark.parametrize("way", ASYNC_WAYS, ids=str)
def test_sync_message_in_a_running_loop_closes_the_stream_of_the_loop_first(way: Way) -> None:
    """The loop cannot run before the message was sent."""

    async def main() -> None:
        flux0 = client_for(way, server.url)
        stream = await open_stream(way.mode, flux0)
        next_stream = flux0.sessions.create_event(session_id="s", content="Hi")
        server.wait_until_closed(max_open=1)
        assert len(list(next_stream)) == 2
        with pytest.raises(ClientClosed, match=ANOTHER_MESSAGE):
            await anext(stream)
        await flux0.close_async()

    with ByteServer(ONE_EVENT, TWO_EVENTS) as server:
        run_in(way.mode, main)


# --- event loops that are stopped, and may run again later


@pytest.fixture
def stopped() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that does not run. Use its `run_until_complete`."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


IN_ASYNCIO = tuple(way for way in ASYNC_WAYS if way.mode == "asyncio")


@pytest.mark.parametrize("way", IN_ASYNCIO, ids=str)
@pytest.mark.parametrize("second", ["asyncio", "sync"])
def test_stream_of_a_stopped_loop_is_closed_at_once(
    way: Way, second: Mode, stopped: asyncio.AbstractEventLoop
) -> None:
    with ByteServer(ONE_EVENT, TWO_EVENTS) as server:
        flux0 = client_for(way, server.url)

        async def send_second() -> None:
            next_stream = await open_stream(second, flux0)
            # The connection was closed before the message was sent, and not by the stopped loop.
            server.wait_until_closed(max_open=1)
            assert await read(second, next_stream) == 2
            if second == "asyncio":
                await flux0.close_async()

        stream = stopped.run_until_complete(open_stream("asyncio", flux0))
        run_in(second, send_second)
        with pytest.raises(ClientClosed, match=ANOTHER_MESSAGE):
            stopped.run_until_complete(read("asyncio", stream))
        stopped.run_until_complete(flux0.close_async())


def test_message_is_rejected_while_a_task_of_a_stopped_loop_reads_the_stream(
    stopped: asyncio.AbstractEventLoop,
) -> None:
    async def start_reading() -> asyncio.Task[int]:
        stream = await open_stream("asyncio", flux0)
        task = asyncio.create_task(read("asyncio", stream))
        while not stream.is_being_read or stream.event_count < 1:
            await asyncio.sleep(0)
        return task

    with ByteServer(ONE_EVENT) as server:
        flux0 = Flux0(server.url)
        reading = stopped.run_until_complete(start_reading())
        for mode in MODES:
            with pytest.raises(Flux0Error, match="run the loop until the task has ended"):
                run_in(mode, partial(open_stream, mode, flux0))
        server.release()
        assert stopped.run_until_complete(reading) == 1

    assert len(server.requests) == 1


def test_message_is_rejected_while_a_task_of_a_stopped_loop_sends_a_message(
    stopped: asyncio.AbstractEventLoop,
) -> None:
    async def start_sending() -> asyncio.Task[Any]:
        task = asyncio.create_task(open_stream("asyncio", flux0))
        await asyncio.to_thread(server.wait_for_requests, 1)
        return task

    with ByteServer((WaitForRelease(), *TWO_EVENTS)) as server:
        flux0 = Flux0(server.url)
        sending = stopped.run_until_complete(start_sending())
        for mode in MODES:
            with pytest.raises(Flux0Error, match="run the loop until the task has ended"):
                run_in(mode, partial(open_stream, mode, flux0))
        server.release()
        stream = stopped.run_until_complete(sending)
        assert stopped.run_until_complete(read("asyncio", stream)) == 2


@pytest.mark.usefixtures("little_garbage")
@pytest.mark.parametrize("way", IN_ASYNCIO, ids=str)
def test_child_that_frees_a_stream_of_its_parent_does_not_interrupt_it(
    way: Way, stopped: asyncio.AbstractEventLoop
) -> None:
    with ByteServer(ONE_EVENT) as server:
        flux0 = client_for(way, server.url)
        streams = [stopped.run_until_complete(open_stream("asyncio", flux0))]
        in_child(streams.clear)
        server.release()
        assert stopped.run_until_complete(read("asyncio", streams[0])) == 1
        stopped.run_until_complete(flux0.close_async())


@pytest.mark.parametrize("mode", ["asyncio", "trio"])
def test_cancelled_message_lets_the_next_one_be_sent(mode: Mode) -> None:
    async def main() -> None:
        flux0 = Flux0(server.url)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_stream, mode, flux0)
            await anyio.to_thread.run_sync(server.wait_for_requests, 1)
            with anyio.move_on_after(0.01):
                await open_stream(mode, flux0)
            tasks.start_soon(open_stream, mode, flux0)
            await anyio.lowlevel.checkpoint()
            server.release()

    with ByteServer((WaitForRelease(), *TWO_EVENTS), TWO_EVENTS) as server:
        run_in(mode, main)

    assert len(server.requests) == 2


def test_different_sessions_do_not_wait_for_each_other() -> None:
    with ByteServer((WaitForRelease(), *TWO_EVENTS), TWO_EVENTS) as server:
        flux0 = Flux0(server.url)
        with ThreadPoolExecutor(1) as threads:
            first: Future[Any] = threads.submit(
                flux0.sessions.create_event, session_id="one", content="Hi"
            )
            server.wait_for_requests(1)
            assert len(list(flux0.sessions.create_event(session_id="two", content="Hi"))) == 2
            server.release()
            assert len(list(first.result(20))) == 2


def test_many_loops_and_threads_share_one_session() -> None:
    """Each message is sent once, and no sender waits forever."""
    with ByteServer(TWO_EVENTS) as server, ThreadPoolExecutor(9) as threads:
        flux0 = Flux0(server.url)

        def send(mode: Mode) -> None:
            async def sends() -> None:
                for _ in range(5):
                    try:
                        await read(mode, await open_stream(mode, flux0))
                    except ClientClosed as error:
                        assert ANOTHER_MESSAGE in error.problem  # noqa: PT017

            run_in(mode, sends)

        modes: list[Mode] = ["sync", "asyncio", "trio"] * 3
        for done in [threads.submit(send, mode) for mode in modes]:
            done.result(60)

    assert len(server.requests) == 45


@pytest.mark.parametrize("mode", ["asyncio", "trio"])
def test_closing_the_client_ends_a_reader_in_the_same_loop(mode: Mode) -> None:
    async def main() -> None:
        stream = await open_stream(mode, flux0)
        await anext(stream)
        async with anyio.create_task_group() as tasks:

            async def read_on() -> None:
                with pytest.raises(ClientClosed):
                    await anext(stream)

            tasks.start_soon(read_on)
            while not stream.is_being_read:
                await anyio.lowlevel.checkpoint()
            flux0.close()

    with ByteServer(ONE_EVENT) as server:
        flux0 = Flux0(server.url)
        run_in(mode, main)
        server.wait_until_closed()
