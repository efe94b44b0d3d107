"""The content of a turn: for its reader, other threads, signal handlers and forked children."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread
from typing import Any
from weakref import ref

import pytest
from attrs import evolve

from flux0 import EventStream
from flux0.adapters.json import JsonCodec
from flux0.adapters.sse import SSEParser
from flux0.domain.headers import Headers
from flux0.domain.messages.accumulator import MessageAccumulator
from flux0.domain.stream_events import ChunkEvent, StreamEvent
from flux0.flows import CallRequest
from flux0.observers import Call, Observer, TurnEnd
from flux0.ports import ServerSentEvent
from flux0.turns.turn import Received, Turn
from flux0.turns.turn_content import TurnContent
from support.contention import before_wait
from support.forking import in_child
from support.in_memory import chunk, frame, status, tape
from support.streams import open_sync

TOO_LONG = 20.0


def text_of(content: TurnContent | EventStream) -> list[str]:
    return [message.text for message in content.messages]


def content_of(accumulator: MessageAccumulator, *frames: bytes) -> TurnContent:
    """Return a content whose events were taken."""
    content = TurnContent(accumulator)
    content.add(decoded(*frames), 0)
    content.take_all()
    return content


def decoded(*frames: bytes) -> Received:
    codec = JsonCodec()
    events = SSEParser().feed(b"".join(frames))
    return [(codec.decode_event(event), event) for event in events]


# --- the reader


def test_content_has_the_events_that_were_taken() -> None:
    content = TurnContent(MessageAccumulator())
    content.add(decoded(chunk("a"), chunk("b"), status("typing")), 0)
    assert text_of(content) == []

    seen: list[tuple[object, ...]] = []
    while content.take_next():
        content.fold()
        seen.append((text_of(content), content.text, content.status))

    assert seen == [(["a"], "a", None), (["ab"], "b", None), (["ab"], "", "typing")]


def test_only_a_partial_result_has_a_tool_call_with_incomplete_arguments() -> None:
    call = {"type": "tool_call", "tool_call_id": "1", "tool_name": "weather", "args": ['{"city']}
    patches = [{"op": "add", "path": "/tool_calls", "value": [call]}]
    fields = {"correlation_id": "c", "event_id": "e", "seq": 0, "metadata": {"agent_name": "D"}}
    content = content_of(MessageAccumulator(), frame("chunk", {**fields, "patches": patches}))
    assert content.finish() == ()
    assert content.finish(partial=True) == content.messages != ()


def test_events_that_were_taken_are_freed_also_if_nobody_reads_the_messages() -> None:
    content, events = TurnContent(MessageAccumulator()), list[ref[StreamEvent]]()
    for _ in range(200):
        content.add(decoded(chunk("x" * 1_000)), 1_000)
        events.extend(ref(event) for event, _ in content.take_all())

    assert sum(event() is not None for event in events) < 100


# --- other threads


class Pause:
    """Pauses the thread that reads metadata for the first time after `is_armed` was set."""

    def __init__(self) -> None:
        self.is_armed = False
        self.begun, self.ended = Event(), Event()

    def __call__(self) -> None:
        if self.is_armed:
            self.is_armed = False
            self.begun.set()
            assert self.ended.wait(TOO_LONG)


class PausingCodec(JsonCodec):
    """Decodes chunks whose metadata call `pause` when they are copied into a message."""

    def __init__(self, pause: Pause) -> None:
        super().__init__()

        class Metadata(UserDict[str, Any]):
            def __iter__(self) -> Iterator[str]:
                pause()
                return super().__iter__()

        self._metadata = Metadata

    def decode_event(self, event: ServerSentEvent) -> StreamEvent:
        decoded = super().decode_event(event)
        assert isinstance(decoded, ChunkEvent)
        return evolve(decoded, metadata=self._metadata(decoded.metadata))


def after_one_event(
    pause: Pause, *pieces: bytes, observers: tuple[Observer, ...] = ()
) -> EventStream:
    """Return a stream whose first event was read, and whose next message will be paused."""
    request = CallRequest("POST", "", Headers())
    turn = Turn(SSEParser(), PausingCodec(pause), request, 600.0)
    stream = open_sync(tape(*pieces), None, *observers, turn=turn)
    next(stream)
    assert stream.status is None
    pause.is_armed = True
    return stream


@pytest.mark.parametrize(("event_id", "texts"), [("e", ["ab"]), ("other", ["a", "b"])])
def test_attributes_are_right_if_events_are_received_while_another_thread_reads_them(
    event_id: str, texts: list[str]
) -> None:
    pause = Pause()
    stream = after_one_event(pause, chunk("a"), chunk("b", event_id=event_id))

    with ThreadPoolExecutor(1) as threads:
        seen = threads.submit(text_of, stream)
        assert pause.begun.wait(TOO_LONG)
        with before_wait(pause.ended.set):
            list(stream)
        pause.ended.set()
        assert seen.result() == ["a"]

    assert text_of(stream) == texts


def test_end_of_a_turn_is_reported_if_another_thread_closes_the_stream_during_a_read() -> None:
    ends: list[TurnEnd] = []

    class Ends(Observer):
        def on_turn_end(self, call: Call, turn: TurnEnd) -> None:
            ends.append(turn)

    pause = Pause()
    stream = after_one_event(pause, chunk("a") + chunk("b", event_id="other"), observers=(Ends(),))

    with ThreadPoolExecutor(1) as threads:
        closing = threads.submit(stream.close)
        assert pause.begun.wait(TOO_LONG)
        next(stream)
        with before_wait(pause.ended.set):
            assert text_of(stream) == ["a", "b"]
        pause.ended.set()
        closing.result()

    assert [len(turn.messages) for turn in ends] == [1]


# --- interruptions


class Interrupted(MessageAccumulator):
    """An accumulator that calls `interrupt` in the middle of its first event."""

    def __init__(self, interrupt: Callable[[], object]) -> None:
        super().__init__()
        self._interrupt = interrupt

    def feed(self, event: StreamEvent) -> str:
        interrupt, self._interrupt = self._interrupt, int
        interrupt()
        return super().feed(event)


def test_handler_that_interrupts_a_fold_gets_no_messages_and_loses_none() -> None:
    """A signal handler, or a finalizer, runs in the thread that it interrupts."""
    seen: list[object] = []

    def handle() -> None:
        seen.extend((content.messages, content.first_chunks, content.is_interrupted))

    content = content_of(Interrupted(handle), chunk("a"), chunk("b"), status("typing"))

    assert text_of(content) == ["ab"]
    assert seen == [(), (), True]
    assert (content.is_interrupted, content.status) == (False, "typing")


def test_other_threads_read_the_content_after_ctrl_c() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    content, seen = content_of(Interrupted(interrupt), chunk("a"), chunk("b")), list[str]()
    with pytest.raises(KeyboardInterrupt):
        content.fold()
    other = Thread(target=lambda: seen.extend(text_of(content)), daemon=True)
    other.start()
    other.join(TOO_LONG)

    assert [text[-1] for text in seen] == ["b"]


def test_content_can_be_read_in_a_child_that_is_forked_during_a_fold() -> None:
    """In the child, the lock of the parent's thread is never released."""
    folding, forked = Event(), Event()

    def wait() -> None:
        folding.set()
        assert forked.wait(TOO_LONG)

    def read() -> None:
        assert content.messages == ()
        assert content.is_interrupted

    content = content_of(Interrupted(wait), chunk("a"))
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(lambda: content.messages)
        assert folding.wait(TOO_LONG)
        in_child(read)
        forked.set()
        other.result()

    assert text_of(content) == ["a"]
