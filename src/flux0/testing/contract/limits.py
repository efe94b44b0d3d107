"""The contract's part on what grows without end: it fills neither the memory nor the time."""

# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

import tracemalloc
import zlib

import pytest

from flux0.domain.errors import ProtocolError
from flux0.testing.contract.answers import Hold, Write, answer, head
from flux0.testing.contract.base import Contract, Serve, get
from flux0.testing.contract.faults import fails
from flux0.testing.contract.probe import Probe

_MEGABYTES = [(f"X-{number}", "x" * 1000) for number in range(2000)]
_FIELDS = "".join(f"{name}: {value}\r\n" for name, value in _MEGABYTES).encode()


class LimitContract(Contract):
    """What comes beside the content has a limit in bytes, and content is handed over in pieces."""

    def test_the_head_is_too_large(self, probe: Probe, serve: Serve) -> None:
        """Two megabytes of header fields."""
        fails(probe, get(serve((head("200 OK", _MEGABYTES), Hold())).url), ProtocolError)

    @pytest.mark.parametrize("fields", [[], _MEGABYTES[:20]], ids=["small", "large"])
    def test_there_are_too_many_interim_answers(
        self, probe: Probe, serve: Serve, fields: list[tuple[str, str]]
    ) -> None:
        """Two megabytes of them, though each is small."""
        interim = head("100 Continue", fields).data
        steps = (Write(interim * (2_000_000 // len(interim))), *answer(b"ok"))
        fails(probe, get(serve(steps).url), ProtocolError)

    @pytest.mark.parametrize(
        "ending",
        [
            b"2;" + b"x" * 2_000_000 + b"\r\nok\r\n0\r\n\r\n",
            b"0\r\n" + _FIELDS + b"\r\n",
        ],
        ids=["extension", "trailers"],
    )
    def test_the_chunks_say_too_much(self, probe: Probe, serve: Serve, ending: bytes) -> None:
        """Two megabytes of what is no content."""
        start, *_ = answer(framing="chunked")
        server = serve((start, Write(ending)))
        fails(probe, get(server.url), ProtocolError, read=True)
        server.wait_until_gone()

    def test_a_small_body_that_grows_is_not_built_whole(self, probe: Probe, serve: Serve) -> None:
        """200 MB in 200 kB of gzip: whoever reads with a limit needs memory for little more."""
        server = serve(answer(_bomb(megabytes=200), headers=[("Content-Encoding", "gzip")]))
        reply = probe.send(get(server.url))
        tracemalloc.start()
        try:
            read = len(reply.read_exactly(4_000_000))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert read >= 4_000_000  # noqa: PLR2004
        assert peak < 32_000_000  # noqa: PLR2004
        reply.close()


def _bomb(megabytes: int) -> bytes:
    compressor = zlib.compressobj(9, wbits=31)
    first, another = (
        compressor.compress(bytes(1_000_000)) + compressor.flush(zlib.Z_FULL_FLUSH)
        for _ in range(2)
    )
    # After a full flush the compressor starts afresh, so one block serves many times.
    return first + another * (megabytes - 1)
