"""Undoing of a response's `content-encoding`, for libraries that let a truncated one pass."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

from flux0.domain.errors import ConnectionInterrupted, ProtocolError

_GZIP_OR_ZLIB: Final = 32 + zlib.MAX_WBITS  # The first bytes tell which of the two it is.
_LARGEST_PIECE: Final = 1 << 20


class Inflater:
    """Decompresses one body of gzip or deflate, as far as its bytes have come.

    Gzip may have several members (RFC 1952, section 2.2).
    """

    def __init__(self) -> None:
        self._member = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what `data` completes, in pieces of at most 1 MiB, whatever it grows to.

        Raises:
            ProtocolError: it is not compressed as it should be.
        """
        self._begun = True
        more = True
        while more:
            if self._member.eof:
                self._member = zlib.decompressobj(_GZIP_OR_ZLIB)
            try:
                piece = self._member.decompress(data, _LARGEST_PIECE)
            except zlib.error as error:
                raise ProtocolError(f"the body's compression is broken: {error}") from error
            if piece:
                yield piece
            data = self._member.unused_data or self._member.unconsumed_tail
            # A full piece may leave output behind that needs no further input.
            more = bool(data) or (len(piece) == _LARGEST_PIECE and not self._member.eof)

    def end(self) -> None:
        """Take the end of the body.

        Raises:
            ConnectionInterrupted: it comes before that of the compressed data.
        """
        if self._begun and not self._member.eof:
            raise ConnectionInterrupted("the body ended within its compressed data")
