"""Many streams at once over one client, in tasks and in threads.

Nothing is left open afterwards, and nothing warns.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any

import anyio
import pytest

from flux0 import (
    AiohttpTransport,
    AsyncEventStream,
    Flux0,
    HttpxTransport,
)
from flux0.testing.contract.answers import Hold, answer
from flux0.testing.contract.byte_server import ByteServer
from support.in_memory import SSE, chunk, status
from support.modes import call_blocking, run
from support.transports import Mode
from support.transports_under_test import TRANSPORTS, TransportUnderTest

STREAMS = 200
LEFT_EARLY = 40
THREADS = 30
LONG = 60.0  # Seconds, for many connections on a slow machine.

TURN = answer(
    status("typing"), Hold(), chunk("a"), chunk("b"), headers=SSE.items(), framing="chunked"
)
AFTER_HOLD = 2


ASYNCHRONOUS: list[tuple[Mode, type]] = [
    ("asyncio", HttpxTransport),
    ("trio", HttpxTransport),
    ("asyncio", AiohttpTransport),
]
SYNCHRONOUS = [each for each in TRANSPORTS if each.synchronous]

over_every_loop = pytest.mark.parametrize(("mode", "transport"), ASYNCHRONOUS)


@contextmanager
def holding_server() -> Generator[ByteServer, None, None]:
    """Serve turns that go on once they are released; in the end nobody may be connected."""
    with ByteServer(TURN, patience=LONG) as server:
        yield server
        gc.collect()
        server.wait_until_gone()


async def begin(flux0: Flux0, number: int = 0, **options: Any) -> AsyncEventStream:
    stream = await flux0.sessions.create_event_async(
        session_id=f"s{number}", content="Hi", **options
    )
    await anext(stream)
    return stream


async def in_tasks(count: int, act: Callable[[int], Coroutine[Any, Any, object]]) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(act, number)


# --- all are read


@over_every_loop
def test_tasks_share_a_client(mode: Mode, transport: type) -> None:
    with holding_server() as server:

        async def test() -> None:
            streams: list[AsyncEventStream] = []

            async def read(number: int) -> None:
                stream = await begin(flux0, number)
                streams.append(stream)
                if len(streams) == STREAMS:
                    assert server.open_connections == STREAMS
                    server.release()
                async for _ in stream:
                    pass

            async with Flux0(server.url, async_transport=transport()) as flux0:
                await in_tasks(STREAMS, read)

            assert [stream.event_count for stream in streams] == [1 + AFTER_HOLD] * STREAMS
            assert all(stream.finished for stream in streams)

        run(mode, test)


@pytest.mark.parametrize("over", SYNCHRONOUS, ids=str)
def test_threads_share_a_client(over: TransportUnderTest) -> None:
    with holding_server() as server, Flux0(server.url, **over.arguments()) as flux0:
        all_open = Barrier(THREADS, server.release, timeout=LONG)

        def read(number: int) -> int:
            stream = flux0.sessions.create_event(session_id=f"s{number}", content="Hi")
            next(stream)
            all_open.wait()
            return len(list(stream))

        with ThreadPoolExecutor(THREADS) as threads:
            assert list(threads.map(read, range(THREADS))) == [AFTER_HOLD] * THREADS
        assert server.connections == THREADS
        flux0.close()


# --- all are left early, while the client stays open


@over_every_loop
def test_tasks_are_cancelled(mode: Mode, transport: type) -> None:
    with holding_server() as server:

        async def test() -> None:
            reading = 0

            async with Flux0(server.url, async_transport=transport()) as flux0:
                with anyio.CancelScope() as scope:

                    async def read(number: int) -> None:
                        nonlocal reading
                        stream = await begin(flux0, number)
                        reading += 1
                        if reading == LEFT_EARLY:
                            scope.cancel()
                        async for _ in stream:
                            pass

                    await in_tasks(LEFT_EARLY, read)
                await call_blocking(mode, server.wait_until_gone)
            assert reading == LEFT_EARLY

        run(mode, test)


@over_every_loop
def test_sending_is_cancelled(mode: Mode, transport: type) -> None:
    """Some connections are being made then, some have sent, and some wait for the headers."""
    with ByteServer((Hold(),), patience=LONG) as server:

        async def test() -> None:
            async with Flux0(server.url, async_transport=transport()) as flux0:
                async with anyio.create_task_group() as tasks:
                    for number in range(LEFT_EARLY):
                        tasks.start_soon(begin, flux0, number)
                    await call_blocking(mode, server.wait_for_requests, 1)
                    tasks.cancel_scope.cancel()
                await call_blocking(mode, server.wait_until_gone)

        run(mode, test)


@over_every_loop
@pytest.mark.parametrize("how", ["block", "break", "forget"])
def test_blocks_and_loops_are_left(mode: Mode, transport: type, how: str) -> None:
    with holding_server() as server:

        async def test() -> None:
            async def leave(number: int) -> None:
                stream = await flux0.sessions.create_event_async(
                    session_id=f"s{number}", content="Hi"
                )
                if how == "block":
                    async with stream:
                        await anext(stream)
                elif how == "break":
                    async for _ in stream:
                        break

            async with Flux0(server.url, async_transport=transport()) as flux0:
                await in_tasks(LEFT_EARLY, leave)
                gc.collect()
                await call_blocking(mode, server.wait_until_gone)

        run(mode, test)
