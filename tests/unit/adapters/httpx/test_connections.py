"""httpx and httpx2: proxies, responses that are not HTTP, large requests, and chunked bodies."""

from __future__ import annotations

import asyncio
import select
import socket
from contextvars import copy_context
from itertools import pairwise
from time import monotonic, sleep
from typing import Any

import httpcore
import httpx
import pytest
from attrs import evolve
from hypothesis import given, strategies as st

from flux0 import Flux0
from flux0.adapters.httpx.connections import AsyncBackend, AsyncConnection
from flux0.adapters.httpx.exchange import HttpxExchange, current_exchange
from flux0.adapters.httpx.library import Library
from flux0.domain.errors import (
    ConnectError,
    ConnectionInterrupted,
    ConnectTimeout,
    Flux0Error,
    ProtocolError,
    ReadTimeout,
)
from flux0.testing.contract.byte_server import DEFAULT_TIMEOUT, ByteServer
from flux0.testing.contract.connecting import slow_tls_record
from flux0.testing.contract.harness import LONG, LONG_TIMEOUT, get, post
from flux0.testing.contract.responses import (
    Disconnect,
    Reset,
    ServerSteps,
    WaitForRelease,
    Write,
    http_response,
    to_bytes,
)
from support import modes, sending
from support.ending import ends_soon
from support.over_httpx import FAMILY, FAMILY_SYNC, FAST, VERSIONS, OverHttpx
from support.proxy import Proxy
from support.secured import Secured
from support.sending import AGENTS, OK, Pieces, fetch_sync, over
from support.socks_proxy import SocksProxy

SHORT_TIMEOUT = 0.3


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


async def list_agents(way: OverHttpx, url: str, client: Any = None) -> None:
    """List the agents, with up to three attempts, over a client or over the built-in client."""
    async with way.closing(client) as transport:
        flux0 = Flux0(url, transport=transport, retry_config=FAST)
        await modes.in_mode(way.mode, flux0).agents.list_async()


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


@over(*VERSIONS)
async def test_part_of_a_tls_record_through_a_proxy_with_tls_does_not_extend_the_timeout(
    way: OverHttpx, secured: Secured
) -> None:
    with (
        Proxy(tls=secured.server) as proxy,
        ByteServer(slow_tls_record(SHORT_TIMEOUT), tls=secured.server) as server,
    ):
        async with way.closing(client_of(way, proxy, secured)) as transport:
            either = sending.as_async(way.mode, transport)
            body = (await either.send_async(get(server.url))).body
            assert await body.read_async(LONG) == b"first"
            server.release()
            with pytest.raises(ReadTimeout):
                await body.read_async(SHORT_TIMEOUT)


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
async def test_malformed_response_over_an_untracked_connection_is_not_retried(
    way: OverHttpx,
) -> None:
    """flux0 does not track connections that were opened before it received the client."""
    malformed = (Write(b"HTTP/1.1 abc Nonsense\r\n\r\n"), Disconnect())
    for steps, requests in ((malformed, 1), ((Disconnect(),), 3)):
        with ByteServer(OK, steps) as server:
            client = way.client()
            opened = client.get(server.url)
            if way.mode != "sync":
                await opened
            with pytest.raises(Flux0Error):
                await list_agents(way, server.url, client)
            assert len(server.requests) == 1 + requests


# --- large requests


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
    body = b"x" * 8_000_000
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


BACKEND = AsyncBackend(None, httpcore, is_plain=True)


def read_chunks(*received: bytes) -> list[bytes]:
    """Return the pieces of a chunked body. Afterwards, httpcore reads the last chunk."""

    async def read() -> list[bytes]:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection = AsyncConnection(httpcore.AsyncMockStream([head, *received]), BACKEND)
        await connection.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await connection.read(65536) == head
        exchange.head_received = True
        connection.is_direct = True
        pieces: list[bytes] = []
        while connection.is_direct:
            pieces.append(await connection.read(65536))
        assert await connection.read(65536) + await connection.read(1) == chunk(b"")
        return pieces

    exchange = HttpxExchange(
        Library(httpx, httpcore), httpx.Request("GET", "http://a"), get("http://a")
    )
    exchange.sent = True
    context = copy_context()
    context.run(current_exchange.set, lambda: exchange)
    return context.run(asyncio.run, read())


def test_chunks_that_were_received_together_become_one_piece() -> None:
    many = chunk(b"a") + b"2;name=value\r\nbc\r\n" + chunk(b"d")
    assert read_chunks(many, chunk(b"e") + chunk(b"")) == [b"abcd", b"e"]


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
