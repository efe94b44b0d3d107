"""SOCKS proxies from the environment, over each transport, and from the user's client."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
import requests
import urllib3
from attrs import evolve
from urllib3.contrib.socks import SOCKSProxyManager

from flux0 import BackoffStrategy, Flux0, RequestsTransport, RetryConfig, Urllib3Transport
from flux0.domain.errors import ConnectError, ConnectTimeout
from flux0.ports import Transport
from flux0.testing.contract.base import EXPIRY
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.harness import LONG_TIMEOUT, get
from support.modes import in_mode
from support.sending import AGENTS, as_async, over
from support.socks_proxy import SocksProxy
from support.transports import LIBRARIES, Way

pytestmark = pytest.mark.usefixtures("no_proxies")

# aiohttp has no support for SOCKS. Its error is tested with the other unusable proxies.
WAYS = [way for way in LIBRARIES if way.transport != "aiohttp"]
EAGER = RetryConfig("backoff", BackoffStrategy(1, 1, 1, 60_000), max_attempts=3)
LOGIN_REJECTED = "the proxy rejected the login: set user and password in the proxy's URL"


async def list_agents(way: Way, url: str) -> None:
    flux0 = Flux0(url, transport=way.make_transport(), retry_config=EAGER)
    async with in_mode(way.mode, flux0) as either:
        for _ in range(2):
            await either.agents.list_async()


def in_environment(
    monkeypatch: pytest.MonkeyPatch, proxy: SocksProxy, login: str = "", scheme: str = "socks5"
) -> None:
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://{login}{proxy.address}")


@over(*WAYS)
@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
@pytest.mark.parametrize("login", [None, ("ada", "s@cret")], ids=["open", "login"])
async def test_requests_are_sent_through_the_proxy(
    way: Way, scheme: str, login: tuple[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ByteServer(AGENTS) as server, SocksProxy(login=login) as proxy:
        in_environment(monkeypatch, proxy, "ada:s%40cret@" if login else "", scheme)
        await list_agents(way, server.url)
        assert proxy.targets == ((server.host, server.port),)


@over(*WAYS)
@pytest.mark.parametrize("login", ["", "ada:wrong@"], ids=["none", "wrong"])
async def test_rejected_login_is_a_connect_error_and_not_retried(
    way: Way, login: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SocksProxy(login=("ada", "secret")) as proxy:
        in_environment(monkeypatch, proxy, login)
        with pytest.raises(ConnectError) as caught:
            await list_agents(way, "http://127.0.0.1:9")
        assert (caught.value.problem, caught.value.attempts) == (LOGIN_REJECTED, 1)
        assert proxy.accepted == 1


@over(*WAYS)
async def test_refused_connection_is_a_connect_error(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SocksProxy(refuse=True) as proxy:
        in_environment(monkeypatch, proxy)
        with pytest.raises(ConnectError, match="the proxy refused the connection:") as caught:
            await list_agents(way, "http://127.0.0.1:9")
        assert type(caught.value) is ConnectError
        assert "connection refused" in caught.value.problem.lower()
        assert "Connection(" not in caught.value.problem
        assert proxy.accepted == EAGER.max_attempts


@over(*WAYS)
async def test_silent_proxy_is_a_connect_timeout(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    with SocksProxy(responds=False) as proxy:
        in_environment(monkeypatch, proxy)
        transport = as_async(way.mode, way.make_transport())
        timeout = evolve(LONG_TIMEOUT, connect=EXPIRY)
        with pytest.raises(ConnectTimeout, match=r"could not connect within 0\.05 s"):
            await transport.send_async(get("http://127.0.0.1:9", timeout=timeout))
        await transport.close_async()


@over(*WAYS)
async def test_dead_proxy_is_named(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = SocksProxy()
    with proxy:
        in_environment(monkeypatch, proxy, "ada:secret@")
    with pytest.raises(ConnectError) as caught:
        await list_agents(way, "http://127.0.0.1:9")
    assert caught.value.problem == (
        f"cannot connect to the proxy {proxy.address}: connection refused"
    )


def test_every_address_of_the_proxy_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first address is an IPv6 address, which an IPv4 source address cannot connect to."""
    resolve: Callable[..., Any] = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **options: Any) -> Any:
        first: list[Any] = resolve("::1", *args, **options) if host == "localhost" else []
        return [*first, *resolve("127.0.0.1" if host == "localhost" else host, *args, **options)]

    with ByteServer(AGENTS) as server, SocksProxy() as proxy:
        port = proxy.address.rpartition(":")[2]
        source = ("127.0.0.1", 0)
        manager = SOCKSProxyManager(f"socks5h://localhost:{port}", source_address=source)
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        request = get(server.url, timeout=evolve(LONG_TIMEOUT, connect=None))
        response = Urllib3Transport(manager).send(request)
        assert response.status_code == 200
        response.body.close()
        assert proxy.targets == ((server.host, server.port),)


def over_requests(proxy: str) -> Transport:
    session = requests.Session()
    session.proxies = {"http": proxy}
    return RequestsTransport(session)


def over_urllib3(proxy: str) -> Transport:
    manager: urllib3.PoolManager = SOCKSProxyManager(proxy)
    return Urllib3Transport(manager)


@pytest.mark.parametrize("make", [over_requests, over_urllib3])
def test_proxy_of_the_users_client_is_used(make: Callable[[str], Transport]) -> None:
    with ByteServer(AGENTS) as server, SocksProxy(login=("ada", "secret")) as proxy:
        url = f"socks5h://ada:secret@{proxy.address}"
        with Flux0(server.url, transport=make(url), retry_config=EAGER) as flux0:
            flux0.agents.list()
        assert proxy.targets == ((server.host, server.port),)
        with (
            Flux0(server.url, transport=make(f"socks5h://{proxy.address}")) as flux0,
            pytest.raises(ConnectError, match=LOGIN_REJECTED),
        ):
            flux0.agents.list()
        assert proxy.accepted == 2


@pytest.mark.parametrize(("scheme", "host"), [("socks5", "127.0.0.1"), ("socks5h", "localhost")])
@pytest.mark.parametrize("make", [over_requests, over_urllib3])
def test_host_name_is_looked_up_by_the_proxy_only_with_socks5h(
    make: Callable[[str], Transport], scheme: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo

    def resolve_to_ipv4(name: Any, *args: Any, **options: Any) -> list[Any]:
        return resolve("127.0.0.1" if name == "localhost" else name, *args, **options)

    # On many machines, the first address of "localhost" is the IPv6 address.
    monkeypatch.setattr(socket, "getaddrinfo", resolve_to_ipv4)
    with ByteServer(AGENTS) as server, SocksProxy() as proxy:
        url = server.url.replace(server.host, "localhost")
        with Flux0(url, transport=make(f"{scheme}://{proxy.address}")) as flux0:
            flux0.agents.list()
        assert proxy.targets == ((host, server.port),)
