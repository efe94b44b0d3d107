"""The aiohttp transport: the contract, and the adapter's own behaviour."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any, ClassVar

import aiohttp
import pytest
import trio
from aiohttp.client_proto import ResponseHandler
from attrs import evolve

from flux0 import Flux0
from flux0.adapters.aiohttp.connection import AiohttpConnection
from flux0.adapters.aiohttp.transport import (
    AiohttpTransport,
    _make_session,  # pyright: ignore[reportPrivateUsage] - for a session with a small limit
)
from flux0.domain.errors import (
    ClientClosed,
    ConnectError,
    ConnectionInterrupted,
    ConnectTimeout,
    Flux0Error,
    ProtocolError,
    ReadTimeout,
    TransportError,
)
from flux0.ports import AsyncByteStream, Request, Response, Timeout
from flux0.runtime.event_loop import PerLoop
from flux0.testing.contract import AsyncTransportContract, LimitedPoolContract
from flux0.testing.contract.byte_server import DEFAULT_TIMEOUT, ByteServer
from flux0.testing.contract.harness import LONG_TIMEOUT, Harness, get, post
from flux0.testing.contract.responses import (
    Disconnect,
    Reset,
    ServerSteps,
    Sleep,
    WaitForRelease,
    Write,
    head,
    http_response,
    to_bytes,
)
from support.secured import Secured
from support.sending import HALF, OK, Pieces, fetch, read
from support.transports import WithoutLongWaits
from support.unreachable import resolve_to

pytestmark = pytest.mark.usefixtures("little_garbage")

SHORT = 0.1
ROOT = Path(__file__).parents[4]


class TestAiohttpTransport(WithoutLongWaits, LimitedPoolContract, AsyncTransportContract):
    backends: ClassVar[Any] = ("asyncio",)

    def make_transport(self) -> AiohttpTransport:
        return AiohttpTransport()

    @pytest.mark.parametrize("value", ["", "caf\xe9", "caf\xc3\xa9", '"a, b"; c=%20'])
    def test_header_values_are_latin_1(self, harness: Harness, value: str) -> None:
        """Values of responses are decoded as Latin-1, but aiohttp encodes sent values as UTF-8."""
        server = harness.serve(http_response(b"ok", headers=[("X-Name", value)]))
        response = harness.send(get(server.url, ("x-name", value)))
        assert (response.head.headers.get("x-name"), response.read()) == (value, b"ok")
        assert server.requests[0].headers.get("x-name") == value.encode().decode("latin-1")

    def make_trusting_transport(self, ca_file: str) -> Configured:
        context = ssl.create_default_context(cafile=ca_file)
        return Configured(partial(aiohttp.TCPConnector, ssl=context))

    def make_limited_transport(self) -> AiohttpTransport:
        return limited()

    def test_write_timeout_expires(self, harness: Harness) -> None:
        """The read timeout limits sending, too."""
        timeout = evolve(LONG_TIMEOUT, read=SHORT)
        with pytest.raises(ReadTimeout):
            harness.send(post(harness.listen()[1], bytes(64_000_000), timeout=timeout))

    def test_pool_timeout_expires(self, limited: Harness) -> None:
        """aiohttp has one timeout for this wait and for opening a connection."""
        server, response = limited.exchange(HALF, stream=True)
        with pytest.raises(ConnectTimeout, match=r"within 0\.1 s \(connect timeout\)"):
            limited.send(get(server.url, timeout=Timeout(connect=SHORT)))
        response.close()
        server.release()
        assert limited.fetch(get(server.url)) == b"firstsecond"


def limited() -> AiohttpTransport:
    """Return a transport whose own sessions use at most one connection at the same time."""
    transport = AiohttpTransport()
    sessions = PerLoop(partial(_make_session, 1), aiohttp.ClientSession.close)
    transport._own_sessions = sessions  # pyright: ignore[reportPrivateUsage]
    return transport


class Configured:
    """A transport over a session that is created at the first use."""

    def __init__(self, connector: Callable[[], aiohttp.TCPConnector]) -> None:
        self._connector = connector
        self._made: tuple[aiohttp.ClientSession, AiohttpTransport] | None = None

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        if self._made is None:
            session = aiohttp.ClientSession(connector=self._connector())
            self._made = session, AiohttpTransport(session)
        return await self._made[1].send_async(request)

    async def close_async(self) -> None:
        if self._made is not None:
            session, transport = self._made
            await transport.close_async()
            await session.close()


@asynccontextmanager
async def own() -> AsyncGenerator[AiohttpTransport]:
    transport = AiohttpTransport()
    yield transport
    await transport.close_async()


async def begun(transport: AiohttpTransport, url: str) -> Response[AsyncByteStream]:
    """Start a stream, read its first piece, and return its response."""
    response = await transport.send_async(get(url, stream=True))
    assert await anext(Pieces(response.body)) == b"first"
    return response


async def wait_until_closed(server: ByteServer) -> None:
    """Wait until the client has closed its connections."""
    await asyncio.to_thread(server.wait_until_closed)


# --- the user's sessions


BASIC = "Basic YWRhOnNlY3JldA=="  # ada:secret


@pytest.mark.filterwarnings("ignore:(BasicAuth|The 'auth' parameter) is deprecated")
def test_session_of_the_user_keeps_its_settings_and_stays_open() -> None:
    """The session's timeout, `raise_for_status` and `auto_decompress` are not used."""
    seen: list[str] = []

    async def note(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        seen.append(request.method)
        return await handler(request)

    async def run(url: str) -> None:
        async with aiohttp.ClientSession(
            headers={"X-Own": "yes", "Accept-Encoding": "br"},
            cookies={"own": "1"},
            auth=aiohttp.BasicAuth("ada", "secret"),
            middlewares=(note,),
            raise_for_status=True,
            auto_decompress=True,
            timeout=aiohttp.ClientTimeout(total=SHORT / 1000),
        ) as session:
            transport = AiohttpTransport(session)
            own = ("authorization", "Bearer mine"), ("accept-encoding", "identity")
            for fields in ((), (*own, ("cookie", "own=2"))):
                response = await transport.send_async(get(url, *fields))
                assert response.status_code == 503
                assert await read(response.body) == b"busy"
                await transport.close_async()
                assert not session.closed

    with ByteServer(http_response(b"busy", status="503 Busy", gzip=True)) as server:
        asyncio.run(run(server.url.replace("127.0.0.1", "localhost")))
        assert server.connections == 1
        expected = (BASIC, "gzip, deflate", "own=1"), ("Bearer mine", "identity", "own=2")
        for request, (authorization, accept, cookie) in zip(server.requests, expected, strict=True):
            assert request.headers["x-own"] == "yes"
            assert request.headers["cookie"] == cookie
            assert request.headers["accept-encoding"] == accept
            assert request.headers["authorization"] == authorization
    assert seen == ["GET", "GET"]


def test_middleware_may_read_the_bodies() -> None:
    """Middlewares that log or sign requests do so."""
    body = b'"' + b"x" * 3_000_000 + b'"'  # aiohttp warns about larger bodies than 1 MiB.
    seen: list[Any] = []

    async def log(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        assert isinstance(request.body, aiohttp.Payload)
        seen.append(await request.body.as_bytes())
        response = await handler(request)
        seen.append(await response.read())
        return response

    async def run(url: str) -> None:
        async with aiohttp.ClientSession(middlewares=(log,)) as session:
            for answered in (b"ok", b""):
                assert await fetch(AiohttpTransport(session), post(url, body)) == answered

    with ByteServer(OK, http_response(b"")) as server:
        asyncio.run(run(server.url))
        same = [request.body for request in server.requests] == [body, body]
    assert same
    same = seen == [body, b"ok", body, b""]
    assert same


def test_session_that_is_closed_or_belongs_to_another_loop_is_an_error() -> None:
    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            transport = AiohttpTransport(session)
            elsewhere = transport.send_async(get("http://127.0.0.1:1"))
            with pytest.raises(Flux0Error, match="another event loop"):
                await asyncio.to_thread(asyncio.run, elsewhere)
        with pytest.raises(ClientClosed):
            await transport.send_async(get("http://127.0.0.1:1"))

    asyncio.run(run())


def test_error_under_trio_names_another_transport() -> None:
    async def run() -> None:
        transport = AiohttpTransport()
        with pytest.raises(Flux0Error, match="HttpxTransport"):
            await transport.send_async(get("http://127.0.0.1:1"))
        await transport.close_async()

    trio.run(run)


# --- the connection limit


def test_wait_for_a_connection_in_the_session_of_the_user_is_a_connect_timeout() -> None:
    """aiohttp has one timeout for the wait for a free connection and for opening a connection."""

    async def run(server: ByteServer) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
            transport = AiohttpTransport(session)
            response = await begun(transport, server.url)
            with pytest.raises(ConnectTimeout, match=r"within 0\.1 s \(connect timeout\)"):
                await transport.send_async(get(server.url, timeout=Timeout(connect=SHORT)))
            server.release()
            assert await read(response.body) == b"second"
            assert await fetch(transport, get(server.url)) == b"ok"

    with ByteServer(HALF, OK) as server:
        asyncio.run(run(server))
        assert server.connections == 1


def test_failed_and_cancelled_requests_free_their_place() -> None:
    async def cancelled(sending: asyncio.Task[Any]) -> None:
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending

    async def run(server: ByteServer) -> None:
        transport = limited()
        with pytest.raises(ConnectError):  # The connection is refused.
            await fetch(transport, get("http://127.0.0.1:1"))
        with pytest.raises(ConnectionInterrupted):  # The server sends no response head.
            await fetch(transport, post(server.url))
        response = await begun(transport, server.url)
        waiting = asyncio.ensure_future(fetch(transport, get(server.url)))
        second = asyncio.ensure_future(fetch(transport, get(server.url)))
        await asyncio.sleep(0)
        await cancelled(waiting)  # This call waits for a place.
        await response.body.close_async()
        sent = asyncio.ensure_future(asyncio.to_thread(server.wait_for_requests, 3))
        await sent
        await cancelled(second)  # This call waits for the response head.
        assert await fetch(transport, get(server.url)) == b"ok"
        await transport.close_async()

    with ByteServer((Disconnect(),), HALF, (WaitForRelease(),), OK) as server:
        asyncio.run(run(server))
        assert len(server.requests) == 4


def test_closing_the_client_ends_calls_that_wait_for_a_connection() -> None:
    async def run(server: ByteServer) -> None:
        transport = limited()
        response = await begun(transport, server.url)
        client = Flux0(server.url, transport=transport)
        waiting = [asyncio.ensure_future(client.agents.list_async()) for _ in range(3)]
        await asyncio.sleep(SHORT)
        await client.close_async()
        await response.body.close_async()
        for each in waiting:
            with pytest.raises(ClientClosed):
                await each

    with ByteServer(HALF) as server:
        asyncio.run(run(server))
        assert len(server.requests) == 1


def test_idle_connection_of_a_built_in_session_is_not_reused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flux0.adapters.aiohttp.transport.MAX_IDLE_SECONDS", 0.01)

    async def run(url: str) -> None:
        async with own() as transport:
            assert await fetch(transport, get(url)) == b"ok"
            await asyncio.sleep(0.02)
            assert await fetch(transport, get(url)) == b"ok"

    with ByteServer(OK) as server:
        asyncio.run(run(server.url))
        assert server.connections == 2


# --- private parts of aiohttp


@pytest.mark.parametrize("users", [False, True], ids=["own", "the user's"])
def test_aiohttp_has_the_parts_that_the_adapter_replaces(*, users: bool) -> None:
    """If a new version of aiohttp changes these parts, the adapter must be changed, too."""
    seen: list[type[Any]] = []

    class Connector(aiohttp.TCPConnector):
        async def connect(self, *args: Any, **options: Any) -> Any:
            connection = await super().connect(*args, **options)
            seen.append(type(connection.protocol))
            return connection

    async def run(server: ByteServer) -> None:
        async with aiohttp.ClientSession(connector=Connector()) as session:
            transport = AiohttpTransport(session if users else None)
            response = await begun(transport, server.url)
            raw: Any = response.raw_response
            protocol = raw.connection.protocol
            assert type(protocol) is AiohttpConnection
            assert raw.connection.transport.get_protocol() is protocol
            server.release()
            assert await read(response.body) == b"second"
            assert await fetch(transport, get(server.url)) == b"ok"
            await transport.close_async()

    with ByteServer(HALF, OK) as server:
        asyncio.run(run(server))
        assert server.connections == 1
    assert seen == ([ResponseHandler, AiohttpConnection] if users else [])


# --- requests


def test_get_is_sent_once_if_the_connection_is_interrupted() -> None:
    """aiohttp itself would send the request again."""

    async def run(url: str) -> None:
        async with own() as transport:
            assert await fetch(transport, get(url)) == b"ok"
            with pytest.raises(ConnectionInterrupted) as caught:
                await transport.send_async(get(url))
            assert isinstance(caught.value.__cause__, aiohttp.ServerDisconnectedError)

    with ByteServer(OK, (Disconnect(),), OK) as server:
        asyncio.run(run(server.url))
        assert len(server.requests) == 2


def test_url_is_sent_unchanged_and_cookies_are_not_stored() -> None:
    """By default, aiohttp changes percent-encodings, stores cookies and limits header fields."""
    target = "/a%3ab/%c3%a9%41?q=%2F+x%20&z=%7e"
    policy = "default-src " + "x" * 20_000
    fields = [("Content-Security-Policy", policy), ("Set-Cookie", "flux0_user_sub=me; Path=/")]

    async def run(url: str) -> None:
        async with own() as transport:
            for _ in range(2):
                response = await transport.send_async(get(f"{url}{target}"))
                assert response.headers["content-security-policy"] == policy
                assert await read(response.body) == b"ok"

    with ByteServer(http_response(b"ok", headers=fields)) as server:
        asyncio.run(run(server.url.replace("127.0.0.1", "localhost")))
        assert [request.target for request in server.requests] == [target] * 2
        assert not any("cookie" in request.headers for request in server.requests)


def test_international_host_name_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with own() as transport:
            assert await fetch(transport, get("http://bücher.example/%c3%a9")) == b"ok"

    with ByteServer(OK) as server:
        resolve_to(monkeypatch, (server.host, server.port))
        asyncio.run(run())
        assert server.requests[0].target == "/%c3%a9"
        assert server.requests[0].headers["host"] == "xn--bcher-kva.example"


def test_large_request_is_cancelled_while_it_is_sent() -> None:
    """The connection is closed, although the server does not read. asyncio does not warn."""

    async def run(listener: socket.socket) -> socket.socket:
        async with own() as transport:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            sending = asyncio.ensure_future(transport.send_async(post(url, bytes(16_000_000))))
            connection, _ = await asyncio.to_thread(listener.accept)
            await asyncio.to_thread(connection.recv, 1)
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending
            return connection

    with socket.create_server(("127.0.0.1", 0)) as listener, asyncio.run(run(listener), debug=True):
        gc.collect()


@pytest.mark.parametrize("event", ["connection_create_end", "request_headers_sent"])
def test_connection_is_lost_before_a_large_body_is_sent(event: str) -> None:
    """This may happen while a slow trace function runs."""

    async def wait(*_: object) -> None:
        await wait_until_closed(server)
        await asyncio.sleep(SHORT)

    async def run(url: str) -> None:
        trace = aiohttp.TraceConfig()
        getattr(trace, f"on_{event}").append(wait)
        async with aiohttp.ClientSession(trace_configs=[trace]) as session:
            with pytest.raises(ConnectionInterrupted):
                await AiohttpTransport(session).send_async(post(url, bytes(1_000_000)))

    with ByteServer(on_connect=(Disconnect(),)) as server:
        asyncio.run(run(server.url))


# --- bodies


def test_reset_within_a_close_delimited_body_is_an_interruption() -> None:
    """aiohttp would treat a reset as the end of such a body."""

    async def run(server: ByteServer) -> None:
        async with own() as transport:
            response = await begun(transport, server.url)
            server.release()
            with pytest.raises(ConnectionInterrupted) as caught:
                await read(response.body)
            assert isinstance(caught.value.__cause__, ConnectionResetError)

    with ByteServer((head("200 OK", []), Write(b"first"), WaitForRelease(), Reset())) as server:
        asyncio.run(run(server))


@pytest.mark.parametrize(
    ("steps", "rest", "kind"),
    [
        ((*HALF[:4], Disconnect()), b"second", ConnectionInterrupted),
        ((*HALF[:3], Write(b"xyz\r\n"), WaitForRelease()), b"", ProtocolError),
        ((*HALF[:3], Write(b"0\r\n" + b"X: 1\r\n" * 1000), WaitForRelease()), b"", ProtocolError),
    ],
    ids=["the end", "broken framing", "trailers"],
)
def test_bytes_before_a_failure_are_yielded_even_if_they_are_read_late(
    steps: ServerSteps, rest: bytes, kind: type[TransportError]
) -> None:
    async def run(server: ByteServer) -> None:
        async with own() as transport:
            response = await begun(transport, server.url)
            server.release()
            await wait_until_closed(server)
            if rest:
                assert await anext(Pieces(response.body)) == rest
            with pytest.raises(kind):
                await read(response.body)

    with ByteServer(steps) as server:
        asyncio.run(run(server))


@pytest.mark.parametrize("framing", [b"xyz\r\n", b"0\r\n: 1\r\n\r\n"], ids=["size", "trailer"])
def test_broken_framing_is_a_protocol_error_while_a_task_waits_for_data(framing: bytes) -> None:
    async def run(server: ByteServer) -> None:
        async with own() as transport:
            response = await transport.send_async(get(server.url, stream=True))
            pieces = Pieces(response.body)
            assert await anext(pieces) == b"first"
            reading = asyncio.ensure_future(anext(pieces))
            await asyncio.sleep(0)
            server.release()
            with pytest.raises(ProtocolError):
                await reading

    with ByteServer((*HALF[:3], Write(framing), WaitForRelease())) as server:
        asyncio.run(run(server))


def test_overhead_between_two_pieces_is_limited_but_not_the_overhead_of_a_long_stream() -> None:
    """A segment can contain only a chunk size, without content."""

    async def run(server: ByteServer) -> None:
        async with own() as transport:
            response = await begun(transport, server.url)
            pieces, connection = Pieces(response.body), response.raw_response.connection.protocol
            for number in range(1, 4):
                for _ in range(2):
                    connection.data_received(b"1;" + b"x" * 50_000)
                    connection.data_received(b"\r\n")
                    connection.data_received(b"%d\r\n" % number)
                assert await anext(pieces) == b"%d" % number * 2
            assert response.raw_response.content.exception() is None
            connection.data_received(b"0\r\n")
            for _ in range(6):
                connection.data_received(b"X: " + b"x" * 50_000 + b"\r\n")
            with pytest.raises(ProtocolError, match="the framing is larger than 262144 bytes"):
                await anext(pieces)

    with ByteServer(HALF) as server:
        asyncio.run(run(server))


def test_size_of_the_heads_of_one_connection_is_limited_separately() -> None:
    async def run(server: ByteServer) -> None:
        async with own() as transport:
            for _ in range(4):
                assert await fetch(transport, get(server.url)) == b""

    large = [(name, "x" * 50_000) for name in ("a", "b")]
    with ByteServer(http_response(b"", headers=large)) as server:
        asyncio.run(run(server))
        assert (len(server.requests), server.connections) == (4, 1)


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"


@pytest.mark.parametrize("before", [b"", INTERIM], ids=["alone", "after-interim"])
@pytest.mark.parametrize("cut", [-4, -3, -2, -1, 0])
def test_events_before_a_broken_chunk_in_the_read_that_ends_the_head_are_yielded(
    before: bytes, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head ends in the first or in the second read. aiohttp would discard the head."""

    async def run(server: ByteServer) -> None:
        async with own() as transport:
            response = await transport.send_async(get(server.url, stream=True))
            pieces = Pieces(response.body)
            assert await anext(pieces) == b"first"
            with pytest.raises(ProtocolError):
                await anext(pieces)

    def receive(connection: AiohttpConnection, data: bytes) -> None:
        reads.append(data)
        data_received(connection, data)
        server.release()

    reads: list[bytes] = []
    data_received = AiohttpConnection.data_received
    monkeypatch.setattr(AiohttpConnection, "data_received", receive)
    wire = before + HEAD + b"5\r\nfirst\r\nxyz\r\n"
    split = len(before) + len(HEAD) + cut if cut else len(wire)
    parts = [part for part in (wire[:split], wire[split:]) if part]
    steps = (each for part in parts for each in (Write(part), WaitForRelease()))
    with ByteServer(tuple(steps)) as server:
        asyncio.run(run(server))
    assert [data for data in reads if data] == parts


def test_slow_reader_does_not_cause_a_read_timeout() -> None:
    """aiohttp's own timeout would also expire while no task reads."""

    async def run(server: ByteServer) -> None:
        async with own() as transport:
            response = await transport.send_async(get(server.url, stream=True))
            pieces = Pieces(response.body, SHORT)
            assert await anext(pieces) == b"first"
            await asyncio.sleep(2 * SHORT)
            server.release()
            assert await anext(pieces) == b"second"

    with ByteServer(HALF) as server:
        asyncio.run(run(server))


def test_unsent_part_of_a_request_does_not_extend_the_timeout_of_a_body() -> None:
    """The server responds early, and receives no more request data."""
    start, first, second, _ = map(
        to_bytes, zip(http_response(b"first", b"second", framing="chunked"))
    )

    def respond() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.recv(1)
            connection.sendall(start + first)
            ended.wait(6 * SHORT)
            connection.sendall(second)

    async def run() -> None:
        async with own() as transport:
            request = post(f"http://127.0.0.1:{listener.getsockname()[1]}", bytes(16_000_000))
            pieces = Pieces((await transport.send_async(request)).body, 4 * SHORT)
            assert await anext(pieces) == b"first"
            with pytest.raises(ReadTimeout):
                await anext(pieces)

    ended = Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        responding = Thread(target=respond)
        responding.start()
        asyncio.run(run())
        ended.set()
        responding.join()


@pytest.mark.parametrize("progress", ["received", "sent"])
def test_read_timeout_for_the_head_starts_again_after_each_progress(progress: str) -> None:
    """The times are times of the event loop's clock."""

    async def run_timers() -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        start, passed, unsent = loop.time(), 0.0, 100
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "time", lambda: start + passed)
            connection: Any = ResponseHandler(loop)
            connection.__class__ = AiohttpConnection
            connection.transport = SimpleNamespace(get_write_buffer_size=lambda: unsent)
            connection.await_head(100.0)
            for part in (b"HT", b"TP", b"/1", b".1"):
                passed += 60.0
                if progress == "sent":
                    unsent -= 1
                else:
                    connection.data_received(part)
                await run_timers()
                assert connection.exception() is None
            for _ in range(2):  # At the first timer, there was progress since the timer before.
                passed += 101.0
                await run_timers()
            assert isinstance(connection.exception(), aiohttp.SocketTimeoutError)

    asyncio.run(run())


def test_write_timeout_does_not_limit_the_wait_for_the_response() -> None:
    """The request has no read timeout, also if the response head arrives in two parts."""

    async def run(url: str) -> None:
        async with own() as transport:
            request = get(url, timeout=Timeout(read=None, write=SHORT))
            assert await fetch(transport, request) == b"ok"

    whole = to_bytes(OK)
    parts = Write(whole[:20]), Sleep(SHORT), Write(whole[20:])
    with ByteServer((Sleep(3 * SHORT), *parts)) as server:
        asyncio.run(run(server.url))


def test_read_timeout_does_not_expire_after_the_head_while_no_task_reads() -> None:
    async def run(server: ByteServer) -> None:
        loop = asyncio.get_running_loop()
        async with own() as transport:
            response = await transport.send_async(get(server.url, stream=True))
            late = loop.time() + 2 * (LONG_TIMEOUT.read or 0)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(loop, "time", lambda: late)
                for _ in range(3):  # The timers run.
                    await asyncio.sleep(0)
            server.release()
            assert await read(response.body) == b"ok"

    steps = (head("200 OK", []), WaitForRelease(), Write(b"ok"), Disconnect())
    with ByteServer(steps) as server:
        asyncio.run(run(server))


def test_blocked_event_loop_does_not_cause_a_read_timeout() -> None:
    """The bytes arrive before the timer fires, but the event loop reads them afterwards."""

    async def run(server: ByteServer) -> None:
        async with own() as transport:
            response = await transport.send_async(get(server.url, stream=True))
            pieces = Pieces(response.body, 2 * SHORT)
            assert await anext(pieces) == b"first"
            reading = asyncio.ensure_future(anext(pieces))
            await asyncio.sleep(0)
            server.release()
            time.sleep(3 * SHORT)  # The event loop is blocked, as in a long computation.
            assert await reading == b"second"

    with ByteServer(HALF) as server:
        asyncio.run(run(server))


# --- unclosed streams


@pytest.mark.parametrize("users", [False, True], ids=["own", "the user's"])
def test_stream_may_outlive_its_event_loop(*, users: bool) -> None:
    """aiohttp warns when an open connection is freed, and pytest reports the warning."""
    kept: list[Any] = []

    async def run(url: str) -> None:
        async with aiohttp.ClientSession() as session:
            kept.append(await begun(AiohttpTransport(session if users else None), url))

    with ByteServer(HALF) as server:
        asyncio.run(run(server.url), debug=True)
        server.wait_until_closed()
    kept.clear()
    gc.collect()


UNCLOSED = """
import asyncio, sys
from flux0 import AiohttpTransport, Flux0

kept = []

async def main():
    flux0 = Flux0(sys.argv[1], transport=AiohttpTransport())
    kept.append(await flux0.sessions.create_event_async(session_id="s", content="Hi"))

asyncio.run(main(), debug=True)
"""


def test_open_stream_at_the_exit_of_python_causes_no_warning() -> None:
    """aiohttp warns about open connections in the debug mode of asyncio."""
    turn = http_response(
        WaitForRelease(), headers=[("Content-Type", "text/event-stream")], framing="chunked"
    )
    with ByteServer(turn) as server:
        command = [sys.executable, "-W", "error::ResourceWarning", "-c", UNCLOSED, server.url]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if not line.startswith("Executing <Task")]
    assert (done.returncode, said) == (0, [])


def test_close_does_not_wait_until_the_server_closes_its_side_of_tls(secured: Secured) -> None:
    def serve(listener: socket.socket) -> None:
        plain, _ = listener.accept()
        plain.settimeout(DEFAULT_TIMEOUT)
        with secured.server.wrap_socket(plain, server_side=True) as connection:
            connection.recv(65536)
            for step in HALF[:2]:
                assert isinstance(step, Write)
                connection.sendall(step.data)
            while socket.socket.recv(connection, 65536):  # Read encrypted bytes: TLS is not closed.
                pass

    async def run(listener: socket.socket) -> None:
        serving = asyncio.ensure_future(asyncio.to_thread(serve, listener))
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        connector = aiohttp.TCPConnector(ssl=secured.trusting())
        async with aiohttp.ClientSession(connector=connector) as session:
            response = await begun(AiohttpTransport(session), url)
            await response.body.close_async()
            await serving

    with socket.create_server(("127.0.0.1", 0)) as listener:
        asyncio.run(run(listener))


# --- aiohttp without C extensions


WITHOUT_EXTENSIONS = """
import sys
import pytest
from aiohttp import http_parser
assert http_parser.HttpResponseParser is http_parser.HttpResponseParserPy
sys.exit(pytest.main(sys.argv[1:]))
"""
OF_THE_PARSER = (
    "TestAiohttpTransport or framing or trailers or broken or secrets or (heads and aiohttp)"
    " or (coding and aiohttp)"
)


@pytest.mark.slow
def test_contract_with_the_python_parser_of_aiohttp(monkeypatch: pytest.MonkeyPatch) -> None:
    """aiohttp has no C parser on some platforms, and in free-threaded Python 3.13."""
    monkeypatch.setenv("AIOHTTP_NO_EXTENSIONS", "1")
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in ("exchange", "transport")]
    files.append(str(Path(__file__).parents[1] / "test_malformed_heads.py"))
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
        "--tb=short",
        "-k",
        OF_THE_PARSER,
    ]
    command = [sys.executable, "-c", WITHOUT_EXTENSIONS, *options, *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
