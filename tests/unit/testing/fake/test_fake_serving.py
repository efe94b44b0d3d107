"""`FakeTransport.serve` on a real port, and `FakeTransport.installed`."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from flux0 import EventStream, Flux0, HttpxTransport, StreamInterrupted
from flux0.models import NotFoundError, ServerError, StatusEvent, TransportError
from flux0.testing import (
    AgentReply,
    Drop,
    FakeClock,
    FakeTransport,
    FallSilent,
    Gate,
    Pause,
    Report,
    Respond,
    Say,
    Truncate,
)
from support.cassettes import ONCE
from support.in_memory import in_every_mode
from support.modes import in_mode
from support.transports import Mode


@contextmanager
def served(
    reply: AgentReply, **options: Any
) -> Generator[tuple[FakeTransport, str, EventStream], None, None]:
    """Serve a fake and send it a message; yield the fake, its URL and the stream."""
    fake = FakeTransport(reply, **options)
    with (
        fake.serve() as url,
        Flux0(url) as flux0,
        flux0.conversation(agent=fake.agent_id).send("Hi") as stream,
    ):
        yield fake, url, stream


@in_every_mode
async def test_served_fake_handles_calls_and_streams(mode: Mode) -> None:
    fake = FakeTransport([Report("typing"), Say("Hello", pieces=3)])
    with fake.serve() as url:
        async with in_mode(mode, Flux0(url)) as flux0:
            session = await flux0.sessions.create_async(agent_id=fake.agent_id)
            stream = await flux0.sessions.create_event_async(session_id=session.id, content="Hi")
            assert len([event async for event in stream]) == 4
            assert len(await flux0.sessions.list_events_async(session_id=session.id)) == 3
            with pytest.raises(NotFoundError):
                await flux0.sessions.retrieve_async(session_id="0123456789")
    fake.assert_no_open_streams()
    assert fake.calls[0].operation == "sessions.create"
    with Flux0(url, retry_config=ONCE) as late, pytest.raises(TransportError):
        late.agents.list()  # The server is stopped after the block.


def test_events_are_sent_immediately() -> None:
    gate = Gate()
    with served([Report("typing"), gate, Say("Hello")]) as (_, url, stream):
        assert isinstance(next(stream), StatusEvent)
        with Flux0(url) as flux0:
            assert len(flux0.agents.list()) == 1
        gate.open()
        assert len(list(stream)) == 1


@pytest.mark.parametrize(
    ("last", "moves_by_itself"),
    [(FallSilent(), True), (FallSilent(), False), (Gate(), True), (Pause(1000), False)],
)
def test_disconnected_client_cancels_the_agent(last: Any, moves_by_itself: bool) -> None:
    cancelled = threading.Event()

    def agent(_: object) -> Any:
        try:
            yield Report("typing")
            yield last
        except GeneratorExit:
            cancelled.set()
            raise

    clock = FakeClock(moves_by_itself=moves_by_itself)
    with served(agent, clock=clock) as (_, url, stream):
        next(stream)
        stream.close()
        assert cancelled.wait(10)
        with Flux0(url) as flux0:
            assert len(flux0.agents.list()) == 1


def test_advance_moves_the_clock_of_a_served_fake() -> None:
    clock = FakeClock(moves_by_itself=False)
    with served([Report("typing"), Pause(5), Say("Hello")], clock=clock) as (_, _, stream):
        next(stream)
        clock.advance(5)
        assert len(list(stream)) == 1


def test_sleep_of_the_clock_makes_pauses_real() -> None:
    with served([Pause(0.02), Say("Hello")], clock=FakeClock(sleep=time.sleep)) as (_, _, stream):
        assert "".join(stream.text()) == "Hello"


def test_faults_apply_to_the_real_connection() -> None:
    fake = FakeTransport([Say("Hello", pieces=3)])
    with fake.serve() as url, Flux0(url, retry_config=ONCE) as flux0:
        session = flux0.sessions.create(agent_id=fake.agent_id)
        fake.inject(Respond(500))
        with pytest.raises(ServerError, match="500: Internal Server Error"):
            flux0.agents.list()
        fake.inject(Drop())
        with pytest.raises(TransportError):
            flux0.agents.list()
        fake.inject(Truncate(after_events=2), operation="sessions.create_event")
        with pytest.raises(StreamInterrupted) as caught:
            list(flux0.sessions.create_event(session_id=session.id, content="Hi"))
        assert caught.value.event_count == 2


def test_exception_of_an_agent_leaves_the_stream_open() -> None:
    def agent(_: object) -> Any:
        yield Report("typing")
        raise LookupError("a bug")

    with served(agent) as (fake, url, stream):
        next(stream)
        with Flux0(url) as flux0:
            assert len(flux0.agents.list()) == 1
    with pytest.raises(AssertionError, match="a bug"):
        fake.assert_nothing_unexpected()


def exchange(url: str, text: str) -> bytes:
    """Send a raw request over a new connection, and return all bytes of the response."""
    address = urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(text.encode())
        response = b""
        while data := connection.recv(65536):
            response += data
    return response


def test_all_http_methods() -> None:
    with FakeTransport().serve() as url:
        address = urlsplit(url)
        connection = http.client.HTTPConnection(address.netloc)
        for method, status in (("PUT", 405), ("HEAD", 405), ("GET", 200)):
            connection.request(method, "/api/agents")
            response = connection.getresponse()
            assert (response.status, response.getheader("server")) == (status, "uvicorn")
            response.read()
        connection.close()


def test_chunked_request_bodies_get_411() -> None:
    with FakeTransport().serve() as url:
        head = "POST /api/agents HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        assert exchange(url, f"{head}0\r\n\r\n").startswith(b"HTTP/1.1 411 ")


def test_http_1_0_clients_get_close_delimited_bodies() -> None:
    fake = FakeTransport()
    with fake.serve() as url:
        with Flux0(url) as flux0:
            session = flux0.sessions.create(agent_id=fake.agent_id)
        body = json.dumps({"type": "message", "source": "user", "content": "Hi"})
        response = exchange(
            url,
            f"POST http://fake/api/sessions/{session.id}/events/stream HTTP/1.0\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}",
        )
    head, _, content = response.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert content.startswith(b"event: chunk\n")
    assert content.endswith(b"}\n\n")


def test_concurrent_clients() -> None:
    fake = FakeTransport(lambda message: message.content)
    with fake.serve() as url, Flux0(url) as flux0:

        def talk(number: int) -> str:
            conversation = flux0.conversation(agent=fake.agent_id)
            return "".join(conversation.send(str(number)).text())

        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(talk, range(40))) == [str(number) for number in range(40)]


def test_connections_are_closed_at_the_end_of_the_block() -> None:
    fake = FakeTransport([Report("typing"), FallSilent()])
    with fake.serve() as url:
        flux0 = Flux0(url)
        stream = flux0.conversation(agent=fake.agent_id).send("Hi")
        next(stream)
    with pytest.raises(StreamInterrupted):
        next(stream)
    flux0.close()


# --- clients without a transport


@in_every_mode
async def test_installed_fake_replaces_the_default_transport(mode: Mode) -> None:
    fake = FakeTransport("Hello")
    with fake.installed() as installed:
        assert installed is fake
        async with in_mode(mode, Flux0("http://flux0.example")) as flux0:
            assert len(await flux0.agents.list_async()) == 1
        with ThreadPoolExecutor(1) as threads:
            assert len(threads.submit(lambda: Flux0().agents.list()).result()) == 1  # noqa: PLW0108
    assert len(fake.calls) == 2


def test_an_installed_fake_leaves_other_transports_alone() -> None:
    fake, other, latest, real = (FakeTransport() for _ in range(4))
    with fake.installed(), real.serve() as url:
        with Flux0(transport=other) as flux0, latest.installed(), Flux0() as inner:
            flux0.agents.list()
            inner.agents.list()
        Flux0().agents.list()
        with Flux0(url, transport=HttpxTransport()) as flux0:
            flux0.agents.list()
    assert [len(one.calls) for one in (fake, other, latest, real)] == [1, 1, 1, 1]
    with Flux0("http://127.0.0.1:1", retry_config=ONCE) as flux0, pytest.raises(TransportError):
        flux0.agents.list()


def test_path_prefixes_before_the_api() -> None:
    fake = FakeTransport()
    for url in ("http://proxy/flux0/", "http://proxy/a/b"):
        with Flux0(url, transport=fake) as flux0:
            conversation = flux0.conversation(agent=fake.agent_id)
            assert "".join(conversation.send("Hi").text()) == "Hello"
    assert fake.calls[-1].operation == "sessions.create_event"
