"""`ByteServer`, seen by a client that is a plain socket."""

from __future__ import annotations

import os
import resource
import socket
import ssl
import zlib
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from threading import Event

import pytest

from flux0.testing.contract.byte_server import ByteServer, ReceivedRequest
from flux0.testing.contract.responses import (
    Disconnect,
    Framing,
    Receive,
    Reset,
    ServerSteps,
    Signal,
    Sleep,
    WaitForRelease,
    Write,
    byte_by_byte,
    http_response,
    size,
    to_bytes,
    truncated,
)
from support.secured import Secured

GET = b"GET /a%20b?c HTTP/1.1\r\nHost: x\r\nX-Tag: 1\r\nx-tag: 2\r\n\r\n"
OK = http_response(b"ok")


@contextmanager
def connected(server: ByteServer) -> Generator[socket.socket, None, None]:
    with socket.create_connection((server.host, server.port), timeout=10) as connection:
        yield connection


@contextmanager
def after_get(*responses: ServerSteps) -> Generator[tuple[ByteServer, socket.socket], None, None]:
    """Yield a server and a connection over which a GET has been sent."""
    with ByteServer(*responses) as server, connected(server) as connection:
        connection.sendall(GET)
        yield server, connection


def receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        assert piece, data
        data += piece
    return data


def receive_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    ("framing", "field", "body"),
    [
        (
            "chunked",
            b"Transfer-Encoding: chunked",
            b"12\r\n" + b"one" * 6 + b"\r\n3\r\ntwo\r\n0\r\n\r\n",
        ),
        ("content-length", b"Content-Length: 21", b"one" * 6 + b"two"),
        ("close-delimited", b"Connection: close", b"one" * 6 + b"two"),
    ],
)
def test_response_is_written_with_its_framing(framing: Framing, field: bytes, body: bytes) -> None:
    steps = http_response(
        b"one" * 6, b"two", framing=framing, status="201 Made", headers=[("X-A", "b")]
    )
    expected = b"HTTP/1.1 201 Made\r\nX-A: b\r\n" + field + b"\r\n\r\n" + body
    assert (size(steps), size(steps[1:])) == (len(expected), len(body))
    for each in (steps, byte_by_byte(steps)):
        with after_get(each) as (_, connection):
            assert receive(connection, size(each)) == expected
            assert framing != "close-delimited" or connection.recv(1) == b""


def test_each_gzip_piece_can_be_decompressed_when_it_arrives() -> None:
    start, *pieces = http_response(b"one", b"two", gzip=True)
    assert isinstance(start, Write)
    assert b"Content-Encoding: gzip\r\n" in start.data
    decompressor = zlib.decompressobj(wbits=31)
    sent = [piece.data for piece in pieces if isinstance(piece, Write)]
    assert [decompressor.decompress(data) for data in sent] == [b"one", b"two", b""]
    assert decompressor.eof


def test_response_can_be_truncated_anywhere() -> None:
    whole = to_bytes(http_response(b"one", b"two"))
    responses = [
        truncated(http_response(b"one", WaitForRelease(), b"two"), length)
        for length in range(len(whole))
    ]
    with ByteServer(*responses) as server:
        for length in range(len(whole)):
            with connected(server) as connection:
                connection.sendall(GET)
                assert receive_all(connection) == whole[:length]


def test_requests_are_recorded_unchanged() -> None:
    body = bytes(range(256))
    post = b"POST / HTTP/1.1\r\nContent-Length: 256\r\n\r\n" + body
    with ByteServer(OK) as server, connected(server) as connection:
        for part in (GET[:20], GET[20:] + post[:50], post[50:]):
            connection.sendall(part)
        server.wait_for_requests(2)
        first, second = server.requests
        assert isinstance(first, ReceivedRequest)
        assert (first.method, first.target, first.body) == ("GET", "/a%20b?c", b"")
        assert first.headers.pairs == (("Host", "x"), ("X-Tag", "1"), ("x-tag", "2"))
        assert (second.method, second.target, second.body) == ("POST", "/", body)
        assert server.connections == 1


def test_last_response_is_repeated() -> None:
    with after_get(http_response(b"1"), http_response(b"2")) as (_, connection):
        bodies: list[bytes] = []
        for _ in range(3):
            bodies.append(receive(connection, size(OK) - 1)[-1:])
            connection.sendall(GET)
        assert bodies == [b"1", b"2", b"2"]


def test_wait_for_release_ends_with_release() -> None:
    with after_get((Write(b"a"), WaitForRelease(), Write(b"b"))) as (server, connection):
        assert receive(connection, 1) == b"a"
        connection.sendall(GET)
        connection.settimeout(0.05)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(10)
        server.release()
        assert receive(connection, 3) == b"bab", "after a release, no step waits"


def test_waits_end_when_the_client_closes_the_connection() -> None:
    for steps in ((WaitForRelease(), Write(b"never")), (Sleep(60),)):
        with ByteServer(steps) as server:
            with connected(server) as connection:
                connection.sendall(GET)
                server.wait_for_requests(1)
                assert server.open_connections == 1
            server.wait_until_closed()
            assert (server.open_connections, server.connections) == (0, 1)


def test_sleep_ends_after_its_seconds() -> None:
    with after_get((Write(b"a"), Sleep(0.01), Write(b"b"))) as (_, connection):
        assert receive(connection, 2) == b"ab"


def test_on_connect_steps_run_before_the_request() -> None:
    with ByteServer(OK, on_connect=(Write(b"hello"),)) as server, connected(server) as connection:
        assert receive(connection, 5) == b"hello"
        connection.sendall(GET)
        assert receive(connection, size(OK))[-2:] == b"ok"


def test_receive_waits_for_the_next_bytes() -> None:
    begun = Event()
    steps = (Write(b"a"), Receive(), Signal(begun), Write(b"b"), Reset())
    with after_get(steps) as (server, connection):
        assert receive(connection, 1) == b"a"
        assert not begun.is_set()
        connection.sendall(b"P")
        assert begun.wait(10)
        server.wait_until_closed()
        assert len(server.requests) == 1


@pytest.fixture
def many_descriptors() -> Generator[None, None, None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], 4096), limits[1]))
    with ExitStack() as ending:
        ending.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        for _ in range(1100):
            ending.callback(os.close, os.dup(0))
        yield


@pytest.mark.usefixtures("many_descriptors")
def test_more_than_1024_descriptors_are_supported() -> None:
    with after_get((WaitForRelease(), *OK)) as (server, connection):
        assert connection.fileno() > 1024
        server.wait_for_requests(1)
        server.release()
        assert receive(connection, size(OK))[-2:] == b"ok"


def test_client_that_still_sends_can_read_all_bytes_before_a_disconnect() -> None:
    with after_get((Write(b"bye"), Disconnect())) as (_, connection):
        connection.sendall(GET)
        assert receive_all(connection) == b"bye"


def test_reset_step_resets_the_connection() -> None:
    with after_get((Reset(),)) as (server, connection):
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
        server.wait_until_closed()


def test_expired_wait_raises_an_error_with_the_state() -> None:
    with ByteServer(OK, timeout=0.05) as server, connected(server) as connection:
        connection.sendall(GET)
        assert receive(connection, size(OK))
        with pytest.raises(
            AssertionError, match=r"for 2 requests; the server has 1 requests, 1 open"
        ):
            server.wait_for_requests(2)
        with pytest.raises(AssertionError, match="for the client to close its connections"):
            server.wait_until_closed()
        server.wait_until_closed(max_open=1)


def test_tls_context_enables_https(secured: Secured) -> None:
    steps = (*OK, Write(b"noise noise noise", below_tls=True))
    with ByteServer(steps, tls=secured.server) as server:
        assert server.url == f"https://127.0.0.1:{server.port}"
        with (
            connected(server) as plain,
            secured.client.wrap_socket(plain, server_hostname="127.0.0.1") as client,
        ):
            client.sendall(GET)
            assert receive(client, size(OK))[-2:] == b"ok"
            with pytest.raises(ssl.SSLError):
                client.recv(1)


def test_exit_closes_connections_of_clients_that_do_not_read() -> None:
    with ExitStack() as clients:
        with ByteServer((WaitForRelease(), Write(bytes(64_000_000)))) as server:
            client = clients.enter_context(connected(server))
            client.sendall(GET)
            server.wait_for_requests(1)
        assert server.open_connections == 0
