"""A call that waits for a connection ends at its deadline, and when its client is closed."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import anyio
import pytest
import requests
import urllib3
from attrs import evolve
from requests.adapters import HTTPAdapter

from flux0 import ClientClosed, Flux0, RequestsTransport, RetryConfig, Urllib3Transport
from flux0.adapters.urllib3 import transport
from flux0.domain.errors import ConnectError, ConnectTimeout, PoolTimeout, ReadTimeout
from flux0.ports import ByteStream, Request, Response, Transport
from flux0.testing.contract.base import EXPIRY, SHORT
from flux0.testing.contract.byte_server import DEFAULT_TIMEOUT, ByteServer
from flux0.testing.contract.harness import LONG_TIMEOUT, get
from flux0.testing.contract.responses import Receive, Signal, WaitForRelease
from support.modes import call_blocking
from support.sending import AGENTS, HALF, OK, Pieces, fetch_sync, over
from support.socks_proxy import SocksProxy
from support.transports import ASYNC_WAYS, SYNC_WAYS, Way
from support.unreachable import resolve_to, unreachable_address

over_sync = pytest.mark.parametrize("way", SYNC_WAYS, ids=str)


class Announcing:
    """A transport with long timeouts that sets an event when it begins to send."""

    def __init__(self, transport: Any, sending: Event) -> None:
        self._transport = transport
        self._sending = sending

    def send(self, request: Request) -> Response[ByteStream]:
        self._sending.set()
        response: Response[ByteStream] = self._transport.send(evolve(request, timeout=LONG_TIMEOUT))
        return response

    def close(self) -> None:
        self._transport.close()


def close_while_calling(transport: Any, url: str, waiting: Event | None = None) -> None:
    """Close a client while its call waits, and check the call's error."""
    sending = Event()
    flux0 = Flux0(url, transport=Announcing(transport, sending), retry_config=RetryConfig("none"))
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(flux0.agents.list)
        assert (waiting or sending).wait(DEFAULT_TIMEOUT)
        flux0.close()
        # The connect timeout, which would also end the call, is longer.
        error = call.exception(DEFAULT_TIMEOUT / 2)
    assert isinstance(error, ClientClosed)


# --- a connection to the server


# httpx2 has the same adapter as httpx, and requests has the same connections as urllib3.
@pytest.mark.parametrize(
    "way", [way for way in SYNC_WAYS if way.transport in ("httpx", "urllib3")], ids=str
)
@pytest.mark.timeout(20)
def test_connect_timeout_limits_all_addresses_together(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timeout for each address would take longer than the timeout of this test."""
    transport: Any = way.make_transport()
    timeout = evolve(LONG_TIMEOUT, connect=SHORT)
    with unreachable_address() as dead:
        resolve_to(monkeypatch, *[dead] * 150)
        with pytest.raises(ConnectTimeout):
            transport.send(get("http://flux0.example", timeout=timeout))


@over_sync
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_closing_a_client_ends_connecting(
    way: Way, monkeypatch: pytest.MonkeyPatch, *, tls: bool
) -> None:
    """With http, the address is unreachable. With https, the server sends no TLS handshake."""
    connecting = Event()
    transport = way.make_transport()
    if tls:
        with ByteServer(on_connect=(Receive(), Signal(connecting), WaitForRelease())) as server:
            close_while_calling(transport, server.url.replace("http:", "https:"), connecting)
            server.wait_until_closed()
        return
    with unreachable_address() as dead:
        resolve_to(monkeypatch, dead)
        resolve = socket.getaddrinfo

        def getaddrinfo(*args: Any, **options: Any) -> Any:
            connecting.set()
            return resolve(*args, **options)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        close_while_calling(transport, "http://flux0.example", connecting)


@over(*ASYNC_WAYS)
async def test_cancelled_tls_handshake_closes_its_connection(way: Way) -> None:
    connecting = Event()
    with ByteServer(on_connect=(Receive(), Signal(connecting), WaitForRelease())) as server:
        url = server.url.replace("http:", "https:")
        async with Flux0(url, transport=way.make_transport()) as flux0:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(flux0.agents.list_async)
                assert await call_blocking(way.mode, connecting.wait, DEFAULT_TIMEOUT)
                tasks.cancel_scope.cancel()
            await call_blocking(way.mode, server.wait_until_closed)


@over_sync
@pytest.mark.usefixtures("no_proxies")
def test_closing_a_client_ends_the_wait_for_a_silent_socks_proxy(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SocksProxy(responds=False) as proxy:
        monkeypatch.setenv("ALL_PROXY", f"socks5://{proxy.address}")
        close_while_calling(way.make_transport(), "http://127.0.0.1:9", proxy.connected)


@over_sync
def test_connection_refused_by_all_addresses_is_a_connect_error(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        refusing = server.getsockname()
    resolve_to(monkeypatch, refusing, refusing)
    transport: Any = way.make_transport()
    with pytest.raises(ConnectError, match=r"^connection refused$"):
        transport.send(get("http://flux0.example"))


# --- a pooled connection


def blocking_session() -> Transport:
    session = requests.Session()
    session.mount("http://", HTTPAdapter(pool_maxsize=1, pool_block=True))
    return RequestsTransport(session)


def blocking_manager() -> Transport:
    return Urllib3Transport(urllib3.PoolManager(maxsize=1, block=True))


@pytest.fixture(autouse=True)
def one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits the built-in manager's pools to one connection."""
    monkeypatch.setattr(transport, "MAX_CONNECTIONS", 1)


over_blocking = pytest.mark.parametrize(
    "make", [blocking_session, blocking_manager, Urllib3Transport]
)


@over_blocking
def test_pool_timeout_limits_the_wait_for_a_connection(make: Callable[[], Transport]) -> None:
    transport = make()
    with ByteServer(HALF, OK) as server:
        body = transport.send(get(server.url, stream=True)).body
        with pytest.raises(PoolTimeout, match=r"within 0\.05 s \(pool timeout\)"):
            transport.send(get(server.url, timeout=evolve(LONG_TIMEOUT, pool=EXPIRY)))
        with ThreadPoolExecutor(1) as threads:
            second = threads.submit(fetch_sync, transport, get(server.url))
            server.release()
            assert b"".join(Pieces(body)) == b"firstsecond"
            assert second.result(DEFAULT_TIMEOUT) == b"ok"
        assert server.connections == 1


@over_blocking
def test_closing_a_client_ends_the_wait_for_a_connection(make: Callable[[], Transport]) -> None:
    transport = make()
    with ByteServer(HALF) as server:
        body = transport.send(get(server.url, stream=True)).body
        close_while_calling(transport, server.url)
        body.close()


# --- connections of a closed client


@over_sync
def test_kept_exception_keeps_no_connection_open(way: Way) -> None:
    """The traceback of the exception refers to the pool. Closing the client closes this pool."""
    with ByteServer((WaitForRelease(),), AGENTS) as server:
        transport: Any = way.make_transport()
        with pytest.raises(ReadTimeout) as caught:
            transport.send(get(server.url, timeout=evolve(LONG_TIMEOUT, read=EXPIRY)))
        server.wait_for_requests(1)
        flux0 = Flux0(server.url, transport=transport)
        flux0.agents.list()
        flux0.close()
        server.wait_until_closed()
        assert caught.value.__traceback__ is not None
