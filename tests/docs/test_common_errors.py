"""Each message in docs/common-errors.md is the message that the user sees."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import TestCase

import httpx
import pytest
from attrs import evolve
from typer.testing import CliRunner

import flux0
from flux0 import BackoffStrategy, ConnectTimeout, Flux0, RetryConfig, TLSError
from flux0.cli.app import app
from flux0.testing import FakeTransport, Refuse, Respond, Stall, Truncate
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import Disconnect, Write
from support.in_memory import SSE, chunk, script, scripted_response

PAGE = Path(__file__).parents[2] / "docs" / "common-errors.md"
SECTION = re.compile(r"^### ([^\n]+)\n\n```text\n(.+?)```$", re.MULTILINE | re.DOTALL)
DOCUMENTED: dict[str, str] = dict(SECTION.findall(PAGE.read_text("utf-8")))

NO_WAIT = RetryConfig(backoff=BackoffStrategy(initial_interval=0), max_attempts=3)
URL = "http://127.0.0.1:8080"

# A function that makes a mistake, and returns the message that the user sees.
Mistake = Callable[[], str]
MISTAKES: dict[str, Mistake] = {}


def under(heading: str) -> Callable[[Mistake], Mistake]:
    """Register the function with the mistake that the section with this heading describes."""

    def register(mistake: Mistake) -> Mistake:
        MISTAKES[heading] = mistake
        return mistake

    return register


def last_line(call: Callable[[], object]) -> str:
    """Call `call`, which fails, and return the traceback's last line."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the page has the class and the text
        call()
    return "".join(traceback.format_exception_only(type(caught.value), caught.value)).rstrip()


def list_agents(url: str) -> str:
    with Flux0(url, retry_config=NO_WAIT) as client:
        return last_line(client.agents.list)


def fake_client(*faults: Any, operation: str = "agents.list", url: str = URL) -> Flux0:
    fake = FakeTransport()
    if faults:
        fake.inject(*faults, times=3, operation=operation)
    return Flux0(url, transport=fake, retry_config=NO_WAIT)


def ask(*faults: Any) -> str:
    client = fake_client(*faults, operation="sessions.create_event")
    conversation = client.conversation(agent=client.agents.first())
    return last_line(lambda: conversation.ask("Hello"))


def in_async_code(call: Callable[[Flux0], object]) -> str:
    """The async version of `last_line`."""

    async def main() -> str:
        async with fake_client() as client:
            return last_line(lambda: call(client))

    return asyncio.run(main())


# --- no connection


@under("Connection refused")
def connect_to_a_port_without_a_server() -> str:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return list_agents(f"http://127.0.0.1:{bound.getsockname()[1]}")


@under("Could not connect")
def connect_to_an_unreachable_host() -> str:
    return last_line(fake_client(Refuse(ConnectTimeout)).agents.list)


@under("Host name cannot be resolved")
def connect_to_an_unknown_host() -> str:
    return list_agents("http://flux0.invalid")


@under("Use http:// in its URL")
def use_https_for_a_server_without_tls() -> str:
    with ByteServer(on_connect=(Write(b"HTTP/1.1 400 \r\n\r\n"), Disconnect())) as server:
        return list_agents(server.url.replace("http:", "https:"))


@under("The certificate is not trusted")
def connect_to_a_server_with_an_untrusted_certificate() -> str:
    client = fake_client(Refuse(TLSError), url="https://flux0.example.com")
    return last_line(client.agents.list)


@under("No data received")
def call_a_server_that_does_not_respond() -> str:
    return last_line(fake_client(Stall()).agents.list)


# --- the wrong server or URL


@under("server_url must be like")
def pass_a_url_without_a_scheme() -> str:
    return last_line(lambda: Flux0("localhost:8080"))


@under("The route does not exist")
def pass_a_url_that_ends_with_api() -> str:
    return last_line(Flux0(f"{URL}/api", transport=FakeTransport()).agents.list)


@under("Not JSON")
def call_a_server_that_returns_html() -> str:
    return last_line(fake_client(Respond(200, body=b"<html>Log in</html>")).agents.list)


@under("Is not a flux0 server")
def run_the_command_line_for_a_server_that_returns_html() -> str:
    fake = FakeTransport()
    fake.inject(Respond(200, body=b"<html>Log in</html>"))
    with fake.serve() as url:
        return CliRunner().invoke(app, ["--server-url", url, "agents", "list"]).stderr


@under("Unauthorized")
def call_without_a_token() -> str:
    return last_line(fake_client(Respond(401)).agents.list)


@under("Bad gateway")
def call_through_a_proxy_without_a_server() -> str:
    return last_line(fake_client(Respond(502)).agents.list)


# --- agents, sessions and arguments


@under("A name instead of an id")
def pass_the_name_of_an_agent() -> str:
    return last_line(lambda: fake_client().conversation(agent="Fake"))


@under("422")
def create_an_agent_of_an_unknown_type() -> str:
    return last_line(lambda: fake_client().agents.create(name="Sky", type_="weather"))


@under("The server has no agent")
def get_an_agent_with_an_unknown_name() -> str:
    return last_line(lambda: fake_client().agents.first(name="Support"))


@under("Session not found")
def send_to_an_unknown_session() -> str:
    send = fake_client().sessions.create_event
    return last_line(lambda: send(session_id="nobodyhere", content="Hello"))


@under("timeout instead of timeout_ms")
def pass_timeout() -> str:
    wrong: dict[str, Any] = {"timeout": 5}
    message = last_line(lambda: Flux0(**wrong))
    assert message == last_line(lambda: fake_client().agents.list(**wrong))
    return message


# --- installation and clients


@under("A package is missing")
def use_a_transport_without_its_library() -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(vars(flux0), "AiohttpTransport", raising=False)
        patch.setitem(sys.modules, "aiohttp", None)
        patch.delattr("flux0.adapters.aiohttp", raising=False)
        for module in [name for name in sys.modules if name.startswith("flux0.adapters.aiohttp")]:
            patch.delitem(sys.modules, module)
        return last_line(flux0.AiohttpTransport)


@under("The client is closed")
def call_a_closed_client() -> str:
    with fake_client() as client:
        pass
    return last_line(client.agents.list)


@under("Only an async transport")
def call_a_sync_method_of_an_async_client() -> str:
    client = Flux0(async_client=httpx.AsyncClient())
    return last_line(client.agents.list)


# --- async code


@under("A call without await")
def read_the_result_without_await() -> str:
    def read(client: Flux0) -> object:
        agents: Any = client.agents.list_async()
        try:
            return agents.data
        finally:
            agents.close()

    return in_async_code(read)


@under("The turn has not begun")
def iterate_over_a_turn_without_await() -> str:
    async def main() -> str:
        async with fake_client() as client:
            agent = await client.agents.first_async()
            conversation = await client.conversation_async(agent=agent)
            turn: Any = conversation.send("Hello")
            line = last_line(lambda: list(turn))
            assert line == last_line(lambda: aiter(turn))
            turn.close()
            return line

    return asyncio.run(main())


@under("The conversation is not open")
def send_without_awaiting_the_conversation() -> str:
    def send(client: Flux0) -> object:
        conversation: Any = client.conversation_async(agent="agent12345")
        try:
            return conversation.send("Hello")
        finally:
            conversation.close()

    return in_async_code(send)


# --- streams


@under("The agent crashed")
def wait_for_a_crashed_agent() -> str:
    return ask(Stall(after_events=1))


@under("The stream was interrupted")
def lose_the_connection_during_a_turn() -> str:
    return ask(Truncate(after_events=1))


@under("Another message on the session")
def send_two_messages_at_the_same_time() -> str:
    client = fake_client()
    conversation = client.conversation(agent=client.agents.first())
    first = conversation.send("Hello")
    conversation.ask("Are you there?")
    return last_line(lambda: next(first))


@under("The end is unconfirmed")
def read_a_turn_through_a_proxy() -> str:
    turn = evolve(scripted_response(chunk("a"), headers=SSE), close_delimited=True)
    client = Flux0(transport=script(turn, scripted_response(b'{"data": []}')))
    stream = client.sessions.create_event(session_id="s", content="Hello")
    with TestCase().assertLogs("flux0", "WARNING") as logged, pytest.raises(flux0.StreamError):
        stream.final_messages()
    (record,) = logged.records
    return record.getMessage()


# --- the tests


def normalized(message: str) -> str:
    """Return a message on one line, without values that differ in each run."""
    text = " ".join(message.split())
    text = re.sub(r"//127\.0\.0\.1:\d+", "//127.0.0.1:8080", text)
    text = re.sub(r"/sessions/\w{10}/", "/sessions/SESSION/", text)
    return re.sub(r"RID\(\w+\)::\w+", "RID", text)


def test_each_section_has_a_mistake_and_a_fix() -> None:
    page = PAGE.read_text("utf-8")
    headings = re.findall(r"^### (.+)", page, re.MULTILINE)

    assert headings == [*DOCUMENTED] == [*MISTAKES]
    assert len(headings) == page.count("\n**Fix:** ")


@pytest.mark.parametrize("heading", MISTAKES)
def test_mistake_causes_the_documented_message(heading: str) -> None:
    documented = re.escape(normalized(DOCUMENTED[heading])).replace(r"\.\.\.", ".+")
    message = normalized(MISTAKES[heading]())

    assert re.fullmatch(documented, message)
