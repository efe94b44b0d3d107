"""A server for tests that writes exactly the bytes it is told, and sees what clients do."""

from __future__ import annotations

import selectors
import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from threading import Condition, Thread
from time import monotonic
from typing import final

from attrs import frozen

from flux0.domain.headers import Headers
from flux0.testing.contract.responses import (
    Answer,
    Disconnect,
    Hold,
    Receive,
    Signal,
    Silence,
    Write,
)

# Seconds to wait for what takes milliseconds; only a failing test waits so long.
PATIENCE = 10.0

# select() knows no descriptor above 1,023, and epoll() takes one more for each wait.
_Selector: type[selectors.BaseSelector] = getattr(
    selectors, "PollSelector", selectors.SelectSelector
)


@frozen
class ReceivedRequest:
    """One request as it arrived: `target` and `headers` as written, `body` whole."""

    method: str
    target: str
    headers: Headers
    body: bytes


@final
class ByteServer:
    """A server on a port of 127.0.0.1 that runs as long as its `with` block.

    The first request is answered by the first of `answers`, and so on. The last of them answers all
    requests that follow.

    Args:
        answers: what is done after each request.
        unasked: what is done first on every connection.
        tls: how to secure connections.
        patience: how many seconds the methods that wait do so, before they fail.
    """

    def __init__(
        self,
        *answers: Answer,
        unasked: Answer = (),
        tls: ssl.SSLContext | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self._answers = answers
        self._unasked = unasked
        self._tls = tls
        self._patience = patience
        self._changed = Condition()
        self._requests: list[ReceivedRequest] = []
        self._sockets: set[socket.socket] = set()
        self._conversations: list[Thread] = []
        # A socket that becomes readable, so that a thread can wait for it and a client at once.
        self._released, self._release = socket.socketpair()
        # A connection that finds the queue full is reset, and clients make hundreds at once.
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._accepting = Thread(target=self._accept, daemon=True)
        self._over = False
        self.host: str = "127.0.0.1"
        self.port: int = self._listener.getsockname()[1]
        self.url: str = f"{'https' if tls else 'http'}://{self.host}:{self.port}"

    def __enter__(self) -> ByteServer:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._over = True
        socket.create_connection((self.host, self.port)).close()  # Wakes the thread that accepts.
        self._accepting.join()
        with self._changed:
            for connection in self._sockets:
                _shut_down(connection, socket.SHUT_RDWR)
        for conversation in self._conversations:
            conversation.join()
        for end in (self._listener, self._released, self._release):
            end.close()

    @property
    def requests(self) -> tuple[ReceivedRequest, ...]:
        """The requests that have arrived, in order."""
        return tuple(self._requests)

    @property
    def connections(self) -> int:
        """How many connections were ever made."""
        return len(self._conversations)

    @property
    def open_connections(self) -> int:
        """How many connections are still open."""
        return len(self._sockets)

    def release(self) -> None:
        """Let every `Hold` pass, now and from now on."""
        self._release.send(b"x")

    def wait_for_requests(self, count: int) -> None:
        """Wait until `count` whole requests have arrived; AssertionError if they do not."""
        self._wait(lambda: len(self._requests) >= count, f"{count} requests")

    def wait_until_gone(self, *, but: int = 0) -> None:
        """Wait until the clients have closed all their connections, or all but `but` of them."""
        self._wait(lambda: len(self._sockets) <= but, "the client to close its connections")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        with self._changed:
            met = self._changed.wait_for(condition, self._patience)
            seen = f"{len(self._requests)} requests, {len(self._sockets)} open connections"
        if not met:
            raise AssertionError(f"waited {self._patience} s for {what}; there are {seen}")

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self._over:
                connection.close()
                return
            with suppress(OSError):  # The client may be gone already.
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls is not None:
                    wrap = self._tls.wrap_socket
                    connection = wrap(connection, server_side=True, do_handshake_on_connect=False)
                conversation = Thread(target=self._converse, args=(connection,), daemon=True)
                with self._changed:
                    self._sockets.add(connection)
                    self._conversations.append(conversation)
                conversation.start()

    def _converse(self, connection: socket.socket) -> None:
        # OSError: the client broke off, or refused the certificate. EOFError: it is done.
        with suppress(OSError, EOFError):
            conversation = _Conversation(connection, self._released)
            conversation.follow(self._unasked)
            if isinstance(connection, ssl.SSLSocket):
                connection.do_handshake()
            while True:
                request = conversation.read_request()
                with self._changed:
                    answer = self._answers[min(len(self._requests), len(self._answers) - 1)]
                    self._requests.append(request)
                    self._changed.notify_all()
                conversation.follow(answer)
        connection.close()
        with self._changed:
            self._sockets.discard(connection)
            self._changed.notify_all()


class _Conversation:
    """Reads requests and follows steps until the connection is over, which is an EOFError."""

    def __init__(self, connection: socket.socket, released: socket.socket) -> None:
        self._connection = connection
        self._released = released
        self._unread = b""

    def read_request(self) -> ReceivedRequest:
        while b"\r\n\r\n" not in self._unread:
            self._receive()
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        request_line, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = request_line.split(" ")
        fields = (line.split(":", 1) for line in lines)
        headers = Headers(tuple((name, value.strip()) for name, value in fields))
        size = int(headers.get("content-length", "0"))
        while len(self._unread) < size:
            self._receive()
        body, self._unread = self._unread[:size], self._unread[size:]
        return ReceivedRequest(method, target, headers, body)

    def follow(self, steps: Answer) -> None:  # noqa: PLR0912 - one for each kind of step
        for step in steps:
            match step:
                case Write(data, below_tls=True):
                    socket.socket.sendall(self._connection, data)
                case Write(data):
                    self._connection.sendall(data)
                case Hold():
                    while self._released not in self._readable():
                        self._receive()
                case Silence(seconds):
                    end = monotonic() + seconds
                    while self._readable(end - monotonic()):
                        self._receive()
                case Receive():
                    while not self._unread:
                        self._receive()
                case Signal(event):
                    event.set()
                case Disconnect():
                    _shut_down(self._connection, socket.SHUT_WR)
                    while True:  # Closing at once would reset what the client has not read yet.
                        self._receive()
                case _:  # Reset
                    linger = struct.pack("ii", 1, 0)
                    self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    raise EOFError

    def _receive(self) -> None:
        data = self._connection.recv(65536)
        if not data:
            raise EOFError
        self._unread += data

    def _readable(self, timeout: float | None = None) -> set[object]:
        """Wait for the client until `timeout`, or else for a release too; return what is there."""
        ends = (self._connection,) if timeout is not None else (self._connection, self._released)
        with _Selector() as selector:
            for end in ends:
                selector.register(end, selectors.EVENT_READ)
            return {key.fileobj for key, _ in selector.select(timeout)}


def _shut_down(connection: socket.socket, how: int) -> None:
    # The plain socket's method: that of SSLSocket would drop the TLS layer under a reader.
    with suppress(OSError):
        socket.socket.shutdown(connection, how)
