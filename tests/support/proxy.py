"""An HTTP proxy for tests: it forwards requests, and opens tunnels (CONNECT)."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from typing import final
from urllib.parse import urlsplit

from attrs import frozen

from flux0.domain.headers import Headers
from support.forwarding import ProxyServer, forward, shut_down

_TIMEOUT = 10.0  # Seconds to connect to the server. Only a failing test waits this long.


@frozen
class ProxiedRequest:
    """A request to the proxy; `target` is a URL, or the host and port of a tunnel."""

    method: str
    target: str
    headers: Headers


@final
class Proxy:
    """A context manager: an HTTP proxy on a port of 127.0.0.1.

    Bytes are forwarded immediately. When one side closes or resets its connection, the proxy closes
    the other connection. So the server of a test determines how an exchange fails.

    Args:
        refusal: The status of each response, such as "407 Proxy Authentication
            Required". By default, requests are forwarded.
        tls: The context for TLS connections to the proxy; None for plain HTTP.

    Attributes:
        url: The proxy's URL.
        requests: The received requests, including CONNECT, in order.
    """

    def __init__(self, *, refusal: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._refusal = refusal
        self._tls = tls
        self._open: list[socket.socket] = []
        self._server = ProxyServer(self._serve)
        self.url = f"{'http' if tls is None else 'https'}://{self._server.address}"
        self.requests: tuple[ProxiedRequest, ...] = ()

    def __enter__(self) -> Proxy:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(self._open)

    def _serve(self, plain: socket.socket) -> None:
        # OSError: a connection was reset, or the TLS handshake failed.
        with contextlib.suppress(OSError), contextlib.ExitStack() as ending:
            self._register(plain, ending)
            client = plain
            if self._tls is not None:
                client = self._register(self._tls.wrap_socket(plain, server_side=True), ending)
            self._handle(client, ending)

    def _register(self, connection: socket.socket, ending: contextlib.ExitStack) -> socket.socket:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open.append(connection)
        ending.callback(connection.close)
        ending.callback(shut_down, connection)
        return connection

    def _handle(self, client: socket.socket, ending: contextlib.ExitStack) -> None:
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
                forward(client, server)
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
        """Connect to a server, and start to forward its bytes to the client."""
        parts = urlsplit(url)
        server = socket.create_connection((parts.hostname or "", parts.port or 80), _TIMEOUT)
        server.settimeout(None)
        forwarding = threading.Thread(target=forward, args=(server, client), daemon=True)
        ending.callback(forwarding.join)
        self._register(server, ending)
        forwarding.start()
        return server
