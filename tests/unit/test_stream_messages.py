"""What a stream has rebuilt of its turn, over recorded turns, however their bytes are split."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from attrs import frozen
from hypothesis import example, given, settings, strategies as st

from flux0 import to_dict
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
from flux0.domain.models import ToolCall
from support.in_memory import CORRELATION_ID, Step, chunk, in_every_mode, status, tape
from support.modes import run
from support.transports import ASYNC, SYNC, Mode
from unit.test_accumulator import CASES, compared
from unit.test_streams import NO_EVENTS, come, open_sync, opened, parts_of

Case = dict[str, Any]

# Turns whose text grows at its end alone, and is all stored.
TEXTS = [
    *("text_append_slash_dash", "seq_out_of_order_append_applied_in_arrival_order"),
    *("kind_other_value", "root_list_then_append", "index_out_of_range_dropped"),
    *("text_then_tool_calls_same_event", "langchain_fixture", "weather_8080_hello"),
]


def named(case: Case) -> Any:
    return pytest.param(case, id=case["name"])


every_case = pytest.mark.parametrize("case", list(map(named, CASES)))
every_derivable_case = pytest.mark.parametrize(
    "case", [named(case) for case in CASES if case["client_derivable"]]
)


@frozen
class State:
    """What a stream says of its turn after an event."""

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
    """Return the states of a turn, from before its first event to after its last."""
    with open_sync(tape(wire.encode())) as stream:
        return [state(stream), *(state(stream) for _ in stream)]


def split(wire: str, cuts: Iterable[int]) -> list[Step]:
    """Return the bytes of a turn, cut at these places."""
    data = wire.encode()
    places = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


@pytest.mark.parametrize("mode", SYNC + ASYNC)
@given(case=st.sampled_from(CASES), cuts=st.lists(st.integers(0, 10_000), max_size=20))
@settings(max_examples=50, deadline=None)
def test_the_messages_after_each_event_are_the_same_however_the_bytes_are_split(
    mode: Mode, case: Case, cuts: list[int]
) -> None:
    wire: str = case["wire"]

    async def read() -> None:
        async with opened(mode, tape(*split(wire, cuts))) as stream:
            seen = [state(stream), *[state(stream) async for _ in stream]]
        assert seen == states(wire)
        assert stream.finished

    run(mode, read)


@every_case
def test_the_messages_are_the_same_byte_by_byte(case: Case) -> None:
    wire: str = case["wire"]

    with open_sync(tape(*split(wire, range(len(wire.encode()))))) as stream:
        assert [state(stream), *(state(stream) for _ in stream)] == states(wire)


@given(case=st.sampled_from(CASES), place=st.integers(0, 10_000))
@example(case=CASES[0], place=0)
@settings(deadline=None)
def test_wherever_a_turn_is_cut_off_its_whole_events_count_and_no_others(
    case: Case, place: int
) -> None:
    data: bytes = case["wire"].encode()
    data = data[: place % len(data)]
    whole = data.count(b"\n\n")
    stream = open_sync(tape(data, ConnectionInterrupted("reset")))

    with pytest.raises(StreamInterrupted) as caught:
        list(stream)

    assert caught.value.event_count == stream.event_count == whole
    assert caught.value.messages == states(case["wire"])[whole].messages
    assert state(stream) == states(case["wire"])[whole]


@every_derivable_case
@pytest.mark.parametrize("mode", SYNC + ASYNC)
def test_the_final_messages_are_what_the_server_stored(mode: Mode, case: Case) -> None:
    wire: str = case["wire"]
    if states(wire)[-1].error is not None:  # Which would be raised.
        wire = wire.replace('"status": "error"', '"status": "typing"')
    expected = [
        compared(event)
        for event in case["persisted"]
        if event["source"] == "ai_agent" and event["type"] != "status"
    ]
    rebuilt: list[str] = []

    async def read() -> None:
        messages: tuple[TurnMessage, ...] = await come(
            opened(mode, tape(wire.encode())).final_messages()
        )
        rebuilt.extend(compared(to_dict(message)) for message in messages)

    run(mode, read)
    if not case["order_derivable"]:
        rebuilt.sort()
        expected.sort()
    assert rebuilt == expected


@pytest.mark.parametrize("case", [named(case) for case in CASES if case["name"] in TEXTS])
def test_the_text_of_a_turn_is_the_text_of_its_messages(case: Case) -> None:
    parts = [
        part["content"]
        for event in case["persisted"]
        if (event["source"], event["type"]) == ("ai_agent", "message")
        for part in event["data"]["parts"]
        if part["type"] == "content"
    ]

    assert "".join(open_sync(tape(case["wire"].encode())).text()) == "".join(parts)


def test_each_tool_call_of_a_recorded_turn_has_its_result() -> None:
    wire = next(case["wire"] for case in CASES if case["name"] == "langchain_parallel_onechunk")
    counts = [
        (len(s.tool_calls), sum(c.result is not None for c in s.tool_calls)) for s in states(wire)
    ]

    assert counts[-1] == (2, 2)
    assert (2, 0) in counts
    assert counts == sorted(counts)


# --- errors


FAILURES: dict[str, tuple[Step, type[StreamError]]] = {
    "cut off": (ConnectionInterrupted("reset"), StreamInterrupted),
    "silent": (ReadTimeout("silent"), StreamIdleTimeout),
    "too large": (b"data: " + b"x" * 2000, EventTooLarge),
    "cut short": (b"data: x", StreamInterrupted),
}


@pytest.mark.parametrize(("step", "kind"), FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("mode", SYNC + ASYNC)
def test_a_failure_offers_what_came_before_and_what_is_stored(
    mode: Mode, step: Step, kind: type[StreamError]
) -> None:
    async def test() -> None:
        asked: list[str] = []
        recorded = tape(status("typing"), chunk("It "), chunk("is"), step)
        stream = opened(mode, recorded, asked)
        with pytest.raises(kind) as caught:
            await come(stream.final_messages())

        error = caught.value
        assert recorded.releases
        assert isinstance(error.__cause__, TransportError) is isinstance(step, TransportError)
        assert (error.correlation_id, error.event_count) == (CORRELATION_ID, 3)
        assert [parts_of(message)[0] for message in error.messages] == [
            parts_of(message)[0] for message in stream.messages
        ]
        assert error.messages != ()
        assert await come(error.stored_events()) is NO_EVENTS
        assert asked == [CORRELATION_ID]

    run(mode, test)


@in_every_mode
async def test_errors_of_a_stream_can_be_pickled(mode: Mode) -> None:
    async def failure(*steps: Step) -> StreamError:
        with pytest.raises(StreamError) as caught:
            await come(opened(mode, tape(chunk("It is"), *steps)).final_messages())
        return caught.value

    errors = [await failure(step) for step, _ in FAILURES.values()]
    for error in (*errors, await failure(status("error", {"detail": "no weather"}))):
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - its own bytes

        assert type(copy) is type(error)
        assert str(copy) == str(error)
        assert copy.messages == error.messages != ()
        assert (copy.correlation_id, copy.event_count) == (error.correlation_id, error.event_count)
        assert getattr(copy, "data", None) == getattr(error, "data", None)
        with pytest.raises(Flux0Error, match="does not know the stream"):
            copy.stored_events()


# --- text, events and messages together


@in_every_mode
async def test_text_events_and_messages_take_turns(mode: Mode) -> None:
    steps = [chunk("one "), chunk("two "), chunk("three "), status("typing"), chunk("four")]

    async with opened(mode, tape(*steps)) as stream:
        async for text in stream.text():
            assert text == "one "
            break
        await anext(stream)
        assert parts_of(stream.messages[0])[0].content == "one two "  # type: ignore[union-attr]
        assert [text async for text in stream.text()] == ["three ", "four"]
        (message,) = await come(stream.final_messages())
        assert parts_of(message)[0].content == "one two three four"  # type: ignore[union-attr]
        assert await come(stream.final_messages()) == (message,)
        assert [text async for text in stream.text()] == []


@in_every_mode
async def test_an_error_in_a_loop_over_text_closes_a_stream_that_no_block_owns(mode: Mode) -> None:
    recorded = tape(chunk("a"), chunk("b"))
    stream = opened(mode, recorded)

    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - leaving is what is tested
        async for _ in stream.text():
            raise ZeroDivisionError

    assert recorded.releases
    assert not stream.finished
