"""A response of http.client with its own head checks and body framing (RFC 9112, sections 6 and 7).

http.client does three things that flux0 must not do. Its reads may wait for more bytes than have
arrived. It accepts a head or a last chunk that the end of the connection truncates. It returns
interim responses as if they were final.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Generator, Iterator
from http.client import HTTPException, HTTPMessage, HTTPResponse, IncompleteRead
from time import monotonic
from typing import Any, Final

from flux0.adapters.shared.exchange import shut_down
from flux0.adapters.shared.limits import MAX_OVERHEAD_BYTES
from flux0.adapters.urllib3.chunks import Chunks
from flux0.domain.http import framing_problem

_MAX_PIECE_BYTES: Final = 64 * 1024

_NAME: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_VALID_HEAD: Final = re.compile(
    rb"HTTP/1\.1 2\d\d[^\r\n\0]*\r\n(?:" + _NAME + rb":[^\r\n\0]*(?<![ \t])\r\n)*\r\n"
)
_FIELD_LINE: Final = re.compile(_NAME + rb":[^\r\n\0]*\r?\n")
# A field line, or the continuation of a field (RFC 9112, section 5.2).
_FOLDED_LINE: Final = re.compile(rb"(?:" + _NAME + rb":|[ \t])[^\r\n\0]*\r?\n")

_SWITCHING_PROTOCOLS: Final = 101
_FIRST_FINAL_STATUS: Final = 200


class TrackedResponse(HTTPResponse):
    """The response to one request.

    Args:
        raw_socket: The socket of the operating system, below any TLS in TLS.
        sock: The object that http.client reads the response from.

    Attributes:
        idle_since: The value of `time.monotonic()` when the body was read to its end, or, before
            that, when this object was created.
    """

    fp: Any
    headers: HTTPMessage
    msg: HTTPMessage
    length: int | None

    def __init__(self, raw_socket: socket.socket, sock: Any, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.raw_socket = raw_socket
        self.idle_since: float = monotonic()

    def begin(self) -> None:
        """Read the head of the final response; skip interim responses (RFC 9110, section 15.2)."""
        file = self.fp
        received = file.peek()
        # Most heads arrive complete and valid. Only the others need the checks of `_HeadReader`.
        if not _VALID_HEAD.match(received):
            self.fp = _HeadReader(file)
        super().begin()
        while self.status < _FIRST_FINAL_STATUS:
            if self.status == _SWITCHING_PROTOCOLS:
                raise HTTPException("unexpected status 101 (Switching Protocols)")
            self.headers = self.msg = None  # type: ignore[assignment] # makes begin() start again
            super().begin()
        self.fp = file
        length = self._joined("content-length")
        if problem := framing_problem(length, self._joined("transfer-encoding")):
            raise HTTPException(problem)
        if self.length is None and length is not None:  # http.client does not accept "5, 5".
            self.length = int(length.partition(",")[0])

    def _joined(self, name: str) -> str | None:
        values = self.headers.get_all(name)
        return None if values is None else ", ".join(values)

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes of the body as they arrive, up to its end.

        A piece is empty if the received bytes contain only framing.
        """
        if self.fp is None:  # A hook of the user closed the response.
            raise IncompleteRead(b"")
        surplus = b""
        if self.length is not None:
            while self.length:
                piece = self._read()
                piece, surplus = piece[: self.length], piece[self.length :]
                self.length -= len(piece)
                yield piece
        elif self.chunked:
            surplus = yield from self._chunked_pieces()
        else:
            while piece := self.fp.read1(_MAX_PIECE_BYTES):
                yield piece
        if surplus:  # The next response on this connection would begin with these bytes.
            shut_down(self.raw_socket)
        self.idle_since = monotonic()
        self.close()

    def _chunked_pieces(self) -> Generator[bytes, None, bytes]:
        """Yield the content of the chunks; return the surplus bytes."""
        chunks = Chunks()
        while not chunks.ended:
            yield chunks.feed(self._read())
            if chunks.failure is not None:
                raise chunks.failure
        return chunks.surplus

    def _read(self) -> bytes:
        """Return the bytes that have arrived, waiting if there are none."""
        data: bytes = self.fp.read1(_MAX_PIECE_BYTES)
        if not data:
            raise IncompleteRead(b"")
        return data


class _HeadReader:
    """A file for http.client that fails if a head is truncated, malformed or too large.

    http.client would take the fields after a malformed line for a part of the body.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._remaining = MAX_OVERHEAD_BYTES
        self._valid_line: re.Pattern[bytes] | None = None  # None before the status line.

    def readline(self, limit: int) -> bytes:
        line: bytes = self._file.readline(limit)
        self._remaining -= len(line)
        if self._remaining < 0:
            raise HTTPException(f"the response head has more than {MAX_OVERHEAD_BYTES:,} bytes")
        # http.client itself raises for an empty response, and for a first line that is not HTTP.
        in_head = self._valid_line or (line != b"" and b"HTTP/".startswith(line[:5]))
        if in_head and not line.endswith(b"\n") and len(line) < limit:
            raise IncompleteRead(line)
        if line in (b"\r\n", b"\n"):
            self._valid_line = None
        elif self._valid_line is None:
            self._valid_line = _FIELD_LINE
        elif self._valid_line.fullmatch(line) or len(line) == limit:
            self._valid_line = _FOLDED_LINE
            return line.rstrip() + b"\r\n"  # http.client would keep spaces in the value.
        else:
            raise HTTPException(f"a header line is malformed: {line[:50]!r}")
        return line

    def flush(self) -> None:
        """Do nothing; http.client calls it when a response is closed."""

    def close(self) -> None:
        self._file.close()
