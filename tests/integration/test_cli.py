"""The command line against the real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner, Result

from flux0.cli.app import app
from support.server import Flux0Server

_SECONDS = 30.0

Run = Callable[..., Result]


@pytest.fixture
def run(server: Flux0Server) -> Run:
    """Runs a command on the shared server, with `input` as its standard input."""

    def invoke(*arguments: str, input: str = "") -> Result:
        environment = {"FLUX0_SERVER_URL": server.url}
        return CliRunner().invoke(app, arguments, input=input, env=environment)

    return invoke


@pytest.fixture
def start(server: Flux0Server) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a command in a process of its own, which is killed if it takes too long."""
    environment = {**os.environ, "FLUX0_SERVER_URL": server.url}
    timers: list[threading.Timer] = []

    def begin(*arguments: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "flux0", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        timers.append(threading.Timer(_SECONDS, process.kill))
        timers[-1].start()
        return process

    yield begin
    for timer in timers:
        timer.cancel()
        timer.join()


def script(*steps: Mapping[str, Any]) -> str:
    return json.dumps(steps)


WEATHER = script(
    {"status": "processing", "data": {"detail": "Thinking"}},
    {"reason": "Let me see.", "pieces": 3},
    {"tool_call": {"id": "c1", "name": "get_weather", "args": {"location": "SF"}}},
    {"tool_result": {"id": "c1", "name": "get_weather", "args": {}, "result": {"sky": "foggy"}}},
    {"status": "typing"},
    {"text": "It is foggy.", "pieces": 4},
)
ASIDE = """\
· processing: Thinking
Let me see.

• get_weather(location="SF")
  {"sky": "foggy"}

· typing
"""


def test_a_turn_is_shown_and_its_session_can_be_taken_up(
    run: Run, server: Flux0Server, fresh_name: str
) -> None:
    options = ("--agent", server.agent_id, "--user", fresh_name)
    turn = run("chat", WEATHER, *options)
    assert turn.exit_code == 0
    assert turn.stdout == "It is foggy.\n"
    (session,) = json.loads(run("sessions", "list", "--user", fresh_name, "--json").stdout)["data"]
    assert turn.stderr == f"Session {session['id']} with Scripted.\n{ASIDE}"
    assert json.loads(run("sessions", "get", session["id"], "--json").stdout) == session
    bye = script({"text": "Bye."})
    later = run("chat", "--session", session["id"], "--user", fresh_name, input=bye)
    assert later.stdout == "Bye.\n"
    lines = run("chat", "--lines", "--session", session["id"], input=f"{bye}\n{bye}\n")
    assert lines.stdout == "Bye.\n\nBye.\n"


def test_the_events_of_a_turn_are_those_of_its_stream(
    run: Run, server: Flux0Server, session_id: str
) -> None:
    streamed = [
        json.loads(line)
        for line in run("chat", "--json", WEATHER, "--session", session_id).stdout.splitlines()
    ]
    turn = streamed[0]["correlation_id"]
    types = ("--type", "status", "--type", "tool")
    options = ("--correlation-id", turn, "--source", "ai_agent", "--min-offset", "1", *types)
    stored = json.loads(run("events", session_id, "--json", *options).stdout)["data"]
    assert [event["data"].get("status") for event in stored] == ["processing", None, "typing"]
    assert stored[0]["data"] == streamed[0]["data"]
    assert {(event["session_id"], event["correlation_id"]) for event in streamed} == {
        (session_id, turn)
    }
    assert {event["event"] for event in streamed} == {"status", "chunk"}
    assert "get_weather" in run("events", session_id).stdout


def test_agents_are_created_listed_and_talked_to(run: Run, server: Flux0Server) -> None:
    made = run("agents", "create", "Echo", "scripted", "--description", "Says it", "--json")
    agent = json.loads(made.stdout)
    assert agent in json.loads(run("agents", "list", "--json").stdout)["data"]
    assert json.loads(run("agents", "get", agent["id"], "--json").stdout) == agent
    assert f"{agent['id']}  scripted  Echo" in run("agents", "list").stdout
    first = run("chat", script({"text": "Hi"}), "--agent-type", "scripted")
    assert (first.exit_code, first.stdout) == (0, "Hi\n")
    of_several = run("chat", "Hi")
    assert of_several.exit_code == 2
    assert agent["id"] in of_several.stderr


def test_sessions_belong_to_users(run: Run, server: Flux0Server, fresh_name: str) -> None:
    made = run(
        "sessions", "create", server.agent_id, "--title", "T", "--user", fresh_name, "--json"
    )
    session = json.loads(made.stdout)
    own = run("sessions", "list", "--user", fresh_name, "--agent", server.agent_id, "--json")
    assert json.loads(own.stdout) == {"data": [session]}
    assert run("sessions", "list", "--user", uuid4().hex).stdout == ""


@pytest.mark.parametrize(
    ("error", "words"),
    [({"exception": "boom"}, "error: boom"), ("boom", "error: boom"), (None, "error")],
)
def test_an_agents_error_is_a_failure(run: Run, session_id: str, error: Any, words: str) -> None:
    result = run("chat", script({"text": "Well"}, {"error": error}), "--session", session_id)
    assert (result.exit_code, result.stdout) == (1, "Well\n")
    assert result.stderr.endswith(f"\n· {words}\n")


def test_what_the_server_refuses_is_one_line(run: Run) -> None:
    for command, words in (
        (["chat", "Hi", "--session", "x" * 10], "Error: No session has the id 'xxxxxxxxxx'."),
        (["chat", "Hi", "--agent", "x" * 10], "Error: No agent has the id 'xxxxxxxxxx'."),
        (["sessions", "get", "x" * 10], "Error: No session has the id 'xxxxxxxxxx'."),
        (["sessions", "get", "x"], "Error: No session has the id 'x': ids have 10 characters."),
        (["sessions", "create", "x" * 10], "Error: No agent has the id 'xxxxxxxxxx'."),
        (["sessions", "create", "x"], "Error: No agent has the id 'x': ids have 10 characters."),
        (["agents", "get", "x" * 10], "Error: No agent has the id 'xxxxxxxxxx'."),
        (["agents", "get", "x"], "Error: No agent has the id 'x': ids have 10 characters."),
        (["events", "x" * 10], "Error: No session has the id 'xxxxxxxxxx'."),
        (["events", "x"], "Error: No session has the id 'x': ids have 10 characters."),
        (["agents", "create", "Echo", "nonsense"], "Error: 422: "),
        (["chat", "Hi", "--agent-type", "nonsense"], "Error: 422: "),
    ):
        result = run(*command)
        assert (result.exit_code, result.stdout) == (1, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith(words)


def test_an_agent_that_crashes_is_given_up(run: Run, session_id: str) -> None:
    crashing = script({"text": "Well"}, {"crash": "boom"})
    result = run("chat", crashing, "--session", session_id, "--idle-timeout", "1")
    assert (result.exit_code, result.stdout) == (1, "Well\n")
    assert "silent for too long" in result.stderr


def test_ctrl_c_cancels_the_agent(
    start: Callable[..., subprocess.Popen[bytes]],
    server: Flux0Server,
    session_id: str,
    fresh_name: str,
) -> None:
    waiting = script({"text": "Once upon"}, {"wait": fresh_name})
    with start("chat", waiting, "--session", session_id) as process:
        assert process.stdout is not None
        assert process.stdout.read(len("Once upon")) == b"Once upon"
        process.send_signal(signal.SIGINT)
        server.wait_cancelled(fresh_name)
        rest, _ = process.communicate()
    assert (process.returncode, rest) == (130, b"\n")


def test_a_server_that_dies_is_a_failure_after_what_was_said(
    start: Callable[..., subprocess.Popen[bytes]], own_server: Callable[[], Flux0Server]
) -> None:
    server = own_server()
    hanging = script({"text": "Once upon"}, {"hang": True})
    with start("chat", hanging, "--server-url", server.url) as process:
        assert process.stdout is not None
        assert process.stdout.read(len("Once upon")) == b"Once upon"
        server.kill()
        rest, problems = process.communicate()
    assert (process.returncode, rest) == (1, b"\n")
    assert b"Error: the stream was cut off" in problems
