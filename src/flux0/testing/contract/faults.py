"""The contract's part on failures: each is the right error of ours, caused by the library's."""

# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

import socket
import tracemalloc
import zlib
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
    ReadTimeout,
    TransportError,
    WriteTimeout,
)
from flux0.domain.headers import Headers
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
    head,
    size,
)
from flux0.testing.contract.base import PATIENT, Contract, Serve, get
from flux0.testing.contract.probe import Probe

SHORT = 0.2  # Seconds to wait for what never comes.


def fails(probe: Probe, request: Request, *kinds: type[TransportError], read: bool = False) -> None:
    """Assert that sending, or with `read` reading the body, raises exactly one of `kinds`.

    Its cause must be the library's exception.
    """
    error = failure(probe, request, read=read)
    assert type(error) in kinds
    assert isinstance(error.__cause__, Exception), "the library's exception is not the cause"
    assert not isinstance(error.__cause__, TransportError)


def failure(probe: Probe, request: Request, *, read: bool) -> TransportError:
    """Return what sending, or with `read` reading the body, raises."""
    failing = probe.send(request).read if read else partial(probe.send, request)
    with pytest.raises(TransportError) as caught:
        failing()
    assert str(caught.value)
    return caught.value


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


class SilenceContract(Contract):
    """A silent server is not waited for longer than the request's timeouts say."""

    def test_the_headers_do_not_come(self, probe: Probe, serve: Serve) -> None:
        """`Timeout.read` is the limit, and the connection is closed then."""
        server = serve((Hold(),))
        timeout = evolve(PATIENT, read=SHORT)
        fails(probe, get(server.url, timeout=timeout), ReadTimeout)
        server.wait_until_gone()

    def test_the_headers_of_a_stream_do_not_come(self, probe: Probe, serve: Serve) -> None:
        """The idle timeout begins with the body."""
        timeout = evolve(PATIENT, read=SHORT)
        fails(probe, get(serve((Hold(),)).url, stream=True, timeout=timeout), ReadTimeout)

    def test_a_body_stops(self, probe: Probe, serve: Serve) -> None:
        """`Timeout.read` is the limit of a body that is read whole."""
        server = serve(answer(b"first", Hold(), framing="chunked"))
        timeout = evolve(PATIENT, read=SHORT)
        fails(probe, get(server.url, timeout=timeout), ReadTimeout, read=True)
        server.wait_until_gone()

    def test_a_stream_stops(self, probe: Probe, serve: Serve) -> None:
        """`Timeout.idle` is the limit of a stream."""
        server = serve(answer(b"first", Hold(), framing="chunked"))
        timeout = evolve(PATIENT, idle=SHORT)
        fails(probe, get(server.url, stream=True, timeout=timeout), ReadTimeout, read=True)
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

    def test_the_explanation_of_an_error_stops(self, probe: Probe, serve: Serve) -> None:
        """Only a success is a stream: `Timeout.read` is the limit of any other body."""
        server = serve(answer(b"bec", Hold(), framing="chunked", status="500 Broken"))
        timeout = evolve(PATIENT, read=SHORT)
        fails(probe, get(server.url, stream=True, timeout=timeout), ReadTimeout, read=True)

    def test_the_server_does_not_take_the_body(self, probe: Probe) -> None:
        """A body too large for the buffers on the way; `Timeout.write` is the limit."""
        timeout = evolve(PATIENT, connect=SHORT, read=SHORT, write=SHORT)
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            url = f"http://127.0.0.1:{deaf.getsockname()[1]}/"
            request = Request("POST", url, Headers(), bytes(64_000_000), timeout=timeout)
            fails(probe, request, WriteTimeout, ReadTimeout)


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

    def test_the_head_is_too_large(self, probe: Probe, serve: Serve) -> None:
        """A head without an end must not fill the memory."""
        fields = [(f"X-{number}", "x" * 1000) for number in range(1000)]
        fails(probe, get(serve((head("200 OK", fields), Disconnect())).url), ProtocolError)

    @pytest.mark.parametrize("step", [Disconnect(), Reset()], ids=["closed", "reset"])
    def test_the_connection_ends_before_the_answer(
        self, probe: Probe, serve: Serve, step: Disconnect | Reset
    ) -> None:
        """The server may have acted on the request."""
        fails(probe, get(serve((step,)).url), ConnectionInterrupted)

    @pytest.mark.parametrize("framing", ["chunked", "content-length"])
    @pytest.mark.parametrize("gzip", [False, True], ids=["identity", "gzip"])
    def test_a_body_is_cut_short(
        self, probe: Probe, serve: Serve, framing: Framing, *, gzip: bool
    ) -> None:
        """Wherever it is cut, be it within the last chunk's head or the end of the gzip."""
        steps = answer(b"event", b"chunk", framing=framing, gzip=gzip)
        start = size(steps) - body_size(steps)
        cuts = [cut(steps, length) for length in range(start, size(steps))]
        server = serve(*cuts)
        for _ in cuts:
            fails(probe, get(server.url, stream=True), ConnectionInterrupted, read=True)

    def test_a_body_until_close_is_cut_short(self, probe: Probe, serve: Serve) -> None:
        """Here the compression alone tells; of an uncompressed body nothing does."""
        steps = answer(b"event", b"chunk", framing="until-close", gzip=True)
        start = size(steps) - body_size(steps)
        cuts = [cut(steps, length) for length in range(start + 1, size(steps))]
        server = serve(*cuts)
        for _ in cuts:
            error = failure(probe, get(server.url), read=True)
            assert type(error) is ConnectionInterrupted

    @pytest.mark.parametrize("framing", ["chunked", "content-length"])
    def test_compressed_data_ends_early(self, probe: Probe, serve: Serve, framing: Framing) -> None:
        """The framing is whole, but what it carries is not: a proxy lost its server."""
        whole = compress(b"event" * 100)
        server = serve(
            *(
                answer(whole[:length], framing=framing, headers=[("Content-Encoding", "gzip")])
                for length in range(1, len(whole))
            )
        )
        for _ in range(1, len(whole)):
            error = failure(probe, get(server.url), read=True)
            assert type(error) is ConnectionInterrupted

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
        error = failure(probe, get(server.url), read=True)
        assert type(error) is ProtocolError
        server.wait_until_gone()

    def test_a_chunk_has_no_length(self, probe: Probe, serve: Serve) -> None:
        """The framing itself breaks within the body."""
        first, *_ = answer(framing="chunked")
        steps = (first, Write(b"5\r\nfirst\r\n"), Hold(), Write(b"xyz\r\nsecond\r\n"), Disconnect())
        server = serve(steps)
        reply = probe.send(get(server.url))
        assert reply.read_exactly(5) == b"first"
        server.release()
        with pytest.raises(ProtocolError) as caught:
            reply.read()
        assert caught.value.__cause__ is not None

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
    def test_the_connection_is_reset_within_a_body(
        self, probe: Probe, serve: Serve, *, stream: bool
    ) -> None:
        """What came before the reset may be handed over, the end may not."""
        steps: Answer = (*answer(b"first", Hold(), framing="chunked")[:-1], Reset())
        server = serve(steps)
        reply = probe.send(get(server.url, stream=stream))
        assert reply.read_exactly(5) == b"first"
        server.release()
        with pytest.raises(ConnectionInterrupted) as caught:
            reply.read()
        assert caught.value.__cause__ is not None

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
