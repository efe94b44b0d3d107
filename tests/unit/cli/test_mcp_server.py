"""`flux0-client mcp` with `mcp`'s client, over each of its transports."""

from __future__ import annotations

import errno
import inspect
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import httpx
import pytest
from typer.testing import CliRunner

from flux0 import Agent, Flux0
from flux0.cli.app import app
from flux0.testing import (
    AgentStep,
    Fail,
    FakeTransport,
    FallSilent,
    Reason,
    Refuse,
    Report,
    Respond,
    Say,
    SendChunk,
    Truncate,
)
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import http_response
from support.fake_over_http import FakeOverHTTP

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    Connect = Callable[..., AbstractAsyncContextManager["Client"]]

pytest.importorskip("mcp")

import uvicorn
from mcp import Client, MCPError, StdioServerParameters, stdio_client
from mcp.server import Server

from flux0.cli.mcp_server import create_server, serve_http, tool_names

_SECONDS = 60.0  # The limit of all waits. A test that reaches the limit fails.
COMMAND = ("-m", "flux0", "mcp")
OVER_HTTP = ("--http", "--port", "0")
PAGE = Path(__file__).parents[3] / "docs/how-to/mcp.md"


@pytest.fixture
def fake() -> FakeTransport:
    return FakeTransport("Sunny.", agent_name="Weather in SF")


@asynccontextmanager
async def over_stdio(environment: Mapping[str, str]) -> AsyncGenerator[Client, None]:
    command = StdioServerParameters(command=sys.executable, args=[*COMMAND], env={**environment})
    async with Client(stdio_client(command)) as client:
        yield client


@asynccontextmanager
async def over_http(environment: Mapping[str, str]) -> AsyncGenerator[Client, None]:
    with subprocess.Popen(
        [sys.executable, *COMMAND, *OVER_HTTP],
        env=environment,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.stdout is not None
        try:
            async with Client(process.stdout.readline().strip()) as client:
                yield client
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(_SECONDS) == 130


def texts(result: Any) -> list[str]:
    return [block.text for block in result.content]


@pytest.mark.parametrize("connect", [over_stdio, over_http])
def test_turn_has_progress_and_can_be_cancelled_and_its_session_can_be_continued(
    connect: Connect, environment: Mapping[str, str], server: FakeOverHTTP
) -> None:
    fake = server.fake
    looking = Report("typing", {"detail": "Looking"})
    answer: list[AgentStep] = [looking, Say("Sunny.", pieces=3), Report("idle"), Say("Bye.")]
    fake.script(answer, [looking, FallSilent()], answer)
    received: list[tuple[float, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        received.append((progress, message))

    async def main() -> None:
        async with connect(environment) as client:
            (tool,) = (await client.list_tools()).tools
            assert (tool.name, tool.title) == ("Weather_in_SF", "Weather in SF")
            first = await client.call_tool(
                tool.name, {"message": "Hi"}, progress_callback=on_progress
            )
            given = {"message": "And now?", "session_id": first.structured_content["session_id"]}
            async with anyio.create_task_group() as tasks:

                async def cancel(progress: float, total: float | None, message: str | None) -> None:
                    with pytest.raises(AssertionError):
                        fake.assert_no_open_streams()
                    tasks.cancel_scope.cancel()

                await client.call_tool(tool.name, given, progress_callback=cancel)
            assert await anyio.to_thread.run_sync(server.no_open_streams.wait, _SECONDS)
            third = await client.call_tool(tool.name, given)
            for result in (first, third):
                assert result.structured_content == {
                    "text": "Sunny.\nBye.",
                    "session_id": given["session_id"],
                }
                assert texts(result) == ["Sunny.\nBye.", f"session_id: {given['session_id']}"]

    anyio.run(main)
    assert received == [
        (1, "typing: Looking"),
        (2, "message 1"),
        (3, "idle"),
        (4, "message 2"),
    ]
    calls = [call for call in fake.calls if call.operation == "sessions.create_event"]
    assert [call.body["content"] for call in calls] == ["Hi", "And now?", "And now?"]


class Served:
    """Runs the command in this process, with a client instead of waiting for Ctrl-C."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server_url: str
    ) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self._server_url = server_url

    def run(self, use: Callable[[Client], Awaitable[None]], *options: str) -> str:
        """Run `mcp` with these options, and call `use` once with a client of the MCP server.

        Return the URL that the command prints, or an empty string without the option `--http`.
        """
        urls: list[str] = []

        async def serve_stdio(server: Server) -> None:
            urls.append("")
            async with Client(server) as client:
                await use(client)

        def run_http(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
            urls.append(url := self._capsys.readouterr().out.strip())

            async def main() -> None:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(server.serve, sockets)
                    async with Client(url) as client:
                        await use(client)
                    server.should_exit = True

            anyio.run(main)

        self._monkeypatch.setattr("flux0.cli.mcp_server.serve_stdio", serve_stdio)
        self._monkeypatch.setattr(uvicorn.Server, "run", run_http)
        with pytest.raises(SystemExit) as caught:
            app(["mcp", "--server-url", self._server_url, *options])
        (url,) = urls
        assert (caught.value.code, url != "") == (0, "--http" in options)
        return url


@pytest.fixture
def served(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: FakeOverHTTP
) -> Served:
    return Served(monkeypatch, capsys, server.url)


@pytest.mark.parametrize("transport", [(), OVER_HTTP], ids=["stdio", "http"])
@pytest.mark.parametrize("options", [("--user", "ann lee"), ()], ids=["user", "anonymous"])
def test_only_sessions_of_the_user_are_continued(
    served: Served, server: FakeOverHTTP, options: tuple[str, ...], transport: tuple[str, ...]
) -> None:
    user = options[-1] if options else None
    with Flux0(server.url) as flux0:
        own, foreign = (
            flux0.conversation(agent=server.fake.agent_id, user=owner) for owner in (user, "bob")
        )

        async def check(client: Client) -> None:
            for conversation, is_error in ((foreign, True), (own, False)):
                given = {"message": "Hi", "session_id": conversation.session_id}
                result = await client.call_tool("Weather_in_SF", given)
                assert result.is_error is is_error, texts(result)

        served.run(check, *options, *transport)
        assert foreign.history() == ()
        assert [event.text for event in own.history()] == ["Hi", "Sunny."]


@asynccontextmanager
async def in_memory(fake: FakeTransport, **options: Any) -> AsyncGenerator[Client, None]:
    async with (
        Flux0(transport=fake) as flux0,
        Client(create_server(flux0, **options)) as client,
    ):
        yield client


def test_progress_is_reported_regularly_while_the_agent_sends_nothing(
    server: FakeOverHTTP,
) -> None:
    server.fake.script([FallSilent()])
    received: list[tuple[float, str | None]] = []

    async def main() -> None:
        async with (
            Flux0(server.url) as flux0,
            Client(create_server(flux0, progress_seconds=0.01)) as client,
            anyio.create_task_group() as tasks,
        ):

            async def on_progress(
                progress: float, total: float | None, message: str | None
            ) -> None:
                received.append((progress, message))
                if progress == 3:
                    tasks.cancel_scope.cancel()

            await client.call_tool(
                "Weather_in_SF", {"message": "Hi"}, progress_callback=on_progress
            )

    anyio.run(main)
    assert received == [(1, None), (2, None), (3, None)]
    default = inspect.signature(create_server).parameters["progress_seconds"].default
    assert f"at least every {default} s" in PAGE.read_text("utf-8")


def test_no_task_is_left_after_a_call(fake: FakeTransport) -> None:
    fake.script("Hi", [Fail("boom")])

    async def main() -> None:
        async with in_memory(fake) as client:
            await client.call_tool("Weather_in_SF", {"message": "first"})
            await anyio.wait_all_tasks_blocked()
            tasks = len(anyio.get_running_tasks())
            await client.call_tool("Weather_in_SF", {"message": "second"})
            await anyio.wait_all_tasks_blocked()
            assert len(anyio.get_running_tasks()) == tasks

    anyio.run(main)


def test_lone_surrogates_of_an_agent_are_replaced(fake: FakeTransport) -> None:
    """An MCP server with real streams could not encode them, and would exit."""
    fake.script([Report("typing", "\ud83d"), Say("\ud83d"), Say("A\ud83d\ude00")])
    received: list[str | None] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        received.append(message)

    async def main() -> None:
        async with in_memory(fake) as client:
            result = await client.call_tool(
                "Weather_in_SF", {"message": "Hi"}, progress_callback=on_progress
            )
            assert texts(result)[0] == "\ufffd\nA😀"

    anyio.run(main)
    assert received == ["typing: \ufffd", "message 1", "message 2"]


def test_session_id_is_an_optional_argument_and_a_required_part_of_the_result(
    fake: FakeTransport,
) -> None:
    async def main() -> None:
        async with in_memory(fake) as client:
            (tool,) = (await client.list_tools()).tools
            schemas = tool.input_schema, tool.output_schema or {}
            assert [[*schema["properties"]] for schema in schemas] == [
                ["message", "session_id"],
                ["text", "session_id"],
            ]
            assert [schema["required"] for schema in schemas] == [
                ["message"],
                ["text", "session_id"],
            ]

    anyio.run(main)


def test_agent_that_is_created_later_is_a_tool(fake: FakeTransport) -> None:
    async def main() -> None:
        async with in_memory(fake) as client:
            assert len((await client.list_tools()).tools) == 1
            with Flux0(transport=fake) as flux0:
                flux0.agents.create(name="Weather in SF", type_="fake", description="For tests.")
            first, second = (await client.list_tools(cache_mode="bypass")).tools
            assert first.description == "Send a message to the agent Weather in SF."
            assert (second.name, second.description) == ("Weather_in_SF_a000000002", "For tests.")
            result = await client.call_tool(second.name, {"message": "Hi"})
            fake.assert_called("sessions.create", agent_id="a000000002")
            assert not result.is_error

    anyio.run(main)


def test_result_has_all_content_also_if_it_is_not_text(fake: FakeTransport) -> None:
    chunk = SendChunk("e", [{"op": "add", "path": "", "value": {"sky": "foggy"}}])
    fake.script([Reason("Let me see."), Say("Here:"), chunk, Report("ready", event_id="e")])

    async def main() -> None:
        async with in_memory(fake) as client:
            result = await client.call_tool("Weather_in_SF", {"message": "Hi"})
            assert texts(result)[0] == 'Here:\n{"sky": "foggy"}'

    anyio.run(main)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Weather"], ["Weather"]),
        (["a b: c/d", "  Ünï  "], ["a_b_c_d", "Uni"]),
        (["天气", "weather", "雨"], ["agent_id-0", "weather", "agent_id-2"]),
        (["A", "a", "A", "A_id-2"], ["A", "a", "A_id-2", "A_id-2_id-3"]),
        (["A_id-2", "A", "A"], ["A_id-2", "A", "A_id-2_id-2"]),
        (["x" * 100, "x" * 99], ["x" * 53, f"{'x' * 53}_id-1"]),
        (["\ufb03" * 30], ["ffi" * 17 + "ff"]),  # A ligature becomes three letters.
    ],
)
def test_tool_names_are_unique_and_have_only_characters_that_mcp_allows(
    names: list[str], expected: list[str]
) -> None:
    now = datetime.now(timezone.utc)
    agents = [Agent(f"id-{number}", name, "t", now) for number, name in enumerate(names)]
    tools = tool_names(agents)
    assert list(tools) == expected
    assert list(tools.values()) == agents


SESSION = ["session_id: s000000001"]
FAILED = "The exchange with the flux0 server failed."
NOT_SENT, MAYBE_SENT, WAS_SENT = (
    "The message was not sent.",
    "The agent may have received the message.",
    "The agent has received the message.",
)
SECRET = "https://user:pw@db.internal/?key=1"


@pytest.mark.parametrize("show_errors", [False, True])
@pytest.mark.parametrize(
    ("fault", "operation", "general", "more", "sent"),
    [
        (None, "", "The agent reported an error.", SECRET, WAS_SENT),
        (Truncate(after_events=0), "sessions.create_event", FAILED, "connection", MAYBE_SENT),
        (Refuse(), "sessions.create_event", FAILED, "refused", NOT_SENT),
        (Respond(500, SECRET), "sessions.create", FAILED, SECRET, NOT_SENT),
    ],
    ids=["agent", "stream", "connection", "server"],
)
def test_assistant_gets_a_general_sentence_and_the_log_the_complete_error(
    fake: FakeTransport,
    caplog: pytest.LogCaptureFixture,
    show_errors: bool,
    fault: Any,
    operation: str,
    general: str,
    more: str,
    sent: str,
) -> None:
    fake.script([Fail({"exception": SECRET})])
    if fault is not None:
        fake.inject(fault, operation=operation, times=9)
    reported: list[str | None] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        reported.append(message)

    async def main() -> None:
        async with in_memory(fake, show_errors=show_errors) as client:
            result = await client.call_tool(
                "Weather_in_SF", {"message": "Hi"}, progress_callback=on_progress
            )
            text, *rest = texts(result)
            assert (result.is_error, rest) == (
                True,
                [] if operation == "sessions.create" else SESSION,
            )
            if show_errors:
                assert more in text
                assert text.endswith(f". {sent}")
            else:
                assert text == f"{general} {sent}"
            assert "/api" not in text

    anyio.run(main)
    assert reported == []
    (record,) = (each for each in caplog.records if each.levelname == "ERROR")
    assert "'Weather_in_SF' failed: POST http://127.0.0.1:8080/api/sessions" in record.getMessage()
    assert more in record.getMessage()


def test_wrong_arguments_of_the_assistant_are_explained(fake: FakeTransport) -> None:
    async def main() -> None:
        with Flux0(transport=fake) as flux0:
            other = flux0.agents.create(name="Other", type_="fake")
            session = flux0.sessions.create(agent_id=other.id)
        async with in_memory(fake) as client:
            for given, problem in [
                (None, "message is missing: the arguments are message and session_id"),
                (
                    {"prompt": "Hi"},
                    "message is missing: the arguments are message and session_id, not 'prompt'",
                ),
                ({"message": None}, "message must be a str, not NoneType"),
                *(
                    (
                        {"message": "Hi", "session_id": session_id},
                        f"session_id {session_id} is not a session of this user with Weather in SF",
                    )
                    for session_id in ("0123456789", session.id)
                ),
            ]:
                result = await client.call_tool("Weather_in_SF", given)
                assert (result.is_error, texts(result)) == (True, [f"{problem}. {NOT_SENT}"])

    anyio.run(main)


def test_unknown_tool_and_failed_listing_are_protocol_errors(fake: FakeTransport) -> None:
    async def main() -> None:
        async with in_memory(fake) as client:
            with pytest.raises(MCPError, match="unknown tool: 'nope'"):
                await client.call_tool("nope", {"message": "Hi"})
            fake.inject(Respond(403, SECRET), operation="agents.list")
            with pytest.raises(MCPError, match=f"^{FAILED[:-1]}$"):
                await client.list_tools()

    anyio.run(main)


# --- the command


def test_standard_output_has_only_the_protocol(environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, *COMMAND],
        env={**environment, "FLUX0_DEBUG": "1"},
        input='{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n',
        capture_output=True,
        encoding="utf-8",
        timeout=_SECONDS,
        check=False,
    )
    (line,) = done.stdout.splitlines()
    assert json.loads(line) == {"jsonrpc": "2.0", "id": 1, "result": {}}
    assert (done.returncode, "/api/agents" in done.stderr) == (0, True)


def test_ctrl_c_ends_the_command_that_waits_for_its_input(environment: Mapping[str, str]) -> None:
    with subprocess.Popen(
        [sys.executable, *COMMAND],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write('{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n')
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(_SECONDS) == -signal.SIGINT
        finally:
            process.kill()


def test_option_shows_the_errors_of_the_agent_to_the_assistant(
    served: Served, fake: FakeTransport
) -> None:
    fake.script([Fail("boom")])

    async def check(client: Client) -> None:
        result = await client.call_tool("Weather_in_SF", {"message": "Hi"})
        assert texts(result)[0] == f"the agent reported an error: boom. {WAS_SENT}"

    served.run(check, "--show-errors")


def test_command_exits_if_only_its_output_is_closed(environment: Mapping[str, str]) -> None:
    with subprocess.Popen(
        [sys.executable, *COMMAND],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        try:
            assert process.wait(_SECONDS) == 141
        finally:
            process.kill()


def failure(fake: FakeTransport, *options: str) -> tuple[int, str]:
    with fake.installed():
        result = CliRunner().invoke(app, ["mcp", *options])
    return result.exit_code, result.stderr.partition("Error: ")[2]


def test_command_fails_at_once_if_the_server_cannot_be_reached(fake: FakeTransport) -> None:
    fake.inject(Refuse(), times=9)
    code, problem = failure(fake)
    assert (code, problem.startswith("No connection to http")) == (1, True)


def test_json_is_rejected_because_the_command_prints_the_protocol(fake: FakeTransport) -> None:
    with fake.installed():
        result = CliRunner().invoke(app, ["--json", "mcp"])
    assert result.exit_code == 2
    assert "--json: has no effect on this command." in result.stderr


def test_clients_of_other_hosts_are_served_if_the_server_listens_on_all_addresses(
    fake: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The MCP library rejects the names of other hosts with a 421 response, except in this case."""
    listen, statuses = socket.create_server, list[int]()

    def serve(server: uvicorn.Server, _: object) -> None:
        async def ask() -> None:
            web_app: Any = server.config.app
            async with (
                web_app.router.lifespan_context(web_app),
                httpx.AsyncClient(transport=httpx.ASGITransport(app=web_app)) as client,
            ):
                response = await client.post("http://assistants.example/mcp", json={})
                statuses.append(response.status_code)

        anyio.run(ask)

    def listen_on_loopback(address: tuple[str, int], **options: Any) -> socket.socket:
        return listen(("127.0.0.1", address[1]), **options)

    monkeypatch.setattr(socket, "create_server", listen_on_loopback)
    monkeypatch.setattr(uvicorn.Server, "run", serve)
    serve_http(create_server(Flux0(transport=fake)), "0.0.0.0", 0)  # noqa: S104 - not opened
    assert statuses != [421]
    assert len(statuses) == 1


def test_command_fails_if_the_port_is_used(fake: FakeTransport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        code, problem = failure(fake, "--http", "--port", str(port))
    assert (code, problem.startswith(f"--port cannot be {port}: Address already in use")) == (2, 1)


def test_command_fails_if_the_port_needs_a_permission(
    fake: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)  # An administrator has the permission.
    code, problem = failure(fake, "--http", "--port", "80")
    assert (code, problem) == (2, "--port cannot be 80: Permission denied\n")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--http", "--host", ""], "--host must not be empty"),
        (["--http", "--host", "192.0.2.1", "--port", "0"], "--host cannot be 192.0.2.1: "),
        (["--http", "--host", "fe80:::1", "--port", "0"], "--host cannot be fe80:::1: "),
        (["--port", "9000"], "Invalid value for --port: has no effect without --http."),
        (["--host", "127.0.0.1"], "Invalid value for --host: has no effect without --http."),
    ],
)
def test_host_and_port_that_cannot_be_used_are_named(
    fake: FakeTransport, options: list[str], problem: str
) -> None:
    code, shown = failure(fake, *options)
    assert (code, shown[: len(problem)]) == (2, problem)


def test_http_server_listens_on_an_address_of_ipv6(served: Served, fake: FakeTransport) -> None:
    async def check(client: Client) -> None:
        assert len((await client.list_tools()).tools) == 1

    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:  # This system has no IPv6.
        shown = f"--host cannot be ::1: {error.strerror}"
        assert failure(fake, "--http", "--host", "::1") == (2, f"{shown}\n")
    else:
        url = served.run(check, *OVER_HTTP, "--host", "::1")
        assert url.startswith("http://[::1]:")


def test_lone_surrogates_in_the_name_and_description_of_an_agent_are_replaced() -> None:
    agent = {"id": "a", "name": "a\ud800", "type": "t", "created_at": "2026-01-01T00:00:00Z"}
    agents = http_response(
        json.dumps({"data": [agent]}).encode(), headers=[("Content-Type", "application/json")]
    )

    async def main() -> None:
        async with Flux0(server.url) as flux0, Client(create_server(flux0)) as client:
            (tool,) = (await client.list_tools()).tools
            assert (tool.title, tool.description) == (
                "a\ufffd",
                "Send a message to the agent a\ufffd.",
            )

    with ByteServer(agents) as server:
        anyio.run(main)


def test_command_without_the_package_says_what_to_install(
    fake: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    monkeypatch.delitem(sys.modules, "flux0.cli.mcp_server")
    problem = "the MCP server needs the package mcp: pip install 'flux0-client[mcp]'\n"
    assert failure(fake) == (1, problem)
