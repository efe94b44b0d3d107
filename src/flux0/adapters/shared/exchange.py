"""The base class for the exchanges of all adapters. An exchange is a request and its response."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from functools import partial
from typing import Any, Final

from flux0.ports import Interrupt, Request, Timeout

# On Windows, `shutdown` does not end the wait of a thread in `recv`, but closing the socket does
# (https://github.com/python/cpython/issues/91913).
_MUST_CLOSE: Final = sys.platform == "win32"


def shut_down(connection: Any, *, wakes: bool = True) -> None:
    """Shut a connection down, so that a thread that reads from it returns if `wakes` is true.

    Safe in finalizers, because no lock is acquired. Never raises an exception. `connection` is a
    socket, an event loop's wrapper of a socket, or None.
    """
    with suppress(OSError):
        if isinstance(connection, socket.socket):
            # Do not call `SSLSocket.shutdown`: it removes the TLS layer, although another thread
            # can be reading from the socket.
            try:
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
            finally:  # `shutdown` fails while the socket connects.
                if wakes and _MUST_CLOSE:
                    # `connection.close` waits until files of the socket are closed.
                    socket.close(connection.detach())
        elif connection is not None:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except TypeError:  # `shutdown` of uvloop's PseudoSocket raises TypeError.
                with socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
                    duplicate.shutdown(socket.SHUT_RDWR)


def duplicate(sock: socket.socket) -> Any:
    """Return a socket object for a duplicate of the file descriptor of `sock`.

    Unlike in `socket.fromfd`, only functions of C run between the duplication and the creation of
    the object. An exception of a signal handler between the two would leave the descriptor open.
    """
    family, kind, protocol = (sock.family,), (sock.type,), (sock.proto,)
    return next(map(socket.SocketType, family, kind, protocol, map(socket.dup, (sock.fileno(),))))


class Exchange:
    """Records how far a request has progressed, until the response head is received.

    Each adapter has a subclass for its HTTP library. When the library raises an exception, the
    adapter uses this record to choose the flux0 error.

    A subclass has an attribute `sent`: True if a part of the request may have been sent.

    Attributes:
        failure: The last exception that the library itself raised, or None. If an adapter catches
            any other exception, the user's code raised that exception.
        timeout: The limits that the messages of timeout errors contain.
        interrupt: The object whose method `fire` ends the wait for the connection or for the
            response head.
    """

    def __init__(self, request: Request) -> None:
        self.failure: BaseException | None = None
        self.timeout: Timeout = request.timeout
        self.interrupt: Interrupt = request.interrupt

    def shut_down_on_interrupt(self, connection: Any) -> None:
        """Shut `connection` down on `interrupt.fire`, to end the wait for the response head.

        `connection` replaces the connection that was passed to an earlier call of this method.
        """
        self.interrupt.on_fire(partial(shut_down, connection))
