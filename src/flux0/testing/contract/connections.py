"""The contract's part on connections: a request goes out once, and each connection is let go."""

# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

import gc
import os
import signal
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from threading import Event

import pytest
from anyio import CancelScope
from attrs import evolve

from flux0.domain import errors
from flux0.testing.contract.base import SHORT, Contract, fails, streams
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.harness import LONG_TIMEOUT, Harness, get, post
from flux0.testing.contract.responses import (
    Disconnect,
    Receive,
    Reset,
    ServerSteps,
    Signal,
    WaitForRelease,
    Write,
    head,
    http_response,
    to_bytes,
)

_OK = http_response(b"ok")
_SILENT = http_response(b"first", WaitForRelease(), b"second", framing="chunked")
_BEGUN = Write(b"HTTP/1.1 200 OK\r\nContent-")
_MANY = 20
_MOMENTS = 150

# What a server does that has read the whole request, and the errors that it may be.
_BREAKS: dict[str, tuple[ServerSteps, type[errors.TransportError]]] = {
    "closed": ((Disconnect(),), errors.ConnectionInterrupted),
    "reset": ((Reset(),), errors.ConnectionInterrupted),
    "closed-in-head": ((_BEGUN, Disconnect()), errors.ConnectionInterrupted),
    "reset-in-head": ((_BEGUN, Reset()), errors.ConnectionInterrupted),
    "closed-after-interim": ((head("103 Early Hints"), Disconnect()), errors.ConnectionInterrupted),
    "silent": ((WaitForRelease(),), errors.ReadTimeout),
    "ssh": ((Write(b"SSH-2.0-OpenSSH\r\n\r\n"), Disconnect()), errors.ProtocolError),
    "nonsense": ((Write(b"HTTP/1.1 abc Nonsense\r\n\r\n"), Disconnect()), errors.ProtocolError),
    "binary": ((Write(b"\x00\xff" * 100 + b"\r\n\r\n"), Disconnect()), errors.ProtocolError),
}
# An answer, and bytes that are too much, such as a 408 for a connection that was idle.
_UNREAD: dict[str, ServerSteps] = {
    "with-it": (Write(to_bytes(_OK) * 2),),
    "after-it": (*_OK, WaitForRelease(), *http_response(b"slow", status="408 Request Timeout")),
}
_LOCATIONS = (
    *("http://[", "http://a b:c/", "http://xn--/", "x://", "\xe9", ""),
    *("javascript:alert(1)", "http:there"),
)
_pooling = pytest.mark.parametrize("pooled", [False, True], ids=["fresh", "pooled"])
_half_read = pytest.mark.parametrize("read", [b"", b"first"], ids=["not-read", "half-read"])


class NeverTwiceContract(Contract):
    """A server that may have acted on a request does not get it again."""

    @pytest.mark.parametrize("breaks", _BREAKS)
    @_pooling
    def test_request_is_sent_once_if_its_response_fails(
        self, harness: Harness, breaks: str, *, pooled: bool
    ) -> None:
        """However the answer fails to come; and the error does not say that nothing was sent."""
        steps, error = _BREAKS[breaks]
        server = harness.serve(*[_OK] * pooled, steps, _OK)
        if pooled:
            assert harness.fetch(get(server.url)) == b"ok"
        request = post(server.url, timeout=evolve(LONG_TIMEOUT, read=SHORT))
        fails(lambda: harness.send(request), error)
        assert _posts(server) == 1
        server.wait_until_closed()

    def test_request_is_sent_once_if_writing_fails(self, harness: Harness) -> None:
        """It may have read enough to act."""
        server = harness.serve(on_connect=(Receive(), Reset()))
        with pytest.raises(errors.ConnectionInterrupted):
            harness.send(post(server.url, bytes(16_000_000)))
        assert server.connections == 1

    def test_request_that_the_server_began_to_read_is_not_sent_again(
        self, harness: Harness
    ) -> None:
        """The request goes out over a new one only if the server has seen nothing of it."""
        begun = Event()
        server = harness.serve((*_OK, Receive(), Signal(begun), Reset()), _OK)
        assert harness.fetch(get(server.url)) == b"ok"
        answered = b""
        with suppress(errors.ConnectionInterrupted):
            answered = harness.fetch(post(server.url, bytes(16_000_000)))
        assert not (answered and begun.is_set()), "the request was sent again"

    def test_pooled_connection_that_the_server_closed(self, harness: Harness) -> None:
        """The next request goes out over a new one, or fails and was received once at most."""
        server = harness.serve((*_OK, WaitForRelease(), Disconnect()), _OK)
        assert harness.fetch(get(server.url)) == b"ok"
        server.release()
        least, most = 1, 1
        try:
            assert harness.fetch(post(server.url)) == b"ok"
        except (errors.ConnectError, errors.ConnectionInterrupted) as error:
            least, most = 0, isinstance(error, errors.ConnectionInterrupted)
        assert least <= _posts(server) <= most
        assert harness.fetch(get(server.url)) == b"ok"

    @pytest.mark.parametrize("location", _LOCATIONS)
    def test_redirects_are_not_followed(self, harness: Harness, location: str) -> None:
        """Nobody follows it, so nobody has to understand it; what it says may be lost."""
        server = harness.serve(
            http_response(b"moved", status="302 Found", headers=[("Location", location)])
        )
        response = harness.send(post(server.url))
        assert (response.head.status_code, response.head.headers["location"]) == (302, location)
        assert response.read() in (b"moved", b"")
        assert _posts(server) == 1


class ReleaseContract(Contract):
    """The server sees at once that a client is done with a connection."""

    @streams
    def test_finished_body_releases_its_connection_for_reuse(
        self, harness: Harness, *, stream: bool
    ) -> None:
        """The next request takes the same connection; closing the body, even twice, is no harm."""
        server = harness.serve(http_response(b"a", b"b", framing="chunked", gzip=True))
        for _ in range(3):
            response = harness.send(get(server.url, stream=stream))
            assert response.read() == b"ab"
            response.close()
            response.close()
        assert server.connections == 1

    @_half_read
    @streams
    def test_body_closed_early_closes_its_connection(
        self, harness: Harness, read: bytes, *, stream: bool
    ) -> None:
        """So is the connection; and the body does not look like one that has ended."""
        server, response = harness.exchange(_SILENT, stream=stream)
        assert response.read(len(read)) == read
        response.close()
        server.wait_until_closed()
        response.close()
        with pytest.raises(errors.TransportError):
            response.read()

    @_half_read
    @streams
    @pytest.mark.parametrize("in_cycle", [False, True], ids=["at-once", "in-a-cycle"])
    def test_garbage_collected_body_closes_its_connection(
        self, harness: Harness, read: bytes, *, in_cycle: bool, stream: bool
    ) -> None:
        """The connection is closed, at once or by the garbage collector."""
        server, response = harness.exchange(_SILENT, stream=stream)
        assert response.read(len(read)) == read
        response.drop(in_cycle=in_cycle)
        server.wait_until_closed()

    @pytest.mark.parametrize("what", ["body", "transport"])
    def test_close_ends_a_read_in_another_thread_or_task(self, harness: Harness, what: str) -> None:
        """Whoever waits for the next piece, in another thread or task, gets an error, at once."""
        server, response = harness.read_first(_SILENT, stream=True)
        waiting = response.start_next()
        (response if what == "body" else harness).close()
        with pytest.raises(errors.TransportError):
            waiting.outcome()
        server.wait_until_closed()

    @pytest.mark.parametrize("unread", _UNREAD)
    def test_connection_with_surplus_bytes_is_not_reused(
        self, harness: Harness, hang_timeout: float, unread: str
    ) -> None:
        """They came with the answer, or after it, and do not answer the next request."""
        arrived = Event()
        server = harness.serve(
            (*_UNREAD[unread], Signal(arrived), WaitForRelease()), http_response(b"second")
        )
        assert harness.fetch(get(server.url)) == b"ok"
        server.release()
        assert arrived.wait(hang_timeout)
        assert harness.fetch(get(server.url)) == b"second"

    def test_concurrent_requests_do_not_block_each_other(self, harness: Harness) -> None:
        """Threads or tasks share one transport, and none waits for another."""
        server = harness.serve((WaitForRelease(), *http_response(b"body", framing="chunked")))
        fetching = [harness.start_fetch(get(f"{server.url}/{number}")) for number in range(_MANY)]
        server.wait_for_requests(_MANY)
        server.release()
        assert [pending.outcome() for pending in fetching] == [b"body"] * _MANY
        targets = {request.target for request in server.requests}
        assert targets == {f"/{number}" for number in range(_MANY)}

    def test_waiting_reads_do_not_block_other_calls(self, harness: Harness) -> None:
        """One that waits for its next piece holds up neither other bodies nor other requests."""
        server = harness.serve(*[_SILENT] * _MANY, _OK)
        responses = [harness.send(get(server.url, stream=True)) for _ in range(_MANY)]
        assert [response.read(5) for response in responses] == [b"first"] * _MANY
        reading = [response.start_next() for response in responses]
        assert harness.fetch(get(server.url)) == b"ok"
        server.release()
        assert [pending.outcome() for pending in reading] == [b"second"] * _MANY

    def test_garbage_collection_at_any_moment_does_not_deadlock(
        self, harness: Harness, backend: str, hang_timeout: float
    ) -> None:
        """Even while the pool's lock is held, which closing a forgotten body must not wait for."""
        server = harness.serve(http_response(b"first", b"second", framing="chunked"))

        def forget(harness: Harness) -> None:  # pragma: no cover - in the child
            harness.send(get(server.url, stream=True)).detach(in_cycle=True)

        def work() -> None:  # pragma: no cover - in the child
            ending = ExitStack()  # Not closed: the child ends at once.
            harness = self.make_harness(self.make_transport(), backend, hang_timeout, ending)
            for moment in range(_MOMENTS):
                signal.setitimer(signal.ITIMER_REAL, hang_timeout)
                gc.disable()
                forget(harness)
                gc.set_threshold(gc.get_count()[0] + moment)  # It runs after so many new objects.
                gc.enable()
                assert harness.fetch(get(server.url)) == b"firstsecond"
            with ThreadPoolExecutor(2) as other_threads:
                for _ in other_threads.map(forget, [harness] * _MOMENTS):
                    assert harness.fetch(get(server.url)) == b"firstsecond"

        _run_in_child(work, hang_timeout)

    def test_closing_the_transport_closes_idle_connections(self, harness: Harness) -> None:
        """Its idle connections are closed, even twice; then it opens anew, or says it is closed."""
        server = harness.serve(_OK)
        assert harness.fetch(get(server.url)) == b"ok"
        harness.close()
        server.wait_until_closed()
        harness.close()
        with suppress(errors.ClientClosed):
            assert harness.fetch(get(server.url)) == b"ok"

    @pytest.mark.parametrize("size", [2, 16_000_000], ids=["waiting", "writing"])
    def test_closing_the_transport_during_a_send_returns(self, harness: Harness, size: int) -> None:
        """Closing ends, whatever becomes of the request."""
        listener, url = harness.listen()
        sending = harness.start(post(url, bytes(size)))
        connection, _ = listener.accept()
        with connection:
            assert sending.is_pending_after(SHORT)
            harness.close()


class CancellationContract(Contract):
    """What is cancelled leaves no connection behind."""

    def test_cancelled_send_closes_its_connection(self, harness: Harness) -> None:
        """The call ends, and so does its connection."""
        server = harness.serve((WaitForRelease(),))
        sending = harness.start(get(server.url))
        server.wait_for_requests(1)
        sending.future.cancel()
        server.wait_until_closed()

    @streams
    def test_body_closed_on_cancellation_closes_its_connection(
        self, harness: Harness, *, stream: bool
    ) -> None:
        """Who reads closes the body while being cancelled."""
        server, response = harness.read_first(_SILENT, stream=stream)
        body, pieces = response.detach()
        begun = Event()

        async def read() -> None:
            try:
                begun.set()
                await anext(pieces)
            finally:
                await body.close_async()

        reading = harness.run(read)
        begun.wait()
        reading.future.cancel()
        server.wait_until_closed()

    def test_cancelled_read_does_not_end_the_body(self, harness: Harness) -> None:
        """Reading on goes on, or fails; it does not look like the end of the body."""
        server, response = harness.read_first(_SILENT, stream=True)
        body, pieces = response.detach()

        async def read() -> bytes | None:
            with CancelScope() as scope:
                scope.cancel()
                await anext(pieces)
            server.release()
            try:
                return await anext(pieces, None)
            finally:
                await body.close_async()

        with suppress(errors.TransportError):
            assert harness.run(read).outcome() == b"second"


def _posts(server: ByteServer) -> int:
    return sum(request.method == "POST" for request in server.requests)


def _run_in_child(work: Callable[[], object], timeout: float) -> None:
    """Assert that `work` ends in a child process, within `timeout` since it last set the timer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # The child uses no thread from here.
        child = os.fork()
    if child == 0:  # pragma: no cover - measured in the parent alone
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # Ends it, even where it waits for a lock.
        signal.setitimer(signal.ITIMER_REAL, timeout)
        gc.freeze()  # What is garbage here may be in use in the parent.
        try:
            work()
        except BaseException:  # noqa: BLE001 - whatever it is, nothing of the parent's runs on
            os.write(2, traceback.format_exc().encode())
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code != -signal.SIGALRM, f"the transport hangs: no end within {timeout:.1f} s"
    assert code == 0, "the transport failed in the child, as standard error tells"
