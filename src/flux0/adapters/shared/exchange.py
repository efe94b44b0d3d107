"""The state of one exchange, which the adapters of all HTTP libraries record."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from functools import partial
from typing import Any

from flux0.ports import Request


def shut_down(connection: Any) -> None:
    """Shut a connection down and wake its reader; acquire no lock and never raise.

    `connection` is a socket, an event loop's replacement for a socket, or None.
    """
    with suppress(OSError):
        if isinstance(connection, socket.socket):
            # `SSLSocket.shutdown` would remove the TLS layer while another thread reads.
            socket.socket.shutdown(connection, socket.SHUT_RDWR)
        elif connection is not None:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except TypeError:  # The replacement of uvloop has no shutdown.
                with socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
                    duplicate.shutdown(socket.SHUT_RDWR)


class Exchange:
    """The state of one request until the response head is received.

    Each adapter derives a class from it that records the steps of its library. When the library
    raises an exception, the adapter uses this state to choose the error of flux0.

    Attributes:
        sent: Whether a byte of the request may have been sent.
        failure: The last exception that the library itself raised, or None. An adapter compares an
            exception with it to find out whether the library or the user's code raised it.
        timeout: The timeouts of the request.
        interrupt: Ends the wait for the connection, or for the response head.
    """

    def __init__(self, request: Request) -> None:
        self.sent: bool = False
        self.failure: BaseException | None = None
        self.timeout = request.timeout
        self.interrupt = request.interrupt

    def shut_down_on_interrupt(self, connection: Any) -> None:
        """Shut `connection` down when the request is interrupted; see `shut_down`.

        This wakes the sync call that waits for the response head. It replaces the connection of an
        earlier call.
        """
        self.interrupt.on_fire(partial(shut_down, connection))

    def clear_interrupt(self) -> None:
        """Keep the connection open if the request is interrupted from now on."""
        self.interrupt.clear()
