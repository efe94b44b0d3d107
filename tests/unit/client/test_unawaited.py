"""Turns and conversations of async code that are used without `await`."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import anyio
import pytest

from flux0 import AsyncConversation, AsyncEventStream, Flux0
from flux0.domain.api_errors import BadRequestError
from flux0.testing import FakeTransport, Say
from support.in_memory import in_both_loops
from support.transports import Mode

MISTAKES: dict[str, Callable[[Any], object]] = {
    "attribute": lambda result: result.messages,
    "method": lambda result: result.text(),
    "with": lambda result: ExitStack().enter_context(result),
    "for": list,
    "async for": aiter,
    "next": next,
    "anext": anext,
    "send": lambda result: result.send("Hello"),
    "send with keywords": lambda result: result.send(content="Hello"),
}


@in_both_loops
async def test_missing_await_is_named_in_the_error(mode: Mode) -> None:
    async with Flux0(transport=FakeTransport()) as client:
        conversation = await client.conversation_async(agent=await client.agents.first_async())
        for mistake in MISTAKES.values():
            for result, advice in (
                (conversation.send("Hi"), r"async with conversation\.send"),
                (client.conversation_async(agent="x" * 10), r"await client\.conversation_async"),
            ):
                with pytest.raises((TypeError, AttributeError), match=f"await it.*{advice}"):
                    mistake(result)
                assert "await it" in repr(result)
                result.close()


@in_both_loops
async def test_turn_in_async_with_stays_open_after_a_loop_until_the_block_ends(mode: Mode) -> None:
    fake = FakeTransport([Say("a b c", pieces=3)])
    async with Flux0(transport=fake) as client:
        conversation = await client.conversation_async(agent=fake.agent_id)
        async with conversation.send("Hi") as stream:
            async for _ in stream:
                break
            assert stream.is_open
            assert [text async for text in stream.text()] == [" b", " c"]
        async with conversation.send("Hi") as stream:
            await anext(stream)
        assert not stream.is_open


def test_missing_await_in_sync_code_is_named_in_the_error() -> None:
    unawaited = Flux0(transport=FakeTransport()).conversation_async(agent="x" * 10)
    with pytest.raises(TypeError, match="await it"):
        next(unawaited)  # type: ignore[call-overload]
    unawaited.close()


@pytest.mark.parametrize("name", ["__reduce__", "__len__", "nonsense"])
def test_coroutine_has_only_the_attributes_of_every_object(name: str) -> None:
    unawaited = Flux0(transport=FakeTransport()).conversation_async(agent="x" * 10)
    assert hasattr(unawaited, name) is hasattr(object(), name)
    unawaited.close()


def test_result_that_is_never_awaited_causes_a_warning() -> None:
    client = Flux0(transport=FakeTransport())
    with pytest.warns(RuntimeWarning, match="conversation_async' was never awaited"):
        client.conversation_async(agent="x" * 10)
    with pytest.warns(RuntimeWarning, match="was never awaited"):
        client.sessions.create_event_async(session_id="x" * 10, content="Hi")


@in_both_loops
async def test_result_can_be_awaited_once(mode: Mode) -> None:
    async with Flux0(transport=FakeTransport()) as client:
        unawaited = client.conversation_async(agent=await client.agents.first_async())
        conversation = await unawaited
        assert isinstance(conversation, AsyncConversation)
        with pytest.raises(RuntimeError, match="already awaited"):
            await unawaited
        assert isinstance(await conversation.send("Hi"), AsyncEventStream)


@in_both_loops
async def test_async_with_accepts_send_with_and_without_await(mode: Mode) -> None:
    fake = FakeTransport([Say("Hi.")])

    async with Flux0(transport=fake) as flux0:
        chat = await flux0.conversation_async(agent=fake.agent_id)
        for _ in range(2):
            async with await chat.send("Hi") as stream:
                assert len(await stream.final_messages()) == 1
            async with chat.send("Hi") as stream:
                assert len(await stream.final_messages()) == 1
            async with flux0.sessions.create_event_async(
                session_id=chat.session_id, content="Hi"
            ) as stream:
                await anext(stream)
        fake.assert_no_open_streams()
        with pytest.raises(BadRequestError):
            async with flux0.sessions.create_event_async(session_id="x" * 10, content="Hi"):
                raise AssertionError("entered")


def test_results_can_be_tasks_of_asyncio() -> None:
    async def main() -> None:
        async with Flux0(transport=FakeTransport()) as client:
            agent = await client.agents.first_async()
            conversation = await asyncio.create_task(client.conversation_async(agent=agent))
            stream = await asyncio.create_task(conversation.send("Hi"))
            assert isinstance(stream, AsyncEventStream)
            task = asyncio.create_task(conversation.send("Hi"))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())


@pytest.mark.skipif(not hasattr(anyio, "TaskHandle"), reason="anyio < 4.14 rejects results")
@in_both_loops
async def test_results_can_be_started_in_a_task_group(mode: Mode) -> None:
    async with Flux0(transport=FakeTransport()) as client:
        conversation = await client.conversation_async(agent=await client.agents.first_async())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(conversation.send, f"Hi from {mode}")
        assert (await conversation.history())[0].text == f"Hi from {mode}"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="inspect cannot mark functions")
def test_conversation_async_is_a_coroutine_function() -> None:
    assert inspect.iscoroutinefunction(Flux0.conversation_async)
