"""A TCP relay that records the number of connections to a server, and can cut a connection."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from typing_extensions import Self

_HOST = "127.0.0.1"


class Relay:
    """A context manager: forwards connections to the port of a server, in both directions."""

    def __init__(self, port: int) -> None:
        self._listener = _Listener(port)

    @property
    def url(self) -> str:
        """The relay's URL, without a path."""
        return f"http://{_HOST}:{self._listener.server_address[1]}"

    @property
    def connections(self) -> int:
        """The number of connections that clients have opened so far."""
        return self._listener.connections

    def cut_before(self, marker: bytes) -> None:
        """Cut the first connection that transmits `marker`, in either direction, before `marker`.

        Later connections are not cut.
        """
        self._listener.marker = marker

    def forward_to(self, port: int) -> None:
        """Forward later connections to another port."""
        self._listener.target_port = port

    def __enter__(self) -> Self:
        threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown()
        self._listener.server_close()


class _Listener(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, target_port: int) -> None:
        super().__init__((_HOST, 0), _Connection)
        self.target_port = target_port
        self.connections = 0
        self.marker: bytes | None = None


class _Connection(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        listener = cast("_Listener", self.server)
        listener.connections += 1
        client: socket.socket = self.request
        try:
            server = socket.create_connection((_HOST, listener.target_port))
        except ConnectionRefusedError:
            return  # The server is not running. The client sees a closed connection.
        with server:
            for end in (client, server):
                # Without TCP_NODELAY, small pieces wait for acknowledgements.
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            responding = threading.Thread(target=self._forward, args=(server, client))
            responding.start()
            self._forward(client, server)
            responding.join()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        """Forward bytes until `source` is closed or cut, and shut down `target` for writing."""
        listener = cast("_Listener", self.server)
        with contextlib.suppress(OSError):  # Either side may reset its connection.
            while data := source.recv(65536):
                marker = listener.marker
                if marker is not None and marker in data:
                    listener.marker = None
                    target.sendall(data.partition(marker)[0])
                    source.shutdown(socket.SHUT_RDWR)
                    break
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
