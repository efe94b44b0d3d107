"""httpx and httpx2: proxies, responses that are not HTTP, large requests, and chunked bodies."""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from itertools import pairwise
from time import monotonic, sleep
from types import SimpleNamespace
from typing import Any, TypeVar

import anyio
import httpcore
import httpx
import pytest
from attrs import evolve
from hypothesis import given, strategies as st

from flux0 import Flux0
from flux0.adapters.httpx.async_streams import AsyncBackend, AsyncConnection
from flux0.adapters.httpx.exchange import HttpxExchange, Progress, Step, current_exchange
from flux0.adapters.httpx.library import Library
from flux0.domain.errors import (
    ConnectError,
    ConnectionInterrupted,
    ConnectTimeout,
    ProtocolError,
)
from flux0.testing.contract.byte_server import DEFAULT_TIMEOUT, ByteServer
from flux0.testing.contract.harness import LONG_TIMEOUT, get, post
from flux0.testing.contract.responses import (
    Disconnect,
    Receive,
    Reset,
    ServerSteps,
    Sleep,
    WaitForRelease,
    Write,
    http_response,
    to_bytes,
)
from support import modes
from support.ending import ends_soon
from support.over_httpx import FAMILY, FAMILY_SYNC, FAST, VERSIONS, OverHttpx
from support.proxy import Proxy
from support.secured import Secured
from support.sending import AGENTS, OK, Pieces, fetch_sync, over
from support.socks_proxy import SocksProxy
from support.unreachable import unreachable_address

pytestmark = pytest.mark.usefixtures("no_proxies")

SHORT_TIMEOUT = 0.3
BACKEND = AsyncBackend(None, httpcore, is_plain=True)
T = TypeVar("T")
REQUEST = b"GET / HTTP/1.1\r\n\r\n"


class Stream:
    """A network stream of httpcore that receives bytes from a list."""

    def __init__(self, *received: bytes, sock: socket.socket | None = None) -> None:
        self.sent: list[bytes] = []
        self.timeouts: list[float | None] = []
        self._received = list(received)
        self._sock = sock

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        assert self._received, "this read waits forever"
        self.timeouts.append(timeout)
        return self._received.pop(0)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.timeouts.append(timeout)
        self.sent.append(buffer)

    def get_extra_info(self, info: str) -> socket.socket | None:
        return self._sock if info == "socket" else None


def make_exchange() -> HttpxExchange:
    exchange = HttpxExchange(Library(httpx, httpcore), get("http://a"))
    exchange.progress = Progress(Step.SENDING)
    return exchange


def run_in(exchange: HttpxExchange, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` while `exchange` is the current exchange."""
    context = copy_context()
    context.run(current_exchange.set, lambda: exchange)
    return context.run(asyncio.run, work)


async def list_agents(way: OverHttpx, url: str, client: Any = None) -> None:
    """List the agents, with up to three attempts, over a client or over the built-in client."""
    async with way.closing(client) as transport:
        flux0 = Flux0(url, transport=transport, retry_config=FAST)
        await modes.in_mode(way.mode, flux0).agents.list_async()


# --- one connection


def test_head_of_a_request_is_sent_together_with_its_body() -> None:
    """A server may reject the request after its head, and close the connection."""

    async def send(*writes: bytes) -> list[bytes]:
        connection = AsyncConnection(stream := Stream(), BACKEND)
        for data in writes:
            await connection.write(data)
        return stream.sent

    post_head = b"POST / HTTP/1.1\r\nHost: a\r\n\r\n"
    assert asyncio.run(send(post_head)) == []
    assert asyncio.run(send(post_head, b"body", b"more", b"")) == [post_head + b"body", b"more"]
    assert asyncio.run(send(REQUEST, b"")) == [REQUEST]
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    assert asyncio.run(send(preface)) == [preface]


def test_bytes_that_are_received_but_not_read_are_surplus() -> None:
    async def read() -> None:
        head = b"HTTP/1.1 200 OK\r\n\r\n"
        connection = AsyncConnection(Stream(head, b"a", b"bc"), BACKEND)
        await connection.write(REQUEST)
        reads: list[tuple[bytes, bool]] = []
        for _ in range(5):
            data = await connection.read(65536)
            reads.append((data, connection.get_extra_info("is_readable")))
        assert reads == [
            (head[:-1], True),
            (head[-1:], False),
            (b"a", False),
            (b"b", True),
            (b"c", False),
        ]

    run_in(make_exchange(), read())


def test_bytes_of_chunks_that_are_received_with_the_head_are_surplus_until_they_are_read() -> None:
    async def read() -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection = AsyncConnection(Stream(head + b"0"), BACKEND)
        await connection.write(REQUEST)
        assert await connection.read(65536) == head
        exchange.progress = Progress(Step.HEAD_RECEIVED)
        assert connection.get_extra_info("is_readable")
        assert await connection.read(65536) == b"0"
        assert not connection.get_extra_info("is_readable")

    exchange = make_exchange()
    run_in(exchange, read())


def test_bytes_in_the_tls_buffer_are_surplus(secured: Secured) -> None:
    """An event loop moves received bytes to the TLS buffer, so the socket is not readable."""
    arrived, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = secured.trusting().wrap_bio(arrived, sent, server_hostname="127.0.0.1")
    server = secured.server.wrap_bio(sent, arrived, server_side=True)
    for side in (client, server, client, server):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    infos: dict[str, object] = {"is_readable": False, "ssl_object": client}
    connection = AsyncConnection(SimpleNamespace(get_extra_info=infos.__getitem__), BACKEND)
    assert not connection.get_extra_info("is_readable")
    server.write(b"surplus")
    assert connection.get_extra_info("is_readable")
    client.read()
    assert not connection.get_extra_info("is_readable")
    infos["is_readable"] = True
    assert connection.get_extra_info("is_readable")
    infos["is_readable"] = False
    with suppress(ssl.SSLWantReadError):
        server.unwrap()
    assert connection.get_extra_info("is_readable")


def test_interrupt_shuts_down_the_connection_that_sends_the_request() -> None:
    exchange = make_exchange()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        run_in(exchange, AsyncConnection(Stream(sock=ours), BACKEND).write(REQUEST))
        exchange.interrupt.fire()
        assert theirs.recv(1) == b""


def test_connect_timeout_limits_the_messages_to_a_proxy_only() -> None:
    async def send(connect_in: float | None, *writes: bytes) -> list[float | None]:
        connect_by = None if connect_in is None else monotonic() + connect_in
        connection = AsyncConnection(stream := Stream(b"xy"), BACKEND, connect_by)
        for data in writes:
            await connection.write(data, timeout=7.0)
        await connection.read(2, timeout=8.0)
        return stream.timeouts

    connect = b"CONNECT a:80 HTTP/1.1\r\n\r\n"
    writing, reading = asyncio.run(send(3.0, connect, b""))
    assert 0 < (writing or 0) <= 3
    assert 0 < (reading or 0) <= 3
    assert asyncio.run(send(-1, b"\x05\x01\x00")) == [0.001] * 2
    assert asyncio.run(send(-1, REQUEST, b"")) == [7.0, 8.0]
    assert asyncio.run(send(None, connect, b"")) == [7.0, 8.0]


def test_timeout_of_a_piece_limits_its_reads_together() -> None:
    """If the received bytes contain only overhead, such as a chunk size, httpcore reads again."""

    async def read() -> None:
        connection = AsyncConnection(stream := Stream(*[b"x"] * 9), BACKEND)
        await connection.write(REQUEST)
        await connection.read(1, timeout=7.0)
        connection.start_piece(None)
        await connection.read(1, timeout=7.0)
        for _ in range(2):
            connection.start_piece(5.0)
            await connection.read(1, timeout=7.0)
        await connection.read(1, timeout=7.0)
        assert stream.timeouts[:-1] == [7.0, None, 5.0, 5.0]
        assert 0 < (stream.timeouts[-1] or 0) < 5
        connection.start_piece(1e-9)
        await connection.read(1, timeout=7.0)
        with pytest.raises(httpcore.ReadTimeout):
            await connection.read(1, timeout=7.0)
        await connection.write(REQUEST)
        await connection.read(1, timeout=7.0)
        assert stream.timeouts[-1] == 7.0

    asyncio.run(read())


@pytest.mark.parametrize("multiplexed", [False, True])
def test_start_of_a_response_must_be_http_unless_it_is_http2(*, multiplexed: bool) -> None:
    async def read() -> None:
        connection = AsyncConnection(Stream(b"H", b"TX", b"P/1.1 200"), BACKEND)
        await connection.write(REQUEST)
        for _ in range(5):
            await connection.read(65536)

    exchange = make_exchange()
    exchange.progress = Progress(Step.SENDING, is_multiplexed=multiplexed)
    if multiplexed:
        run_in(exchange, read())
    else:
        with pytest.raises(httpcore.RemoteProtocolError, match="it starts with 'HTX'"):
            run_in(exchange, read())


def test_size_of_a_response_head_is_limited_but_not_that_of_a_body() -> None:
    async def read(*, head_received: bool) -> None:
        parts = [b"HTTP/1.1 100 Continue\r\n\r\n", *[b"x" * 60_000] * 5]
        connection = AsyncConnection(Stream(*parts), BACKEND)
        await connection.write(REQUEST)
        await connection.read(65536)
        exchange.progress = Progress(Step.HEAD_RECEIVED if head_received else Step.SENDING)
        for _ in range(10):
            await connection.read(65536)

    exchange = make_exchange()
    run_in(exchange, read(head_received=True))
    exchange = make_exchange()
    with pytest.raises(httpcore.RemoteProtocolError, match="head is larger than 262144 bytes"):
        run_in(exchange, read(head_received=False))


@pytest.mark.parametrize("error", [ssl.SSLError("x"), asyncio.CancelledError()], ids=repr)
def test_connection_whose_tls_handshake_fails_is_closed(error: BaseException) -> None:
    class Untrusted(Stream):
        async def start_tls(self, *_: object) -> None:
            raise error

        async def aclose(self) -> None:
            closed.append(self)

    closed: list[object] = []
    stream = Untrusted()
    with pytest.raises(type(error)):
        asyncio.run(AsyncConnection(stream, BACKEND).start_tls(None))
    assert closed == [stream]


@over(*FAMILY)
async def test_connect_timeout_is_optional(way: OverHttpx) -> None:
    with ByteServer(OK) as server, unreachable_address() as (host, port):
        request = get(server.url, timeout=evolve(LONG_TIMEOUT, connect=None))
        assert await way.fetch_once(request) == (200, b"ok")
        request = get(f"http://{host}:{port}", timeout=evolve(LONG_TIMEOUT, connect=0.05))
        with ends_soon(), pytest.raises(ConnectTimeout):
            await way.fetch_once(request)


@over(*FAMILY)
async def test_responses_with_and_without_chunks_may_share_a_connection(way: OverHttpx) -> None:
    chunked = http_response(b"chunk", b"ed", framing="chunked")
    with ByteServer(chunked, OK, chunked, OK) as server:
        async with way.closing(None) as transport:
            for body in (b"chunked", b"ok") * 2:
                assert await way.fetch(transport, get(server.url)) == (200, body)
        assert server.connections == 1


# --- options of the user's transport


@over(*FAMILY)
async def test_socket_options_and_local_address_are_used(way: OverHttpx) -> None:
    def see(response: Any) -> None:
        sock = response.extensions["network_stream"].get_extra_info("socket")
        seen.extend(sock.getsockopt(*option) != 0 for option in options)

    seen: list[bool] = []
    options = (socket.SOL_SOCKET, socket.SO_KEEPALIVE), (socket.IPPROTO_TCP, socket.TCP_NODELAY)
    hooks = {"response": [way.act(see)]}
    keep_alive = way.kind("HTTPTransport")(socket_options=[(*options[0], 1)])
    elsewhere = way.kind("HTTPTransport")(local_address="192.0.2.1")  # No computer has it.
    with ByteServer(OK) as server:
        await way.fetch_once(get(server.url), transport=keep_alive, event_hooks=hooks)
        assert seen == [True, True]
        with pytest.raises(ConnectError):
            await way.fetch_once(get(server.url), transport=elsewhere)


@over(*FAMILY)
async def test_users_client_may_use_a_unix_socket(way: OverHttpx, tmp_path: Any) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor() as threads:
        listener.bind(path)
        listener.listen()
        listener.settimeout(DEFAULT_TIMEOUT)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(to_bytes(OK))

        threads.submit(serve)
        options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
        transport = way.kind("HTTPTransport")(uds=path, socket_options=options)
        assert await way.fetch_once(get("http://flux0"), transport=transport) == (200, b"ok")


# --- SOCKS proxies


@over(*FAMILY)
@pytest.mark.parametrize("login", [None, ("user", "secret")], ids=["no login", "login"])
async def test_requests_are_sent_through_the_socks_proxy_of_the_users_client(
    way: OverHttpx, login: Any
) -> None:
    with SocksProxy(login=login) as proxy, ByteServer(AGENTS) as server:
        credentials = "" if login is None else f"{login[0]}:{login[1]}@"
        await list_agents(
            way, server.url, way.client(proxy=f"socks5://{credentials}{proxy.address}")
        )
        assert len(server.requests) == 1
        assert [f"http://{host}:{port}" for host, port in proxy.targets] == [server.url]


@over(*FAMILY)
async def test_tls_works_through_a_socks_proxy(way: OverHttpx, secured: Secured) -> None:
    with SocksProxy() as proxy, ByteServer(AGENTS, tls=secured.server) as server:
        client = way.client(proxy=f"socks5://{proxy.address}", verify=secured.trusting())
        await list_agents(way, server.url, client)
        assert len(server.requests) == 1


# --- proxies with TLS


def client_of(way: OverHttpx, proxy: Proxy, secured: Secured) -> Any:
    """Return a client that uses TLS for the proxy, and within it TLS for the server."""
    through = way.library.Proxy(proxy.url, ssl_context=secured.trusting())
    return way.client(proxy=through, verify=secured.trusting())


@over(*FAMILY)
async def test_connection_through_a_proxy_with_tls_is_reused(
    way: OverHttpx, secured: Secured
) -> None:
    large = b"x" * 200_000
    with (
        Proxy(tls=secured.server) as proxy,
        ByteServer(OK, http_response(large), tls=secured.server) as server,
    ):
        async with way.closing(client_of(way, proxy, secured)) as transport:
            assert await way.fetch(transport, post(server.url, large)) == (200, b"ok")
            assert await way.fetch(transport, get(server.url)) == (200, large)
        assert [request.method for request in proxy.requests] == ["CONNECT"]
        assert server.connections == 1
        assert server.requests[0].body == large


@over(*VERSIONS)
async def test_connect_timeout_limits_the_wait_for_a_proxy_with_tls(
    way: OverHttpx, secured: Secured
) -> None:
    """The proxy does not respond to the CONNECT request. The read timeout is longer."""
    timeout = evolve(LONG_TIMEOUT, connect=0.1, read=DEFAULT_TIMEOUT)
    with ByteServer((WaitForRelease(),), tls=secured.server) as proxy:
        through = way.library.Proxy(proxy.url, ssl_context=secured.trusting())
        with ends_soon(), pytest.raises(ConnectTimeout):
            await way.fetch_once(get("https://127.0.0.1:9", timeout=timeout), proxy=through)


@over(*VERSIONS)
async def test_connect_timeout_limits_all_reads_of_a_handshake_through_a_proxy_with_tls(
    way: OverHttpx, secured: Secured
) -> None:
    """The server sends a part of its first TLS record, and then further bytes, one by one."""
    start = Receive(), Write(b"\x16\x03\x03\x3f\xff")
    slow = (*start, *(Sleep(SHORT_TIMEOUT / 3), Write(b"x")) * 30, Disconnect())
    with Proxy(tls=secured.server) as proxy, ByteServer(OK, on_connect=slow) as server:
        async with way.closing(client_of(way, proxy, secured)) as transport:
            url = server.url.replace("http:", "https:")
            timeout = evolve(LONG_TIMEOUT, connect=SHORT_TIMEOUT)
            with pytest.raises(ConnectTimeout):
                await way.fetch(transport, get(url, timeout=timeout))


@pytest.mark.parametrize("way", FAMILY_SYNC, ids=str)
def test_surplus_bytes_through_a_proxy_with_tls_are_not_the_next_response(
    way: OverHttpx, secured: Secured
) -> None:
    """The surplus bytes have their own TLS record, which may be received with the response."""
    surplus = Write(to_bytes(http_response(b"others")))
    with (
        Proxy(tls=secured.server) as proxy,
        ByteServer((*OK, surplus, WaitForRelease()), OK, tls=secured.server) as server,
        client_of(way, proxy, secured) as client,
    ):
        transport = way.transport_over(client)
        response = transport.send(get(server.url))
        assert b"".join(Pieces(response.body)) == b"ok"
        stream, end = response.raw_response.extensions["network_stream"], monotonic() + 10
        while not stream.get_extra_info("is_readable"):
            assert monotonic() < end, "the surplus bytes were not detected"
            sleep(0.001)
        assert fetch_sync(transport, get(server.url)) == b"ok"
        assert server.connections == 2


@over(*FAMILY)
@pytest.mark.parametrize("end", [Disconnect(), Reset()], ids=repr)
async def test_interruption_through_a_proxy_with_tls_is_recognized(
    way: OverHttpx, secured: Secured, end: Any
) -> None:
    steps = (Write(to_bytes(http_response(b"complete"))[:-1]), end)
    with (
        Proxy(tls=secured.server) as proxy,
        ByteServer(steps, tls=secured.server) as server,
    ):
        async with way.closing(client_of(way, proxy, secured)) as transport:
            with pytest.raises(ConnectionInterrupted):
                await way.fetch(transport, get(server.url, stream=True))


@over(*FAMILY)
@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((Disconnect(),), "the proxy closed the connection"),
        ((Write(b"HTTP/1.1 400 Bad Request\r\n\r\n"), WaitForRelease()), "does not support SOCKS5"),
    ],
    ids=["closes", "HTTP"],
)
async def test_proxy_that_is_not_socks_is_a_connect_error(
    way: OverHttpx, monkeypatch: pytest.MonkeyPatch, steps: ServerSteps, message: str
) -> None:
    with ByteServer(on_connect=steps) as proxy:
        monkeypatch.setenv("ALL_PROXY", proxy.url.replace("http:", "socks5:"))
        with pytest.raises(ConnectError, match=message):
            await list_agents(way, "http://flux0.invalid")


# --- responses that are not HTTP

NOT_HTTP = {
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "HTML": b"<html>Log in</html>",
    "short": b"no",
    "blank lines": b"\r\n\r\n",
}


@over(*VERSIONS)
@pytest.mark.parametrize("end", [Reset(), WaitForRelease()], ids=repr)
@pytest.mark.parametrize("name", NOT_HTTP)
async def test_response_that_is_not_http_is_a_protocol_error(
    way: OverHttpx, name: str, end: Any
) -> None:
    with ByteServer((Write(NOT_HTTP[name]), end)) as server:
        with pytest.raises(ProtocolError) as caught:
            await list_agents(way, server.url)
        assert repr(NOT_HTTP[name])[1:] in str(caught.value)
        assert len(server.requests) == 1


@over(*FAMILY)
async def test_interruption_of_an_untracked_connection_is_retried(way: OverHttpx) -> None:
    """flux0 does not track connections that were opened before it received the client."""
    with ByteServer(OK, (Disconnect(),)) as server:
        client = way.client()
        opened = client.get(server.url)
        if way.mode != "sync":
            await opened
        with pytest.raises(ConnectionInterrupted):
            await list_agents(way, server.url, client)
        assert len(server.requests) == 4


# --- large requests

LARGE = b"POST / HTTP/1.1\r\n" + b"x" * 100_000


class LargeStream(Stream):
    """Waits forever for a response, unless `received` contains it, and in `write` if `stalls`."""

    def __init__(self, *received: bytes, stalls: bool = False, failure: Any = None) -> None:
        super().__init__(*received)
        self._stalls = stalls
        self._failure = failure

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if not self._received:
            await anyio.sleep_forever()
        return await super().read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self._failure is not None:
            raise self._failure
        if self._stalls:
            await anyio.sleep_forever()
        await super().write(buffer, timeout)


def send_large(stream: Stream) -> AsyncConnection:
    connection = AsyncConnection(stream, BACKEND)
    run_in(make_exchange(), connection.write(LARGE))
    return connection


@pytest.mark.parametrize("stalls", [False, True])
def test_rejection_stops_a_large_request(*, stalls: bool) -> None:
    """The connection returns the response, although the request was not sent completely."""
    rejection = b"HTTP/1.1 413 Content Too Large\r\n\r\n"

    async def send() -> None:
        connection = AsyncConnection(LargeStream(rejection, stalls=stalls), BACKEND)
        with pytest.raises(httpcore.WriteError, match="the server rejected the incomplete request"):
            await connection.write(LARGE)
        assert connection.get_extra_info("is_readable")
        assert await connection.read(65536) + await connection.read(1) == rejection

    run_in(make_exchange(), send())


def test_large_request_does_not_wait_for_a_response() -> None:
    stream = LargeStream()
    send_large(stream)
    assert stream.sent == [LARGE]


def test_interim_response_to_a_large_request_is_kept() -> None:
    stream = LargeStream(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert send_large(stream).get_extra_info("is_readable")
    assert stream.sent == [LARGE]


def test_large_request_over_a_failed_connection_raises_the_error_of_the_write() -> None:
    class FailedStream(LargeStream):
        async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
            raise httpcore.ReadError("read")

    with pytest.raises(httpcore.WriteError, match="written"):
        send_large(FailedStream(failure=httpcore.WriteError("written")))


@pytest.mark.parametrize("users", [True, False], ids=["user's request", "HTTP/2"])
def test_nothing_is_received_while_other_large_requests_are_sent(*, users: bool) -> None:
    """Over HTTP/2, another task may be reading. The user's requests have no exchange."""
    stream, exchange = Stream(), make_exchange()
    exchange.progress = Progress(Step.SENDING, is_multiplexed=True)
    write = AsyncConnection(stream, BACKEND).write(LARGE)
    asyncio.run(write) if users else run_in(exchange, write)
    assert stream.sent == [LARGE]


@pytest.mark.parametrize("way", FAMILY_SYNC, ids=str)
def test_connections_work_without_poll(way: OverHttpx, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no poll, and gevent removes it."""
    monkeypatch.delattr(select, "poll")
    body = b"x" * 16_000_000
    with ByteServer(OK) as server:
        transport = way.transport_over(None)
        for _ in range(2):
            assert fetch_sync(transport, post(server.url, body)) == b"ok"
        assert server.connections == 1
        transport.close()


@over(*FAMILY)
async def test_interim_response_does_not_stop_a_large_request(way: OverHttpx) -> None:
    body = b"x" * 32_000_000  # It fits into no socket buffers, so the client waits while it sends.
    with ByteServer(OK, on_connect=(Write(b"HTTP/1.1 102 Processing\r\n\r\n"),)) as server:
        request = post(server.url, body, timeout=evolve(LONG_TIMEOUT, read=DEFAULT_TIMEOUT))
        assert await way.fetch_once(request) == (200, b"ok")
        same = server.requests[0].body == body
    assert same


@pytest.mark.parametrize("way", FAMILY_SYNC, ids=str)
def test_users_client_still_sends_requests_of_the_user(way: OverHttpx, secured: Secured) -> None:
    with (
        ByteServer(OK, tls=secured.server) as server,
        way.client(verify=secured.trusting()) as client,
    ):
        transport = way.transport_over(client)
        assert client.get(server.url).content == b"ok"
        assert fetch_sync(transport, get(server.url)) == b"ok"
        assert server.connections == 1


# --- chunked bodies


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


def read_chunks(*received: bytes, start: bytes = b"") -> list[bytes]:
    """Return the pieces of a chunked body. Afterwards, httpcore reads the last chunk.

    `start` is received together with the head.
    """

    async def read() -> list[bytes]:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection = AsyncConnection(Stream(head + start, *received), BACKEND)
        await connection.write(REQUEST)
        assert await connection.read(65536) == head
        exchange.progress = Progress(Step.HEAD_RECEIVED)
        read_content = connection.content_reader()
        assert read_content is not None
        pieces: list[bytes] = []
        while piece := await read_content(5.0):
            pieces.append(piece)
        assert await connection.read(65536) + await connection.read(1) == chunk(b"")
        assert not connection.get_extra_info("is_readable")
        return pieces

    exchange = make_exchange()
    return run_in(exchange, read())


def test_chunks_that_were_received_together_become_one_piece() -> None:
    many = chunk(b"a") + b"2;name=value\r\nbc\r\n" + chunk(b"d")
    assert read_chunks(many, chunk(b"e") + chunk(b"")) == [b"abcd", b"e"]
    assert read_chunks(chunk(b"e"), chunk(b""), start=many) == [b"abcd", b"e"]


@pytest.mark.parametrize(
    ("received", "message"),
    [
        ((chunk(b"a"), b""), "the body is truncated"),
        ((chunk(b"a") + b"5\r\nab", b""), "the body is truncated"),
        ((chunk(b"a") + b"xyz\r\n",), "the chunk size is not a hexadecimal number: b'xyz'"),
    ],
)
def test_incomplete_or_invalid_chunk_is_an_error(received: tuple[bytes, ...], message: str) -> None:
    with pytest.raises(httpcore.RemoteProtocolError, match=message):
        read_chunks(*received)


def test_users_subclass_of_a_transport_receives_the_chunk_sizes() -> None:
    """The subclass may wrap the stream of the response, and count or change its bytes."""

    async def read() -> bytes:
        connection = AsyncConnection(Stream(response), AsyncBackend(None, httpcore, is_plain=False))
        await connection.write(REQUEST)
        return await connection.read(65536) + await connection.read(65536)

    response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"abc")
    assert run_in(make_exchange(), read()) == response


@given(
    contents=st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    cuts=st.lists(st.integers(0, 300), max_size=12),
)
def test_content_of_chunks_does_not_depend_on_how_they_are_received(
    contents: list[bytes], cuts: list[int]
) -> None:
    body = b"".join(map(chunk, contents)) + chunk(b"")
    edges = sorted({0, *(cut for cut in cuts if cut < len(body)), len(body)})
    received = read_chunks(*(body[start:end] for start, end in pairwise(edges)))
    assert all(received[:-1])
    assert b"".join(received) == b"".join(contents)
