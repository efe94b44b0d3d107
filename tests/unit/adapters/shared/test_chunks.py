"""The parser for the chunked coding, with input that is split at random positions."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given, strategies as st

from flux0.adapters.shared.chunks import Chunks

# Some of these contents look like chunk framing.
CONTENT = st.sampled_from([b"4\r\nabcd\r\n", b"0\r\n\r\n", b"\r\n", b"\n", b"4", b"data: {}\n\n"])
SIZE = st.sampled_from(["{:x}", "{:X}", "00{:x}", "{:x};name=value", " {:x} "])
LAST = st.sampled_from([b"0", b"00", b"0" * 17, b"0;name=value", b" 0 "])
TRAILER = st.sampled_from([b"", b"4\r\nabcd\r\n", b"Name: value\r\n"])
SURPLUS = st.sampled_from([b"", b"4\r\nabcd\r\n", b"\r\n", b"\n", b"\r\nHTTP/1.1 200 OK\r\n\r\n"])
END = st.sampled_from([b"\r\n", b"\n"])


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    positions = sorted({0, *(cut % len(data) for cut in cuts), len(data)})
    return [data[start:end] for start, end in pairwise(positions)]


@given(
    chunks=st.lists(st.tuples(SIZE, CONTENT, END), max_size=4),
    last=LAST,
    trailer=TRAILER,
    surplus=SURPLUS,
    cuts=st.lists(st.integers(0), max_size=8),
)
@example([("{:x}", b"4\r\nabcd\r\n", b"\r\n")], b"0", b"", b"", [3, 12, 14])
@example([("{:x}", b"4", b"\r\n")], b"0", b"", b"", [4, 5])
@example([], b"0", b"4\r\nabcd\r\n", b"", [3, 12])
@example([("{:x}", b"abcd\r\n" + bytes(14), b"\r\n")], b"0", b"", b"", [1, 10])
@example([], b"00", b"", b"", [])
@example([], b"0", b"", b"\r\n", [])
def test_content_does_not_depend_on_how_the_bytes_are_split(
    chunks: list[tuple[str, bytes, bytes]],
    last: bytes,
    trailer: bytes,
    surplus: bytes,
    cuts: list[int],
) -> None:
    body = b"".join(
        b"".join((size.format(len(content)).encode(), end, content, end))
        for size, content, end in chunks
    )
    parser = Chunks()
    pieces = split(body + last + b"\r\n" + trailer + b"\r\n", cuts)
    content_fed = b"".join(map(parser.feed, [*pieces[:-1], pieces[-1] + surplus]))
    assert content_fed == b"".join(content for _, content, _ in chunks)
    assert (parser.failure, parser.ended, parser.surplus) == (None, True, surplus)


@given(st.sampled_from([b"3\r\nabcXY0\r\n\r\n", b"3\r\nabc3\r\nabc\r\n"]), st.lists(st.integers(0)))
@example(b"3\r\nabcXY0\r\n\r\n", [8])
def test_a_chunk_longer_than_its_size_is_a_failure(body: bytes, cuts: list[int]) -> None:
    parser = Chunks()
    for piece in split(body, cuts):
        parser.feed(piece)
    assert parser.failure is not None


@pytest.mark.parametrize("size", [b"", b"xyz", b"-1", b"+1", b"1_0", b"0x1", b"1 1", b";name=1"])
@pytest.mark.parametrize("start", [b"", b"1\r\na\r\n"])
def test_chunk_size_that_is_not_hexadecimal_is_a_failure(size: bytes, start: bytes) -> None:
    parser = Chunks()
    assert parser.feed(start + size + b"\r\nabc\r\n") == start[3:4]
    assert parser.failure == f"the chunk size is not a hexadecimal number: {size!r}"
    assert not parser.ended


@pytest.mark.parametrize("cuts", [[], [1], [20_000]])
@pytest.mark.parametrize(
    "body",
    [
        b"0" * 20_000 + b"3\r\nabc\r\n",
        b"3;" + b"x" * 20_000 + b"\r\nabc\r\n",
        b"0\r\n" + b"Name: value\r\n" * 6_000 + b"\r\n",
    ],
    ids=["size", "extension", "trailer"],
)
def test_lines_and_trailers_over_the_limit_are_a_failure(body: bytes, cuts: list[int]) -> None:
    parser = Chunks()
    for piece in split(body, cuts):
        parser.feed(piece)
    assert parser.failure is not None
    assert not parser.ended


@pytest.mark.parametrize("start", [b"", b"3;name=", b"3\r\nabc", b"0\r\n", b"0\r\nName: "])
def test_line_without_an_end_fails_before_it_is_complete(start: bytes) -> None:
    """If the whole line were awaited, an endless line would fill the memory."""
    parser, received = Chunks(), 0
    parser.feed(start)
    while parser.failure is None and received < 2_000_000:
        parser.feed(b"0" * 1_000)
        received += 1_000
    assert received <= 17_000
