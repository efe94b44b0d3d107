"""The messages that a stream rebuilds equal the messages stored by the real server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings, strategies as st

from flux0 import ChunkEvent, Flux0, MessageAccumulator, from_dict, to_dict
from flux0.adapters.ui import AgUiFormat, AiSdkFormat
from support.server import Flux0Server

_KEYS = st.sampled_from(["a", "b", "tool_calls", "0", "1", "2", "-", "x~1y", "m~0n"])
_PATHS = st.just("/-") | st.lists(_KEYS, max_size=3).map(lambda keys: "/".join(["", *keys]))
_VALUES = st.recursive(
    st.sampled_from([None, True, -5, 0, 5]) | st.text("ab \u00e9\u2028\U0001f600", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=5,
)
# The fields that an operation does not use are ignored.
_OPERATIONS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"op": st.just("add"), "path": st.just("/-"), "value": st.text(max_size=5)}
) | st.fixed_dictionaries(
    {
        "op": st.sampled_from(["add", "replace", "test", "remove", "move", "copy"]),
        "path": _PATHS,
        "value": _VALUES,
        "from": _PATHS,
    }
)
_METADATA = st.sampled_from([dict[str, Any](), {"kind": "reasoning"}, {"mood": "good"}])
# Several messages in each turn, because turns are slow and messages are fast.
_MESSAGES = st.lists(
    st.tuples(st.lists(_OPERATIONS, min_size=1, max_size=8), _METADATA), min_size=1, max_size=12
)


def script_of(messages: list[tuple[list[dict[str, Any]], dict[str, Any]]]) -> list[Any]:
    """Return the script of an agent that sends these messages, one after the other.

    Each message ends before the first operation that cannot be applied, because its effect on the
    server cannot be derived from the stream.
    """
    steps: list[Any] = []
    for operations, metadata in messages:
        event_id = uuid4().hex
        accumulator = MessageAccumulator()
        for operation in operations:
            chunk = {"event_id": event_id, "seq": 0, "patches": [operation], "metadata": metadata}
            accumulator.feed(from_dict(ChunkEvent, {"correlation_id": "", **chunk}))
            if accumulator.problems:
                break
            steps.append({"chunk": chunk})
        steps.append({"status": "ready", "event_id": event_id})
    return steps


@pytest.fixture(scope="module")
def flux0(server: Flux0Server) -> Iterator[Flux0]:
    with Flux0(server.url, timeout_ms=20_000, stream_idle_timeout_ms=20_000) as client:
        yield client


def test_text_has_the_end_of_a_longer_text_that_replaces_an_item(
    flux0: Flux0, server: Flux0Server
) -> None:
    event_id = uuid4().hex
    patches = (
        {"op": "add", "path": "/-", "value": "It "},
        {"op": "replace", "path": "/0", "value": "It is sunny"},
        {"op": "add", "path": "/-", "value": "!"},
    )
    chunks = [
        {"chunk": {"event_id": event_id, "seq": seq, "patches": [patch]}}
        for seq, patch in enumerate(patches)
    ]
    script = json.dumps([*chunks, {"status": "ready", "event_id": event_id}])
    conversation = flux0.conversation(agent=server.agent_id)
    with conversation.send(script) as stream:
        assert "".join(stream.text()) == stream.answer == "It is sunny!"
    assert conversation.history()[-1].text == "It is sunny!"
    for relay_format in (AiSdkFormat(), AgUiFormat("thread", "run")):
        relay = b"".join(conversation.send(script).relay(format=relay_format)).decode()
        deltas = re.findall(r'"(?:delta|textDelta)":"(.*?)"', relay)
        assert "".join(deltas) == "It is sunny!"


@settings(max_examples=40)
@given(messages=_MESSAGES)
def test_rebuilt_messages_equal_the_stored_messages_for_any_patches(
    flux0: Flux0, server: Flux0Server, messages: list[tuple[list[dict[str, Any]], dict[str, Any]]]
) -> None:
    conversation = flux0.conversation(agent=server.agent_id)
    with conversation.send(json.dumps(script_of(messages))) as stream:
        rebuilt = stream.final_messages()
    stored = flux0.sessions.list_events(
        session_id=conversation.session_id, source="ai_agent", types=["message", "tool"]
    )
    # Without ids, times, and the fields that the server sets.
    names = ("type", "data", "metadata", "correlation_id")
    rebuilt_data, stored_data = (
        [{name: each[name] for name in names} for each in map(to_dict, events)]
        for events in (rebuilt, stored.data)
    )
    assert rebuilt_data == stored_data
