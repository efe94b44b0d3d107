"""The contract for response bodies: a body is returned unchanged, or reading it fails."""

# ruff: noqa: S101 - the tests in this module use assert statements

from __future__ import annotations

import random
import tracemalloc
import zlib
from functools import partial
from gzip import compress

import pytest

from flux0.domain import errors
from flux0.testing.contract.base import Contract, check, fails, streams
from flux0.testing.contract.harness import Harness, get
from flux0.testing.contract.responses import (
    FRAMINGS,
    Disconnect,
    Framing,
    Reset,
    ServerSteps,
    WaitForRelease,
    Write,
    byte_by_byte,
    http_response,
    size,
    to_bytes,
    truncated,
)

_framings = pytest.mark.parametrize("framing", FRAMINGS)
# Each pair is a framing, and whether the body is compressed with gzip. A transport can detect a
# truncated body for each pair except the last: a close-delimited body without gzip.
_DETECTABLE = [(each, gzip) for each in FRAMINGS for gzip in (True, False)][:-1]
_codings = pytest.mark.parametrize("gzip", [False, True], ids=["identity", "gzip"])

_EVENTS = (b"data: one\n\n", b"data: \xc3\xa9\xe2\x80\xa8\n", b"\n", b"data: three\n\n")
_LARGE = random.Random(1).randbytes(300_000)  # noqa: S311 - not a secret
_BODIES = {"events": _EVENTS, "empty": (), "large": (_LARGE[:1000], _LARGE[1000:])}
_GZIPPED = [("Content-Encoding", "gzip")]
_START = http_response(framing="chunked")[0]

_FIRST = Write(to_bytes(http_response(b"first", framing="chunked")[:-1]))
_BAD_CHUNK = Write(b"xyz\r\nsecond\r\n")
_ZIPPED = to_bytes(http_response(b"first", framing="chunked", gzip=True)[:2])
_BAD_CHECKSUM = b"a\r\n\x03\x00" + bytes(8) + b"\r\n"
_LATE_CHECKSUM = Write(_ZIPPED), WaitForRelease(), Write(_BAD_CHECKSUM), Disconnect()
# Each fault occurs after the first piece of a body. `_LATE_FAULTS` maps the name of each fault to
# the server's steps and to the error that the transport must raise.
_LATE_FAULTS: dict[str, tuple[ServerSteps, type[errors.TransportError]]] = {
    "chunk": ((_FIRST, WaitForRelease(), _BAD_CHUNK, Disconnect()), errors.ProtocolError),
    "chunk-at-once": ((Write(_FIRST.data + _BAD_CHUNK.data), Disconnect()), errors.ProtocolError),
    "gzip": (_LATE_CHECKSUM, errors.ProtocolError),
    "gzip-at-once": ((Write(_ZIPPED + _BAD_CHECKSUM), Disconnect()), errors.ProtocolError),
    "end": ((_FIRST, WaitForRelease(), Disconnect()), errors.ConnectionInterrupted),
    "end-at-once": ((_FIRST, Disconnect()), errors.ConnectionInterrupted),
    "reset": ((_FIRST, WaitForRelease(), Reset()), errors.ConnectionInterrupted),
}
_TRAILERS = b"".join(b"X-%d: %s\r\n" % (number, b"x" * 1000) for number in range(2000))


class BodyContract(Contract):
    """Response bodies are returned unchanged, or reading a damaged body raises an error."""

    @_framings
    @_codings
    @streams
    def test_body_is_returned_unchanged(
        self, harness: Harness, framing: Framing, *, gzip: bool, stream: bool
    ) -> None:
        """`Response.close_delimited` is True only if the connection's end ends the body."""
        respond = partial(http_response, framing=framing, gzip=gzip)
        responses = {name: respond(*pieces) for name, pieces in _BODIES.items()}
        responses["byte by byte"] = byte_by_byte(responses["events"])
        server = harness.serve(*responses.values())
        for name in responses:
            response = harness.send(get(server.url, stream=stream))
            is_close_delimited = framing == "close-delimited"
            check(response.head.close_delimited, is_close_delimited, "Response.close_delimited")
            # Compare the bodies before the `assert` statement, because pytest needs minutes to show
            # the difference between two long bodies.
            same = response.read() == b"".join(_BODIES.get(name, _EVENTS))
            assert same, f"the received body differs from the sent body ({name})"

    @_framings
    @_codings
    @streams
    def test_pieces_are_yielded_when_they_arrive(
        self, harness: Harness, framing: Framing, *, gzip: bool, stream: bool
    ) -> None:
        steps = http_response(b"first", WaitForRelease(), b"second", framing=framing, gzip=gzip)
        server, response = harness.read_first(steps, stream=stream)
        server.release()
        check(response.read(), b"second", "the body")

    def test_chunk_extensions_and_trailers_are_ignored(self, harness: Harness) -> None:
        steps = _START, Write(b'2;a=1;b="x"\r\nok\r\n0;end\r\nX-Trailer: yes\r\n\r\n')
        server = harness.serve(steps)
        for _ in range(2):
            check(harness.fetch(get(server.url)), b"ok", "the body")

    @pytest.mark.parametrize("coding", ["gzip", "GZIP", "x-gzip", "identity"])
    def test_content_codings_are_decoded(self, harness: Harness, coding: str) -> None:
        """A gzip body may have several members (RFC 1952, section 2.2)."""
        pieces = _EVENTS if coding == "identity" else [compress(piece) for piece in _EVENTS]
        steps = http_response(b"".join(pieces), headers=[("Content-Encoding", coding)])
        _, response = harness.exchange(steps)
        check(response.read(), b"".join(_EVENTS), "the body")

    @pytest.mark.parametrize(("framing", "gzip"), _DETECTABLE)
    def test_truncated_body_is_an_interruption(
        self, harness: Harness, framing: Framing, *, gzip: bool
    ) -> None:
        """The server truncates the body at each position, even within the last chunk."""
        steps = http_response(b"event", b"chunk", framing=framing, gzip=gzip)
        start = size(steps[:1]) + (framing == "close-delimited")
        cuts = [truncated(steps, length) for length in range(start, size(steps))]
        server = harness.serve(*cuts)
        for _ in cuts:
            response = harness.send(get(server.url, stream=True))
            fails(response.read, errors.ConnectionInterrupted, caused=framing != "close-delimited")

    @pytest.mark.parametrize("framing", ["chunked", "content-length"])
    def test_truncated_gzip_is_an_interruption(self, harness: Harness, framing: Framing) -> None:
        """A proxy that loses its server may send truncated gzip data in a complete HTTP body."""
        whole = compress(b"event" * 100)
        lengths = range(1, len(whole))
        bodies = (http_response(whole[:n], framing=framing, headers=_GZIPPED) for n in lengths)
        server = harness.serve(*bodies)
        for _ in lengths:
            fails(harness.send(get(server.url)).read, errors.ConnectionInterrupted, caused=False)

    @pytest.mark.parametrize("damaged", [0, 12, -6, -2], ids=["head", "data", "crc", "length"])
    def test_corrupt_gzip_data_is_a_protocol_error(self, harness: Harness, damaged: int) -> None:
        """The trailer of gzip data contains a checksum and a length, which must be correct."""
        data = bytearray(compress(bytes(range(256))))
        data[damaged] ^= 0xFF
        _, response = harness.exchange(http_response(bytes(data), headers=_GZIPPED))
        fails(response.read, errors.ProtocolError)

    def test_unsupported_coding_is_a_protocol_error(self, harness: Harness) -> None:
        headers = [("Content-Encoding", "x-unheard-of")]
        steps = http_response(b"?", WaitForRelease(), b"?", headers=headers)
        server, response = harness.exchange(steps)
        fails(response.read, errors.ProtocolError, caused=False)
        server.wait_until_closed()

    @pytest.mark.parametrize("fault", _LATE_FAULTS)
    @streams
    def test_bytes_before_an_error_are_yielded(
        self, harness: Harness, fault: str, *, stream: bool
    ) -> None:
        steps, error = _LATE_FAULTS[fault]
        server, response = harness.read_first(steps, stream=stream)
        server.release()
        fails(response.read, error)
        server.wait_until_closed()

    @pytest.mark.parametrize(
        "ending",
        [b"2;" + b"x" * 2_000_000 + b"\r\nok\r\n0\r\n\r\n", b"0\r\n" + _TRAILERS + b"\r\n"],
        ids=["extension", "trailers"],
    )
    def test_chunk_overhead_is_limited(self, harness: Harness, ending: bytes) -> None:
        server, response = harness.exchange((_START, Write(ending)))
        fails(response.read, errors.ProtocolError)
        server.wait_until_closed()

    def test_decompression_bomb_is_decoded_in_pieces(self, harness: Harness) -> None:
        """200 kB of gzip data decode to 200 MB. Reading 4 MB needs less than 32 MB of memory."""
        compressor = zlib.compressobj(9, wbits=31)
        first, another = (
            compressor.compress(bytes(1_000_000)) + compressor.flush(zlib.Z_FULL_FLUSH)
            for _ in range(2)
        )
        # After a full flush, compressed data does not depend on earlier bytes. Therefore, the body
        # can repeat `another`, which is 1 MB of zeros in compressed form.
        _, response = harness.exchange(http_response(first + another * 199, headers=_GZIPPED))
        tracemalloc.start()
        try:
            read = len(response.read(4_000_000))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert read >= 4_000_000, "the body ended too early"  # noqa: PLR2004
        assert peak < 32_000_000, "reading 4 MB of the body needed 32 MB of memory"  # noqa: PLR2004
        response.close()
