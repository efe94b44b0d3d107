"""The messages that a stream builds from recorded turns, with their bytes split at any place."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from attrs import frozen
from hypothesis import example, given, settings, strategies as st

from flux0 import Flux0
from flux0.domain.errors import (
    ConnectionInterrupted,
    EventTooLarge,
    Flux0Error,
    ReadTimeout,
    StreamError,
    StreamIdleTimeout,
    StreamInterrupted,
    TransportError,
)
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.messages.history import Reply
from flux0.domain.stored_models import ToolCall
from flux0.testing import AgentStep, CallTool, FakeTransport, Reason, Say
from support.in_memory import CORRELATION_ID, Step, chunk, in_every_mode, status, tape
from support.modes import in_mode, result_of, run
from support.streams import NO_EVENTS, open_sync, opened
from support.transports import ASYNC, SYNC, Mode
from unit.domain.messages.test_accumulator import CASES

Case = dict[str, Any]


@frozen
class State:
    """The state of a stream after an event."""

    messages: tuple[TurnMessage, ...]
    tool_calls: tuple[ToolCall, ...]
    status: str | None
    error: object


def state(stream: Any) -> State:
    error = stream.error
    return State(
        stream.messages, stream.tool_calls, stream.status, None if error is None else error.data
    )


@functools.cache
def states(wire: str) -> list[State]:
    """Return the states of a stream before its first event and after each event."""
    with open_sync(tape(wire.encode())) as stream:
        return [state(stream), *(state(stream) for _ in stream)]


def split(wire: str, cuts: Iterable[int]) -> list[Step]:
    """Split the bytes of a turn at these places."""
    data = wire.encode()
    places = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


@pytest.mark.parametrize("mode", SYNC + ASYNC)
@example(case=CASES[0], cuts=list(range(10_000)))
@given(case=st.sampled_from(CASES), cuts=st.lists(st.integers(0, 10_000), max_size=20))
@settings(max_examples=50, deadline=None)
def test_state_after_each_event_does_not_depend_on_how_bytes_are_split(
    mode: Mode, case: Case, cuts: list[int]
) -> None:
    wire: str = case["wire"]

    async def read() -> None:
        async with opened(mode, tape(*split(wire, cuts))) as stream:
            seen = [state(stream), *[state(stream) async for _ in stream]]
        assert seen == states(wire)
        assert stream.finished

    run(mode, read)


@given(case=st.sampled_from(CASES), place=st.integers(0, 10_000))
@example(case=CASES[0], place=0)
@settings(deadline=None)
def test_interrupted_turn_has_exactly_the_complete_events(case: Case, place: int) -> None:
    data: bytes = case["wire"].encode()
    data = data[: place % len(data)]
    complete = data.count(b"\n\n")
    stream = open_sync(tape(data, ConnectionInterrupted("reset")))

    with pytest.raises(StreamInterrupted) as caught:
        list(stream)

    assert caught.value.event_count == stream.event_count == complete
    assert caught.value.messages == states(case["wire"])[complete].messages
    assert state(stream) == states(case["wire"])[complete]


# --- errors


FAILURES: dict[str, tuple[Step, type[StreamError]]] = {
    "cut off": (ConnectionInterrupted("reset"), StreamInterrupted),
    "silent": (ReadTimeout("silent"), StreamIdleTimeout),
    "too large": (b"data: " + b"x" * 2000, EventTooLarge),
    "cut short": (b"data: x", StreamInterrupted),
}


@pytest.mark.parametrize(("step", "kind"), FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("mode", SYNC + ASYNC)
def test_stream_error_has_messages_so_far_and_stored_events(
    mode: Mode, step: Step, kind: type[StreamError]
) -> None:
    async def test() -> None:
        asked: list[str] = []
        recorded = tape(status("typing"), chunk("It "), chunk("is"), step)
        stream = opened(mode, recorded, asked)
        with pytest.raises(kind) as caught:
            await result_of(stream.final_messages())

        error = caught.value
        assert recorded.releases
        assert isinstance(error.__cause__, TransportError) is isinstance(step, TransportError)
        assert (error.correlation_id, error.event_count) == (CORRELATION_ID, 3)
        assert [message.text for message in error.messages] == ["It is"]
        assert await result_of(error.stored_events()) is NO_EVENTS
        assert asked == [CORRELATION_ID]
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - its own bytes
        assert (type(copy), str(copy)) == (kind, str(error))
        assert copy.messages == error.messages
        assert (copy.correlation_id, copy.event_count) == (CORRELATION_ID, 3)
        with pytest.raises(Flux0Error, match="cannot list the stored events"):
            copy.stored_events()

    run(mode, test)


# --- text, events and messages of one stream


@in_every_mode
async def test_text_events_and_messages_share_one_position(mode: Mode) -> None:
    steps = [chunk("one "), chunk("two "), chunk("three "), status("typing"), chunk("four")]

    async with opened(mode, tape(*steps)) as stream:
        async for text in stream.text():
            assert text == "one "
            break
        async for _ in stream:
            break
        assert stream.messages[0].text == "one two "
        assert [text async for text in stream.text()] == ["three ", "four"]
        (message,) = await result_of(stream.final_messages())
        assert message.text == "one two three four"
        assert await result_of(stream.final_messages()) == (message,)
        assert [text async for text in stream.text()] == []


@in_every_mode
async def test_answer_is_the_whole_text_so_far(mode: Mode) -> None:
    steps: list[AgentStep] = [
        Say("One"),
        Reason("Hm"),
        Say("two ", pieces=2),
        CallTool("a", {}),
        Say("three"),
    ]
    async with in_mode(mode, Flux0(transport=FakeTransport(steps))) as flux0:
        chat = await flux0.conversation_async(agent=await flux0.agents.first_async())
        async with await chat.send("Hi") as stream:
            assert stream.answer == ""
            assert (await anext(stream)).event == "chunk"
            assert stream.answer == "One"
            assert [text async for text in stream.text()] == ["tw", "o ", "three"]
            assert stream.answer == "One\ntwo \nthree"
            assert Reply(await result_of(stream.final_messages()), ()).text == stream.answer
        assert stream.answer == (await result_of(chat.ask("Hi"))).text
