"""One reader at a time, and streams that are closed before their first piece."""

from __future__ import annotations

import asyncio
from threading import Thread
from time import sleep

import pytest

from flux0 import AsyncEventStream, EventStream, Flux0, StreamInUse
from flux0.testing import FakeTransport, Gate, Say


def opened(fake: FakeTransport) -> EventStream:
    client = Flux0(transport=fake)
    return client.conversation(agent=fake.agent_id).send("Hi")


async def opened_async(fake: FakeTransport) -> AsyncEventStream:
    client = Flux0(transport=fake)
    conversation = await client.conversation_async(agent=fake.agent_id)
    return await conversation.send("Hi")


@pytest.mark.parametrize("method", ["text", "relay"])
def test_iterator_that_is_closed_before_its_first_piece_closes_the_stream(method: str) -> None:
    stream = opened(FakeTransport([Say("Hello")]))
    getattr(stream, method)().close()
    assert not stream.is_open


@pytest.mark.parametrize("method", ["text", "relay"])
def test_async_iterator_that_is_closed_before_its_first_piece_closes_the_stream(
    method: str,
) -> None:
    async def close() -> None:
        stream = await opened_async(FakeTransport([Say("Hello")]))
        await getattr(stream, method)().aclose()
        assert not stream.is_open

    asyncio.run(close())


def test_second_thread_gets_stream_in_use_and_takes_no_event() -> None:
    gate = Gate()
    fake = FakeTransport([Say("a"), gate, Say("b")])
    stream = opened(fake)
    received: list[str] = []
    reader = Thread(target=lambda: received.extend(stream.text()))
    reader.start()
    while not (stream.answer and stream.is_being_read):
        sleep(0.001)  # No event reports that the reader waits.
    with pytest.raises(StreamInUse):
        next(stream)
    with pytest.raises(StreamInUse):
        list(stream.text())
    assert stream.answer == "a"
    gate.open()
    reader.join()
    assert received == ["a", "b"]
    assert stream.finished


def test_second_task_gets_stream_in_use_and_takes_no_event() -> None:
    async def read() -> None:
        gate = Gate()
        stream = await opened_async(FakeTransport([Say("a"), gate, Say("b")]))
        received: list[str] = []

        async def read_text() -> None:
            received.extend([piece async for piece in stream.text()])

        reader = asyncio.create_task(read_text())
        while not stream.answer or not stream.is_being_read:
            await asyncio.sleep(0)
        with pytest.raises(StreamInUse):
            await anext(stream)
        with pytest.raises(StreamInUse):
            await anext(stream.text())
        gate.open()
        await reader
        assert received == ["a", "b"]
        assert stream.finished

    asyncio.run(read())
