"""Processes that cannot open more files."""

from __future__ import annotations

import subprocess
import sys

import pytest

from support.transports import SYNC_WAYS, TRANSPORTS, Way

OPEN_ALL_FILES = """
import os, resource, sys
import flux0

resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))

def open_all_files():
    held = []
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return held
"""

SCRIPT = f"""{OPEN_ALL_FILES}
retries = flux0.RetryConfig("backoff", flux0.BackoffStrategy(1, 1, 1, 60_000), max_attempts=2)
transport = getattr(flux0, sys.argv[1])()
client = flux0.Flux0(transport=transport, retry_config=retries)
held = open_all_files()
errors = []
for url in sys.argv[2:]:
    try:
        client.agents.list(server_url=url)
    except flux0.ConnectError as error:
        errors.append(error)
for each in held:
    os.close(each)
print(*errors, sep="\\n")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
@pytest.mark.parametrize("way", SYNC_WAYS, ids=str)
def test_process_that_cannot_open_files_gets_a_connect_error(way: Way) -> None:
    """The process can open no file to import a module for the retry, or to read certificates."""
    urls = "http://127.0.0.1:9", "https://127.0.0.1:9"
    command = (sys.executable, "-c", SCRIPT, TRANSPORTS[way.transport][0], *urls)
    process = subprocess.run(command, capture_output=True, text=True, check=True, timeout=50)
    problem = "too many open files (2 attempts)"
    assert process.stdout.splitlines() == [f"GET {url}/api/agents: {problem}" for url in urls]


ASYNC_SCRIPT = f"""{OPEN_ALL_FILES}
async def main(call):
    client = flux0.Flux0(transport=getattr(flux0, sys.argv[2])())
    held = open_all_files()
    try:
        if call == "list":
            await client.agents.list_async()
        else:
            await client.sessions.create_event_async(session_id="s", content="Hi")
    except flux0.ConnectError as error:
        for each in held:
            os.close(each)
        print(error)

if sys.argv[1] == "trio":
    import trio
    trio.run(main, sys.argv[3])
else:
    import asyncio
    asyncio.run(main(sys.argv[3]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
@pytest.mark.parametrize(
    ("way", "call"),
    [
        (Way("httpx", "asyncio"), "list"),
        (Way("httpx", "trio"), "create_event"),
        (Way("aiohttp", "asyncio"), "create_event"),
    ],
    ids=str,
)
def test_first_async_call_without_free_files_gets_a_connect_error(way: Way, call: str) -> None:
    """The first async call imports the part of anyio for its event loop."""
    command = (sys.executable, "-c", ASYNC_SCRIPT, way.mode, TRANSPORTS[way.transport][0], call)
    process = subprocess.run(command, capture_output=True, text=True, check=True, timeout=50)
    assert process.stdout == "too many open files\n"
