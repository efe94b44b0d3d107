"""The urllib3 transport: the contract, features of urllib3, and invalid responses.

The transport over requests reads responses with the same code.
"""

from __future__ import annotations

import signal
import socket
from threading import Event
from typing import Any

import pytest
import urllib3
from attrs import evolve

from flux0.adapters.shared import sending
from flux0.adapters.urllib3.transport import Urllib3Transport
from flux0.domain.errors import (
    ConnectError,
    ConnectionInterrupted,
    ProtocolError,
    ReadTimeout,
    WriteTimeout,
)
from flux0.testing.contract import LimitedPoolContract, TransportContract
from flux0.testing.contract.base import EXPIRY
from flux0.testing.contract.byte_server import DEFAULT_TIMEOUT, ByteServer
from flux0.testing.contract.harness import LONG, LONG_TIMEOUT, get, post
from flux0.testing.contract.responses import (
    Disconnect,
    Receive,
    Reset,
    ServerSteps,
    Signal,
    WaitForRelease,
    Write,
    head,
    http_response,
    to_bytes,
)
from support.early_server import early_server
from support.sending import HALF, OK, Pieces, fetch_sync
from support.transports import WithoutLongWaits


class TestUrllib3Transport(WithoutLongWaits, LimitedPoolContract, TransportContract):
    def make_transport(self) -> Urllib3Transport:
        return Urllib3Transport()

    def make_trusting_transport(self, ca_file: str) -> Urllib3Transport:
        return Urllib3Transport(urllib3.PoolManager(ca_certs=ca_file))

    def make_limited_transport(self) -> Urllib3Transport:
        return Urllib3Transport(urllib3.PoolManager(maxsize=1, block=True))


def test_user_manager_keeps_its_headers_and_stays_open() -> None:
    manager = urllib3.PoolManager(headers={"x-key": "k", "accept": "text/plain"})
    with ByteServer(OK) as server:
        transport = Urllib3Transport(manager)
        fields = ("Accept", "application/json"), ("Accept-Encoding", "identity")
        assert fetch_sync(transport, get(server.url, *fields)) == b"ok"
        transport.close()
        assert manager.request("GET", server.url).data == b"ok"
        first, _ = server.requests
        assert first.headers["x-key"] == "k"
        assert first.headers.get_all("accept") == ("application/json",)
        assert first.headers.get_all("accept-encoding") == ("identity",)
        assert server.connections == 1


def test_retries_and_redirects_of_the_user_manager_are_disabled() -> None:
    moved = http_response(
        b"", status="307 Temporary Redirect", headers=[("Location", "/elsewhere")]
    )
    busy = http_response(b"", status="503 Busy", headers=[("Retry-After", "0")])
    retry = urllib3.Retry(5, allowed_methods=None, status_forcelist=[503])
    with ByteServer((Reset(),), moved, busy) as server:
        transport = Urllib3Transport(urllib3.PoolManager(retries=retry))
        target = "/api/agents/..%2Fagents?types=%5B%22a%22%5D"
        with pytest.raises(ConnectionInterrupted):
            fetch_sync(transport, get(f"{server.url}{target}"))
        statuses = [transport.send(get(server.url)).status_code for _ in range(2)]
        assert statuses == [307, 503]
        assert [request.target for request in server.requests] == [target, "/", "/"]


def test_repeated_number_in_a_content_length_is_accepted() -> None:
    steps = (head("200 OK", [("Content-Length", "2, 2")]), Write(b"ok"), WaitForRelease())
    with ByteServer(steps) as server:
        assert fetch_sync(Urllib3Transport(), get(server.url)) == b"ok"


def test_write_timeout_limits_sending_a_small_request() -> None:
    """The buffers of the system are smaller than the request."""
    small = (socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    transport = Urllib3Transport(urllib3.PoolManager(socket_options=[small]))
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        request = post(url, bytes(60_000), timeout=evolve(LONG_TIMEOUT, write=EXPIRY))
        with pytest.raises(WriteTimeout):
            transport.send(request)


def test_error_shows_the_timeout_of_the_read_that_has_expired() -> None:
    """The request's own read timeout is longer, and limits only the wait for the headers."""
    with ByteServer(HALF) as server:
        body = Urllib3Transport().send(get(server.url, stream=True)).body
        assert body.read(LONG) == b"first"
        with pytest.raises(ReadTimeout, match=rf"within {EXPIRY} s \(read timeout"):
            body.read(EXPIRY)


def test_requests_go_through_the_proxy_of_a_proxy_manager() -> None:
    with ByteServer(OK) as proxy:
        transport = Urllib3Transport(urllib3.ProxyManager(proxy.url))
        url = "http://flux0.invalid/api/agents/..%2Fx?a=%2F"
        assert fetch_sync(transport, get(url, ("accept", "application/json"))) == b"ok"
        (request,) = proxy.requests
        assert request.target == url
        assert request.headers["host"] == "flux0.invalid"
        assert request.headers.get_all("accept") == ("application/json",)


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize(
    ("scheme", "replies", "reason"),
    [
        ("socks4", (b"\0\x5b" + bytes(6),), "request rejected or failed"),
        ("socks5", (b"\5\0", b"\5\5\0\1" + bytes(6)), "connection refused"),
    ],
)
def test_reason_of_a_socks_proxy_that_refuses_the_connection_is_shown(
    scheme: str, replies: tuple[bytes, ...], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = (step for reply in replies for step in (Receive(), Write(reply)))
    with ByteServer(on_connect=(*steps, Disconnect())) as proxy:
        monkeypatch.setenv("all_proxy", proxy.url.replace("http", scheme))
        with pytest.raises(ConnectError) as caught:
            Urllib3Transport().send(get("http://127.0.0.1:9"))
        assert caught.value.problem == f"the proxy refused the connection: {reason}"


def test_error_body_is_read_after_the_raw_response_was_dropped() -> None:
    with ByteServer(http_response(b"no", status="404 Not Found", gzip=True)) as server:
        assert fetch_sync(Urllib3Transport(), get(server.url)) == b"no"


def test_body_cannot_be_resumed_after_keyboard_interrupt() -> None:
    with ByteServer(HALF) as server:
        pieces = Pieces(Urllib3Transport().send(get(server.url, stream=True)).body)
        assert next(pieces) == b"first"
        previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(KeyboardInterrupt):
                next(pieces)
        finally:
            signal.signal(signal.SIGALRM, previous)
        server.wait_until_closed()
        with pytest.raises(ConnectionInterrupted):
            next(pieces)


@pytest.mark.parametrize("end", [Disconnect(), Reset()], ids=repr)
def test_connection_that_is_closed_during_the_tls_handshake_is_not_a_tls_error(
    end: Disconnect | Reset,
) -> None:
    with ByteServer(on_connect=(Receive(), end)) as server:
        with pytest.raises(ConnectError) as caught:
            Urllib3Transport().send(get(server.url.replace("http:", "https:")))
        assert type(caught.value) is ConnectError


# --- responses


def chunked(body: bytes) -> ServerSteps:
    return (head("200 OK", [("Transfer-Encoding", "chunked")]), Write(body), Disconnect())


@pytest.mark.parametrize(
    "steps",
    [
        (Write(b"\x00\xff"), Disconnect()),
        (Write(b"ICY 200 OK"), Disconnect()),
        (Write(b"HTTP/2.0 200 OK\r\n\r\n"), Disconnect()),
        (head("101 Switching Protocols"), *OK),
        (
            head("200 OK", [("Content-Length", "4"), ("Content-Encoding", "br")]),
            Write(b"body"),
            Disconnect(),
        ),
        chunked(b"-4\r\nbody\r\n0\r\n\r\n"),
        chunked(b"0_4\r\nbody\r\n0\r\n\r\n"),
        chunked(b"xyz\r\nbody\r\n0\r\n\r\n"),
        chunked(b"\r\nbody\r\n0\r\n\r\n"),
        chunked(b"3\r\nbody\r\n0\r\n\r\n"),
        chunked(b"4;" + b"x" * 70_000 + b"\r\nbody\r\n0\r\n\r\n"),
    ],
    ids=lambda steps: str(b"".join(step.data for step in steps if isinstance(step, Write))[-25:]),
)
def test_invalid_http_is_a_protocol_error(steps: ServerSteps) -> None:
    with ByteServer(steps) as server, pytest.raises(ProtocolError):
        fetch_sync(Urllib3Transport(), get(server.url))


def test_connection_of_a_request_that_was_rejected_early_is_not_reused() -> None:
    rejection = http_response(b"too large", status="413 Content Too Large")
    transport, connections = Urllib3Transport(), list[socket.socket]()
    with early_server(to_bytes(rejection), connections) as url:
        for _ in range(2):
            response = transport.send(post(url, bytes(16_000_000)))
            assert response.status_code == 413
            assert list(Pieces(response.body)) == [b"too large"]
        assert len(connections) == 2


def test_interim_response_that_arrives_during_a_large_request_is_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server reads the request only after the client waits until it can send more bytes."""
    wait, has_waited = sending.wait, Event()

    def tell_and_wait(*args: Any, **options: Any) -> tuple[bool, bool]:
        has_waited.set()
        return wait(*args, **options)

    class UntilTheClientWaits(Event):
        def set(self) -> None:
            assert has_waited.wait(DEFAULT_TIMEOUT)

    monkeypatch.setattr(sending, "wait", tell_and_wait)
    body, interim = bytes(16_000_000), Write(b"HTTP/1.1 102 Processing\r\n\r\n")
    with ByteServer(OK, on_connect=(interim, Signal(UntilTheClientWaits()))) as server:
        assert fetch_sync(Urllib3Transport(), post(server.url, body)) == b"ok"
        is_complete = server.requests[0].body == body
    assert is_complete


def test_incomplete_chunk_is_yielded_when_its_bytes_arrive() -> None:
    start, *_ = chunked(b"")
    with ByteServer(
        (start, Write(b"9\r\nfirst"), WaitForRelease(), Write(b"last\r\n0\r\n\r\n"))
    ) as server:
        pieces = Pieces(Urllib3Transport().send(get(server.url)).body)
        assert next(pieces) == b"first"
        server.release()
        assert list(pieces) == [b"last"]


def test_large_chunk_is_yielded_in_pieces() -> None:
    content = bytes(200_000)
    with ByteServer(http_response(content, framing="chunked")) as server:
        pieces = list(Pieces(Urllib3Transport().send(get(server.url)).body))
        assert b"".join(pieces) == content
        assert max(len(piece) for piece in pieces) <= 64 * 1024
