"""Tests with much random input, which are too slow for the unit tests: `tox run -e fuzz`.

For any input, however malformed, only errors of flux0 may be raised. Add a unit test for each error
that is found.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, get_args

import pytest
from hypothesis import given, settings, strategies as st

from flux0 import models
from flux0.adapters.json import JsonCodec
from flux0.adapters.sse import SSEParser
from flux0.domain.errors import DecodeError, EventTooLarge
from flux0.domain.messages.accumulator import MessageAccumulator
from flux0.domain.stream_events import StreamEvent
from flux0.ports import ServerSentEvent
from unit.adapters.test_sse import (
    LIMITS,
    SPLIT_STREAMS,
    check_limit,
    check_outcome_after_each_piece,
)

long = settings(max_examples=5_000)

CODEC = JsonCodec()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
JSON_BYTES = JSON.map(lambda value: json.dumps(value).encode())

# --- the parser

KNOWN = [b"data: x", b"data", b"event: chunk", b"id: 1", b"id: \0", b"retry: 9", b": c"]
LINES = st.sampled_from([*KNOWN, b"\xef\xbb\xbf"]) | st.binary(max_size=12)
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b""])
STREAMS = st.lists(st.builds(bytes.__add__, LINES, ENDS), max_size=30).map(b"".join)


def outcome(pieces: list[bytes], limit: int | None) -> tuple[list[ServerSentEvent], bool]:
    parser = SSEParser(max_event_bytes=limit)
    events: list[ServerSentEvent] = []
    try:
        for piece in (*pieces, b""):
            events += parser.feed(piece)
    except EventTooLarge:
        return events, True
    return events, False


@long
@given(STREAMS, st.data(), st.none() | st.integers(1, 40))
def test_events_do_not_depend_on_how_the_stream_is_split(
    stream: bytes, data: st.DataObject, limit: int | None
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)))))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert outcome(pieces, limit) == outcome([stream], limit)


@long
@given(SPLIT_STREAMS)
def test_outcome_after_each_piece_is_the_outcome_of_a_simple_parser(pieces: list[bytes]) -> None:
    check_outcome_after_each_piece(pieces)


@long
@given(SPLIT_STREAMS, LIMITS)
def test_limit_applies_to_the_same_event_as_in_a_simple_parser(
    pieces: list[bytes], limit: int
) -> None:
    check_limit(pieces, limit)


# --- the codec

LISTS = [models.Agents, models.Sessions, models.Events]


@pytest.mark.parametrize("model", [*LISTS, models.Event, models.HTTPValidationErrorData])
@long
@given(st.binary(max_size=60) | JSON_BYTES)
def test_codec_returns_a_model_or_raises_decode_error(model: type[Any], body: bytes) -> None:
    with suppress(DecodeError):
        assert isinstance(CODEC.decode(model, body), model)


NAMES = ["", "-", "0", "1", "007", "9" * 20, "tool_calls", "args", "a~1b", "~", "é"]
POINTERS = st.lists(st.sampled_from(NAMES), max_size=4).map(
    lambda names: "".join(f"/{name}" for name in names)
)
OPERATIONS = ["add", "replace", "remove", "move", "copy", "test", "grow"]
PATCH: dict[str, st.SearchStrategy[Any]] = {
    "op": st.sampled_from(OPERATIONS),
    "path": POINTERS,
    "value": JSON | st.just({"tool_calls": [{"type": "tool_call", "args": ["{", "}"]}]}),
    "from": POINTERS,
}
CHUNK: dict[str, st.SearchStrategy[Any]] = {
    "correlation_id": st.just("r"),
    "event_id": st.sampled_from(["a", "b"]),
    "seq": st.integers(),
    "patches": st.lists(st.fixed_dictionaries(PATCH), max_size=4),
    "metadata": st.dictionaries(st.sampled_from(["agent_id", "agent_name", "kind"]), JSON),
}
# Any field may be missing, or have any JSON value.
BROKEN = st.fixed_dictionaries({}, optional={name: valid | JSON for name, valid in CHUNK.items()})


def decoded(name: str, data: object) -> StreamEvent | None:
    with suppress(DecodeError):
        return CODEC.decode_event(ServerSentEvent(name, json.dumps(data)))
    return None


@long
@given(st.sampled_from(["chunk", "status", "message"]), BROKEN | JSON)
def test_codec_returns_an_event_or_raises_decode_error(name: str, data: object) -> None:
    event = decoded(name, data)
    assert event is None or isinstance(event, get_args(StreamEvent))


# --- the accumulator


@long
@given(st.lists(st.fixed_dictionaries(CHUNK), max_size=8))
def test_accumulator_accepts_any_chunks(chunks: list[dict[str, Any]]) -> None:
    unobserved, observed = MessageAccumulator(), MessageAccumulator()
    for chunk in chunks:
        event = decoded("chunk", chunk)
        if event is not None:
            unobserved.feed(event)
            observed.feed(event)
            assert observed.messages is not None  # Reading it builds the messages so far.
    assert repr(unobserved.finish()) == repr(observed.finish())
    assert len(unobserved.problems) == len(observed.problems)
