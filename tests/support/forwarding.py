"""The server of the test proxies: a thread for each connection, which may forward its bytes."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any


class ProxyServer(ThreadingTCPServer):
    """A server on a port of 127.0.0.1. It calls `serve` in a thread for each connection."""

    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        super().__init__(("127.0.0.1", 0), BaseRequestHandler)
        self._serve = serve
        self.address = f"127.0.0.1:{self.server_address[1]}"

    def start(self) -> None:
        """Accept connections in another thread."""
        Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def finish_request(self, request: Any, client_address: Any) -> None:
        self._serve(request)

    def stop(self, connections: list[socket.socket]) -> None:
        """Shut down the open connections, and wait for the threads of all connections."""
        self.shutdown()
        for connection in tuple(connections):
            shut_down(connection)
        self.server_close()


def forward(source: socket.socket, target: socket.socket) -> None:
    """Forward bytes until `source` is closed or reset, and shut down both connections."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    shut_down(source)
    shut_down(target)


def shut_down(connection: socket.socket) -> None:
    """Shut down a connection, and wake the threads that use it."""
    # SSLSocket.shutdown() would remove the TLS layer while another thread reads.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
