"""An HTTP server for tests: it sends exact bytes and records requests and connections."""

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
    Disconnect,
    Receive,
    ServerSteps,
    Signal,
    Sleep,
    WaitForRelease,
    Write,
)

# The default timeout of `ByteServer` and `Contract`, in seconds. The events for which they wait
# take milliseconds, so only a failing test waits until the timeout expires.
DEFAULT_TIMEOUT = 10.0

# Prefer poll(): select() rejects file descriptors above 1,023, and epoll() occupies a file
# descriptor. Windows has only select().
_Selector: type[selectors.BaseSelector] = getattr(
    selectors, "PollSelector", selectors.SelectSelector
)


@frozen
class ReceivedRequest:
    """A request as the server received it.

    Attributes:
        method: the request's HTTP method.
        target: the request's path with its query.
        headers: the request's header fields, unchanged.
        body: the request's complete body.
    """

    method: str
    target: str
    headers: Headers
    body: bytes


@final
class ByteServer:
    """A server on a free port of `host` that runs until the end of its `with` block.

    It handles the first request with the first of `responses`, the second request with the second
    of `responses`, and so on, across all connections. If there are more requests, it handles them
    with the last of `responses`.

    Args:
        responses: The steps that handle each request, such as `http_response(b"ok")`.
        on_connect: The steps that run on each new connection, before the first request is read.
        tls: The context for TLS connections; None for plain HTTP.
        timeout: Seconds after which the `wait_` methods raise AssertionError.
        host: The IPv4 or IPv6 address to listen on.

    Attributes:
        host: the IP address on which the server listens.
        port: the TCP port on which the server listens.
        url: the server's URL, without a path.
    """

    def __init__(
        self,
        *responses: ServerSteps,
        on_connect: ServerSteps = (),
        tls: ssl.SSLContext | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        host: str = "127.0.0.1",
    ) -> None:
        self._responses = responses
        self._on_connect = on_connect
        self._tls = tls
        self._timeout = timeout
        self._changed = Condition()
        self._requests: list[ReceivedRequest] = []
        self._sockets: set[socket.socket] = set()
        self._conversations: list[Thread] = []
        # `release` writes to this pair of sockets, so that select() can wait for `release` and for
        # bytes from the client at the same time.
        self._released, self._release = socket.socketpair()
        # The queue of new connections (`backlog`) must be long: some tests open hundreds of
        # connections at the same time, and the system resets new connections if the queue is full.
        is_ipv6 = ":" in host
        family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=1024)
        self._accepting = Thread(target=self._accept, daemon=True)
        self._closed = False
        self.host: str = host
        self.port: int = self._listener.getsockname()[1]
        netloc = f"[{host}]:{self.port}" if is_ipv6 else f"{host}:{self.port}"
        self.url: str = f"{'https' if tls else 'http'}://{netloc}"

    def __enter__(self) -> ByteServer:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._closed = True
        # Connect to this server, to wake the thread that waits for a connection in `_accept`.
        socket.create_connection((self.host, self.port)).close()
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
        """The complete requests that the server has received, in order."""
        return tuple(self._requests)

    @property
    def connections(self) -> int:
        """The number of connections that clients have opened so far."""
        return len(self._conversations)

    @property
    def open_connections(self) -> int:
        """The number of connections that are open now."""
        return len(self._sockets)

    def release(self) -> None:
        """End each `WaitForRelease` step, including steps that begin after this call."""
        self._release.send(b"x")

    def wait_for_requests(self, count: int) -> None:
        """Wait until the server has received `count` complete requests.

        Raises:
            AssertionError: The timeout expired.
        """
        self._wait(lambda: len(self._requests) >= count, f"{count} requests")

    def wait_until_closed(self, *, max_open: int = 0) -> None:
        """Wait until at most `max_open` connections are open; clients must close the others.

        Raises:
            AssertionError: The timeout expired.
        """
        awaited = f"the client to close its connections (at most {max_open} may stay open)"
        self._wait(lambda: len(self._sockets) <= max_open, awaited)

    def _wait(self, condition: Callable[[], bool], awaited: str) -> None:
        with self._changed:
            met = self._changed.wait_for(condition, self._timeout)
            seen = f"{len(self._requests)} requests, {len(self._sockets)} open connections"
        if not met:
            raise AssertionError(f"waited {self._timeout} s for {awaited}; the server has {seen}")

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self._closed:
                connection.close()
                return
            with suppress(OSError):  # Ignore the OSError of a client that has already disconnected.
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
        # Python raises OSError if the client resets the connection or rejects the certificate.
        # `_receive` raises EOFError if the client has closed the connection.
        with suppress(OSError, EOFError):
            conversation = _Conversation(connection, self._released)
            conversation.perform(self._on_connect)
            if isinstance(connection, ssl.SSLSocket):
                connection.do_handshake()
            while True:
                request = conversation.read_request()
                with self._changed:
                    number = min(len(self._requests), len(self._responses) - 1)
                    self._requests.append(request)
                    self._changed.notify_all()
                conversation.perform(self._responses[number])
        connection.close()
        with self._changed:
            self._sockets.discard(connection)
            self._changed.notify_all()


class _Conversation:
    """Reads requests from one connection, and performs the scripted steps, such as `Write`.

    The methods raise EOFError when the client closes the connection.
    """

    def __init__(self, connection: socket.socket, released: socket.socket) -> None:
        self._connection = connection
        self._released = released
        self._unread = bytearray()

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
        body, self._unread = bytes(self._unread[:size]), self._unread[size:]
        return ReceivedRequest(method, target, headers, body)

    def perform(self, steps: ServerSteps) -> None:  # noqa: PLR0912 - one branch for each step
        for step in steps:
            match step:
                case Write(data, below_tls=True):
                    socket.socket.sendall(self._connection, data)
                case Write(data):
                    self._connection.sendall(data)
                case WaitForRelease():
                    while self._released not in self._readable():
                        self._receive()
                case Sleep(seconds):
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
                    # Read until the client closes the connection. If close() finds unread bytes,
                    # the system resets the connection, and the client can lose bytes that this
                    # server has sent.
                    while True:
                        self._receive()
                case _:  # The step is a `Reset`: the cases above handle all other steps.
                    linger = struct.pack("ii", 1, 0)
                    self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    raise EOFError

    def _receive(self) -> None:
        data = self._connection.recv(65536)
        if not data:
            raise EOFError
        self._unread += data

    def _readable(self, timeout: float | None = None) -> set[object]:
        sockets = (self._connection,) if timeout is not None else (self._connection, self._released)
        with _Selector() as selector:
            for each in sockets:
                selector.register(each, selectors.EVENT_READ)
            return {key.fileobj for key, _ in selector.select(timeout)}


def _shut_down(connection: socket.socket, how: int) -> None:
    # Call `socket.shutdown` instead of `SSLSocket.shutdown`, which also removes the TLS layer,
    # although another thread can be reading from the connection.
    with suppress(OSError):
        socket.socket.shutdown(connection, how)
