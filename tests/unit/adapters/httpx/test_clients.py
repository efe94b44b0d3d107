"""The transports over httpx and httpx2, with the user's clients and with built-in clients."""

# The TLS contexts have no public name.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import ssl
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

import flux0
from flux0 import APIError
from flux0.adapters.httpx import clients
from flux0.domain.errors import (
    ClientClosed,
    ConnectError,
    ConnectionInterrupted,
    Flux0Error,
    InvalidArgument,
    ProtocolError,
    ReadTimeout,
    TransportError,
    TransportTimeout,
)
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.harness import get, post
from flux0.testing.contract.responses import WaitForRelease, Write, http_response, to_bytes
from support import sending
from support.modes import run
from support.over_httpx import FAMILY, FAMILY_SYNC, VERSIONS, OverHttpx
from support.secured import Secured
from support.sending import OK, over


@over(*FAMILY)
async def test_redirect_over_the_users_client_is_returned_if_its_location_is_valid(
    way: OverHttpx,
) -> None:
    """httpx raises an error for an invalid location. New versions of httpx2 raise no error."""
    invalid = (ProtocolError, *[APIError] * (way.transport == "httpx2"))
    for location, errors in (("/elsewhere", APIError), ("http://a:b/", invalid)):
        moved = http_response(b"moved", status="302 Found", headers=[("Location", location)])
        with ByteServer(moved) as server:
            with pytest.raises(errors, match=r"302|Invalid URL in location header"):
                await way.create_session_once(server.url)
            assert len(server.requests) == 1


@over(*FAMILY)
async def test_built_in_client_uses_the_proxy_of_the_environment(
    way: OverHttpx, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ByteServer(OK) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        url = "http://flux0.invalid/api/agents"
        assert await way.fetch_once(get(url)) == (200, b"ok")
        assert [request.target for request in proxy.requests] == [url]


@over(*FAMILY)
async def test_connections_of_a_mounted_transport_are_tracked(way: OverHttpx) -> None:
    mounted = way.kind("HTTPTransport")()
    surplus = (Write(to_bytes(OK) + b"surplus"), WaitForRelease())
    with ByteServer(surplus, OK) as server:
        async with way.closing(way.client(mounts={"http://": mounted})) as transport:
            for _ in range(2):
                assert await way.fetch(transport, get(server.url)) == (200, b"ok")
        assert server.connections == 2


# --- the user's code


class Stop(Exception):
    """An exception from user code."""


def error_of_nested_request(library: Any) -> Exception:
    """Return the error that the library raises for a request to a port without a server."""
    try:
        library.Client().get("http://127.0.0.1:1")
    except library.ConnectError as error:
        failure: Exception = error
        return failure
    raise AssertionError("a server listens at port 1")


def status_error_of_another_request(library: Any) -> Exception:
    """Return the error that `raise_for_status` raises for another request."""
    other = library.Request("GET", "http://flux0.invalid")
    response = library.Response(404, request=other)
    error: Exception = library.HTTPStatusError("other request", request=other, response=response)
    return error


RAISED: dict[str, Callable[[Any], Exception]] = {
    "custom": lambda _: Stop("stop"),
    "OSError": lambda _: OSError("the disk is full"),
    "UnicodeError": lambda _: UnicodeError("no such letter"),
    "RuntimeError": lambda _: RuntimeError("stop"),
    "SSLError": lambda _: ssl.SSLError("of something else"),
    "of a nested request": error_of_nested_request,
    "ReadTimeout": lambda library: library.ReadTimeout("of something else"),
    "InvalidURL": lambda library: library.InvalidURL("of something else"),
    "HTTPStatusError of another request": status_error_of_another_request,
}


def raising(way: OverHttpx, error: Exception, where: str) -> dict[str, Any]:
    """Return options of a client with user code that raises `error`."""

    def act(*_: object) -> None:
        raise error

    class Auth(way.library.Auth):  # type: ignore[misc, name-defined]
        def auth_flow(self, request: Any) -> Generator[Any, Any, None]:
            if where == "auth, before":
                raise error
            yield request
            raise error

    if where.startswith("auth"):
        return {"auth": Auth()}
    if where == "transport":
        name = "handle_request" if way.mode == "sync" else "handle_async_request"
        transport = type("Raising", (way.kind("BaseTransport"),), {name: way.act(act)})
        return {"transport": transport()}
    return {"event_hooks": {where: [way.act(act)]}}


@over(*VERSIONS)
@pytest.mark.parametrize(
    ("where", "raised"),
    [("response", raised) for raised in RAISED]
    + [
        (where, raised)
        for where in ("request", "auth, before", "auth, after")
        for raised in ("OSError", "ReadTimeout", "of a nested request")
    ]
    + [("transport", "OSError"), ("transport", "RuntimeError")],
)
async def test_exceptions_of_user_code_are_raised_unchanged(
    way: OverHttpx, where: str, raised: str
) -> None:
    error = RAISED[raised](way.library)
    with ByteServer(OK) as server:
        with pytest.raises(type(error)) as caught:
            await way.create_session_once(server.url, **raising(way, error, where))
        assert caught.value is error
        assert len(server.requests) == (where in ("response", "auth, after"))


@over(*FAMILY_SYNC)
@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        ("ConnectError", ConnectionInterrupted),
        ("ConnectTimeout", TransportTimeout),
        ("PoolTimeout", TransportTimeout),
        ("ReadTimeout", ReadTimeout),
        ("ProxyError", ConnectionInterrupted),
        ("UnsupportedProtocol", ProtocolError),
    ],
)
async def test_after_an_error_of_a_custom_transport_the_request_counts_as_sent(
    way: OverHttpx, raised: str, kind: type[TransportError]
) -> None:
    """The custom transport may have sent the request, so a POST is not retried."""
    error = getattr(way.library, raised)("says the transport")
    with pytest.raises(TransportError, match="says the transport") as caught:
        await way.fetch_once(post("http://flux0.invalid"), **raising(way, error, "transport"))
    assert type(caught.value) is kind
    assert caught.value.__cause__ is error


@over(*FAMILY)
async def test_raise_for_status_in_a_hook_raises_api_error(way: OverHttpx) -> None:
    def check(response: Any) -> None:
        response.raise_for_status()

    hook = way.act(check)
    with ByteServer(http_response(b"no", status="404 Not Found")) as server:
        with pytest.raises(APIError) as caught:
            await way.create_session_once(server.url, event_hooks={"response": [hook]})
        assert caught.value.status_code == 404
        assert type(caught.value.raw_response) is way.library.Response
        assert len(server.requests) == 1


@over(*FAMILY)
async def test_hook_may_read_the_body(way: OverHttpx) -> None:
    def read(response: Any) -> None:
        response.read()

    async def read_async(response: Any) -> None:
        await response.aread()

    hook = read if way.mode == "sync" else read_async
    for status in (200, 404):
        with ByteServer(http_response(b"text", status=f"{status} So", gzip=True)) as server:
            body = await way.fetch_once(get(server.url), event_hooks={"response": [hook]})
            assert body == (status, b"text")


@over(*FAMILY)
async def test_users_trace_function_is_called(way: OverHttpx) -> None:
    seen: list[str] = []

    def trace(event: str, _: object) -> None:
        seen.append(event)

    client = way.client()
    extensions = {"trace": way.act(trace)}
    client.build_request = partial(client.build_request, extensions=extensions)
    with ByteServer(OK) as server:
        async with way.closing(client) as transport:
            assert await way.fetch(transport, get(server.url)) == (200, b"ok")
    assert "connection.connect_tcp.complete" in seen
    assert "http11.send_request_headers.started" in seen


@over(*FAMILY)
async def test_if_a_hook_replaces_the_trace_function_the_request_counts_as_sent(
    way: OverHttpx,
) -> None:
    def replace(request: Any) -> None:
        request.extensions["trace"] = way.act(lambda *_: None)

    hooks = {"request": [way.act(replace)]}
    with pytest.raises(TransportError) as caught:
        await way.fetch_once(post("http://127.0.0.1:1"), event_hooks=hooks)
    assert type(caught.value) is ConnectionInterrupted


# --- the user's clients


@over(*FAMILY)
async def test_users_client_stays_open_and_keeps_its_settings(way: OverHttpx) -> None:
    client = way.client(
        headers={"x-team": "blue", "accept": "text/html", "accept-encoding": "br, zstd"},
        auth=("me", "secret"),
    )
    cookie = http_response(b"ok", headers=[("Set-Cookie", "a=1")])
    with ByteServer(cookie) as server:
        for fields in ((("accept-encoding", "identity"),), ()):
            transport = way.transport_over(client)
            request = get(server.url, ("accept", "application/json"), *fields)
            assert await way.fetch(transport, request) == (200, b"ok")
            await sending.as_async(way.mode, transport).close_async()
            del transport
        assert not client.is_closed
        if way.mode == "sync":  # The user's own requests reuse the connection.
            assert client.get(server.url).text == "ok"
        assert server.connections == 1
        assert server.requests[0].headers.get_all("accept-encoding") == ("identity",)
        received = server.requests[1].headers
        assert received["x-team"] == "blue"
        assert received["authorization"].startswith("Basic ")
        assert received["accept"] == "application/json"
        assert received["accept-encoding"] == "gzip, deflate"
        assert received["cookie"] == "a=1"
        async with way.closing(client) as transport:
            pass
        with pytest.raises(ClientClosed, match=way.transport):
            await way.fetch(transport, get(server.url))


@over(*FAMILY)
async def test_users_client_may_retry_to_connect(way: OverHttpx) -> None:
    with pytest.raises(ConnectError):
        await way.fetch_once(
            get("http://127.0.0.1:1"), transport=way.kind("HTTPTransport")(retries=1)
        )


@over(*FAMILY)
async def test_response_that_was_read_already_is_returned(way: OverHttpx) -> None:
    """`MockTransport` returns a response whose body was already read."""

    def respond(_: object) -> Any:
        return way.library.Response(200, content=b'{"data":[]}')

    given = way.library.MockTransport(respond)
    body = await way.fetch_once(get("http://flux0.invalid"), transport=given)
    assert body == (200, b'{"data":[]}')


@over(*FAMILY)
async def test_turn_over_http2_warns(way: OverHttpx) -> None:
    def handle(_: object) -> Any:
        content = way.library.ByteStream(b"data")
        return way.library.Response(200, stream=content, extensions={"http_version": b"HTTP/2"})

    transport = way.library.MockTransport(handle)
    with pytest.warns(RuntimeWarning, match="without http2=True"):
        body = await way.fetch_once(get("http://flux0.invalid", stream=True), transport=transport)
    assert body == (200, b"data")


class Minimal:
    """A client that has only the methods that flux0 calls, and ignores the timeouts."""

    def __init__(self, client: Any, library: Any) -> None:
        self._client = client
        self._library = library

    def build_request(self, method: str, url: str, **options: Any) -> Any:
        del options["timeout"]
        return self._library.Request(method, url, **options)

    def send(self, request: Any, *, stream: bool, follow_redirects: bool) -> Any:
        return self._client.send(request, stream=stream, follow_redirects=follow_redirects)


@over(*FAMILY_SYNC)
async def test_client_needs_only_build_request_and_send(way: OverHttpx) -> None:
    with ByteServer(OK) as server, way.client() as client:
        transport = way.transport_over(Minimal(client, way.library))
        assert await way.fetch(transport, get(server.url, stream=True)) == (200, b"ok")


# --- rejected arguments and calls


@pytest.mark.parametrize("way", FAMILY_SYNC, ids=str)
def test_client_of_the_other_library_is_rejected(way: OverHttpx) -> None:
    other = {"httpx": "httpx2", "httpx2": "httpx"}[way.transport]
    client = type("Client", (), {"__module__": other, "send": None, "build_request": None})()
    with pytest.raises(InvalidArgument, match=f"{other.title()}Transport"):
        way.transport_over(client)


@pytest.mark.parametrize("way", FAMILY, ids=str)
def test_transport_with_only_one_client_rejects_the_other_calls(way: OverHttpx) -> None:
    async def refuse() -> None:
        with pytest.raises(Flux0Error, match="has a sync client only"):
            await transport.send_async(get("http://flux0.invalid"))

    transport = way.transport_over(way.client())
    serves = (transport.serves_sync, transport.serves_async)
    assert serves == (way.mode == "sync", way.mode != "sync")
    if way.mode == "sync":
        run("asyncio", refuse)
    else:
        with pytest.raises(Flux0Error, match="has an async client only"):
            transport.send(get("http://flux0.invalid"))
    own = flux0.HttpxTransport()
    assert (own.serves_sync, own.serves_async) == (True, True)


# --- the built-in clients


@over(*FAMILY)
async def test_raw_response_of_a_built_in_client_has_its_request(way: OverHttpx) -> None:
    with ByteServer(OK) as server:
        async with way.closing(None) as transport:
            sent = await sending.as_async(way.mode, transport).send_async(get(server.url))
            assert str(sent.raw_response.request.url) == server.url
            assert await sending.read(sent.body) == b"ok"


@over(*FAMILY)
async def test_http_request_needs_no_certificates(
    way: OverHttpx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", __file__)  # The file exists, but has no certificates.
    with ByteServer(OK) as server:
        assert await way.fetch_once(get(server.url)) == (200, b"ok")
        with pytest.raises(ConnectError):
            await way.fetch_once(get(server.url.replace("http:", "https:")))


def test_key_log_file_of_the_environment_applies_also_if_it_is_set_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SSLKEYLOGFILE", raising=False)
    assert clients._tls_context(httpx).keylog_filename is None
    path = str(tmp_path / "keys.log")
    monkeypatch.setenv("SSLKEYLOGFILE", path)
    assert clients._tls_context(httpx).keylog_filename == path


@pytest.mark.parametrize(("name", "count"), [("SSL_CERT_FILE", 1), ("SSL_CERT_DIR", 0)])
def test_certificates_of_the_environment_apply_also_if_they_are_set_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, secured: Secured, name: str, count: int
) -> None:
    """Python reads the certificates of a folder later, during a TLS handshake."""
    for each in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(each, raising=False)
    assert len(clients._tls_context(httpx).get_ca_certs()) > 1
    monkeypatch.setenv(name, secured.ca_file if count else str(tmp_path))
    assert len(clients._tls_context(httpx).get_ca_certs()) == count


@over(*FAMILY)
async def test_expired_idle_connections_are_not_reused(
    way: OverHttpx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "MAX_IDLE_SECONDS", -1.0)
    with ByteServer(OK) as server:
        async with way.closing(None) as transport:
            for _ in range(2):
                assert await way.fetch(transport, get(server.url)) == (200, b"ok")
        assert server.connections == 2
