"""A subclass of `http.client.HTTPResponse` that reads heads and bodies more strictly.

`HTTPResponse` has three problems. A read of a body may wait for more bytes, although some bytes
have been received. A truncated head, or a truncated last chunk, raises no error. An interim
response other than 100 is returned as the final response. The framing of bodies is defined in
RFC 9112, sections 6 and 7.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from http.client import HTTPException, HTTPMessage, HTTPResponse, IncompleteRead
from time import monotonic
from typing import Any, Final

from flux0.adapters.shared.chunks import Chunks
from flux0.adapters.shared.exchange import shut_down
from flux0.adapters.shared.limits import MAX_OVERHEAD_BYTES, READ_BYTES
from flux0.domain.http import framing_problem, version_problem

_NAME: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_VALID_HEAD: Final = re.compile(
    rb"HTTP/1\.1 2\d\d[^\r\n\0]*\r\n(?:" + _NAME + rb":[^\r\n\0]*(?<![ \t])\r\n)*\r\n"
)
_FIELD_LINE: Final = re.compile(_NAME + rb":[^\r\n\0]*\r?\n")
# The pattern `_FOLDED_LINE` matches a header field line, or a continuation line of a header field
# (RFC 9112, section 5.2).
_FOLDED_LINE: Final = re.compile(rb"(?:" + _NAME + rb":|[ \t])[^\r\n\0]*\r?\n")

_SWITCHING_PROTOCOLS: Final = 101
_FIRST_FINAL_STATUS: Final = 200


class TrackedResponse(HTTPResponse):
    """The response to one request.

    Args:
        sock: The object that http.client reads the response from.

    Attributes:
        raw_socket: The connection's socket: see `raw_socket_of`.
        idle_since: The value of `time.monotonic()` when the body ended. Before, it is the value
            from the creation of this object.
    """

    # If an exception of a signal handler interrupts `__init__`, the finalizer reads `fp`.
    fp: Any = None
    headers: HTTPMessage
    msg: HTTPMessage
    length: int | None

    def __init__(self, sock: Any, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.raw_socket: socket.socket | None = raw_socket_of(sock)
        self._receive: Callable[[int], bytes] = sock.recv
        # `_may_be_buffered` is True if the buffer of `fp` can contain a part of the body. `fp`
        # fills its buffer while it reads the response head.
        self._may_be_buffered = True
        self._is_early = False
        self.idle_since: float = monotonic()

    def read_early_file(self, file: Any) -> None:
        """Read from `file`, because the response began before the whole request was sent."""
        self.fp.close()
        self.fp, self._is_early = file, True

    def begin(self) -> None:
        """Skip interim responses (RFC 9110, section 15.2), and read the final response's head."""
        file = self.fp
        received = file.peek()
        # If the response head is incomplete or invalid, read the head with `_HeadFile`, which is
        # slower but raises an error for an invalid head.
        if not _VALID_HEAD.match(received):
            self.fp = _HeadFile(file)
        super().begin()
        while self.status < _FIRST_FINAL_STATUS:
            if self.status == _SWITCHING_PROTOCOLS:
                raise HTTPException("unexpected status 101 (Switching Protocols)")
            self.headers = self.msg = None  # type: ignore[assignment] # makes begin() start again
            super().begin()
        self.fp = file
        if self._is_early:
            # Do not reuse the connection, because the server can still expect the rest of the
            # request.
            self.will_close = True
        length = self._joined("content-length")
        if problem := framing_problem(length, self._joined("transfer-encoding")):
            raise HTTPException(problem)
        # A `Content-Length` header such as "5, 5" is valid (RFC 9110, section 8.6), but http.client
        # ignores it. Therefore, set `length` here.
        if self.length is None and length is not None:
            self.length = int(length.partition(",")[0])

    def _joined(self, name: str) -> str | None:
        values = self.headers.get_all(name)
        return None if values is None else ", ".join(values)

    def pieces(self) -> Iterator[bytes]:
        """Yield the body's bytes as they are received.

        A piece is empty if the received bytes contain only chunk framing.
        """
        if self.fp is None:  # If `fp` is None, a user's hook has closed the response.
            raise IncompleteRead(b"")
        surplus = b""
        if self.length is not None:
            while self.length:
                piece = self._read()
                piece, surplus = piece[: self.length], piece[self.length :]
                self.length -= len(piece)
                yield piece
        elif self.chunked:
            chunks = Chunks()
            while not chunks.ended:
                yield chunks.feed(self._read())
                if chunks.failure is not None:
                    raise HTTPException(chunks.failure)
            surplus = chunks.surplus
        else:
            while piece := self.fp.read1(READ_BYTES):
                yield piece
        # Do not reuse a connection with surplus bytes: they are read as the next response.
        if surplus:
            shut_down(self.raw_socket, wakes=False)
        self.idle_since = monotonic()
        self.close()

    def _read(self) -> bytes:
        data: bytes
        if self._may_be_buffered:
            # `read1` returns the bytes in the buffer of `fp`, if there are any. If `read1` returns
            # the requested number of bytes, the buffer can contain more bytes.
            data = self.fp.read1(READ_BYTES)
            self._may_be_buffered = len(data) == READ_BYTES
        else:
            # Call `recv`, because `recv` is twice as fast as `fp.read1`.
            data = self._receive(READ_BYTES)
        if not data:
            raise IncompleteRead(b"")
        return data


def raw_socket_of(sock: Any) -> socket.socket | None:
    """Return the socket that a connection shuts down; None if the connection has no socket.

    For TLS inside TLS, `sock` is an `SSLTransport` of urllib3, which contains the TLS socket to the
    proxy. A user's connection class may use an object that is not a socket.
    """
    raw = getattr(sock, "socket", sock)
    return raw if isinstance(raw, socket.socket) else None


class _HeadFile:
    """A file for http.client that raises an error for a truncated, malformed or too large head.

    Without this class, http.client reads the fields after a malformed line as a part of the body.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._remaining = MAX_OVERHEAD_BYTES
        # The next line of the response head must match `_valid_line`. `_valid_line` is None before
        # the status line was read.
        self._valid_line: re.Pattern[bytes] | None = None

    def readline(self, limit: int) -> bytes:
        line: bytes = self._file.readline(limit)
        self._remaining -= len(line)
        if self._remaining < 0:
            raise HTTPException(f"the response head has more than {MAX_OVERHEAD_BYTES:,} bytes")
        if self._valid_line is None and (problem := version_problem(line)):
            raise HTTPException(problem)
        # Do not check an empty response here, because http.client rejects an empty response.
        in_head = self._valid_line or line
        if in_head and not line.endswith(b"\n") and len(line) < limit:
            raise IncompleteRead(line)
        if line in (b"\r\n", b"\n"):
            self._valid_line = None
        elif self._valid_line is None:
            self._valid_line = _FIELD_LINE
        elif self._valid_line.fullmatch(line) or len(line) == limit:
            self._valid_line = _FOLDED_LINE
            # Remove the spaces after the value of a header field, because http.client keeps the
            # spaces.
            return line.rstrip() + b"\r\n"
        else:
            raise HTTPException(f"a header line is malformed: {line[:50]!r}")
        return line

    def flush(self) -> None:
        """Do nothing. http.client calls this method when it closes a response."""

    def close(self) -> None:
        self._file.close()
