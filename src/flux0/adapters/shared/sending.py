"""Sends a large request over a socket, and notices if the server responds meanwhile."""

from __future__ import annotations

import re
import select
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

WOULD_BLOCK: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
# The pattern `REJECTION` matches the start of a response that rejects a request before the whole
# request was sent. A redirect (status 3xx) is a rejection, too.
REJECTION: Final = re.compile(rb"HTTP/1\.[01] [345]")


def send_all(sock: Any, data: bytes, timeout: float | None, receive: Callable[[], bool]) -> None:
    """Send `data`. When the socket is readable, call `receive`, until `receive` returns True.

    The function makes the socket non-blocking.

    Raises:
        TimeoutError: The server accepted no data within `timeout` seconds.
    """
    unsent, received = memoryview(data), False
    sock.settimeout(0)
    while unsent:
        try:
            unsent = unsent[sock.send(unsent) :]
        except WOULD_BLOCK:
            readable, writable = wait(sock, timeout, read=not received, write=True)
            if not (readable or writable):
                raise TimeoutError("timed out") from None
            received = received or (readable and receive())


def wait(
    sock: socket.socket, timeout: float | None, *, read: bool = False, write: bool = False
) -> tuple[bool, bool]:
    """Wait until the socket is readable (if `read`) or writable (if `write`).

    Return whether it is readable, and whether it is writable. If the timeout expired, both values
    are False. If the socket is closed, both values are True, because using it raises an error.
    """
    try:
        if not hasattr(select, "poll"):  # Windows has no `select.poll`.
            # Windows reports a failure to connect as an exceptional condition of the socket, so
            # wait for this condition, too.
            reading, writing = [sock] * read, [sock] * write
            readable, writable, failed = select.select(reading, writing, writing, timeout)
            return bool(readable), bool(writable or failed)
        poll = select.poll()
        poll.register(sock, (select.POLLIN if read else 0) | (select.POLLOUT if write else 0))
    # A ValueError means that a signal handler or another thread has closed the socket.
    except ValueError:
        return read, write
    found = poll.poll(None if timeout is None else timeout * 1000)
    events = found[0][1] if found else 0
    return bool(events & ~select.POLLOUT), bool(events & ~select.POLLIN)
