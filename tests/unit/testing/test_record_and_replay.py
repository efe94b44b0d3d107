"""Calls and turns are recorded and replayed with vcrpy and pytest-recording, as the page says."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import aiohttp
import pytest

from flux0 import BackgroundTurns, Flux0, NotFoundError, TransportError
from flux0.adapters.ui import AiSdkFormat
from flux0.testing import CallTool, FakeTransport, GiveResult, Reason, Respond, Say, Truncate
from support.modes import in_mode, run, unwrapped
from support.samples import ROOT
from support.transports import LIBRARIES, Way

vcr: Any = pytest.importorskip("vcr", reason="vcrpy 9 (PyYAML) has no build for this Python")

pytest_plugins = ["pytester"]

PAGE: Final = (ROOT / "docs" / "recording.md").read_text(encoding="utf-8")
CALL = CallTool("weather", {"city": "Paris"}, id="call")
STEPS = (
    Reason("I need the weather", pieces=3),
    CALL,
    GiveResult(CALL, {"celsius": 21}),
    Say("Warm and sunny", pieces=4),
)
Program: TypeAlias = Callable[[Any, str], Awaitable[Any]]


async def list_agents(client: Any, agent_id: str) -> Any:
    return await client.agents.list_async()


async def raw_turn(client: Any, agent_id: str) -> Any:
    session = await client.sessions.create_async(agent_id=agent_id)
    stream = await client.sessions.create_event_async(session_id=session.id, content="Hello")
    async with stream:
        events = [event async for event in stream]
        assert len(events) > len(STEPS)
        assert len(stream.messages) == len(STEPS)
        return events, stream.messages, stream.tool_calls, stream.finished


async def ask(client: Any, agent_id: str) -> Any:
    conversation = await client.conversation_async(agent=agent_id, user="ada")
    reply = await conversation.ask("Hello")
    assert reply.text == "Warm and sunny"
    assert await conversation.belongs_to_user()
    return reply, await conversation.history()


async def two_turns(client: Any, agent_id: str) -> Any:
    conversation = await client.conversation_async(agent=agent_id)
    return [await conversation.ask("Hello"), await conversation.ask("Hello")]


async def find_turn(client: Any, agent_id: str) -> Any:
    conversation = await client.conversation_async(agent=agent_id)
    since = await conversation.next_offset()
    await conversation.ask("Hello")
    found = await conversation.find_turn("Hello", since=since)
    assert found is not None
    return found


async def relay(client: Any, agent_id: str) -> Any:
    conversation = await client.conversation_async(agent=agent_id)
    stream = await conversation.send("Hello")
    pieces = [piece async for piece in stream.relay(format=AiSdkFormat())]
    assert b'"type":"finish"' in b"".join(pieces)
    return b"".join(pieces)


async def not_found(client: Any, agent_id: str) -> Any:
    with pytest.raises(NotFoundError) as raised:
        await client.agents.retrieve_async(agent_id="0123456789")
    return raised.value.status_code, raised.value.message, raised.value.body


async def background_turn(client: Any, agent_id: str) -> Any:
    turns = in_mode("asyncio" if unwrapped(client) is client else "sync", BackgroundTurns())
    conversation = await client.conversation_async(agent=agent_id)
    turn = await turns.start_async(conversation, "Hello")
    pieces = [piece async for piece in turn.relay_async()]
    reply = await turn.wait_async()
    await turns.close_async(drain_seconds=10)
    assert reply.text == "Warm and sunny"
    return b"".join(pieces), reply


PROGRAMS: Final[tuple[Program, ...]] = (
    list_agents,
    raw_turn,
    ask,
    two_turns,
    find_turn,
    relay,
    background_turn,
    not_found,
)


def code_of_page(file: str) -> str:
    """Return the contents of a file of the page."""
    pattern = rf"^```py\n# {file}\n(.*?)^```$"
    (code,) = re.findall(pattern, PAGE, re.DOTALL | re.MULTILINE)
    return str(code)


def configuration() -> Any:
    """Return the names of the page's `conftest.py`."""
    names: dict[str, Any] = {}
    exec(compile(code_of_page("conftest.py"), "conftest.py", "exec"), names)  # noqa: S102 - the code of the page
    return names


def options() -> dict[str, Any]:
    config: dict[str, Any] = configuration()["vcr_config"].__wrapped__()
    return config


def both(
    way: Way, path: Path, fake: FakeTransport, program: Program, **client_options: Any
) -> tuple[Any, Any]:
    """Record a program with a server, and replay the program without; return both results."""
    results: list[Any] = []

    async def use() -> None:
        transport = way.make_transport()
        client = Flux0(url, transport=transport, timeout_ms=20_000, **client_options)
        async with in_mode(way.mode, client) as used:
            results.append(await program(used, fake.agent_id))

    cassette = str(path / "cassette.yaml")
    with fake.serve() as url, vcr.use_cassette(cassette, record_mode="once", **options()):
        run(way.mode, use)
    calls = len(fake.calls)
    with vcr.use_cassette(cassette, record_mode="none", **options()) as replaying:
        run(way.mode, use)
    assert len(fake.calls) == replaying.play_count == calls
    recorded, replayed = results
    return recorded, replayed


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
@pytest.mark.parametrize("way", LIBRARIES, ids=str)
def test_replay_returns_the_recorded_results(program: Program, way: Way, tmp_path: Path) -> None:
    recorded, replayed = both(way, tmp_path, FakeTransport(STEPS), program)
    assert recorded == replayed


@pytest.mark.parametrize("way", LIBRARIES, ids=str)
def test_rejected_token_is_renewed_in_the_replay(way: Way, tmp_path: Path) -> None:
    tokens: list[str] = []

    def token() -> str:
        tokens.append(f"Bearer secret-{len(tokens)}")
        return tokens[-1]

    fake = FakeTransport(STEPS)
    fake.inject(Respond(401), operation="agents.list")
    recorded, replayed = both(way, tmp_path, fake, list_agents, headers={"authorization": token})
    assert recorded == replayed
    assert len(tokens) == 4
    assert "secret" not in (tmp_path / "cassette.yaml").read_text("utf-8")


@pytest.mark.parametrize("way", LIBRARIES, ids=str)
def test_interrupted_turn_is_an_error_and_is_not_recorded(way: Way, tmp_path: Path) -> None:
    async def use() -> None:
        transport = way.make_transport()
        client = in_mode(way.mode, Flux0(url, transport=transport, timeout_ms=20_000))
        async with client:
            session = await client.sessions.create_async(agent_id=fake.agent_id)
            with pytest.raises(errors):
                await client.sessions.create_event_async(session_id=session.id, content="Hello")

    # vcrpy reads the response over aiohttp, and raises the exception of aiohttp.
    errors = aiohttp.ClientPayloadError if way.transport == "aiohttp" else TransportError
    fake = FakeTransport(STEPS)
    fake.inject(Truncate(after_events=3), operation="sessions.create_event")
    cassette = str(tmp_path / "cassette.yaml")
    with fake.serve() as url, vcr.use_cassette(cassette, **options()) as recorded:
        run(way.mode, use)
    assert [call.operation for call in fake.calls] == ["sessions.create", "sessions.create_event"]
    assert len(recorded) == 1


# During a cassette, vcrpy drops the idle connections of urllib3 without closing them.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("way", LIBRARIES, ids=str)
def test_client_may_be_used_before_and_after_its_cassettes(way: Way, tmp_path: Path) -> None:
    async def use() -> None:
        client = in_mode(way.mode, Flux0(url, transport=way.make_transport(), timeout_ms=20_000))
        async with client:
            await client.agents.list_async()
            for _ in range(2):
                with vcr.use_cassette(cassette, record_mode="once", **options()):
                    assert await client.agents.list_async()
                assert await client.agents.list_async()

    fake, cassette = FakeTransport(STEPS), str(tmp_path / "cassette.yaml")
    with fake.serve() as url:
        run(way.mode, use)
    assert len(fake.calls) == 4


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with the `conftest.py` and the test of the page."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("FLUX0_TOKEN", raising=False)
    pytester.makeconftest(code_of_page("conftest.py"))
    pytester.makepyfile(test_weather=code_of_page("test_weather.py"))
    return pytester


def run_tests(project: pytest.Pytester, mode: str, *arguments: str) -> pytest.RunResult:
    plugin = ("-p", "pytest_recording.plugin", f"--record-mode={mode}")
    return project.runpytest_subprocess(*plugin, "-p", "no:cacheprovider", *arguments)


@contextmanager
def server(
    monkeypatch: pytest.MonkeyPatch, answer: str = "It is sunny"
) -> Generator[FakeTransport, None, None]:
    """Serve a fake, to which the clients of the project connect."""
    fake = FakeTransport([Say(answer)])
    with fake.serve() as url:
        monkeypatch.setenv("FLUX0_SERVER_URL", url)
        yield fake


def cassettes(project: pytest.Pytester) -> str:
    """Return the contents of all cassettes of the project."""
    files = sorted(project.path.rglob("*.yaml"))
    assert files
    return "".join(file.read_text("utf-8") for file in files)


def test_sample_of_the_page_is_recorded_once_and_replayed_without_a_server(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(monkeypatch) as fake:
        run_tests(project, "once").assert_outcomes(passed=1)
        calls = len(fake.calls)
        run_tests(project, "once").assert_outcomes(passed=1)
        assert len(fake.calls) == calls
    run_tests(project, "none").assert_outcomes(passed=1)
    monkeypatch.setenv("FLUX0_SERVER_URL", "http://other.example:1")
    run_tests(project, "none").assert_outcomes(passed=1)


def test_mode_none_fails_without_a_cassette(project: pytest.Pytester) -> None:
    result = run_tests(project, "none")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*Can't play back this request*"])


def test_mode_all_records_again(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in ("It is sunny", "A sunny day"):
        with server(monkeypatch, answer):
            run_tests(project, "all").assert_outcomes(passed=1)
    assert "A sunny day" in cassettes(project)
    assert "It is sunny" not in cassettes(project)


def test_mode_new_episodes_records_only_new_requests(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(monkeypatch) as fake:
        run_tests(project, "once").assert_outcomes(passed=1)
        calls = [call.operation for call in fake.calls]
        test = code_of_page("test_weather.py") + "        client.sessions.list()\n"
        project.makepyfile(test_weather=test)
        run_tests(project, "new_episodes").assert_outcomes(passed=1)
        assert [call.operation for call in fake.calls] == [*calls, "sessions.list"]
    run_tests(project, "none").assert_outcomes(passed=1)


def test_changed_message_fails_with_the_difference(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(monkeypatch):
        run_tests(project, "once").assert_outcomes(passed=1)
    test = code_of_page("test_weather.py").replace("Paris", "Rome")
    project.makepyfile(test_weather=test)
    result = run_tests(project, "none")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*body differs:", "*-*Paris*", "*+*Rome*", "*record it again*"])


def test_workers_of_xdist_record_and_replay_their_own_cassettes(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makepyfile(test_news=code_of_page("test_weather.py"))
    with server(monkeypatch):
        run_tests(project, "once", "-p", "xdist", "-n", "2").assert_outcomes(passed=2)
    run_tests(project, "none", "-p", "xdist", "-n", "2").assert_outcomes(passed=2)


SECRET_TEST = """
import httpx
import pytest

from flux0 import Flux0

KEY = "sk-secret"


@pytest.mark.vcr
def test_secrets() -> None:
    with httpx.Client(cookies={"session": KEY}) as http:
        with Flux0(client=http, headers={"authorization": KEY, "x-api-key": KEY}) as client:
            conversation = client.conversation(agent=client.agents.first())
            assert KEY[:3] not in conversation.session_id
            answer = conversation.ask(f"My key is {KEY}").text
            assert answer in (f"Your key is {KEY}", "Your key is ***")
            client.sessions.list_events(session_id=conversation.session_id, correlation_id=KEY)
"""


def test_cassette_of_the_page_contains_no_secrets(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makepyfile(test_weather=SECRET_TEST)
    fake = FakeTransport([Say("Your key is sk-secret", pieces=1)])
    with fake.serve() as url:
        monkeypatch.setenv(
            "FLUX0_SERVER_URL", f"{url.replace('http://', 'http://user:sk-secret@')}"
        )
        run_tests(project, "once").assert_outcomes(passed=1)
    assert "sk-secret" not in cassettes(project)
    run_tests(project, "none").assert_outcomes(passed=1)
