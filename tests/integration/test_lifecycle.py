"""Clients that are closed, or never closed, while turns are open, with the real server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flux0.models import Flux0Error
from support.modes import MakeClient, call_blocking
from support.server import Flux0Server
from support.transports import TRANSPORTS, Way
from support.turns import appended, perform


async def test_closing_a_client_closes_its_streams(
    make_client: MakeClient, server: Flux0Server, way: Way, session_id: str, fresh_name: str
) -> None:
    async with make_client() as flux0:
        stream = await perform(flux0, session_id, {"text": "Hi"}, {"wait": fresh_name})
        assert appended(await anext(stream)) == "Hi"
    await call_blocking(way.mode, server.wait_cancelled, fresh_name)
    with pytest.raises(Flux0Error):
        await anext(stream)
    await stream.close_async()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_program_that_closes_nothing_exits_without_output(
    server: Flux0Server, transport: str
) -> None:
    """The program can also use several event loops, which may share a client."""
    modes = [*TRANSPORTS[transport][1], "loops"]
    if transport == "httpx2":
        # If an asyncio loop ends while a stream is open, asyncio closes the generators of the
        # response in any order, and warns if an inner generator is closed first. This also
        # happens in programs that use only httpx2.
        modes = ["sync", "trio"]
    command = [sys.executable, "-W", "error", "-X", "dev", "-m", "support.closes_nothing"]
    command += [transport, server.url, server.agent_id, *modes]
    folder = Path(__file__).parents[1]
    program = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert (program.stderr, program.stdout, program.returncode) == ("", "", 0)
