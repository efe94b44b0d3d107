"""Joined chunks have the same content as the received chunks, however the bytes are split."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from flux0.adapters.httpx.chunk_joining import ChunkJoiner
from flux0.adapters.urllib3.chunks import Chunks

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


def joined(first: bytes, *pieces: bytes) -> list[bytes]:
    joiner = ChunkJoiner(HEAD + first)
    return [joiner.join(piece) for piece in pieces]


def test_chunks_that_were_received_together_become_one_chunk() -> None:
    assert joined(b"", chunk(b"one") + chunk(b"two"), chunk(b"three")) == [
        chunk(b"onetwo"),
        chunk(b"three"),
    ]


def test_incomplete_chunks_are_returned_at_once() -> None:
    pieces = [b"5\r\nhe", b"llo\r\n" + chunk(b"a") + chunk(b"b") + b"3\r\nc", b"de\r\n"]
    assert joined(b"", *pieces) == [b"5\r\nhe", b"llo\r\n" + chunk(b"ab") + b"3\r\nc", b"de\r\n"]


def test_incomplete_size_line_is_returned_with_its_chunk() -> None:
    assert joined(chunk(b"a"), chunk(b"b") + b"1", b"\r\nc\r\n" + chunk(b"d")) == [
        chunk(b"b"),
        chunk(b"cd"),
    ]


@pytest.mark.parametrize(
    "unusual",
    [
        b"1;name=value\r\na\r\n",
        b"-1\r\n",
        b"\r\n",
        b"1\r\nab\r\n",
        b"0\r\n\r\n",
        b"1" * 17 + b"\r\n",
    ],
)
def test_bytes_after_an_unusual_size_line_stay_unchanged(unusual: bytes) -> None:
    two = chunk(b"a") + chunk(b"b")
    assert joined(b"", two + unusual + two, two) == [chunk(b"ab") + unusual + two, two]


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD,
        b"HTTP/1.1 200 OK\nname: value\r\n\r\n",
        b"name: value\r\n\r\n",
        HEAD + b"1",
    ],
)
def test_nothing_is_joined_if_the_start_of_the_body_is_not_known(start: bytes) -> None:
    two = chunk(b"a") + chunk(b"b")
    assert ChunkJoiner(start).join(two) == two


@given(
    contents=st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    cuts=st.lists(st.integers(0, 300), max_size=12),
)
def test_content_does_not_depend_on_joining(contents: Sequence[bytes], cuts: Sequence[int]) -> None:
    body = b"".join(map(chunk, contents)) + b"0\r\n\r\n"
    edges = sorted({0, *(cut for cut in cuts if cut < len(body)), len(body)})
    first, *pieces = [body[start:end] for start, end in pairwise(edges)]

    chunks = Chunks()
    content = chunks.feed(first)
    for piece in joined(first, *pieces):
        assert piece
        content += chunks.feed(piece)

    assert (content, chunks.ended, chunks.failure) == (b"".join(contents), True, None)
