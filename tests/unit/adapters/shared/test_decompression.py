"""Bodies that are decompressed here come out as they went in, or not at all."""

from __future__ import annotations

import gzip
import zlib

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
    """Return what `data`, arriving in pieces of this size, decodes to."""
    made = decoder(coding)
    starts = range(0, len(data), size)
    body = b"".join(piece for start in starts for piece in made.feed(data[start : start + size]))
    made.end()
    return body


def handed_out(data: bytes) -> bytes:
    """Return what is handed out of one buffer before it turns out to be broken."""
    pieces: list[bytes] = []
    with pytest.raises(ProtocolError):
        pieces.extend(decoder().feed(data))
    return b"".join(pieces)


@pytest.mark.parametrize("coding", ["", "identity", " Identity "])
def test_nothing_needs_to_be_done_for_identity(coding: str) -> None:
    assert decoder_for(coding) is None


@given(members=st.lists(bodies, min_size=1, max_size=3), size=st.integers(1, 100))
def test_gzip_in_members_and_pieces(members: list[bytes], size: int) -> None:
    compressed = b"".join(map(gzip.compress, members))
    assert decoded(" GZip", compressed, size) == b"".join(members)


@given(body=bodies, size=st.integers(1, 100), wbits=st.sampled_from([15, -15]))
def test_deflate_may_be_raw(body: bytes, size: int, wbits: int) -> None:
    compressor = zlib.compressobj(wbits=wbits)
    compressed = compressor.compress(body) + compressor.flush()
    assert decoded("deflate", compressed, size) == body
    with pytest.raises(ConnectionInterrupted):
        decoded("deflate", compressed[:-1])


@given(body=bodies, data=st.data())
def test_every_beginning_of_a_body_is_one_cut_short(body: bytes, data: st.DataObject) -> None:
    compressed = gzip.compress(body)
    length = data.draw(st.integers(1, len(compressed) - 1))
    with pytest.raises(ConnectionInterrupted):
        decoded("gzip", compressed[:length])


@given(body=bodies, rest=st.binary(min_size=10, max_size=30))
def test_what_follows_a_body_is_another_member_or_broken(body: bytes, rest: bytes) -> None:
    with pytest.raises((ProtocolError, ConnectionInterrupted)):
        decoded("gzip", gzip.compress(body) + b"\x00" + rest)


@pytest.mark.parametrize("coding", ["br", "gzip, gzip", "x-unknown"])
def test_a_coding_that_is_not_known_is_named(coding: str) -> None:
    assert decoded(coding, b"") == b""
    with pytest.raises(ProtocolError, match=coding):
        decoded(coding, b"data")


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1, 3 << 20])
def test_pieces_are_of_a_mebibyte_at_most(size: int) -> None:
    made = decoder()
    pieces = list(made.feed(gzip.compress(bytes(size))))
    made.end()
    assert sum(map(len, pieces)) == size
    assert max(map(len, pieces)) <= 1 << 20


@pytest.mark.parametrize("data", [gzip.compress(b""), gzip.compress(b"") * 9, b""], ids=len)
def test_what_holds_no_content_gives_control_back(data: bytes) -> None:
    made = decoder()
    for _ in range(3):
        assert list(made.feed(data)) == [b""]
    made.end()


@given(body=bodies, place=st.integers(-8, -1))
def test_what_comes_before_a_wrong_checksum_is_handed_out(body: bytes, place: int) -> None:
    data = bytearray(gzip.compress(body))
    data[place] ^= 0xFF
    assert handed_out(bytes(data)) == body


def test_what_comes_before_broken_data_is_handed_out() -> None:
    compressor = zlib.compressobj(wbits=31)
    whole = compressor.compress(b"data: 1\n\n") + compressor.flush(zlib.Z_SYNC_FLUSH)
    assert handed_out(whole + b"\xff" * 9) == b"data: 1\n\n"
    assert handed_out(gzip.compress(b"data: 2\n\n") + b"\xff" * 9) == b"data: 2\n\n"
