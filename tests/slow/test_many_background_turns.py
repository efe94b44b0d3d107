"""Hundreds of background turns, and hundreds of relays of one turn, in two web workers."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from anyio.abc import TaskGroup

from support.redis_server import redis_server
from support.web_workers import Site, fake_server, site

RELAYS = 500
TURNS = 200
TIMEOUT = 120.0
NAME = "continue"
SCRIPT: list[dict[str, Any]] = [
    {"text": "Before the gate, in many chunks.", "pieces": 30},
    {"wait": NAME},
    {"text": "After the gate, in many chunks.", "pieces": 30},
]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Site]:
    """Two workers, and a fake that holds each turn in its middle."""
    with (
        redis_server(tmp_path) as redis,
        fake_server(timeout=TIMEOUT) as server,
        site("uvicorn", server, redis, 2, lease_seconds=30.0) as workers,
    ):
        yield workers


Contents = dict[str, list[bytes]]


class Readers:
    """HTTP clients that read turns at the same time."""

    def __init__(self, contents: Contents, stack: AsyncExitStack, tasks: TaskGroup) -> None:
        self._contents = contents
        self._stack = stack
        self._tasks = tasks

    async def client(self, worker: httpx.Client) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None)
        made = httpx.AsyncClient(base_url=worker.base_url, timeout=TIMEOUT, limits=limits)
        return await self._stack.enter_async_context(made)

    async def begin(self, client: httpx.AsyncClient, method: str, session_id: str) -> None:
        """Wait for the response head, and read the body in another task."""
        content = json.dumps(SCRIPT) if method == "POST" else None
        request = client.stream(method, f"/{session_id}", content=content)
        response = await self._stack.enter_async_context(request)
        assert response.status_code == 200
        self._tasks.start_soon(self._read, session_id, response)

    async def _read(self, session_id: str, response: httpx.Response) -> None:
        self._contents[session_id].append(await response.aread())


def check(content: bytes) -> None:
    """Check that the events are complete, and that none is repeated."""
    events = content.split(b"\n\n")
    assert events.pop() == b""
    assert [event.split(b"id: ")[1].split(b"\n")[0] for event in events] == [
        str(number).encode() for number in range(1, len(events) + 1)
    ]
    assert len(events) == 60
    assert b"error" not in content


def test_hundreds_of_relays_of_one_turn(running: Site) -> None:
    session_id, contents = running.new_session(), defaultdict[str, list[bytes]](list)

    async def relay() -> None:
        async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
            readers = Readers(contents, stack, tasks)
            first, other = [await readers.client(worker) for worker in running.workers]
            await readers.begin(first, "POST", session_id)
            for _ in range(RELAYS):
                await readers.begin(other, "GET", session_id)
            running.server.release(NAME)

    anyio.run(relay)
    relayed = contents[session_id]
    assert len(relayed) == RELAYS + 1
    assert len(set(relayed)) == 1
    check(relayed[0])


def test_hundreds_of_turns_at_once(running: Site) -> None:
    sessions = [running.new_session() for _ in range(TURNS)]
    contents = defaultdict[str, list[bytes]](list)

    async def relay() -> None:
        async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
            readers = Readers(contents, stack, tasks)
            first, other = [await readers.client(worker) for worker in running.workers]
            for session_id in sessions:
                await readers.begin(first, "POST", session_id)
                await readers.begin(other, "GET", session_id)
            running.server.release(NAME)

    anyio.run(relay)
    assert set(contents) == set(sessions)
    for reader, follower in contents.values():
        assert reader == follower
        check(reader)
