"""The command line, with a fake server on a real socket."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import runpy
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import IO, Any

import pytest
from typer.testing import CliRunner, Result

from flux0 import Flux0, Flux0Error, __main__, __version__, to_dict
from flux0.cli.app import app
from flux0.models import ContentPart, MessageData
from flux0.testing import (
    AgentStep,
    CallTool,
    Fail,
    FakeTransport,
    FallSilent,
    GiveResult,
    Reason,
    Refuse,
    Report,
    Respond,
    Say,
    Truncate,
    UserMessage,
)
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import WaitForRelease
from support.ending import ends_soon
from support.fake_over_http import FakeOverHTTP
from support.in_memory import CORRELATION_ID, status
from support.time_zone import local_time_zone

_SECONDS = 60.0  # The limit of all waits. A test that reaches the limit fails.
PYTHON = (sys.executable,)
_FULL_DEVICE = "Error: cannot write the output: No space left on device"

WEATHER = CallTool("get_weather", {"location": "SF"})
TURN: tuple[Any, ...] = (
    Report("processing", {"detail": "Thinking"}),
    Reason("Let me see.", pieces=3),
    WEATHER,
    GiveResult(WEATHER, {"sky": "foggy"}),
    Report("typing"),
    Say("It is foggy.", pieces=4),
)
TURN_STDERR = """\
· processing: Thinking
Let me see.

• get_weather(location="SF")
  {"sky": "foggy"}

· typing
"""
TURN_STDOUT = "It is foggy.\n"
SELECTION = "--agent, --agent-type, --session and --continue"


def reply(message: UserMessage) -> Iterable[AgentStep]:
    """Answer "weather" with `TURN`, and all other messages with an echo."""
    return TURN if message.content == "weather" else (Say(f"You said {message.content}."),)


@pytest.fixture(autouse=True)
def _terminal_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets the terminal's variables, so that tests do not depend on the environment."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE", "FLUX0_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", "COLUMNS": "100", "LINES": "20"}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def fake() -> FakeTransport:
    """A fake server whose only agent echoes messages."""
    return FakeTransport(reply, agent_name="Drizzle", agent_types=("weather", "echo"))


Run = Callable[..., Result]


@pytest.fixture
def run(environment: Mapping[str, str]) -> Run:
    """Runs a command, with `input` as its standard input."""

    def invoke(*arguments: str, input: str | bytes = "") -> Result:
        result = CliRunner().invoke(app, arguments, input=input, env=dict(environment))
        # The command's user would see any other exception as a traceback.
        assert isinstance(result.exception, (SystemExit, type(None))), result.exception
        return result

    return invoke


@pytest.fixture
def client(fake: FakeTransport) -> Iterator[Flux0]:
    """A client over the fake, to prepare and check its data."""
    with Flux0(transport=fake) as flux0:
        yield flux0


@pytest.fixture
def agent_id(fake: FakeTransport) -> str:
    """The fake has only this agent. Return its id."""
    return fake.agent_id


@pytest.fixture
def session_id(client: Flux0, agent_id: str) -> str:
    """The id of a new session."""
    return client.sessions.create(agent_id=agent_id).id


def words(text: str) -> str:
    """Return the words of a help text, without styles, line breaks and borders."""
    return " ".join(re.sub("[─│╭╮╰╯]", " ", re.sub("\x1b\\[[0-9;]*m", "", text)).split())


# --- help, version, entry points


@pytest.mark.parametrize(
    ("command", "mentions"),
    [
        ("", "chat demo events agents sessions --header -h, -u,"),
        ("chat", "-s, --session -a, --agent-type --idle-timeout --lines --json FLUX0_TOKEN -c,"),
        ("events", "--type --source --correlation-id --min-offset --user"),
        ("serve-demo", "--port Ctrl-C"),
        ("agents", "list get create"),
        ("agents create", "NAME TYPE --description --server-url --timeout --json Examples:"),
        ("sessions list", "--agent --user"),
    ],
)
def test_help_mentions_subcommands_and_options(run: Run, command: str, mentions: str) -> None:
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert [text for text in mentions.split() if text not in result.stdout] == []
    assert run(*command.split(), "-h").stdout == result.stdout


@pytest.mark.parametrize("group", ["", "agents", "sessions"])
def test_group_without_subcommand_shows_its_help(run: Run, group: str) -> None:
    assert run(*group.split()).output == run(*group.split(), "--help").output


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("command", ["", "chat", "events", "mcp", "agents create"])
def test_help_fits_the_terminal_and_shows_the_complete_names_of_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, columns: int
) -> None:
    # The width is read when the module is imported, as in a new process.
    monkeypatch.delattr("flux0.cli.app")
    monkeypatch.delitem(sys.modules, "flux0.cli.app")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "argv", ["flux0-client", *command.split(), "--help"])
    with pytest.raises(SystemExit, match="0"):
        __main__.main()
    shown = capsys.readouterr().out
    text, _, examples = shown.partition("Examples:")  # Examples are not wrapped.
    assert [line for line in text.splitlines() if len(line) > columns] == []
    for name in ("--server-url URL", "--header 'NAME: VALUE'", "-h, --help"):
        assert f"  {name} " in text
    flags = re.findall(r"^  (?:-\w, )?(--[a-z-]+)  ", text, re.MULTILINE)  # They have no type.
    assert {"--json", "--help"} <= {*flags}
    assert len(examples.splitlines()) == examples.count("flux0-client") + bool(examples)


@pytest.mark.parametrize(
    ("typed", "completions"),
    [
        ("ag", ["agents"]),
        ("agents ", ["list", "get", "create"]),
        ("events qH-klmX3cz --source ", ["user", "ai_agent", "system"]),
        ("chat --agent-", ["--agent-type"]),
    ],
)
def test_shell_completes_commands_and_options(typed: str, completions: list[str]) -> None:
    assert completed({}, typed) == completions


def completed(environment: Mapping[str, str], typed: str, shell: str = "bash") -> list[str]:
    """Return the shell's completions of a command line."""
    variables = {
        **environment,
        "_FLUX0_CLIENT_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": f"flux0-client {typed}",
        "COMP_CWORD": str(len(f"{typed}.".split())),
        "_TYPER_COMPLETE_ARGS": f"flux0-client {typed}",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = CliRunner().invoke(app, env=variables, prog_name="flux0-client")
    assert done.exit_code == 0
    return done.stdout.strip().splitlines()


@pytest.fixture
def ann(client: Flux0, agent_id: str) -> str:
    """The user "ann" has only this session. Return its id."""
    titled = "Rain; rm -rf ~"
    return client.conversation(agent=agent_id, user="ann", title=titled).session_id


@pytest.mark.parametrize(
    ("typed", "completions"),
    [
        ("chat --agent ", ["AGENT", "Drizzle"]),
        ("chat -a Dri", ["Drizzle"]),
        ("sessions list -a nope", []),
        ("agents get ", ["AGENT"]),
        ("chat --user ann --session ", ["SESSION"]),
        ("-u ann events s", ["SESSION"]),
        ("--user bob events ", []),
        ("sessions get --server-url http://127.0.0.1:1 ", []),
        ("sessions get --header wrong ", []),
    ],
)
def test_agents_and_sessions_of_the_user_are_completed(
    environment: Mapping[str, str],
    agent_id: str,
    ann: str,
    typed: str,
    completions: list[str],
) -> None:
    names = {"AGENT": agent_id, "SESSION": ann}
    assert completed(environment, typed) == [names.get(each, each) for each in completions]


def test_completion_ends_if_the_server_does_not_respond() -> None:
    with ByteServer((WaitForRelease(),)) as server, ends_soon(30):
        assert completed({}, f"agents get --server-url {server.url} ") == []


@pytest.mark.parametrize(("shell", "line"), [("zsh", '"{}":"{}"'), ("fish", "{}\t{}")])
def test_completion_shows_descriptions_without_characters_that_a_shell_interprets(
    environment: Mapping[str, str],
    client: Flux0,
    agent_id: str,
    ann: str,
    shell: str,
    line: str,
) -> None:
    client.agents.create(name="run-$(reboot)", type_="echo")
    sessions = "\n".join(completed(environment, "events -u ann ", shell))
    assert line.format(ann, "Rain rm -rf") in sessions
    agents = "\n".join(completed(environment, "chat --agent ", shell))
    assert line.format("Drizzle", agent_id) in agents
    assert "$" not in agents


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
def test_missing_package_of_the_extra_is_reported_with_the_install_command(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["flux0-client", "agents", "list"])
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delattr("flux0.cli")
    for name in tuple(sys.modules):
        if name == "flux0.cli" or name.startswith(("flux0.cli.", f"{package}.")):
            monkeypatch.delitem(sys.modules, name)
    problem = f"the command line needs the package {package}: pip install 'flux0-client[cli]'"
    with pytest.raises(SystemExit, match=re.escape(problem)):
        __main__.main()


def test_missing_module_of_flux0_is_not_reported_as_missing_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "flux0.cli.app", None)
    with pytest.raises(ModuleNotFoundError, match=r"flux0\.cli\.app"):
        __main__.main()


def test_package_can_be_run_with_python_m(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["flux0-client", "--version"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(__main__.__file__, run_name="__main__")
    assert __version__ in capsys.readouterr().out


# --- agents and sessions


def test_agents_are_listed_as_a_table(run: Run, client: Flux0, agent_id: str) -> None:
    echo = client.agents.create(name="Echo [red]", type_="echo", description="Says\nit again")
    head, *rows = run("agents", "list").stdout.splitlines()
    assert head.split() == ["ID", "TYPE", "NAME", "CREATED", "DESCRIPTION"]
    assert [row.split()[0] for row in rows] == [agent_id, echo.id]
    assert "Echo [red]" in rows[1]
    assert rows[1].endswith("Says it again")
    for command in ("agents list --json", "--json agents list", "agents --json list"):
        listed = json.loads(run(*command.split()).stdout)["data"]
        assert [agent["id"] for agent in listed] == [agent_id, echo.id]


def test_missing_description_and_title_are_empty(run: Run, agent_id: str, session_id: str) -> None:
    created = "2026-01-01 00:00"
    with local_time_zone("UTC0"):
        _, agent = run("agents", "list").stdout.splitlines()
        _, session = run("sessions", "list").stdout.splitlines()
    assert agent == f"{agent_id}  weather  Drizzle  {created}"
    assert session == f"{session_id}  {agent_id}  {created}"


def test_times_are_in_the_local_time_zone(run: Run) -> None:
    with local_time_zone("XYZ-9"):
        assert "2026-01-01 09:00" in run("agents", "list").stdout


def test_agent_is_created_with_name_type_and_description(run: Run, client: Flux0) -> None:
    made = run("agents", "create", "Echo", "echo", "--description", "Says it again", "--json")
    agent = client.agents.retrieve(agent_id=json.loads(made.stdout)["id"])
    assert (agent.name, agent.type, agent.description) == ("Echo", "echo", "Says it again")
    shown = run("agents", "get", agent.id).stdout
    assert shown.splitlines()[1].startswith(f"{agent.id}  echo  Echo")
    assert run("agents", "get", agent.id, "--json").stdout == made.stdout
    assert made.stdout.startswith('{\n  "')


def test_sessions_are_created_and_listed_for_a_user(run: Run, agent_id: str) -> None:
    made = run("sessions", "create", agent_id, "--title", "My day", "--user", "ann", "--json")
    session = json.loads(made.stdout)
    assert session["title"] == "My day"
    head, row = run("sessions", "list", "--user", "ann").stdout.splitlines()
    assert head.split() == ["ID", "AGENT", "CREATED", "TITLE"]
    assert row.split()[:2] == [session["id"], agent_id]
    assert row.endswith("My day")
    assert run("sessions", "get", session["id"], "--json").stdout == made.stdout
    assert run("sessions", "get", session["id"]).stdout.splitlines()[1] == row
    anonymous = run("sessions", "list")
    assert (anonymous.stdout, anonymous.stderr) == ("", "No sessions found.\n")
    assert json.loads(run("sessions", "list", "--json").stdout) == {"data": []}
    assert run("sessions", "list", "--user", "ann", "--agent", "x" * 10).stdout == ""


# --- events


@pytest.fixture
def used_session_id(client: Flux0, session_id: str) -> str:
    """The id of a session with two turns."""
    conversation = client.conversation(session=session_id)
    for content in ("weather", "bye"):
        with conversation.send(content) as stream:
            stream.final_messages()
    return session_id


def test_events_are_listed_grouped_by_turn(run: Run, client: Flux0, used_session_id: str) -> None:
    stored = client.sessions.list_events(session_id=used_session_id)
    lines = [line.strip() for line in run("events", used_session_id).stdout.splitlines()]
    created = f"{stored[0].created_at.astimezone():%Y-%m-%d %H:%M}"
    assert lines[0] == f"{stored[0].correlation_id} {created}"
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


def test_events_can_be_filtered_and_listed_as_json(
    run: Run, client: Flux0, used_session_id: str
) -> None:
    def offsets(*options: str) -> list[int]:
        listed = json.loads(run("events", used_session_id, "--json", *options).stdout)
        return [event["offset"] for event in listed["data"]]

    turn = client.sessions.list_events(session_id=used_session_id)[-1].correlation_id
    assert offsets() == list(range(9))
    assert offsets("--type", "tool", "--type", "status") == [1, 4, 5]
    assert offsets("--source", "user") == [0, 7]
    assert offsets("--min-offset", "6") == [6, 7, 8]
    assert offsets("--correlation-id", turn, "--source", "ai_agent") == [8]
    none = run("events", used_session_id, "--type", "custom")
    assert (none.stdout, none.stderr) == ("", "No events found.\n")


def test_events_of_unknown_types_are_listed_as_json(
    run: Run, client: Flux0, fake: FakeTransport, used_session_id: str
) -> None:
    first, *_ = to_dict(client.sessions.list_events(session_id=used_session_id))["data"]
    parts = [{"type": "smell", "of": "roses"}, {"type": "content", "content": {"a": 1}}]
    message = {**first, "data": {"type": "message", "parts": parts}}
    mood = {**first, "type": "custom", "data": {"type": "mood", "value": 1}}
    fake.inject(Respond(200, body=json.dumps({"data": [mood, message]}).encode()))
    shown = run("events", used_session_id).stdout
    assert '{"type": "mood", "value": 1}' in shown
    assert '{"type": "smell", "of": "roses"} {"a": 1}' in shown


def test_id_that_begins_with_a_hyphen_is_not_parsed_as_an_option(run: Run) -> None:
    for command in ("events", "agents get", "sessions get", "sessions create"):
        result = run(*command.split(), "-helpme-AB")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "has the id '-helpme-AB'" in result.stderr
        assert "has the id '-umeABCDEF'" in run(*command.split(), "-umeABCDEF", "--json").stderr
        assert (
            "has the id '-helpme-AB'" in run(*command.split(), "--json", "--", "-helpme-AB").stderr
        )
    assert "-helpme-AB" in run("chat", "--session", "-helpme-AB", "Hi").stderr


def test_option_of_ten_characters_before_the_id_is_no_id(run: Run, used_session_id: str) -> None:
    assert run("events", "--user=bob", used_session_id).exit_code == 0


# --- one turn


def test_piped_output_is_only_the_answer_and_the_rest_is_on_standard_error(
    run: Run, client: Flux0, fake: FakeTransport
) -> None:
    fake.script(TURN, [Say("One", pieces=3), Report("typing"), Say("Two"), Reason("Hm"), Say("3")])
    result = run("chat", "weather")
    (session,) = client.sessions.list()
    assert (result.exit_code, result.stdout) == (0, TURN_STDOUT)
    assert result.stderr == f"Session {session.id} with Drizzle.\n{TURN_STDERR}"
    again = run("chat", "Hi", "--session", session.id)
    assert again.stdout == "One\n\nTwo\n\n3\n"
    assert again.stderr.startswith(f"Session {session.id} with agent {fake.agent_id}.\n")


def test_json_option_prints_one_line_per_event(
    run: Run, fake: FakeTransport, session_id: str
) -> None:
    fake.script([Report("typing", {"at": float("nan"), "é": "\udc80"}), Say("Hi")], "Bye")
    result = run("chat", "--json", "-s", session_id, "one")
    bye_result = run("chat", "--json", "--session", session_id, input="two\n")
    typing, said = (json.loads(line) for line in result.stdout.splitlines())
    bye = json.loads(bye_result.stdout)
    events = (typing, said, bye)
    assert [event["event"] for event in events] == ["status", "chunk", "chunk"]
    # JSON has no NaN, so null is printed.
    assert typing["data"]["data"] == {"at": None, "é": "\udc80"}
    assert bye["patches"][0]["op"] == "add"
    assert result.stdout.isascii()
    assert {event["session_id"] for event in events} == {session_id}
    assert typing["correlation_id"] == said["correlation_id"] != bye["correlation_id"]
    assert result.stderr.startswith(f"Session {session_id} with ")


def test_json_of_an_unknown_event_names_the_turn(
    run: Run, fake: FakeTransport, session_id: str
) -> None:
    body = status("typing") + b"event: note\nid: 7\ndata: half\n\n"
    headers = {"content-type": "text/event-stream"}
    fake.inject(Respond(200, body=body, headers=headers), operation="sessions.create_event")
    *_, line = run("chat", "--json", "-s", session_id, "Hi").stdout.splitlines()
    turn = {"session_id": session_id, "correlation_id": CORRELATION_ID}
    assert json.loads(line) == {"event": "note", "id": "7", "data": "half", **turn}


@pytest.mark.parametrize(
    ("steps", "output", "problem"),
    [
        ([Say("Well"), Fail({"exception": "boom"})], "Well\n", "· error: boom\n"),
        ([Say("Hm"), FallSilent()], "Hm\n", "no event for 1 s (idle timeout; set --idle-timeout)"),
        (
            [Say("Once upon", pieces=2), Say("a time")],
            "Once upon\n",
            "Error: the stream was interrupted",
        ),
    ],
)
def test_failed_turn_exits_with_1_after_the_received_text(
    run: Run, fake: FakeTransport, steps: list[AgentStep], output: str, problem: str
) -> None:
    fake.script(steps)
    if "interrupted" in problem:
        fake.inject(Truncate(2), operation="sessions.create_event")
    result = run("chat", "Hi", "--idle-timeout", "1")
    assert (result.exit_code, result.stdout) == (1, output)
    assert problem in result.stderr


@pytest.mark.parametrize("text", ["Hi", "Hi\n", "Hi\r\n"])
def test_piped_answer_ends_with_one_line_break(run: Run, fake: FakeTransport, text: str) -> None:
    fake.script([Say(text), Report("typing")])
    assert run("chat", "Hello").stdout == "Hi\n"
    fake.script([Say(text), Say("more", pieces=2)])
    fake.inject(Truncate(1), operation="sessions.create_event")
    interrupted = run("chat", "Hello")
    assert (interrupted.exit_code, interrupted.stdout) == (1, "Hi\n")


# --- the message


@pytest.mark.parametrize(
    ("arguments", "input", "sent"),
    [
        (("one",), "", "one"),
        ((), "  one\ntwo\n", "  one\ntwo"),
        (("Summarize this:",), "one\ntwo\n", "Summarize this:\n\none\ntwo"),
        ((), "\ufeffcaf\u00e9".encode(), "caf\u00e9"),
        (("--lines",), "one\n\n  two \n", "one|two"),
        (("--lines",), "\ufeffone\n\ufefftwo\n".encode(), "one|\ufefftwo"),
    ],
)
def test_message_consists_of_the_argument_and_the_piped_input(
    run: Run, client: Flux0, arguments: tuple[str, ...], input: str | bytes, sent: str
) -> None:
    assert run("chat", *arguments, input=input).exit_code == 0
    (session,) = client.sessions.list()
    events = client.sessions.list_events(session_id=session.id, source="user")
    parts = [event.data.parts[0] for event in events if isinstance(event.data, MessageData)]
    assert "|".join(part.content for part in parts if isinstance(part, ContentPart)) == sent


@pytest.mark.parametrize(
    ("arguments", "input"),
    [
        (("  \n",), ""),
        (("",), "context"),
        (("lone \udc80",), "context"),
        ((), "  \n"),
        (("--lines",), ""),
        (("--lines",), "\n  \n"),
        ((), b"caf\xe9"),
        (("--lines",), b"caf\xe9\n"),
    ],
)
def test_empty_or_invalid_message_is_rejected_before_a_request_is_sent(
    run: Run, fake: FakeTransport, arguments: tuple[str, ...], input: str | bytes
) -> None:
    result = run("chat", *arguments, input=input)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: MESSAGE ")
    assert fake.calls == ()


def test_closed_standard_output_is_an_error_and_nothing_is_sent(
    environment: Mapping[str, str], fake: FakeTransport
) -> None:
    closed = f"exec {sys.executable} -m flux0 chat Hi >&-"
    done = finished(environment, closed, program=("/bin/sh", "-c"))
    assert (done.returncode, done.stderr) == (1, "Error: cannot write the output: it is closed\n")
    assert fake.calls == ()


def test_chat_works_with_closed_standard_streams(environment: Mapping[str, str]) -> None:
    closed = f"exec {sys.executable} -m flux0 chat Hi <&- 2>&-"
    done = finished(environment, closed, program=("/bin/sh", "-c"))
    assert (done.returncode, done.stdout) == (0, "You said Hi.\n")


def test_piped_input_is_utf8_also_if_no_locale_is_set(
    environment: Mapping[str, str], client: Flux0
) -> None:
    no_locale = {**environment, "LC_ALL": "POSIX", "PYTHONUTF8": "0"}
    command = (*PYTHON, "-m", "flux0", "chat", "Hi")
    subprocess.run(command, env=no_locale, input=b"\xc3\xa0", check=True, timeout=_SECONDS)
    (session,) = client.sessions.list()
    message, *_ = client.conversation(session=session).history()
    assert message.text == "Hi\n\n\u00e0"


# --- server, user and headers


def test_common_options_are_accepted_before_and_after_the_command(
    run: Run, server: FakeOverHTTP, agent_id: str
) -> None:
    nowhere = ("--server-url", "http://127.0.0.1:1")
    here = ("--server-url", server.url)
    for before, after in ((("--user", "ann"), ()), ((), ("--user", "ann"))):
        assert run(*before, "sessions", "create", agent_id, *after).exit_code == 0
    for before, between, after in ((here, (), ()), (nowhere, here, ()), (nowhere, (), here)):
        options = (*before, "sessions", *between, "list", *after)
        listed = run("--user", "bob", *options, "--user", "ann", "--json").stdout
        assert len(json.loads(listed)["data"]) == 2
    check_refused(run(*nowhere, "sessions", "list"), "sessions")


def test_header_options_and_token_are_sent(
    run: Run, fake: FakeTransport, server: FakeOverHTTP, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("--header", "X-One: a:b", "agents", "list", "--header", "x-one:c", "--header", "X-Two: d")
    run("--header", "Cookie: a=b", "--user", "ann", "agents", "list")
    monkeypatch.setenv("FLUX0_TOKEN", "secret\n")
    run("agents", "list")
    run("agents", "list", "--header", "Authorization: Basic mine")
    run("agents", "list", "--server-url", server.url.replace("//", "//ada:pw@"))
    sent = [call.headers for call in fake.calls]
    assert (sent[0]["x-one"], sent[0]["x-two"]) == ("a:b, c", "d")
    assert "authorization" not in sent[0]
    assert sent[1]["cookie"] == "flux0_user_sub=ann; a=b"
    values = ["Bearer secret", "Basic mine", "Basic YWRhOnB3"]
    assert [headers["authorization"] for headers in sent[2:]] == values


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(
            ("--header", value)
            for value in ("secret", ": secret", "a b: secret", "a: secret\nb: c")
        ),
        ("FLUX0_TOKEN", "sec\nret"),
    ],
)
def test_invalid_header_is_rejected_without_showing_its_value(
    run: Run, monkeypatch: pytest.MonkeyPatch, option: str, value: str
) -> None:
    if option == "FLUX0_TOKEN":
        monkeypatch.setenv(option, value)
    result = run("agents", "list", *(("--header", value) if option == "--header" else ()))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"Error: {option} ")
    assert "ret" not in result.stderr


# --- the agent


def test_agent_is_selected_by_id_or_name_or_type_and_created_if_the_type_has_no_agent(
    run: Run, client: Flux0, agent_id: str
) -> None:
    for options in (
        "--agent-type weather",
        "--agent-type echo",
        "--agent-type echo",
        f"--agent {agent_id}",
        "-a Drizzle",
    ):
        assert run("chat", "Hi", *options.split()).exit_code == 0
    first, echo = client.agents.list()
    chosen = [session.agent_id for session in client.sessions.list()]
    assert (first.id, chosen) == (agent_id, [agent_id, echo.id, echo.id, agent_id, agent_id])
    for agent in (echo.id, "echo"):
        listed = json.loads(run("sessions", "list", "--agent", agent, "--json").stdout)["data"]
        assert [session["agent_id"] for session in listed] == [echo.id, echo.id]


def test_agent_with_this_id_is_selected_before_an_agent_with_this_name(
    run: Run, client: Flux0, agent_id: str
) -> None:
    client.agents.create(name=agent_id, type_="echo")
    assert run("chat", "Hi", "--agent", agent_id).exit_code == 0
    (session,) = client.sessions.list()
    assert session.agent_id == agent_id


def test_unknown_agent_and_name_of_several_agents_are_rejected_with_a_list(
    run: Run, client: Flux0, agent_id: str
) -> None:
    second = client.agents.create(name="Drizzle", type_="echo")
    third = client.agents.create(name="a\n\x1b[2J", type_="echo")
    two = f"{agent_id} Drizzle (weather)\n{second.id} Drizzle (echo)\n"
    three = rf"{two}{third.id} a \x1b[2J (echo)" + "\n"
    for wanted, problem, listed in (
        ("Drizzle", "The server has several agents. Select one with --agent ID:", two),
        ("Driz", "No agent has the id or the name 'Driz'. The server has these agents:", three),
    ):
        for command in (("chat", "Hi"), ("sessions", "list")):
            result = run(*command, "--agent", wanted)
            assert (result.exit_code, result.stdout) == (2, "")
            assert result.stderr.endswith(f"{problem}\n{listed}")


@pytest.mark.parametrize("option", ["--continue", "-c"])
def test_last_session_of_the_user_is_continued(run: Run, client: Flux0, option: str) -> None:
    for user in ("ann", "ann", "bob"):
        run("chat", "Hi", "--user", user)
    assert run("chat", "Again", option, "-u", "ann").stdout == "You said Again.\n"
    listed = json.loads(run("sessions", "list", "-u", "ann", "--json").stdout)["data"]
    sizes = [len(client.conversation(session=each["id"]).history()) for each in listed]
    assert sizes == [2, 4]
    nobody = run("chat", "Again", option)
    assert nobody.exit_code == 2
    assert "--continue: The user has no session." in words(nobody.stderr)


def test_last_session_is_the_newest_in_any_order_of_the_list(
    run: Run, client: Flux0, fake: FakeTransport, agent_id: str
) -> None:
    ids = "z" * 10, "a" * 10
    _, newest = (client.sessions.create(agent_id=agent_id, id=each).id for each in ids)
    listed = to_dict(client.sessions.list())["data"]
    for sessions in (listed, listed[::-1]):
        body = json.dumps({"data": sessions}).encode()
        fake.inject(Respond(200, body=body), operation="sessions.list")
        assert run("chat", "-c", "Hi").stderr.startswith(f"Session {newest} with ")


def test_chat_without_agent_option_fails_for_several_agents_or_no_agent(
    run: Run, client: Flux0, fake: FakeTransport, agent_id: str
) -> None:
    echo = client.agents.create(name="Echo", type_="echo")
    result = run("chat", "Hi")
    assert result.exit_code == 2
    shown = words(result.stderr)
    assert f"{agent_id} Drizzle (weather) {echo.id} Echo (echo)" in shown
    assert "--agent ID" in shown
    fake.inject(Respond(200, body=b'{"data": []}'))
    result = run("chat", "Hi")
    assert result.exit_code == 2
    assert "The server has no agents" in words(result.stderr)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("--agent a --agent-type b", f"{SELECTION} cannot be combined."),
        ("--agent a --session b", f"{SELECTION} cannot be combined."),
        ("--continue --session b", f"{SELECTION} cannot be combined."),
        ("--keep-going", "--keep-going: has no effect without --lines."),
        ("--lines", "--lines: cannot be combined with MESSAGE"),
    ],
)
def test_options_that_cannot_be_combined_are_rejected(
    run: Run, fake: FakeTransport, options: str, problem: str
) -> None:
    result = run("chat", "Hi", *options.split())
    assert result.exit_code == 2
    assert problem in words(result.stderr)
    assert fake.calls == ()


# --- errors


@pytest.mark.parametrize("command", ["agents get xxxxxxxxxx", "chat Hi"])
def test_refused_connection_is_reported_on_one_line(
    run: Run, fake: FakeTransport, command: str
) -> None:
    fake.inject(Refuse(), times=9)
    with fake.installed():  # Real clients wait before they try again.
        result = run(*command.split(), "--server-url", "http://127.0.0.1:1")
    check_refused(result, "agents")


def check_refused(result: Result, path: str) -> None:
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: No connection to http://127.0.0.1:1/api/{path}")
    assert line.endswith(". Is the server running?")


@pytest.mark.parametrize("command", ["--timeout 0.1 agents list", "chat Hi --timeout 0.1"])
def test_timeout_option_limits_each_request(run: Run, command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        result = run("--server-url", url, *command.split())
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    # The time to connect is subtracted from the timeout. On a busy computer, no time may be left.
    no_data = r"no data received within (0\.\d+) s \(read timeout; set --timeout\)"
    waited = re.fullmatch(
        rf"Error: (?:{no_data}|the call took longer than 0.1 s \(--timeout\))", line
    )
    assert waited is not None
    assert float(waited[1] or 0.1) <= 0.1


@pytest.mark.parametrize(
    ("command", "id"),
    [
        *(("agents get ID", odd) for odd in ("x" * 10, "x", "a/b", "\x1b[31mABCDE")),
        ("sessions get ID", "x"),
        ("sessions create ID", "x" * 10),
        ("events ID", "x"),
        ("chat Hi --session ID", "a/b"),
    ],
)
def test_error_for_an_unknown_id_names_the_id(run: Run, command: str, id: str) -> None:
    result = run(*(id if word == "ID" else word for word in command.split()))
    kind = "agent" if "agent" in command or "create" in command else "session"
    hint = "" if len(id) == 10 else ": ids have 10 characters"
    advice = f"To list ids: flux0-client {kind}s list"
    assert result.stderr == f"Error: No {kind} has the id {id!r}{hint}. {advice}\n"
    assert result.stdout == ""
    assert result.exit_code in {1, 2}


@pytest.mark.parametrize("status", [401, 403])
def test_error_for_a_known_id_is_the_text_of_the_response(
    run: Run, fake: FakeTransport, status: int
) -> None:
    agent_id = "x" * 10
    fake.inject(Respond(status, f"you may not use {agent_id}"))
    (line,) = run("agents", "get", agent_id).stderr.splitlines()
    assert line.endswith(f": you may not use {agent_id}")


def test_error_response_is_reported_on_one_line(
    run: Run, fake: FakeTransport, server: FakeOverHTTP
) -> None:
    fake.inject(Respond(400, "one\ntwo \x1b[31m"), times=2)
    for command in (["agents", "list"], ["agents", "get", "x" * 10]):
        (line,) = run(*command).stderr.splitlines()
        assert line.startswith("Error: ")
        assert line.endswith(r"one\ntwo \x1b[31m")
    other_server = rf"Error: The server at {server.url}/api/agents\S* is not a flux0 server: "
    for listed, body in (("list", "<html>"), ("get xxxxxxxxxx", '{"id": "xxxxxxxxxx"}')):
        fake.inject(Respond(200, body=body.encode()))
        result = run("agents", *listed.split())
        assert result.exit_code == 1
        assert re.match(other_server, result.stderr)


def test_unusable_session_id_of_the_server_is_not_reported_as_a_wrong_option(
    run: Run, fake: FakeTransport
) -> None:
    session: dict[str, Any] = {"id": "../../x", "agent_id": fake.agent_id, "user_id": "u"}
    session |= {"created_at": "2026-01-01T00:00:00Z", "consumption_offsets": {}}
    fake.inject(Respond(201, body=json.dumps(session).encode()), operation="sessions.create")
    result = run("chat", "Hi", "--agent", fake.agent_id)
    assert result.exit_code == 1
    assert "/api/sessions is not a flux0 server: id: must be printable" in result.stderr


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["chat", ""], "MESSAGE"),
        (["sessions", "list", "--user", ""], "--user must not be empty"),
        (["--user", "ann", "sessions", "list", "--user", ""], "--user must not be empty"),
        (["agents", "list", "--server-url", ""], "--server-url must be like http://"),
        (["agents", "list", "--timeout", "0"], "--timeout"),
        (["agents", "list", "--timeout", "3e6"], "2147483"),
        (["chat", "Hi", "--idle-timeout", "3000000"], "2147483"),
        (["chat", "Hi", "--agent-type", ""], "--agent-type: must not be empty."),
        (["--json", "serve-demo"], "--json: has no effect on this command."),
        (["agents", "list", "--server-url", "example.com"], "--server-url must be like http://"),
        (["agents", "create", "", "echo"], "NAME must not be empty"),
        (["agents", "create", "Echo", ""], "TYPE must not be empty"),
        (["events", "x" * 10, "--correlation-id", ""], "--correlation-id must not be empty"),
        (["chat", "Hi", "--idle-timeout", "0"], "--idle-timeout"),
        (["events", "x", "--min-offset", "-1"], "--min-offset"),
        (["events", "x", "--type", "nonsense"], "--type"),
        (["agents", "create", "Echo"], "TYPE"),
        (["nonsense"], "nonsense"),
        (["agents", "list", "--nonsense"], "No such option: --nonsense"),
    ],
)
def test_wrong_use_exits_with_2(run: Run, command: list[str], problem: str) -> None:
    result = run(*command)
    assert (result.exit_code, result.stdout) == (2, "")
    assert problem in words(result.stderr)


def test_failed_turn_is_reported_once_and_retries_are_logged(
    run: Run, fake: FakeTransport, caplog: pytest.LogCaptureFixture
) -> None:
    fake.inject(Respond(503), operation="agents.list")
    fake.inject(Truncate(after_events=1), operation="sessions.create_event")
    result = run("chat", "Hi")
    assert result.exit_code == 1
    assert result.stderr.count("interrupted") == 1
    assert "retrying" in caplog.text
    assert "turn ended" not in caplog.text
    with Flux0(transport=fake) as later:
        fake.script([Fail("boom")])
        fake.inject(Truncate(after_events=0), operation="sessions.create_event")
        with pytest.raises(Flux0Error):
            later.conversation(agent=fake.agent_id).ask("Hi")
    assert "turn ended" in caplog.text  # The filter is removed after the command.


def test_hint_at_a_wrong_path_names_the_option(run: Run, fake: FakeTransport) -> None:
    fake.inject(Respond(404, "Not Found"))
    result = run("agents", "list")
    assert result.exit_code == 1
    assert "--server-url must be the URL before /api" in words(result.stderr)


# --- the option --lines


def test_lines_option_sends_each_line_as_a_message(run: Run) -> None:
    result = run("chat", "--lines", input="one\n\n  two \nexit")
    assert result.exit_code == 0
    assert result.stdout == "You said one.\n\nYou said two.\n\nYou said exit.\n"


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_lines_after_a_failed_turn_are_sent_only_with_keep_going(
    run: Run, fake: FakeTransport, options: tuple[str, ...]
) -> None:
    fake.script([Fail("boom")])
    stopped = run("chat", "--lines", *options, input="one\ntwo\n")
    assert stopped.exit_code == 1
    assert [call.operation for call in fake.calls].count("sessions.create_event") == 1
    fake.inject(Respond(503, "busy"), operation="sessions.create_event")
    kept = run("chat", "--lines", "--keep-going", *options, input="one\ntwo\n")
    assert kept.exit_code == 1
    assert "busy" in kept.output
    assert "You said two." in kept.stdout


def test_json_of_lines_is_one_object_for_each_line_with_its_number(
    run: Run, fake: FakeTransport, session_id: str
) -> None:
    fake.script([*TURN, Report("idle"), Say("Take\n\na jacket.")], [Fail("boom")], "fine")
    options = ("--lines", "--json", "--keep-going", "--session", session_id)
    result = run("chat", *options, input=b"one\n\ntwo\nthree\ncaf\xe9\n")
    # Scripts search for this end of a line.
    assert result.stdout.splitlines()[0].endswith('"error": null}')
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(line["line"], line["text"]) for line in lines] == [
        (1, "It is foggy.\nTake\n\na jacket."),
        (3, ""),
        (4, "fine"),
        (5, ""),
    ]
    assert [line["error"] for line in lines] == [
        None,
        "the agent reported an error: boom",
        None,
        "MESSAGE has lone surrogates, which UTF-8 cannot encode",
    ]
    assert {line["session_id"] for line in lines} == {session_id}
    assert result.stderr.splitlines()[1:] == []


# --- the demo


def test_demo_needs_no_server(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    result = run("demo")
    assert 1 < sum(slept) < 5  # The demo agent sleeps between pieces of text.
    assert (result.exit_code, result.stdout.count("\n")) == (0, 1)
    assert result.stdout.startswith("It is 16 °C and foggy in San Francisco")
    question, *_ = blocks = result.stderr.split("\n")
    assert question.startswith("> What's the weather")
    assert '• get_weather(location="San Francisco")' in blocks
    assert "  " + json.dumps({"celsius": 16, "sky": "foggy"}) in blocks
    chat = run("chat", "--demo", "How is it in Oslo?", "--server-url", "http://127.0.0.1:1")
    assert chat.exit_code == 0
    assert "foggy in Oslo" in chat.stdout
    for command in (["--json", "demo"], ["demo", "--json"]):
        shown = run(*command)
        events = [json.loads(line)["event"] for line in shown.stdout.splitlines()]
        assert {*events} == {"status", "chunk"}
        assert (shown.exit_code, shown.stderr) == (0, "")


# --- in a child process


def finished(
    environment: Mapping[str, str], *arguments: str | bytes, program: Sequence[str] = PYTHON
) -> subprocess.CompletedProcess[str]:
    """Run a program, by default Python, until it exits."""
    return subprocess.run(
        [*program, *arguments],
        env=environment,
        input="",
        capture_output=True,
        encoding="utf-8",
        timeout=_SECONDS,
        check=False,
    )


def test_piped_output_has_no_styles_and_escapes_unencodable_characters(
    environment: Mapping[str, str],
) -> None:
    ascii_only = {**environment, "TERM": "xterm-256color", "PYTHONIOENCODING": "ascii"}
    done = finished(ascii_only, "-m", "flux0", "chat", "caf\u00e9".encode())
    assert (done.returncode, done.stdout) == (0, "You said caf\\xe9.\n")
    assert "\x1b" not in done.stderr


def test_one_pipe_for_both_outputs_gets_the_same_lines_as_a_terminal(
    environment: Mapping[str, str], fake: FakeTransport
) -> None:
    fake.script([*TURN, Report("idle"), Say("Bye."), Report("idle")])
    in_one_pipe = f"exec {sys.executable} -m flux0 chat weather 2>&1"
    done = finished(environment, in_one_pipe, program=("/bin/sh", "-c"))
    shown = done.stdout.partition("Drizzle.\n")[2]
    assert shown == f"{TURN_STDERR}{TURN_STDOUT}\n· idle\nBye.\n\n· idle\n"


@contextmanager
def started(
    environment: Mapping[str, str],
    *arguments: str,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.PIPE,
) -> Generator[subprocess.Popen[str], None, None]:
    """Start a command, and kill it when the block ends."""
    with subprocess.Popen(
        [*PYTHON, "-m", "flux0", *arguments],
        env=environment,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(stream: IO[str] | None, text: str) -> str:
    """Read until the data ends with `text`. Fail if the stream ends before that."""
    assert stream is not None
    read = ""
    while not read.endswith(text):
        more = os.read(stream.fileno(), 1).decode()
        assert more, read
        read += more
    return read


def press_ctrl_c(press: Callable[[], object], has_ended: Callable[[float], bool]) -> None:
    """Press Ctrl-C until `has_ended`, which waits for up to some seconds, returns True.

    If a signal arrives just before a system call, Python handles the signal only after the call.
    """
    for _ in range(5):
        press()
        if has_ended(_SECONDS / 4):
            return
    raise AssertionError("Ctrl-C has no effect")


def ends(process: subprocess.Popen[str], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def test_ctrl_c_exits_and_skips_the_remaining_lines(
    environment: Mapping[str, str], fake: FakeTransport, server: FakeOverHTTP
) -> None:
    fake.script([Say("Once upon"), FallSilent()])
    with started(environment, "chat", "--lines", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write("one\ntwo\n")
        process.stdin.flush()
        read_until(process.stdout, "Once upon")
        press_ctrl_c(partial(process.send_signal, signal.SIGINT), partial(ends, process))
        rest, problems = process.communicate()
    assert (process.returncode, rest) == (130, "\n")
    assert problems.splitlines()[1:] == []


def test_closed_output_pipe_ends_the_command_with_exit_code_141(
    environment: Mapping[str, str], fake: FakeTransport
) -> None:
    fake.script([Say("word " * 100, pieces=100)])
    with started(environment, "chat", "Hi") as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        notes = [line for line in process.stderr if not line.startswith("Session ")]
        assert (notes, process.wait()) == ([], 141)


def test_full_device_is_reported_on_one_line(environment: Mapping[str, str]) -> None:
    full = f"exec {sys.executable} -m flux0 chat weather >/dev/full"
    done = finished(environment, full, program=("/bin/sh", "-c"))
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    assert last == _FULL_DEVICE
    assert "Traceback" not in done.stderr


def open_pipe_without_reader() -> IO[str]:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", encoding="utf-8")


def open_full_device() -> IO[str]:
    return open("/dev/full", "w", encoding="utf-8")


@pytest.mark.parametrize(
    ("open_output", "code"), [(open_pipe_without_reader, 141), (open_full_device, _FULL_DEVICE)]
)
@pytest.mark.parametrize(
    "command", ["chat Hi --json", "agents list", "agents list --json", "--help"]
)
def test_output_that_cannot_be_written_ends_each_command(
    server: FakeOverHTTP,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    open_output: Callable[[], IO[str]],
    code: int | str,
) -> None:
    monkeypatch.setenv("FLUX0_SERVER_URL", server.url)
    monkeypatch.setattr(sys, "argv", ["flux0-client", *command.split()])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    with open_output() as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as caught:
            __main__.main()
    assert caught.value.code == code


def test_ctrl_c_during_the_import_of_the_command_line_exits_with_130(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flux0.cli.app.app", interrupt)
    monkeypatch.setattr(sys, "argv", ["flux0-client"])
    with pytest.raises(SystemExit) as caught:
        __main__.main()
    assert caught.value.code == 130


def test_serve_demo_runs_until_ctrl_c(environment: Mapping[str, str], run: Run) -> None:
    with started(environment, "serve-demo", "--port", "0") as process:
        url = read_until(process.stdout, "\n").strip()
        with Flux0(url) as flux0:
            conversation = flux0.conversation(agent=flux0.agents.first(type_="weather"))
            with conversation.send("How is it in Oslo?") as stream:
                next(stream)
                assert stream.status == "processing"
            # The server has the real time, also between turns.
            agent_id, give_up = flux0.agents.first().id, time.monotonic() + 60
            first = flux0.sessions.create(agent_id=agent_id).created_at
            while flux0.sessions.create(agent_id=agent_id).created_at - first < timedelta(
                seconds=0.1
            ):
                assert time.monotonic() < give_up
        port = url.rpartition(":")[2]
        again = run("serve-demo", "--port", port)
        assert (again.exit_code, again.stdout) == (2, "")
        assert again.stderr.startswith(f"Error: --port cannot be {port}: ")
        process.send_signal(signal.SIGINT)
        rest, problems = process.communicate()
    assert (process.returncode, rest, problems) == (130, "", "")


# --- a terminal


class Terminal:
    """A pseudo-terminal with 40 columns, used as the standard streams of this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, server_url: str) -> None:
        self._master, slave = pty.openpty()
        attributes = termios.tcgetattr(slave)
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        self._streams = (
            os.fdopen(slave, "r", encoding="utf-8"),
            os.fdopen(os.dup(slave), "w", encoding="utf-8"),
        )
        self._monkeypatch = monkeypatch
        monkeypatch.setenv("COLUMNS", "40")
        monkeypatch.setenv("FLUX0_SERVER_URL", server_url)
        self._shown = ""
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str) -> None:
        """Wait until the terminal shows `text`."""
        with self._changed:
            assert self._changed.wait_for(lambda: text in self._shown, _SECONDS), self._shown

    def run(self, *arguments: str, piped: bool = False) -> int:
        """Return the exit code of a command. If `piped`, only standard input is the terminal."""
        self._monkeypatch.setattr(sys, "stdin", self._streams[0])
        if not piped:
            self._monkeypatch.setattr(sys, "stdout", self._streams[1])
        with pytest.raises(SystemExit) as caught:
            app(arguments)
        assert isinstance(caught.value.code, int)
        return caught.value.code

    def close(self) -> str:
        """Close the terminal, and return its complete output, with `~` for "ESC ["."""
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
            except OSError:  # Linux raises this error if the other side is closed.
                return
            with self._changed:
                self._shown += data.decode()
                self._changed.notify_all()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, server: FakeOverHTTP) -> Terminal:
    return Terminal(monkeypatch, server.url)


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        (
            {},
            "~2m· processing: Thinking~0m\n"
            "~2;3mLet~0m~2;3m me ~0m~2;3msee.~0m\n\n"
            '~36m• get_weather(location="SF")~0m\n  {"sky": "foggy"}\n\n'
            "~2m· typing~0m\n"
            "It is foggy.\n",
        ),
        (
            {"NO_COLOR": "1"},
            "~2m· processing: Thinking~0m\n"
            "~2;3mLet~0m~2;3m me ~0m~2;3msee.~0m\n\n"
            '• get_weather(location="SF")\n  {"sky": "foggy"}\n\n'
            "~2m· typing~0m\n"
            "It is foggy.\n",
        ),
        ({"TERM": "dumb"}, TURN_STDERR + TURN_STDOUT),
    ],
)
def test_styles_depend_on_the_terminal(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], shown: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert terminal.run("chat", "weather") == 0
    assert terminal.close() == shown


def test_piped_output_has_styles_if_they_are_forced(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[2m· typing\x1b[0m\n" in run("chat", "weather").stderr


@pytest.mark.parametrize("columns", [40, 12])
def test_table_fits_the_width_of_the_terminal(
    terminal: Terminal,
    client: Flux0,
    used_session_id: str,
    monkeypatch: pytest.MonkeyPatch,
    columns: int,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    echo = client.agents.create(name="Echo", type_="echo", description="word " * 20)
    assert terminal.run("agents", "list") == 0
    assert terminal.run("sessions", "get", used_session_id) == 0
    assert terminal.run("events", used_session_id) == 0
    shown = terminal.close()
    assert shown.startswith("~1mID")
    plain = re.sub(r"~[\d;]*m", "", shown)
    lines = plain.splitlines()
    assert max(map(len, lines)) <= columns
    assert [line.split()[0] for line in lines].count(echo.id) == 1
    assert [line.split()[0] for line in lines].count(used_session_id) == 1
    if columns == 40:
        assert plain.count("word") == 20
        assert "0  user      message  weather" in lines


def test_conversation_in_a_terminal_prompts_on_standard_output(
    terminal: Terminal,
    fake: FakeTransport,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delitem(sys.modules, "readline", raising=False)
    fake.script([Fail("boom")], "fine")
    terminal.type("one\n\ntwo\n\x04")
    # The exit code is 0 although a turn failed, because the user has seen the error.
    assert terminal.run("chat") == 0
    assert "readline" in sys.modules  # It adds editing and a history of lines to the prompt.
    assert terminal.close() == "> ~1;31m· error: boom~0m\n\n> > fine\n\n> \n"
    assert "Ctrl-D" in capsys.readouterr().err


def test_conversation_with_piped_output_prompts_on_standard_error(
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    used_session_id: str,
) -> None:
    monkeypatch.setitem(sys.modules, "readline", None)  # The module is missing on Windows.
    terminal.type("one\n\x04")
    assert terminal.run("chat", "--session", used_session_id, piped=True) == 0
    shown = capsys.readouterr()
    assert shown.out == "You said one.\n\n"
    # The user types the line breaks, so they are not in the output.
    assert shown.err.splitlines()[2:] == ["> > "]
    assert terminal.close() == ""


def test_json_option_in_a_terminal_needs_a_message(
    terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    assert terminal.run("chat", "--json") == 2
    assert terminal.close() == ""
    assert "--json: needs a MESSAGE or piped input." in words(capsys.readouterr().err)


def test_continued_session_shows_its_history_first(
    terminal: Terminal, used_session_id: str
) -> None:
    terminal.type(" again \nquit \n")
    assert terminal.run("chat", "--session", used_session_id) == 0
    assert re.sub(r"~[\d;]*m", "", terminal.close()) == (
        "> weather\nLet me see.\n\n"
        '• get_weather(location="SF")\n  {"sky": "foggy"}\n\nIt is foggy.\n\n'
        "> bye\nYou said bye.\n\n"
        "> You said again.\n\n> "
    )


def test_ctrl_c_at_the_prompt_exits(environment: Mapping[str, str]) -> None:
    """Ctrl-C is repeated, because `input` can miss a signal directly after its prompt."""
    master, slave = pty.openpty()
    with (
        os.fdopen(master) as screen,
        started({**environment, "TERM": "dumb"}, "chat", stdin=slave, stdout=slave) as process,
    ):
        assert read_until(screen, "> ") == "> "
        for _ in range(5):
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)
                break
        assert read_until(screen, "\n") == "\r\n"
        os.close(slave)
        assert process.returncode == 130


def test_ctrl_c_in_a_turn_returns_to_the_prompt(
    terminal: Terminal,
    fake: FakeTransport,
    server: FakeOverHTTP,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake.script([Say("Once upon"), FallSilent()], "fine")

    def interrupt() -> None:
        terminal.wait_for("Once upon")
        main = threading.main_thread().ident or 0
        press = partial(signal.pthread_kill, main, signal.SIGINT)
        press_ctrl_c(press, server.no_open_streams.wait)
        terminal.type("two\nexit\n")

    user = threading.Thread(target=interrupt)
    user.start()
    terminal.type("one\n")
    assert terminal.run("chat") == 0
    user.join()
    assert terminal.close() == "> Once upon\n\n> fine\n\n> "
    assert "\nTurn cancelled.\n" in capsys.readouterr().err
