"""Ports for servers that cannot listen on port 0 or report their port."""

from __future__ import annotations

import socket


def reserved_port() -> int:
    """Return a port of 127.0.0.1 that no socket gets by chance for a minute.

    An ended connection of the port is in the state TIME-WAIT. Meanwhile, the system gives the port
    only to a server that asks for it with `SO_REUSEADDR`.
    """
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
    ):
        accepted, _ = listener.accept()
        accepted.close()  # before the client, so that the server's side waits
        assert client.recv(1) == b""
        return int(listener.getsockname()[1])
