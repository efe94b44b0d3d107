"""Closing a client ends its calls and its streams, in every thread and event loop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from flux0 import ClientClosed, Flux0
from flux0.flows import CallRequest, Flow, SendFlow, Sleep
from flux0.ports import Response
from flux0.testing import FakeTransport, Gate, Say
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import ServerSteps, WaitForRelease, http_response
from support.ending import ends_soon
from support.in_memory import SSE, chunk, in_every_mode
from support.modes import call_blocking, in_mode
from support.sending import over
from support.transports import SYNC_WAYS, TRANSPORTS, WAYS, Mode, Way

AT_LOCKS = Path(__file__).parents[2] / "support/at_locks.py"
MESSAGE = "this Flux0 client is closed: create a new client"
SILENT = (WaitForRelease(),)
HALF_BODY = http_response(b'{"data"', WaitForRelease(), b": []}", framing="chunked")
ONE_EVENT = http_response(
    chunk("a"), WaitForRelease(), headers=list(SSE.items()), framing="chunked"
)


async def list_agents(flux0: Flux0) -> None:
    await flux0.agents.list_async()


def close_sync(flux0: Flux0, ready: Callable[[], object]) -> None:
    ready()
    with ends_soon():
        flux0.close()


async def run_and_close(
    way: Way, flux0: Flux0, call: Callable[[], Any], ready: Callable[[], object]
) -> None:
    """Run `call`, which must raise `ClientClosed`, and close the client while it waits."""

    async def run() -> None:
        with pytest.raises(ClientClosed) as caught:
            await call()
        assert caught.value.problem == MESSAGE

    if way.mode == "sync":
        with ThreadPoolExecutor(1) as threads:
            closing = threads.submit(close_sync, flux0, ready)
            await run()
            with ends_soon():
                closing.result()
    else:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await call_blocking(way.mode, ready)
            with ends_soon():
                await flux0.close_async()


@over(*WAYS)
@pytest.mark.parametrize("response", [SILENT, HALF_BODY], ids=["head", "body"])
async def test_closing_ends_a_call_that_waits_for_the_server_without_a_retry(
    way: Way, response: ServerSteps
) -> None:
    with ByteServer(response) as server:
        real = Flux0(server.url, transport=way.make_transport())
        flux0 = in_mode(way.mode, real)
        await run_and_close(
            way, real, partial(list_agents, flux0), partial(server.wait_for_requests, 1)
        )
        server.wait_until_closed()

    assert len(server.requests) == 1


@over(*WAYS)
async def test_closing_ends_a_reader_of_a_stream(way: Way) -> None:
    with ByteServer(ONE_EVENT) as server:
        real = Flux0(server.url, transport=way.make_transport())
        flux0 = in_mode(way.mode, real)
        stream = await flux0.sessions.create_event_async(session_id="s", content="Hi")
        await anext(stream)
        await run_and_close(way, real, lambda: anext(stream), lambda: None)
        server.wait_until_closed()


@in_every_mode
async def test_closing_ends_a_reader_of_a_fake_stream_with_the_same_error(mode: Mode) -> None:
    real = Flux0(transport=FakeTransport([Say("a"), Gate(), Say("b")]))
    flux0 = in_mode(mode, real)
    agent = await flux0.agents.first_async()
    session = await flux0.sessions.create_async(agent_id=agent.id)
    stream = await flux0.sessions.create_event_async(session_id=session.id, content="Hi")
    await anext(stream)

    async def read() -> None:
        async for _ in stream:
            pass

    await run_and_close(Way("fake", mode), real, read, lambda: None)


@in_every_mode
async def test_middleware_that_closes_the_client_cannot_wait(mode: Mode) -> None:
    def close(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        flux0.close()
        yield Sleep(60)
        return (yield from send(request))

    fake = FakeTransport()
    flux0 = Flux0(transport=fake, middleware=[close])
    with pytest.raises(ClientClosed):
        await in_mode(mode, flux0).agents.list_async()
    assert fake.calls == ()


@over(*WAYS)
async def test_signal_handler_that_closes_the_client_ends_a_reader_of_the_same_thread(
    way: Way,
) -> None:
    with ByteServer(ONE_EVENT) as server:
        real = Flux0(server.url, transport=way.make_transport())
        flux0 = in_mode(way.mode, real)
        stream = await flux0.sessions.create_event_async(session_id="s", content="Hi")
        await anext(stream)

        def close_client(*_: object) -> None:
            real.close()

        previous = signal.signal(signal.SIGUSR1, close_client)
        sending = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR1))
        sending.start()
        try:
            with pytest.raises(ClientClosed), ends_soon():
                await anext(stream)
        finally:
            sending.join()
            signal.signal(signal.SIGUSR1, previous)
        await call_blocking(way.mode, server.wait_until_closed)


def test_close_does_not_wait_for_a_lock_that_a_call_holds() -> None:
    """A signal handler or a finalizer could close the client in the call's thread."""
    turn = http_response(chunk("a"), headers=SSE.items(), framing="chunked")
    # httpx2 shares this code with httpx.
    transports = [TRANSPORTS[way.transport][0] for way in SYNC_WAYS if way.transport != "httpx2"]
    with ByteServer(turn) as server:
        done = subprocess.run(
            [sys.executable, str(AT_LOCKS), "close", server.url, *transports],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.stderr == ""
    assert len(numbers := done.stdout.split()) == len(transports)
    assert min(map(int, numbers)) > 0
