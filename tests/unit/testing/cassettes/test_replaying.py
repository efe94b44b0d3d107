"""Replaying repeats the recorded exchanges, and explains requests that do not match."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any, get_args

import pytest
from attrs import evolve

from flux0 import BackoffStrategy, Flux0, RetryConfig, StreamIdleTimeout
from flux0.cli.demo_agent import demo_transport
from flux0.domain.errors import (
    ConnectError,
    ConnectionInterrupted,
    Flux0Error,
    InvalidArgument,
    ReadTimeout,
)
from flux0.domain.headers import Headers
from flux0.ports import Request, Transport
from flux0.testing import (
    CassetteError,
    Drop,
    FakeTransport,
    FallSilent,
    Fault,
    NotRecorded,
    Pause,
    RecordingTransport,
    Refuse,
    ReplayTransport,
    Report,
    Respond,
    Say,
    Split,
    Stall,
    Truncate,
    cassette,
)
from flux0.testing.cassettes.cassette import CLOSED, RecordedExchange, read_cassette
from flux0.testing.cassettes.replaying import CassetteMode, Matching, NewEpisodesTransport
from flux0.testing.fake.body import FakeBody
from support.cassettes import (
    LIST_AGENTS,
    ONCE,
    loops,
    modes,
    piece,
    posting,
    record,
    use_client,
    write_cassette,
)
from support.cost import calls_made
from support.driving import LoopTime
from support.fake_over_http import FakeOverHTTP
from support.fakes import message_to, new_session, request
from support.in_memory import Hang, Script, script, scripted_response
from support.modes import in_mode, run, run_in_simulated_time
from support.sending import Pieces
from support.transports import ASYNC, SYNC, Mode


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cassette.json"


def request_of(exchange: RecordedExchange) -> Request:
    """Return a request that matches a recorded exchange."""
    recorded = exchange.request
    body = json.loads(recorded.body.data) if recorded.body else None
    return request(recorded.method, f"{recorded.path}?{recorded.query}", body)


def explanation(replay: ReplayTransport, exchange: RecordedExchange) -> list[str]:
    """Return the message for a request that does not match, without its last line."""
    with pytest.raises(AssertionError) as caught:
        replay.send(request_of(exchange))
    *lines, last = str(caught.value).splitlines()
    assert last.startswith("The code or the cassette has changed. If the cassette is outdated, re")
    assert last.endswith(".json').")
    return lines


# --- the whole client


@modes
def test_replay_returns_the_recorded_results(mode: Mode, path: Path) -> None:
    """`mode` is the recording's mode."""
    results: list[Any] = []

    async def recording() -> None:
        results.append(await record(mode, server.url, path))

    async def replaying(replay: ReplayTransport, mode: Mode) -> None:
        async with in_mode(mode, Flux0(transport=replay, retry_config=ONCE)) as flux0:
            assert await use_client(flux0) == results[0]
        replay.assert_all_used()

    with FakeOverHTTP(demo_transport()) as server:
        run(mode, recording)
    for matching in get_args(Matching):
        for each in SYNC + ASYNC:
            run(each, partial(replaying, ReplayTransport(path, matching), each))


def test_replay_can_be_recorded(path: Path, tmp_path: Path) -> None:
    recording = RecordingTransport(
        ReplayTransport(write_cassette(path, LIST_AGENTS)), tmp_path / "2"
    )
    with Flux0(transport=recording) as flux0:
        assert len(flux0.agents.list()) == 0
    (again,) = read_cassette(tmp_path / "2")
    assert (again.response, again.end) == (LIST_AGENTS.response, LIST_AGENTS.end)


def outcome(flux0: Flux0, session_id: str) -> Any:
    """Start a turn that may fail; return its events, and the error if there is one."""
    events: list[Any] = []
    try:
        events.extend(flux0.sessions.create_event(session_id=session_id, content="Hi"))
    except Flux0Error as error:
        attributes = ("status_code", "body", "event_count")
        events += (
            type(error),
            *sorted(vars(error)),
            *(getattr(error, n, None) for n in attributes),
        )
    return events


@pytest.mark.parametrize(
    "fault",
    [
        Refuse(),
        Drop(),
        Drop(after_acting=True),
        Stall(),
        Stall(after_events=2),
        Truncate(after_events=2),
        Truncate(after_bytes=100),
        Truncate(after_bytes=100, clean=True),
        Respond(429, retry_after=3),
        Respond(422, [{"loc": ["body", 0], "msg": "no", "type": "t"}]),
        Respond(502, body=b"<html>\xff</html>"),
        Respond(503, body=b""),
        Respond(302, headers={"location": "http://elsewhere"}),
        Split(1),
        Split((7, 100)),
    ],
    ids=str,
)
@pytest.mark.parametrize("tries", [1, 2])
def test_each_fault_is_replayed(fault: Fault, tries: int, path: Path) -> None:
    def play(transport: Transport) -> list[Any]:
        retries = RetryConfig(
            strategy="backoff" if tries > 1 else "none",
            backoff=BackoffStrategy(initial_interval=0),
            retry_connection_errors=True,
        )
        with Flux0(transport=transport, retry_config=retries) as flux0:
            session = flux0.sessions.create(agent_id=fake.agent_id)
            # Only the first attempt gets the fault; a second attempt may succeed.
            if isinstance(transport, RecordingTransport):
                fake.inject(fault, operation="sessions.create_event")
            return [*outcome(flux0, session.id), *outcome(flux0, session.id)]

    fake = FakeTransport([Report("typing"), Pause(1), Say("Hé", pieces=2)])
    results = play(RecordingTransport(fake, path))
    replay = ReplayTransport(path)
    assert play(replay) == results
    replay.assert_all_used()


def test_idle_timeout_expires_after_the_recorded_time(path: Path) -> None:
    fake = FakeTransport([Report("typing"), Pause(5), Report("typing"), FallSilent()])
    session_id = new_session(fake)
    makers: list[Any] = [lambda: RecordingTransport(fake, path), lambda: ReplayTransport(path)]
    for make in makers:
        transport = make()
        with Flux0(transport=transport, stream_idle_timeout_ms=30_000) as flux0:
            before: float = transport.time.monotonic()
            with pytest.raises(StreamIdleTimeout):
                list(flux0.sessions.create_event(session_id=session_id, content="Hi"))
            assert transport.time.monotonic() - before == pytest.approx(35)


# --- matching


AGENTS = [posting("/api/agents", b'{"name":"%d","type":"fake"}' % number) for number in range(4)]


def test_strict_matching_requires_the_recorded_order(path: Path) -> None:
    replay = ReplayTransport(write_cassette(path, *AGENTS[:3]))
    replay.send(request_of(AGENTS[0]))
    assert explanation(replay, AGENTS[2]) == [
        f"agents.create(name='2', type='fake') is not the next request in {path}",
        "next: exchange 2, agents.create(name='1', type='fake')",
        "  body name: recorded '1', got '2'",
        'the request is in exchange 3: matching="loose" allows any order',
    ]
    assert explanation(replay, AGENTS[0]) == [
        f"agents.create(name='0', type='fake') is not the next request in {path}",
        "next: exchange 2, agents.create(name='1', type='fake')",
        "  body name: recorded '1', got '0'",
    ]
    replay.send(request_of(AGENTS[1]))
    replay.send(request_of(AGENTS[2]))
    assert explanation(replay, AGENTS[3]) == [
        f"agents.create(name='3', type='fake') is not the next request in {path}",
        "all 3 exchanges were replayed already",
    ]


def test_loose_matching_allows_any_order(path: Path) -> None:
    replay = cassette(write_cassette(path, *AGENTS[:3]), mode="none", matching="loose")
    assert isinstance(replay, ReplayTransport)
    for position in (2, 0, 1):
        replay.send(request_of(AGENTS[position]))
    assert explanation(replay, AGENTS[3]) == [
        f"agents.create(name='3', type='fake') is not in {path}",
        "nearest: exchange 1, agents.create(name='0', type='fake')",
        "  body name: recorded '0', got '3'",
    ]


def test_loose_matching_repeats_only_requests_that_were_recorded_once(
    path: Path,
) -> None:
    assert AGENTS[0].response is not None
    responses = [
        evolve(AGENTS[0], response=evolve(AGENTS[0].response, pieces=(piece(0, data),)))
        for data in (b"1", b"2")
    ]
    replay = ReplayTransport(write_cassette(path, responses[0], LIST_AGENTS, responses[1]), "loose")
    for _ in range(3):
        assert b"".join(Pieces(replay.send(request_of(LIST_AGENTS)).body)) == b'{"data":[]}'
    results = [b"".join(Pieces(replay.send(request_of(AGENTS[0])).body)) for _ in range(2)]
    assert results == [b"1", b"2"]
    assert explanation(replay, AGENTS[0]) == [
        f"agents.create(name='0', type='fake') was sent more often than it was recorded in {path}",
        "exchanges 1, 3 were replayed already",
    ]


@pytest.mark.parametrize("matching", ["strict", "loose"])
def test_match_selects_the_compared_parts(path: Path, matching: Matching) -> None:
    cassette = write_cassette(path, *AGENTS[:2], LIST_AGENTS)
    replay = ReplayTransport(
        cassette, matching, match=lambda call: (call.operation, call.arguments.get("type"))
    )
    for exchange in (AGENTS[2], AGENTS[3], LIST_AGENTS):
        replay.send(request_of(exchange))
    replay.assert_all_used()
    assert explanation(replay, AGENTS[0])


def test_match_may_compare_header_fields(path: Path) -> None:
    cassette = write_cassette(path, LIST_AGENTS)
    replay = ReplayTransport(cassette, "loose", match=lambda call: call.headers["accept"])
    replay.send(request("GET", "/api/other", headers={"accept": "application/json"}))
    with pytest.raises(NotRecorded):
        replay.send(request("GET", "/api/agents", headers={"accept": "text/html"}))


# --- modes


@pytest.mark.parametrize(
    ("mode", "ci", "exists", "expected"),
    [
        ("once", "", False, RecordingTransport),
        ("once", "1", True, ReplayTransport),
        ("once", "true", False, RecordingTransport),
        ("none", "", True, ReplayTransport),
        ("all", "true", True, RecordingTransport),
        (None, "", False, RecordingTransport),
        (None, "False", False, RecordingTransport),
        (None, "0", False, RecordingTransport),
        (None, "", True, ReplayTransport),
        (None, "true", True, ReplayTransport),
        (None, "true", False, CassetteError("cassette .* does not exist")),
        ("none", "", False, CassetteError("cassette .* does not exist")),
        ("new", "", True, InvalidArgument("mode", 'must be "once", "none", "all" or "new_ep')),
        ("new_episodes", "true", True, NewEpisodesTransport),
        ("new_episodes", "true", False, RecordingTransport),
    ],
)
def test_mode_selects_recording_or_replaying(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: CassetteMode | None,
    ci: str,
    exists: object,
    expected: type | Flux0Error,
) -> None:
    monkeypatch.setenv("CI", ci)
    if exists:
        write_cassette(path)
    if isinstance(expected, Flux0Error):
        with pytest.raises(type(expected), match=str(expected)):
            cassette(path, FakeTransport, mode=mode)
    else:
        assert type(cassette(path, FakeTransport, mode=mode)) is expected


@pytest.mark.parametrize("mode", ["none", "once", "new_episodes"])
def test_match_applies_in_each_mode_that_replays(mode: CassetteMode, path: Path) -> None:
    write_cassette(path, LIST_AGENTS)
    transport = cassette(path, lambda: script(), mode=mode, match=lambda call: call.path)  # noqa: PLW0108 - typed
    with Flux0(transport=transport) as flux0:
        assert list(flux0.agents.list(extra_query={"page": "2"})) == []


@pytest.mark.parametrize("mode", ["none", "once", "new_episodes"])
def test_scrub_applies_in_each_mode(mode: CassetteMode, path: Path) -> None:
    def create(title: str, mode: CassetteMode) -> None:
        scrub = partial(re.sub, r"key-\d", "***")
        with Flux0(transport=cassette(path, lambda: fake, mode=mode, scrub=scrub)) as flux0:
            flux0.sessions.create(agent_id=fake.agent_id, title=title)

    fake = FakeTransport()
    create("key-1", "all")
    create("key-2", mode)
    assert len(fake.calls) == 1
    create("Another key-3", "new_episodes")
    assert [call.body["title"] for call in fake.calls] == ["key-1", "Another key-3"]
    assert "key-" not in path.read_text("utf-8")


@modes
def test_new_episodes_replays_recorded_requests_and_appends_the_others(
    mode: Mode, path: Path
) -> None:
    async def program(agents: int, *, fails: bool = False) -> None:
        transport = cassette(path, lambda: fake, mode="new_episodes")
        async with in_mode(mode, Flux0(transport=transport)) as flux0:
            for number in range(agents):
                await flux0.agents.create_async(name=str(number), type_="fake")
            assert len(await flux0.agents.list_async()) == 0
            if fails:
                raise ValueError("as tested")

    async def test() -> None:
        await program(2)
        assert [call.operation for call in fake.calls] == ["agents.create"] * 2
        listed, *created = read_cassette(path)
        assert listed == evolve(LIST_AGENTS, number=7)
        assert [exchange.number for exchange in created] == [8, 9]
        recorded = path.read_bytes()
        with pytest.raises(ValueError, match="as tested"):
            await program(3, fails=True)
        await program(2)
        assert len(fake.calls) == 3
        assert path.read_bytes() == recorded

    fake = FakeTransport()
    write_cassette(path, evolve(LIST_AGENTS, number=7))
    run(mode, test)


@pytest.mark.parametrize(
    ("timeout_ms", "error"), [(200_000, AssertionError), (100_000, ReadTimeout)]
)
def test_early_close_in_new_episodes_is_an_expired_deadline_if_the_time_is_over(
    timeout_ms: int, error: type[Exception], path: Path
) -> None:
    """Deadlines are times on the client's clock, so the replay's clock starts at the same time."""
    write_cassette(path, evolve(LIST_AGENTS, end=CLOSED, after=150.0))
    transport = cassette(path, lambda: script(), mode="new_episodes")  # noqa: PLW0108 - typed
    client = Flux0(transport=transport, timeout_ms=timeout_ms, retry_config=ONCE)
    with client as flux0, pytest.raises(error):
        flux0.agents.list()


def test_default_transport_for_recording_is_httpx(path: Path) -> None:
    with FakeOverHTTP(FakeTransport()) as server:
        for url, name in ((server.url, "Fake"), ("http://127.0.0.1:1", "fake")):
            transport = cassette(path, mode="once", scrub=str.lower, match=lambda call: call.path)
            with Flux0(url, transport=transport) as flux0:
                assert [agent.name for agent in flux0.agents.list()] == [name]


@pytest.mark.parametrize("matching", ["strict", "loose"])
def test_empty_cassette_matches_no_request(path: Path, matching: Matching) -> None:
    lines = explanation(ReplayTransport(write_cassette(path), matching), LIST_AGENTS)
    assert lines[0].startswith("agents.list() is not ")


@pytest.mark.parametrize(
    ("recorded", "sent", "differences"),
    [
        (posting("/a"), posting("/b"), ["path: recorded '/a', got '/b'"]),
        (
            posting("/a"),
            posting("/a", method="PUT"),
            ["method: recorded 'POST', got 'PUT'"],
        ),
        (
            posting("/a", query="x=1&y=2&y=3&z="),
            posting("/a", query="x=2&y=2&w=%20"),
            [
                "query x: recorded '1', got '2'",
                "query y: recorded ['2', '3'], got '2'",
                "query z: recorded '', got nothing",
                "query w: recorded nothing, got ' '",
            ],
        ),
        (
            posting("/a", b'{"a":1,"b":true,"c":{"d":[1,2]}}'),
            posting("/a", b'{"a":1.0,"b":1,"c":{"d":[2,1]}}'),
            [
                "body a: recorded 1, got 1.0",
                "body b: recorded True, got 1",
                "body c: recorded {'d': [1, 2]}, got {'d': [2, 1]}",
            ],
        ),
        (posting("/a", b'["x"]'), posting("/a"), ["body: recorded ['x'], got nothing"]),
        (
            posting("/a"),
            posting("/a", b'{"a":1}'),
            ["body: recorded nothing, got {'a': 1}"],
        ),
        (posting("/a", b"null"), posting("/a"), ["body: recorded None, got nothing"]),
        (posting("/a", b'{"a":1}'), posting("/a"), ["body: recorded {'a': 1}, got nothing"]),
    ],
)
@pytest.mark.parametrize("matching", ["strict", "loose"])
def test_error_lists_the_differences(
    path: Path,
    matching: Matching,
    recorded: RecordedExchange,
    sent: RecordedExchange,
    differences: list[str],
) -> None:
    replay = ReplayTransport(write_cassette(path, recorded), matching)
    url = f"http://h{sent.request.path}?{sent.request.query}"
    body = sent.request.body.data if sent.request.body else None
    with pytest.raises(AssertionError) as caught:
        replay.send(Request(sent.request.method, url, Headers(), body))
    lines = [line[2:] for line in str(caught.value).splitlines() if line.startswith("  ")]
    assert lines == differences


LONG = "lorem ipsum " * 4000


@pytest.mark.parametrize(
    ("recorded", "sent", "difference"),
    [
        (
            f"{LONG}before{LONG}",
            f"{LONG}after{LONG}",
            "got 'ipsum lorem ipsum lorem ipsum afterlorem ipsum lorem ipsum l' "
            "(excerpts: the first difference is at character 48,001)",
        ),
        (LONG, f"{LONG}!", "got 'ipsum lorem ipsum lorem ipsum !' (excerpts: the first difference"),
        (f"a{LONG}", f"b{LONG}", "recorded 'alorem ipsum lorem ipsum lorem', got 'blorem ipsum"),
        (LONG, None, "lorem ipsum lor... (48,002 characters), got None"),
        ([LONG, 1], [LONG, 2], """got 'um lorem ipsum lorem ipsum ", 2]' (excerpts: """),
    ],
)
def test_error_shows_where_long_values_differ(
    path: Path, recorded: object, sent: object, difference: str
) -> None:
    def turn(content: object) -> RecordedExchange:
        return posting("/api/agents", json.dumps({"name": LONG, "content": content}).encode())

    for matching in ("strict", "loose"):
        replay = ReplayTransport(write_cassette(path, turn(recorded)), matching)
        lines = explanation(replay, turn(sent))
        assert sum(map(len, lines)) < 1500 - len(str(path))
        assert difference in lines[2]


def test_error_lists_only_some_of_many_differences(path: Path) -> None:
    many = [json.dumps({f"{n}": n + add for n in range(100)}).encode() for add in (0, 1)]
    replay = ReplayTransport(write_cassette(path, posting("/a", many[0])))
    lines = explanation(replay, posting("/a", many[1]))
    assert lines[-2:] == ["  body 4: recorded 4, got 5", "  95 more differences"]
    assert len(lines) == 8
    assert len(lines[0]) < 400 + len(str(path))


@pytest.mark.parametrize("matching", ["strict", "loose"])
def test_equivalent_requests_match(path: Path, matching: Matching) -> None:
    recorded = posting("/a", '{"a":"é","b":[1,{"c":null}]}'.encode(), query="x=1&y=%C3%A9")
    headers = request("GET", "/", headers={"authorization": "other"}).headers
    body = b'{ "b": [1, {"c": null}], "a": "\\u00e9" }'
    for url in ("http://h/a?x=1&y=%c3%a9", "https://u:p@other:1/a?y=%C3%A9&x=1"):
        replay = ReplayTransport(write_cassette(path, recorded), matching)
        replay.send(Request("POST", url, headers, body))
        replay.assert_all_used()


@pytest.mark.parametrize("body", [b"\xff", b"{", b"[" * 100_000], ids=["binary", "text", "deep"])
def test_bodies_that_are_not_json_are_compared_as_bytes(path: Path, body: bytes) -> None:
    replay = ReplayTransport(write_cassette(path, posting("/a", body), posting("/a", body)))
    replay.send(Request("POST", "http://h/a", Headers(), body))
    with pytest.raises(AssertionError, match="  body: recorded b"):
        replay.send(Request("POST", "http://h/a", Headers(), body + b"x"))


def test_threads_are_replayed_if_ids_in_paths_are_ignored(path: Path) -> None:
    def program(transport: Any) -> None:
        with Flux0(transport=transport) as flux0, ThreadPoolExecutor(8) as threads:
            agent = flux0.agents.first()

            def ask(number: int) -> str | None:
                conversation = flux0.conversation(agent=agent)
                barrier.wait()
                return conversation.ask(str(number)).text

            barrier = Barrier(8)
            assert list(threads.map(ask, range(8))) == [str(number) for number in range(8)]

    program(RecordingTransport(FakeTransport(lambda message: message.content), path))
    for _ in range(5):
        program(ReplayTransport(path, "loose", match=lambda call: (call.operation, call.body)))


def test_mismatch_of_an_id_in_a_path_suggests_to_ignore_it(path: Path) -> None:
    body = b'{"type":"message","content":"Hi"}'
    turn = posting("/api/sessions/s1/events/stream", body)
    other = posting("/api/sessions/s2/events/stream", body)
    hint = "to ignore ids in paths, pass match=lambda call: (call.operation, call.body)"
    replay = ReplayTransport(write_cassette(path, turn), "loose")
    assert any(hint in line for line in explanation(replay, other))
    strict = ReplayTransport(path, "strict")
    matching = ReplayTransport(path, "loose", match=lambda call: call.path)
    for replay in (strict, matching):
        assert not any(hint in line for line in explanation(replay, other))


def test_path_of_the_server_url_may_differ_at_replay(path: Path) -> None:
    fake = FakeTransport(path_prefix="/flux0")
    with Flux0("http://proxy/flux0", transport=RecordingTransport(fake, path)) as flux0:
        agents = flux0.agents.list()
    for url in ("http://proxy/flux0", "http://127.0.0.1:8080", "http://x/other/path"):
        with Flux0(url, transport=ReplayTransport(path)) as flux0:
            assert flux0.agents.list() == agents


def test_nearest_exchange_has_the_same_operation(path: Path) -> None:
    session = posting("/api/sessions", b'{"agent_id":"a000000001"}')
    turn = posting("/api/sessions/s1/events/stream", b'{"type":"message","content":"Hi"}')
    body = b'{"type":"message","content":"Hello","x":1}'
    agent = posting("/api/agents", body)  # Has the fewest differences, but another operation.
    replay = ReplayTransport(write_cassette(path, session, turn, agent, LIST_AGENTS), "loose")
    other = posting("/api/sessions/s2/events/stream", body)
    assert explanation(replay, other) == [
        f"sessions.create_event(session_id='s2', type='message', content='Hello', x=1) is not in "
        f"{path}",
        "nearest: exchange 2, sessions.create_event(session_id='s1', type='message', content='Hi')",
        "  path: recorded '/api/sessions/s1/events/stream', got '/api/sessions/s2/events/stream'",
        "  body content: recorded 'Hi', got 'Hello'",
        "  body x: recorded nothing, got 1",
    ]


def test_assert_all_used_lists_unused_exchanges(path: Path) -> None:
    replay = ReplayTransport(write_cassette(path, LIST_AGENTS, *AGENTS[:2]))
    replay.send(request_of(LIST_AGENTS))
    with pytest.raises(AssertionError) as caught:
        replay.assert_all_used()
    assert str(caught.value).splitlines() == [
        f"some exchanges of {path} were not replayed:",
        "exchange 2, agents.create(name='0', type='fake')",
        "exchange 3, agents.create(name='1', type='fake')",
    ]


def test_invalid_arguments_are_rejected_immediately(path: Path) -> None:
    with pytest.raises(CassetteError, match="does not exist: to record it"):
        ReplayTransport(path)
    matching: Any = "lose"
    with pytest.raises(InvalidArgument, match='matching must be "strict" or "loose", not'):
        ReplayTransport(write_cassette(path), matching)


# --- responses that the recorded program closed early


@modes
def test_reading_beyond_an_early_close_is_explained(mode: Mode, path: Path) -> None:
    async def program(transport: Any, events: int) -> None:
        async with in_mode(mode, Flux0(transport=transport)) as flux0:
            session = await flux0.sessions.create_async(agent_id=fake.agent_id)
            async with await flux0.sessions.create_event_async(
                session_id=session.id, content="Hi"
            ) as stream:
                for _ in range(events):
                    await anext(stream)

    fake = FakeTransport([Say("Hello", pieces=3, pause=0.5)])
    run(mode, lambda: program(RecordingTransport(fake, path), 2))
    run(mode, lambda: program(ReplayTransport(path), 2))
    with pytest.raises(AssertionError) as caught:
        run(mode, lambda: program(ReplayTransport(path), 3))
    assert str(caught.value).splitlines() == [
        f"{path} has no more data of exchange 2, sessions.create_event(session_id='s000000001', "
        "type='message', source='user', content='Hi'): the recorded call was cancelled or closed "
        "0.5 s after the response head",
        f"To record the whole response, run this code with "
        f"RecordingTransport(transport, {str(path)!r}).",
    ]


def test_waiting_for_a_cancelled_response_is_explained(path: Path) -> None:
    left = evolve(LIST_AGENTS, response=None, end=CLOSED, after=2.5)
    replay = ReplayTransport(write_cassette(path, left))
    with pytest.raises(AssertionError, match=r"agents.list\(\).*closed 2.5 s after the request"):
        replay.send(request_of(left))


@modes
@pytest.mark.parametrize("response", [None, LIST_AGENTS.response], ids=["before", "within"])
@pytest.mark.parametrize(
    ("timeout_ms", "error", "message"),
    [(5000, ReadTimeout, "timeout_ms"), (6000, AssertionError, "the recorded call was cancelled")],
)
def test_deadline_expires_again_if_it_is_not_longer(
    mode: Mode, response: Any, timeout_ms: int, error: type[Exception], message: str, path: Path
) -> None:
    async def test() -> None:
        async with in_mode(mode, Flux0(transport=replay, retry_config=ONCE)) as flux0:
            with pytest.raises(error, match=message):
                await flux0.agents.list_async(timeout_ms=timeout_ms)

    left = evolve(LIST_AGENTS, end=CLOSED, after=5.1, response=response)
    replay = ReplayTransport(write_cassette(path, left))
    run(mode, test)


@loops
def test_deadline_that_expired_while_recording_expires_again(mode: Mode, path: Path) -> None:
    class Stalling(Script):
        time = LoopTime()

    async def program(transport: Any) -> None:
        async with Flux0(transport=transport, retry_config=ONCE, timeout_ms=500) as flux0:
            with pytest.raises(ReadTimeout):
                await flux0.agents.list_async()

    stalling = Stalling([scripted_response(b'{"dat', Hang())])
    run_in_simulated_time(mode, lambda: program(RecordingTransport(stalling, path)))
    assert read_cassette(path)[0].end == CLOSED
    run(mode, lambda: program(ReplayTransport(path)))


# --- time


def test_recorded_times_pass_and_waits_are_passed_to_sleep(path: Path) -> None:
    waits: list[float] = []
    replay = ReplayTransport(write_cassette(path, LIST_AGENTS), sleep=waits.append)
    began = replay.time.monotonic()
    pieces = Pieces(replay.send(request_of(LIST_AGENTS)).body)
    assert replay.time.monotonic() - began == 0.25
    next(pieces)
    assert replay.time.monotonic() - began == 0.75
    assert waits == [0.25, 0.5]
    replay.time.sleep(1)
    assert next(pieces, None) is None
    assert replay.clock.now() - began == 1.75


def test_shorter_timeouts_do_not_expire_in_a_replay(path: Path) -> None:
    with Flux0(
        transport=ReplayTransport(write_cassette(path, LIST_AGENTS)), timeout_ms=800
    ) as flux0:
        assert len(flux0.agents.list()) == 0


@modes
def test_client_waits_between_attempts_on_the_replay_clock(mode: Mode, path: Path) -> None:
    async def test() -> None:
        fake = FakeTransport()
        fake.inject(Respond(503, retry_after=20))
        for make in (lambda: RecordingTransport(fake, path), lambda: ReplayTransport(path)):
            transport = make()
            time = transport.time
            assert time is not None
            began = time.monotonic()
            async with in_mode(mode, Flux0(transport=transport)) as flux0:
                assert len(await flux0.agents.list_async()) == 1
            assert time.monotonic() - began == 20

    run(mode, test)


# --- bodies


def test_closing_a_client_interrupts_only_its_own_streams(path: Path) -> None:
    fake = FakeTransport([Say("Hello", pieces=3, pause=1)])
    turn = message_to(new_session(fake))
    recording = RecordingTransport(fake, path)
    for _ in range(2):
        list(Pieces(recording.send(turn).body))
    replay = ReplayTransport(path)
    one, other = replay.for_client(), replay.for_client()
    first, second = Pieces(one.send(turn).body), Pieces(other.send(turn).body)
    next(second)
    one.close()
    with pytest.raises(ConnectionInterrupted):
        next(first)
    assert b"".join(second)


def test_recorded_error_is_raised_once_and_names_the_cassette(path: Path) -> None:
    broken = evolve(LIST_AGENTS, end="ReadTimeout", after=60.0)
    refused = evolve(LIST_AGENTS, response=None, end="ConnectError", after=1.0)
    replay = ReplayTransport(write_cassette(path, broken, refused))
    began = replay.clock.now()
    pieces = Pieces(replay.send(request_of(broken)).body)
    next(pieces)
    with pytest.raises(ReadTimeout, match=f"recorded in {path}"):
        next(pieces)
    with pytest.raises(ConnectionInterrupted, match="closed"):
        next(pieces)
    with pytest.raises(ConnectError, match=f"recorded in {path}"):
        replay.send(request_of(refused))
    assert replay.clock.now() - began == 61.25


@pytest.mark.usefixtures("little_garbage")
def test_unreferenced_body_is_freed(path: Path) -> None:
    def bodies() -> int:
        gc.collect()
        return sum(issubclass(type(thing), FakeBody) for thing in gc.get_objects())

    before = bodies()
    replay = ReplayTransport(write_cassette(path, *[LIST_AGENTS] * 10))
    for _ in range(10):
        replay.send(request_of(LIST_AGENTS))
    assert bodies() <= before
    replay.close()


# --- concurrency


def test_threads_can_share_a_loose_replay(path: Path) -> None:
    def talks(transport: Transport) -> list[Any]:
        with Flux0(transport=transport) as flux0:

            def one_turn(number: int) -> Any:
                session = flux0.sessions.create(agent_id=fake.agent_id, title=str(number))
                stream = flux0.sessions.create_event(session_id=session.id, content=str(number))
                return "".join(stream.text())

            with ThreadPoolExecutor(8) as threads:
                return list(threads.map(one_turn, range(40)))

    fake = FakeTransport(lambda message: [Say(f"{message.content}, you said", pieces=5)])
    said = talks(RecordingTransport(fake, path))
    assert said == [f"{number}, you said" for number in range(40)]
    replay = ReplayTransport(path, "loose")
    assert talks(replay) == said
    replay.assert_all_used()


@pytest.mark.parametrize("matching", ["strict", "loose"])
def test_cost_is_linear(path: Path, matching: Matching) -> None:
    def cost(exchanges: int, pieces: int) -> int:
        assert LIST_AGENTS.response is not None
        response = evolve(LIST_AGENTS.response, pieces=(piece(0, b"x"),) * pieces)
        exchange = evolve(LIST_AGENTS, response=response)
        write_cassette(path, *[exchange] * exchanges)

        def play() -> None:
            replay = ReplayTransport(path, matching)
            for _ in range(exchanges):
                assert len(list(Pieces(replay.send(request_of(exchange)).body))) == pieces

        return calls_made(play)

    assert cost(200, 1) < 10.5 * cost(20, 1)
    assert cost(1, 1000) < 10.5 * cost(1, 100)


def test_replay_imports_no_http_library(path: Path) -> None:
    program = f"""
import sys
from flux0 import Flux0
from flux0.testing import ReplayTransport
with Flux0(transport=ReplayTransport({str(write_cassette(path, LIST_AGENTS))!r})) as flux0:
    flux0.agents.list()
loaded = {{name.partition(".")[0] for name in sys.modules}}
print(*sorted(loaded & {{"aiohttp", "anyio", "httpx", "pytest", "requests", "urllib3"}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == ""
