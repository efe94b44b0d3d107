"""Decompression of bodies: the result is the exact content or an error."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from bisect import bisect
from random import Random

import pytest
from hypothesis import given, strategies as st

from flux0.adapters.shared.decompression import Decoder, decoder_for
from flux0.domain.errors import ConnectionInterrupted, ProtocolError

bodies = st.binary(max_size=200) | st.binary(max_size=20).map(lambda data: data * 50)


def decoder(coding: str = "gzip") -> Decoder:
    made = decoder_for(coding)
    assert made is not None
    return made


def decoded(coding: str, data: bytes, size: int = 1000) -> bytes:
    """Return the content of `data`, fed to the decoder in pieces of `size` bytes."""
    made = decoder(coding)
    starts = range(0, len(data), size)
    body = b"".join(piece for start in starts for piece in made.feed(data[start : start + size]))
    made.end()
    return body


def content_before_error(data: bytes) -> bytes:
    """Feed invalid data in one call, and return the content that is yielded before the error."""
    pieces: list[bytes] = []
    with pytest.raises(ProtocolError):
        pieces.extend(decoder().feed(data))
    return b"".join(pieces)


@pytest.mark.parametrize("coding", ["", "identity", " Identity "])
def test_identity_needs_no_decoder(coding: str) -> None:
    assert decoder_for(coding) is None


@given(members=st.lists(bodies, min_size=1, max_size=3), size=st.integers(1, 100))
def test_gzip_members_are_decoded_one_after_another(members: list[bytes], size: int) -> None:
    compressed = b"".join(map(gzip.compress, members))
    assert decoded(" GZip", compressed, size) == b"".join(members)


@given(body=bodies, size=st.integers(1, 100), wbits=st.sampled_from([15, -15, 31]))
def test_deflate_may_be_raw_or_gzip(body: bytes, size: int, wbits: int) -> None:
    compressor = zlib.compressobj(wbits=wbits)
    compressed = compressor.compress(body) + compressor.flush()
    assert decoded("deflate", compressed, size) == body
    with pytest.raises(ConnectionInterrupted):
        decoded("deflate", compressed[:-1])


@given(body=bodies, data=st.data())
def test_truncated_gzip_is_interrupted(body: bytes, data: st.DataObject) -> None:
    compressed = gzip.compress(body)
    length = data.draw(st.integers(1, len(compressed) - 1))
    with pytest.raises(ConnectionInterrupted):
        decoded("gzip", compressed[:length])


@given(body=bodies, rest=st.binary(min_size=10, max_size=30))
def test_data_after_a_gzip_member_must_be_another_member(body: bytes, rest: bytes) -> None:
    with pytest.raises((ProtocolError, ConnectionInterrupted)):
        decoded("gzip", gzip.compress(body) + b"\x00" + rest)


@pytest.mark.parametrize("coding", ["br", "gzip, gzip", "x-unknown"])
def test_unknown_coding_is_named_in_the_error(coding: str) -> None:
    assert decoded(coding, b"") == b""
    with pytest.raises(ProtocolError, match=coding):
        decoded(coding, b"data")


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1, 3 << 20])
def test_pieces_have_at_most_one_mebibyte(size: int) -> None:
    made = decoder()
    pieces = list(made.feed(gzip.compress(bytes(size))))
    made.end()
    assert sum(map(len, pieces)) == size
    assert max(map(len, pieces)) <= 1 << 20


def test_content_of_a_full_piece_is_yielded_without_further_data() -> None:
    """zlib has read all data, but has more output than fits in one piece."""

    def size(received: int) -> int:
        return len(zlib.decompressobj(wbits=31).decompress(data[:received]))

    data = gzip.compress(bytes(2 << 20))
    received = bisect(range(len(data)), 1 << 20, key=size)
    assert len(b"".join(decoder().feed(data[:received]))) == size(received) > 1 << 20


@pytest.mark.parametrize("data", [gzip.compress(b""), gzip.compress(b"") * 9, b""], ids=len)
def test_data_without_content_yields_nothing(data: bytes) -> None:
    made = decoder()
    for _ in range(3):
        assert list(made.feed(data)) == []
    made.end()


@given(body=bodies, place=st.integers(-8, -1))
def test_content_before_a_wrong_checksum_is_yielded(body: bytes, place: int) -> None:
    data = bytearray(gzip.compress(body))
    data[place] ^= 0xFF
    assert content_before_error(bytes(data)) == body


def test_content_before_invalid_data_is_yielded() -> None:
    compressor = zlib.compressobj(wbits=31)
    whole = compressor.compress(b"data: 1\n\n") + compressor.flush(zlib.Z_SYNC_FLUSH)
    assert content_before_error(whole + b"\xff" * 9) == b"data: 1\n\n"
    assert content_before_error(gzip.compress(b"data: 2\n\n") + b"\xff" * 9) == b"data: 2\n\n"


@pytest.mark.parametrize("count", [3, 30, 300])
def test_content_before_an_error_is_yielded_after_many_pieces(count: int) -> None:
    """The compressed data of 300 pieces is larger than the data that the decoder stores."""
    random = Random(count)  # noqa: S311 - data that cannot be compressed
    events = [random.randbytes(300) for _ in range(count)]
    compressor, made = zlib.compressobj(wbits=31), decoder()
    content = list(made.feed(gzip.compress(b"data: first\n\n")))  # The first of two members.
    for event in events:
        data = compressor.compress(event) + compressor.flush(zlib.Z_SYNC_FLUSH)
        content.extend(made.feed(data))
    last = compressor.compress(b"data: last\n\n") + compressor.flush(zlib.Z_SYNC_FLUSH)
    with pytest.raises(ProtocolError):
        content.extend(made.feed(last + b"\xff" * 9))
    assert b"".join(content) == b"".join((b"data: first\n\n", *events, b"data: last\n\n"))


def test_content_before_an_error_is_yielded_once_after_full_pieces() -> None:
    body = bytes(3 << 20)
    data = gzip.compress(body)
    assert content_before_error(data[:-8] + bytes(8)) == body


@pytest.mark.parametrize("window", range(9, 16))
def test_zlib_data_with_any_window_size_is_deflate(window: int) -> None:
    """The window size is in the first byte, which distinguishes zlib from raw data."""
    compressor = zlib.compressobj(wbits=window)
    data = compressor.compress(b"hello " * 100) + compressor.flush()
    assert decoded("deflate", data) == b"hello " * 100


def test_received_data_is_not_kept() -> None:
    """A part is kept, for the content before an error."""
    made, compressed = decoder(), gzip.compress(Random(1).randbytes(4_000_000))  # noqa: S311 - no secret
    tracemalloc.start()
    for start in range(0, len(compressed), 10_000):
        for _ in made.feed(compressed[start : start + 10_000]):
            pass
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert memory < 500_000
