"""The contract for waiting: timeouts expire, but not too early, and calls can be interrupted."""

# ruff: noqa: S101 - the tests in this module use assert statements

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from gzip import compress
from time import monotonic
from typing import Any, ClassVar, cast

import pytest
from attrs import evolve, frozen

from flux0.domain.errors import ReadTimeout, TransportError, WriteTimeout
from flux0.ports import Interrupt, Timeout
from flux0.testing.contract.base import (
    EXPIRY,
    SHORT,
    Contract,
    check,
    check_expired,
    fails,
    streams,
)
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.harness import LONG, LONG_TIMEOUT, Harness, Pending, get, post
from flux0.testing.contract.responses import (
    FRAMINGS,
    ServerSteps,
    Sleep,
    WaitForRelease,
    Write,
    head,
    http_response,
)

_ENDLESS = Timeout(connect=None, read=None, write=None, pool=None)

_FIRST = http_response(b"first", framing="chunked")[:-1]


def _without_content(timeout: float) -> dict[str, ServerSteps]:
    """Return steps that send bytes without content, such as a chunk size, before `timeout` expires.

    The server sends the content after the timeout has expired.
    """
    pause = Sleep(0.8 * timeout)
    wait = (WaitForRelease(), pause)
    return {
        "size": (*_FIRST, *wait, Write(b"6"), pause, Write(b"\r\nsecond\r\n")),
        "extension": (*_FIRST, Write(b"6"), *wait, Write(b";a"), pause, Write(b"\r\nsecond\r\n")),
        "endless-extension": (*_FIRST, Write(b"6"), *(Write(b";a"), Sleep(timeout / 8)) * 1000),
        "trailer": (*_FIRST, Write(b"0\r\n"), *wait, Write(b"x: y\r\n"), pause, Write(b"\r\n")),
        "gzip": http_response(
            *(compress(b"first"), *wait, compress(b""), pause, compress(b"second")),
            framing="chunked",
            headers=[("Content-Encoding", "gzip")],
        ),
    }


class TimeoutContract(Contract):
    """If the server sends or reads nothing, the timeouts of requests and reads expire."""

    @streams
    def test_read_timeout_limits_the_wait_for_headers(self, harness: Harness, stream: bool) -> None:
        server = harness.serve((WaitForRelease(),))
        request = get(server.url, stream=stream, timeout=evolve(LONG_TIMEOUT, read=EXPIRY))
        fails(lambda: harness.send(request), ReadTimeout)
        server.wait_until_closed()

    @pytest.mark.parametrize(
        ("stream", "status"),
        [(False, "200 OK"), (True, "200 OK"), (True, "500 Broken")],
        ids=["whole", "stream", "error"],
    )
    def test_timeout_of_a_read_limits_the_wait_for_a_piece(
        self, harness: Harness, status: str, *, stream: bool
    ) -> None:
        pieces = b"first", WaitForRelease(), b"second"
        respond = partial(http_response, *pieces, status=status)
        steps: dict[str, ServerSteps] = {each: respond(framing=each) for each in FRAMINGS}
        server, reads = start_second_reads(harness, steps, EXPIRY, stream=stream)
        check_expired(reads)
        server.wait_until_closed()

    def test_write_timeout_expires(self, harness: Harness) -> None:
        """The server reads nothing, and the request body is larger than all socket buffers."""
        timeout = evolve(LONG_TIMEOUT, write=EXPIRY)
        request = post(harness.listen()[1], bytes(64_000_000), timeout=timeout)
        fails(lambda: harness.send(request), WriteTimeout)

    def test_bytes_without_content_do_not_extend_the_timeout(self, harness: Harness) -> None:
        """Chunk sizes arrive in time, but the content arrives after the timeout.

        On a busy machine, a correct transport may notice the timeout after the content. Therefore,
        a failed attempt is repeated with longer times.
        """
        reads: Mapping[str, Pending[bytes]] = {}
        for timeout in (2 * SHORT, 10 * SHORT):
            steps = _without_content(timeout)
            server, reads = start_second_reads(harness, steps, timeout, stream=True)
            server.release()
            if all(type(read.error()) is ReadTimeout for read in reads.values()):
                break
        check_expired(reads)


def start_second_reads(
    harness: Harness, responses: Mapping[str, ServerSteps], timeout: float, *, stream: bool
) -> tuple[ByteServer, dict[str, Pending[bytes]]]:
    server = harness.serve(*responses.values())
    received = {key: harness.send(get(server.url, stream=stream)) for key in responses}
    for response in received.values():
        check(response.read(5), b"first", "the beginning of the body")
    return server, {key: each.start_read(timeout=timeout) for key, each in received.items()}


# The steps of servers that never complete the response head. With "slow-bytes" and "interim", the
# client's timeout never expires if the transport restarts the timeout for each received byte.
_ENDLESS_HEADS: dict[str, ServerSteps] = {
    "nothing": (WaitForRelease(),),
    "slow-bytes": tuple(
        step for byte in b"HTTP/1.1 200" for step in (Write(bytes([byte])), Sleep(1))
    ),
    "interim": (head("100 Continue"), Sleep(0.1)) * 100,
}


class InterruptContract(Contract):
    """If `timeout_ms` expires, flux0 calls `Interrupt.fire` to end the wait for a response.

    Attributes:
        interruptible: whether `Interrupt.fire` ends the wait in this transport. If False, a call
            may exceed `timeout_ms` when the server sends a response head byte by byte.
    """

    interruptible: ClassVar[bool] = True

    @pytest.mark.parametrize("server_sends", _ENDLESS_HEADS)
    @pytest.mark.parametrize("fired", ["before", "meanwhile", "on-a-pooled-connection"])
    def test_interrupt_ends_the_wait_for_headers(
        self, harness: Harness, server_sends: str, fired: str
    ) -> None:
        """`Interrupt.fire` ends `send` with an error, even if `fire` was called before `send`."""
        pooled = fired == "on-a-pooled-connection"
        server = harness.serve(*[http_response(b"ok")] * pooled, _ENDLESS_HEADS[server_sends])
        if pooled:
            check(harness.fetch(get(server.url)), b"ok", "the body")
        interrupt = Interrupt()
        if fired == "before":
            interrupt.fire()
        sending = harness.start(evolve(get(server.url), interrupt=interrupt))
        if self.interruptible:
            if fired != "before":
                server.wait_for_requests(1 + pooled)
                interrupt.fire()
            with pytest.raises(TransportError):
                sending.outcome()
            server.wait_until_closed()

    @pytest.mark.parametrize("status", ["200 OK", "500 Broken"])
    def test_interrupt_after_the_headers_has_no_effect(self, harness: Harness, status: str) -> None:
        """`fire` must not interrupt a later request on the same connection."""
        pieces = b"first", WaitForRelease(), b"second"
        server = harness.serve(http_response(*pieces, framing="chunked", status=status))
        interrupt = Interrupt()
        response = harness.send(evolve(get(server.url), interrupt=interrupt))
        interrupt.fire()
        check(response.read(len(b"first")), b"first", "the first piece of the body")
        server.release()
        check(response.read(), b"second", "the second piece of the body")
        check(harness.fetch(get(server.url)), b"firstsecond", "the body")


@frozen
class BackgroundCalls:
    """The calls of `IdleContract` that last several seconds, for one backend such as asyncio.

    `calls` maps names to calls. `end` is the moment when `idle_test_seconds` have passed since the
    start of the calls. `ended` maps the name of each ended call to the moment of its end. `pooled`
    is the server of the call "pooled", whose connection stays idle in the pool until `end`.
    """

    harness: Harness
    pooled: ByteServer
    calls: dict[str, Pending[bytes]]
    ended: dict[str, float]
    end: float

    def is_pending_at_end(self, call: str) -> bool:
        is_pending = self.calls[call].is_pending_after(max(0.0, self.end - monotonic()))
        return is_pending or self.ended.get(call, monotonic()) >= self.end


def _record_end(ended: dict[str, float], name: str, _: object) -> None:
    ended[name] = monotonic()


_CALLS = pytest.StashKey[dict[str, BackgroundCalls]]()


class IdleContract(Contract):
    """The tests of long waits. All waits run at the same time and start before the first test.

    Attributes:
        idle_test_seconds: the duration of each wait, in seconds. The default exceeds the default
            timeout of some HTTP libraries (5 s), and the idle time after which a transport must not
            reuse a connection (4 s).
    """

    idle_test_seconds: ClassVar[float] = 5.5

    @pytest.fixture(autouse=True)
    def background(self, request: pytest.FixtureRequest) -> dict[str, BackgroundCalls]:
        """Return calls of several seconds, by the names of the backends, such as asyncio.

        The calls start before the class's first test.
        """
        # Store the long calls in the test's parent, the class, because all tests of the class share
        # them.
        shared: Any = request.node.parent
        if _CALLS not in shared.stash:
            ending = ExitStack()
            ending.callback(shared.stash.__delitem__, _CALLS)
            shared.addfinalizer(ending.close)
            shared.stash[_CALLS] = {each: self._start(each, ending) for each in self.backends}
        return cast("dict[str, BackgroundCalls]", shared.stash[_CALLS])

    def _start(self, backend: str, ending: ExitStack) -> BackgroundCalls:
        harness = self.make_harness(self.make_transport(), backend, ending)
        body = harness.serve(http_response(WaitForRelease(), framing="chunked")).url
        pause = self.idle_test_seconds / 6
        slow = harness.serve(http_response(*(b"piece", Sleep(pause)) * 5, framing="chunked")).url
        long_pause = (b"first", Sleep(5 * pause), b"second")
        paused = harness.serve(http_response(*long_pause, framing="chunked")).url
        pooled = harness.serve(http_response(b"ok"))
        silent = harness.serve(on_connect=(WaitForRelease(),)).url
        endless = partial(get, timeout=_ENDLESS)
        requests = {
            "connect": endless(silent.replace("http:", "https:")),
            "write": post(harness.listen()[1], bytes(16_000_000), timeout=_ENDLESS),
            "head": endless(harness.serve((WaitForRelease(),)).url),
            "body": endless(body),
            "stream": endless(body, stream=True),
            "paused-body": get(paused, timeout=evolve(LONG_TIMEOUT, read=3 * pause)),
            "paused-stream": get(paused, stream=True, timeout=evolve(LONG_TIMEOUT, read=3 * pause)),
            "slow-stream": get(slow, stream=True),
            "pooled": get(pooled.url),
        }
        limits = {"body": None, "stream": None, "slow-stream": 3 * pause}
        calls, ended = dict[str, Pending[bytes]](), dict[str, float]()
        for name, request in requests.items():
            calls[name] = harness.start_fetch(request, limits.get(name, LONG))
            calls[name].future.add_done_callback(partial(_record_end, ended, name))
        # Close the servers before the event loop. A TLS handshake in the loop cannot be cancelled,
        # but ends when its server is closed.
        ending.callback(harness.servers.close)
        end = monotonic() + self.idle_test_seconds
        return BackgroundCalls(harness, pooled, calls, ended, end)

    @pytest.mark.parametrize("call", ["connect", "write", "head", "body", "stream"])
    def test_timeout_none_waits_without_limit(
        self, background: dict[str, BackgroundCalls], backend: str, call: str
    ) -> None:
        """A timeout of None is not replaced by the HTTP library's default timeout."""
        here = background[backend]
        assert here.is_pending_at_end(call), f"{call} ended early: {here.calls[call].future!r}"

    def test_whole_body_may_take_longer_than_the_timeout_of_each_read(
        self, background: dict[str, BackgroundCalls], backend: str
    ) -> None:
        check(background[backend].calls["slow-stream"].outcome(), b"piece" * 5, "the body")

    @pytest.mark.parametrize("call", ["paused-body", "paused-stream"])
    def test_read_timeout_of_the_request_does_not_apply_to_a_body(
        self, background: dict[str, BackgroundCalls], backend: str, call: str
    ) -> None:
        check(background[backend].calls[call].outcome(), b"firstsecond", "the body")

    def test_connection_idle_for_long_is_not_reused(
        self, background: dict[str, BackgroundCalls], backend: str
    ) -> None:
        """After 4 s, a server or a NAT device may have dropped the connection silently."""
        here = background[backend]
        check(here.calls["pooled"].outcome(), b"ok", "the body")
        here.is_pending_at_end("head")
        check(here.harness.fetch(get(here.pooled.url)), b"ok", "the body")
        assert here.pooled.connections == 2, "an idle connection was reused"  # noqa: PLR2004
