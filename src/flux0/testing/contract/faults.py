"""The contract's part on failures: each is the right error of ours, caused by the library's."""

# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from gzip import compress

import pytest
from attrs import evolve

from flux0.domain.errors import (
    ConnectError,
    ConnectionInterrupted,
    ConnectTimeout,
    ProtocolError,
    TransportError,
)
from flux0.ports import Request
from flux0.testing.contract.answers import (
    Answer,
    Disconnect,
    Framing,
    Hold,
    Reset,
    Write,
    answer,
    body_size,
    cut,
    size,
    written,
)
from flux0.testing.contract.base import PATIENT, SHORT, Contract, Serve, get, streams
from flux0.testing.contract.probe import Probe


def fails(
    probe: Probe,
    request: Request,
    *kinds: type[TransportError],
    read: bool = False,
    caused: bool = True,
) -> None:
    """Assert that sending, or with `read` reading the body, raises exactly one of `kinds`.

    Its cause must be the library's exception, if there is one.
    """
    failing = probe.send(request).read if read else partial(probe.send, request)
    with pytest.raises(TransportError) as caught:
        failing()
    assert type(caught.value) in kinds
    assert str(caught.value)
    if caused:
        cause = caught.value.__cause__
        assert isinstance(cause, Exception), "the library's exception is not the cause"
        assert not isinstance(cause, TransportError)


_FIRST = Write(written(answer(b"first", framing="chunked")[:-1]))
_BAD_CHUNK = Write(b"xyz\r\nsecond\r\n")
_ZIPPED = written(answer(b"first", framing="chunked", gzip=True)[:2])
_BAD_CHECKSUM = b"a\r\n\x03\x00" + bytes(8) + b"\r\n"

# How a body goes on after its first piece, and the error that it ends with.
LATE_FAULTS: dict[str, tuple[Answer, type[TransportError]]] = {
    "chunk": ((_FIRST, Hold(), _BAD_CHUNK, Disconnect()), ProtocolError),
    "chunk-at-once": ((Write(_FIRST.data + _BAD_CHUNK.data), Disconnect()), ProtocolError),
    "gzip": ((Write(_ZIPPED), Hold(), Write(_BAD_CHECKSUM), Disconnect()), ProtocolError),
    "gzip-at-once": ((Write(_ZIPPED + _BAD_CHECKSUM), Disconnect()), ProtocolError),
    "end": ((_FIRST, Hold(), Disconnect()), ConnectionInterrupted),
    "end-at-once": ((_FIRST, Disconnect()), ConnectionInterrupted),
    "reset": ((_FIRST, Hold(), Reset()), ConnectionInterrupted),
}


class ConnectFaultContract(Contract):
    """No connection: nothing was sent, and the error says so."""

    def test_the_name_is_unknown(self, probe: Probe) -> None:
        """The domain `.invalid` has no hosts (RFC 2606)."""
        fails(probe, get("http://flux0.invalid/"), ConnectError)

    @pytest.mark.parametrize("host", ["a" * 64 + ".invalid", "a..invalid"])
    def test_the_name_is_no_name(self, probe: Probe, host: str) -> None:
        """Labels of a host name have 1 to 63 characters."""
        fails(probe, get(f"http://{host}/"), ConnectError)

    def test_the_connection_is_refused(self, probe: Probe) -> None:
        """Nobody listens."""
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            fails(probe, get(f"http://127.0.0.1:{bound.getsockname()[1]}/"), ConnectError)

    @pytest.fixture
    def full_port(self) -> Iterator[int]:
        """A port whose queue of connections is full, so that another one waits for ever."""
        with ExitStack() as sockets:
            listener = sockets.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            for _ in range(4):
                waiting = sockets.enter_context(socket.socket())
                waiting.settimeout(0)
                waiting.connect_ex(listener.getsockname())
            yield listener.getsockname()[1]

    def test_connecting_takes_too_long(self, probe: Probe, full_port: int) -> None:
        """`Timeout.connect` is the limit."""
        timeout = evolve(PATIENT, connect=SHORT)
        fails(probe, get(f"http://127.0.0.1:{full_port}/", timeout=timeout), ConnectTimeout)


class BrokenAnswerContract(Contract):
    """An answer that breaks HTTP, or breaks off, is never taken for a whole one."""

    @pytest.mark.parametrize(
        "garbage",
        [
            b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
            b"HTTP/1.1 abc Nonsense\r\n\r\n",
            b"\x00\xff" * 100 + b"\r\n\r\n",
        ],
        ids=["ssh", "status", "binary"],
    )
    def test_the_answer_is_not_http(self, probe: Probe, serve: Serve, garbage: bytes) -> None:
        """Somebody else listens on that port."""
        server = serve((Write(garbage), Disconnect()))
        fails(probe, get(server.url), ProtocolError)
        server.wait_until_gone()

    @pytest.mark.parametrize("step", [Disconnect(), Reset()], ids=["closed", "reset"])
    def test_the_connection_ends_before_the_answer(
        self, probe: Probe, serve: Serve, step: Disconnect | Reset
    ) -> None:
        """The server may have acted on the request."""
        fails(probe, get(serve((step,)).url), ConnectionInterrupted)

    @pytest.mark.parametrize(
        ("framing", "gzip"),
        [
            ("chunked", False),
            ("chunked", True),
            ("content-length", False),
            ("content-length", True),
            ("until-close", True),  # Without compression, nothing tells.
        ],
    )
    def test_a_body_is_cut_short(
        self, probe: Probe, serve: Serve, framing: Framing, *, gzip: bool
    ) -> None:
        """Wherever it is cut, be it within the last chunk's head or the end of the gzip."""
        steps = answer(b"event", b"chunk", framing=framing, gzip=gzip)
        start = size(steps) - body_size(steps) + (framing == "until-close")
        cuts = [cut(steps, length) for length in range(start, size(steps))]
        server = serve(*cuts)
        request, caused = get(server.url, stream=True), framing != "until-close"
        for _ in cuts:
            fails(probe, request, ConnectionInterrupted, read=True, caused=caused)

    @pytest.mark.parametrize("framing", ["chunked", "content-length"])
    def test_compressed_data_ends_early(self, probe: Probe, serve: Serve, framing: Framing) -> None:
        """The framing is whole, but what it carries is not: a proxy lost its server."""
        whole, coding = compress(b"event" * 100), [("Content-Encoding", "gzip")]
        lengths = range(1, len(whole))
        server = serve(*(answer(whole[:n], framing=framing, headers=coding) for n in lengths))
        for _ in lengths:
            fails(probe, get(server.url), ConnectionInterrupted, read=True, caused=False)

    @pytest.mark.parametrize("damaged", [0, 12, -6, -2], ids=["head", "data", "crc", "length"])
    def test_compressed_data_is_corrupt(self, probe: Probe, serve: Serve, damaged: int) -> None:
        """A checksum that does not fit is an error too."""
        data = bytearray(compress(bytes(range(256))))
        data[damaged] ^= 0xFF
        server = serve(answer(bytes(data), headers=[("Content-Encoding", "gzip")]))
        fails(probe, get(server.url), ProtocolError, read=True)

    def test_the_coding_was_not_asked_for(self, probe: Probe, serve: Serve) -> None:
        """What nobody can decode is not handed over as if it were decoded."""
        server = serve(answer(b"?", Hold(), b"?", headers=[("Content-Encoding", "x-unheard-of")]))
        fails(probe, get(server.url), ProtocolError, read=True, caused=False)
        server.wait_until_gone()

    @pytest.mark.parametrize("fault", LATE_FAULTS)
    @streams
    def test_a_body_fails_late(
        self, probe: Probe, serve: Serve, fault: str, *, stream: bool
    ) -> None:
        """What came before the failure is handed over first, even if both came at once."""
        steps, error = LATE_FAULTS[fault]
        server = serve(steps)
        reply = probe.send(get(server.url, stream=stream))
        assert reply.read_exactly(5) == b"first"
        server.release()
        with pytest.raises(TransportError) as caught:
            reply.read()
        assert type(caught.value) is error
        assert caught.value.__cause__ is not None
        server.wait_until_gone()
