"""Undoing of a body's `Content-Encoding`, for libraries that take one cut short for a whole one."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from flux0.domain.errors import ConnectionInterrupted, ProtocolError

_LARGEST_PIECE: Final = 1 << 20
_PLAIN: Final = frozenset({"", "identity"})
_COMPRESSED: Final = frozenset({"gzip", "x-gzip", "deflate"})


def decoder_for(coding: str) -> Decoder | None:
    """Return what decodes a body with this `Content-Encoding`, or None if nothing needs to."""
    coding = coding.strip().lower()
    return None if coding in _PLAIN else Decoder(coding)


class Decoder:
    """Decompresses one body of gzip or deflate, as far as its bytes have come.

    Gzip may have several members (RFC 1952, section 2.2). Deflate is in the format of zlib, or raw
    as some servers send it (RFC 9110, section 8.4.1.2).
    """

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._member: Any = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what `data` completes, in pieces of at most 1 MiB; an empty one if it is nothing.

        Raises:
            ProtocolError: it is not compressed as it should be; what comes before is yielded.
        """
        piece, nothing = b"", True
        # A full piece may leave output behind that needs no further input.
        while data or (len(piece) == _LARGEST_PIECE and not self._member.eof):
            if self._member is None or self._member.eof:
                self._member = zlib.decompressobj(self._format(data[0]))
            before = self._member.copy()
            try:
                piece = self._member.decompress(data, _LARGEST_PIECE)
            except zlib.error as error:
                yield _as_far_as_whole(before, data)
                raise ProtocolError(f"the body's compression is broken: {error}") from error
            if piece:
                nothing = False
                yield piece
            data = self._member.unused_data or self._member.unconsumed_tail
        if nothing:
            yield b""

    def end(self) -> None:
        """Take the end of the body.

        Raises:
            ConnectionInterrupted: it comes before that of the compressed data.
        """
        if self._member is not None and not self._member.eof:
            raise ConnectionInterrupted("the body ended within its compressed data")

    def _format(self, first: int) -> int:
        """Return the format of what begins with this byte, as zlib counts formats."""
        if self._coding not in _COMPRESSED:
            raise ProtocolError(f"the body is encoded as {self._coding!r}, which was not asked for")
        # The first byte of zlib's format ends in 8, and no raw data that means anything does.
        raw = self._coding == "deflate" and first != 0x1F and first & 0xF != 8  # noqa: PLR2004
        return -zlib.MAX_WBITS if raw else 32 + zlib.MAX_WBITS  # 32: gzip or zlib, as it begins.


def _as_far_as_whole(member: Any, data: bytes) -> bytes:
    pieces: list[bytes] = []
    with suppress(zlib.error):
        pieces.extend(member.decompress(bytes((byte,))) for byte in data)
    return b"".join(pieces)
