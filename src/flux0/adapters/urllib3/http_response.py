"""An answer of http.client whose framing is read here (RFC 9112, sections 6 and 7).

What http.client itself reads may wait for more than has arrived, takes a connection that ends
within a head or the last chunk for a whole answer, and takes an interim answer for the answer.
"""

from __future__ import annotations

import socket
from collections.abc import Generator, Iterator
from http.client import HTTPException, HTTPMessage, HTTPResponse, IncompleteRead
from time import monotonic
from typing import Any, Final

from flux0.adapters.shared.bodies import shut_down
from flux0.adapters.shared.limits import MAX_OVERHEAD_BYTES

_LARGEST_PIECE: Final = 64 * 1024
_LONGEST_LINE: Final = 16 * 1024  # The size of a chunk, and what a server says beside it.
_LARGEST_TRAILER: Final = 64 * 1024
_USUAL_LINE: Final = 18  # Up to 16 digits, and CRLF.

_HEXADECIMAL: Final = b"0123456789abcdefABCDEF"

_SWITCHING: Final = 101
_FIRST_FINAL: Final = 200


class TrackedResponse(HTTPResponse):
    """The answer to one request.

    Args:
        wire: the socket that the bytes come over, below any TLS within TLS.
        read: what http.client reads the answer from.

    Attributes:
        ended: when the head came or, once it was read, the end of the body.
    """

    fp: Any
    headers: HTTPMessage
    msg: HTTPMessage
    length: int | None

    def __init__(self, wire: socket.socket, read: Any, *args: Any, **options: Any) -> None:
        super().__init__(read, *args, **options)
        self.wire = wire
        self.ended: float = monotonic()

    def begin(self) -> None:
        """Read the head, and skip those of interim answers (RFC 9110, section 15.2)."""
        file = self.fp
        arrived = file.peek()
        if not (arrived.startswith(b"HTTP/1.1 2") and b"\r\n\r\n" in arrived):
            self.fp = _Head(file)  # A head that is there as a whole, as most are, does not need it.
        super().begin()
        while self.status < _FIRST_FINAL:
            if self.status == _SWITCHING:
                raise HTTPException("the server switches to a protocol that nobody asked for")
            self.headers = self.msg = None  # type: ignore[assignment] # http.client's "not begun"
            super().begin()
        self.fp = file
        known = self.chunked or self.length is not None
        if not known and ("transfer-encoding" in self.headers or "content-length" in self.headers):
            raise HTTPException("the framing of the body is unknown")

    def pieces(self) -> Iterator[bytes]:
        """Yield what arrives, when it arrives, up to the end that the framing gives the body.

        A piece is empty where what arrived holds no content.
        """
        if self.fp is None:  # A hook of the user's has closed it.
            raise IncompleteRead(b"")
        more = b""
        if self.length is not None:
            while self.length:
                piece = self._arrived()
                piece, more = piece[: self.length], piece[self.length :]
                self.length -= len(piece)
                yield piece
        elif self.chunked:
            more = yield from self._chunked()
        else:
            while piece := self.fp.read1(_LARGEST_PIECE):
                yield piece
        if more:  # It answers nothing, so nobody may take it for another answer.
            shut_down(self.wire)
        self.ended = monotonic()
        self.close()

    def _chunked(self) -> Generator[bytes, None, bytes]:
        """Yield what is in the chunks; return what came after them."""
        chunks = Chunks()
        while not chunks.ended:
            yield chunks.feed(self._arrived())
            if chunks.failure is not None:
                raise chunks.failure
        return chunks.rest

    def _arrived(self) -> bytes:
        data: bytes = self.fp.read1(_LARGEST_PIECE)
        if not data:
            raise IncompleteRead(b"")
        return data


class _Head:
    """The file that a head is read from: it ends where its blank line is, and not anywhere."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = MAX_OVERHEAD_BYTES
        self._begun = False

    def readline(self, limit: int) -> bytes:
        line: bytes = self._file.readline(limit)
        self._left -= len(line)
        if self._left < 0:
            raise HTTPException(
                f"the head of the answer has more than {MAX_OVERHEAD_BYTES:,} bytes"
            )
        # What is no HTTP, or nothing at all, is left to http.client.
        begun = self._begun or (line != b"" and b"HTTP/".startswith(line[:5]))
        if begun and not line.endswith(b"\n") and len(line) < limit:
            raise IncompleteRead(line)
        self._begun = line not in (b"\r\n", b"\n")
        return line

    def flush(self) -> None:
        """Do nothing; http.client asks for it."""

    def close(self) -> None:
        self._file.close()


class Chunks:
    """Takes chunks apart as their bytes come.

    Attributes:
        ended: whether the last chunk and the trailer were there.
        failure: what is wrong, if something is; what came before it counts.
        rest: the start of a line that is not whole; at the end, what came after the body.
    """

    def __init__(self) -> None:
        self.ended: bool = False
        self.failure: HTTPException | None = None
        self.rest: bytes = b""
        self._left = 0  # Bytes of the chunk that are still to come.
        self._after_chunk = False
        self._trailer: int | None = None  # Bytes that it may still have, once it has begun.

    def feed(self, data: bytes) -> bytes:
        """Return the content in `data`."""
        # Mostly one chunk comes at a time, as a whole; the last one, of the size 0, is not meant.
        end = data.find(b"\r\n", 0, _USUAL_LINE)
        digits, size = data[: max(end, 0)], len(data) - end - 4
        whole = size > 0 and digits and not digits.strip(_HEXADECIMAL) and data.endswith(b"\r\n")
        if whole and int(digits, 16) == size and self._is_between_chunks():
            return data[end + 2 : -2]
        data = self.rest + data
        at = 0
        content: list[bytes] = []
        while not self.ended and self.failure is None:
            if self._left:
                piece = data[at : at + self._left]
                content.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if self._left:
                    break
            end = data.find(b"\n", at)
            if (end if end >= 0 else len(data)) - at > _LONGEST_LINE:
                self._fail(f"a line between chunks has more than {_LONGEST_LINE:,} bytes")
            if end < 0 or self.failure is not None:
                break
            self._take(data[at:end].strip())
            at = end + 1
        self.rest = data[at:]
        return b"".join(content)

    def _is_between_chunks(self) -> bool:
        return not (self.rest or self._after_chunk) and self._trailer is None

    def _take(self, line: bytes) -> None:
        if self._trailer is not None:
            self._trailer -= len(line)
            if self._trailer < 0:
                self._fail(f"the trailer has more than {_LARGEST_TRAILER:,} bytes")
            self.ended = not line
        elif self._after_chunk:
            if line:
                self._fail("a chunk is longer than it says")
            self._after_chunk = False
        else:
            digits = line.partition(b";")[0].strip()
            if not digits or digits.strip(_HEXADECIMAL):  # int() takes signs and underscores, too.
                self._fail(f"a chunk has the size {digits[:20]!r}")
                return
            self._left = int(digits, 16)
            self._after_chunk = self._left > 0
            self._trailer = None if self._left else _LARGEST_TRAILER

    def _fail(self, problem: str) -> None:
        self.failure = HTTPException(problem)
