"""The state of a stream: its facts, its errors, and one reader at a time."""

from __future__ import annotations

import asyncio
import inspect
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from threading import Thread
from time import sleep
from types import FrameType
from typing import Any

import pytest

import flux0
from flux0 import (
    AsyncEventStream,
    ClientClosed,
    ConnectError,
    ConnectionInterrupted,
    EventStream,
    Flux0,
    Flux0Error,
    MessageAccumulator,
    StreamInterrupted,
    StreamInUse,
)
from flux0.domain.stored_models import Participant
from flux0.observers import Call, Observer, TurnEnd
from flux0.ports import Response
from flux0.testing import FakeTransport, Gate, Say
from support.garbage_collection import no_garbage_collection
from support.in_memory import (
    SSE,
    begin,
    chunk,
    close_delimited,
    in_every_mode,
    script,
    scripted_response,
    status,
    stored,
    tape,
)
from support.modes import result_of, run
from support.streams import NO_EVENTS, open_async, open_sync, opened as opened_in, value_of
from support.transports import ASYNC, SYNC, Mode


def defines_del(kind: type[Any]) -> bool:
    ours = [base for base in kind.__mro__ if base.__module__.startswith("flux0.")]
    return any("__del__" in vars(base) for base in ours)


def classes_with_del() -> Iterator[type[Any]]:
    for module in walk_packages(flux0.__path__, "flux0."):
        if module.name not in ("flux0.__main__", "flux0.cli.mcp_server"):
            for kind in vars(import_module(module.name)).values():
                if isinstance(kind, type) and kind.__module__ == module.name and defines_del(kind):
                    yield kind


CLASSES_WITH_DEL = [kind for kind in classes_with_del() if not inspect.isabstract(kind)]

TOOL: dict[str, Any] = {
    "type": "tool_call",
    "tool_call_id": "1",
    "tool_name": "weather",
    "args": {},
}
CALL, RESULT = (
    chunk(value, event_id=event_id).replace(b'"/-"', b'""').replace(b"1795559230.7", moment)
    for event_id, moment, value in (
        ("c", b"10.0", {"tool_calls": [TOOL]}),
        ("r", b"12.5", {"tool_call_results": [{**TOOL, "data": {"result": "sunny"}}]}),
    )
)


class Recorder(Observer):
    """Records the first event and the end of each turn."""

    def __init__(self) -> None:
        self.firsts: list[float] = []
        self.ends: list[TurnEnd] = []

    def on_first_event(self, call: Call, seconds: float) -> None:
        self.firsts.append(seconds)

    def on_turn_end(self, call: Call, turn: TurnEnd) -> None:
        self.ends.append(turn)


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
    recorder = Recorder()
    failed = status("error", {"detail": ["no model"]})
    steps = chunk("a") + CALL + RESULT, failed, ConnectionInterrupted("reset")
    stream = opened_in(mode, tape(*steps), None, recorder)
    with pytest.raises(StreamInterrupted) as caught:
        [event async for event in stream]
    (end,) = recorder.ends
    same = ("ending", "session_id", "correlation_id", "event_count", "messages", "seconds")
    for name in (*same, "seconds_to_first_event"):
        assert getattr(end, name) == getattr(stream, name) not in (None, ()), name
    assert Participant(end.agent_id, end.agent_name) == stream.agent == Participant("a", "Drizzle")
    assert end.error is caught.value
    assert end.agent_error is not None
    assert end.agent_error.data == {"detail": ["no model"]}
    end.agent_error.data["detail"].clear()
    assert stream.error is not None
    assert stream.error.data == {"detail": ["no model"]}, "an observer cannot change it"
    assert [(each.call, each.seconds) for each in end.tool_calls] == [(*stream.tool_calls, 2.5)]
    assert recorder.firsts == [stream.seconds_to_first_event]
    for error in (caught.value, stream.error):
        assert error.operation == "sessions.create_event"
        assert error.messages == stream.messages
        assert await result_of(error.stored_events()) is NO_EVENTS


@in_every_mode
async def test_observers_get_the_incomplete_tool_call_of_a_turn_that_is_closed_early(
    mode: Mode,
) -> None:
    recorder = Recorder()
    begun = CALL.replace(b'"args": {}', b'"args": ["{\\"city"]')
    async with opened_in(mode, tape(begun), None, recorder) as stream:
        await anext(stream)
    (end,) = recorder.ends
    arguments: list[Any] = [each.call.args for each in end.tool_calls]
    assert arguments == ['{"city']
    assert end.messages == stream.messages


def test_ended_stream_is_freed_without_the_garbage_collector() -> None:
    stream = open_sync(tape(chunk("a")), None, Observer())
    list(stream)
    freed = weakref.ref(stream)
    with no_garbage_collection():
        del stream
        assert freed() is None


@in_every_mode
async def test_stream_is_open_until_its_connection_is_released(mode: Mode) -> None:
    for method in ("close_async",) if mode == "sync" else ("close_async", "close_soon"):
        recorded = tape(chunk("a"))
        stream = opened_in(mode, recorded)
        stream.mark_closed("the reason")
        assert stream.is_open
        await result_of(getattr(stream, method)())
        assert recorded.releases
        with pytest.raises(ClientClosed, match=r"the reason$"):
            await anext(stream)
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


# --- objects whose __init__ was interrupted


@pytest.mark.parametrize("kind", CLASSES_WITH_DEL, ids=lambda kind: kind.__name__)
def test_object_without_attributes_can_be_freed(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", errors.append)
    created: object = kind.__new__(kind)
    del created
    assert errors == []


@pytest.mark.parametrize("mode", ["sync", "asyncio"])
def test_stream_whose_init_was_interrupted_can_be_freed(
    mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception of a signal handler can arrive at each line."""
    errors: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", errors.append)

    async def interrupt_each_line() -> None:
        lines = 0
        while interrupted_at(lines, open_sync if mode == "sync" else open_async):
            lines += 1
        assert lines > 10

    run(mode, interrupt_each_line)
    assert errors == []


def interrupted_at(line: int, open_stream: Callable[[Any], object]) -> bool:
    """Return whether the `__init__` of a stream was interrupted after this number of lines."""
    left = line

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        code = frame.f_code
        if code.co_name not in ("__init__", "_bind") or "stream" not in Path(code.co_filename).name:
            return None
        if event == "line":
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        stream = open_stream(tape(chunk("a")))
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    del stream
    return False


# --- the end of a stream


@pytest.mark.parametrize("mode", SYNC + ASYNC)
def test_final_messages_warns_of_an_unconfirmed_end_and_compares_its_messages(
    mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    async def read(response: Response[Any], ending: str, requests: int) -> None:
        transport = script(response, stored("a"))
        stream = await begin(mode, transport)
        with pytest.raises(Flux0Error, match="not been read to its end"):
            await result_of(stream.confirm())
        await result_of(stream.final_messages())
        assert (stream.ending, stream.finished) == (ending, ending == "confirmed")
        assert len(transport.requests) == requests
        assert len(caplog.messages) == (ending == "unconfirmed")
        caplog.clear()

    framed = scripted_response(chunk("a"), headers=SSE)
    run(mode, partial(read, framed, "confirmed", 1))
    run(mode, partial(read, close_delimited(), "unconfirmed", 1))
    run(mode, partial(read, close_delimited(status("processing")), "unconfirmed", 1))
    run(mode, partial(read, close_delimited(chunk("a")), "unconfirmed", 2))


@in_every_mode
async def test_unconfirmed_end_with_messages_not_stored_raises_stream_interrupted(
    mode: Mode,
) -> None:
    two = (chunk("a"), chunk("b"))
    cases: list[tuple[tuple[bytes, ...], Response[Any] | BaseException]] = [
        (two, stored("a")),
        (two, stored()),
        ((chunk("a"), chunk("b", event_id="f")), stored("a")),
        (two, ConnectError("refused")),
        (two, scripted_response(status=400)),
    ]
    for pieces, listed in cases:
        stream = await begin(mode, script(close_delimited(*pieces), listed))

        with pytest.raises(StreamInterrupted, match="the stream ended, but") as caught:
            await result_of(stream.final_messages())

        assert not stream.finished
        assert stream.ending == "interrupted"
        assert caught.value.event_count == len(pieces)
        with pytest.raises(StreamInterrupted):
            await anext(stream)


@in_every_mode
async def test_end_in_the_middle_of_an_event_is_an_interruption(mode: Mode) -> None:
    stream = opened_in(mode, tape(chunk("a") + chunk("b")[:-1]))
    with pytest.raises(StreamInterrupted, match="in the middle of an event"):
        [event async for event in stream]
    assert (stream.ending, stream.answer, stream.is_open) == ("interrupted", "a", False)


@in_every_mode
async def test_end_is_reported_when_it_is_received_and_only_once(mode: Mode) -> None:
    recorder = Recorder()
    async with opened_in(mode, tape(chunk("a")), None, recorder) as stream:
        assert [event async for event in stream]
        assert [end.ending for end in recorder.ends] == ["confirmed"]
    assert len(recorder.ends) == 1


@in_every_mode
async def test_transport_error_of_a_closed_stream_is_the_cause_of_client_closed(mode: Mode) -> None:
    error = ConnectionInterrupted("the socket is gone")

    def close_and_fail() -> bytes:
        stream.mark_closed("the reason")
        raise error

    stream = opened_in(mode, tape(chunk("a"), close_and_fail))
    await anext(stream)
    with pytest.raises(ClientClosed, match=r"the reason$") as caught:
        await anext(stream)
    assert caught.value.__cause__ is error
    assert caught.value.operation == "sessions.create_event"
    assert stream.ending is None


def test_stream_that_is_closed_while_its_messages_are_built_is_reported_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A signal handler, or a finalizer, runs in the thread that it interrupts."""
    feed, recorder = MessageAccumulator.feed, Recorder()
    stream = open_sync(tape(chunk("a"), chunk("b")), None, recorder)

    def close_and_feed(accumulator: MessageAccumulator, event: Any) -> str:
        stream.close()
        return feed(accumulator, event)

    next(stream)
    with monkeypatch.context() as patched:
        patched.setattr(MessageAccumulator, "feed", close_and_feed)
        assert stream.answer == "a"
    assert recorder.ends == []
    stream.close()
    (end,) = recorder.ends
    assert [message.text for message in end.messages] == ["a"]
