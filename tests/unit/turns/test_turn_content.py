"""The contents of a turn: taken events are folded in time, and an interrupt blocks no thread."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import pytest

from flux0.domain.messages.accumulator import MessageAccumulator
from flux0.domain.stream_events import StreamEvent
from flux0.testing.contract.byte_server import DEFAULT_TIMEOUT
from flux0.turns.turn_content import TurnContent
from support.in_memory import chunk, new_turn


def events(*values: str) -> list[StreamEvent]:
    received, failure = new_turn().feed(b"".join(map(chunk, values)))
    assert failure is None
    return list(received)


def take(content: TurnContent, taken: Sequence[StreamEvent], size: int) -> None:
    """Add the events of `size` bytes, and take them as the reader does."""
    content.add(taken, size)
    for event in content.unread:
        content.take(event)


def text(content: TurnContent) -> str:
    (message,) = content.messages
    return message.text


def test_taken_events_are_freed_before_their_messages_are_read() -> None:
    """The content of a long turn needs memory for its text only, not for its events."""
    content, kept = TurnContent(MessageAccumulator()), list[Any]()
    for value in "abcdefgh":
        (event,) = events(value)
        kept.append(weakref.ref(event))
        take(content, [event], size=5_000)
        del event
    # The first chunk of a message is kept. The last one was taken after the last call of `add`.
    assert [event() is None for event in kept] == [False, *[True] * 6, False]
    assert text(content) == "abcdefgh"


def test_interrupted_call_blocks_no_other_thread_and_loses_no_event() -> None:
    content = TurnContent(MessageAccumulator())
    take(content, events("a", "b"), 0)

    def interrupt() -> NoReturn:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        content.fold(interrupt)
    take(content, events("c"), 0)
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(text, content).result(DEFAULT_TIMEOUT) == "abc"


def test_signal_handler_that_interrupts_a_call_gets_no_messages() -> None:
    content, inner = TurnContent(MessageAccumulator()), list[Any]()
    take(content, events("a"), 0)

    def handle_signal() -> tuple[str, ...]:
        inner.append((content.messages, content.is_interrupted))
        return ("outer",)

    assert content.fold(handle_signal) == ("outer",)
    assert inner == [((), True)]
    assert not content.is_interrupted
    assert text(content) == "a"
