"""The contract's part on waiting: for no longer than the request says, and for as long as that."""

# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

from contextlib import ExitStack, suppress
from functools import partial
from gzip import compress
from time import monotonic
from typing import ClassVar

import pytest
from attrs import evolve, frozen

from flux0.domain.errors import ReadTimeout, TransportError, WriteTimeout
from flux0.ports import Interrupt, Timeout
from flux0.testing.contract.base import SHORT, Contract, class_of, fails, streams
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.probe import PATIENT, Pending, Probe, get, post
from flux0.testing.contract.responses import Answer, Hold, Silence, Write, answer, head

_ENDLESS = Timeout(connect=None, read=None, write=None, pool=None, idle=None)
_SILENT = answer(b"first", Hold(), b"second", framing="chunked")


class TimeoutContract(Contract):
    """A silent server is not waited for longer than the request's timeouts say."""

    @streams
    def test_the_headers_do_not_come(self, probe: Probe, *, stream: bool) -> None:
        """`Timeout.read` is the limit, and the connection is closed then."""
        server = probe.serve((Hold(),))
        request = get(server.url, stream=stream, timeout=evolve(PATIENT, read=SHORT))
        fails(lambda: probe.send(request), ReadTimeout)
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
        self, probe: Probe, status: str, timeout: Timeout, *, stream: bool
    ) -> None:
        """`Timeout.idle` is the limit of a stream, which is a success; else `Timeout.read`."""
        steps = answer(b"first", Hold(), framing="chunked", status=status)
        server, reply = probe.ask(steps, stream=stream, timeout=timeout)
        fails(reply.read, ReadTimeout)
        server.wait_until_gone()

    def test_a_stream_may_be_silent_for_longer_than_an_answer(self, probe: Probe) -> None:
        """`Timeout.read` has no say in the body of a stream."""
        timeout = evolve(PATIENT, read=5 * SHORT)  # The head has that long to come.
        server, reply = probe.begin(_SILENT, stream=True, timeout=timeout)
        following = reply.start_next()
        assert following.lasts(6 * SHORT)
        server.release()
        assert following.outcome() == b"second"
        assert reply.read() == b""

    def test_the_server_does_not_take_the_body(self, probe: Probe) -> None:
        """A body too large for the buffers on the way; `Timeout.write` is the limit."""
        timeout = evolve(PATIENT, connect=SHORT, read=SHORT, write=SHORT)
        request = post(probe.listen()[1], bytes(64_000_000), timeout=timeout)
        fails(lambda: probe.send(request), WriteTimeout, ReadTimeout)

    def test_compressed_data_without_content(self, probe: Probe) -> None:
        """Whoever reads gets control back, and can look at the clock."""
        start, *_ = answer(framing="chunked", headers=[("Content-Encoding", "gzip")])
        steps = (start, *answer(compress(b""), Hold(), framing="chunked")[1:])
        _, reply = probe.ask(steps, stream=True)
        assert reply.start_next().outcome() == b""

    def test_framing_without_content(self, probe: Probe) -> None:
        """Whoever reads gets control back, or `Timeout.idle` ends it."""
        drops = (Write(b";a"), Silence(SHORT / 4)) * 1000
        steps = (*answer(b"first", framing="chunked")[:-1], Write(b"5"), *drops)
        _, reply = probe.begin(steps, stream=True, timeout=evolve(PATIENT, idle=SHORT))
        with suppress(ReadTimeout):
            assert reply.start_next().outcome() == b""


# What a server does that keeps a synchronous call waiting for the head, read timeout or not.
_DRIPPING: dict[str, Answer] = {
    "silence": (Hold(),),
    "drops": tuple(step for byte in b"HTTP/1.1 200" for step in (Write(bytes([byte])), Silence(1))),
    "interim": (head("100 Continue"), Silence(0.1)) * 100,
}


class InterruptContract(Contract):
    """`Request.interrupt` ends the wait for a head, as a call needs that is past its time."""

    # Without, each call lasts for as long as its server sends a byte now and then.
    interruptible: ClassVar[bool] = True

    @pytest.mark.parametrize("server_does", _DRIPPING)
    @pytest.mark.parametrize("before", [False, True], ids=["meanwhile", "before"])
    def test_a_call_is_interrupted(self, probe: Probe, server_does: str, *, before: bool) -> None:
        """Another thread fires it, and the call fails at once, or as soon as it can."""
        server = probe.serve(_DRIPPING[server_does])
        interrupt = Interrupt()
        if before:
            interrupt.fire()
        sending = probe.start(evolve(get(server.url), interrupt=interrupt))
        if self.interruptible:
            if not before:
                server.wait_for_requests(1)
                interrupt.fire()
            with pytest.raises(TransportError):
                sending.outcome()
            server.wait_until_gone()

    @pytest.mark.parametrize("status", ["200 OK", "500 Broken"])
    def test_an_interrupt_that_comes_too_late(self, probe: Probe, status: str) -> None:
        """With the head in, it does nothing: the connection may have another user by then."""
        server = probe.serve(answer(b"first", Hold(), b"second", framing="chunked", status=status))
        interrupt = Interrupt()
        reply = probe.send(evolve(get(server.url), interrupt=interrupt))
        interrupt.fire()
        server.release()
        assert reply.read() == b"firstsecond"
        assert probe.fetch(get(server.url)) == b"firstsecond"


@frozen
class Lasting:
    """What began with the first test of a class, in one of its backends."""

    probe: Probe
    pooled: ByteServer
    waits: dict[str, Pending[bytes]]
    end: float

    def lasts(self, wait: str) -> bool:
        """Return whether one of the waits is not over in the end."""
        return self.waits[wait].lasts(max(0.0, self.end - monotonic()))


_LASTING = pytest.StashKey[dict[str, Lasting]]()


class IdleContract(Contract):
    """Time alone changes nothing that it should not. It passes while the other tests run."""

    # For how long: longer than any library's short default, and than a connection may be idle.
    idle_test_seconds: ClassVar[float] = 5.5

    @pytest.fixture(autouse=True)
    def lasting(self, request: pytest.FixtureRequest) -> dict[str, Lasting]:
        """What began with the first test of the class, by backend."""
        shared = class_of(request)
        if _LASTING not in shared.stash:
            ending = ExitStack()
            shared.addfinalizer(ending.close)
            shared.stash[_LASTING] = {each: self._begin(each, ending) for each in self.backends}
        return shared.stash[_LASTING]

    def _begin(self, backend: str, ending: ExitStack) -> Lasting:
        probe = self.make_probe(self.make_transport(), backend, self.patience, ending)
        body = probe.serve(answer(Hold(), framing="chunked")).url
        pause = self.idle_test_seconds / 6
        dripping = probe.serve(answer(*(b"drop", Silence(pause)) * 5, framing="chunked")).url
        pooled = probe.serve(answer(b"ok"))
        endless = partial(get, timeout=_ENDLESS)
        requests = {
            "connect": endless(probe.serve(unasked=(Hold(),)).url.replace("http:", "https:")),
            "write": post(probe.listen()[1], bytes(16_000_000), timeout=_ENDLESS),
            "head": endless(probe.serve((Hold(),)).url),
            "body": endless(body),
            "stream": endless(body, stream=True),
            "drops": get(dripping, stream=True, timeout=evolve(PATIENT, idle=3 * pause)),
            "pooled": get(pooled.url),
        }
        waits = {name: probe.start_fetch(request) for name, request in requests.items()}
        ending.callback(probe.servers.close)  # A handshake is not cancelled, which may leak.
        return Lasting(probe, pooled, waits, monotonic() + self.idle_test_seconds)

    @pytest.mark.parametrize("wait", ["connect", "write", "head", "body", "stream"])
    def test_a_timeout_may_be_off(
        self, lasting: dict[str, Lasting], backend: str, wait: str
    ) -> None:
        """None waits without end."""
        here = lasting[backend]
        assert here.lasts(wait), repr(here.waits[wait].future.exception())

    @pytest.mark.usefixtures("left")
    def test_the_idle_timeout_begins_anew(self, lasting: dict[str, Lasting], backend: str) -> None:
        """Each piece of a stream starts it again, so the whole stream may last for longer."""
        assert lasting[backend].waits["drops"].outcome() == b"drop" * 5

    @pytest.mark.usefixtures("left")
    def test_an_idle_connection_grows_old(self, lasting: dict[str, Lasting], backend: str) -> None:
        """It is not used again after four seconds: a server or a NAT may have forgotten it."""
        here = lasting[backend]
        assert here.waits["pooled"].outcome() == b"ok"
        here.lasts("head")
        assert here.probe.fetch(get(here.pooled.url)) == b"ok"
        assert here.pooled.connections == 2  # noqa: PLR2004
