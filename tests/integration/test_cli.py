"""The command line, with the real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from uuid import uuid4

import anyio
import pytest
from mcp import Client, StdioServerParameters, stdio_client
from typer.testing import CliRunner, Result

from flux0 import Flux0
from flux0.cli.app import app
from support.server import Flux0Server

Run = Callable[..., Result]


@pytest.fixture
def run(server: Flux0Server) -> Run:
    """Runs a command with the shared server, and with the argument `input` as standard input."""

    def invoke(*arguments: str, input: str = "") -> Result:
        environment = {"FLUX0_SERVER_URL": server.url}
        return CliRunner().invoke(app, arguments, input=input, env=environment)

    return invoke


def script(*steps: Mapping[str, Any]) -> str:
    return json.dumps(steps)


def parse_json(result: Result) -> Any:
    return json.loads(result.stdout)


WEATHER = script(
    {"status": "processing", "data": {"detail": "Thinking"}},
    {"reason": "Let me see.", "pieces": 3},
    {"tool_call": {"id": "c1", "name": "get_weather", "args": {"location": "SF"}}},
    {"tool_result": {"id": "c1", "name": "get_weather", "args": {}, "result": {"sky": "foggy"}}},
    {"status": "typing"},
    {"text": "It is foggy.", "pieces": 4},
)
TURN_STDERR = """\
· processing: Thinking
Let me see.

• get_weather(location="SF")
  {"sky": "foggy"}

· typing
"""


def test_turn_is_shown_and_its_session_can_be_continued(
    run: Run, server: Flux0Server, fresh_name: str
) -> None:
    user = ("--user", fresh_name)
    turn = run("chat", WEATHER, "--agent", server.agent_id, *user)
    assert turn.exit_code == 0
    assert turn.stdout == "It is foggy.\n"
    (session,) = parse_json(run("sessions", "list", *user, "--json"))["data"]
    assert turn.stderr == f"Session {session['id']} with Scripted.\n{TURN_STDERR}"
    assert parse_json(run("sessions", "get", session["id"], "--json")) == session
    assert run("sessions", "list", "--user", uuid4().hex).stdout == ""
    bye = script({"text": "Bye."})
    later = run("chat", "--continue", *user, input=bye)
    assert later.stdout == "Bye.\n"
    lines = run("chat", "--lines", "--session", session["id"], input=f"{bye}\n{bye}\n")
    assert lines.stdout == "Bye.\n\nBye.\n"


def test_stored_events_of_a_turn_have_the_data_of_its_stream(run: Run, session_id: str) -> None:
    chat = run("chat", "--json", WEATHER, "--session", session_id)
    streamed = [json.loads(line) for line in chat.stdout.splitlines()]
    turn = streamed[0]["correlation_id"]
    types = ("--type", "status", "--type", "tool")
    options = ("--correlation-id", turn, "--source", "ai_agent", "--min-offset", "1", *types)
    stored = parse_json(run("events", session_id, "--json", *options))["data"]
    assert [event["data"].get("status") for event in stored] == ["processing", None, "typing"]
    assert stored[0]["data"] == streamed[0]["data"]
    assert {(event["session_id"], event["correlation_id"]) for event in streamed} == {
        (session_id, turn)
    }
    assert {event["event"] for event in streamed} == {"status", "chunk"}
    assert "get_weather" in run("events", session_id).stdout


def test_assistant_of_a_user_continues_only_the_sessions_of_this_user(
    server: Flux0Server, fresh_name: str
) -> None:
    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "flux0", "mcp", "--user", fresh_name],
        env={**os.environ, "FLUX0_SERVER_URL": server.url},
    )
    with Flux0(server.url) as flux0:
        agent = flux0.agents.retrieve(agent_id=server.agent_id)
        own, foreign, anonymous = (
            flux0.conversation(agent=agent, user=user) for user in (fresh_name, "bob", None)
        )

        async def main() -> None:
            async with Client(stdio_client(command)) as client:
                for conversation in (foreign, anonymous, own):
                    given = {
                        "message": script({"text": "Hi."}),
                        "session_id": conversation.session_id,
                    }
                    result = await client.call_tool(agent.name, given)
                    assert result.is_error is (conversation is not own)

        anyio.run(main)
        assert [len(each.history()) for each in (foreign, anonymous, own)] == [0, 0, 2]


def test_error_response_is_reported_on_one_line(run: Run) -> None:
    unknown = "Error: No {} has the id 'xxxxxxxxxx'."
    short = "Error: No {} has the id 'x': ids have 10 characters."
    for command, words in (
        (["chat", "Hi", "--session", "x" * 10], unknown.format("session")),
        (["sessions", "get", "x"], short.format("session")),
        (["sessions", "create", "x" * 10], unknown.format("agent")),
        (["sessions", "create", "x"], short.format("agent")),
        (["agents", "get", "x" * 10], unknown.format("agent")),
        (["events", "x" * 10], unknown.format("session")),
        (["agents", "create", "Echo", "nonsense"], "Error: 422: "),
        (["chat", "Hi", "--agent-type", "nonsense"], "Error: 422: "),
    ):
        result = run(*command)
        assert (result.exit_code, result.stdout) == (1, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith(words)


def test_ctrl_c_cancels_the_agent(server: Flux0Server, session_id: str, fresh_name: str) -> None:
    waiting = script({"text": "Once upon"}, {"wait": fresh_name})
    process = subprocess.Popen(
        [sys.executable, "-m", "flux0", "chat", waiting, "--session", session_id],
        env={**os.environ, "FLUX0_SERVER_URL": server.url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.read(len("Once upon")) == b"Once upon"
        for _ in range(3):
            # A signal that arrives just before a system call has no effect until the call ends.
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
                break
        rest, _ = process.communicate(timeout=20)
        server.wait_cancelled(fresh_name)
    finally:
        process.kill()
    assert (process.returncode, rest) == (130, b"\n")
