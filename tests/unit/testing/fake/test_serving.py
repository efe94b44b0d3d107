"""`FakeTransport.serve` on a real port."""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import logging
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice, repeat
from typing import Any
from urllib.parse import urlsplit
from weakref import ref

import anyio
import httpx
import pytest

from flux0 import EventStream, Flux0, RetryConfig, StreamIdleTimeout, StreamInterrupted
from flux0.models import NotFoundError, ReadTimeout, ServerError, StatusEvent, TransportError
from flux0.testing import (
    AgentReply,
    Delay,
    Drop,
    FakeClock,
    FakeTransport,
    FallSilent,
    Gate,
    Pause,
    Report,
    Respond,
    Say,
    Stall,
    Truncate,
    UserMessage,
)
from support.fakes import kinds, new_session
from support.garbage_collection import needs_gil
from support.in_memory import in_every_mode
from support.modes import in_mode
from support.ports import reserved_port
from support.transports import Mode

ONCE = RetryConfig(strategy="none")


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
        late.agents.list()  # `serve` stops the server after its block.


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
    with served(agent, clock=clock) as (fake, url, stream):
        next(stream)
        stream.close()
        assert cancelled.wait(10)
        fake.assert_no_open_streams()
        with Flux0(url) as flux0:
            assert len(flux0.agents.list()) == 1


@pytest.mark.parametrize("first", [Report("typing"), Pause(1)])
def test_blocking_agent_does_not_block_other_connections(first: Any) -> None:
    begun, released = threading.Event(), threading.Event()

    def agent(message: UserMessage) -> Any:
        yield first
        begun.set()
        assert released.wait(10)
        yield message.content

    with served(agent) as (_, url, stream):
        assert begun.wait(10)
        with Flux0(url) as flux0:
            assert len(flux0.agents.list()) == 1
        released.set()
        assert "".join(stream.text()) == "Hi"


def test_advance_moves_the_clock_of_a_served_fake() -> None:
    clock = FakeClock(moves_by_itself=False)
    with served([Report("typing"), Pause(5), Say("Hello")], clock=clock) as (_, _, stream):
        next(stream)
        clock.advance(5)
        assert len(list(stream)) == 1


def test_sleep_of_the_clock_makes_pauses_real() -> None:
    with served([Pause(0.02), Say("Hello")], clock=FakeClock(sleep=time.sleep)) as (_, _, stream):
        assert "".join(stream.text()) == "Hello"


def test_reading_resumes_an_agent_that_is_far_ahead() -> None:
    clock = FakeClock(moves_by_itself=False)
    with served(lambda _: repeat(Report("typing")), clock=clock) as (_, _, stream):
        assert len(list(islice(stream, 10_500))) == 10_500


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


def test_exception_of_an_agent_is_logged_and_leaves_the_stream_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def agent(_: object) -> Any:
        yield Report("typing")
        raise LookupError("a bug")

    fake = FakeTransport(agent)
    with fake.serve() as url, Flux0(url, stream_idle_timeout_ms=200) as flux0:
        stream = flux0.conversation(agent=fake.agent_id).send("Hi")
        next(stream)
        assert len(flux0.agents.list()) == 1
        with pytest.raises(StreamIdleTimeout):
            next(stream)
    with pytest.raises(AssertionError, match="a bug"):
        fake.assert_nothing_unexpected()
    (record,) = (each for each in caplog.records if each.levelno > logging.WARNING)
    assert record.name == "flux0.testing"
    assert "POST http://127.0.0.1" in record.getMessage()
    assert "the agent failed" in record.getMessage()
    assert record.exc_info is not None
    assert repr(record.exc_info[1]) == "LookupError('a bug')"


def test_requests_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "flux0.testing")
    fake = FakeTransport()
    with fake.serve() as url, Flux0(url) as flux0:
        fake.inject(Drop())
        flux0.agents.list()
    logged = [each.getMessage() for each in caplog.records if each.name == "flux0.testing"]
    assert logged == [
        f"GET {url}/api/agents: the connection was closed before the response",
        f"GET {url}/api/agents: 200",
    ]


def test_unexpected_call_gets_a_500_with_the_problem(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeTransport()
    fake.expect("sessions.list")
    with fake.serve() as url, Flux0(url, retry_config=ONCE) as flux0:
        with pytest.raises(ServerError, match=r"500: unexpected: agents\.list\(\)") as caught:
            flux0.agents.list()
        assert "nearest expected: sessions.list()" in str(caught.value.body)
        assert len(flux0.sessions.list()) == 0
        connection = http.client.HTTPConnection(urlsplit(url).netloc)
        for _ in range(2):  # The connection stays open.
            connection.request("GET", "/api/agents")
            with connection.getresponse() as response:
                assert response.read().startswith(b"unexpected: agents.list()")
        connection.close()
    assert "unexpected: agents.list()" in caplog.text


@pytest.mark.parametrize("moves_by_itself", [True, False])
def test_stall_ends_when_the_client_disconnects(moves_by_itself: bool) -> None:
    fake = FakeTransport(clock=FakeClock(moves_by_itself=moves_by_itself))
    with fake.serve() as url, Flux0(url, retry_config=ONCE) as flux0:
        fake.inject(Stall(), operation="agents.list")
        with pytest.raises(ReadTimeout):
            flux0.agents.list(timeout_ms=200)
        fake.inject(Stall())
        with connect(url) as connection:
            connection.sendall(b"GET /api/agents HTTP/1.1\r\nhost: x\r\n\r\n")
            while len(fake.calls) < 2:
                time.sleep(0.001)
            connection.settimeout(0.05)
            with pytest.raises(TimeoutError):
                connection.recv(1)


def test_error_of_a_function_of_the_test_is_logged_and_gets_a_500(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake = FakeTransport()
    fake.inject(Respond(503), when=lambda call: int(call.path))
    with fake.serve() as url:
        response = httpx.get(f"{url}/api/agents")
    assert response.status_code == 500
    assert response.text == "invalid literal for int() with base 10: '/api/agents'"
    assert "ValueError" in caplog.text


def test_reset_ends_a_response_that_stalls() -> None:
    fake = FakeTransport()
    fake.inject(Stall(after_bytes=3))
    with fake.serve() as url, connect(url) as connection:
        connection.sendall(f"GET /api/agents HTTP/1.1\r\n{_CLOSE}\r\n".encode())
        read_until(connection, b'{"d')
        fake.reset()
        assert b"ata" not in read_all(connection)


def test_delay_lasts_until_a_test_moves_the_clock() -> None:
    waits = threading.Semaphore(0)

    class WatchedClock(FakeClock):
        def reaches(self, moment: float | None) -> bool:
            waits.release()
            return super().reaches(moment)

    clock = WatchedClock(moves_by_itself=False)
    fake = FakeTransport(clock=clock)
    with fake.serve() as url, Flux0(url) as flux0, ThreadPoolExecutor(1) as threads:
        fake.inject(Delay(5))
        listed = threads.submit(flux0.agents.list)
        assert waits.acquire(timeout=10)
        clock.advance(4)
        assert waits.acquire(timeout=10)  # The call waits again.
        assert not listed.done()
        clock.advance(1)
        assert len(listed.result(10)) == 1


async def answer_slowly(message: UserMessage) -> list[Any]:
    await asyncio.sleep(0.001)
    return [Report("typing"), Pause(5), message.content]


async def yield_slowly(message: UserMessage) -> AsyncGenerator[Any, None]:
    yield Report("typing")
    await anyio.sleep(0.001)
    yield Pause(5)
    await asyncio.sleep(0.001)
    yield message.content


@pytest.mark.parametrize("agent", [answer_slowly, yield_slowly])
def test_async_agents_run_on_an_event_loop(agent: AgentReply) -> None:
    fake = FakeTransport(agent)
    with fake.serve() as url, Flux0(url) as flux0, ThreadPoolExecutor(4) as threads:

        def ask(number: int) -> str | None:
            return flux0.conversation(agent=fake.agent_id).ask(str(number)).text

        assert list(threads.map(ask, range(20))) == [str(number) for number in range(20)]
    fake.assert_nothing_unexpected()


def test_async_agent_is_cancelled_when_its_client_disconnects_or_the_block_ends() -> None:
    cancelled = {"left": threading.Event(), "open": threading.Event()}

    async def agent(message: UserMessage) -> AsyncGenerator[Any, None]:
        yield Report("typing")
        try:
            await asyncio.Event().wait()
        finally:
            cancelled[message.content].set()

    fake = FakeTransport(agent)
    with fake.serve() as url, Flux0(url) as flux0:
        streams = [flux0.conversation(agent=fake.agent_id).send(text) for text in cancelled]
        for stream in streams:
            next(stream)
        streams[0].close()
        assert cancelled["left"].wait(10)
        assert not cancelled["open"].is_set()
    assert cancelled["open"].is_set()


def connect(url: str) -> socket.socket:
    """Return a new connection to a served fake."""
    address = urlsplit(url)
    assert address.hostname is not None
    return socket.create_connection((address.hostname, address.port or 80), timeout=10)


def read_all(connection: socket.socket) -> bytes:
    """Return all bytes that the server sends until it closes the connection."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def read_until(connection: socket.socket, text: bytes) -> None:
    """Read until the data ends with `text`. Fail if the server closes the connection before."""
    received = b""
    while not received.endswith(text):
        piece = connection.recv(65536)
        assert piece, received
        received += piece


def exchange(url: str, text: str) -> bytes:
    """Send a raw request over a new connection, and return all response bytes."""
    with connect(url) as connection:
        connection.sendall(text.encode("latin-1"))
        return read_all(connection)


def test_http_methods_other_than_get_are_not_allowed() -> None:
    with FakeTransport().serve() as url:
        address = urlsplit(url)
        connection = http.client.HTTPConnection(address.netloc)
        for method in ("PUT", "HEAD", "FOO", "get", "GET"):
            connection.request(method, "/api/agents")
            response = connection.getresponse()
            assert response.status == (200 if method == "GET" else 405)
            assert response.getheader("server") == "uvicorn"
            response.read()
        connection.close()


_CLOSE = "host: x\r\nconnection: close\r\n"
_JSON = f"{_CLOSE}content-type: application/json\r\n"
_AGENT = '{"name":"n","type":"fake"}'


@pytest.mark.parametrize(
    ("request_line", "rest", "response"),
    [
        ("POST /api/agents",
         f"{_JSON}transfer-encoding: chunked\r\n\r\n1a\r\n{_AGENT}\r\n0\r\n\r\n", "201 Created"),
        ("POST /api/agents", f"{_JSON}content-length: 2\r\n\r\n{{}}", "422 Unprocessable Content"),
        ("GET //api/agents", _CLOSE, "404 Not Found"),
        ("GET /api/x/../agents", _CLOSE, "404 Not Found"),
        ("GET http://x/api/agents", _CLOSE, "404 Not Found"),
        ("GET /api/agents#x", _CLOSE, "404 Not Found"),
        ("GET x/api/agents", _CLOSE, "404 Not Found"),
        ("GET [", _CLOSE, "404 Not Found"),
        ("CONNECT x:80", _CLOSE, "404 Not Found"),
        ("TRACE /api/agents", _CLOSE, "405 Method Not Allowed"),
        ("GET /api/agents", _CLOSE + "a: b\r\n" * 200, "200 OK"),
        ("GET /api/agents", f"{_CLOSE}a: {'b' * 100_000}\r\n", "200 OK"),
        ("GET /api/agents", "connection: close\r\nhost: [::1\r\n", "400 Bad Request"),
        ("GET /api/agents", "", "400 Bad Request"),
        ("GET /api/agents", f"{_CLOSE}content-length: +2\r\n", "400 Bad Request"),
        ("GET /api/agents", f"{_CLOSE}content-length: x\r\n", "400 Bad Request"),
        ("GET /api/agents", f"{_CLOSE}content-length: 0\r\ncontent-length: 1\r\n",
         "400 Bad Request"),
    ],
)  # fmt: skip
def test_raw_requests_get_the_responses_of_the_server(
    request_line: str, rest: str, response: str
) -> None:
    """The integration tests compare more of these requests with the real server."""
    with FakeTransport().serve() as url:
        head, _, body = exchange(url, f"{request_line} HTTP/1.1\r\n{rest}\r\n").partition(
            b"\r\n\r\n"
        )
    assert head.startswith(f"HTTP/1.1 {response}\r\n".encode())
    assert b"Invalid HTTP request received." in body or json.loads(body)


def test_redirect_has_the_host_of_the_request() -> None:
    with FakeTransport().serve() as url:
        for fields, location in (("host: x\r\n", "http://x"), ("", url)):
            request = f"GET /api/agents/ HTTP/1.0\r\n{fields}\r\n"
            assert f"location: {location}/api/agents\r\n".encode() in exchange(url, request)


def test_header_values_are_latin_1() -> None:
    fake = FakeTransport()
    fake.inject(Respond(503, headers={"x-b": "\xe9"}))
    with fake.serve() as url:
        response = exchange(url, f"GET /api/agents HTTP/1.1\r\n{_CLOSE}x-a: \xe8\r\n\r\n")
    assert b"\r\nx-b: \xe9\r\n" in response
    assert fake.calls[0].headers["x-a"] == "\xe8"


def test_expect_100_continue_gets_an_interim_response() -> None:
    with FakeTransport().serve() as url, connect(url) as connection:
        head = f"{_JSON}expect: 100-continue\r\ncontent-length: {len(_AGENT)}\r\n"
        connection.sendall(f"POST /api/agents HTTP/1.1\r\n{head}\r\n".encode())
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(_AGENT.encode())
        assert read_all(connection).startswith(b"HTTP/1.1 201 Created\r\n")


def test_many_simultaneous_connections_are_accepted() -> None:
    with FakeTransport().serve() as url, ExitStack() as stack:
        connections = [stack.enter_context(connect(url)) for _ in range(100)]
        for connection in connections:
            connection.sendall(f"GET /api/agents HTTP/1.1\r\n{_CLOSE}\r\n".encode())
        assert all(read_all(each).startswith(b"HTTP/1.1 200 OK\r\n") for each in connections)


def message(session_id: str, version: str = "HTTP/1.1") -> str:
    """Return a raw request that sends a message."""
    body = json.dumps({"type": "message", "source": "user", "content": "Hi"})
    return (
        f"POST /api/sessions/{session_id}/events/stream {version}\r\nhost: x\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    )


def test_half_closed_connection_is_closed_and_cancels_the_agent() -> None:
    fake = FakeTransport([Report("typing"), Gate(), Say("Never")])
    session_id = new_session(fake)
    with fake.serve() as url, connect(url) as connection:
        connection.sendall(message(session_id, "HTTP/1.1").encode())
        read_until(connection, b"}\n\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b""  # The server sends no last chunk.
        assert kinds(fake, session_id) == ["message", "typing"]


@pytest.mark.skipif(not hasattr(socket, "MSG_MORE"), reason="the request and FIN are two segments")
def test_half_closed_connection_gets_no_response_and_its_request_is_ignored() -> None:
    fake = FakeTransport()
    session_id = new_session(fake)
    with fake.serve() as url, connect(url) as connection:
        connection.send(message(session_id, "HTTP/1.1").encode(), socket.MSG_MORE)
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b""
    assert kinds(fake, session_id) == []


@pytest.mark.usefixtures("little_garbage")  # Garbage of earlier tests could be logged.
def test_connection_that_the_client_resets_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with FakeTransport().serve() as url, Flux0(url) as flux0:
        with connect(url) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(b"GET")
        assert len(flux0.agents.list()) == 1
    assert [each for each in caplog.records if each.levelno > logging.WARNING] == []


# --- CORS


def test_real_server_and_fake_have_no_cors_by_default() -> None:
    with FakeTransport().serve() as url:
        response = httpx.get(f"{url}/api/agents", headers={"origin": "http://a.example"})
        assert not [name for name in response.headers if name.startswith("access-control")]
        assert httpx.options(f"{url}/api/agents").status_code == 405


@pytest.mark.parametrize("allowed", ["http://a.example", ["http://b.example", "*"]])
def test_allowed_origins_can_use_the_fake(allowed: Any) -> None:
    origin = {"origin": "http://a.example"}
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "x-a"}
    fake = FakeTransport()
    with fake.serve(allow_origins=allowed) as url:
        preflight = httpx.options(f"{url}/api/sessions", headers={**origin, **asked})
        response = httpx.get(f"{url}/api/agents", headers=origin)
        fake.expect("sessions.list")
        unexpected = httpx.get(f"{url}/api/agents", headers=origin)
        without_origin = httpx.get(f"{url}/api/sessions")
    expected = {
        "access-control-allow-origin": "http://a.example",
        "access-control-allow-credentials": "true",
        "vary": "origin",
    }
    for each, status in ((response, 200), (unexpected, 500)):
        assert each.status_code == status
        assert expected.items() <= dict(each.headers).items()
        assert "access-control-allow-methods" not in each.headers
    assert without_origin.status_code == 200
    assert "access-control-allow-origin" not in without_origin.headers
    more = {"access-control-allow-methods": "POST", "access-control-allow-headers": "x-a"}
    assert dict(preflight.headers) == {**expected, **more}
    assert preflight.status_code == 204
    operations = [call.operation for call in fake.calls]
    assert operations == ["agents.list", "agents.list", "sessions.list"]


@pytest.mark.parametrize("origin", [{}, {"origin": "http://b.example"}])
def test_other_origins_cannot_use_the_fake(origin: dict[str, str]) -> None:
    with FakeTransport().serve(allow_origins=["http://a.example"]) as url:
        response = httpx.options(f"{url}/api/sessions", headers=origin)
    assert response.status_code == 405
    assert "access-control-allow-origin" not in response.headers


def test_response_that_http_does_not_allow_closes_the_connection() -> None:
    fake = FakeTransport()
    with fake.serve() as url, Flux0(url, retry_config=ONCE) as flux0:
        fake.inject(Truncate(after_bytes=2, clean=True))
        with pytest.raises(TransportError):
            flux0.agents.list()
        assert len(flux0.agents.list()) == 1


def test_status_whose_id_is_not_utf8_ends_the_response_and_the_connection() -> None:
    """The real server does the same."""
    fake = FakeTransport([Report("typing", event_id="\ud800"), Say("lost")])
    with fake.serve() as url:
        assert exchange(url, message(new_session(fake))).endswith(b"\r\n\r\n0\r\n\r\n")


def test_http_1_0_clients_get_close_delimited_bodies() -> None:
    fake = FakeTransport()
    with fake.serve() as url:
        response = exchange(url, message(new_session(fake), "HTTP/1.0"))
    head, _, content = response.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert content.startswith(b"event: chunk\n")
    assert content.endswith(b"}\n\n")


def test_concurrent_clients_are_served() -> None:
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


ENTERED_AT_EXIT = """
from contextlib import ExitStack, contextmanager
from urllib.request import urlopen
from flux0 import Flux0
from flux0.testing import FakeTransport, FallSilent, Say

@contextmanager
def served():
    with fake.serve() as url:
        yield url

fake = FakeTransport([Say("Hi"), FallSilent()])
{enter}
client = Flux0(url)
stream = client.conversation(agent=fake.agent_id).send("Hi")
print(next(stream).type)
"""


@pytest.mark.parametrize(
    "enter",
    [
        "url = fake.serve().__enter__()",
        "stack = ExitStack(); url = stack.enter_context(fake.serve())",
        pytest.param(
            "server = served(); url = server.__enter__()",
            marks=needs_gil,
        ),
    ],
)
def test_process_exits_while_its_fake_is_served(enter: str) -> None:
    program = [sys.executable, "-c", ENTERED_AT_EXIT.format(enter=enter)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("chunk\n", "")


def test_closing_a_closed_server_does_nothing() -> None:
    port = reserved_port()  # No other program gets this port later.
    server = FakeTransport().serve(port)
    url = server.__enter__()
    assert url == f"http://127.0.0.1:{port}"
    for _ in range(2):
        server.__exit__(None, None, None)
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_fake_is_freed_after_the_block() -> None:
    fake = FakeTransport("Hi")
    with fake.serve() as url, Flux0(url) as flux0:
        assert len(flux0.agents.list()) == 1
    freed = ref(fake)
    del fake
    gc.collect()
    assert freed() is None


def test_cleanup_of_agents_has_run_after_the_block() -> None:
    cleaned: list[str] = []

    def agent(message: UserMessage) -> Any:
        try:
            yield Report("typing")
            yield FallSilent()
        finally:
            cleaned.append(message.content)

    fake = FakeTransport(agent)
    with fake.serve() as url, Flux0(url) as flux0:
        for number in range(10):
            next(flux0.conversation(agent=fake.agent_id).send(str(number)))
    assert sorted(cleaned) == [str(number) for number in range(10)]
