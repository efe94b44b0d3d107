"""A parser for the chunked transfer coding (RFC 9112, section 7.1)."""

from __future__ import annotations

import re
from typing import Final

# The largest number of bytes of one line in a chunked body. Such a line is a chunk size with its
# extensions, or a trailer field.
_MAX_LINE_BYTES: Final = 16 * 1024
_MAX_TRAILER_BYTES: Final = 64 * 1024
_MAX_USUAL_LINE: Final = 18  # The length of a chunk-size line with 16 digits and CRLF.
_USUAL_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n")
# The pattern `_SIZE` matches a chunk size with its extensions. It checks the digits, because `int`
# also accepts signs and underscores.
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]+)\s*(?:;.*)?", re.DOTALL)

# The states of the chunk parser. Each state is named after the part that the parser expects next.
_SIZE_LINE: Final = 0
_CONTENT: Final = 1
_END_OF_CHUNK: Final = 2
_TRAILER: Final = 3


class Chunks:
    """Decodes a chunked body piece by piece, as the bytes are received.

    Attributes:
        ended: True if the last chunk and the trailer were received.
        failure: The reason why the body is invalid, or None. First use the content that `feed`
            returned, then raise an error.
        surplus: The bytes that were received after the body.
    """

    def __init__(self) -> None:
        self.ended: bool = False
        self.failure: str | None = None
        self.surplus: bytes = b""
        self._state = _SIZE_LINE
        self._partial_line = b""
        self._missing = 0  # The number of bytes of the current chunk that were not received yet.
        self._trailer_limit = _MAX_TRAILER_BYTES

    def feed(self, data: bytes) -> bytes:
        if self._state == _SIZE_LINE and not self._partial_line:
            # This fast path handles the most frequent data: one complete chunk without extensions.
            end = data.find(b"\r\n", 0, _MAX_USUAL_LINE)
            size = len(data) - end - 4
            if size > 0 and data.startswith(b"%x\r\n" % size) and data.endswith(b"\r\n"):
                return data[end + 2 : -2]
        data, self._partial_line = self._partial_line + data, b""
        content: list[bytes] = []
        at, size = 0, len(data)
        while at < size and not self.ended and self.failure is None:
            if self._state == _CONTENT:
                piece = data[at : at + self._missing]
                content.append(piece)
                at += len(piece)
                self._missing -= len(piece)
                if not self._missing:
                    self._state = _END_OF_CHUNK
                continue
            # This fast loop handles complete chunks without extensions.
            while self._state == _SIZE_LINE and (usual := _USUAL_LINE.match(data, at)):
                start = usual.end()
                end = start + int(usual[1], 16)
                if start == end or not data.startswith(b"\r\n", end):
                    break
                content.append(data[start:end])
                at = end + 2
            line = data[at : data.find(b"\n", at) + 1 or size]
            at += len(line)
            self.failure = self._parse_line(line)
        self.surplus = data[at:]
        return b"".join(content)

    def _parse_line(self, line: bytes) -> str | None:
        text = line.strip()
        if len(line) > _MAX_LINE_BYTES:
            return f"a line between chunks has more than {_MAX_LINE_BYTES:,} bytes"
        if not line.endswith(b"\n"):
            self._partial_line = line
        elif self._state == _SIZE_LINE:
            size = _SIZE.fullmatch(text)
            if size is None:
                return f"the chunk size is not a hexadecimal number: {text[:20]!r}"
            self._missing = int(size[1], 16)
            self._state = _CONTENT if self._missing else _TRAILER
        elif self._state == _END_OF_CHUNK:
            if text:
                return "a chunk is longer than its size"
            self._state = _SIZE_LINE
        else:
            self.ended = not text
            self._trailer_limit -= len(text)
            if self._trailer_limit < 0:
                return f"the trailer has more than {_MAX_TRAILER_BYTES:,} bytes"
        return None
