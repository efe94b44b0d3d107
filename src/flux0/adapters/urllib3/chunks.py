"""A parser of the chunked transfer coding (RFC 9112, section 7.1)."""

from __future__ import annotations

from collections.abc import Callable
from http.client import HTTPException
from typing import Final

# The limit of a line: a chunk size with its extensions, or a trailer field.
_MAX_LINE_BYTES: Final = 16 * 1024
_MAX_TRAILER_BYTES: Final = 64 * 1024
_MAX_SHORT_LINE: Final = 18  # The length of a line with a chunk size of 16 digits and CRLF.

_HEXADECIMAL: Final = b"0123456789abcdefABCDEF"


class Chunks:
    """Decodes a chunked body piece by piece, as the bytes are received.

    The parser is always in one of these states. Each state is a method; `ended` and `failed` are
    the method `_stopped`::

        size line     -> data          a chunk with content begins
        size line     -> trailer       the size is 0
        data          -> end of chunk  all bytes of the chunk were received
        end of chunk  -> size line     the line is empty
        trailer       -> ended         the line is empty
        any state     -> failed        the bytes violate the coding or a limit

    Attributes:
        ended: Whether the last chunk and the trailer were received.
        failure: The error of an invalid body, or None. First use the content that `feed` returned,
            then raise the error.
        surplus: The bytes that were received after the end of the body.
    """

    def __init__(self) -> None:
        self.ended: bool = False
        self.failure: HTTPException | None = None
        self.surplus: bytes = b""
        self._state: _State = Chunks._size_line
        self._partial_line = b""
        self._missing = 0  # The number of bytes of the current chunk that were not received yet.
        self._trailer_limit = _MAX_TRAILER_BYTES

    def feed(self, data: bytes) -> bytes:
        """Parse the next received bytes, and return the content of the chunks in `data`."""
        if not self._partial_line and self._state is Chunks._size_line:
            # Fast path: servers mostly send one complete chunk at a time.
            end = data.find(b"\r\n", 0, _MAX_SHORT_LINE)
            size = len(data) - end - 4
            if size > 0 and data.startswith(b"%x\r\n" % size) and data.endswith(b"\r\n"):
                return data[end + 2 : -2]
        if self._partial_line:
            data, self._partial_line = self._partial_line + data, b""
        content: list[bytes] = []
        at: int | None = 0
        while at is not None:
            at = self._state(self, data, at, content)
        return b"".join(content)

    # Each of the following methods is a state. It parses `data` from the position `at`, and appends
    # to `content`. It returns the next position, or None if it needs more data or if parsing has
    # ended.

    def _size_line(self, data: bytes, at: int, _content: list[bytes]) -> int | None:
        line = self._read_line(data, at)
        if line is None:
            return None
        digits = line.partition(b";")[0].strip()
        # int() would also accept signs and underscores.
        if not digits or digits.strip(_HEXADECIMAL):
            self._fail(f"the chunk size is not a hexadecimal number: {digits[:20]!r}")
            return None
        self._missing = int(digits, 16)
        self._state = Chunks._data if self._missing else Chunks._trailer
        return at + len(line)

    def _data(self, data: bytes, at: int, content: list[bytes]) -> int | None:
        piece = data[at : at + self._missing]
        content.append(piece)
        self._missing -= len(piece)
        if self._missing:
            return None
        at += len(piece)
        if data.startswith(b"\r\n", at):  # This is faster than `_end_of_chunk`.
            self._state = Chunks._size_line
            return at + 2
        self._state = Chunks._end_of_chunk
        return at

    def _end_of_chunk(self, data: bytes, at: int, _content: list[bytes]) -> int | None:
        line = self._read_line(data, at)
        if line is None:
            return None
        if line.strip():
            self._fail("a chunk is longer than its size")
            return None
        self._state = Chunks._size_line
        return at + len(line)

    def _trailer(self, data: bytes, at: int, _content: list[bytes]) -> int | None:
        line = self._read_line(data, at)
        if line is None:
            return None
        field = line.strip()
        self._trailer_limit -= len(field)
        if self._trailer_limit < 0:
            self._fail(f"the trailer has more than {_MAX_TRAILER_BYTES:,} bytes")
            return None
        if not field:
            self.ended = True
            self.surplus = data[at + len(line) :]
            self._state = Chunks._stopped
        return at + len(line)

    def _stopped(self, _data: bytes, _at: int, _content: list[bytes]) -> int | None:
        return None

    def _read_line(self, data: bytes, at: int) -> bytes | None:
        """Return the line at the position `at`, including its line end.

        If the line is incomplete, store it for the next call of `feed`, and return None.
        """
        end = data.find(b"\n", at)
        line = data[at : end + 1] if end >= 0 else data[at:]
        if len(line) > _MAX_LINE_BYTES:
            self._fail(f"a line between chunks has more than {_MAX_LINE_BYTES:,} bytes")
            return None
        if end >= 0:
            return line
        self._partial_line = line
        return None

    def _fail(self, problem: str) -> None:
        self.failure = HTTPException(problem)
        self._state = Chunks._stopped


_State = Callable[[Chunks, bytes, int, list[bytes]], "int | None"]
