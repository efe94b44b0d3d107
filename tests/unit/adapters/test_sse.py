"""The SSE parser, compared with known cases and with a simple implementation."""

from __future__ import annotations

import json
import re
import tracemalloc
from base64 import b64decode
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from hypothesis import example, given, settings, strategies as st

from flux0.adapters.sse import SSEParser
from flux0.domain.errors import EventTooLarge, InvalidArgument
from flux0.ports import EventStreamParser, ServerSentEvent
from support.cost import steps_taken

BOM = b"\xef\xbb\xbf"
CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "data" / "sse_cases.json").read_text("utf-8")
)


@frozen
class Outcome:
    """The events of some bytes, whether the last event is incomplete, and the reconnection time."""

    events: list[ServerSentEvent]
    pending: bool
    reconnection_time: int | None


def parse_all_at_once(stream: bytes) -> Outcome:
    """Parse a complete stream in the simplest way that follows the standard."""
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    *lines, rest = re.split("\r\n|\r|\n", text)
    events: list[ServerSentEvent] = []
    event, data, last_event_id = "", "", ""
    retry = reconnection_time = None
    pending = False
    for line in lines:
        if line == "":
            if data:
                events.append(ServerSentEvent(event or "message", data[:-1], last_event_id, retry))
            event, data, retry, pending = "", "", None, False
            continue
        if line.startswith(":"):
            continue
        pending = True
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            event = value
        elif field == "data":
            data += value + "\n"
        elif field == "id" and "\0" not in value:
            last_event_id = value
        elif field == "retry" and re.fullmatch("[0-9]+", value):
            retry = reconnection_time = int(value)
    return Outcome(events, pending or rest != "", reconnection_time)


def feed_all(parser: EventStreamParser, pieces: Iterable[bytes]) -> list[ServerSentEvent]:
    return [event for piece in pieces for event in parser.feed(piece)]


def in_pieces(stream: bytes, size: int = 1) -> list[bytes]:
    return [stream[start : start + size] for start in range(0, len(stream), size)]


def splits(stream: bytes) -> st.SearchStrategy[list[bytes]]:
    """Generate all ways to split a stream, including empty pieces."""
    cuts = st.lists(st.integers(0, len(stream)), max_size=12)
    return cuts.map(
        lambda places: [
            stream[start:stop] for start, stop in pairwise([0, *sorted(places), len(stream)])
        ]
    )


# Byte sequences that have a meaning in the standard, and parts of them.
EDGES = [
    *(b"\r", b"\n", b"\r\n", b"\n\n", b"\r\r", b":", b" ", b"\0", b"\t", b"x", b"7", b"10"),
    *(b"data", b"event", b"id", b"retry", b"Data", b"data: ", b"event: ", b"id: ", b"retry: "),
    *(b"data: a\n", b"data:b\r", b"event: e\n", b"id: 1\r\n", b"retry: 5\n", b": c\n", b"data\n\n"),
    *(BOM, b"\xef", b"\xbb", b"\xbf", b"\xff", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80"),
    *(b"\xe2\x80\xa8", b"\xc2\x85", b"\x0b", b"\x0c", b"\x1c", b"\xd9\xa1", b"\xc2\xb2"),
]
STREAMS = st.builds(
    bytes.__add__,
    st.sampled_from([b"", b"", BOM, BOM[:1], BOM[:2], BOM + BOM]),
    st.lists(st.sampled_from(EDGES), max_size=30).map(b"".join),
)
# Complete events, and pieces that differ from a complete event in one byte or line.
EVENTS = [
    b"event: e\ndata: d\n\n",
    b"event: \ndata:  d\n\n",
    b"event: e\xff\ndata: \xe2\x82\n\n",
    b"event: e\ndata: d\n\n\n",
    b"event: e\ndata: d\nx",
    b"event: e\ndata: d\n\r",
    b"event: e\rid: 3\ndata: d\n\n",
    b"event: e\ndata: d\rid: 3\n\n",
    b"event: e\ndata: a\ndata: b\n\n",
    b"event: e\nid: 2\ndata: d\n\n",
    b"event: e\n: c\ndata: d\n\n",
    b"event:e\ndata: d\n\n",
    b"data: d\n\n",
]
SEVERAL = st.lists(st.sampled_from([*EVENTS, *EVENTS, *EDGES]), min_size=1, max_size=4)
LIMITS = st.integers(1, 40)
SPLIT_STREAMS = st.one_of(STREAMS.flatmap(splits), st.lists(SEVERAL.map(b"".join), max_size=6))


def check_case(case: dict[str, Any], pieces: Iterable[bytes]) -> None:
    parser = SSEParser()
    events = feed_all(parser, pieces)
    assert [{"event": event.event, "data": event.data, "id": event.id} for event in events] == case[
        "events"
    ]
    assert parser.retry == case["retry"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_known_case_has_the_same_events_however_it_is_split(
    case: dict[str, Any],
) -> None:
    stream = b64decode(case["input_b64"])
    check_case(case, [stream])
    check_case(case, in_pieces(stream))
    if "chunks_b64" in case:
        check_case(case, map(b64decode, case["chunks_b64"]))


def check_outcome_after_each_piece(pieces: Iterable[bytes]) -> None:
    parser = SSEParser()
    events: list[ServerSentEvent] = []
    read = b""
    for piece in pieces:
        read += piece
        events += parser.feed(piece)
        assert Outcome(events, parser.pending, parser.retry) == parse_all_at_once(read)


# `tests/fuzz` runs this test and the test of the limit with many more examples.
@settings(deadline=None, max_examples=100)
@example(pieces=in_pieces(BOM + b"data: a\r\rdata: b\r\n\r\nid: 1\r\n: c\n\n\r\n"))
@example(pieces=[b"data: a\rx", b"\n\n"])
@example(pieces=[b"event: \ndata: a\n\n", b"event: \ndata: b\n\n"])
@example(pieces=[b"event: e\ndata: a\nevent: f\n\n", b"event: e\ndata: b\n\n"])
@example(pieces=[b": c\n", b"data: a\n"])
@example(pieces=[b"retry: 5\ndata: a\n\n"])
@example(pieces=[b"event: e\ndata: a\n\nevent: e\ndata: \xff\n\n"])
@given(pieces=SPLIT_STREAMS)
def test_after_each_piece_the_outcome_depends_only_on_the_bytes_so_far(pieces: list[bytes]) -> None:
    check_outcome_after_each_piece(pieces)


def test_event_has_its_name_and_retry_and_the_last_event_id() -> None:
    parser = SSEParser()
    stream = b"event: status\nid: 4\nretry: 20\ndata: a\ndata: b\n\ndata: c\n\n"
    assert parser.feed(stream) == [
        ServerSentEvent("status", "a\nb", "4", 20),
        ServerSentEvent("message", "c", "4", None),
    ]
    assert parser.feed(b"event: chunk\ndata:  x\n\n") == [ServerSentEvent("chunk", " x", "4")]
    # In a block with two names, the last name is used. It must not affect the next block.
    for start in ("a", ""):
        named, then = f"event: {start}\ndata: 1\nevent: b\n\n", f"event: {start}\ndata: 2\n\n"
        assert parser.feed((named + then).encode()) == [
            ServerSentEvent("b", "1", "4"),
            ServerSentEvent(start or "message", "2", "4"),
        ]
    assert parser.feed(b"id: 5\0\nevent:\ndata:d\n\n") == [ServerSentEvent("message", "d", "4")]


@pytest.mark.parametrize(
    ("digits", "retry"),
    [
        (b"000", 0),
        (b"0" * 5000 + b"7", 7),
        (b"9" * 640, 10**640 - 1),
        (b"9" * 641, 1),
        (b"9" * 100_000, 1),
        (b"0" * 16_000_000 + b"x", 1),  # A regular expression would backtrack for minutes.
    ],
    ids=["zeros", "leading-zeros", "longest", "too-long", "far-too-long", "zeros-and-a-letter"],
)
def test_retry_with_more_than_640_digits_is_ignored(digits: bytes, retry: int) -> None:
    parser = SSEParser()
    assert parser.feed(b"retry: 1\nretry: " + digits + b"\n") == []
    assert parser.retry == retry
    (event,) = parser.feed(b"data: x\n\n")
    assert event.retry == parser.retry == retry


def test_retry_without_an_event_is_kept_until_the_next_retry() -> None:
    assert SSEParser().retry is None
    parser = SSEParser()
    assert parser.feed(b"retry: 10\n\ndata: a\n\n") == [ServerSentEvent("message", "a")]
    assert parser.retry == 10
    for line in (b"retry", b"retry:", b"retry: -1", b"retry: +1", b"retry: 1.5", b"retry:  1"):
        parser.feed(line + b"\n")
        parser.feed(line + b"\n\n")
        assert parser.retry == 10
    parser.feed(b"retry:20")
    assert parser.retry == 10
    parser.feed(b"\r")
    assert parser.retry == 20


# --- the size limit of one event


def block_size(stream: bytes) -> int:
    """Return the incomplete block's size at the end of `stream`, as defined for the limit."""
    if BOM.startswith(stream):
        return 0
    *lines, rest = re.split(b"\r\n|\r|\n", stream.removeprefix(BOM))
    size = 0
    for line in lines:
        size = size + len(line) + 1 if line else 0
    return size + len(rest)


def bytes_accepted(stream: bytes, limit: int) -> int:
    """Return the number of bytes of `stream` up to the first event that exceeds the limit."""
    for length in range(1, len(stream) + 1):
        if block_size(stream[:length]) > limit:
            return length - 1
    return len(stream)


def check_limit(pieces: list[bytes], limit: int) -> None:
    stream = b"".join(pieces)
    expected = parse_all_at_once(stream[: bytes_accepted(stream, limit)])
    too_large = bytes_accepted(stream, limit) < len(stream)
    parser = SSEParser(max_event_bytes=limit)
    events: list[ServerSentEvent] = []
    raised = False
    for piece in [*pieces, b""]:
        try:
            events += parser.feed(piece)
        except EventTooLarge:
            raised = True
        else:
            assert not raised
    assert raised is too_large
    assert events == expected.events
    assert parser.pending is (expected.pending or too_large)


@settings(deadline=None, max_examples=100)
@example(pieces=[b"data: ", b"a", b"b", b"c"], limit=8)
@example(pieces=[b"data: ab", b"\n"], limit=8)
@example(pieces=[b"data: ab\n\ndata: x\n\n"], limit=8)
@given(pieces=SPLIT_STREAMS, limit=LIMITS)
def test_limit_applies_to_the_same_event_however_the_stream_is_split(
    pieces: list[bytes], limit: int
) -> None:
    check_limit(pieces, limit)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_events_before_an_event_that_is_too_large_are_returned_first(line_end: bytes) -> None:
    parser = SSEParser(max_event_bytes=10)
    stream = b"data: a\n\ndata: 789012\n\ndata: b\n\n".replace(b"\n", line_end)
    assert parser.feed(stream) == [ServerSentEvent("message", "a")]
    assert parser.pending
    for _ in range(2):
        with pytest.raises(EventTooLarge, match="10 bytes") as caught:
            parser.feed(b"")
        assert caught.value.limit == 10
    with pytest.raises(EventTooLarge):
        parser.feed(b"\n\ndata: c\n\n")


def test_default_limit_is_16_mib_and_none_means_no_limit() -> None:
    pieces = [b"x" * (1024 * 1024)] * 16
    parser, unlimited = SSEParser(), SSEParser(max_event_bytes=None)
    feed_all(parser, pieces)
    assert feed_all(unlimited, [*pieces, b"x"]) == []
    with pytest.raises(EventTooLarge):
        parser.feed(b"x")


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_that_is_not_positive_is_rejected(limit: int) -> None:
    with pytest.raises(InvalidArgument) as caught:
        SSEParser(max_event_bytes=limit)
    assert caught.value.argument == "max_event_bytes"


# --- the cost of parsing


# Functions that return the pieces of a stream whose length is proportional to `n`.
SHAPES: dict[str, Callable[[int], list[bytes]]] = {
    "a line, split": lambda n: in_pieces(b"data: " + b"x" * n + b"\n\n"),
    "a line in sixteens": lambda n: in_pieces(b"data: " + b"x" * (16 * n) + b"\n\n", 16),
    "many lines, split": lambda n: in_pieces(b"data: abc\n" * (n // 10) + b"\n"),
    "tiny lines at once": lambda n: [b"data:\n" * n + b"\n"],
    "events at once": lambda n: [b"id: 1\ndata: x\n\n" * n],
    "an event a piece": lambda n: [b"event: e\ndata: x\n\n"] * n,
    "only CRs, split": lambda n: in_pieces(b"\r" * n),
    "only CRs at once": lambda n: [b"\r" * n],
}


def steps(pieces: list[bytes]) -> int:
    """Count the executed lines and C functions, to detect loops over previous pieces."""
    return steps_taken(lambda: feed_all(SSEParser(), pieces))


def bytes_allocated(pieces: list[bytes]) -> int:
    """Sum the peak allocation of each feed, to detect copies of an incomplete block."""
    parser = SSEParser()
    total = 0
    tracemalloc.start()
    try:
        for piece in pieces:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            parser.feed(piece)
            _, peak = tracemalloc.get_traced_memory()
            total += peak - before
    finally:
        tracemalloc.stop()
    return total


@pytest.mark.parametrize("measure", [steps, bytes_allocated])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_cost_is_linear_in_the_bytes(
    shape: Callable[[int], list[bytes]], measure: Callable[[list[bytes]], int]
) -> None:
    # Use the minimum of three runs, because the process's other threads may allocate memory.
    assert min(measure(shape(1000)) for _ in range(3)) < 2.5 * measure(shape(500))


class CountingBuffer(bytearray):
    """Counts the bytes that operations on the buffer may search or move.

    `bytes_allocated` does not detect such operations, because they allocate no memory.
    """

    touched = 0

    def __getattribute__(self, name: str) -> Any:
        # Each method, such as `find` or `clear`, may access all bytes.
        if name != "touched":
            self.touched += len(self)
        return super().__getattribute__(name)

    def __getitem__(self, key: Any) -> Any:
        self.touched += len(self)
        get: Callable[[Any], Any] = super().__getitem__
        return get(key)

    def __delitem__(self, key: Any) -> None:
        self.touched += len(self)
        super().__delitem__(key)

    def __contains__(self, key: Any) -> bool:
        self.touched += len(self)
        return super().__contains__(key)


def bytes_touched(pieces: list[bytes]) -> int:
    parser = SSEParser()
    names = [name for name, value in vars(parser).items() if isinstance(value, bytearray)]
    buffers = {name: CountingBuffer() for name in names}
    vars(parser).update(buffers)
    feed_all(parser, pieces)
    assert all(vars(parser)[name] is buffer for name, buffer in buffers.items())
    return sum(buffer.touched for buffer in buffers.values())


@pytest.mark.parametrize("shape", ["a line, split", "a line in sixteens", "many lines, split"])
def test_bytes_of_the_unfinished_block_are_not_searched_or_moved_again(shape: str) -> None:
    pieces = SHAPES[shape](3000)
    size = len(b"".join(pieces))
    assert 0.5 * size < bytes_touched(pieces) <= 3 * size


def test_memory_does_not_grow_with_the_stream_or_after_an_event_that_is_too_large() -> None:
    parser = SSEParser(max_event_bytes=1_000_000)
    blocks = [b"event: e\nid: 1\ndata: " + b"x" * 1000 + b"\n\n", b": ping\n\n", b"retry: 1\n\n"]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        feed_all(parser, blocks * 500)
        with pytest.raises(EventTooLarge):
            feed_all(parser, [b"data: " + b"x" * 400_000 + b"\n"] * 3)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 20_000
