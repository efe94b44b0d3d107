"""What each call sends, in the form that the server takes, and what it makes of the answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve

from flux0 import RetryConfig, to_dict
from flux0.adapters.json import JsonCodec
from flux0.domain.enums import EventSource, EventType
from flux0.domain.errors import DecodeError, InvalidArgument, ReadTimeout
from flux0.domain.headers import Headers
from flux0.flows import Flow, chain, send_once
from flux0.middleware.answers import AnswerPolicy
from flux0.ports import Request, Response, Timeout
from flux0.usecases import agents, sessions
from flux0.usecases.call import ApiCall
from support.in_memory import SSE, answer, play, read, sent

AGENT = {
    "id": "t-2DtXTicj",
    "name": "Drizzle",
    "type": "weather",
    "created_at": "2026-11-24T22:38:57Z",
    "description": None,
}
SESSION = {
    "id": "zv3h4j5Fjv",
    "agent_id": "t-2DtXTicj",
    "user_id": "liWJXdL3PH",
    "created_at": "2026-11-24T22:38:57Z",
    "consumption_offsets": {"client": 0},
    "title": None,
}
WAY = ApiCall(
    send=send_once,
    codec=JsonCodec(),
    server_url="http://127.0.0.1:8080/base",
    login=Headers(),
    headers=Headers((("user-agent", "test"),)),
    timeout=Timeout(read=7),
    max_body_bytes=1000,
    retries=RetryConfig("none"),
    deadline=99.0,
)


def ask(flow: Flow[Any], data: object, status: int = 200) -> tuple[Request, Any]:
    """Answer a flow's one request with JSON; return the request and the flow's result."""
    body = json.dumps(data).encode()
    effects, result = play(flow, Response(status, Headers(), body))
    (send,) = effects
    return sent(send), result


def body_of(request: Request) -> Any:
    assert request.body is not None
    return json.loads(request.body)


# --- agents


def test_agents_are_listed() -> None:
    request, listed = ask(agents.list_agents(WAY), {"data": [AGENT]})

    assert (request.method, request.url) == ("GET", "http://127.0.0.1:8080/base/api/agents")
    assert (request.operation, request.route) == ("agents.list", "/api/agents")
    assert request.body is None
    assert not request.stream
    assert to_dict(listed) == {"data": [AGENT]}


@pytest.mark.parametrize(
    ("description", "extra"),
    [(None, {}), ("", {"description": ""}), ("Tells it.", {"description": "Tells it."})],
)
def test_an_agent_is_created_without_a_null_description(
    description: str | None, extra: dict[str, str]
) -> None:
    flow = agents.create_agent(WAY, name="Drizzle", type_="weather", description=description)

    request, created = ask(flow, AGENT, status=201)

    assert (request.method, request.url) == ("POST", "http://127.0.0.1:8080/base/api/agents")
    assert (request.operation, request.route) == ("agents.create", "/api/agents")
    assert body_of(request) == {"name": "Drizzle", "type": "weather", **extra}
    assert to_dict(created) == AGENT


def test_an_agent_is_retrieved_by_an_encoded_id() -> None:
    request, agent = ask(agents.retrieve_agent(WAY, agent_id="a b;c"), AGENT)

    assert request.method == "GET"
    assert request.url == "http://127.0.0.1:8080/base/api/agents/a%20b%3Bc"
    assert (request.operation, request.route) == ("agents.retrieve", "/api/agents/{agent_id}")
    assert agent.id == "t-2DtXTicj"


@pytest.mark.parametrize(
    ("value", "segment"),
    [
        ("zv3h4j5Fjv", "zv3h4j5Fjv"),
        ("a-b_c~d.e", "a-b_c~d.e"),
        ("a;b=c", "a%3Bb%3Dc"),
        ("a b+c", "a%20b%2Bc"),
        ("é", "%C3%A9"),
        ("\N{GRINNING FACE}", "%F0%9F%98%80"),
    ],
)
def test_an_id_becomes_one_segment_of_a_path(value: str, segment: str) -> None:
    request, _ = ask(agents.retrieve_agent(WAY, agent_id=value), AGENT)

    assert request.url == f"http://127.0.0.1:8080/base/api/agents/{segment}"


# --- sessions


def create_session(**changes: Any) -> Flow[Any]:
    given: dict[str, Any] = {"agent_id": "a", "allow_greeting": False, "id": None, "title": None}
    return sessions.create_session(WAY, **{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "query", "extra"),
    [
        ({}, "", {}),
        ({"allow_greeting": True}, "?allow_greeting=true", {}),
        ({"id": "zv3h4j5Fjv", "title": "é"}, "", {"id": "zv3h4j5Fjv", "title": "é"}),
        ({"title": ""}, "", {"title": ""}),
    ],
)
def test_a_session_is_created(changes: Any, query: str, extra: dict[str, str]) -> None:
    request, session = ask(create_session(**changes), SESSION, status=201)

    assert request.method == "POST"
    assert request.url == f"http://127.0.0.1:8080/base/api/sessions{query}"
    assert (request.operation, request.route) == ("sessions.create", "/api/sessions")
    assert body_of(request) == {"agent_id": "a", **extra}
    assert to_dict(session) == SESSION


@pytest.mark.parametrize(("agent_id", "query"), [(None, ""), ("a&b=c", "?agent_id=a%26b%3Dc")])
def test_sessions_are_listed(agent_id: str | None, query: str) -> None:
    request, listed = ask(sessions.list_sessions(WAY, agent_id=agent_id), {"data": [SESSION]})

    assert request.method == "GET"
    assert request.url == f"http://127.0.0.1:8080/base/api/sessions{query}"
    assert (request.operation, request.body) == ("sessions.list", None)
    assert to_dict(listed) == {"data": [SESSION]}


def test_a_session_is_retrieved_by_an_encoded_id() -> None:
    request, session = ask(sessions.retrieve_session(WAY, session_id="a b"), SESSION)

    assert request.method == "GET"
    assert request.url == "http://127.0.0.1:8080/base/api/sessions/a%20b"
    assert (request.operation, request.route) == ("sessions.retrieve", "/api/sessions/{session_id}")
    assert session.consumption_offsets.client == 0


# --- events


def stored(*types: str) -> dict[str, Any]:
    """Return a listing of events of these types."""
    return {
        "data": [
            {
                "id": str(offset),
                "correlation_id": "c",
                "type": name,
                "source": "user",
                "offset": offset,
                "data": {"type": "?"},
                "deleted": False,
                "metadata": None,
                "created_at": "2026-11-24T22:38:57Z",
            }
            for offset, name in enumerate(types)
        ]
    }


def list_events(**changes: Any) -> Flow[Any]:
    given: dict[str, Any] = {
        "session_id": "s 1",
        "min_offset": None,
        "source": None,
        "correlation_id": None,
        "types": None,
    }
    return sessions.list_events(WAY, **{**given, **changes})


def test_all_events_are_listed_where_no_filter_is_given() -> None:
    request, listed = ask(list_events(), stored("message", "status", "new"))

    assert request.method == "GET"
    assert request.url == "http://127.0.0.1:8080/base/api/sessions/s%201/events"
    assert request.operation == "sessions.list_events"
    assert request.route == "/api/sessions/{session_id}/events"
    assert request.body is None
    assert [event.type for event in listed] == ["message", "status", "new"]


@pytest.mark.parametrize(
    ("filters", "query"),
    [
        ({"min_offset": 0}, "min_offset=0"),
        ({"source": EventSource.AI_AGENT}, "source=ai_agent"),
        ({"source": "satellite"}, "source=satellite"),
        ({"correlation_id": "RID(1)::2"}, "correlation_id=RID%281%29%3A%3A2"),
        (
            {"min_offset": 7, "source": "user", "correlation_id": "a b"},
            "min_offset=7&source=user&correlation_id=a+b",
        ),
    ],
)
def test_filters_go_into_the_query(filters: Any, query: str) -> None:
    request, _ = ask(list_events(**filters), stored())

    assert request.url.partition("?")[2] == query
    assert request.body is None


def test_types_are_sent_in_the_query_and_in_the_body_and_filtered_once_more() -> None:
    flow = list_events(min_offset=1, types=iter([EventType.MESSAGE, "tool", "message"]))

    request, listed = ask(flow, stored("message", "status", "tool", "new", "message"))

    assert request.method == "GET"
    assert request.url.partition("?")[2] == "min_offset=1&types=message&types=tool"
    assert body_of(request) == ["message", "tool"]
    assert request.headers["content-type"] == "application/json"
    assert [event.offset for event in listed] == [0, 2, 4]


def create_event(way: ApiCall = WAY, **changes: Any) -> Flow[Any]:
    given: dict[str, Any] = {
        "session_id": "s 1",
        "type_": EventType.MESSAGE,
        "source": EventSource.USER,
        "content": "What's the weather in SF?",
    }
    return sessions.open_stream(way, sessions.create_event(way, **{**given, **changes}))


def test_a_message_is_sent_and_the_response_handed_out_with_its_stream_unread() -> None:
    response = answer(headers=SSE)

    effects, result = play(create_event(), response)

    (send,) = effects
    request = sent(send)
    assert request.method == "POST"
    assert request.url == "http://127.0.0.1:8080/base/api/sessions/s%201/events/stream"
    assert request.operation == "sessions.create_event"
    assert request.route == "/api/sessions/{session_id}/events/stream"
    assert request.stream
    assert request.headers["accept"] == "text/event-stream"
    assert request.headers["content-type"] == "application/json"
    assert body_of(request) == {
        "type": "message",
        "source": "user",
        "content": "What's the weather in SF?",
    }
    assert result is response


@pytest.mark.parametrize(
    "content_type", ["text/event-stream", "Text/Event-Stream", "text/event-stream ; charset=utf-8"]
)
def test_a_stream_is_known_by_its_content_type(content_type: str) -> None:
    response = answer(headers={"Content-Type": content_type})

    assert play(create_event(), response)[1] is response


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ({}, "expected text/event-stream, got no content type"),
        ({"content-type": "text/html"}, "expected text/event-stream, got text/html"),
        ({"content-type": "text/event-stream-2"}, "got text/event-stream-2"),
        ({"content-type": "application/json; a=text/event-stream"}, "got application/json"),
    ],
)
def test_what_is_no_stream_is_read_and_shown(headers: dict[str, str], problem: str) -> None:
    flow = create_event(evolve(WAY, deadline=12.5))
    next(flow)
    response = answer(headers=headers)

    reading = read(flow.send(response))
    with pytest.raises(DecodeError, match=problem) as caught:
        flow.send(b"<html>\xff" + b"x" * 1000)

    assert reading.response is response
    assert (reading.limit, reading.deadline) == (WAY.max_body_bytes, 12.5)
    assert caught.value.body == f"<html>\ufffd{'x' * 193}"
    assert caught.value.operation == "sessions.create_event"


def test_what_is_no_stream_and_cannot_be_read_is_the_failure_of_reading_it() -> None:
    flow = create_event()
    next(flow)
    flow.send(answer(headers={}))

    with pytest.raises(ReadTimeout):
        flow.throw(ReadTimeout("silent"))


# --- what every call shares


def test_options_of_the_call_are_in_its_request() -> None:
    request, _ = ask(agents.list_agents(WAY), {"data": []})

    assert request.timeout == WAY.timeout
    assert request.retries == WAY.retries
    assert request.deadline == WAY.deadline
    assert request.headers["user-agent"] == "test"
    assert request.headers["accept"] == "application/json"
    assert "content-type" not in request.headers


def test_header_fields_of_the_user_s_win() -> None:
    fields = Headers((("Accept", "text/x-special"), ("content-TYPE", "application/json; v=2")))
    way = evolve(WAY, headers=WAY.headers.merge(fields))

    effects, _ = play(create_event(way), answer(headers=SSE))

    headers = sent(effects[0]).headers
    assert headers.get_all("accept") == ("text/x-special",)
    assert headers.get_all("content-type") == ("application/json; v=2",)
    assert headers["user-agent"] == "test"


def test_the_body_s_start_is_in_the_error_where_it_is_no_model() -> None:
    with pytest.raises(DecodeError) as caught:
        ask(agents.list_agents(WAY), {"data": [{**AGENT, "name": 1}]})

    error = caught.value
    assert error.field == "data[0].name"
    assert error.body.startswith('{"data": [{"id": "t-2DtXTicj"')
    assert (error.operation, error.method) == ("agents.list", "GET")
    assert error.url == f"{WAY.server_url}/api/agents"


def test_the_body_of_an_answer_is_read_up_to_the_limit_and_the_deadline() -> None:
    layers = chain([AnswerPolicy(JsonCodec(), 1234)])
    request, _ = ask(agents.list_agents(WAY), {"data": []})
    response = answer()

    effects, result = play(layers(request), response, b"the body")

    reading = read(effects[1])
    assert reading.response is response
    assert (reading.limit, reading.deadline) == (1234, 99.0)
    assert result.body == b"the body"
    assert result.raw_response is response.raw_response


SURROGATE = "\ud800"


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: agents.create_agent(WAY, name="", type_="t", description=None), "name"),
        (lambda: agents.create_agent(WAY, name="n" * 101, type_="t", description=None), "name"),
        (lambda: agents.create_agent(WAY, name="n", type_="", description=None), "type_"),
        (lambda: agents.create_agent(WAY, name="n", type_="t" * 101, description=None), "type_"),
        (lambda: agents.create_agent(WAY, name="n", type_="t", description=SURROGATE), "descript"),
        (lambda: agents.retrieve_agent(WAY, agent_id=""), "agent_id"),
        (lambda: agents.retrieve_agent(WAY, agent_id=".."), "agent_id"),
        (lambda: create_session(agent_id=None), "agent_id"),
        (lambda: create_session(agent_id=SURROGATE), "agent_id"),
        (lambda: create_session(allow_greeting="yes"), "allow_greeting"),
        (lambda: create_session(id=""), "id"),
        (lambda: create_session(title="t" * 201), "title"),
        (lambda: create_session(title=7), "title"),
        (lambda: sessions.list_sessions(WAY, agent_id=SURROGATE), "agent_id"),
        (lambda: sessions.retrieve_session(WAY, session_id="."), "session_id"),
        (lambda: list_events(session_id=None), "session_id"),
        (lambda: list_events(min_offset=-1), "min_offset"),
        (lambda: list_events(source=SURROGATE), "source"),
        (lambda: list_events(correlation_id=""), "correlation_id"),
        (lambda: list_events(correlation_id=SURROGATE), "correlation_id"),
        (lambda: list_events(types="message"), "types"),
        (lambda: list_events(types=[SURROGATE]), "types"),
        (lambda: create_event(session_id=b"s"), "session_id"),
        (lambda: create_event(type_=""), "type_"),
        (lambda: create_event(source=None), "source"),
        (lambda: create_event(content=""), "content"),
        (lambda: create_event(content=SURROGATE), "content"),
    ],
)
def test_what_is_refused_is_refused_before_the_flow_begins(
    make: Callable[[], object], argument: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        make()

    assert caught.value.argument.startswith(argument)
