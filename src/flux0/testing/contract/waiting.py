"""The contract's part on waiting: a silent server is waited for no longer than the request says."""

# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

import socket
from gzip import compress
from typing import ClassVar

import pytest
from attrs import evolve

from flux0.domain.errors import ReadTimeout, TransportError, WriteTimeout
from flux0.ports import Interrupt, Timeout
from flux0.testing.contract.answers import Answer, Hold, Pause, Write, answer, head
from flux0.testing.contract.base import PATIENT, SHORT, Contract, Serve, get, post, streams
from flux0.testing.contract.faults import fails
from flux0.testing.contract.probe import Probe


class SilenceContract(Contract):
    """A silent server is not waited for longer than the request's timeouts say."""

    @streams
    def test_the_headers_do_not_come(self, probe: Probe, serve: Serve, *, stream: bool) -> None:
        """`Timeout.read` is the limit, and the connection is closed then."""
        server = serve((Hold(),))
        timeout = evolve(PATIENT, read=SHORT)
        fails(probe, get(server.url, stream=stream, timeout=timeout), ReadTimeout)
        server.wait_until_gone()

    @pytest.mark.parametrize(
        ("stream", "status", "timeout"),
        [
            (False, "200 OK", evolve(PATIENT, read=SHORT)),
            (True, "200 OK", evolve(PATIENT, idle=SHORT)),
            (True, "500 Broken", evolve(PATIENT, read=SHORT)),
        ],
        ids=["whole", "stream", "error"],
    )
    def test_a_body_stops(
        self, probe: Probe, serve: Serve, status: str, timeout: Timeout, *, stream: bool
    ) -> None:
        """`Timeout.idle` is the limit of a stream, which is a success; else `Timeout.read`."""
        server = serve(answer(b"first", Hold(), framing="chunked", status=status))
        request = get(server.url, stream=stream, timeout=timeout)
        fails(probe, request, ReadTimeout, read=True)
        server.wait_until_gone()

    def test_a_stream_may_be_silent_for_longer_than_an_answer(
        self, probe: Probe, serve: Serve
    ) -> None:
        """`Timeout.read` has no say in the body of a stream."""
        server = serve(answer(b"first", Hold(), b"second", framing="chunked"))
        reply = probe.send(get(server.url, stream=True, timeout=evolve(PATIENT, read=SHORT)))
        assert reply.read_exactly(5) == b"first"
        following = reply.start_next()
        assert following.lasts(3 * SHORT)
        server.release()
        assert following.outcome() == b"second"
        assert reply.read() == b""

    def test_the_server_does_not_take_the_body(self, probe: Probe) -> None:
        """A body too large for the buffers on the way; `Timeout.write` is the limit."""
        timeout = evolve(PATIENT, connect=SHORT, read=SHORT, write=SHORT)
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            url = f"http://127.0.0.1:{deaf.getsockname()[1]}/"
            fails(probe, post(url, bytes(64_000_000), timeout=timeout), WriteTimeout, ReadTimeout)

    def test_compressed_data_without_content(self, probe: Probe, serve: Serve) -> None:
        """Whoever reads gets control back, and can look at the clock."""
        start, *_ = answer(framing="chunked", headers=[("Content-Encoding", "gzip")])
        server = serve((start, *answer(compress(b""), Hold(), framing="chunked")[1:]))
        assert probe.send(get(server.url, stream=True)).next() == b""


# What a server does that keeps a synchronous call waiting for the head, read timeout or not.
DRIPPING: dict[str, Answer] = {
    "silence": (Hold(),),
    "drops": tuple(step for byte in b"HTTP/1.1 200" for step in (Write(bytes((byte,))), Pause(1))),
    "interim": (head("100 Continue"), Pause(0.1)) * 100,
}


class InterruptContract(Contract):
    """`Request.interrupt` ends the wait for a head, as a call that is past its `timeout_ms` needs.

    Attributes:
        interruptible: whether the transport heeds it. Without, each call lasts for as long as its
            server sends a byte now and then.
    """

    interruptible: ClassVar[bool] = True

    @pytest.mark.parametrize("server_does", DRIPPING)
    def test_a_call_is_interrupted(self, probe: Probe, serve: Serve, server_does: str) -> None:
        """Another thread fires it, and the call fails at once."""
        server = serve(DRIPPING[server_does])
        interrupt = Interrupt()
        sending = probe.start(evolve(get(server.url), interrupt=interrupt))
        server.wait_for_requests(1)
        if self.interruptible:
            interrupt.fire()
            with pytest.raises(TransportError):
                sending.outcome()
            server.wait_until_gone()

    def test_a_call_was_interrupted_before(self, probe: Probe, serve: Serve) -> None:
        """It fails as soon as it can."""
        interrupt = Interrupt()
        interrupt.fire()
        if self.interruptible:
            with pytest.raises(TransportError):
                probe.send(evolve(get(serve((Hold(),)).url), interrupt=interrupt))

    @pytest.mark.parametrize("status", ["200 OK", "500 Broken"])
    def test_an_interrupt_that_comes_too_late(
        self, probe: Probe, serve: Serve, status: str
    ) -> None:
        """With the head in, it does nothing: the connection may have another user by then."""
        server = serve(answer(b"first", Hold(), b"second", framing="chunked", status=status))
        interrupt = Interrupt()
        reply = probe.send(evolve(get(server.url), interrupt=interrupt))
        interrupt.fire()
        server.release()
        assert reply.read() == b"firstsecond"
        assert probe.fetch(get(server.url)) == b"firstsecond"
