"""Use cases: the request of each call, and the result that is decoded from its response."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from math import nan
from typing import Any

import pytest
from attrs import asdict, evolve

from flux0 import RetryConfig, to_dict
from flux0.adapters.json import JsonCodec
from flux0.domain.api_errors import (
    HTTPValidationError,
    HTTPValidationErrorData,
    ValidationError,
)
from flux0.domain.enums import EventSource, EventType
from flux0.domain.errors import AgentNotFound, DecodeError, InvalidArgument
from flux0.domain.headers import Headers
from flux0.domain.stored_models import ContentPart, Participant
from flux0.domain.timeouts import Deadline
from flux0.flows import CallRequest, Flow, send_once
from flux0.ports import Response, Timeout
from flux0.usecases import agents, sessions
from flux0.usecases.call import ApiCall
from support.in_memory import SSE, play, scripted_response, sent

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
    "metadata": None,
    "mode": None,
}
CALL = ApiCall(
    send=send_once,
    codec=JsonCodec(),
    server_url="http://127.0.0.1:8080/base",
    login=Headers(),
    headers=Headers((("user-agent", "test"),)),
    header_functions={},
    timeout=Timeout(read=7),
    idle_timeout=600,
    max_event_bytes=1000,
    max_turn_bytes=1000,
    retries=RetryConfig("none"),
    deadline=Deadline(99.0, 9.0),
)


def run(flow: Flow[Any], data: object, status: int = 200) -> tuple[CallRequest, Any]:
    """Run a flow whose only request gets a JSON response; return the request and the result."""
    body = json.dumps(data).encode()
    effects, result = play(flow, Response(status, Headers(), body))
    (send,) = effects
    return sent(send), result


def body_of(request: CallRequest) -> Any:
    assert request.body is not None
    return json.loads(request.body)


def create_agent(**changes: Any) -> Flow[Any]:
    given: dict[str, Any] = {"name": "Drizzle", "type_": "weather", "description": None}
    return agents.create_agent(CALL, **{**given, **changes})


def first_agent(type_: Any = None, name: Any = None) -> Flow[Any]:
    return agents.first_agent(CALL, type_, name)


def create_session(**changes: Any) -> Flow[Any]:
    given: dict[str, Any] = {"agent_id": "a", "allow_greeting": False, "id": None, "title": None}
    return sessions.create_session(CALL, **{**given, **changes})


def list_events(**changes: Any) -> Flow[Any]:
    given: dict[str, Any] = {"session_id": "s 1", **changes}
    return sessions.list_events(CALL, **given)


def create_event(call: ApiCall = CALL, **changes: Any) -> Flow[Any]:
    given = {"session_id": "s 1", "type_": "message", "source": "user", "content": "How is it?"}
    request = sessions.create_event(call, **{**given, **changes})
    return call.perform(request, sessions.event_stream)


def stored(*types: str) -> dict[str, Any]:
    """Return the JSON of a list of events with these types."""
    event = {"correlation_id": "c", "source": "user", "data": {"type": "?"}, "deleted": False}
    rest = {"metadata": None, "created_at": "2026-11-24T22:38:57Z"}
    return {
        "data": [
            {**event, **rest, "id": str(offset), "offset": offset, "type": name}
            for offset, name in enumerate(types)
        ]
    }


AGENTS, SESSIONS = "/api/agents", "/api/sessions"
ROUTES = {
    "agents.list": ("GET", AGENTS),
    "agents.create": ("POST", AGENTS),
    "agents.retrieve": ("GET", f"{AGENTS}/{{agent_id}}"),
    "sessions.create": ("POST", SESSIONS),
    "sessions.list": ("GET", SESSIONS),
    "sessions.retrieve": ("GET", f"{SESSIONS}/{{session_id}}"),
    "sessions.list_events": ("GET", f"{SESSIONS}/{{session_id}}/events"),
}
EVENTS = f"{SESSIONS}/s%201/events"
DRIZZLE = {"name": "Drizzle", "type": "weather"}
FILTERS = {"min_offset": 7, "source": "user", "correlation_id": "RID(1): 2"}


@pytest.mark.parametrize(
    ("operation", "flow", "path", "body", "answer"),
    [
        ("agents.list", agents.list_agents(CALL), AGENTS, None, {"data": [AGENT]}),
        ("agents.create", create_agent(), AGENTS, DRIZZLE, AGENT),
        (
            *("agents.create", create_agent(description="")),
            *(AGENTS, {**DRIZZLE, "description": ""}, AGENT),
        ),
        (
            *("agents.retrieve", agents.retrieve_agent(CALL, agent_id="a-b_c~d.e;é +=")),
            *(f"{AGENTS}/a-b_c~d.e%3B%C3%A9%20%2B%3D", None, AGENT),
        ),
        ("sessions.create", create_session(), SESSIONS, {"agent_id": "a"}, SESSION),
        (
            *("sessions.create", create_session(allow_greeting=True)),
            *(f"{SESSIONS}?allow_greeting=true", {"agent_id": "a"}, SESSION),
        ),
        (
            *("sessions.create", create_session(id="zv3h4j5Fjv", title="")),
            *(SESSIONS, {"agent_id": "a", "id": "zv3h4j5Fjv", "title": ""}, SESSION),
        ),
        (
            *("sessions.create", create_session(metadata={"a": [1]}, mode="record")),
            *(SESSIONS, {"agent_id": "a", "metadata": {"a": [1]}, "mode": "record"}),
            {**SESSION, "metadata": {"a": [1]}, "mode": "record"},
        ),
        (
            *("sessions.list", sessions.list_sessions(CALL, agent_id=None)),
            *(SESSIONS, None, {"data": [SESSION]}),
        ),
        (
            *("sessions.list", sessions.list_sessions(CALL, agent_id="a&b=c")),
            *(f"{SESSIONS}?agent_id=a%26b%3Dc", None, {"data": []}),
        ),
        (
            *("sessions.retrieve", sessions.retrieve_session(CALL, session_id="a b")),
            *(f"{SESSIONS}/a%20b", None, SESSION),
        ),
        ("sessions.list_events", list_events(), EVENTS, None, stored("message", "new")),
        (
            *("sessions.list_events", list_events(source=EventSource.AI_AGENT, min_offset=0)),
            *(f"{EVENTS}?min_offset=0&source=ai_agent", None, stored()),
        ),
        (
            *("sessions.list_events", list_events(**FILTERS)),
            f"{EVENTS}?min_offset=7&source=user&correlation_id=RID%281%29%3A+2",
            *(None, stored()),
        ),
    ],
)
def test_each_call_sends_its_request_and_decodes_its_result(
    operation: str, flow: Flow[Any], path: str, body: Any, answer: Any
) -> None:
    request, result = run(flow, answer)

    assert request.operation == operation
    assert (request.method, request.route) == ROUTES[operation]
    assert request.url == f"{CALL.server_url}{path}"
    assert (None if request.body is None else body_of(request)) == body
    assert not request.stream
    assert to_dict(result) == answer
    assert (request.timeout, request.retries) == (CALL.timeout, CALL.retries)
    assert request.deadline == CALL.deadline
    assert request.headers["user-agent"] == "test"
    assert request.headers["accept"] == "application/json"
    assert ("content-type" in request.headers) == (body is not None)


@pytest.mark.parametrize(
    ("type_", "name", "found"),
    [
        *((None, None, "1"), ("b", None, "3"), (None, "y", "2"), ("a", "y", "2"), ("b", "x", "3")),
        *(("b", "y", None), ("c", None, None), ("", None, None), (None, "", None)),
    ],
)
def test_first_agent_has_the_type_and_the_name(
    type_: str | None, name: str | None, found: str | None
) -> None:
    items = ({"id": "1", "type": "a", "name": "x"}, {"id": "2", "name": "y", "type": "a"})
    listed = {
        "data": [{**AGENT, **each} for each in (*items, {**items[0], "id": "3", "type": "b"})]
    }
    flow = first_agent(type_, name)
    if found is None:
        with pytest.raises(AgentNotFound):
            run(flow, listed)
    else:
        assert run(flow, listed)[1].id == found


@pytest.mark.parametrize(
    "make", [create_session, partial(agents.retrieve_agent, CALL, agent_id="a")]
)
@pytest.mark.parametrize("loc", [("body", "agent_id"), ("path", "agent_id"), ("body", "title")])
def test_error_about_an_agent_id_says_how_to_get_an_agent_by_name(
    make: Callable[[], Flow[Any]], loc: tuple[str, ...]
) -> None:
    rejected = HTTPValidationError("too short", status_code=422, body="", headers=Headers())
    rejected.data = HTTPValidationErrorData((ValidationError(loc, "too short", "short"),))
    with pytest.raises(HTTPValidationError) as caught:
        play(make(), rejected)
    hint = "; 'a' is not an id: use client.agents.first(name='a') to get an agent by name"
    assert caught.value.problem == f"422: too short{hint if 'agent_id' in loc else ''}"


def test_observers_get_each_fact_of_a_call() -> None:
    known = Participant("agent-1", "Drizzle")

    observed: list[CallRequest] = []

    def observe(request: CallRequest, flow: Flow[Any]) -> Flow[Any]:
        observed.append(request)
        return flow

    changes: dict[str, Any] = {"observe": observe, "agent": known}
    call = evolve(CALL, extra_query={"token": "secret"}, **changes)
    request = sessions.create_event(call, "s 1", "message", "user", "Hi")

    call.perform(request, sessions.event_stream)
    assert [each is request for each in observed] == [True]
    assert request.call is not None
    assert asdict(request.call) == {
        "operation": "sessions.create_event",
        "method": "POST",
        "url": f"{CALL.server_url}{EVENTS}/stream?token=***",
        "route": "/api/sessions/{session_id}/events/stream",
        "session_id": "s 1",
        "agent_id": "agent-1",
        "agent_name": "Drizzle",
        "content": "Hi",
    }
    assert CALL.request("agents.list", "GET", AGENTS).call is None


@pytest.mark.parametrize(
    "make", [create_session, partial(sessions.retrieve_session, CALL, session_id="zv3h4j5Fjv")]
)
def test_session_with_an_id_that_no_url_can_contain_is_a_decode_error(
    make: Callable[[], Flow[Any]],
) -> None:
    with pytest.raises(DecodeError, match=r"id: must .*: '\.\./\.\./x'") as caught:
        run(make(), {**SESSION, "id": "../../x"})

    assert caught.value.field == "id"
    assert caught.value.operation.startswith("sessions.")


def test_response_without_content_is_not_decoded() -> None:
    request = CALL.request("sessions.delete", "DELETE", "/api/sessions/{id}", id="s 1")

    flow = CALL.perform(request, lambda response: response.status_code)
    effects, status = play(flow, Response(204, Headers(), b""))

    assert sent(effects[0]).url == f"{CALL.server_url}{SESSIONS}/s%201"
    assert sent(effects[0]).is_idempotent
    assert status == 204


# --- events


def test_types_are_sent_in_query_and_body_and_filtered_again() -> None:
    flow = list_events(min_offset=1, types=iter([EventType.MESSAGE, "tool", "message"]))

    request, listed = run(flow, stored("message", "status", "tool", "new", "message"))

    assert request.method == "GET"
    assert request.url.partition("?")[2] == "min_offset=1&types=message&types=tool"
    assert body_of(request) == ["message", "tool"]
    assert request.headers["content-type"] == "application/json"
    assert [event.offset for event in listed] == [0, 2, 4]


def test_create_event_returns_the_response_with_an_unread_body() -> None:
    response = scripted_response(headers=SSE)

    effects, result = play(create_event(), response)

    (send,) = effects
    request = sent(send)
    route = "/api/sessions/{session_id}/events/stream"
    assert (request.method, request.route) == ("POST", route)
    assert request.url == "http://127.0.0.1:8080/base/api/sessions/s%201/events/stream"
    assert request.operation == "sessions.create_event"
    assert request.stream
    assert request.headers["accept"] == "text/event-stream"
    assert request.headers["content-type"] == "application/json"
    assert body_of(request) == {"type": "message", "source": "user", "content": "How is it?"}
    assert result is response


@pytest.mark.parametrize(
    "content_type", ["text/event-stream", "Text/Event-Stream", "text/event-stream ; charset=utf-8"]
)
def test_event_stream_is_recognized_by_its_content_type(content_type: str) -> None:
    response = scripted_response(headers={"Content-Type": content_type})

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
def test_other_content_type_is_a_decode_error_with_the_body(
    headers: dict[str, str], problem: str
) -> None:
    body = b"<html>\xff" + b"x" * 1000

    with pytest.raises(DecodeError, match=problem) as caught:
        play(create_event(), Response(200, Headers(tuple(headers.items())), body))

    assert caught.value.body == f"<html>\ufffd{'x' * 193}"
    assert caught.value.operation == "sessions.create_event"


# --- all calls


def test_headers_of_the_user_override_the_defaults() -> None:
    fields = Headers((("Accept", "text/x-special"), ("content-TYPE", "application/json; v=2")))
    call = evolve(CALL, headers=CALL.headers.merge(fields))

    effects, _ = play(create_event(call), scripted_response(headers=SSE))

    headers = sent(effects[0]).headers
    assert headers.get_all("accept") == ("text/x-special",)
    assert headers.get_all("content-type") == ("application/json; v=2",)
    assert headers["user-agent"] == "test"


def test_decode_error_has_the_start_of_the_body_and_the_request() -> None:
    with pytest.raises(DecodeError) as caught:
        run(agents.list_agents(CALL), {"data": [{**AGENT, "name": 1}]})

    error = caught.value
    assert error.field == "data[0].name"
    assert error.body.startswith('{"data": [{"id": "t-2DtXTicj"')
    assert (error.operation, error.method) == ("agents.list", "GET")
    assert error.url == f"{CALL.server_url}/api/agents"


SURROGATE = "\ud800"


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: create_agent(name=""), "name"),
        (lambda: create_agent(type_=""), "type_"),
        (lambda: create_agent(description=SURROGATE), "descript"),
        (lambda: next(first_agent(name=3)), "name"),
        (lambda: next(first_agent(type_=3)), "type_"),
        (lambda: agents.retrieve_agent(CALL, agent_id=""), "agent_id"),
        (lambda: agents.retrieve_agent(CALL, agent_id=".."), "agent_id"),
        (lambda: create_session(agent_id=None), "agent_id"),
        (lambda: create_session(agent_id=SURROGATE), "agent_id"),
        (lambda: create_session(allow_greeting="yes"), "allow_greeting"),
        (lambda: create_session(id=""), "id"),
        (lambda: create_session(id="../x"), "id"),
        (lambda: create_session(title=7), "title"),
        (lambda: create_session(metadata=[("a", 1)]), "metadata"),
        (lambda: create_session(metadata={"a": nan}), "metadata"),
        (lambda: create_session(metadata={"a": SURROGATE}), "metadata"),
        (lambda: create_session(mode=""), "mode"),
        (lambda: sessions.list_sessions(CALL, agent_id=SURROGATE), "agent_id"),
        (lambda: sessions.list_sessions(CALL, agent_id=""), "agent_id"),
        (lambda: sessions.retrieve_session(CALL, session_id="."), "session_id"),
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
def test_invalid_arguments_are_rejected_before_sending(
    make: Callable[[], object], argument: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        make()

    assert caught.value.argument.startswith(argument)


def test_extra_members_and_parameters_are_added_to_the_request() -> None:
    extra_body = {"metadata": {"a": [1]}, "part": ContentPart("hi")}
    call = evolve(CALL, extra_query={"mode": "a b", "x": ""}, extra_body=extra_body)
    request, _ = run(
        sessions.create_session(call, agent_id="a", allow_greeting=True, id=None, title=None),
        SESSION,
    )

    assert request.url.endswith("/api/sessions?allow_greeting=true&mode=a+b&x=")
    part = {"type": "content", "content": "hi"}
    assert body_of(request) == {"agent_id": "a", "metadata": {"a": [1]}, "part": part}


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        ({"extra_query": {"allow_greeting": "x"}}, "extra_query must not contain 'allow_greeting'"),
        ({"extra_body": {"agent_id": "x"}}, "extra_body must not contain 'agent_id'"),
        ({"extra_body": {"new": object()}}, "JSON: it contains an object of type object"),
        ({"extra_body": {"new": [{SURROGATE: 1}]}}, "extra_body has lone surrogates, which UTF-8"),
        ({"extra_body": {"new": "\udc80"}}, "extra_body has lone surrogates, which UTF-8"),
        ({"extra_body": {"new": nan}}, "cannot be represented in JSON: Out of range float"),
        ({"extra_body": {"new": 10**5000}}, "cannot be represented in JSON: Exceeds"),
        ({"extra_body": {"new": {1: 2}}}, "JSON: it contains a mapping with the key 1;"),
    ],
)
def test_extra_fields_that_the_call_sets_or_that_are_not_json_are_rejected(
    extra: Any, problem: str
) -> None:
    call = evolve(CALL, **extra)
    with pytest.raises(InvalidArgument, match=problem):
        sessions.create_session(call, agent_id="a", allow_greeting=True, id=None, title=None)


def test_extra_body_is_rejected_if_the_request_has_no_json_object() -> None:
    call = evolve(CALL, extra_body={})
    unfiltered = dict.fromkeys(("min_offset", "source", "correlation_id"))
    for flow in (
        partial(agents.list_agents, call),
        partial(sessions.list_events, call, session_id="s", types=["tool"], **unfiltered),
    ):
        with pytest.raises(InvalidArgument, match="sends no JSON object in the body") as caught:
            flow()
        assert caught.value.argument == "extra_body"


def test_headers_replace_the_login_and_the_cookie_replaces_the_headers() -> None:
    login = Headers((("authorization", "Basic bG9naW4="),))
    own = Headers((("authorization", "Bearer own"), ("cookie", "flux0_user_sub=a; b=2")))
    cookie = Headers((("cookie", "flux0_user_sub=ada"),))
    for call, authorization in (
        (evolve(CALL, login=login), "Basic bG9naW4="),
        (evolve(CALL, login=login, headers=own, cookie=cookie), "Bearer own"),
    ):
        request = call.request("agents.list", "GET", AGENTS)
        assert request.headers["authorization"] == authorization
    assert request.headers["cookie"] == "flux0_user_sub=ada; b=2"


def test_function_replaces_the_header_with_its_name_but_not_the_cookies() -> None:
    fields = Headers((("x-a", "1"), ("cookie", "b=2"), ("x-c", "3")))
    login = Headers((("authorization", "Basic bG9naW4="),))
    cookie = Headers((("cookie", "flux0_user_sub=ada"),))
    names = ("x-a", "authorization", "cookie", "user-agent")
    functions = dict.fromkeys(names, lambda: "computed")
    call = evolve(CALL, headers=fields, login=login, cookie=cookie, header_functions=functions)
    request = call.request("agents.list", "GET", AGENTS)
    assert request.headers == Headers(
        (
            ("accept", "application/json"),
            ("x-c", "3"),
            ("cookie", "b=2; flux0_user_sub=ada"),
        )
    )
    assert request.header_functions == functions
