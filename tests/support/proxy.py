"""A real HTTP proxy for tests: it forwards requests, and opens tunnels by CONNECT."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any, final
from urllib.parse import urlsplit

from attrs import frozen

from flux0.domain.headers import Headers

_PATIENCE = 10.0  # Seconds for a connection to the server; only a failing test waits so long.


@frozen
class ProxiedRequest:
    """A request as the proxy received it; `target` is a URL, or host and port of a tunnel."""

    method: str
    target: str
    headers: Headers


@final
class Proxy:
    """A context manager: an HTTP proxy on a port of 127.0.0.1.

    What a server sends is passed on as it comes, and when one side ends or breaks off, so does the
    connection to the other. So it is the server that decides how an exchange goes wrong.

    Args:
        refusal: a status such as "407 Proxy Authentication Required" that answers all requests.
        tls: how to secure the connections to the proxy itself.

    Attributes:
        url: where it is.
        requests: the requests so far, tunnels among them, in order.
    """

    def __init__(self, *, refusal: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._refusal = refusal
        self._tls = tls
        self._open: list[socket.socket] = []
        self._server = _Server(("127.0.0.1", 0), self._serve)
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self.requests: tuple[ProxiedRequest, ...] = ()

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        for connection in tuple(self._open):
            _end(connection)
        self._server.server_close()  # This waits for the conversations.

    def _serve(self, plain: socket.socket) -> None:
        # OSError: either side broke off, or the client did not shake hands.
        with contextlib.suppress(OSError), contextlib.ExitStack() as ending:
            self._keep(plain, ending)
            client = plain
            if self._tls is not None:
                client = self._keep(self._tls.wrap_socket(plain, server_side=True), ending)
            self._converse(client, ending)

    def _keep(self, connection: socket.socket, ending: contextlib.ExitStack) -> socket.socket:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open.append(connection)
        ending.callback(connection.close)
        ending.callback(_end, connection)
        return connection

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
            self.requests += (ProxiedRequest(method, target, headers),)
            if self._refusal is not None:
                client.sendall(f"HTTP/1.1 {self._refusal}\r\nContent-Length: 0\r\n\r\n".encode())
                return
            if method == "CONNECT":
                server = self._connect(f"//{target}", client, ending)
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                server.sendall(unread)
                _pass_on(client, server)
                return
            url = urlsplit(target)
            if url.netloc != origin:
                server, origin = self._connect(target, client, ending), url.netloc
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

    def _connect(
        self, url: str, client: socket.socket, ending: contextlib.ExitStack
    ) -> socket.socket:
        """Return a connection to a server, from which all is passed on to the client."""
        parts = urlsplit(url)
        server = socket.create_connection((parts.hostname or "", parts.port or 80), _PATIENCE)
        server.settimeout(None)
        passing_on = threading.Thread(target=_pass_on, args=(server, client), daemon=True)
        ending.callback(passing_on.join)
        self._keep(server, ending)
        passing_on.start()
        return server


class _Server(ThreadingTCPServer):
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], serve: Any) -> None:
        super().__init__(address, BaseRequestHandler)
        self._serve = serve

    def finish_request(self, request: Any, client_address: Any) -> None:
        self._serve(request)


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
