"""Joins chunks of the chunked transfer coding (RFC 9112, section 7.1) before httpcore parses them.

httpcore and its parser h11 take longer for each chunk than flux0 takes for an event. If the client
is slower than the server, many chunks are received together. Parsing them as one chunk saves 40 %
of the cost of each event.
"""

from __future__ import annotations

import re
from typing import Final

# A chunk size without an extension, with at most 16 digits.
_SIZE_LINE: Final = re.compile(rb"[0-9A-Fa-f]{1,16}\r\n")
_SIZE_LINE_START: Final = re.compile(rb"[0-9A-Fa-f]{1,16}\r?")
_HEAD: Final = re.compile(rb"HTTP/1\.1 [2-5](?:[^\r\n]*\r\n)+?\r\n")


class ChunkJoiner:
    """Replaces complete chunks that were received together by one chunk with the same content.

    It changes no other bytes. It stops joining after the last chunk, and after a size line that is
    invalid or has an extension.

    Args:
        received: The first received bytes of the response. If they contain the head and a part of
            the body, the parser of httpcore receives both unchanged.
    """

    def __init__(self, received: bytes) -> None:
        self._missing = 0  # The number of bytes before the next size line.
        self._held: bytes = b""  # The start of a size line that was not received completely.
        head = _HEAD.match(received)
        self._enabled = head is not None
        if head is not None:
            self.join(received[head.end() :])
            self._enabled = self._enabled and not self._held
            self._held = b""

    def join(self, data: bytes) -> bytes:
        """Join the chunks in `data`, the next received bytes. The result is never empty."""
        if self._held:
            data, self._held = self._held + data, b""
        elif not self._missing:
            # Fast path: servers mostly send one complete chunk at a time.
            end = data.find(b"\r\n")
            if data[:end].lower() == b"%x" % max(0, len(data) - end - 4):
                return data
        start = at = min(self._missing, len(data))
        self._missing -= start
        contents: list[bytes] = []
        while self._enabled and at < len(data):
            line = _SIZE_LINE.match(data, at)
            if line is None:
                self._enabled = at > 0 and _SIZE_LINE_START.fullmatch(data, at) is not None
                if self._enabled:
                    data, self._held = data[:at], data[at:]
                break
            begin = line.end()
            size = int(data[at : begin - 2], 16)
            end = begin + size
            if end + 2 > len(data):
                self._missing = end + 2 - len(data)
                self._enabled = size > 0
                break
            self._enabled = size > 0 and data.startswith(b"\r\n", end)
            if self._enabled:
                contents.append(data[begin:end])
                at = end + 2
        if len(contents) < 2:  # noqa: PLR2004 - two or more chunks can be joined
            return data
        joined = b"".join(contents)
        return b"".join((data[:start], b"%x\r\n" % len(joined), joined, b"\r\n", data[at:]))
