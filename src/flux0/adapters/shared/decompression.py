"""Decompression of response bodies, in pieces of limited size.

Some HTTP libraries accept truncated gzip or deflate data as complete. This module raises an error
for truncated data.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from flux0.domain.errors import ConnectionInterrupted, ProtocolError

# The largest number of bytes in one piece of decompressed data. Without this limit, a small input
# fills the memory, because it can decompress to a thousand times its size.
_MAX_PIECE_BYTES: Final = 1 << 20
# The decoder copies the state of zlib after each `_MAX_KEPT_BYTES` received bytes, and not for each
# event, because a copy takes longer than the decompression of one event.
_MAX_KEPT_BYTES: Final = 16 * 1024
_PLAIN: Final = frozenset({"", "identity"})
_COMPRESSED: Final = frozenset({"gzip", "x-gzip", "deflate"})


def decoder_for(coding: str) -> Decoder | None:
    coding = coding.strip().lower()
    return None if coding in _PLAIN else Decoder(coding)


class Decoder:
    """Decompresses one gzip or deflate body piece by piece, as the bytes are received.

    Gzip data may have several members (RFC 1952, section 2.2). Deflate data may be in the zlib
    format, or raw, because some servers omit the zlib header (RFC 9110, section 8.4.1.2). Some
    servers also send gzip data as deflate.
    """

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._member: Any = None
        # If zlib finds an error in an input, it drops the valid content before the error. To return
        # this content, the decoder decompresses the input again from a copy of zlib's state.
        # Copying is slow, so the decoder makes one copy for many small inputs, and stores these
        # inputs.
        self._copy: Any = None
        self._inputs: list[bytes] = []
        self._input_bytes = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the decompressed content of `data`, in pieces of at most 1 MiB.

        Raises:
            ProtocolError: The data is invalid. The content before the error is yielded first.
        """
        piece = b""
        # If the last piece had the maximum size, zlib can have more output without further input.
        while data or (len(piece) == _MAX_PIECE_BYTES and not self._member.eof):
            if self._member is None or self._member.eof:
                bits = self._window_bits(data[0])
                self._member, self._copy = zlib.decompressobj(bits), zlib.decompressobj(bits)
                self._inputs, self._input_bytes = [], 0
            elif self._input_bytes > _MAX_KEPT_BYTES:
                self._copy, self._inputs, self._input_bytes = self._member.copy(), [], 0
            self._inputs.append(data)
            self._input_bytes += len(data)
            try:
                piece = self._member.decompress(data, _MAX_PIECE_BYTES)
            except zlib.error as error:
                yield _content_before_error(self._copy, *self._inputs)
                raise ProtocolError(f"the {self._coding} data is invalid: {error}") from error
            if piece:
                yield piece
            data = self._member.unused_data or self._member.unconsumed_tail

    def end(self) -> None:
        """Check that the compressed data is complete. Call this method when the body has ended.

        Raises:
            ConnectionInterrupted: The compressed data is truncated.
        """
        if self._member is not None and not self._member.eof:
            raise ConnectionInterrupted("the body ended before the end of its compressed data")

    def _window_bits(self, first: int) -> int:
        if self._coding not in _COMPRESSED:
            raise ProtocolError(
                f"the content coding of the body must be gzip or deflate, not {self._coding!r}"
            )
        # Some servers send raw data for the coding "deflate", instead of the zlib format. In the
        # zlib format, the low 4 bits of the first byte are 8. In valid raw data, they are never 8.
        raw = self._coding == "deflate" and first != 0x1F and first & 0xF != 8  # noqa: PLR2004
        # If 32 is added to `wbits`, zlib detects whether the data is in the gzip or the zlib
        # format.
        return -zlib.MAX_WBITS if raw else 32 + zlib.MAX_WBITS


def _content_before_error(member: Any, *inputs: bytes) -> bytes:
    """Return the decompressed content of the last input, up to its first invalid byte.

    `member` is a zlib decompressor that has not received `inputs` yet.
    """
    *earlier, last = inputs
    for data in earlier:
        member.decompress(data, _MAX_PIECE_BYTES)
    pieces: list[bytes] = []
    with suppress(zlib.error):
        pieces.extend(member.decompress(bytes((byte,))) for byte in last)
    return b"".join(pieces)
