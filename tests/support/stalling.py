"""A TCP proxy that stops forwarding bytes without closing its connections."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import final

from support.forwarding import ProxyServer, shut_down


@final
class Stalling:
    """A context manager: a proxy in front of a server on a port of 127.0.0.1.

    After `stall`, the open connections stay open, but the proxy drops all their bytes, like a load
    balancer that has dropped idle connections, or a host that has failed.

    Args:
        port: The server's port. New connections are forwarded to the present port.

    Attributes:
        port: The server's port.
        address: The host and port of the proxy.
    """

    def __init__(self, port: int) -> None:
        self.port: int = port
        self._server = ProxyServer(self._serve)
        self.address: str = self._server.address
        self._sockets: list[socket.socket] = []
        self._links: list[_Link] = []
        self._drops_new = False

    def __enter__(self) -> Stalling:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(self._sockets)

    @property
    def connections(self) -> int:
        """The number of connections that were opened."""
        return len(self._links)

    def stall(self, kind: str = "all", *, new: bool = False) -> None:
        """Drop the bytes of the open connections.

        Args:
            kind: "subscription" for connections that have subscribed, "commands" for the other
                connections, and "all" for all connections.
            new: Whether to drop also the bytes of connections that are opened later.
        """
        self._drops_new = new
        for link in tuple(self._links):
            if kind in ("all", link.kind):
                link.is_stalled = True

    def heal(self) -> None:
        """Forward the bytes of new connections again. Stalled connections stay stalled."""
        self._drops_new = False

    def _serve(self, client: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port)) as server,
        ):
            link = _Link(is_stalled=self._drops_new)
            self._links.append(link)
            self._sockets += (client, server)
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            back = threading.Thread(target=link.forward, args=(server, client), daemon=True)
            back.start()
            link.forward(client, server)
            back.join()


@final
class _Link:
    def __init__(self, *, is_stalled: bool) -> None:
        self.is_stalled = is_stalled
        self.kind = "commands"

    def forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if b"SUBSCRIBE" in data:
                    self.kind = "subscription"
                if not self.is_stalled:
                    target.sendall(data)
        # A connection that is stalled has no end for the other side.
        if not self.is_stalled:
            shut_down(source)
            shut_down(target)
