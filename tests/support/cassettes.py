"""Helpers for the tests of cassettes: exchanges, and a program to record and replay."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from flux0 import Flux0, Flux0Error, HttpxTransport, RetryConfig
from flux0.testing import RecordingTransport
from flux0.testing.cassettes.cassette import (
    WHOLE,
    CassetteFile,
    Content,
    RecordedExchange,
    RecordedRequest,
    RecordedResponse,
    to_content,
)
from support.modes import in_mode
from support.transports import ASYNC, SYNC, Mode

modes = pytest.mark.parametrize("mode", SYNC + ASYNC)
loops = pytest.mark.parametrize("mode", ASYNC)

ONCE = RetryConfig(strategy="none")


def piece(after: float, data: bytes, *, as_json: bool = False) -> Content:
    """Return a recorded piece of a body."""
    return to_content(data, as_json=as_json, after=after)


LIST_AGENTS = RecordedExchange(
    RecordedRequest("GET", "/api/agents", {"accept": "application/json"}),
    WHOLE,
    0.5,
    RecordedResponse(
        0.25,
        200,
        {"content-type": "application/json", "set-cookie": "***"},
        (piece(0.5, b'{"data":[]}', as_json=True),),
    ),
)


def posting(
    path: str, body: bytes | None = None, *, method: str = "POST", query: str = ""
) -> RecordedExchange:
    """Return a recorded exchange with this request, by default a POST."""
    content = None if body is None else to_content(body, as_json=True, exact=False)
    return evolve(LIST_AGENTS, request=RecordedRequest(method, path, {}, query, content))


def write_cassette(path: Path, *exchanges: RecordedExchange) -> Path:
    """Write a cassette with these exchanges, and return its path."""
    path.write_text('{"flux0_cassette": 1, "exchanges": []}')
    if exchanges:
        path.unlink()
    file = CassetteFile(path)
    for exchange in exchanges:
        file.append(exchange)
    return path


async def use_client(flux0: Flux0, content: str = "How is the weather?") -> list[Any]:
    """Call several methods of a client, one of which fails, and return all results."""
    agents = await flux0.agents.list_async()
    session = await flux0.sessions.create_async(agent_id=agents[0].id, title="Wetter, schönes")
    async with await flux0.sessions.create_event_async(
        session_id=session.id, content=content
    ) as stream:
        events: list[Any] = [event async for event in stream]
    stored = await flux0.sessions.list_events_async(session_id=session.id, types=["message"])
    try:
        await flux0.agents.retrieve_async(agent_id="0123456789")
    except Flux0Error as error:
        return [agents, session, events, stream.messages, stored, repr(error), vars(error)["body"]]
    raise AssertionError("expected a NotFoundError for an unknown agent")


async def record(mode: Mode, url: str, path: Path, content: str = "How is the weather?") -> Any:
    """Record `use_client` over httpx, and return its results."""
    transport = RecordingTransport(HttpxTransport(), path)
    async with in_mode(mode, Flux0(url, transport=transport, retry_config=ONCE)) as flux0:
        return await use_client(flux0, content)


@contextmanager
def without_root() -> Generator[None, None, None]:
    """In the `with` block, lose the permissions of root, who may read all files."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
