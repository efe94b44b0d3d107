"""How clients are set up, shared, closed and forgotten, on the real server."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from flux0 import HTTPValidationError
from flux0.models import ClientClosed, Flux0Error
from integration.ways import few_ways
from support.modes import MakeClient, call_blocking
from support.server import Flux0Server
from support.transports import TRANSPORTS, Way
from support.turns import appended, perform, rest_of

# --- closing


@few_ways
@pytest.mark.parametrize("used", [True, False])
async def test_a_closed_client_refuses_every_call(
    make_client: MakeClient, session_id: str, used: bool
) -> None:
    flux0 = make_client()
    if used:
        async with flux0:
            assert await flux0.agents.list_async()
    else:
        flux0.close()
    agents, sessions = flux0.agents, flux0.sessions
    calls: list[Callable[[], Awaitable[object]]] = [
        agents.list_async,
        lambda: agents.create_async(name="Drizzle", type_="scripted"),
        lambda: agents.retrieve_async(agent_id="abcdefghij"),
        sessions.list_async,
        lambda: sessions.create_async(agent_id="abcdefghij"),
        lambda: sessions.retrieve_async(session_id=session_id),
        lambda: sessions.list_events_async(session_id=session_id),
        lambda: sessions.create_event_async(session_id=session_id, content="Hi"),
    ]
    for call in calls:
        with pytest.raises(ClientClosed):
            await call()
    await flux0.close_async()


async def test_closing_a_client_ends_its_turns(
    make_client: MakeClient, server: Flux0Server, way: Way, session_id: str, fresh_name: str
) -> None:
    async with make_client() as flux0:
        stream = await perform(flux0, session_id, {"text": "Hi"}, {"wait": fresh_name})
        assert appended(await anext(stream)) == "Hi"
    await call_blocking(way.mode, server.wait_cancelled, fresh_name)
    with pytest.raises(Flux0Error):
        await anext(stream)
    await stream.close_async()


# --- logs


class Logger:
    """Keeps what it is told."""

    text = ""

    def debug(self, msg: str, *args: Any) -> None:
        self.text += f"{msg % args}\n"


@few_ways
async def test_a_logger_is_told_of_each_exchange_but_no_credentials(
    make_client: MakeClient, server: Flux0Server, session_id: str
) -> None:
    url = server.url.replace("http://", "http://ann:s3cret-password@")
    logger = Logger()
    async with make_client(debug_logger=logger, server_url=url) as flux0:
        await flux0.agents.list_async(http_headers={"cookie": "flux0_user_sub=s3cret"})
        await rest_of(await perform(flux0, session_id, {"text": "Hi there"}))
        with pytest.raises(HTTPValidationError):
            await flux0.agents.retrieve_async(agent_id="short")
    for told in (
        "GET http://127.0.0.1",
        "'authorization': '***'",
        "/api/agents answered 200",
        f"/api/sessions/{session_id}/events/stream answered 200",
        "Hi there",
        "422",
    ):
        assert told in logger.text
    assert "s3cret" not in logger.text
    assert base64.b64encode(b"ann:s3cret-password").decode() not in logger.text


# --- forgetting


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_program_that_closes_nothing_ends_in_silence(server: Flux0Server, transport: str) -> None:
    """So do its event loops, which may share a client."""
    what = [*TRANSPORTS[transport][1], "loops"]
    if transport == "httpx2":
        # When a loop of asyncio ends under an open stream, it closes the generators of which the
        # response is made in any order, and complains if an inner one comes first. Bare httpx2
        # shows it.
        what = ["sync", "trio"]
    command = [sys.executable, "-W", "error", "-X", "dev", "-m", "support.forgetful"]
    command += [transport, server.url, server.agent_id, *what]
    folder = Path(__file__).parents[1]
    program = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert (program.stderr, program.stdout, program.returncode) == ("", "", 0)
