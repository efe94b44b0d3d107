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
from flux0.testing.contract.harness import LONG_TIMEOUT, Harness, Pending, get, post
from flux0.testing.contract.responses import (
    ServerSteps,
    Sleep,
    WaitForRelease,
    Write,
    head,
    http_response,
)

_ENDLESS = Timeout(connect=None, read=None, write=None, pool=None, idle=None)
_SILENT = http_response(b"first", WaitForRelease(), b"second", framing="chunked")


class TimeoutContract(Contract):
    """A silent server is not waited for longer than the request's timeouts say."""

    @streams
    def test_read_timeout_limits_the_wait_for_headers(
        self, harness: Harness, *, stream: bool
    ) -> None:
        """`Timeout.read` is the limit, and the connection is closed then."""
        server = harness.serve((WaitForRelease(),))
        request = get(server.url, stream=stream, timeout=evolve(LONG_TIMEOUT, read=SHORT))
        fails(lambda: harness.send(request), ReadTimeout)
        server.wait_until_closed()

    @pytest.mark.parametrize(
        ("stream", "status", "timeout"),
        [
            (False, "200 OK", evolve(LONG_TIMEOUT, read=SHORT)),
            (True, "200 OK", evolve(LONG_TIMEOUT, idle=SHORT)),
            (True, "500 Broken", evolve(LONG_TIMEOUT, read=SHORT)),
        ],
        ids=["whole", "stream", "error"],
    )
    def test_read_or_idle_timeout_limits_the_wait_for_a_piece(
        self, harness: Harness, status: str, timeout: Timeout, *, stream: bool
    ) -> None:
        """`Timeout.idle` is the limit of a stream, which is a success; else `Timeout.read`."""
        steps = http_response(b"first", WaitForRelease(), framing="chunked", status=status)
        server, response = harness.exchange(steps, stream=stream, timeout=timeout)
        fails(response.read, ReadTimeout)
        server.wait_until_closed()

    def test_read_timeout_does_not_apply_to_a_stream(self, harness: Harness) -> None:
        """`Timeout.read` has no say in the body of a stream."""
        timeout = evolve(LONG_TIMEOUT, read=5 * SHORT)  # The head has that long to come.
        server, response = harness.read_first(_SILENT, stream=True, timeout=timeout)
        following = response.start_next()
        assert following.is_pending_after(6 * SHORT)
        server.release()
        assert following.outcome() == b"second"
        assert response.read() == b""

    def test_write_timeout_expires(self, harness: Harness) -> None:
        """A body too large for the buffers on the way; `Timeout.write` is the limit."""
        timeout = evolve(LONG_TIMEOUT, connect=SHORT, read=SHORT, write=SHORT)
        request = post(harness.listen()[1], bytes(64_000_000), timeout=timeout)
        fails(lambda: harness.send(request), WriteTimeout, ReadTimeout)

    def test_gzip_data_without_content_yields_an_empty_piece(self, harness: Harness) -> None:
        """Whoever reads gets control back, and can look at the clock."""
        start, *_ = http_response(framing="chunked", headers=[("Content-Encoding", "gzip")])
        steps = (start, *http_response(compress(b""), WaitForRelease(), framing="chunked")[1:])
        _, response = harness.exchange(steps, stream=True)
        assert response.start_next().outcome() == b""

    def test_framing_without_content_does_not_block_the_reader(self, harness: Harness) -> None:
        """Whoever reads gets control back, or `Timeout.idle` ends it."""
        drops = (Write(b";a"), Sleep(SHORT / 4)) * 1000
        steps = (*http_response(b"first", framing="chunked")[:-1], Write(b"5"), *drops)
        _, response = harness.read_first(
            steps, stream=True, timeout=evolve(LONG_TIMEOUT, idle=SHORT)
        )
        with suppress(ReadTimeout):
            assert response.start_next().outcome() == b""


# What a server does that keeps a synchronous call waiting for the head, read timeout or not.
_DRIPPING: dict[str, ServerSteps] = {
    "silence": (WaitForRelease(),),
    "drops": tuple(step for byte in b"HTTP/1.1 200" for step in (Write(bytes([byte])), Sleep(1))),
    "interim": (head("100 Continue"), Sleep(0.1)) * 100,
}


class InterruptContract(Contract):
    """`Request.interrupt` ends the wait for a head, as a call needs that is past its time."""

    # Without, each call lasts for as long as its server sends a byte now and then.
    interruptible: ClassVar[bool] = True

    @pytest.mark.parametrize("server_does", _DRIPPING)
    @pytest.mark.parametrize("before", [False, True], ids=["meanwhile", "before"])
    def test_interrupt_ends_the_wait_for_headers(
        self, harness: Harness, server_does: str, *, before: bool
    ) -> None:
        """Another thread fires it, and the call fails at once, or as soon as it can."""
        server = harness.serve(_DRIPPING[server_does])
        interrupt = Interrupt()
        if before:
            interrupt.fire()
        sending = harness.start(evolve(get(server.url), interrupt=interrupt))
        if self.interruptible:
            if not before:
                server.wait_for_requests(1)
                interrupt.fire()
            with pytest.raises(TransportError):
                sending.outcome()
            server.wait_until_closed()

    @pytest.mark.parametrize("status", ["200 OK", "500 Broken"])
    def test_interrupt_after_the_headers_has_no_effect(self, harness: Harness, status: str) -> None:
        """With the head in, it does nothing: the connection may have another user by then."""
        server = harness.serve(
            http_response(b"first", WaitForRelease(), b"second", framing="chunked", status=status)
        )
        interrupt = Interrupt()
        response = harness.send(evolve(get(server.url), interrupt=interrupt))
        interrupt.fire()
        server.release()
        assert response.read() == b"firstsecond"
        assert harness.fetch(get(server.url)) == b"firstsecond"


@frozen
class Lasting:
    """What began with the first test of a class, in one of its backends."""

    harness: Harness
    pooled: ByteServer
    waits: dict[str, Pending[bytes]]
    end: float

    def is_pending_after(self, wait: str) -> bool:
        """Return whether one of the waits is not over in the end."""
        return self.waits[wait].is_pending_after(max(0.0, self.end - monotonic()))


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
        harness = self.make_harness(self.make_transport(), backend, self.timeout, ending)
        body = harness.serve(http_response(WaitForRelease(), framing="chunked")).url
        pause = self.idle_test_seconds / 6
        dripping = harness.serve(http_response(*(b"drop", Sleep(pause)) * 5, framing="chunked")).url
        pooled = harness.serve(http_response(b"ok"))
        endless = partial(get, timeout=_ENDLESS)
        requests = {
            "connect": endless(
                harness.serve(on_connect=(WaitForRelease(),)).url.replace("http:", "https:")
            ),
            "write": post(harness.listen()[1], bytes(16_000_000), timeout=_ENDLESS),
            "head": endless(harness.serve((WaitForRelease(),)).url),
            "body": endless(body),
            "stream": endless(body, stream=True),
            "drops": get(dripping, stream=True, timeout=evolve(LONG_TIMEOUT, idle=3 * pause)),
            "pooled": get(pooled.url),
        }
        waits = {name: harness.start_fetch(request) for name, request in requests.items()}
        ending.callback(harness.servers.close)  # A handshake is not cancelled, which may leak.
        return Lasting(harness, pooled, waits, monotonic() + self.idle_test_seconds)

    @pytest.mark.parametrize("wait", ["connect", "write", "head", "body", "stream"])
    def test_timeout_none_waits_without_limit(
        self, lasting: dict[str, Lasting], backend: str, wait: str
    ) -> None:
        """None waits without end."""
        here = lasting[backend]
        assert here.is_pending_after(wait), repr(here.waits[wait].future.exception())

    @pytest.mark.usefixtures("time_budget")
    def test_each_piece_restarts_the_idle_timeout(
        self, lasting: dict[str, Lasting], backend: str
    ) -> None:
        """Each piece of a stream starts it again, so the whole stream may last for longer."""
        assert lasting[backend].waits["drops"].outcome() == b"drop" * 5

    @pytest.mark.usefixtures("time_budget")
    def test_connection_idle_for_long_is_not_reused(
        self, lasting: dict[str, Lasting], backend: str
    ) -> None:
        """It is not used again after four seconds: a server or a NAT may have forgotten it."""
        here = lasting[backend]
        assert here.waits["pooled"].outcome() == b"ok"
        here.is_pending_after("head")
        assert here.harness.fetch(get(here.pooled.url)) == b"ok"
        assert here.pooled.connections == 2  # noqa: PLR2004
