"""All transports go through the proxies that the environment names, by one rule."""

from __future__ import annotations

import asyncio
import gc
import sys

import pytest

from flux0 import ConnectError, Flux0, RetryConfig
from flux0.testing.contract.answers import answer
from flux0.testing.contract.byte_server import ByteServer
from support.proxy import Proxy
from support.transports_under_test import TRANSPORTS, TransportUnderTest

AGENTS = answer(b'{"data": []}', headers=[("Content-Type", "application/json")])

over_all = pytest.mark.parametrize("transport", TRANSPORTS, ids=str)


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def list_agents(url: str, transport: TransportUnderTest) -> None:
    client = Flux0(url, **transport.arguments(), retry_config=RetryConfig("none"))
    if transport.synchronous:
        with client:
            for _ in range(2):
                client.agents.list()
    else:
        asyncio.run(list_agents_async(client))


async def list_agents_async(client: Flux0) -> None:
    async with client:
        for _ in range(2):
            await client.agents.list_async()


@over_all
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("http_proxy", "http://{}"),
        ("HTTP_PROXY", "http://{}/"),
        ("all_proxy", "{}"),
        ("ALL_PROXY", "http://{}"),
    ],
)
@pytest.mark.parametrize(
    "but", ["", "localhost", "127.0.0.1:1", "27.0.0.1", "10.0.0.0/8", "example.com, ::1"]
)
def test_a_proxy_is_used(
    transport: TransportUnderTest, name: str, value: str, but: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy() as proxy, ByteServer(AGENTS) as server:
        monkeypatch.setenv(name, value.format(proxy.url.removeprefix("http://")))
        monkeypatch.setenv("no_proxy", but)
        list_agents(server.url, transport)
        assert [request.target for request in proxy.requests] == [f"{server.url}/api/agents"] * 2


@over_all
@pytest.mark.parametrize(
    "but",
    [
        "127.0.0.1",
        "127.0.0.1:{}",
        "*",
        "a.example, 127.0.0.1",
        "127.0.0.0/8",
        "10.0.0.0/8,127.0.0.1/8",
    ],
)
def test_some_servers_need_none(
    transport: TransportUnderTest, but: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy() as proxy, ByteServer(AGENTS) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", but.format(server.port))
        list_agents(server.url, transport)
        assert proxy.requests == ()


@over_all
def test_a_proxy_for_https_is_for_that_alone(
    transport: TransportUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy() as proxy, ByteServer(AGENTS) as server:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        list_agents(server.url, transport)
        assert proxy.requests == ()


@over_all
@pytest.mark.parametrize(
    ("login", "sent"), [("ada:s%40cret", "YWRhOnNAY3JldA=="), ("ada", "YWRhOg==")]
)
def test_the_login_of_a_proxy(
    transport: TransportUnderTest, login: str, sent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy() as proxy, ByteServer(AGENTS) as server:
        monkeypatch.setenv("http_proxy", proxy.url.replace("//", f"//{login}@"))
        list_agents(server.url, transport)
        logins = [request.headers["proxy-authorization"] for request in proxy.requests]
        assert logins == [f"Basic {sent}"] * 2


# http.client leaves the socket of a tunnel that failed to the garbage collector in some Pythons.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@over_all
def test_a_proxy_that_opens_no_tunnel(
    transport: TransportUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(refusal="407 Proxy Authentication Required") as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        with pytest.raises(ConnectError) as caught:
            list_agents("https://flux0.invalid", transport)
        assert {request.method for request in proxy.requests} == {"CONNECT"}
    told = str(caught.value)
    del caught
    gc.collect()
    assert told == (
        "GET https://flux0.invalid/api/agents: "
        "the proxy refuses the connection: 407 Proxy Authentication Required"
    )


@over_all
@pytest.mark.parametrize(
    "proxy",
    ["ftp://ada:s@127.0.0.1:1", "http://[", "http://127.0.0.1:x", "http://:80", "http://a:0"],
)
def test_a_proxy_that_cannot_be_used(
    transport: TransportUnderTest, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("all_proxy", proxy)
    with pytest.raises(ConnectError, match="the environment names the proxy") as caught:
        list_agents("http://flux0.invalid", transport)
    assert "ada" not in str(caught.value)


@over_all
def test_a_socks_proxy_needs_what_is_not_here(
    transport: TransportUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("socksio", "socks"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(ConnectError, match=r"SOCKS|socks5"):
        list_agents("http://flux0.invalid", transport)
