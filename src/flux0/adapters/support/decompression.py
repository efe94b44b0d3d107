"""Undoing of a body's `Content-Encoding`, for libraries that take one cut short for a whole one."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final, Protocol

from flux0.domain.errors import ConnectionInterrupted, ProtocolError

_GZIP_OR_ZLIB: Final = 32 + zlib.MAX_WBITS  # The first bytes tell which of the two it is.
_RAW: Final = -zlib.MAX_WBITS
_LARGEST_PIECE: Final = 1 << 20

_COMPRESSED: Final = frozenset({"gzip", "x-gzip", "deflate"})
# The codings that are undone here, or need not be.
KNOWN_CODINGS: Final = _COMPRESSED | {"", "identity"}


class Decoder(Protocol):
    """Decodes one body, as far as its bytes have come."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what `data` completes, in pieces; raises `ProtocolError`."""
        ...

    def end(self) -> None:
        """Take the end of the body; raises `ConnectionInterrupted` if it comes too early."""
        ...


def decoder_for(coding: str) -> Decoder | None:
    """Return what decodes a body with this `Content-Encoding`, or None if nothing needs to."""
    coding = coding.strip().lower()
    if coding not in KNOWN_CODINGS:
        return _NotAskedFor(coding)
    if coding not in _COMPRESSED:
        return None
    return Inflater(may_be_raw=coding == "deflate")


class Inflater:
    """Decompresses one body of gzip or deflate, as far as its bytes have come.

    Gzip may have several members (RFC 1952, section 2.2). Some servers send deflate without its
    header; `may_be_raw` says that this may be so.
    """

    def __init__(self, *, may_be_raw: bool = False) -> None:
        self._member = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._begun = False
        self._may_be_raw = may_be_raw
        self._start = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what `data` completes, in pieces of at most 1 MiB, whatever it grows to.

        Raises:
            ProtocolError: it is not compressed as it should be.
        """
        self._begun = True
        if self._may_be_raw:
            data = self._start = self._start + data
            if len(data) < 2:  # noqa: PLR2004 - the size of both headers that tell
                return
            self._may_be_raw = False
            zlib_header = data[0] & 15 == 8 and int.from_bytes(data[:2], "big") % 31 == 0  # noqa: PLR2004 - RFC 1950
            if not zlib_header and not data.startswith(b"\x1f\x8b"):
                self._member = zlib.decompressobj(_RAW)
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


class _NotAskedFor:
    """A coding that nobody here can undo; a body of no bytes may have it."""

    def __init__(self, coding: str) -> None:
        self._coding = coding

    def feed(self, data: bytes) -> Iterator[bytes]:  # noqa: ARG002 - nobody knows what it means
        raise ProtocolError(f"the body is encoded as {self._coding!r}, which was not asked for")

    def end(self) -> None:
        pass
