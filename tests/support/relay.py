"""A way to the server on which the connections are counted."""

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
    """A context manager: passes bytes on to and fro, on a port of its own."""

    def __init__(self, port: int) -> None:
        self._listener = _Listener(port)

    @property
    def url(self) -> str:
        """The server's address by way of here, without a path."""
        return f"http://{_HOST}:{self._listener.server_address[1]}"

    @property
    def connections(self) -> int:
        """How many connections have been made so far."""
        return self._listener.connections

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


class _Connection(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        listener = cast("_Listener", self.server)
        listener.connections += 1
        ours: socket.socket = self.request
        with socket.create_connection((_HOST, listener.target_port)) as theirs:
            for end in (ours, theirs):  # Else small pieces wait for each other's receipts.
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            answering = threading.Thread(target=_pass_on, args=(theirs, ours))
            answering.start()
            _pass_on(ours, theirs)
            answering.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """Copy until the source's end, and end the target."""
    with contextlib.suppress(OSError):  # Either side may break off.
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
