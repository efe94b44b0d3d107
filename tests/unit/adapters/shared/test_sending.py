"""Sending, and waiting for sockets."""

from __future__ import annotations

import resource
import select
import socket
from concurrent.futures import ThreadPoolExecutor
from fcntl import F_DUPFD, fcntl
from threading import Event

import pytest

from flux0.adapters.shared.sending import send_all, wait

SIZE = 10_000_000
TOO_LONG = 20.0


@pytest.fixture(params=[True, False], ids=["poll", "select"])
def _has_poll(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `select.poll`, sockets are awaited as under Windows."""
    if not request.param:
        monkeypatch.delattr(select, "poll")


@pytest.mark.usefixtures("_has_poll")
def test_closed_socket_ends_a_wait() -> None:
    """A signal handler or another thread may close the socket before the wait begins."""
    with socket.socket() as sock:
        pass
    assert wait(sock, None, read=True, write=True) == (True, True)


@pytest.mark.usefixtures("_has_poll")
@pytest.mark.parametrize("timeout", [0, TOO_LONG, None])
def test_wait_ends_when_the_socket_is_readable_or_writable(timeout: float | None) -> None:
    """Only the requested states end the wait."""
    sock, other = socket.socketpair()
    with sock, other:
        assert wait(sock, timeout, write=True) == (False, True)
        assert wait(sock, 0.01, read=True) == (False, False)
        assert wait(sock, timeout, read=True, write=True) == (False, True)
        other.send(b"x")
        assert wait(sock, timeout, read=True) == (True, False)
        assert wait(sock, timeout, write=True) == (False, True)
        assert wait(sock, timeout, read=True, write=True) == (True, True)


def test_socket_whose_descriptor_is_over_1023_is_awaited() -> None:
    """`select.select` raises ValueError for this descriptor, as for a closed socket."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], 4096), limits[1]))
    sock, other = socket.socketpair()
    try:
        with sock, other, socket.socket(fileno=fcntl(sock, F_DUPFD, 1024)) as same:
            assert wait(same, 0.01, read=True) == (False, False)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("_has_poll")
def test_response_is_received_while_a_request_is_sent_until_receive_returns_true() -> None:
    sending, server = socket.socketpair()
    received, is_complete = list[bytes](), Event()

    def receive() -> bool:
        received.append(sending.recv(1))  # The socket stays readable.
        if len(received) == 2:
            is_complete.set()
        return is_complete.is_set()

    def read() -> int:
        assert is_complete.wait(TOO_LONG)
        size = 0
        while size < SIZE:
            piece = server.recv(100_000)
            assert piece
            size += len(piece)
        return size

    with server, ThreadPoolExecutor(1) as threads:
        server.sendall(b"HTTP/1.1 413 Content Too Large")
        reading = threads.submit(read)
        with sending:
            send_all(sending, b"x" * SIZE, TOO_LONG, receive)
            assert reading.result(TOO_LONG) == SIZE
    assert received == [b"H", b"T"]


@pytest.mark.usefixtures("_has_poll")
@pytest.mark.parametrize("response", [b"", b"HTTP/1.1 200 OK"])
def test_request_that_the_server_does_not_accept_times_out(response: bytes) -> None:
    """The socket stays readable after the response, but the wait is for sending only."""
    sending, server = socket.socketpair()
    with sending, server:
        server.sendall(response)
        with pytest.raises(TimeoutError):
            send_all(sending, b"x" * SIZE, 0.01, lambda: True)
