"""A real HTTP proxy for tests: it forwards requests, and opens tunnels by CONNECT."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from attrs import frozen

from flux0.domain.headers import Headers

if TYPE_CHECKING:
    from typing_extensions import Self

_PATIENCE = 10.0  # Seconds for a connection to the server; only a failing test waits so long.


@frozen
class ProxiedRequest:
    """A request as the proxy received it; `target` is a URL, or host and port of a tunnel."""

    method: str
    target: str
    headers: Headers


class Proxy:
    """A context manager: an HTTP proxy on a port of 127.0.0.1.

    What a server sends is passed on as it comes, and when one side ends or breaks off, so does the
    connection to the other. So it is the server that decides how an exchange goes wrong.

    Args:
        refusal: a status such as "407 Proxy Authentication Required" that answers all requests.
        tls: how to secure the connections to the proxy itself.

    Attributes:
        url: where it is.
    """

    def __init__(self, *, refusal: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._refusal = refusal
        self._tls = tls
        self._lock = threading.Lock()
        self._requests: list[ProxiedRequest] = []
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def requests(self) -> tuple[ProxiedRequest, ...]:
        """The requests so far, tunnels among them, in order."""
        with self._lock:
            return tuple(self._requests)

    def __enter__(self) -> Self:
        self._run(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _end(self._listener)
        self._threads[0].join()
        for connection in self._sockets:
            _end(connection)
        for thread in self._threads[1:]:
            thread.join()
        for connection in (self._listener, *self._sockets):
            connection.close()

    def _run(self, act: Callable[[], None]) -> None:
        thread = threading.Thread(target=act, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _keep(self, connection: socket.socket) -> socket.socket:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._sockets.append(connection)
        return connection

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # The listener was shut down.
            while True:
                plain = self._keep(self._listener.accept()[0])
                self._run(partial(self._serve, plain))

    def _serve(self, plain: socket.socket) -> None:
        # OSError: either side broke off, or the client did not shake hands.
        with contextlib.suppress(OSError), contextlib.ExitStack() as ending:
            ending.callback(_end, plain)
            client = plain
            if self._tls is not None:
                client = self._keep(self._tls.wrap_socket(plain, server_side=True))
                ending.callback(_end, client)
            self._converse(client, ending)

    def _converse(self, client: socket.socket, ending: contextlib.ExitStack) -> None:
        server, origin, unread = client, "", b""
        while True:
            while b"\r\n\r\n" not in unread:
                data = client.recv(65536)
                if not data:
                    return
                unread += data
            head, _, unread = unread.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            method, target, version = first.split(" ")
            fields = (line.split(":", 1) for line in lines)
            headers = Headers(tuple((name, value.strip()) for name, value in fields))
            with self._lock:
                self._requests.append(ProxiedRequest(method, target, headers))
            if self._refusal is not None:
                client.sendall(f"HTTP/1.1 {self._refusal}\r\nContent-Length: 0\r\n\r\n".encode())
                return
            if method == "CONNECT":
                server = self._connect(f"//{target}", ending)
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                self._run(partial(_pass_on, server, client))
                server.sendall(unread)
                _pass_on(client, server)
                return
            url = urlsplit(target)
            if url.netloc != origin:
                server, origin = self._connect(target, ending), url.netloc
                self._run(partial(_pass_on, server, client))
            path = f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"
            start = "\r\n".join((f"{method} {path} {version}", *lines))
            server.sendall(f"{start}\r\n\r\n".encode("latin-1"))
            left = int(headers.get("content-length", "0"))
            while left:
                piece = unread[:left] or client.recv(min(left, 65536))
                if not piece:
                    return
                unread = unread[len(piece) :]
                left -= len(piece)
                server.sendall(piece)

    def _connect(self, url: str, ending: contextlib.ExitStack) -> socket.socket:
        parts = urlsplit(url)
        server = socket.create_connection((parts.hostname or "", parts.port or 80), _PATIENCE)
        server.settimeout(None)
        ending.callback(_end, server)
        return self._keep(server)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """Copy until the source's end or break, and end both."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    _end(source)
    _end(target)


def _end(connection: socket.socket) -> None:
    # The plain socket's method: that of SSLSocket drops the TLS layer under a reader.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
