"""The fake's responses to valid and invalid requests.

The integration tests send the same requests to the released server and the fake.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from flux0 import Flux0
from flux0.domain.headers import Headers
from flux0.models import (
    AuthenticationError,
    BadRequestError,
    ConflictError,
    HTTPValidationError,
    NotFoundError,
    StatusEvent,
)
from flux0.ports import Request
from flux0.testing import CallTool, FakeTransport, GiveResult, Pause, Report, Say
from flux0.testing.fake.validation import MESSAGES
from support.fakes import JSON, URL, ask, message_to, new_session
from support.sending import Pieces

UNKNOWN = "0123456789"
MANY = "9" * 4301
SURROGATE = b'{"name": "\\ud800", "type": "fake"}'
TYPES = "'message', 'tool', 'status' or 'custom'"
SOURCES = "'user', 'ai_agent' or 'system'"


def wrong(kind: str, place: str, given: Any, **ctx: Any) -> dict[str, Any]:
    """Return an entry of a 422 response as pydantic writes it; `place` looks like `body.name`."""
    loc = [int(part) if part.isdigit() else part for part in place.split(".")]
    message = MESSAGES[kind].format(**ctx).replace("least 1 characters", "least 1 character")
    entry = {"type": kind, "loc": loc, "msg": message, "input": given}
    return {**entry, "ctx": ctx} if ctx else entry


NO_JSON = wrong("json_invalid", "body.5", {}) | {"ctx": {"error": "Expecting ':' delimiter"}}


# --- routes


@pytest.mark.parametrize(
    ("method", "path", "status", "detail"),
    [
        ("PUT", "/api/agents", 405, "POST"),
        ("DELETE", "/api/sessions/0123456789", 405, "GET"),
        ("GET", "/api/sessions/0123456789/events/stream", 405, "POST"),
        *(("GET", path, 404, None) for path in ("/", "/api", "/api/nope/", "//api/agents")),
        ("GET", "/api/a%2Fb", 404, None),
    ],
)
def test_unknown_routes_and_methods_are_rejected(
    method: str, path: str, status: int, detail: str | None
) -> None:
    response = ask(FakeTransport(), method, path)
    assert response.status_code == status
    assert response.detail == ("Method Not Allowed" if detail else "Not Found")
    assert response.headers.get("allow") == detail


def test_head_response_has_headers_but_no_body() -> None:
    response = ask(FakeTransport(), "HEAD", "/api/agents")
    assert (response.status_code, response.body) == (405, b"")
    assert response.headers["content-length"] == "31"


def test_line_break_at_the_end_of_a_path_is_ignored() -> None:
    assert ask(FakeTransport(), "GET", "/api/agents%0A").status_code == 200


def test_trailing_slash_redirects_to_the_absolute_url() -> None:
    response = ask(FakeTransport(), "POST", "/api/agents/a%20b/?c=d%20e")
    assert (response.status_code, response.body) == (307, b"")
    assert response.headers["location"] == "http://127.0.0.1:8080/api/agents/a%20b?c=d%20e"


# --- agents, sessions and users


def test_created_agents_are_listed_and_retrieved() -> None:
    with Flux0(transport=FakeTransport(agent_name="First", agent_types=["a", "b"])) as flux0:
        second = flux0.agents.create(name="Second", type_="b", description="The second")
        assert second.description == "The second"
        first, listed = flux0.agents.list()
        assert (first.name, first.type, first.description) == ("First", "a", None)
        assert listed == second == flux0.agents.retrieve(agent_id=second.id)
        assert flux0.agents.create(name="Third", type_="a", description="").description is None


def test_parameter_with_a_blank_value_is_a_filter() -> None:
    fake = FakeTransport()
    new_session(fake)
    assert len(ask(fake, "GET", "/api/sessions").json["data"]) == 1
    assert ask(fake, "GET", "/api/sessions?agent_id=").json["data"] == []


def test_agent_is_returned_in_the_format_of_a_real_server() -> None:
    fake = FakeTransport(agent_id="my-agent-1")
    fake.clock.advance(1.5)
    made = ask(fake, "POST", "/api/agents", {"name": "é", "type": "fake"})
    assert made.headers["date"] == "Thu, 01 Jan 2026 00:00:01 GMT"
    assert (
        made.body
        == (
            '{"id":"a000000001","name":"é","type":"fake","created_at":"2026-01-01T00:00:01.500000Z"}'
        ).encode()
    )
    assert ask(fake, "GET", "/api/agents/my-agent-1").json == {
        "id": "my-agent-1",
        "name": "Fake",
        "type": "fake",
        "description": None,
        "created_at": "2026-01-01T00:00:00Z",
    }


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"agent_id": "short"}, "agent_id must have 10 characters, not 'short'"),
        ({"agent_types": ()}, "agent_types must not be empty"),
    ],
)
def test_invalid_agent_id_and_agent_types_are_rejected(
    options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        FakeTransport(**options)


@pytest.mark.parametrize("declared", ["/a/flux0", "a/flux0/"])
def test_only_paths_below_the_path_prefix_are_served(declared: str) -> None:
    fake = FakeTransport(path_prefix=declared)
    with Flux0("http://proxy/a/flux0/", transport=fake) as flux0:
        conversation = flux0.conversation(agent=fake.agent_id)
        assert conversation.ask("Hi").text == "Hello"
        assert fake.calls[-1].operation == "sessions.create_event"
        assert fake.calls[-1].path == "/api/sessions/s000000001/events/stream"
    for path in ("/api/agents", "/flux0/api/agents", "/a/flux0x/api/agents", "/b/a/flux0/api"):
        assert ask(fake, "GET", path).status_code == 404


@pytest.mark.parametrize("declared", ["", "/"])
def test_path_prefixes_that_are_not_declared_get_404(declared: str) -> None:
    fake = FakeTransport(path_prefix=declared)
    assert ask(fake, "GET", "/api/agents").status_code == 200
    assert ask(fake, "GET", "/wrong/api/agents").status_code == 404
    assert [call.name for call in fake.calls] == ["agents.list", "GET /wrong/api/agents"]
    with fake.serve() as url, Flux0(f"{url}/wrong") as flux0, pytest.raises(NotFoundError):
        flux0.agents.list()


def test_created_sessions_are_listed_and_retrieved() -> None:
    fake = FakeTransport()
    with Flux0(transport=fake) as flux0:
        titled = flux0.sessions.create(agent_id=fake.agent_id, title="T" * 200, id="my séssion")
        duplicate = flux0.sessions.create(
            agent_id=fake.agent_id, id="my séssion", allow_greeting=True
        )
        assert list(flux0.sessions.list()) == [titled, duplicate]
        # If sessions share an id, the first session is returned.
        assert flux0.sessions.retrieve(session_id="my séssion") == titled
        assert titled.consumption_offsets.client == 0
        assert not flux0.sessions.list_events(session_id=duplicate.id)


def test_only_the_list_of_sessions_has_members_that_are_null() -> None:
    fake = FakeTransport()
    created = ask(fake, "POST", "/api/sessions", {"agent_id": fake.agent_id}).json
    retrieved = ask(fake, "GET", f"/api/sessions/{created['id']}").json
    listed = ask(fake, "GET", "/api/sessions").json["data"]
    assert retrieved == created
    assert listed == [{**created, "title": None}]


def test_newer_server_rejects_an_existing_session_id() -> None:
    fake = FakeTransport(newer_server=True)
    with Flux0(transport=fake) as flux0:
        flux0.sessions.create(agent_id=fake.agent_id, id="my-session")
        with pytest.raises(ConflictError, match="Session with ID my-session already exists"):
            flux0.sessions.create(agent_id=fake.agent_id, id="my-session", title="Second")
        (session,) = flux0.sessions.list()
    assert (session.title, session.metadata, session.mode) == (None, None, "auto")


def test_newer_server_creates_a_recording_for_each_session_in_the_mode_record() -> None:
    fake = FakeTransport(newer_server=True)
    with Flux0(transport=fake) as flux0:
        first, second = (
            flux0.sessions.create(agent_id=fake.agent_id, mode="record", metadata=metadata)
            for metadata in (None, {"theme": "dark"})
        )
        replayed = flux0.sessions.create(agent_id=fake.agent_id, mode="replay")
    assert (replayed.mode, replayed.metadata) == ("replay", None)
    assert first.metadata == {"recording": {"recording_id": "r000000001"}}
    assert second.metadata == {"theme": "dark", "recording": {"recording_id": "r000000002"}}


def test_newer_server_checks_metadata_and_mode() -> None:
    fake = FakeTransport(newer_server=True)
    body = {"agent_id": fake.agent_id, "metadata": [1], "mode": 2}
    response = ask(fake, "POST", "/api/sessions", body)
    assert (response.status_code, response.detail) == (
        422,
        of(wrong("dict_type", "body.metadata", [1]), wrong("string_type", "body.mode", 2)),
    )


def test_newer_server_sends_the_time_of_each_status() -> None:
    fake = FakeTransport([Report("typing"), Pause(5), Report("typing")], newer_server=True)
    with Flux0(transport=fake) as flux0:
        first, second = flux0.conversation(agent=fake.agent_id).send("Hi")
    assert isinstance(first, StatusEvent)
    assert isinstance(second, StatusEvent)
    assert first.timestamp is not None
    assert second.timestamp == first.timestamp + 5


def test_fake_with_tokens_requires_one_of_them_and_takes_the_user_from_it() -> None:
    tokens: dict[str, str] = {}
    fake = FakeTransport(tokens=tokens)
    tokens["of-ann"] = "ann"

    def status(method: str, path: str, authorization: str, body: Any = None) -> int:
        headers = {**JSON, "cookie": "flux0_user_sub=ann", "authorization": authorization}
        return ask(fake, method, path, body, headers).status_code

    assert ask(fake, "GET", "/api/agents").status_code == 401
    for authorization in ("", "of-ann", "Basic of-ann", "Bearer", "Bearer of-bob", "Bearer ann"):
        assert status("GET", f"/api/agents/{fake.agent_id}", authorization) == 401
    for path in ("/api/agents", "/api/sessions", "/api/sessions/0123456789/events/stream"):
        assert status("POST", path, "Bearer of-bob", {"wrong": 1}) == 401
        assert status("POST", path, "bearer of-ann", {"wrong": 1}) == 422
    assert status("GET", "/nope", "") == 404

    with Flux0(transport=fake, headers={"authorization": "Bearer of-ann"}) as flux0:
        session = flux0.sessions.create(agent_id=fake.agent_id, user="bob", metadata={"a": 1})
        assert flux0.sessions.list(user="eve").data == (session,)
        tokens["also-of-ann"] = "ann"
        other = {"authorization": "Bearer also-of-ann"}
        assert flux0.sessions.list(http_headers=other).data == (session,)
        fake.reset()
        assert flux0.sessions.list().data == ()
        del tokens["of-ann"]
        with pytest.raises(AuthenticationError, match="401: Invalid token"):
            flux0.sessions.list()


def test_list_sessions_filters_by_user_and_agent() -> None:
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


def test_unknown_ids_get_error_responses() -> None:
    with Flux0(transport=FakeTransport()) as flux0:
        with pytest.raises(NotFoundError, match=f"Agent with ID {UNKNOWN} not found"):
            flux0.agents.retrieve(agent_id=UNKNOWN)
        with pytest.raises(BadRequestError, match=f"Agent with ID {UNKNOWN} not found"):
            flux0.sessions.create(agent_id=UNKNOWN)
        with pytest.raises(NotFoundError, match=f"Session with ID {UNKNOWN} not found"):
            flux0.sessions.retrieve(session_id=UNKNOWN)
        with pytest.raises(BadRequestError, match=f"non-existent session with ID {UNKNOWN}"):
            flux0.sessions.list_events(session_id=UNKNOWN)
        with pytest.raises(BadRequestError, match=f"Session with ID {UNKNOWN} not found"):
            flux0.sessions.create_event(session_id=UNKNOWN, content="Hi")
        with pytest.raises(HTTPValidationError) as caught:
            flux0.agents.retrieve(agent_id="short")
        (short,) = caught.value.data.detail
        assert (short.loc, short.ctx) == (("path", "agent_id"), {"min_length": 10})


# --- events


def test_user_message_is_stored_at_once() -> None:
    """The user is the user of the session, even if the message has another cookie."""
    fake = FakeTransport([Pause(1)])
    cookie = {**JSON, "cookie": "flux0_user_sub=ann"}
    created = ask(fake, "POST", "/api/sessions", {"agent_id": fake.agent_id}, cookie)
    session_id = created.json["id"]
    response = fake.send(message_to(session_id, "What is up?"))
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["transfer-encoding"] == "chunked"
    data = {
        "type": "message",
        "tags": [],
        "flagged": False,
        "parts": [{"type": "content", "content": "What is up?"}],
        "participant": {"id": "u000000001", "name": "Anonymous"},
    }
    event = {
        "id": "e000000001",
        "correlation_id": "RID(r000000001)::t000000001",
        "type": "message",
        "source": "user",
        "offset": 0,
        "data": data,
        "deleted": False,
        "metadata": None,
        "created_at": "2026-01-01T00:00:00.000002Z",
    }
    assert ask(fake, "GET", f"/api/sessions/{session_id}/events").json == {"data": [event]}
    response.body.close()


@pytest.mark.parametrize(
    ("query", "types", "offsets"),
    [
        ("", None, range(8)),
        ("?min_offset=6", None, [6, 7]),
        ("?min_offset=%20%2B0_6.00%20", None, [6, 7]),
        (f"?min_offset={'0' * 4301}6", None, [6, 7]),
        ("?min_offset=-1", None, range(8)),
        ("?min_offset=-6", None, range(8)),
        ("?source=user", None, [0, 6]),
        ("?source=ai_agent&source=system", None, []),
        ("?correlation_id=RID(r000000002)::t000000002", None, [6, 7]),
        ("?correlation_id=x", None, []),
        ("", ["status", "tool"], [1, 3, 4]),
        ("", [], range(8)),
        ("", b"null", range(8)),
        ("?types=tool", ["message"], [0, 2, 5, 6, 7]),
        ("?min_offset=1&source=ai_agent", ["message"], [2, 5, 7]),
    ],
)
def test_list_events_filters(query: str, types: Any, offsets: Any) -> None:
    call = CallTool("get_weather", {"location": "San Francisco"})
    fake = FakeTransport("B")
    fake.script([Report("processing"), call, GiveResult(call, 1), Report("typing"), Say("A")])
    session_id = new_session(fake)
    for _ in range(2):
        list(Pieces(fake.send(message_to(session_id)).body))
    response = ask(fake, "GET", f"/api/sessions/{session_id}/events{query}", types)
    assert [event["offset"] for event in response.json["data"]] == list(offsets)


def test_last_of_repeated_cookies_is_used() -> None:
    fake = FakeTransport()
    users: list[str] = []
    for cookies in (
        ["flux0_user_sub=alice"],
        ["flux0_user_sub=bob; flux0_user_sub=alice"],
        ["flux0_user_sub=bob", "flux0_user_sub=alice"],
        ["flux0_user_sub=alice", "flux0_user_sub=bob"],
    ):
        fields = [("content-type", "application/json"), *(("cookie", each) for each in cookies)]
        body = json.dumps({"agent_id": fake.agent_id}).encode()
        response = fake.send(Request("POST", f"{URL}/api/sessions", Headers((*fields,)), body))
        users.append(json.loads(b"".join(Pieces(response.body)))["user_id"])
    assert users == [users[0]] * 3 + [users[3]]
    assert users[3] != users[0]
    assert fake.calls[-1].user == "bob"


@pytest.mark.parametrize("name", ["\ud800", "x\udfff"])
def test_agent_with_a_lone_surrogate_in_its_name_is_not_created(name: str) -> None:
    fake = FakeTransport()
    assert ask(fake, "POST", "/api/agents", {"name": name, "type": "fake"}).status_code == 500
    assert len(ask(fake, "GET", "/api/agents").json["data"]) == 1


def test_stream_of_a_complete_turn_can_be_closed_while_the_next_turn_runs() -> None:
    fake = FakeTransport([Say("b"), Pause(1), Say("c")])
    fake.script("a")
    session_id = new_session(fake)
    first, second = (fake.send(message_to(session_id)).body for _ in range(2))
    first.close()
    assert len(list(Pieces(second))) == 2


@pytest.mark.parametrize("flag", ["TRUE", "Off", "1", "n"])
def test_flags_may_have_any_case(flag: str) -> None:
    fake = FakeTransport()
    body = {"agent_id": fake.agent_id}
    assert ask(fake, "POST", f"/api/sessions?allow_greeting={flag}", body).status_code == 201


# --- rejected requests


def of(*problems: dict[str, Any]) -> list[dict[str, Any]]:
    return list(problems)


def message(**change: Any) -> dict[str, Any]:
    return {"type": "message", "source": "user", "content": "Hi", **change}


N101, T201 = "n" * 101, "t" * 201
NO_CONTENT = "Missing 'message' field in event parameters"
REJECTED: list[tuple[str, Any, Any]] = [
    ("agents", {"name": "N", "type": "nope"}, "Agent type 'nope' is not supported"),
    ("agents", {"name": "", "type": "fake"},
     of(wrong("string_too_short", "body.name", "", min_length=1))),
    ("agents", {"name": N101, "type": "fake"},
     of(wrong("string_too_long", "body.name", N101, max_length=100))),
    ("agents", {"name": 5, "type": None, "description": []},
     of(wrong("string_type", "body.name", 5), wrong("string_type", "body.type", None),
        wrong("string_type", "body.description", []))),
    ("agents", {"x": 1},
     of(wrong("missing", "body.name", {"x": 1}), wrong("missing", "body.type", {"x": 1}),
        wrong("extra_forbidden", "body.x", 1))),
    ("agents", None, of(wrong("missing", "body", None))),
    ("agents", b"[1]", of(wrong("model_attributes_type", "body", [1]))),
    ("agents", b"null", of(wrong("model_attributes_type", "body", None))),
    ("agents", b'{"a" 1}', of(NO_JSON)),
    ("sessions", {"agent_id": "a", "id": "s"},
     of(wrong("string_too_short", "body.agent_id", "a", min_length=10),
        wrong("string_too_short", "body.id", "s", min_length=10))),
    ("sessions", {"agent_id": UNKNOWN, "title": T201},
     of(wrong("string_too_long", "body.title", T201, max_length=200))),
    ("sessions", {"agent_id": UNKNOWN, "metadata": {}, "mode": "record"},
     of(wrong("extra_forbidden", "body.metadata", {}),
        wrong("extra_forbidden", "body.mode", "record"))),
    ("sessions?allow_greeting=maybe", {},
     of(wrong("bool_parsing", "query.allow_greeting", "maybe"),
        wrong("missing", "body.agent_id", {}))),
    (f"events?min_offset={MANY}", None, of(wrong("int_parsing_size", "query.min_offset", MANY))),
    ("events?min_offset=1.5&source=USER", b'["message", "x", null]',
     of(wrong("int_parsing", "query.min_offset", "1.5"),
        wrong("enum", "query.source", "USER", expected=SOURCES),
        wrong("enum", "body.1", "x", expected=TYPES),
        wrong("enum", "body.2", None, expected=TYPES))),
    ("events?min_offset=", None, of(wrong("int_parsing", "query.min_offset", ""))),
    ("events", b"{}", of(wrong("list_type", "body", {}))),
    ("events/stream", message(type="status"),
     "Only message events can currently be added manually"),
    ("events/stream", message(source="system"),
     'Only "user" source is supported for direct posting.'),
    ("events/stream", message(content=""), NO_CONTENT),
    ("events/stream", message(content=None), NO_CONTENT),
    ("events/stream", message(content=5), of(wrong("string_type", "body.content", 5))),
    ("events/stream", message(type="x", source=[]),
     of(wrong("enum", "body.type", "x", expected=TYPES),
        wrong("enum", "body.source", [], expected=SOURCES))),
]  # fmt: skip


@pytest.mark.parametrize(("place", "body", "detail"), REJECTED)
def test_invalid_requests_get_the_errors_of_the_server(place: str, body: Any, detail: Any) -> None:
    fake = FakeTransport()
    path = f"/api/sessions/{new_session(fake)}/{place}" if "events" in place else f"/api/{place}"
    listed = "events" in place and "stream" not in place
    response = ask(fake, "GET" if listed else "POST", path, body)
    assert (response.status_code, response.detail) == (422, detail)
    assert dict(response.headers) == {
        "date": "Thu, 01 Jan 2026 00:00:00 GMT",
        "server": "uvicorn",
        "content-length": str(len(response.body)),
        "content-type": "application/json",
    }
    assert len(ask(fake, "GET", "/api/agents").json["data"]) == 1


@pytest.mark.parametrize(
    ("body", "kind", "status", "detail"),
    [
        (b"", "", 422, of(wrong("missing", "body", None))),
        (b"{}", "", 422, of(wrong("model_attributes_type", "body", "{}"))),
        (b'{"a" 1}', "Application/Problem+JSON; a=b", 422, of(NO_JSON)),
        (b"[" * 100_000, JSON["content-type"], 400, "There was an error parsing the body"),
        (b'{"name": "\xff"}', JSON["content-type"], 400, "There was an error parsing the body"),
        (b"NaN", JSON["content-type"], 500, None),
        (b"\xff", "text/plain", 500, None),
        (SURROGATE, JSON["content-type"], 500, None),
    ],
)
def test_body_is_parsed_by_content_type(body: bytes, kind: str, status: int, detail: Any) -> None:
    response = ask(FakeTransport(), "POST", "/api/agents", body, {"content-type": kind})
    assert response.status_code == status
    if detail is None:
        assert response.body == b"Internal Server Error"
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
    else:
        assert response.detail == detail
