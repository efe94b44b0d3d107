"""Many streams at once over one client, in tasks and in threads, and what a full pool does."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import aiohttp
import anyio
import httpx
import pytest
import urllib3

from flux0 import (
    AiohttpTransport,
    AsyncEventStream,
    EventStream,
    Flux0,
    HttpxTransport,
    RetryConfig,
    Urllib3Transport,
)
from flux0.domain.errors import PoolTimeout
from flux0.testing.answers import Hold, answer
from flux0.testing.byte_server import ByteServer
from integration.modes import call_blocking, run
from integration.transports import Mode
from unit.in_memory import SSE, chunk, status
from unit.transports import TRANSPORTS, TransportUnderTest

STREAMS = 500
THREADS = 30
SHORT_MS = 100  # To wait for what never comes.

TURN = answer(
    status("typing"), Hold(), chunk("a"), chunk("b"), headers=SSE.items(), framing="chunked"
)

ASYNCHRONOUS: list[tuple[Mode, Callable[[], Any]]] = [
    ("asyncio", HttpxTransport),
    ("trio", HttpxTransport),
    ("asyncio", AiohttpTransport),
]
SYNCHRONOUS = [each for each in TRANSPORTS if each.synchronous]

Test = Callable[[ByteServer, Flux0], Awaitable[None]]


def over_every_loop(test: Test) -> Callable[[Mode, Callable[[], Any]], None]:
    """Run a test of an asynchronous client; afterwards it has left nothing open, and no warning."""

    @pytest.mark.parametrize(("mode", "make_transport"), ASYNCHRONOUS)
    def run_test(mode: Mode, make_transport: Callable[[], Any]) -> None:
        with patient_server() as server:

            async def serve() -> None:
                async with Flux0(server.url, async_transport=make_transport()) as flux0:
                    await test(server, flux0)
                    # What follows is for the client to do, not for the end of it.
                    await call_blocking(mode, server.wait_until_gone)

            run(mode, serve)

    return run_test


@contextmanager
def patient_server() -> Iterator[ByteServer]:
    """Serve turns that go on when they are released, and check that none of them is left."""
    with ByteServer(TURN, patience=30.0) as server:
        yield server
        server.wait_until_gone()
        gc.collect()


async def begin(flux0: Flux0, number: int = 0) -> AsyncEventStream:
    stream = await flux0.sessions.create_event_async(session_id=f"s{number}", content="Hi")
    await anext(stream)
    return stream


async def in_tasks(act: Callable[[int], Awaitable[object]]) -> None:
    """Call `act` in as many tasks as there are to be streams."""
    async with anyio.create_task_group() as tasks:
        for number in range(STREAMS):
            tasks.start_soon(act, number)
