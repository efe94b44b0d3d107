"""The fake and the real server are asked the same, and say the same: ids and times aside."""

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
from support.fake_scripts import scripted_fake
from support.fake_witness import EVENTS, STREAM, ComparedAnswer, Question, Witness, get, post
from support.server import Flux0Server

ROOT = Path(__file__).parents[1]
Servers = tuple[Witness, Witness]


@pytest.fixture(scope="module")
def servers(server_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The real server and the fake, to which the same happens throughout."""
    with Flux0Server(server_python, tmp_path_factory.mktemp("truth")) as server:
        # The server closes a connection that rests, maybe just when a slow machine uses it again.
        client = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0))
        transport = HttpxTransport(client)
        fake = scripted_fake(server.agent_id)
        yield (
            Witness(transport, server.url, server.agent_id),
            Witness(fake, "http://fake", fake.agent_id),
        )
        client.close()
        fake.assert_no_open_streams()


def same(servers: Servers, scenario: Callable[[Witness], Any]) -> Any:
    """Have both go through `scenario` in a session of their own, and return what both come to."""
    for witness in servers:
        witness.new_session()
    real, fake = servers
    said = scenario(fake)
    real.be_patient_if_not_silent(fake)
    assert said == scenario(real)
    return said


def ask_all(servers: Servers, questions: Iterable[Question]) -> set[int]:
    """Ask both all `questions`, and return the statuses that they answer with."""
    answers: list[ComparedAnswer] = [
        same(servers, partial(Witness.ask, question=question)) for question in questions
    ]
    return {answer.status_code for answer in answers}


MESSAGE = {"type": "message", "source": "user", "content": "[]"}


def test_routes(servers: Servers) -> None:
    paths = ["/api/agents", "/api/agents/AGENT", "/api/sessions", "/api/sessions/SESSION"]
    paths += [EVENTS, STREAM]
    wrong = ["/nope", "/api", "/api/", "/api/nope/", "//api/agents", "/api//agents"]
    wrong += ["/api/agents/a%2Fb4567890", f"{EVENTS}//", "/api/agents%0A%0A", "/api/agents%0D"]
    slashes = [f"{path}/{query}" for path in paths for query in ("", "?a=b%20c&d")]
    questions = [Question(method, path) for path in paths for method in ("PUT", "OPTIONS", "HEAD")]
    questions += [get(path) for path in (*wrong, *slashes)]
    questions += [post(path, {"x": 1}) for path in (STREAM.removesuffix("/stream"), *slashes)]
    assert ask_all(servers, questions) == {307, 404, 405}


def test_a_line_break_after_a_path(servers: Servers) -> None:
    paths = ["/api/agents%0A", "/api/sessions%0A", f"{EVENTS}%0A", "/api/agents/AGENT%0A"]
    questions = [get(path) for path in (*paths, "/api/agents/0123456789%0A", "/api/agents/%0A")]
    questions += [post("/api/agents%0A", {}), post(f"{STREAM}%0A", MESSAGE), get("/api/agents/%0A")]
    assert ask_all(servers, [*questions, get("/api/agents%0A/"), Question("PUT", paths[0])])


def test_a_second_content_type(servers: Servers) -> None:
    kinds = ["application/json", "text/plain", ""]
    pairs = [(("content-type", one), ("Content-Type", two)) for one in kinds for two in kinds]
    questions = [Question("POST", "/api/agents", b"{}", headers) for headers in pairs]
    assert ask_all(servers, questions) == {422}


def test_ids_in_paths(servers: Servers) -> None:
    ids = ["nobodyhere", "short", "waytoolong1234", "%C3%A934567890", "a%20b", "%FF234567890"]
    paths = ["/api/agents/{}", "/api/sessions/{}", "/api/sessions/{}/events"]
    questions = [get(path.format(one)) for path in paths for one in ids]
    questions += [post(f"/api/sessions/{one}/events/stream", MESSAGE) for one in ids]
    questions += [
        post("/api/sessions/short/events/stream", {"type": "x", "source": "y"}),
        get("/api/sessions/short/events?min_offset=x&source=y", ["z"]),
        get("/api/sessions/short/events", b"{"),
    ]
    assert ask_all(servers, questions) == {400, 404, 422}


@pytest.mark.parametrize("path", ["/api/agents", "/api/sessions", STREAM])
def test_bodies_of_any_kind(servers: Servers, path: str) -> None:
    bodies = [None, b"", b"   ", b"{", b"{'a': 1}", b"[1, 2", b"nul", b'"abc', b'{"a" 1}']
    bodies += [b"{} trailing", b"\xff\xfe", b'{"name": "\xff"}', b"null", b"1", b"1.5", b'"text"']
    bodies += [b"true", b"[]", b"[1]", b"{}", b"NaN", b'{"name": NaN}', b"[" * 100_000]
    bodies += [b'{"x": {"y": [1, null, "z"]}}']
    assert ask_all(servers, [post(path, body) for body in bodies]) == {400, 422, 500}


KINDS = (
    *(None, "text/plain", "application/x-www-form-urlencoded", "application/vnd.api+json"),
    *("application/json; charset=latin-1", "APPLICATION/JSON", "application/jsonx", "json"),
    *("application/", "text/json", "application/problem+JSON; a=b"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_content_types(servers: Servers, kind: str | None) -> None:
    questions = [
        Question(method, path, body, {} if kind is None else {"content-type": kind})
        for method, path in (("POST", "/api/agents"), ("GET", EVENTS))
        for body in (b"{}", b"[]", "é".encode(), b"\xff", b"")
    ]
    assert {200, 422} < ask_all(servers, questions)


def test_agents(servers: Servers) -> None:
    names = ["", "n" * 100, "n" * 101, "é😀" * 50, 5, None, True, ["a"], "\ud800", "it's"]
    new = {"name": "N", "type": "scripted"}
    changes = [{member: name} for member in new for name in names]
    changes += [{"description": description} for description in ("", "d" * 1000, None, 5)]
    changes += [{"x": 1, "y": [1]}]
    questions = [post("/api/agents", {**new, **change}) for change in changes]
    questions += [
        post("/api/agents", {"x": 1, "name": ""}),
        post("/api/agents", b'{"name": "a", "name": "b", "type": "scripted"}'),
        get("/api/agents"),
        get("/api/agents/AGENT"),
    ]
    assert ask_all(servers, questions) == {200, 201, 422, 500}


def test_sessions(servers: Servers) -> None:
    values = ["0123456789", "short", "waytoolong1234", "", 5, None, "t" * 201, "\ud800"]
    new = {"agent_id": "AGENT"}
    flags = ["true", "false", "1", "0", "yes", "no", "on", "off", "y", "n", "t", "f", "TRUE"]
    flags += ["maybe", "2", "%20true", "", "x&allow_greeting=1&y=z"]
    questions = [
        post("/api/sessions", {**new, member: value})
        for member in ("agent_id", "id", "title")
        for value in values
    ]
    questions += [post(f"/api/sessions?allow_greeting={flag}", new) for flag in flags]
    questions += [
        post("/api/sessions?allow_greeting=x", {"agent_id": "short", "z": 1}),
        get("/api/sessions/SESSION"),
        get("/api/sessions/unknown-id"),
    ]
    assert ask_all(servers, questions) == {200, 201, 400, 404, 422, 500}


def test_sessions_of_one_id_are_two_sessions(servers: Servers) -> None:
    body = {"agent_id": "AGENT", "id": "twins-1234"}

    def scenario(witness: Witness) -> list[ComparedAnswer]:
        cookie = "flux0_user_sub=twins"
        return [
            witness.ask(question)
            for question in (
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

    def scenario(witness: Witness) -> list[list[str]]:
        witness.ask(post("/api/sessions", {"agent_id": "AGENT", "title": cookie}, cookie=cookie))
        answers = [witness.ask(get(f"/api/sessions{query}", cookie=cookie)) for query in queries]
        return [[session["title"] for session in answer.data] for answer in answers]

    everything, *_ = same(servers, scenario)
    assert everything[-1] == cookie


def test_messages_that_are_refused(servers: Servers) -> None:
    changes: list[dict[str, Any]] = [{"content": content} for content in ("", None, 5)]
    changes += [{"type": kind} for kind in ("status", "custom", "x", None, 1)]
    changes += [{"source": source} for source in ("ai_agent", "system", "x")]
    changes += [{"source": []}, {"source": "system", "content": ""}, {"x": 5}]
    changes += [{"type": "tool", "source": "system", "content": ""}]
    unknown = "/api/sessions/unknown-id/events/stream"
    questions = [
        post(path, {**MESSAGE, **change}) for path in (STREAM, unknown) for change in changes
    ]
    questions += [post(STREAM, {"type": "message", "source": "user"}), post(unknown, MESSAGE)]
    assert ask_all(servers, questions) == {400, 422}


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


def test_filters_of_events(servers: Servers) -> None:
    offsets = ["-1", "0", "3", "8", "99", "1.0", "%201_0.00%20", "%2B2", "x", "", "1.5", "1.", ".0"]
    offsets += ["1__0", "- 1", "%2B", "-", "%2B-1", "_1", "1_", "0_0", "00", "-0", "%20"]
    offsets += ["9" * 4301, "0" * 4301, "1." + "0" * 4300, "1_" * 2200 + "1"]
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

    def scenario(witness: Witness) -> list[ComparedAnswer]:
        witness.read(witness.begin(*TURN))
        questions = [
            *(get(f"{EVENTS}?{query}") for query in queries),
            *(get(EVENTS, types) for types in lists),
            get(f"{EVENTS}?min_offset=3&source=ai_agent", ["message"]),
        ]
        return list(map(witness.ask, questions))

    answers = same(servers, scenario)
    assert {answer.status_code for answer in answers} == {200, 400, 422, 500}
    assert [event["offset"] for event in answers[-1].data] == [3, 6]


def test_the_events_of_one_turn(servers: Servers) -> None:
    def scenario(witness: Witness) -> list[ComparedAnswer]:
        return [
            witness.read(witness.begin(Say("a"), Report("typing"))),
            witness.read(witness.begin(Say("b"))),
            everything := witness.events(),
            *(
                witness.ask(get(f"{EVENTS}?correlation_id={event['correlation_id']}"))
                for event in everything.data
            ),
        ]

    _, _, everything, *turns = same(servers, scenario)
    assert [len(turn.data) for turn in turns] == [3, 3, 3, 2, 2]
    assert turns[-1].data == everything.data[3:]


def test_a_turn_byte_by_byte(servers: Servers) -> None:
    stream, events = same(servers, lambda w: (w.read(w.begin(*TURN)), w.events()))
    assert stream.status_code == 200
    assert stream.body.count("\n\n") == 17
    assert len(events.data) == 10


# --- turns out of the ordinary


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
        [
            Report(
                "typing", [1e-9, -1.5e-7, 1e-5, 0.0001, 1e15, 1e16, 1e22, 1.5e300, 5e-324, "1e-09"]
            )
        ],
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
    ],
    ids=str,
)
def test_turns_out_of_the_ordinary(servers: Servers, steps: list[AgentStep]) -> None:
    take_turn(servers, steps)


def take_turn(servers: Servers, steps: list[AgentStep]) -> None:
    """Have both do a turn, and compare what they send and what they store."""
    # A message that is not made ready is still in the making when its id comes up again.
    turn = next(_turns)
    own = [
        evolve(step, event_id=f"{step.event_id}-{turn}")
        if isinstance(step, (SendChunk, Report)) and step.event_id
        else step
        for step in steps
    ]
    same(servers, lambda witness: (witness.read(witness.begin(*own)), witness.events()))


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
    take_turn(servers, steps)


def test_the_langchain_adapter_still_does_what_was_recorded(server_python: str) -> None:
    """The fake's `LangChain` is compared with the record in the unit tests."""
    script = ROOT / "support" / "langchain_adapter.py"
    ran = subprocess.run([server_python, script], capture_output=True, text=True, check=False)
    recorded = (ROOT / "data" / "langchain_turn.json").read_text("utf-8")
    assert ran.stdout == recorded, ran.stderr


def test_sessions_do_not_disturb_each_other(servers: Servers) -> None:
    def scenario(witness: Witness) -> tuple[Any, ...]:
        first = witness.begin(Report("processing"), Pause(0.1), Say("Hello"))
        witness.read_next(first)
        witness.new_session()
        return witness.read(witness.begin(Say("Bye"))), witness.read(first)

    second, first = same(servers, scenario)
    assert (second.silent, first.silent) == (False, False)
