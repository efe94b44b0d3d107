"""Large requests over each transport: the server may respond while the request is being sent."""

from __future__ import annotations

import socket

import pytest

from flux0 import APIError, Flux0
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.harness import post
from flux0.testing.contract.responses import (
    Write,
    http_response,
    to_bytes,
)
from support import sending
from support.early_server import early_server
from support.modes import in_mode
from support.secured import Secured
from support.sending import OK, fetch, over
from support.transports import LIBRARIES, Way

LARGE = 16_000_000
TOO_LARGE = to_bytes(http_response(b'{"detail": "too large"}', status="413 Content Too Large"))
# aiohttp loads its trusted certificates when it is imported, so the environment has no effect.
OVER_TLS = tuple(way for way in LIBRARIES if way.transport != "aiohttp")


async def send_message(way: Way, url: str, size: int, *, times: int = 1) -> None:
    """Send messages that the server rejects. Only a failing test waits for the timeout."""
    flux0 = Flux0(url, transport=way.make_transport(), timeout_ms=60_000)
    async with in_mode(way.mode, flux0) as either:
        for _ in range(times):
            with pytest.raises(APIError, match="too large") as caught:
                await either.sessions.create_event_async(session_id="s", content="x" * size)
            assert caught.value.status_code == 413


@over(*LIBRARIES)
@pytest.mark.parametrize("closes", [False, True], ids=["open", "closes"])
@pytest.mark.parametrize("size", [10_000, LARGE])
async def test_rejection_of_a_large_request_is_an_api_error(
    way: Way, size: int, *, closes: bool
) -> None:
    with early_server(TOO_LARGE, [], closes=closes) as url:
        await send_message(way, url, size)


@over(*OVER_TLS)
async def test_rejection_over_tls_is_an_api_error_and_ends_the_connection(
    way: Way, secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", secured.ca_file)
    connections: list[socket.socket] = []
    with early_server(TOO_LARGE, connections, tls=secured.server) as url:
        await send_message(way, url, LARGE, times=2)
        assert len(connections) == 2


# For httpx and urllib3, the tests are in httpx/test_connections.py and urllib3/test_transport.py.
@over(*(way for way in LIBRARIES if way.transport in ("aiohttp", "requests")))
async def test_interim_response_does_not_stop_a_large_request(way: Way) -> None:
    interim = (Write(b"HTTP/1.1 102 Processing\r\n\r\n"),)
    transport, body = sending.as_async(way.mode, way.make_transport()), b"x" * LARGE
    with ByteServer(OK, on_connect=interim) as server:
        assert await fetch(transport, post(server.url, body)) == b"ok"
        is_complete = server.requests[0].body == body
    await transport.close_async()
    assert is_complete


@over(*OVER_TLS)
async def test_tls_messages_do_not_stop_a_large_request(
    way: Way, secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server sends session tickets after the handshake, while the request is being sent."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", secured.ca_file)
    transport, body = sending.as_async(way.mode, way.make_transport()), b"x" * LARGE
    with ByteServer(OK, tls=secured.server) as server:
        assert await fetch(transport, post(server.url, body)) == b"ok"
        is_complete = server.requests[0].body == body
    await transport.close_async()
    assert is_complete
