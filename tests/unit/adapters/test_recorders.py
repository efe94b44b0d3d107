"""Recorders, such as vcrpy, read responses before flux0 does, or replay them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest

from flux0 import Flux0, HttpxTransport
from flux0.testing import CallTool, FakeTransport, GiveResult, Reason, Say
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.harness import LONG, get
from flux0.testing.contract.responses import WaitForRelease, http_response
from support.modes import in_mode, run
from support.over_httpx import FAMILY, OverHttpx
from support.sending import OK, Pieces
from support.transports import LIBRARIES, Way

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


def check_recording(path: Path, way: Way, own_client: bool = False) -> None:
    """Record the calls of `talk` with vcrpy, stop the server, and replay the calls."""
    vcr: Any = import_module("vcr")
    results: list[tuple[Any, ...]] = []
    fake = FakeTransport(STEPS)

    async def use() -> None:
        if isinstance(way, OverHttpx):
            async with way.closing(way.client() if own_client else None) as transport:
                results.append(await talk(url, way, transport))
        else:
            results.append(await talk(url, way, way.make_transport()))

    cassette = str(path / "cassette.yaml")
    with fake.serve() as url, vcr.use_cassette(cassette, record_mode="all"):
        run(way.mode, use)
    assert len(fake.calls) == 3
    with vcr.use_cassette(cassette, record_mode="none") as replaying:
        run(way.mode, use)
    assert len(fake.calls) == replaying.play_count == 3
    recorded, replayed = results
    assert recorded == replayed
    check_turn(*recorded[2:])


def check_turn(events: Any, messages: Any) -> None:
    assert len(events) > len(STEPS)
    assert len(messages) == len(STEPS)
    assert messages[-1].text == "Warm and sunny"


@with_vcrpy
@pytest.mark.parametrize("own_client", [False, True], ids=["built-in", "own"])
@pytest.mark.parametrize("way", FAMILY, ids=str)
def test_vcrpy_records_and_replays_turns_over_httpx(
    way: OverHttpx, own_client: bool, tmp_path: Path
) -> None:
    check_recording(tmp_path, way, own_client)


@with_vcrpy
@pytest.mark.parametrize(
    "way", [way for way in LIBRARIES if not way.transport.startswith("httpx")], ids=str
)
def test_vcrpy_records_and_replays_turns_over_other_libraries(way: Way, tmp_path: Path) -> None:
    check_recording(tmp_path, way)


RECORDED_TEST = """
    import pytest
    from flux0 import Flux0

    @pytest.mark.vcr
    def test_turn():
        with Flux0({url!r}, timeout_ms=20_000) as client:
            conversation = client.conversation(agent=client.agents.first())
            with conversation.send("Hello") as stream:
                assert "".join(stream.text()) == "Warm and sunny"
                assert stream.finished
"""


@with_vcrpy
def test_pytest_recording_records_and_replays_turns(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    plugin = ("-p", "pytest_recording.plugin")
    fake = FakeTransport(STEPS)
    with fake.serve() as url:
        pytester.makepyfile(RECORDED_TEST.format(url=url))
        recording = pytester.runpytest_subprocess(*plugin, "--record-mode=once")
        recording.assert_outcomes(passed=1)
    calls = len(fake.calls)
    assert calls
    pytester.runpytest_subprocess(*plugin, "--record-mode=none").assert_outcomes(passed=1)
    assert len(fake.calls) == calls


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
