"""Recorders, such as vcrpy, read responses before flux0 does, or replay them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest

from flux0 import Flux0, HttpxTransport
from flux0.testing import CallTool, FakeTransport, GiveResult, Reason, Say
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.harness import LONG, get
from flux0.testing.contract.responses import WaitForRelease, http_response
from support.modes import in_mode, run
from support.sending import OK, Pieces
from support.transports import Way

pytest_plugins = ["pytester"]

CALL = CallTool("weather", {"city": "Paris"}, id="call")
STEPS = (
    Reason("I need the weather", pieces=3),
    CALL,
    GiveResult(CALL, {"celsius": 21}),
    Say("Warm and sunny", pieces=4),
)
TIMEOUT_MS = 20_000

with_vcrpy = pytest.mark.skipif(sys.version_info < (3, 11), reason="vcrpy 9 needs Python 3.11")


async def talk(url: str, way: Way, transport: Any) -> tuple[Any, ...]:
    """Return the results of two calls, and the events and messages of a turn."""
    client = in_mode(way.mode, Flux0(url, transport=transport, timeout_ms=TIMEOUT_MS))
    async with client:
        agents = await client.agents.list_async()
        session = await client.sessions.create_async(agent_id=agents[0].id)
        stream = await client.sessions.create_event_async(session_id=session.id, content="Hello")
        async with stream:
            events = [event async for event in stream]
            return agents, session, events, stream.messages


def check_turn(events: Any, messages: Any) -> None:
    assert len(events) > len(STEPS)
    assert len(messages) == len(STEPS)
    assert messages[-1].text == "Warm and sunny"


class ReadsAll(httpx.BaseTransport):
    """A user's transport that reads each response, and copies its extensions."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self.inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return read_and_close(self.inner.handle_request(request))


class ReadsAllItself(httpx.HTTPTransport):
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return read_and_close(super().handle_request(request))


def read_and_close(response: httpx.Response) -> httpx.Response:
    with closing(response):
        content = b"".join(response.iter_raw())
    return httpx.Response(
        response.status_code,
        headers=response.headers,
        stream=httpx.ByteStream(content),
        extensions=response.extensions,
    )


@pytest.fixture(params=["wraps", "inherits"])
def reading_transport(request: pytest.FixtureRequest) -> Iterator[HttpxTransport]:
    with httpx.HTTPTransport() as inner, httpx.Client(transport=inner) as tracked:
        HttpxTransport(tracked)  # Tracks the connections of `inner`.
        transport = ReadsAll(inner) if request.param == "wraps" else ReadsAllItself()
        with httpx.Client(transport=transport) as client:
            yield HttpxTransport(client)


def test_transport_of_httpx_may_read_responses_and_copy_their_extensions(
    reading_transport: HttpxTransport,
) -> None:
    results: list[tuple[Any, ...]] = []
    way = Way("httpx", "sync")

    async def use() -> None:
        results.append(await talk(url, way, reading_transport))

    with FakeTransport(STEPS).serve() as url:
        run(way.mode, use)
    check_turn(*results[0][2:])


@pytest.mark.parametrize("own_client", [False, True], ids=["built-in", "own"])
def test_closing_a_recorded_response_does_not_end_the_next_response_on_its_connection(
    own_client: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle_request = httpx.HTTPTransport.handle_request

    def record(transport: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        return read_and_close(handle_request(transport, request))

    second = http_response(b"first", WaitForRelease(), b"second", framing="chunked")
    with ByteServer(OK, second) as server, httpx.Client() as client:
        transport = HttpxTransport(client if own_client else None)
        with monkeypatch.context() as recording:
            recording.setattr(httpx.HTTPTransport, "handle_request", record)
            recorded = transport.send(get(server.url))
        response = transport.send(get(server.url))
        assert response.body.read(LONG) == b"first"
        recorded.body.close()
        server.release()
        assert list(Pieces(response.body)) == [b"second"]
        assert server.connections == 1
        transport.close()
