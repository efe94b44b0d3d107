"""What a stream rebuilds is what the real server stores, whatever the agent does."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

from hypothesis import HealthCheck, given, settings, strategies as st

from flux0 import ChunkEvent, Flux0, MessageAccumulator, from_dict, to_dict
from flux0.models import Event, TurnMessage
from support.server import Flux0Server

_KEYS = st.sampled_from(["a", "b", "tool_calls", "0", "1", "2", "-", "x~1y", "m~0n"])
_PATHS = st.one_of(
    st.just("/-"),
    st.just(""),
    st.lists(_KEYS, min_size=1, max_size=3).map(lambda keys: "".join(f"/{key}" for key in keys)),
)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.text("ab \u00e9\u2028\U0001f600", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=5,
)
_OPERATIONS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.fixed_dictionaries(
        {"op": st.just("add"), "path": st.just("/-"), "value": st.text(max_size=5)}
    ),
    st.fixed_dictionaries(
        {"op": st.sampled_from(["add", "replace", "test"]), "path": _PATHS, "value": _VALUES}
    ),
    st.fixed_dictionaries({"op": st.just("remove"), "path": _PATHS}),
    st.fixed_dictionaries(
        {"op": st.sampled_from(["move", "copy"]), "path": _PATHS, "from": _PATHS}
    ),
)
_MESSAGES = st.lists(
    st.tuples(
        st.lists(_OPERATIONS, min_size=1, max_size=8),
        st.sampled_from([{}, {"kind": "reasoning"}, {"mood": "good"}]),
    ),
    min_size=1,
    max_size=4,
)


def script_of(messages: list[tuple[list[dict[str, Any]], dict[str, Any]]]) -> list[Any]:
    """Return the script of an agent that makes these messages, one after the other.

    Operations that do not apply are left out: what they leave behind on the server, no stream
    tells.
    """
    steps: list[Any] = []
    for operations, metadata in messages:
        event_id = uuid4().hex
        tried = MessageAccumulator()
        for operation in operations:
            chunk = {"event_id": event_id, "seq": 0, "patches": [operation], "metadata": metadata}
            before = len(tried.problems)
            tried.feed(
                from_dict(ChunkEvent, {"correlation_id": "", **chunk}),
            )
            if len(tried.problems) > before:
                break
            steps.append({"chunk": chunk})
        steps.append({"status": "ready", "event_id": event_id})
    return steps


def told(events: tuple[Event, ...] | tuple[TurnMessage, ...]) -> list[dict[str, Any]]:
    """Return what can be compared: all but ids, times and what is not the agent's to say."""
    dicts: list[dict[str, Any]] = [to_dict(event) for event in events]
    return [
        {name: each[name] for name in ("type", "data", "metadata", "correlation_id")}
        for each in dicts
    ]


def stored_messages(flux0: Flux0, session_id: str, correlation_id: str | None) -> tuple[Event, ...]:
    return flux0.sessions.list_events(
        session_id=session_id,
        correlation_id=correlation_id,
        source="ai_agent",
        types=["message", "tool"],
    ).data


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(messages=_MESSAGES)
def test_whatever_patches_an_agent_sends(
    server: Flux0Server, messages: list[tuple[list[dict[str, Any]], dict[str, Any]]]
) -> None:
    with Flux0(server.url, timeout_ms=20_000, stream_idle_timeout_ms=20_000) as flux0:
        conversation = flux0.conversation(agent=server.agent_id)
        with conversation.send(json.dumps(script_of(messages))) as stream:
            rebuilt = stream.final_messages()
        if stream.correlation_id is None:
            return  # Nothing applied, so nothing was sent.
        stored = stored_messages(flux0, conversation.session.id, stream.correlation_id)
    assert told(rebuilt) == told(stored)


def test_a_hundred_turns_are_all_stored_and_equal(server: Flux0Server) -> None:
    with Flux0(server.url, timeout_ms=20_000, stream_idle_timeout_ms=20_000) as flux0:
        conversation = flux0.conversation(agent=server.agent_id)
        rebuilt: list[dict[str, Any]] = []
        for number in range(100):
            script = [{"text": f"This is answer {number}.", "pieces": 4}]
            with conversation.send(json.dumps(script)) as stream:
                rebuilt += told(stream.final_messages())
        stored = stored_messages(flux0, conversation.session.id, None)
    assert len(stored) == 100
    assert rebuilt == told(stored)
