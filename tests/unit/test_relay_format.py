"""Encoding events with the server's text, and the errors that readers may see."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from flux0 import models
from flux0.adapters.json import JsonCodec
from flux0.adapters.sse import SSEParser
from flux0.domain.errors import Flux0Error, StreamInterrupted, restore
from flux0.domain.stream_events import StreamEvent
from flux0.ports import ServerSentEvent
from flux0.relay_format import FLUX0, HEARTBEAT, Flux0Format, encoded, general_text
from support.in_memory import chunk, frame, status

CHUNK: dict[str, Any] = json.loads(chunk("a").split(b"data: ")[1])
STATUS: dict[str, Any] = json.loads(status("typing").split(b"data: ")[1])


def decoded(data: bytes) -> tuple[StreamEvent, ServerSentEvent]:
    """Return the only event in `data`."""
    (source,) = SSEParser().feed(data)
    return JsonCodec().decode_event(source), source


@pytest.mark.parametrize(
    "text",
    [
        '{"patches":[],"seq":7,"event_id":"é","metadata":{},"timestamp":null,"correlation_id":"c"}',
        json.dumps({**CHUNK, "timestamp": "T"}).replace('"T"', "1.50e+3"),
        json.dumps({**CHUNK, "new": "N"}).replace('"N"', '[1e999, -0, "\\u00e9"]'),
        f" {json.dumps(CHUNK)}\t",
    ],
)
def test_chunk_event_keeps_the_text_of_the_server(text: str) -> None:
    event, source = decoded(f"event: chunk\ndata: {text}\n\n".encode())
    assert encoded(event, source) == f"event: chunk\ndata: {text}\n\n".encode()
    assert encoded(event, source, "7") == f"event: chunk\nid: 7\ndata: {text}\n\n".encode()


@pytest.mark.parametrize(
    "data",
    [
        frame("chunk", {**CHUNK, "metadata": {"a": float("nan"), "b": "NaN"}}),
        frame("chunk", {**CHUNK, "metadata": {"a": -float("inf")}}),
        json.dumps(CHUNK, indent=1)
        .replace("\n", "\ndata: ")
        .join(("event: chunk\ndata: ", "\n\n"))
        .encode(),
        frame("note", [float("nan")]),
        frame("status", {**STATUS, "id": "x"}),
    ],
)
def test_other_events_are_encoded_by_to_sse(data: bytes) -> None:
    event, source = decoded(data)
    assert encoded(event, source) == event.to_sse() == FLUX0.encoder().event(event)
    assert encoded(event, source, "7") == event.to_sse("7")


@pytest.mark.parametrize("id", ["1\ndata: {}\n\nevent: error", "1\r2", "\0", "\ud800"])
def test_id_of_a_status_cannot_add_fields_to_an_encoded_event(id: str) -> None:
    event, source = decoded(frame("status", {**STATUS, "id": id}))
    again, sent = decoded(encoded(event, source))
    assert (again, sent.id) == (event, "")
    again, sent = decoded(encoded(event, source, "7"))
    assert (again, sent.id) == (event, "7")


PUBLIC = {"RelayEnded", "StreamIdleTimeout", "TurnStopped"}
SENTENCES = {
    "AgentError": "The agent reported an error",
    "ClientClosed": "The answer was interrupted",
    "ReaderLost": "The answer was interrupted",
    "TurnTooLarge": "The answer is too long to be shown from its beginning",
}
FAILED = "The exchange with the flux0 server failed"


@pytest.mark.parametrize(
    "name",
    sorted(
        name
        for name, kind in vars(models).items()
        if isinstance(kind, type) and issubclass(kind, Flux0Error)
    ),
)
def test_readers_see_only_the_errors_whose_text_flux0_wrote(name: str) -> None:
    error = restore(getattr(models, name), ("http://10.0.0.1",), {})
    general = SENTENCES.get(name, FAILED)
    assert general_text(error) == (error.problem if name in PUBLIC else general)


def test_error_is_an_event_with_the_number_of_the_error() -> None:
    error, ended = StreamInterrupted("gone"), models.RelayEnded("restart")
    data = f'data: {{"type": "StreamInterrupted", "message": "{FAILED}"}}\n\n'
    assert FLUX0.error(error) == f"event: error\n{data}".encode()
    assert FLUX0.error(error, 7) == f"event: error\nid: 7\n{data}".encode()
    shown = Flux0Format(error_text=lambda error: error.problem)
    assert b'"message": "gone"' in shown.error(error)
    hint = b'event: reconnect\nretry: 1000\ndata: {"type": "RelayEnded", "message": "restart"}\n\n'
    assert FLUX0.error(ended, 7) == hint
    # A browser must not connect again to an application that has closed its client.
    assert FLUX0.error(models.ClientClosed("closed")).startswith(b"event: error\ndata: ")


def test_only_the_data_of_a_status_error_are_replaced() -> None:
    secret, other = (
        decoded(status(name, "secret").replace(b'"secret"', b'"secret", "new": 1'))[0]
        for name in ("error", "typing")
    )
    assert b'"data": "The agent reported an error"' in FLUX0.event(secret)
    assert FLUX0.event(secret).replace(b"The agent reported an error", b"secret") == (
        secret.to_sse()
    )
    assert FLUX0.event(other) == other.to_sse()
    shown = Flux0Format(error_text=lambda error: f"Sorry: {error.problem}")
    assert b'"data": "Sorry: the agent reported an error: secret"' in shown.event(secret)


def test_relay_begins_and_ends_without_bytes_and_its_heartbeat_is_a_comment() -> None:
    assert (FLUX0.start(), FLUX0.heartbeat(), FLUX0.end()) == (b"", HEARTBEAT, b"")


any_text = st.text(st.characters(exclude_categories=()), max_size=10)
edges = st.sampled_from([0, -1, 2**53 + 1, 2**64, -(10**400), 5e-324, 1.7976931348623157e308, -0.0])
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | edges | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=5,
)
objects = st.dictionaries(any_text, any_json, max_size=3)
unknown_members = st.dictionaries(any_text.map("new {}".format), any_json, max_size=2)
numbers = st.none() | st.floats() | st.integers(-(2**40), 2**40)


def with_unknown_members(**members: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(st.fixed_dictionaries(members), unknown_members).map(
        lambda pair: {**pair[0], **pair[1]}
    )


patches = with_unknown_members(
    op=st.sampled_from(["add", "replace", "remove", "move", "other"]),
    path=any_text,
    value=any_json,
    **{"from": st.none() | any_text},
)
chunks = with_unknown_members(
    correlation_id=any_text,
    event_id=any_text,
    seq=st.integers(),
    patches=st.lists(patches, max_size=3),
    metadata=objects,
    timestamp=numbers,
)
statuses = with_unknown_members(
    id=st.just(""),
    correlation_id=any_text,
    source=any_text,
    type=st.just("status"),
    data=with_unknown_members(type=st.just("status"), status=any_text, data=any_json),
    metadata=st.none() | objects,
    timestamp=numbers,
)
named = st.one_of(
    *(st.tuples(st.just("chunk"), chunks),) * 3,
    st.tuples(st.just("status"), statuses),
    st.tuples(st.sampled_from(["note", "message", "Chunk"]), any_json),
)


@given(named, st.booleans(), st.sampled_from([None, 1]), st.sampled_from([None, "7"]))
def test_encoded_event_has_the_content_of_to_sse(
    named: tuple[str, Any], compact: bool, indent: int | None, id: str | None
) -> None:
    name, data = named
    separators = (",", ":") if compact else None
    text = json.dumps(data, separators=separators, indent=indent)
    lines = "".join(f"data: {line}\n" for line in text.split("\n"))
    event, source = decoded(f"event: {name}\n{lines}\n".encode())

    actual, expected = decoded(encoded(event, source, id)), decoded(event.to_sse(id))

    assert actual[0] == expected[0]
    assert (actual[1].event, actual[1].id) == (expected[1].event, expected[1].id)
