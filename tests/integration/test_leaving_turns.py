"""Turns that are closed early, which cancels the agent, with the real server."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import pytest

from flux0 import AsyncEventStream
from flux0.models import ClientClosed
from integration.ways import only
from support.modes import MakeClient, at_once, call_blocking
from support.server import Flux0Server
from support.transports import Way
from support.turns import appended, perform, rest_of


async def by_break(stream: AsyncEventStream) -> None:
    async for _ in stream:
        break


async def by_exception(stream: AsyncEventStream) -> None:
    with suppress(LookupError):
        async with stream:
            raise LookupError(await anext(stream))


async def by_close(stream: AsyncEventStream) -> None:
    await anext(stream)
    await stream.close_async()
    await stream.close_async()


async def by_close_before_reading(stream: AsyncEventStream) -> None:
    await stream.close_async()


@pytest.mark.parametrize("close_early", [by_break, by_exception, by_close, by_close_before_reading])
async def test_closing_a_turn_early_cancels_the_agent(
    make_client: MakeClient,
    server: Flux0Server,
    way: Way,
    session_id: str,
    fresh_name: str,
    close_early: Callable[[AsyncEventStream], Awaitable[None]],
) -> None:
    async with make_client() as flux0:
        stream = await perform(flux0, session_id, {"text": "Hi"}, {"wait": fresh_name})
        await close_early(stream)
        # The stream is still referenced, so the garbage collector has not closed it.
        await call_blocking(way.mode, server.wait_cancelled, fresh_name)
        assert not stream.finished
        with pytest.raises(ClientClosed):
            await anext(stream)
        another = await perform(flux0, session_id, {"text": "Still here"})
        assert [appended(event) for event in await rest_of(another)] == ["Still here"]


async def test_garbage_collecting_a_turn_cancels_the_agent(
    make_client: MakeClient, server: Flux0Server, way: Way, session_id: str, fresh_name: str
) -> None:
    async def drop_streams() -> None:
        other = await flux0.sessions.create_async(agent_id=server.agent_id)
        unread = await perform(flux0, other.id, {"wait": f"{fresh_name}-unread"})
        stream = await perform(flux0, session_id, {"text": "Hi"}, {"wait": fresh_name})
        assert appended(await anext(stream)) == "Hi"
        assert not unread.finished

    async with make_client() as flux0:
        await drop_streams()
        gc.collect()
        for name in (fresh_name, f"{fresh_name}-unread"):
            await call_blocking(way.mode, server.wait_cancelled, name)
        assert await flux0.agents.list_async()


@only(lambda way: way.mode != "sync")
async def test_cancelling_a_task_cancels_the_agent(
    make_client: MakeClient, server: Flux0Server, way: Way, session_id: str, fresh_name: str
) -> None:
    async with make_client() as flux0:
        with anyio.CancelScope() as scope:
            async for _ in await perform(flux0, session_id, {"text": "Hi"}, {"wait": fresh_name}):
                scope.cancel()
        assert scope.cancelled_caught
        await call_blocking(way.mode, server.wait_cancelled, fresh_name)
        assert await flux0.agents.list_async()


@only(lambda way: way.mode == "sync")
async def test_keyboard_interrupt_cancels_the_agent(
    make_client: MakeClient, server: Flux0Server, session_id: str, fresh_name: str
) -> None:
    interrupt = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT))

    async def interrupted() -> None:
        async for _ in await perform(flux0, session_id, {"text": "Hi"}, {"wait": fresh_name}):
            interrupt.start()

    async with make_client() as flux0:
        with pytest.raises(KeyboardInterrupt):
            await interrupted()
        interrupt.join()
        server.wait_cancelled(fresh_name)
        assert await flux0.agents.list_async()


async def test_turn_can_be_closed_while_another_task_waits_for_an_event(
    make_client: MakeClient, server: Flux0Server, way: Way, session_id: str, fresh_name: str
) -> None:
    async def wait() -> None:
        with pytest.raises(ClientClosed):
            await anext(stream)

    async def close() -> None:
        if way.mode != "sync":
            await anyio.wait_all_tasks_blocked()
        await stream.close_async()
        await call_blocking(way.mode, server.wait_cancelled, fresh_name)

    async with make_client() as flux0:
        stream = await perform(flux0, session_id, {"text": "Hi"}, {"wait": fresh_name})
        assert appended(await anext(stream)) == "Hi"
        await at_once(way.mode, wait, close)
