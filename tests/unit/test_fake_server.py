"""A fake answers every request as the released server does, errors included."""

from __future__ import annotations

from typing import Any

import pytest

from flux0 import Flux0
from flux0.models import BadRequestError, HTTPValidationError, NotFoundError
from flux0.testing import CallTool, FakeTransport, GiveResult, Pause, Report, Say
from support.fakes import JSON, ask, message_to, new_session

UNKNOWN = "0123456789"


def problem(kind: str, loc: list[Any], msg: str, given: Any, **ctx: Any) -> dict[str, Any]:
    """Return one entry of a 422 in pydantic's words."""
    entry = {"type": kind, "loc": loc, "msg": msg, "input": given}
    return {**entry, "ctx": ctx} if ctx else entry


def too_short(loc: list[Any], given: str, length: int = 10) -> dict[str, Any]:
    characters = "1 character" if length == 1 else f"{length} characters"
    message = f"String should have at least {characters}"
    return problem("string_too_short", loc, message, given, min_length=length)


def too_long(loc: list[Any], given: str, length: int) -> dict[str, Any]:
    message = f"String should have at most {length} characters"
    return problem("string_too_long", loc, message, given, max_length=length)


def no_text(loc: list[Any], given: Any) -> dict[str, Any]:
    return problem("string_type", loc, "Input should be a valid string", given)


def no_choice(loc: list[Any], given: Any, expected: str) -> dict[str, Any]:
    return problem("enum", loc, f"Input should be {expected}", given, expected=expected)


def missing(loc: list[Any], given: Any) -> dict[str, Any]:
    return problem("missing", loc, "Field required", given)


TYPES = "'message', 'tool', 'status' or 'custom'"
SOURCES = "'user', 'ai_agent' or 'system'"


# --- routes


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/api/agents", "POST"),
        ("DELETE", "/api/sessions/0123456789", "GET"),
        ("POST", "/api/sessions/0123456789/events", "GET"),
        ("GET", "/api/sessions/0123456789/events/stream", "POST"),
    ],
)
def test_a_method_that_a_route_does_not_have(method: str, path: str, allowed: str) -> None:
    answer = ask(FakeTransport(), method, path)
    assert (answer.status_code, answer.detail) == (405, "Method Not Allowed")
    assert answer.headers["allow"] == allowed


def test_a_head_has_the_headers_of_an_answer_and_no_body() -> None:
    answer = ask(FakeTransport(), "HEAD", "/api/agents")
    assert (answer.status_code, answer.body) == (405, b"")
    assert answer.headers["content-length"] == "31"


@pytest.mark.parametrize("path", ["/", "/api", "/api/", "/api/nope/", "//api/agents", "/api/a%2Fb"])
def test_a_path_that_is_no_route(path: str) -> None:
    answer = ask(FakeTransport(), "GET", path)
    assert (answer.status_code, answer.detail) == (404, "Not Found")


def test_a_trailing_slash_is_redirected_to_the_absolute_address() -> None:
    answer = ask(FakeTransport(), "POST", "/api/agents/a%20b/?c=d%20e")
    assert (answer.status_code, answer.body) == (307, b"")
    assert answer.headers["location"] == "http://127.0.0.1:8080/api/agents/a%20b?c=d%20e"


# --- agents


def test_agents_are_made_and_found_again() -> None:
    with Flux0(transport=FakeTransport(agent_name="First", agent_types=["a", "b"])) as flux0:
        second = flux0.agents.create(name="Second", type_="b", description="The second")
        first, listed = flux0.agents.list()
        assert (first.name, first.type, first.description) == ("First", "a", None)
        assert listed == second == flux0.agents.retrieve(agent_id=second.id)
        assert flux0.agents.create(name="Third", type_="a").description is None


def test_what_an_agent_is_told_by() -> None:
    answer = ask(FakeTransport(agent_id="my-agent-1"), "GET", "/api/agents/my-agent-1")
    assert answer.json == {
        "id": "my-agent-1",
        "name": "Fake",
        "type": "fake",
        "description": None,
        "created_at": "2026-01-01T00:00:00Z",
    }


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"agent_id": "short"}, "agent_id must have 10 characters: 'short'"),
        ({"agent_types": ()}, "agent_types must not be empty"),
    ],
)
def test_an_agent_that_no_request_could_name_is_impossible(
    options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        FakeTransport(**options)


NO_OBJECT = "Input should be a valid dictionary or object to extract fields from"


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"NaN", JSON),
        (b"\xff", {"content-type": "text/plain"}),
        (b'{"name": "\\ud800", "type": "fake"}', JSON),
    ],
)
def test_what_the_server_fails_on(body: bytes, headers: Any) -> None:
    answer = ask(FakeTransport(), "POST", "/api/agents", body, headers)
    assert (answer.status_code, answer.body) == (500, b"Internal Server Error")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


def test_agents_that_are_not_there() -> None:
    with Flux0(transport=FakeTransport()) as flux0:
        with pytest.raises(NotFoundError, match=f"Agent with ID {UNKNOWN} not found"):
            flux0.agents.retrieve(agent_id=UNKNOWN)
        with pytest.raises(HTTPValidationError) as caught:
            flux0.agents.retrieve(agent_id="short")
        (wrong,) = caught.value.data.detail
        assert (wrong.loc, wrong.ctx) == (("path", "agent_id"), {"min_length": 10})


# --- sessions and users


def test_sessions_are_made_and_found_again() -> None:
    fake = FakeTransport()
    with Flux0(transport=fake) as flux0:
        titled = flux0.sessions.create(agent_id=fake.agent_id, title="T", id="my-session")
        plain = flux0.sessions.create(agent_id=fake.agent_id, allow_greeting=True)
        assert list(flux0.sessions.list()) == [titled, plain]
        assert flux0.sessions.retrieve(session_id="my-session") == titled
        assert titled.consumption_offsets.client == 0
        assert not flux0.sessions.list_events(session_id=plain.id)


def test_a_second_session_of_one_id_hides_behind_the_first() -> None:
    fake = FakeTransport()
    with Flux0(transport=fake) as flux0:
        for title in ("first", "second"):
            flux0.sessions.create(agent_id=fake.agent_id, id="my-session", title=title)
        assert [session.title for session in flux0.sessions.list()] == ["first", "second"]
        assert flux0.sessions.retrieve(session_id="my-session").title == "first"


def test_sessions_are_those_of_the_user_and_the_agent() -> None:
    fake = FakeTransport()
    with Flux0(transport=fake) as flux0:
        other = flux0.agents.create(name="Other", type_="fake")
        users: dict[str, tuple[set[str], int]] = {}
        for cookie in ("", "flux0_user_sub=alice", 'a=b; flux0_user_sub="alice"', "x"):
            headers = {"cookie": cookie}
            for agent_id in (fake.agent_id, other.id):
                flux0.sessions.create(agent_id=agent_id, http_headers=headers)
            sessions = flux0.sessions.list(http_headers=headers)
            users[cookie] = ({session.user_id for session in sessions}, len(sessions))
            by_agent = flux0.sessions.list(agent_id=other.id, http_headers=headers)
            assert {session.agent_id for session in by_agent} == {other.id}
        assert not flux0.sessions.list(agent_id="x")
    anonymous, alice = users[""][0], users["flux0_user_sub=alice"][0]
    assert anonymous != alice
    assert users['a=b; flux0_user_sub="alice"'] == (alice, 4)
    assert users["x"] == (anonymous, 4)


def test_sessions_that_are_not_there() -> None:
    with Flux0(transport=FakeTransport()) as flux0:
        with pytest.raises(NotFoundError, match=f"Session with ID {UNKNOWN} not found"):
            flux0.sessions.retrieve(session_id=UNKNOWN)
        with pytest.raises(BadRequestError, match=f"non-existent session with ID {UNKNOWN}"):
            flux0.sessions.list_events(session_id=UNKNOWN)
        with pytest.raises(BadRequestError, match=f"Session with ID {UNKNOWN} not found"):
            flux0.sessions.create_event(session_id=UNKNOWN, content="Hi")


# --- events


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"type": "status"}, "Only message events can currently be added manually"),
        ({"source": "system"}, 'Only "user" source is supported for direct posting.'),
        ({"content": ""}, "Missing 'message' field in event parameters"),
        ({"content": None}, "Missing 'message' field in event parameters"),
        ({"content": 5}, [no_text(["body", "content"], 5)]),
        (
            {"type": "x", "source": []},
            [no_choice(["body", "type"], "x", TYPES), no_choice(["body", "source"], [], SOURCES)],
        ),
    ],
)
def test_messages_that_are_refused(change: dict[str, Any], detail: Any) -> None:
    fake = FakeTransport()
    session_id = new_session(fake)
    body = {"type": "message", "source": "user", "content": "Hi", **change}
    answer = ask(fake, "POST", f"/api/sessions/{session_id}/events/stream", body)
    assert (answer.status_code, answer.detail) == (422, detail)
    assert ask(fake, "GET", f"/api/sessions/{session_id}/events").json == {"data": []}


def test_a_stream_has_the_headers_of_one() -> None:
    fake = FakeTransport()
    response = fake.send(message_to(new_session(fake)))
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["transfer-encoding"] == "chunked"
    response.body.close()


def test_what_the_user_said_is_stored_at_once() -> None:
    fake = FakeTransport([Pause(1)])
    session_id = new_session(fake)
    response = fake.send(message_to(session_id, "What is up?"))
    assert ask(fake, "GET", f"/api/sessions/{session_id}/events").json == {
        "data": [
            {
                "id": "e000000001",
                "correlation_id": "RID(r000000001)::t000000001",
                "type": "message",
                "source": "user",
                "offset": 0,
                "data": {
                    "type": "message",
                    "tags": [],
                    "flagged": False,
                    "parts": [{"type": "content", "content": "What is up?"}],
                    "participant": {"id": "u000000001", "name": "Anonymous"},
                },
                "deleted": False,
                "metadata": None,
                "created_at": "2026-01-01T00:00:00.000002Z",
            }
        ]
    }
    response.body.close()


CALL = CallTool("get_weather", {"location": "San Francisco"})


@pytest.fixture
def talked() -> tuple[FakeTransport, str]:
    """A fake, and a session of it that has two turns, with six events and two."""
    fake = FakeTransport()
    session_id = new_session(fake)
    fake.script([Report("processing"), CALL, GiveResult(CALL, 1), Report("typing"), Say("A")], "B")
    for _ in range(2):
        list(fake.send(message_to(session_id)).body)
    return fake, session_id


@pytest.mark.parametrize(
    ("query", "types", "offsets"),
    [
        ("", None, [0, 1, 2, 3, 4, 5, 6, 7]),
        ("?min_offset=6", None, [6, 7]),
        ("?min_offset=%20%2B0_6.00%20", None, [6, 7]),
        ("?min_offset=-1", None, [0, 1, 2, 3, 4, 5, 6, 7]),
        ("?source=user", None, [0, 6]),
        ("?source=ai_agent&source=system", None, []),
        ("?correlation_id=RID(r000000002)::t000000002", None, [6, 7]),
        ("?correlation_id=x", None, []),
        ("", ["tool"], [3]),
        ("", ["status", "tool"], [1, 3, 4]),
        ("", [], [0, 1, 2, 3, 4, 5, 6, 7]),
        ("", b"null", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("?types=tool", None, [0, 1, 2, 3, 4, 5, 6, 7]),
        ("?types=tool", ["message"], [0, 2, 5, 6, 7]),
        ("?min_offset=1&source=ai_agent", ["message"], [2, 5, 7]),
    ],
)
def test_events_are_filtered(
    talked: tuple[FakeTransport, str], query: str, types: Any, offsets: list[int]
) -> None:
    fake, session_id = talked
    answer = ask(fake, "GET", f"/api/sessions/{session_id}/events{query}", types)
    assert [event["offset"] for event in answer.json["data"]] == offsets


TOO_LONG = "Unable to parse input string as an integer, exceeded maximum size"
NO_LIST = "Input should be a valid list"
NO_FLAG = "Input should be a valid boolean, unable to interpret input"
EXTRA = "Extra inputs are not permitted"
MANY = "9" * 4301
NO_JSON = {
    **problem("json_invalid", ["body", 5], "JSON decode error", {}),
    "ctx": {"error": "Expecting ':' delimiter"},
}
NO_INTEGER = "Input should be a valid integer, unable to parse string as an integer"


def test_times_are_those_of_the_clock() -> None:
    fake = FakeTransport()
    fake.clock.advance(1.5)
    answer = ask(fake, "POST", "/api/agents", {"name": "N", "type": "fake"})
    assert answer.json["created_at"] == "2026-01-01T00:00:01.500000Z"
    assert answer.headers["date"] == "Thu, 01 Jan 2026 00:00:01 GMT"


REFUSED: list[tuple[str, Any, Any]] = [
    # --- by the agents
    ("agents", {"name": "N", "type": "nope"}, "Agent type 'nope' is not supported"),
    ("agents", {"name": "", "type": "fake"}, [too_short(["body", "name"], "", 1)]),
    (
        "agents",
        {"name": "n" * 101, "type": "fake"},
        [too_long(["body", "name"], "n" * 101, 100)],
    ),
    (
        "agents",
        {"name": 5, "type": None, "description": []},
        [
            no_text(["body", "name"], 5),
            no_text(["body", "type"], None),
            no_text(["body", "description"], []),
        ],
    ),
    (
        "agents",
        {"x": 1},
        [
            missing(["body", "name"], {"x": 1}),
            missing(["body", "type"], {"x": 1}),
            problem("extra_forbidden", ["body", "x"], EXTRA, 1),
        ],
    ),
    ("agents", None, [missing(["body"], None)]),
    ("agents", b"[1]", [problem("model_attributes_type", ["body"], NO_OBJECT, [1])]),
    ("agents", b"null", [problem("model_attributes_type", ["body"], NO_OBJECT, None)]),
    ("agents", b'{"a" 1}', [NO_JSON]),
    # --- by the sessions
    (
        "sessions",
        {"agent_id": "a", "id": "s"},
        [too_short(["body", "agent_id"], "a"), too_short(["body", "id"], "s")],
    ),
    (
        "sessions",
        {"agent_id": UNKNOWN, "title": "t" * 201},
        [too_long(["body", "title"], "t" * 201, 200)],
    ),
    (
        "sessions?allow_greeting=maybe",
        {},
        [
            problem("bool_parsing", ["query", "allow_greeting"], NO_FLAG, "maybe"),
            missing(["body", "agent_id"], {}),
        ],
    ),
    # --- by the events
    (
        "events?min_offset=1.5&source=USER",
        b'["message", "x", null]',
        [
            problem("int_parsing", ["query", "min_offset"], NO_INTEGER, "1.5"),
            no_choice(["query", "source"], "USER", SOURCES),
            no_choice(["body", 1], "x", TYPES),
            no_choice(["body", 2], None, TYPES),
        ],
    ),
    (
        f"events?min_offset={MANY}",
        None,
        [problem("int_parsing_size", ["query", "min_offset"], TOO_LONG, MANY)],
    ),
    ("events", b"{}", [problem("list_type", ["body"], NO_LIST, {})]),
]


@pytest.mark.parametrize(("place", "body", "detail"), REFUSED)
def test_what_is_refused(place: str, body: Any, detail: Any) -> None:
    fake = FakeTransport()
    listed = place.startswith("events")
    path = f"/api/sessions/{new_session(fake)}/{place}" if listed else f"/api/{place}"
    answer = ask(fake, "GET" if listed else "POST", path, body)
    assert (answer.status_code, answer.detail) == (422, detail)
    assert len(ask(fake, "GET", "/api/agents").json["data"]) == 1


@pytest.mark.parametrize(
    ("body", "headers", "status", "detail"),
    [
        (b"", {}, 422, [missing(["body"], None)]),
        (b"{}", {}, 422, [problem("model_attributes_type", ["body"], NO_OBJECT, "{}")]),
        (b'{"a" 1}', {"content-type": "Application/Problem+JSON; a=b"}, 422, [NO_JSON]),
        (b'{"name": "\xff"}', JSON, 400, "There was an error parsing the body"),
    ],
)
def test_bodies_are_read_by_their_type(body: bytes, headers: Any, status: int, detail: Any) -> None:
    answer = ask(FakeTransport(), "POST", "/api/agents", body, headers)
    assert (answer.status_code, answer.detail) == (status, detail)
    assert dict(answer.headers) == {
        "date": "Thu, 01 Jan 2026 00:00:00 GMT",
        "server": "uvicorn",
        "content-length": str(len(answer.body)),
        "content-type": "application/json",
    }
