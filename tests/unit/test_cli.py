"""The command line, against a fake server on a real socket."""

from __future__ import annotations

import json
import os
import pty
import re
import runpy
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any

import pytest
from typer.testing import CliRunner, Result

from flux0 import Flux0, __main__, __version__
from flux0.cli.app import app
from flux0.testing import (
    AgentStep,
    CallTool,
    Fail,
    FakeTransport,
    FallSilent,
    GiveResult,
    Reason,
    Report,
    Respond,
    Say,
    Truncate,
    UserMessage,
)
from support.fake_over_http import FakeOverHTTP

_SECONDS = 20.0  # Far more than anything here takes.

WEATHER = CallTool("get_weather", {"location": "SF"})
TURN: tuple[Any, ...] = (
    Report("processing", {"detail": "Thinking"}),
    Reason("Let me see.", pieces=3),
    WEATHER,
    GiveResult(WEATHER, {"sky": "foggy"}),
    Report("typing"),
    Say("It is foggy.", pieces=4),
)
TURN_SHOWN = """\
· processing: Thinking
Let me see.

• get_weather(location="SF")
  {"sky": "foggy"}

· typing
It is foggy.
"""


def reply(message: UserMessage) -> Iterable[AgentStep]:
    """Answer a text with itself, and what a test has prepared with that."""
    return TURN if message.content == "weather" else (Say(f"You said {message.content}."),)


@pytest.fixture
def fake() -> FakeTransport:
    """A fake server whose one agent echoes."""
    return FakeTransport(reply, agent_name="Drizzle", agent_types=("weather", "echo"))


@pytest.fixture
def server(fake: FakeTransport) -> Iterator[FakeOverHTTP]:
    """The fake on a socket."""
    with FakeOverHTTP(fake) as running:
        yield running


@pytest.fixture
def environment(server: FakeOverHTTP) -> Mapping[str, str]:
    """The environment of a process with `server` as its server, and nothing else out of ours."""
    ours = ("PATH", "HOME", "COVERAGE_PROCESS_START", "COVERAGE_FILE")
    kept = {name: value for name, value in os.environ.items() if name in ours}
    return {**kept, "FLUX0_SERVER_URL": server.url}


Run = Callable[..., Result]


@pytest.fixture
def run(environment: Mapping[str, str]) -> Run:
    """Runs a command, with `input` as its standard input."""

    def invoke(*arguments: str, input: str | bytes = "") -> Result:
        result = CliRunner().invoke(app, arguments, input=input, env=dict(environment))
        # Anything else that is raised would be a traceback for whoever uses the command.
        assert isinstance(result.exception, (SystemExit, type(None))), result.exception
        return result

    return invoke


@pytest.fixture
def client(fake: FakeTransport) -> Iterator[Flux0]:
    """A client of the same fake."""
    with Flux0(transport=fake) as flux0:
        yield flux0


@pytest.fixture
def agent_id(fake: FakeTransport) -> str:
    """The one agent's id."""
    return fake.agent_id


@pytest.fixture
def session_id(client: Flux0, agent_id: str) -> str:
    """A new session."""
    return client.sessions.create(agent_id=agent_id).id


def words(text: str) -> str:
    """Return a text without its line breaks and the boxes around it."""
    return " ".join(re.sub("[─│╭╮╰╯]", " ", text).split())


# --- help, version, and how it starts


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version").stdout == f"flux0-client {__version__}\n"


@pytest.mark.parametrize(
    ("command", "mentions"),
    [
        ((), ["chat", "demo", "events", "agents", "sessions", "flux0 demo"]),
        (("chat",), ["--session", "--agent-type", "--idle-timeout", "flux0 chat", "Ctrl-C"]),
        (("demo",), ["no server", "flux0 chat --demo"]),
        (("events",), ["--type", "--source", "--correlation-id", "--min-offset", "flux0 events"]),
        (("agents",), ["list", "create"]),
        (("agents", "list"), ["--server-url", "--json"]),
        (("agents", "create"), ["--description", "flux0 agents create"]),
        (("sessions",), ["list", "create"]),
        (("sessions", "list"), ["--agent", "--user"]),
        (("sessions", "create"), ["--title", "flux0 sessions create"]),
    ],
)
def test_help_explains_each_command(
    run: Run, command: tuple[str, ...], mentions: list[str]
) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert [text for text in mentions if text not in words(result.stdout)] == []


def test_help_loads_no_http_library(environment: Mapping[str, str]) -> None:
    code = (
        "import sys\n"
        "from flux0.cli.app import app\n"
        "app(['--help'], standalone_mode=False)\n"
        "sys.exit(str({'httpx', 'cattrs', 'anyio'} & sys.modules.keys()))\n"
    )
    done = finished(environment, "-c", code)
    assert done.stderr.strip() == "set()"


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_extra_one_line_says_what_to_install(
    environment: Mapping[str, str], package: str
) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.modules['{package}'] = None\n"
        "sys.argv = ['flux0', 'agents', 'list']\n"
        "runpy.run_module('flux0', run_name='__main__')\n"
    )
    done = finished(environment, "-c", code)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "pip install 'flux0-client[cli]'" in done.stderr


def test_another_missing_module_is_not_blamed_on_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flux0.cli.app", None)
    with pytest.raises(ModuleNotFoundError, match=r"flux0\.cli\.app"):
        __main__.main()


def test_the_package_is_a_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["flux0", "--version"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(__main__.__file__, run_name="__main__")
    assert __version__ in capsys.readouterr().out


def test_without_the_extra_the_command_ends_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "flux0.cli.app")
    with pytest.raises(SystemExit, match=re.escape("pip install 'flux0-client[cli]'")):
        __main__.main()


# --- agents and sessions


def test_agents_are_listed_as_a_table(run: Run, client: Flux0, agent_id: str) -> None:
    echo = client.agents.create(name="Echo [red]", type_="echo", description="Says\nit again")
    head, *rows = run("agents", "list").stdout.splitlines()
    assert head.split() == ["ID", "TYPE", "NAME", "CREATED", "DESCRIPTION"]
    assert [row.split()[0] for row in rows] == [agent_id, echo.id]
    assert "Echo [red]" in rows[1]
    assert rows[1].endswith("Says it again")


def test_agents_are_listed_as_json(run: Run, agent_id: str) -> None:
    (agent,) = json.loads(run("agents", "list", "--json").stdout)["data"]
    assert (agent["id"], agent["type"], agent["description"]) == (agent_id, "weather", None)


def test_an_agent_is_created(run: Run, client: Flux0) -> None:
    made = run("agents", "create", "Echo", "echo", "--description", "Says it again", "--json")
    agent = client.agents.retrieve(agent_id=json.loads(made.stdout)["id"])
    assert (agent.name, agent.type, agent.description) == ("Echo", "echo", "Says it again")
    assert "Echo" in run("agents", "create", "Echo", "echo").stdout


def test_sessions_are_created_and_listed_for_a_user(run: Run, agent_id: str) -> None:
    made = run("sessions", "create", agent_id, "--title", "My day", "--user", "ann", "--json")
    session = json.loads(made.stdout)
    assert session["title"] == "My day"
    head, row = run("sessions", "list", "--user", "ann").stdout.splitlines()
    assert head.split() == ["ID", "AGENT", "CREATED", "TITLE"]
    assert row.split()[:2] == [session["id"], agent_id]
    assert row.endswith("My day")
    nobodys = run("sessions", "list")
    assert (nobodys.stdout, nobodys.stderr) == ("", "There are none.\n")
    assert json.loads(run("sessions", "list", "--json").stdout) == {"data": []}
    assert run("sessions", "list", "--user", "ann", "--agent", "x" * 10).stdout == ""


def test_a_session_that_was_created_is_shown(run: Run, agent_id: str) -> None:
    assert run("sessions", "create", agent_id).stdout.splitlines()[1].split()[1] == agent_id


# --- events


@pytest.fixture
def talk(client: Flux0, session_id: str) -> str:
    """The id of a session in which two turns were had."""
    conversation = client.conversation(session=session_id)
    for content in ("weather", "bye"):
        with conversation.send(content) as stream:
            stream.final_messages()
    return session_id


def test_events_are_listed_turn_by_turn(run: Run, client: Flux0, talk: str) -> None:
    stored = client.sessions.list_events(session_id=talk)
    lines = [line.strip() for line in run("events", talk).stdout.splitlines()]
    assert lines[0].startswith(stored[0].correlation_id)
    assert lines[1:8] == [
        "0  user      message  weather",
        "1  ai_agent  status   processing: Thinking",
        "2  ai_agent  message  (reasoning) Let me see.",
        '3  ai_agent  message  get_weather(location="SF")',
        '4  ai_agent  tool     get_weather: {"sky": "foggy"}',
        "5  ai_agent  status   typing",
        "6  ai_agent  message  It is foggy.",
    ]
    assert lines[8].startswith(stored[-1].correlation_id)
    assert lines[9:] == ["7  user      message  bye", "8  ai_agent  message  You said bye."]


def test_events_are_listed_as_json_and_filtered(run: Run, client: Flux0, talk: str) -> None:
    def offsets(*options: str) -> list[int]:
        listed = json.loads(run("events", talk, "--json", *options).stdout)
        return [event["offset"] for event in listed["data"]]

    turn = client.sessions.list_events(session_id=talk)[-1].correlation_id
    assert offsets() == list(range(9))
    assert offsets("--type", "tool", "--type", "status") == [1, 4, 5]
    assert offsets("--source", "user") == [0, 7]
    assert offsets("--min-offset", "6") == [6, 7, 8]
    assert offsets("--correlation-id", turn, "--source", "ai_agent") == [8]


def test_no_events_are_none(run: Run, talk: str) -> None:
    result = run("events", talk, "--type", "custom")
    assert (result.stdout, result.stderr) == ("", "There are none.\n")


def test_events_that_are_not_known_are_listed_as_json(
    run: Run, client: Flux0, fake: FakeTransport, session_id: str
) -> None:
    event = {
        "id": "e",
        "correlation_id": "t",
        "type": "custom",
        "source": "system",
        "offset": 0,
        "data": {"type": "mood", "value": 1},
        "deleted": False,
        "created_at": "2026-01-01T00:00:00Z",
    }
    parts = [{"type": "smell", "of": "roses"}, {"type": "content", "content": {"a": 1}}]
    message = {**event, "type": "message", "data": {"type": "message", "parts": parts}}
    fake.inject(Respond(200, body=json.dumps({"data": [event, message]}).encode()))
    shown = run("events", session_id).stdout
    assert '{"type": "mood", "value": 1}' in shown
    assert '{"type": "smell", "of": "roses"} {"a": 1}' in shown


def test_an_id_that_begins_with_a_hyphen_is_no_option(run: Run) -> None:
    for command in (["events", "-helpmeABC"], ["sessions", "create", "-helpmeABC"]):
        result = run(*command)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "-helpmeABC" in result.stderr
    assert "-helpmeABC" in run("chat", "--session", "-helpmeABC", "Hi").stderr


# --- one turn


def test_a_turn_is_shown_with_all_it_has(run: Run, session_id: str) -> None:
    result = run("chat", "weather", "--session", session_id)
    assert (result.exit_code, result.stdout) == (0, TURN_SHOWN)


def test_the_session_is_named_beside_the_turn(run: Run, client: Flux0) -> None:
    result = run("chat", "Hi")
    (session,) = client.sessions.list()
    assert result.stderr == f"Session {session.id} with Drizzle.\n"


def test_a_turn_is_printed_as_one_line_of_json_per_event(run: Run, session_id: str) -> None:
    result = run("chat", "--json", "weather", "--session", session_id)
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["data"]["status"] for event in events if "data" in event] == [
        "processing",
        "typing",
    ]
    assert events[-1]["patches"][0]["op"] == "add"
    assert len(events) == 13
    assert result.stderr == ""


def test_json_has_null_for_what_json_has_no_number_for(
    run: Run, fake: FakeTransport, session_id: str
) -> None:
    fake.script([Report("typing", {"at": float("nan"), "é": "\udc80"})])
    result = run("chat", "--json", "Hi", "--session", session_id)
    assert json.loads(result.stdout)["data"]["data"] == {"at": None, "é": "\udc80"}


def test_what_the_encoding_lacks_is_escaped(environment: Mapping[str, str]) -> None:
    ascii_only = {**environment, "PYTHONIOENCODING": "ascii"}
    done = finished(ascii_only, "-m", "flux0", "chat", "caf\u00e9")
    assert (done.returncode, done.stdout) == (0, "You said caf\\xe9.\n")


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_an_agents_error_is_a_failure(
    run: Run, fake: FakeTransport, options: tuple[str, ...]
) -> None:
    fake.script([Say("Well"), Fail({"exception": "boom"})])
    result = run("chat", "Hi", *options)
    assert result.exit_code == 1
    assert "boom" in result.stdout


def test_a_turn_that_is_cut_off_is_a_failure_after_what_was_said(
    run: Run, fake: FakeTransport
) -> None:
    fake.script([Say("Once upon", pieces=2), Say("a time")])
    fake.inject(Truncate(2), operation="sessions.create_event")
    result = run("chat", "Hi")
    assert (result.exit_code, result.stdout) == (1, "Once upon\n")
    _, problem = result.stderr.splitlines()
    assert problem.startswith("Error: the stream was cut off")


def test_an_agent_that_falls_silent_is_given_up(run: Run, fake: FakeTransport) -> None:
    fake.script([Say("Hm"), FallSilent()])
    result = run("chat", "Hi", "--idle-timeout", "1")
    assert (result.exit_code, result.stdout) == (1, "Hm\n")
    assert "silent for too long" in result.stderr


# --- whom one talks to


def test_an_agent_is_chosen_by_its_id(run: Run, client: Flux0) -> None:
    echo = client.agents.create(name="Echo", type_="echo")
    assert run("chat", "Hi", "--agent", echo.id).exit_code == 0
    assert [session.agent_id for session in client.sessions.list()] == [echo.id]


def test_an_agent_is_chosen_by_its_type_and_created_if_there_is_none(
    run: Run, client: Flux0, agent_id: str
) -> None:
    assert run("chat", "Hi", "--agent-type", "weather").exit_code == 0
    assert run("chat", "Hi", "--agent-type", "echo").exit_code == 0
    assert run("chat", "Hi", "--agent-type", "echo").exit_code == 0
    first, echo = client.agents.list()
    chosen = [session.agent_id for session in client.sessions.list()]
    assert (first.id, chosen) == (agent_id, [agent_id, echo.id, echo.id])


def test_of_several_agents_one_must_be_chosen(run: Run, client: Flux0, agent_id: str) -> None:
    echo = client.agents.create(name="Echo", type_="echo")
    result = run("chat", "Hi")
    assert result.exit_code == 2
    shown = words(result.stderr)
    assert f"{agent_id} Drizzle (weather) {echo.id} Echo (echo)" in shown
    assert "--agent ID" in shown


def test_without_an_agent_there_is_nobody_to_talk_to(run: Run, fake: FakeTransport) -> None:
    fake.inject(Respond(200, body=b'{"data": []}'))
    result = run("chat", "Hi")
    assert result.exit_code == 2
    assert "The server has no agent yet" in words(result.stderr)


@pytest.mark.parametrize(
    "options",
    [
        ("--agent", "a", "--agent-type", "b"),
        ("--agent", "a", "--session", "b"),
        ("--agent-type", "a", "--session", "b"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    run: Run, fake: FakeTransport, options: tuple[str, ...]
) -> None:
    result = run("chat", "Hi", *options)
    assert result.exit_code == 2
    assert "--agent, --agent-type and --session exclude each other." in words(result.stderr)
    assert fake.calls == ()


def test_json_needs_a_message(run: Run) -> None:
    result = run("chat", "--json")
    assert result.exit_code == 2
    assert "--json: needs a MESSAGE." in words(result.stderr)


# --- problems


def test_a_server_that_is_not_there_is_one_line(run: Run) -> None:
    for command in (["agents", "list"], ["chat"]):
        result = run(*command, "--server-url", "http://127.0.0.1:1")
        assert (result.exit_code, result.stdout) == (1, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith("Error: No connection to http://127.0.0.1:1: ")
        assert line.endswith(" Is the server running?")


def test_what_the_server_refuses_is_one_line(run: Run, fake: FakeTransport) -> None:
    unknown = run("chat", "Hi", "--session", "x" * 10)
    assert (unknown.exit_code, unknown.stderr) == (
        1,
        "Error: 404: Session with ID xxxxxxxxxx not found\n",
    )
    fake.inject(Respond(400, "one\ntwo \x1b[31m"))
    assert run("agents", "list").stderr == "Error: 400: one two \\x1b[31m\n"


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["chat", ""], "content"),
        (["sessions", "list", "--user", "a b"], "user cannot be sent in a cookie"),
        (["agents", "list", "--server-url", "example.com"], "server_url must be like http://"),
        (["chat", "Hi", "--idle-timeout", "0"], "--idle-timeout"),
        (["events", "x", "--min-offset", "-1"], "--min-offset"),
        (["events", "x", "--type", "nonsense"], "--type"),
        (["agents", "create", "Echo"], "TYPE"),
        (["nonsense"], "nonsense"),
        (["agents", "list", "--nonsense"], "--nonsense"),
    ],
)
def test_a_wrong_use_ends_with_2(run: Run, command: list[str], problem: str) -> None:
    result = run(*command)
    assert (result.exit_code, result.stdout) == (2, "")
    assert problem in words(result.stderr)


# --- a conversation, where nobody sits at a terminal


def test_each_line_of_the_input_is_a_turn(run: Run) -> None:
    result = run("chat", input="one\n\n  two \nexit\nthree\n")
    assert (result.exit_code, result.stdout) == (0, "You said one.\n\nYou said two.\n\n")


def test_a_line_that_is_not_in_the_encoding_is_read_all_the_same(run: Run) -> None:
    assert run("chat", input=b"caf\xe9\n").stdout == "You said caf\ufffd.\n\n"


def test_a_conversation_ends_with_the_input(run: Run) -> None:
    assert run("chat", input="one").stdout == "You said one.\n\n"


def test_a_conversation_goes_on_after_a_turn_that_failed(run: Run, fake: FakeTransport) -> None:
    fake.script([Fail("boom")], "fine")
    result = run("chat", input="one\ntwo\n")
    assert result.exit_code == 1
    assert result.stdout == "· error: boom\n\nfine\n\n"


def test_a_conversation_goes_on_after_the_server_has_failed(run: Run, fake: FakeTransport) -> None:
    fake.inject(Respond(503, "busy"), operation="sessions.create_event")
    result = run("chat", input="one\ntwo\n")
    assert (result.exit_code, result.stdout) == (1, "\nYou said two.\n\n")
    assert "Error: 503: busy" in result.stderr


def test_a_session_that_is_taken_up_begins_with_its_history(run: Run, talk: str) -> None:
    result = run("chat", "--session", talk, input="again\n")
    assert result.stdout == (
        "> weather\nLet me see.\n\n"
        '• get_weather(location="SF")\n  {"sky": "foggy"}\n\nIt is foggy.\n\n'
        "> bye\nYou said bye.\n\n"
        "You said again.\n\n"
    )


def test_a_session_that_is_new_has_no_history(run: Run, session_id: str) -> None:
    assert run("chat", "--session", session_id, input="Hi\n").stdout == "You said Hi.\n\n"


# --- the demo


def test_the_demo_needs_no_server(run: Run) -> None:
    result = run("demo")
    assert (result.exit_code, result.stderr) == (0, "")
    question, *_ = blocks = result.stdout.split("\n")
    assert question.startswith("> What's the weather")
    assert '• get_weather(location="San Francisco")' in blocks
    assert "  " + json.dumps({"celsius": 16, "sky": "foggy"}) in blocks


def test_one_can_talk_to_the_demo_agent(run: Run) -> None:
    result = run("chat", "--demo", "How is it in Oslo?", "--server-url", "http://127.0.0.1:1")
    assert result.exit_code == 0
    assert "foggy in Oslo" in result.stdout


# --- a process of its own


def finished(
    environment: Mapping[str, str], *arguments: str, input: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run Python to its end."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        input=input,
        capture_output=True,
        encoding="utf-8",
        timeout=_SECONDS,
        check=False,
    )


def test_output_that_is_piped_is_plain_text(environment: Mapping[str, str]) -> None:
    done = finished({**environment, "TERM": "xterm-256color"}, "-m", "flux0", "chat", "weather")
    assert (done.returncode, done.stdout) == (0, TURN_SHOWN)
    assert "\x1b" not in done.stderr


def started(environment: Mapping[str, str], *arguments: str) -> subprocess.Popen[str]:
    """Start a command that can be talked to."""
    return subprocess.Popen(
        [sys.executable, "-m", "flux0", *arguments],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def read_until(stream: IO[str] | None, text: str) -> str:
    """Read what comes until `text` has; the end of the stream before that is a failure."""
    assert stream is not None
    read = ""
    while not read.endswith(text):
        more = os.read(stream.fileno(), 1).decode()
        assert more, read
        read += more
    return read


def press_ctrl_c(interrupt: Callable[[], None], until: threading.Event) -> None:
    """Interrupt, and again if Python missed that because it was just about to wait."""
    for _ in range(5):
        interrupt()
        if until.wait(_SECONDS / 10):
            return
    pytest.fail("Ctrl-C did nothing")


def interrupt_main_thread() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@pytest.fixture
def bound() -> Iterator[Callable[[subprocess.Popen[str]], subprocess.Popen[str]]]:
    """Kills a process that is still there when its time is over, so that reading from it ends."""
    timers: list[threading.Timer] = []

    def bind(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
        timers.append(threading.Timer(_SECONDS, process.kill))
        timers[-1].start()
        return process

    yield bind
    for timer in timers:
        timer.cancel()
        timer.join()


Bound = Callable[["subprocess.Popen[str]"], "subprocess.Popen[str]"]


def test_text_is_written_as_it_comes_and_ctrl_c_leaves_the_turn(
    environment: Mapping[str, str], bound: Bound, fake: FakeTransport, server: FakeOverHTTP
) -> None:
    fake.script([Say("Once upon"), FallSilent()])
    with bound(started(environment, "chat", "Hi")) as process:
        read_until(process.stdout, "Once upon")
        press_ctrl_c(lambda: process.send_signal(signal.SIGINT), until=server.left)
        rest, problems = process.communicate()
    assert (process.returncode, rest) == (130, "\n")
    assert problems.splitlines()[1:] == []


def test_ctrl_c_ends_a_turn_and_the_conversation_goes_on(
    environment: Mapping[str, str], bound: Bound, fake: FakeTransport, server: FakeOverHTTP
) -> None:
    fake.script([Say("Once upon"), FallSilent()])
    with bound(started(environment, "chat")) as process:
        assert process.stdin is not None
        process.stdin.write("one\n")
        process.stdin.flush()
        read_until(process.stdout, "Once upon")
        press_ctrl_c(lambda: process.send_signal(signal.SIGINT), until=server.left)
        rest, notes = process.communicate("two\n")
    assert (process.returncode, rest) == (0, "\n\nYou said two.\n\n")
    assert notes.splitlines()[1:] == ["The turn was ended."]


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_reader_who_leaves_is_no_problem(
    environment: Mapping[str, str], bound: Bound, fake: FakeTransport, options: tuple[str, ...]
) -> None:
    fake.script([Say("word " * 100, pieces=100)])
    with bound(started(environment, "chat", "Hi", *options)) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert len(process.stderr.read().splitlines()) == (0 if options else 1)
    assert process.returncode == 1


# --- a terminal


class Terminal:
    """A terminal of 40 columns that this process's standard streams are connected to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, server_url: str) -> None:
        self._master, slave = pty.openpty()
        attributes = termios.tcgetattr(slave)
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        self._streams = (os.fdopen(slave, "r"), os.fdopen(os.dup(slave), "w"))
        self._monkeypatch = monkeypatch
        for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"TERM": "xterm", "COLUMNS": "40", "LINES": "20"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("FLUX0_SERVER_URL", server_url)
        self._shown = ""
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str) -> None:
        """Return once `text` is shown."""
        with self._changed:
            assert self._changed.wait_for(lambda: text in self._shown, _SECONDS), self._shown

    def run(self, *arguments: str) -> int:
        """Run a command and return its exit code."""
        self._monkeypatch.setattr(sys, "stdin", self._streams[0])
        self._monkeypatch.setattr(sys, "stdout", self._streams[1])
        with pytest.raises(SystemExit) as leaving:
            app(arguments)
        assert isinstance(leaving.value.code, int)
        return leaving.value.code

    def close(self) -> str:
        """Return all that was shown, with escape sequences that begin with `~`."""
        for stream in self._streams:
            stream.close()
        self._reader.join()
        os.close(self._master)
        self._monkeypatch.undo()
        return self._shown.replace("\r\n", "\n").replace("\x1b[", "~")

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 1000)
            except OSError:  # How Linux says that nobody is left on the other side.
                return
            with self._changed:
                self._shown += data.decode()
                self._changed.notify_all()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, server: FakeOverHTTP) -> Terminal:
    return Terminal(monkeypatch, server.url)


def test_a_terminal_gets_styles(terminal: Terminal) -> None:
    assert terminal.run("chat", "weather") == 0
    assert terminal.close() == (
        "~2m· processing: Thinking~0m\n"
        "~2;3mLet~0m~2;3m me ~0m~2;3msee.~0m\n\n"
        '~36m• get_weather(location="SF")~0m\n  {"sky": "foggy"}\n\n'
        "~2m· typing~0m\n"
        "It is foggy.\n"
    )


def test_a_terminal_gets_lines_that_are_broken_between_words(
    terminal: Terminal, fake: FakeTransport
) -> None:
    text = "It will be foggy in the morning and sunny in the afternoon."
    fake.script([Say(text, pieces=59)])
    assert terminal.run("chat", "Hi") == 0
    shown = terminal.close()
    assert "\x1b" not in shown
    # The beginning of a word that did not fit is taken back, and said again on the next line.
    assert shown == "It will be foggy in the morning and sunn~37G~K\nsunny in the afternoon.\n"


def test_a_terminal_without_colors_gets_the_other_styles(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal.run("chat", "weather") == 0
    shown = terminal.close()
    assert "~2m· typing~0m" in shown
    assert '\n• get_weather(location="SF")\n' in shown


def test_a_table_fits_the_terminal(terminal: Terminal, client: Flux0, talk: str) -> None:
    client.agents.create(name="Echo", type_="echo", description="word " * 20)
    assert terminal.run("agents", "list") == 0
    assert terminal.run("events", talk) == 0
    shown = terminal.close()
    plain = re.sub(r"~[\d;]*m", "", shown)
    assert max(map(len, plain.splitlines())) <= 40
    assert plain.count("word") == 20


def test_a_terminal_that_can_do_nothing_gets_plain_text(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert terminal.run("chat", "weather") == 0
    assert terminal.close() == TURN_SHOWN


def test_somebody_at_a_terminal_is_prompted(
    terminal: Terminal, fake: FakeTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.script([Fail("boom")], "fine")
    terminal.type("one\ntwo\n\x04")
    assert terminal.run("chat") == 0  # They saw that a turn had failed.
    assert terminal.close() == "> ~1;31m· error: boom~0m\n\n> fine\n\n> \n"
    assert "Ctrl-D" in capsys.readouterr().err


def test_ctrl_c_at_the_prompt_leaves(terminal: Terminal) -> None:
    over = threading.Event()

    def interrupt() -> None:
        terminal.wait_for("> ")
        press_ctrl_c(interrupt_main_thread, until=over)

    somebody = threading.Thread(target=interrupt)
    somebody.start()
    assert terminal.run("chat") == 130
    over.set()
    somebody.join()
    assert terminal.close() == "> \n"


def test_ctrl_c_in_a_turn_leads_back_to_the_prompt(
    terminal: Terminal, fake: FakeTransport, server: FakeOverHTTP
) -> None:
    fake.script([Say("Once upon"), FallSilent()], "fine")

    def interrupt() -> None:
        terminal.wait_for("Once upon")
        press_ctrl_c(interrupt_main_thread, until=server.left)
        terminal.type("two\nexit\n")

    somebody = threading.Thread(target=interrupt)
    somebody.start()
    terminal.type("one\n")
    assert terminal.run("chat") == 0
    somebody.join()
    assert terminal.close() == "> Once upon\n\n> fine\n\n> "
