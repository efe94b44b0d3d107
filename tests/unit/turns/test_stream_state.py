"""The state of a stream: its facts, its errors, and one reader at a time."""

from __future__ import annotations

import asyncio
import weakref
from threading import Thread
from time import sleep

import pytest

from flux0 import (
    AsyncEventStream,
    ConnectionInterrupted,
    EventStream,
    Flux0,
    StreamInterrupted,
    StreamInUse,
)
from flux0.domain.stored_models import Participant
from flux0.observers import Call, Observer, TurnEnd
from flux0.testing import FakeTransport, Gate, Say
from support.garbage_collection import no_garbage_collection
from support.in_memory import chunk, in_every_mode, status, tape
from support.transports import Mode
from unit.turns.test_streams import (
    NO_EVENTS,
    open_async,
    open_sync,
    opened as opened_in,
    result_of,
    value_of,
)


def opened(fake: FakeTransport) -> EventStream:
    client = Flux0(transport=fake)
    return client.conversation(agent=fake.agent_id).send("Hi")


async def opened_async(fake: FakeTransport) -> AsyncEventStream:
    client = Flux0(transport=fake)
    conversation = await client.conversation_async(agent=fake.agent_id)
    return await conversation.send("Hi")


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


def test_attributes_can_be_read_in_another_thread_while_the_stream_is_read() -> None:
    """The other thread sees the beginning of a turn, and at last the whole turn."""
    pieces = [f"{number} " for number in range(2_000)]
    stream = opened(FakeTransport([Say("".join(pieces), pieces=len(pieces))]))
    reader = Thread(target=lambda: list(stream))
    reader.start()
    lengths: list[int] = []
    while reader.is_alive():
        assert "".join(pieces).startswith(stream.answer)
        lengths.append(sum(len(message.text) for message in stream.messages))
    reader.join()
    assert lengths == sorted(lengths)
    assert stream.answer == "".join(pieces)


def test_relay_without_a_thread_ends_with_an_error_event(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = opened(FakeTransport([Say("Hello")]))

    def fail(_: Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(Thread, "start", fail)
        events = list(stream.relay())
    assert len(events) == 1
    assert b"event: error" in events[0]
    assert b'"type": "ConnectError"' in events[0]
    assert not stream.is_open


def test_loop_in_another_thread_takes_no_event_between_two_events_of_the_first_loop() -> None:
    stream = opened(FakeTransport([Say("a b c", pieces=3)]))
    loop = stream.text()
    received = [next(loop)]
    errors: list[BaseException] = []

    def read() -> None:
        try:
            list(stream)
        except StreamInUse as error:
            errors.append(error)

    second = Thread(target=read)
    second.start()
    second.join()
    received.extend(loop)
    assert len(errors) == 1
    assert "".join(received) == "a b c"
    assert stream.finished


def test_second_relay_ends_with_an_error_event_and_the_first_relay_has_all_events() -> None:
    gate = Gate()
    stream = opened(FakeTransport([Say("a b c", pieces=3), gate, Say("d")]))
    first = stream.relay()
    events = [next(first)]
    refused = list(stream.relay())
    gate.open()
    events.extend(first)
    assert len(refused) == 1
    assert b"StreamInUse" in refused[0]
    assert b"".join(events).count(b"event: chunk") == 4
    assert stream.finished


@in_every_mode
async def test_observers_and_errors_have_the_facts_of_the_stream(mode: Mode) -> None:
    firsts, ends = list[float](), list[TurnEnd]()

    class Recorder(Observer):
        def on_first_event(self, call: Call, seconds: float) -> None:
            firsts.append(seconds)

        def on_turn_end(self, call: Call, turn: TurnEnd) -> None:
            ends.append(turn)

    steps = chunk("a"), status("error", "no model"), ConnectionInterrupted("reset")
    stream = opened_in(mode, tape(*steps), None, Recorder())
    with pytest.raises(StreamInterrupted) as caught:
        [event async for event in stream]
    (end,) = ends
    same = ("ending", "session_id", "correlation_id", "event_count", "messages", "seconds")
    for name in (*same, "seconds_to_first_event"):
        assert getattr(end, name) == getattr(stream, name) not in (None, ()), name
    assert Participant(end.agent_id, end.agent_name) == stream.agent == Participant("a", "Drizzle")
    assert end.error is caught.value
    assert end.agent_error is not None
    assert end.agent_error.data == "no model"
    assert firsts == [stream.seconds_to_first_event]
    for error in (caught.value, stream.error):
        assert error is not None
        assert error.messages == stream.messages
        assert await result_of(error.stored_events()) is NO_EVENTS


def test_ended_stream_is_freed_without_the_garbage_collector() -> None:
    stream = open_sync(tape(chunk("a")), None, Observer())
    list(stream)
    freed = weakref.ref(stream)
    with no_garbage_collection():
        del stream
        assert freed() is None


@in_every_mode
async def test_stream_is_open_until_its_connection_is_released(mode: Mode) -> None:
    stream = opened_in(mode, tape(chunk("a")))
    stream.mark_closed("the reason")
    assert stream.is_open
    await stream.close_async()
    assert not stream.is_open


@in_every_mode
async def test_loop_that_ends_during_a_read_leaves_the_stream_open(mode: Mode) -> None:
    def read() -> bytes:
        loops.clear()
        return chunk("b")

    stream = opened_in(mode, tape(chunk("a"), read))
    loops = [aiter(stream)]
    assert value_of(await anext(loops[0])) == "a"
    assert value_of(await anext(stream)) == "b"
    assert stream.is_open


@in_every_mode
async def test_agent_is_the_agent_of_the_first_message(mode: Mode) -> None:
    second = chunk("b", event_id="f").replace(b"Drizzle", b"Another")
    stream = opened_in(mode, tape(chunk("a"), second))
    assert stream.agent is None
    assert [event async for event in stream]
    assert stream.agent == Participant("a", "Drizzle")


def test_two_calls_of_anext_at_once_lose_no_event() -> None:
    async def run() -> None:
        stream = open_async(tape(chunk("a"), chunk("b") + chunk("c") + chunk("d"), chunk("e")))

        both = await asyncio.gather(anext(stream), anext(stream), return_exceptions=True)
        assert isinstance(both[1], StreamInUse)
        received = [each for each in both if not isinstance(each, BaseException)]
        received.append(await anext(stream))
        received += await asyncio.gather(anext(stream), anext(stream))
        received += [event async for event in stream]

        assert [value_of(event) for event in received] == list("abcde")
        assert stream.finished

    asyncio.run(run())
