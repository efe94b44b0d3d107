"""A server that responds to each request before it has read the request."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress


@contextmanager
def early_server(
    response: bytes,
    connections: list[socket.socket],
    *,
    closes: bool = False,
    tls: ssl.SSLContext | None = None,
) -> Generator[str, None, None]:
    """Yield the URL of a server that responds to the first bytes of a request.

    The server does not read the remaining bytes. Therefore closing the connection resets it, and
    the client cannot send the whole request.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):  # The listener was shut down.
                while True:
                    connection, _ = listener.accept()
                    if tls is not None:
                        connection = tls.wrap_socket(connection, server_side=True)
                    connections.append(connection)
                    connection.recv(1)
                    connection.sendall(response)
                    if closes:
                        connection.close()

        serving = threading.Thread(target=serve, daemon=True)
        serving.start()
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        serving.join()
        for connection in connections:
            connection.close()
