"""Sends a large request over a socket, and notices if the server responds meanwhile."""

from __future__ import annotations

import re
import select
import socket
import ssl
from typing import Any, Final

WOULD_BLOCK: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
# The start of a response that rejects a request before it was sent completely. A redirect is a
# rejection, too.
REJECTION: Final = re.compile(rb"HTTP/1\.[01] [345]")


def send_some(
    sock: Any, unsent: memoryview, timeout: float | None, *, read: bool
) -> tuple[int, bool]:
    """Send some bytes, or wait until more can be sent.

    Return the number of sent bytes and, if `read`, whether the socket is readable. After
    `timeout` seconds, raise TimeoutError. The socket is non-blocking afterwards.
    """
    sock.settimeout(0)
    try:
        return sock.send(unsent), False
    except WOULD_BLOCK:
        readable, writable = wait(sock, timeout, read=read, write=True)
    if not (readable or writable):
        raise TimeoutError("timed out")
    return 0, readable and read


def wait(
    sock: socket.socket, timeout: float | None, *, read: bool = False, write: bool = False
) -> tuple[bool, bool]:
    """Wait until the socket is readable (if `read`) or writable (if `write`).

    Return whether it is readable, and whether it is writable. If the timeout expired, both are
    False. A closed socket is both: using it raises an error.
    """
    try:
        if not hasattr(select, "poll"):  # Windows has no poll.
            readable, writable, _ = select.select([sock] * read, [sock] * write, [], timeout)
            return bool(readable), bool(writable)
        poll = select.poll()
        poll.register(sock, (select.POLLIN if read else 0) | (select.POLLOUT if write else 0))
    except ValueError:  # A signal handler or another thread has closed the socket.
        return read, write
    found = poll.poll(None if timeout is None else timeout * 1000)
    events = found[0][1] if found else 0
    return bool(events & ~select.POLLOUT), bool(events & ~select.POLLIN)
