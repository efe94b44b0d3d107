"""A response of http.client with its own head checks and body framing (RFC 9112, sections 6 and 7).

http.client does three things that flux0 must not do. Its reads may wait for more bytes than have
arrived. It accepts a head or a last chunk that the end of the connection truncates. It returns
interim responses as if they were final.
"""

from __future__ import annotations

import socket
from collections.abc import Generator, Iterator
from http.client import HTTPException, HTTPMessage, HTTPResponse, IncompleteRead
from time import monotonic
from typing import Any, Final

from flux0.adapters.shared.exchange import shut_down
from flux0.adapters.shared.limits import MAX_OVERHEAD_BYTES
from flux0.adapters.urllib3.chunks import Chunks

_MAX_PIECE_BYTES: Final = 64 * 1024

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
        # Most heads arrive complete. Only the others need the checks of `_HeadReader`.
        if not (received.startswith(b"HTTP/1.1 2") and b"\r\n\r\n" in received):
            self.fp = _HeadReader(file)
        super().begin()
        while self.status < _FIRST_FINAL_STATUS:
            if self.status == _SWITCHING_PROTOCOLS:
                raise HTTPException("unexpected status 101 (Switching Protocols)")
            self.headers = self.msg = None  # type: ignore[assignment] # makes begin() start again
            super().begin()
        self.fp = file
        known = self.chunked or self.length is not None
        if not known and ("transfer-encoding" in self.headers or "content-length" in self.headers):
            raise HTTPException("the transfer-encoding or content-length is not supported")

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
    """A file for http.client that fails if a head is truncated or too large."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._remaining = MAX_OVERHEAD_BYTES
        self._in_head = False

    def readline(self, limit: int) -> bytes:
        line: bytes = self._file.readline(limit)
        self._remaining -= len(line)
        if self._remaining < 0:
            raise HTTPException(f"the response head has more than {MAX_OVERHEAD_BYTES:,} bytes")
        # http.client itself raises for an empty response, and for a first line that is not HTTP.
        in_head = self._in_head or (line != b"" and b"HTTP/".startswith(line[:5]))
        if in_head and not line.endswith(b"\n") and len(line) < limit:
            raise IncompleteRead(line)
        self._in_head = line not in (b"\r\n", b"\n")
        return line

    def flush(self) -> None:
        """Do nothing; http.client calls it when a response is closed."""

    def close(self) -> None:
        self._file.close()
