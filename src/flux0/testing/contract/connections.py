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
from flux0.testing.contract.probe import PATIENT, Probe, get, post
from flux0.testing.contract.responses import (
    Answer,
    Disconnect,
    Hold,
    Receive,
    Reset,
    Signal,
    Write,
    answer,
    head,
    written,
)

_OK = answer(b"ok")
_SILENT = answer(b"first", Hold(), b"second", framing="chunked")
_BEGUN = Write(b"HTTP/1.1 200 OK\r\nContent-")
_MANY = 20
_MOMENTS = 150

# What a server does that has read the whole request, and the errors that it may be.
_BREAKS: dict[str, tuple[Answer, type[errors.TransportError]]] = {
    "closed": ((Disconnect(),), errors.ConnectionInterrupted),
    "reset": ((Reset(),), errors.ConnectionInterrupted),
    "closed-in-head": ((_BEGUN, Disconnect()), errors.ConnectionInterrupted),
    "reset-in-head": ((_BEGUN, Reset()), errors.ConnectionInterrupted),
    "closed-after-interim": ((head("103 Early Hints"), Disconnect()), errors.ConnectionInterrupted),
    "silent": ((Hold(),), errors.ReadTimeout),
    "ssh": ((Write(b"SSH-2.0-OpenSSH\r\n\r\n"), Disconnect()), errors.ProtocolError),
    "nonsense": ((Write(b"HTTP/1.1 abc Nonsense\r\n\r\n"), Disconnect()), errors.ProtocolError),
    "binary": ((Write(b"\x00\xff" * 100 + b"\r\n\r\n"), Disconnect()), errors.ProtocolError),
}
# An answer, and bytes that are too much, such as a 408 for a connection that was idle.
_UNREAD: dict[str, Answer] = {
    "with-it": (Write(written(_OK) * 2),),
    "after-it": (*_OK, Hold(), *answer(b"slow", status="408 Request Timeout")),
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
    def test_a_request_reaches_the_server_once(
        self, probe: Probe, breaks: str, *, pooled: bool
    ) -> None:
        """However the answer fails to come; and the error does not say that nothing was sent."""
        steps, error = _BREAKS[breaks]
        server = probe.serve(*[_OK] * pooled, steps, _OK)
        if pooled:
            assert probe.fetch(get(server.url)) == b"ok"
        request = post(server.url, timeout=evolve(PATIENT, read=SHORT))
        fails(lambda: probe.send(request), error)
        assert _posts(server) == 1
        server.wait_until_gone()

    def test_the_server_breaks_off_while_it_is_written_to(self, probe: Probe) -> None:
        """It may have read enough to act."""
        server = probe.serve(unasked=(Receive(), Reset()))
        with pytest.raises(errors.ConnectionInterrupted):
            probe.send(post(server.url, bytes(16_000_000)))
        assert server.connections == 1

    def test_the_server_breaks_off_a_pooled_connection_while_it_is_written_to(
        self, probe: Probe
    ) -> None:
        """The request goes out over a new one only if the server has seen nothing of it."""
        begun = Event()
        server = probe.serve((*_OK, Receive(), Signal(begun), Reset()), _OK)
        assert probe.fetch(get(server.url)) == b"ok"
        answered = b""
        with suppress(errors.ConnectionInterrupted):
            answered = probe.fetch(post(server.url, bytes(16_000_000)))
        assert not (answered and begun.is_set()), "the request was sent again"

    def test_a_connection_that_died_in_the_pool(self, probe: Probe) -> None:
        """The next request goes out over a new one, or fails and was received once at most."""
        server = probe.serve((*_OK, Hold(), Disconnect()), _OK)
        assert probe.fetch(get(server.url)) == b"ok"
        server.release()
        least, most = 1, 1
        try:
            assert probe.fetch(post(server.url)) == b"ok"
        except (errors.ConnectError, errors.ConnectionInterrupted) as error:
            least, most = 0, isinstance(error, errors.ConnectionInterrupted)
        assert least <= _posts(server) <= most
        assert probe.fetch(get(server.url)) == b"ok"

    @pytest.mark.parametrize("location", _LOCATIONS)
    def test_a_redirect_leads_nowhere(self, probe: Probe, location: str) -> None:
        """Nobody follows it, so nobody has to understand it; what it says may be lost."""
        server = probe.serve(answer(b"moved", status="302 Found", headers=[("Location", location)]))
        reply = probe.send(post(server.url))
        assert (reply.head.status_code, reply.head.headers["location"]) == (302, location)
        assert reply.read() in (b"moved", b"")
        assert _posts(server) == 1


class ReleaseContract(Contract):
    """The server sees at once that a client is done with a connection."""

    @streams
    def test_a_body_read_to_its_end(self, probe: Probe, *, stream: bool) -> None:
        """The next request takes the same connection; closing the body, even twice, is no harm."""
        server = probe.serve(answer(b"a", b"b", framing="chunked", gzip=True))
        for _ in range(3):
            reply = probe.send(get(server.url, stream=stream))
            assert reply.read() == b"ab"
            reply.close()
            reply.close()
        assert server.connections == 1

    @_half_read
    @streams
    def test_a_body_is_closed(self, probe: Probe, read: bytes, *, stream: bool) -> None:
        """So is the connection; and the body does not look like one that has ended."""
        server, reply = probe.ask(_SILENT, stream=stream)
        assert reply.read(len(read)) == read
        reply.close()
        server.wait_until_gone()
        reply.close()
        with pytest.raises(errors.TransportError):
            reply.read()

    @_half_read
    @streams
    @pytest.mark.parametrize("in_a_cycle", [False, True], ids=["at-once", "in-a-cycle"])
    def test_a_body_is_forgotten(
        self, probe: Probe, read: bytes, *, in_a_cycle: bool, stream: bool
    ) -> None:
        """The connection is closed, at once or by the garbage collector."""
        server, reply = probe.ask(_SILENT, stream=stream)
        assert reply.read(len(read)) == read
        reply.forget(in_a_cycle=in_a_cycle)
        server.wait_until_gone()

    @pytest.mark.parametrize("what", ["body", "transport"])
    def test_closing_ends_a_read_elsewhere(self, probe: Probe, what: str) -> None:
        """Whoever waits for the next piece, in another thread or task, gets an error, at once."""
        server, reply = probe.begin(_SILENT, stream=True)
        waiting = reply.start_next()
        (reply if what == "body" else probe).close()
        with pytest.raises(errors.TransportError):
            waiting.outcome()
        server.wait_until_gone()

    @pytest.mark.parametrize("unread", _UNREAD)
    def test_a_pooled_connection_has_unread_bytes(
        self, probe: Probe, limit: float, unread: str
    ) -> None:
        """They came with the answer, or after it, and do not answer the next request."""
        arrived = Event()
        server = probe.serve((*_UNREAD[unread], Signal(arrived), Hold()), answer(b"second"))
        assert probe.fetch(get(server.url)) == b"ok"
        server.release()
        assert arrived.wait(limit)
        assert probe.fetch(get(server.url)) == b"second"

    def test_many_at_once(self, probe: Probe) -> None:
        """Threads or tasks share one transport, and none waits for another."""
        server = probe.serve((Hold(), *answer(b"body", framing="chunked")))
        fetching = [probe.start_fetch(get(f"{server.url}/{number}")) for number in range(_MANY)]
        server.wait_for_requests(_MANY)
        server.release()
        assert [pending.outcome() for pending in fetching] == [b"body"] * _MANY
        targets = {request.target for request in server.requests}
        assert targets == {f"/{number}" for number in range(_MANY)}

    def test_many_are_read_at_once(self, probe: Probe) -> None:
        """One that waits for its next piece holds up neither other bodies nor other requests."""
        server = probe.serve(*[_SILENT] * _MANY, _OK)
        replies = [probe.send(get(server.url, stream=True)) for _ in range(_MANY)]
        assert [reply.read(5) for reply in replies] == [b"first"] * _MANY
        reading = [reply.start_next() for reply in replies]
        assert probe.fetch(get(server.url)) == b"ok"
        server.release()
        assert [pending.outcome() for pending in reading] == [b"second"] * _MANY

    def test_the_collector_runs_at_any_moment(
        self, probe: Probe, backend: str, limit: float
    ) -> None:
        """Even while the pool's lock is held, which closing a forgotten body must not wait for."""
        server = probe.serve(answer(b"first", b"second", framing="chunked"))

        def forget(probe: Probe) -> None:  # pragma: no cover - in the child
            probe.send(get(server.url, stream=True)).take(in_a_cycle=True)

        def work() -> None:  # pragma: no cover - in the child
            ending = ExitStack()  # Not closed: the child ends at once.
            probe = self.make_probe(self.make_transport(), backend, limit, ending)
            for moment in range(_MOMENTS):
                signal.setitimer(signal.ITIMER_REAL, limit)
                gc.disable()
                forget(probe)
                gc.set_threshold(gc.get_count()[0] + moment)  # It runs after so many new objects.
                gc.enable()
                assert probe.fetch(get(server.url)) == b"firstsecond"
            with ThreadPoolExecutor(2) as other_threads:
                for _ in other_threads.map(forget, [probe] * _MOMENTS):
                    assert probe.fetch(get(server.url)) == b"firstsecond"

        _run_in_child(work, limit)

    def test_closing_the_transport(self, probe: Probe) -> None:
        """Its idle connections are closed, even twice; then it opens anew, or says it is closed."""
        server = probe.serve(_OK)
        assert probe.fetch(get(server.url)) == b"ok"
        probe.close()
        server.wait_until_gone()
        probe.close()
        with suppress(errors.ClientClosed):
            assert probe.fetch(get(server.url)) == b"ok"

    @pytest.mark.parametrize("size", [2, 16_000_000], ids=["waiting", "writing"])
    def test_closing_the_transport_while_it_sends(self, probe: Probe, size: int) -> None:
        """Closing ends, whatever becomes of the request."""
        listener, url = probe.listen()
        sending = probe.start(post(url, bytes(size)))
        connection, _ = listener.accept()
        with connection:
            assert sending.lasts(SHORT)
            probe.close()


class CancellationContract(Contract):
    """What is cancelled leaves no connection behind."""

    def test_waiting_for_the_headers(self, probe: Probe) -> None:
        """The call ends, and so does its connection."""
        server = probe.serve((Hold(),))
        sending = probe.start(get(server.url))
        server.wait_for_requests(1)
        sending.future.cancel()
        server.wait_until_gone()

    @streams
    def test_waiting_for_a_piece(self, probe: Probe, *, stream: bool) -> None:
        """Who reads closes the body while being cancelled."""
        server, reply = probe.begin(_SILENT, stream=stream)
        body, pieces = reply.take()
        begun = Event()

        async def read() -> None:
            try:
                begun.set()
                await anext(pieces)
            finally:
                await body.close_async()

        reading = probe.run(read)
        begun.wait()
        reading.future.cancel()
        server.wait_until_gone()

    def test_what_was_cancelled_has_not_ended(self, probe: Probe) -> None:
        """Reading on goes on, or fails; it does not look like the end of the body."""
        server, reply = probe.begin(_SILENT, stream=True)
        body, pieces = reply.take()

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
            assert probe.run(read).outcome() == b"second"


def _posts(server: ByteServer) -> int:
    return sum(request.method == "POST" for request in server.requests)


def _run_in_child(work: Callable[[], object], patience: float) -> None:
    """Assert that `work` ends in a child process, within `patience` since it last set the timer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # The child uses no thread from here.
        child = os.fork()
    if child == 0:  # pragma: no cover - measured in the parent alone
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # Ends it, even where it waits for a lock.
        signal.setitimer(signal.ITIMER_REAL, patience)
        gc.freeze()  # What is garbage here may be in use in the parent.
        try:
            work()
        except BaseException:  # noqa: BLE001 - whatever it is, nothing of the parent's runs on
            os.write(2, traceback.format_exc().encode())
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code != -signal.SIGALRM, f"the transport hangs: no end within {patience:.1f} s"
    assert code == 0, "the transport failed in the child, as standard error tells"
