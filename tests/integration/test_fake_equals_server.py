"""The fake and the real server return the same responses, except for ids and times."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings, strategies as st

from flux0 import HttpxTransport
from flux0.testing import (
    AgentStep,
    CallTool,
    Fail,
    FallSilent,
    GiveResult,
    Pause,
    Reason,
    Report,
    Say,
    SendChunk,
)
from support.fake_comparison import (
    EVENTS,
    JSON,
    STREAM,
    ComparedResponse,
    ComparedServer,
    RequestSpec,
    get,
    post,
)
from support.fake_scripts import scripted_fake
from support.server import Flux0Server

ROOT = Path(__file__).parents[1]
Servers = tuple[ComparedServer, ComparedServer]


@pytest.fixture(scope="module")
def servers(server_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The real server and the fake. Both receive the same requests in all tests."""
    with Flux0Server(server_python, tmp_path_factory.mktemp("truth")) as server:
        # The server closes idle connections, possibly just when one is reused.
        client = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0))
        transport = HttpxTransport(client)
        fake = scripted_fake(server.agent_id)
        yield (
            ComparedServer(transport, server.url, server.agent_id),
            ComparedServer(fake, "http://fake", fake.agent_id),
        )
        client.close()
        fake.assert_no_open_streams()


def same(servers: Servers, scenario: Callable[[ComparedServer], Any]) -> Any:
    """Run `scenario` on both servers in a new session; return the result, which must be equal."""
    for server in servers:
        server.new_session()
    real, fake = servers
    result = scenario(fake)
    real.use_timeout_after(fake)
    assert result == scenario(real)
    return result


def send_all(servers: Servers, specs: Iterable[RequestSpec]) -> set[int]:
    """Send all requests to both servers, and return the response statuses."""
    responses: list[ComparedResponse] = [
        same(servers, partial(ComparedServer.ask, spec=spec)) for spec in specs
    ]
    return {response.status_code for response in responses}


MESSAGE = {"type": "message", "source": "user", "content": "[]"}


def test_routes(servers: Servers) -> None:
    paths = ["/api/agents", "/api/agents/AGENT", "/api/sessions", "/api/sessions/SESSION"]
    paths += [EVENTS, STREAM]
    wrong = ["/nope", "/api", "/api/", "/api/nope/", "//api/agents", "/api//agents"]
    wrong += ["/api/agents/a%2Fb4567890", f"{EVENTS}//", "/api/agents%0A%0A", "/api/agents%0D"]
    slashes = [f"{path}/{query}" for path in paths for query in ("", "?a=b%20c&d")]
    specs = [RequestSpec(method, path) for path in paths for method in ("PUT", "OPTIONS", "HEAD")]
    specs += [get(path) for path in (*wrong, *slashes)]
    specs += [post(path, {"x": 1}) for path in (STREAM.removesuffix("/stream"), *slashes)]
    assert send_all(servers, specs) == {307, 404, 405}


def test_line_break_after_the_path(servers: Servers) -> None:
    paths = ["/api/agents%0A", "/api/sessions%0A", f"{EVENTS}%0A", "/api/agents/AGENT%0A"]
    specs = [get(path) for path in (*paths, "/api/agents/0123456789%0A", "/api/agents/%0A")]
    specs += [post("/api/agents%0A", {}), post(f"{STREAM}%0A", MESSAGE), get("/api/agents/%0A")]
    assert send_all(servers, [*specs, get("/api/agents%0A/"), RequestSpec("PUT", paths[0])])


def test_two_content_types(servers: Servers) -> None:
    kinds = ["application/json", "text/plain", ""]
    pairs = [(("content-type", one), ("Content-Type", two)) for one in kinds for two in kinds]
    specs = [RequestSpec("POST", "/api/agents", b"{}", headers) for headers in pairs]
    assert send_all(servers, specs) == {422}


def test_ids_in_paths(servers: Servers) -> None:
    ids = ["nobodyhere", "short", "waytoolong1234", "%C3%A934567890", "a%20b", "%FF234567890"]
    paths = ["/api/agents/{}", "/api/sessions/{}", "/api/sessions/{}/events"]
    specs = [get(path.format(one)) for path in paths for one in ids]
    specs += [post(f"/api/sessions/{one}/events/stream", MESSAGE) for one in ids]
    specs += [
        post("/api/sessions/short/events/stream", {"type": "x", "source": "y"}),
        get("/api/sessions/short/events?min_offset=x&source=y", ["z"]),
        get("/api/sessions/short/events", b"{"),
    ]
    assert send_all(servers, specs) == {400, 404, 422}


@pytest.mark.parametrize("path", ["/api/agents", "/api/sessions", STREAM])
def test_unusual_bodies(servers: Servers, path: str) -> None:
    bodies = [None, b"", b"   ", b"{", b"{'a': 1}", b"[1, 2", b"nul", b'"abc', b'{"a" 1}']
    bodies += [b"{} trailing", b"\xff\xfe", b'{"name": "\xff"}', b"null", b"1", b"1.5", b'"text"']
    bodies += [b"true", b"[]", b"[1]", b"{}", b"NaN", b'{"name": NaN}', b"[" * 100_000]
    bodies += [b'{"x": {"y": [1, null, "z"]}}']
    assert send_all(servers, [post(path, body) for body in bodies]) == {400, 422, 500}


KINDS = (
    *(None, "text/plain", "application/x-www-form-urlencoded", "application/vnd.api+json"),
    *("application/json; charset=latin-1", "APPLICATION/JSON", "application/jsonx", "json"),
    *("application/", "text/json", "application/problem+JSON; a=b"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_content_types(servers: Servers, kind: str | None) -> None:
    specs = [
        RequestSpec(method, path, body, {} if kind is None else {"content-type": kind})
        for method, path in (("POST", "/api/agents"), ("GET", EVENTS))
        for body in (b"{}", b"[]", "é".encode(), b"\xff", b"")
    ]
    assert {200, 422} < send_all(servers, specs)


def test_agents(servers: Servers) -> None:
    names = ["", "n" * 100, "n" * 101, "é😀" * 50, 5, None, True, ["a"], "\ud800", "it's"]
    new = {"name": "N", "type": "scripted"}
    changes = [{member: name} for member in new for name in names]
    changes += [{"description": description} for description in ("", "d" * 1000, None, 5)]
    changes += [{"x": 1, "y": [1]}]
    specs = [post("/api/agents", {**new, **change}) for change in changes]
    specs += [
        post("/api/agents", {"x": 1, "name": ""}),
        post("/api/agents", b'{"name": "a", "name": "b", "type": "scripted"}'),
        get("/api/agents"),
        get("/api/agents/AGENT"),
    ]
    assert send_all(servers, specs) == {200, 201, 422, 500}


def test_sessions(servers: Servers) -> None:
    values = ["0123456789", "short", "waytoolong1234", "", 5, None, "t" * 201, "\ud800"]
    new = {"agent_id": "AGENT"}
    flags = ["true", "false", "1", "0", "yes", "no", "on", "off", "y", "n", "t", "f", "TRUE"]
    flags += ["maybe", "2", "%20true", "", "x&allow_greeting=1&y=z"]
    specs = [
        post("/api/sessions", {**new, member: value})
        for member in ("agent_id", "id", "title")
        for value in values
    ]
    specs += [post(f"/api/sessions?allow_greeting={flag}", new) for flag in flags]
    specs += [
        post("/api/sessions?allow_greeting=x", {"agent_id": "short", "z": 1}),
        post("/api/sessions", {**new, "metadata": {"a": 1}, "mode": "record"}),
        get("/api/sessions/SESSION"),
        get("/api/sessions/unknown-id"),
    ]
    assert send_all(servers, specs) == {200, 201, 400, 404, 422, 500}


def test_two_sessions_with_the_same_id(servers: Servers) -> None:
    body = {"agent_id": "AGENT", "id": "twins-1234"}

    def scenario(server: ComparedServer) -> list[ComparedResponse]:
        cookie = "flux0_user_sub=twins"
        return [
            server.ask(spec)
            for spec in (
                post("/api/sessions", body, cookie=cookie),
                post("/api/sessions", {**body, "title": "second"}, cookie=cookie),
                get("/api/sessions", cookie=cookie),
                get("/api/sessions/twins-1234"),
            )
        ]

    *_, listed, retrieved = same(servers, scenario)
    assert [session["title"] for session in listed.data] == [None, "second"]
    assert "title" not in json.loads(retrieved.body)


COOKIES = (
    *("flux0_user_sub=alice", "flux0_user_sub=alice; a=b", "a=b;flux0_user_sub=bob"),
    *("flux0_user_sub=", 'flux0_user_sub="alice"', "flux0_user_sub", "FLUX0_USER_SUB=alice"),
    *("flux0_user_sub=alice; flux0_user_sub=bob", "flux0_user_sub= alice ;a=b", "=alice"),
    *("flux0_user_sub=a%20b", 'flux0_user_sub="a\\"b"', "flux0_user_sub=a=b"),
)


@pytest.mark.parametrize("cookie", COOKIES)
def test_users(servers: Servers, cookie: str) -> None:
    queries = ["", "?agent_id=AGENT", "?agent_id=x", "?agent_id=", "?agent_id=x&agent_id=AGENT"]

    def scenario(server: ComparedServer) -> list[list[str]]:
        server.ask(post("/api/sessions", {"agent_id": "AGENT", "title": cookie}, cookie=cookie))
        responses = [server.ask(get(f"/api/sessions{query}", cookie=cookie)) for query in queries]
        return [[session["title"] for session in response.data] for response in responses]

    everything, *_ = same(servers, scenario)
    assert everything[-1] == cookie


def test_repeated_cookies(servers: Servers) -> None:
    def scenario(server: ComparedServer) -> list[int]:
        counts: list[int] = []
        for users in (("x-1", "x-2"), ("x-2", "x-1"), ("x-1", "x-1")):
            fields = (*JSON.items(), *(("cookie", f"flux0_user_sub={user}") for user in users))
            server.ask(RequestSpec("POST", "/api/sessions", {"agent_id": "AGENT"}, fields))
            listed = server.ask(RequestSpec("GET", "/api/sessions", None, fields))
            counts.append(len(listed.data))
        return counts

    assert same(servers, scenario) == [1, 1, 2]


def test_rejected_messages(servers: Servers) -> None:
    changes: list[dict[str, Any]] = [{"content": content} for content in ("", None, 5)]
    changes += [{"type": kind} for kind in ("status", "custom", "x", None, 1)]
    changes += [{"source": source} for source in ("ai_agent", "system", "x")]
    changes += [{"source": []}, {"source": "system", "content": ""}, {"x": 5}]
    changes += [{"type": "tool", "source": "system", "content": ""}]
    unknown = "/api/sessions/unknown-id/events/stream"
    specs = [post(path, {**MESSAGE, **change}) for path in (STREAM, unknown) for change in changes]
    specs += [post(STREAM, {"type": "message", "source": "user"}), post(unknown, MESSAGE)]
    assert send_all(servers, specs) == {400, 422}


CALL = CallTool("get_weather", {"location": "San Francisco"}, id="c1")
TURN: list[AgentStep] = [
    Report("processing", {"detail": "x"}),
    Reason("Let me see.", pieces=3),
    CALL,
    GiveResult(CALL, {"celsius": 16}),
    Report("typing", event_id="e-typing", acknowledged_offset=0),
    Pause(0.001),
    Say("It is 16 °C. 😀", pieces=5),
    Fail({"exception": "x"}),
    Fail("text"),
    Fail(),
]


def test_filter_events(servers: Servers) -> None:
    offsets = ["-1", "0", "3", "8", "99", "1.0", "%201_0.00%20", "%2B2", "x", "", "1.5", "1.", ".0"]
    offsets += ["1__0", "- 1", "%2B", "-", "%2B-1", "_1", "1_", "0_0", "00", "-0", "%20"]
    offsets += ["9" * 4301, "0" + "9" * 4301, "0" * 4301, "1." + "0" * 4300, "1_" * 2200 + "1"]
    offsets += [f"{sign}{'9' * size}" for sign in ("", "%2B", "-") for size in (19, 4299, 4300)]
    sources = ["user", "ai_agent", "system", "custom", "USER", "", "ai_agent&source=x", "%FF"]
    queries = [f"min_offset={offset}" for offset in offsets]
    queries += [f"source={source}" for source in sources]
    queries += ["min_offset=2&source=ai_agent", "min_offset=x&source=y", "min_offset", "=x&a&b=1&&"]
    queries += ["min_offset=1&min_offset=x", "correlation_id=", "correlation_id=x"]
    queries += ["types=message", "types=bogus", "sour%63e=user"]
    lists: list[Any] = [
        *(["message"], ["tool", "status"], ["custom"], [], ["x"], ["message", "x", 1, None]),
        *([["message"]], [True], [{"a": 1}], "message", {"types": ["message"]}, 1),
        *(b"null", b"  ", b"{", b"[NaN]", b'["\xff"]'),
    ]

    def scenario(server: ComparedServer) -> list[ComparedResponse]:
        server.read(server.begin(*TURN))
        specs = [
            *(get(f"{EVENTS}?{query}") for query in queries),
            *(get(EVENTS, types) for types in lists),
            get(f"{EVENTS}?min_offset=3&source=ai_agent", ["message"]),
        ]
        return list(map(server.ask, specs))

    responses = same(servers, scenario)
    assert {response.status_code for response in responses} == {200, 400, 422, 500}
    assert [event["offset"] for event in responses[-1].data] == [3, 6]


def test_filter_events_by_correlation_id(servers: Servers) -> None:
    def scenario(server: ComparedServer) -> list[ComparedResponse]:
        return [
            server.read(server.begin(Say("a"), Report("typing"))),
            server.read(server.begin(Say("b"))),
            everything := server.events(),
            *(
                server.ask(get(f"{EVENTS}?correlation_id={event['correlation_id']}"))
                for event in everything.data
            ),
        ]

    _, _, everything, *turns = same(servers, scenario)
    assert [len(turn.data) for turn in turns] == [3, 3, 3, 2, 2]
    assert turns[-1].data == everything.data[3:]


def test_bytes_of_a_turn(servers: Servers) -> None:
    stream, events = same(servers, lambda w: (w.read(w.begin(*TURN)), w.events()))
    assert stream.status_code == 200
    assert stream.body.count("\n\n") == 17
    assert len(events.data) == 10


def test_order_of_the_members_of_a_status(servers: Servers) -> None:
    """The server streams a status in the agent's order. Lists always have the same order."""
    report = Report("typing", [1], acknowledged_offset=0)
    stream, events = same(
        servers, lambda server: (server.read(server.begin(report)), server.events())
    )
    usual = '"type":"status","status":"typing","acknowledged_offset":0,"data":[1]'
    assert usual in stream.body.replace('": ', '":').replace(', "', ',"')
    assert usual in events.body
    real, _ = servers
    step = {"status": "typing", "data": [1], "acknowledged_offset": 0}
    assert '"data": [1], "acknowledged_offset": 0}' in real.read(real.begin_script([step])).body
    assert real.events().body.count(usual) == 2


# --- unusual turns


def raw(*patches: dict[str, Any], **rest: Any) -> SendChunk:
    return SendChunk(rest.pop("event_id", "e"), patches, **rest)


def add(path: str, value: Any) -> dict[str, Any]:
    return {"op": "add", "path": path, "value": value}


READY = Report("ready", event_id="e")
NAMES: dict[str, Any] = {"tool_call_id": "c", "tool_name": "n", "args": {}}
TOOL_CALL = {**NAMES, "type": "tool_call"}
TOOL_RESULT = {**NAMES, "data": {"result": 1}}


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [Report("bogus")],
        [Report("typing", float("nan"))],
        [Fail([float("inf"), {"a": float("-inf")}])],
        [Fail("\ud800")],
        [Say("\ud800")],
        [Say("before"), Report("completed"), Say("after")],
        [Report("completed")],
        [raw(add("/-", "x")), Report("completed"), READY, Report("typing"), Say("y")],
        [Report("typing", [-0.0001, 1e15, 1e16, 1e22, 1.5e300, 5e-324, "1e-09"])],
        [Report("typing", {"1e+20": 1e20, 'a"e-09': [True, False, None, 100000000000000000000]})],
        [Report("ready", event_id="unknown"), Say("after")],
        [raw(add("/-", "x"))],
        [raw(add("/-", "x")), READY, READY, raw(add("/-", "y")), READY],
        [raw(add("/a", "x"), seq=5), READY],
        [raw(add("/a", 1)), raw(add("/b", 2), seq=2), raw(add("/c", 3), seq=1), READY],
        [
            raw(add("/a", 1), seq=5, metadata={"first": 1}),
            raw(add("/b", 2), metadata={"second": 2}),
            READY,
        ],
        [raw(add("/-", "x"), {"op": "remove", "path": "/9"}), raw(add("/-", "y"), seq=1), READY],
        [raw(add("/-", "x"), {"op": "frob", "path": "/9"}), raw(add("/-", "y"), seq=1), READY],
        [raw(add("/-", "x"), add("9", 1)), raw(add("/-", "y"), seq=1), READY],
        [
            raw(add("/a", "x"), {"op": "remove", "path": "/zz"}),
            raw(add("/b", "y")),
            raw(add("/c", "z"), seq=1),
            READY,
        ],
        [raw(add("/a", "x"), {"op": "move", "path": "/b", "from": "/a"}), READY],
        [raw({**add("/-", "x"), "more": 1}), READY],
        [raw(add("", 5)), READY],
        [raw(add("/-", "x"), metadata={"agent_name": None}), READY],
        [raw(add("/-", "x"), metadata={"agent_id": None, "mood": float("nan")}), READY],
        [raw(add("/-", "x"), metadata={"agent_name": 5, "agent_id": 6}), READY],
        [raw(add("/-", "x"), metadata={"mood": "\ud800"}), READY],
        [raw(add("/tool_calls", [TOOL_CALL])), READY],
        [raw(add("/tool_calls", [])), READY],
        [raw(add("/tool_calls", [{**TOOL_CALL, "tool_call_id": 5}])), READY],
        [raw(add("/tool_calls", [{**TOOL_CALL, "tool_name": None}])), READY],
        [raw(add("/tool_calls", [{**TOOL_CALL, "type": "x"}])), READY],
        [raw(add("/tool_calls", [{**TOOL_CALL, "type": ["content"]}])), READY],
        [raw(add("/tool_calls", [{**TOOL_CALL, "args": ["nu", "ll"]}])), READY],
        [raw(add("/tool_call_results", [TOOL_RESULT])), READY],
        [raw(add("/tool_call_results", [])), READY],
        [raw(add("/tool_call_results", [{**TOOL_RESULT, "args": []}])), READY],
        [raw(add("/tool_call_results", [{**TOOL_RESULT, "tool_call_id": 5}])), READY],
        [raw(add("/tool_call_results", [{**TOOL_RESULT, "data": {}}])), READY],
        [raw(add("/tool_call_results", [{**TOOL_RESULT, "data": "x"}])), READY],
        [Say("before"), FallSilent()],
        [raw(add("/-", "x"), event_id="a\nb"), Report("typing", event_id="a\nb")],
        [raw(add("/-", "x"), event_id=""), Report("ready"), Say("after")],
        [Say("before"), Report("typing", event_id="\ud800"), Report("typing"), Say("after")],
    ],
    ids=str,
)
def test_unusual_turns(servers: Servers, steps: list[AgentStep]) -> None:
    compare_turn(servers, steps)


def compare_turn(servers: Servers, steps: list[AgentStep]) -> None:
    """Run a turn on both servers; compare the streams and the stored events."""
    # Both servers keep unfinished messages across turns, so each turn needs its own event ids.
    turn = next(_turns)
    own = [
        evolve(step, event_id=f"{step.event_id}-{turn}")
        if isinstance(step, (SendChunk, Report)) and step.event_id
        else step
        for step in steps
    ]
    same(servers, lambda server: (server.read(server.begin(*own)), server.events()))


_turns = count()

_texts = st.text(st.characters(codec="utf-8"), max_size=8)
_numbers = st.integers(-9, 9) | st.sampled_from([1.5, float("nan"), float("inf")])
_json = st.recursive(
    st.none() | st.booleans() | _numbers | _texts,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(_texts, children, max_size=3),
    max_leaves=4,
)
_paths = st.sampled_from(
    ["", "/", "/-", "/0", "/1", "/-1", "/a", "/a/-", "/a/0", "/a/b", "/a/2/b", "/a~1b", "x", "/a//"]
)
_event_ids = st.sampled_from(["e", "f"])
_patches = st.one_of(
    st.builds(partial(add, "/-"), _texts),
    st.fixed_dictionaries(
        {"op": st.sampled_from(["add", "replace", "test"]), "path": _paths, "value": _json}
    ),
    st.fixed_dictionaries({"op": st.just("remove"), "path": _paths}),
    st.fixed_dictionaries(
        {"op": st.sampled_from(["move", "copy"]), "path": _paths, "from": _paths}
    ),
)
_metadata = st.sampled_from(
    [{}, {}, {"kind": "reasoning"}, {"kind": "x", "mood": [1]}, {"agent_name": None}]
)
_calls = st.builds(CallTool, _texts, st.dictionaries(_texts, _json, max_size=2), _texts)
_steps = st.one_of(
    st.builds(SendChunk, _event_ids, st.lists(_patches, max_size=3), st.integers(0, 3), _metadata),
    st.builds(partial(Report, "ready"), event_id=_event_ids),
    st.builds(Report, st.sampled_from(["typing", "processing", "cancelled"]), _json, _event_ids),
    st.builds(Say, _texts.filter(bool)),
    st.builds(Say, st.text("aé😀", min_size=4, max_size=9), st.integers(1, 4)),
    st.builds(Reason, _texts.filter(bool)),
    _calls,
    st.builds(GiveResult, _calls, _json),
    st.builds(Fail, _json),
)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(_steps, max_size=8))
def test_any_turn(servers: Servers, steps: list[AgentStep]) -> None:
    compare_turn(servers, steps)


def test_langchain_adapter_equals_the_record(server_python: str) -> None:
    """The unit tests compare the fake's `LangChain` step with the same record."""
    script = ROOT / "support" / "langchain_adapter.py"
    ran = subprocess.run([server_python, script], capture_output=True, text=True, check=False)
    recorded = (ROOT / "data" / "langchain_turn.json").read_text("utf-8")
    assert ran.stdout == recorded, ran.stderr


def test_sessions_are_independent(servers: Servers) -> None:
    def scenario(server: ComparedServer) -> tuple[Any, ...]:
        first = server.begin(Report("processing"), Pause(0.1), Say("Hello"))
        server.read_next(first)
        server.new_session()
        return server.read(server.begin(Say("Bye"))), server.read(first)

    second, first = same(servers, scenario)
    assert (second.timed_out, first.timed_out) == (False, False)
