"""The contract's part on bodies: the bytes are the same however they were framed and split."""

# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

import random
from gzip import compress

import pytest

from flux0.testing.contract.answers import FRAMINGS, Framing, Hold, Write, answer, byte_by_byte
from flux0.testing.contract.base import Contract, Serve, get, streams
from flux0.testing.contract.probe import Probe

framings: pytest.MarkDecorator = pytest.mark.parametrize("framing", FRAMINGS)
codings: pytest.MarkDecorator = pytest.mark.parametrize(
    "gzip", [False, True], ids=["identity", "gzip"]
)

_PIECES = (b"data: one\n\n", b"data: \xc3\xa9\xe2\x80\xa8\n", b"\n", b"data: three\n\n")


class FramingContract(Contract):
    """A body is what the server wrote, and is handed over as it arrives."""

    @framings
    @codings
    @streams
    def test_a_body_in_pieces(
        self, probe: Probe, serve: Serve, framing: Framing, *, gzip: bool, stream: bool
    ) -> None:
        """Nothing is lost, added or changed."""
        server = serve(answer(*_PIECES, framing=framing, gzip=gzip))
        assert probe.fetch(get(server.url, stream=stream)) == b"".join(_PIECES)

    @framings
    @codings
    def test_a_body_byte_by_byte(
        self, probe: Probe, serve: Serve, framing: Framing, *, gzip: bool
    ) -> None:
        """Even heads of chunks and of gzip may come in pieces."""
        server = serve(byte_by_byte(answer(*_PIECES, framing=framing, gzip=gzip)))
        assert probe.fetch(get(server.url)) == b"".join(_PIECES)

    @framings
    @codings
    def test_an_end_that_nothing_proves_is_told(
        self, probe: Probe, serve: Serve, framing: Framing, *, gzip: bool
    ) -> None:
        """A server that was killed ends such a body in the same way."""
        server = serve(answer(*_PIECES, framing=framing, gzip=gzip))
        reply = probe.send(get(server.url, stream=True))
        assert reply.ends_by_closing is (framing == "until-close")
        assert reply.read() == b"".join(_PIECES)

    @framings
    @codings
    def test_an_empty_body(
        self, probe: Probe, serve: Serve, framing: Framing, *, gzip: bool
    ) -> None:
        """No bytes are a body too."""
        server = serve(answer(framing=framing, gzip=gzip))
        assert probe.fetch(get(server.url, stream=True)) == b""

    @framings
    @codings
    def test_a_large_body(
        self, probe: Probe, serve: Serve, framing: Framing, *, gzip: bool
    ) -> None:
        """A megabyte in two pieces, neither of them compressible."""
        body = random.Random(1).randbytes(1_000_000)  # noqa: S311 - not a secret
        server = serve(answer(body[:1000], body[1000:], framing=framing, gzip=gzip))
        assert probe.fetch(get(server.url)) == body

    @framings
    @codings
    @streams
    def test_a_piece_is_handed_over_at_once(
        self, probe: Probe, serve: Serve, framing: Framing, *, gzip: bool, stream: bool
    ) -> None:
        """A piece is not held back until more arrives, nor until the body ends."""
        steps = answer(b"first", Hold(), b"second", framing=framing, gzip=gzip)
        server = serve(steps)
        reply = probe.send(get(server.url, stream=stream))
        assert reply.read_exactly(5) == b"first"
        server.release()
        assert reply.read() == b"second"

    @framings
    def test_what_proves_the_end(self, probe: Probe, serve: Serve, framing: Framing) -> None:
        """Nothing does where a body ends with its connection, as it also does if a server dies."""
        reply = probe.send(get(serve(answer(b"ok", framing=framing)).url, stream=True))
        assert (reply.ends_by_closing, reply.read()) == (framing == "until-close", b"ok")

    def test_chunks_may_say_more(self, probe: Probe, serve: Serve) -> None:
        """Extensions of chunks and trailers are no part of the body (RFC 9112, section 7.1)."""
        start, *_ = answer(framing="chunked")
        body = Write(b'2;a=1;b="x"\r\nok\r\n0;end\r\nX-Trailer: yes\r\n\r\n')
        server = serve((start, body))
        for _ in range(2):
            assert probe.fetch(get(server.url)) == b"ok"

    @pytest.mark.parametrize("coding", ["gzip", "GZIP", "x-gzip"])
    def test_gzip_has_members(self, probe: Probe, serve: Serve, coding: str) -> None:
        """All of them are the body (RFC 1952, section 2.2)."""
        members = [compress(piece) for piece in _PIECES]
        server = serve(answer(b"".join(members), headers=[("Content-Encoding", coding)]))
        assert probe.fetch(get(server.url)) == b"".join(_PIECES)

    def test_the_body_may_be_as_it_is(self, probe: Probe, serve: Serve) -> None:
        """`identity` is the coding that changes nothing."""
        server = serve(answer(b"ok", headers=[("Content-Encoding", "identity")]))
        assert probe.fetch(get(server.url)) == b"ok"
