"""The rules for proxy settings from the environment, and their use by each transport."""

from __future__ import annotations

import asyncio
import gc
import sys
from importlib import import_module

import aiohttp
import pytest
import urllib3
from attrs import evolve

from flux0 import (
    AiohttpTransport,
    BackoffStrategy,
    ConnectError,
    Flux0,
    RetryConfig,
    TransportError,
    Urllib3Transport,
)
from flux0.adapters.shared.proxies import PYSOCKS_SCHEMES, EnvironmentProxies
from flux0.domain.errors import ConnectTimeout
from flux0.testing.contract.base import EXPIRY
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.harness import LONG_TIMEOUT, get, post
from flux0.testing.contract.responses import Disconnect, Reset, ServerSteps, WaitForRelease, Write
from support import sending
from support.modes import in_mode
from support.proxy import Proxy
from support.secured import Secured
from support.sending import AGENTS, OK, fetch, fetch_sync, over
from support.transports import LIBRARIES, Way

pytestmark = pytest.mark.usefixtures("little_garbage", "no_proxies")


async def list_agents(way: Way, url: str) -> None:
    client = Flux0(url, transport=way.make_transport(), retry_config=RetryConfig("none"))
    async with in_mode(way.mode, client) as flux0:
        for _ in range(2):
            await flux0.agents.list_async()


# --- rules for the variables


def proxy_for(url: str) -> str | None:
    return EnvironmentProxies("httpx").proxy_for(url)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("http_proxy", "http://proxy:1"),
        ("HTTP_PROXY", "http://proxy:1"),
        ("all_proxy", "proxy:1"),
        ("ALL_PROXY", "http://proxy:1"),
    ],
)
def test_no_proxy_overrides_each_proxy_variable(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    for but in ("", "localhost", "127.0.0.1:1", "27.0.0.1", "10.0.0.0/8", "example.com, ::1"):
        monkeypatch.setenv("no_proxy", but)
        assert proxy_for("http://127.0.0.1:8080/api") == "http://proxy:1"
    for but in (
        "127.0.0.1",
        "127.0.0.1:8080",
        "*",
        "a.example, 127.0.0.1",
        "10.0.0.0/8,127.0.0.1/8",
    ):
        monkeypatch.setenv("no_proxy", but)
        assert proxy_for("http://127.0.0.1:8080/api") is None
    monkeypatch.delenv(name)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    monkeypatch.setenv("no_proxy", "flux0.example")
    assert proxy_for("https://flux0.example/api") is None
    assert proxy_for("http://other.example/api") is None
    assert proxy_for("https://other.example/api") == "http://proxy:1"


@pytest.mark.parametrize(
    ("url", "but"),
    [
        ("http://[::1]:8080", "[::1]"),
        ("http://[::1]:8080", "a.example, [::1]:8080"),
        ("http://[::1]:8080", "::1"),
        ("http://[fd00::7]", "[fd00::]/8"),
        ("http://flux0.example.", "flux0.example"),
        ("http://flux0.example.:8080", "example"),
        ("http://flux0.example", "a, flux0.example."),
        ("http://flux0.example", ".example."),
    ],
)
def test_no_proxy_accepts_brackets_and_trailing_dots(
    url: str, but: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("all_proxy", "http://proxy:1")
    assert proxy_for(url) == "http://proxy:1"
    monkeypatch.setenv("no_proxy", but)
    assert proxy_for(url) is None
    assert proxy_for("http://[::2]:8080") == "http://proxy:1"


def test_no_proxy_with_a_default_port_needs_the_port_in_the_url(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An empty name in `NO_PROXY` matches no server."""
    monkeypatch.setenv("all_proxy", "http://proxy:1")
    monkeypatch.setenv("no_proxy", "flux0.example:80, ,")
    assert proxy_for("http://flux0.example:80") is None
    assert proxy_for("http://flux0.example") == "http://proxy:1"


def test_environment_is_read_once_for_each_server(monkeypatch: pytest.MonkeyPatch) -> None:
    proxies = EnvironmentProxies("httpx")
    monkeypatch.setenv("all_proxy", "http://proxy:1")
    assert proxies.proxy_for("http://a.example/api") == "http://proxy:1"
    monkeypatch.setenv("all_proxy", "http://proxy:2")
    assert proxies.proxy_for("http://a.example/other") == "http://proxy:1"
    assert proxies.proxy_for("https://a.example/api") == "http://proxy:2"


@pytest.mark.parametrize(
    ("library", "other", "module"),
    [("httpx", "urllib3", "socksio"), ("requests", "httpx2", "socks")],
)
def test_socks_proxy_needs_the_socks_package_of_the_library(
    library: str, other: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither other libraries nor proxies without SOCKS need this package."""
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv("http_proxy", "socks5://proxy:1")
    monkeypatch.setenv("https_proxy", "http://proxy:1")
    proxies = EnvironmentProxies(library, PYSOCKS_SCHEMES)
    with pytest.raises(ConnectError, match="needs a package for the proxy socks5://proxy:1"):
        proxies.proxy_for("http://flux0.invalid")
    assert proxies.proxy_for("https://flux0.invalid") == "http://proxy:1"
    others = EnvironmentProxies(other, PYSOCKS_SCHEMES)
    assert others.proxy_for("http://flux0.invalid") == "socks5://proxy:1"


@pytest.mark.parametrize("url", ["http://[", "http://:80", "http://flux0.example:x"])
def test_invalid_url_has_no_proxy(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The HTTP library raises the error for the URL."""
    monkeypatch.setenv("all_proxy", "http://proxy:1")
    assert proxy_for(url) is None


@pytest.mark.parametrize(
    "proxy",
    ["ftp://ada:s@127.0.0.1:1", "http://[", "http://127.0.0.1:x", "http://:80", "http://a:0"],
)
def test_unusable_proxy_is_a_connect_error(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", proxy)
    with pytest.raises(ConnectError, match="httpx cannot use the proxy") as caught:
        proxy_for("http://flux0.invalid")
    assert "ada" not in str(caught.value)
    assert caught.value.permanent


# --- requests through a proxy, over each transport


@over(*LIBRARIES)
@pytest.mark.parametrize(
    ("name", "value", "login"),
    [
        ("http_proxy", "http://{}/", None),
        ("ALL_PROXY", "{}", None),
        ("http_proxy", "http://ada:s%40cret@{}", "Basic YWRhOnNAY3JldA=="),
        ("http_proxy", "http://ada@{}", "Basic YWRhOg=="),
    ],
)
async def test_requests_are_sent_through_the_proxy(
    way: Way, name: str, value: str, login: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy() as proxy, ByteServer(AGENTS) as server:
        monkeypatch.setenv(name, value.format(proxy.url.removeprefix("http://")))
        await list_agents(way, server.url)
        assert [request.target for request in proxy.requests] == [f"{server.url}/api/agents"] * 2
        logins = [request.headers.get("proxy-authorization") for request in proxy.requests]
        assert logins == [login] * 2


@over(*LIBRARIES)
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_dead_proxy_is_named(way: Way, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy() as proxy:
        place = proxy.url.removeprefix("http://")
    monkeypatch.setenv("all_proxy", f"http://ada:secret@{place}")
    with pytest.raises(ConnectError) as caught:
        await list_agents(way, f"{scheme}://flux0.invalid")
    assert caught.value.problem == f"cannot connect to the proxy {place}: connection refused"


@over(*LIBRARIES)
async def test_no_proxy_excludes_servers(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy() as proxy, ByteServer(AGENTS) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.0/8")
        await list_agents(way, server.url)
        assert proxy.requests == ()


@over(*LIBRARIES)
async def test_closing_a_client_closes_its_connection_to_a_proxy(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Flux0("http://flux0.invalid", transport=way.make_transport())
    with ByteServer(AGENTS) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        async with in_mode(way.mode, client) as flux0:
            await flux0.agents.list_async()
            assert proxy.open_connections == 1
        proxy.wait_until_closed()
    assert client.is_closed


BEGUN = Write(b"HTTP/1.1 200 OK\r\n")


@over(*LIBRARIES)
@pytest.mark.parametrize(
    ("breaks", "pooled", "tunnel"),
    [
        ((Disconnect(),), True, True),
        ((Disconnect(),), False, False),
        ((Reset(),), True, False),
        ((BEGUN, Disconnect()), False, True),
        ((BEGUN, Reset()), True, True),
        ((Write(b"SSH-2.0\r\n\r\n"), Disconnect()), True, False),
    ],
    ids=["closed", "closed, fresh", "reset", "closed in head", "reset in head", "not HTTP"],
)
async def test_post_through_a_proxy_is_sent_once(
    way: Way,
    breaks: ServerSteps,
    secured: Secured,
    monkeypatch: pytest.MonkeyPatch,
    *,
    pooled: bool,
    tunnel: bool,
) -> None:
    """The CONNECT request of a tunnel is sent in the same connection before the POST."""
    # aiohttp reads the trusted certificates when it is imported, so it cannot trust this server.
    tls = secured.server if tunnel and way.transport != "aiohttp" else None
    retries = RetryConfig("backoff", BackoffStrategy(1, 1, 1, 10_000), max_attempts=3)
    with Proxy() as proxy, ByteServer(*[AGENTS] * pooled, breaks, tls=tls) as server:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", secured.ca_file)
        monkeypatch.setenv("all_proxy", proxy.url)
        client = Flux0(server.url, transport=way.make_transport(), retry_config=retries)
        async with in_mode(way.mode, client) as flux0:
            if pooled:
                await flux0.agents.list_async()
            with pytest.raises(TransportError) as caught:
                await flux0.sessions.create_async(agent_id="a")
        assert not isinstance(caught.value, ConnectError)
        assert [request.method for request in server.requests] == ["GET"] * pooled + ["POST"]
        assert (proxy.requests[0].method == "CONNECT") is (tls is not None)


# In some Python versions, http.client does not close the socket of a failed tunnel.
leaves_a_socket = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@leaves_a_socket
@over(*LIBRARIES)
async def test_rejected_tunnel_is_a_connect_error(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(refusal="407 Proxy Authentication Required") as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        with pytest.raises(ConnectError) as caught:
            await list_agents(way, "https://flux0.invalid")
        assert {request.method for request in proxy.requests} == {"CONNECT"}
    message = str(caught.value)
    del caught
    gc.collect()
    assert message == (
        "GET https://flux0.invalid/api/agents: "
        "the proxy refused the connection: 407 Proxy Authentication Required"
    )


@leaves_a_socket
@over(*LIBRARIES)
@pytest.mark.parametrize(
    "does",
    [(Disconnect(),), (Reset(),), (Write(b"nonsense\r\n\r\n"), Disconnect()), (WaitForRelease(),)],
    ids=["closed", "reset", "not HTTP", "no data"],
)
async def test_proxy_failure_before_the_tunnel_is_a_connect_error(
    way: Way, does: ServerSteps, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_data = does == (WaitForRelease(),)
    timeout = evolve(LONG_TIMEOUT, connect=EXPIRY) if no_data else LONG_TIMEOUT
    transport = sending.as_async(way.mode, way.make_transport())
    with ByteServer(does) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        with pytest.raises(ConnectError) as caught:
            await transport.send_async(post("https://127.0.0.1:9", timeout=timeout))
        assert type(caught.value) is (ConnectTimeout if no_data else ConnectError)
        await transport.close_async()
    del caught
    gc.collect()


@over(*LIBRARIES)
async def test_socks_proxy_without_its_extra_is_a_connect_error(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    # If httpcore or requests is imported without the package, it never supports SOCKS again.
    import_module(way.transport.replace("httpx", "httpcore"))
    for module in ("socksio", "socks"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv("all_proxy", "socks5://ada:secret@127.0.0.1:1")
    with pytest.raises(ConnectError) as caught:
        await list_agents(way, "http://flux0.invalid")
    assert caught.value.problem == (
        "aiohttp cannot use the proxy socks5://127.0.0.1:1 from the environment: "
        "use a URL such as http://proxy:8080"
        if way.transport == "aiohttp"
        else f"{way.transport} needs a package for the proxy socks5://127.0.0.1:1: "
        f"pip install '{way.transport}[socks]'"
    )
    assert caught.value.permanent


def test_users_client_ignores_the_proxy_settings_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def over_aiohttp() -> bytes:
        async with aiohttp.ClientSession() as session:
            return await fetch(AiohttpTransport(session), get(server.url))

    with Proxy() as proxy, ByteServer(OK) as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert asyncio.run(over_aiohttp()) == b"ok"
        transport = Urllib3Transport(urllib3.PoolManager())
        assert fetch_sync(transport, get(server.url)) == b"ok"
        assert proxy.requests == ()
