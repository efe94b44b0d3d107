"""The contract's part on connections: each is given back or closed, however a body is left."""

# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

import gc
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event

import pytest
from anyio import CancelScope
from attrs import evolve

from flux0.domain.errors import (
    ClientClosed,
    PoolTimeout,
    TransportError,
)
from flux0.testing.contract.answers import Hold, Signal, Write, answer, written
from flux0.testing.contract.base import (
    PATIENT,
    SHORT,
    Contract,
    Drive,
    Serve,
    get,
    post,
    streams,
)
from flux0.testing.contract.children import run_in_child
from flux0.testing.contract.faults import fails
from flux0.testing.contract.probe import LoopProbe, Probe

_OK = answer(b"ok")
_SILENT = answer(b"first", Hold(), b"second", framing="chunked")
_MANY = 20
_MOMENTS = 150


class ReleaseContract(Contract):
    """The server sees at once that a client is done with a connection."""

    @streams
    def test_a_body_read_to_its_end(self, probe: Probe, serve: Serve, *, stream: bool) -> None:
        """The next request takes the same connection."""
        server = serve(answer(b"a", b"b", framing="chunked", gzip=True))
        for _ in range(3):
            assert probe.fetch(get(server.url, stream=stream)) == b"ab"
        assert server.connections == 1

    def test_a_body_read_and_closed(self, probe: Probe, serve: Serve) -> None:
        """Closing afterwards, even twice, does no harm."""
        server = serve(_OK)
        for _ in range(3):
            reply = probe.send(get(server.url))
            assert reply.read() == b"ok"
            reply.close()
            reply.close()
        assert server.connections == 1

    @streams
    def test_a_body_not_read(self, probe: Probe, serve: Serve, *, stream: bool) -> None:
        """Closing it closes the connection; twice does no harm."""
        server = serve(_SILENT)
        reply = probe.send(get(server.url, stream=stream))
        reply.close()
        server.wait_until_gone()
        reply.close()

    @streams
    def test_a_body_half_read(self, probe: Probe, serve: Serve, *, stream: bool) -> None:
        """Closing it closes the connection; twice does no harm."""
        server = serve(_SILENT)
        reply = probe.send(get(server.url, stream=stream))
        assert reply.read_exactly(5) == b"first"
        reply.close()
        server.wait_until_gone()
        reply.close()

    def test_reading_on_after_closing(self, probe: Probe, serve: Serve) -> None:
        """A body that was closed before its end does not look like one that has ended."""
        reply = probe.send(get(serve(_SILENT).url, stream=True))
        assert reply.read_exactly(5) == b"first"
        reply.close()
        with pytest.raises(TransportError):
            reply.next()

    def test_reading_after_closing(self, probe: Probe, serve: Serve) -> None:
        """Nor does one that was not read at all."""
        reply = probe.send(get(serve(_SILENT).url, stream=True))
        reply.close()
        with pytest.raises(TransportError):
            reply.next()

    @streams
    def test_a_body_not_read_is_forgotten(
        self, probe: Probe, serve: Serve, *, stream: bool
    ) -> None:
        """The garbage collector closes the connection."""
        server = serve(_SILENT)
        probe.send(get(server.url, stream=stream)).forget()
        server.wait_until_gone()

    @streams
    def test_a_body_half_read_is_forgotten(
        self, probe: Probe, serve: Serve, *, stream: bool
    ) -> None:
        """The garbage collector closes the connection."""
        server = serve(_SILENT)
        reply = probe.send(get(server.url, stream=stream))
        assert reply.read_exactly(5) == b"first"
        reply.forget()
        server.wait_until_gone()

    def test_a_body_is_forgotten_in_a_cycle(self, probe: Probe, serve: Serve) -> None:
        """The garbage collector runs whenever it likes, and in any thread."""
        server = serve(_SILENT)
        reply = probe.send(get(server.url, stream=True))
        assert reply.read_exactly(5) == b"first"
        cycle = reply.take()
        cycle.append(cycle)
        del cycle
        gc.collect()
        server.wait_until_gone()

    def test_closing_ends_a_read_elsewhere(self, probe: Probe, serve: Serve) -> None:
        """Another thread or task that waits for the next piece gets an error, at once."""
        server = serve(_SILENT)
        reply = probe.send(get(server.url, stream=True))
        assert reply.read_exactly(5) == b"first"
        waiting = reply.start_next()
        reply.close()
        with pytest.raises(TransportError):
            waiting.outcome()
        server.wait_until_gone()

    def test_a_pooled_connection_has_unread_bytes(
        self, probe: Probe, serve: Serve, limit: float
    ) -> None:
        """They came unasked and answer nothing, such as a 408 for a connection that was idle."""
        unasked, arrived = answer(b"slow", status="408 Request Timeout"), Event()
        server = serve((*_OK, Hold(), *unasked, Signal(arrived)), answer(b"second"))
        assert probe.fetch(get(server.url)) == b"ok"
        server.release()
        assert arrived.wait(limit)
        assert probe.fetch(get(server.url)) == b"second"

    def test_an_answer_is_longer_than_it_says(self, probe: Probe, serve: Serve) -> None:
        """What is too much does not answer the next request."""
        server = serve((Write(written(_OK) * 2), Hold()), answer(b"second"))
        assert probe.fetch(get(server.url)) == b"ok"
        assert probe.fetch(get(server.url)) == b"second"

    def test_many_at_once(self, probe: Probe, serve: Serve) -> None:
        """Threads or tasks share one transport, and none waits for another."""
        server = serve((Hold(), *answer(b"body", framing="chunked")))
        requests = [get(f"{server.url}/{number}") for number in range(_MANY)]
        fetching = [probe.start_fetch(request) for request in requests]
        server.wait_for_requests(_MANY)
        server.release()
        assert [pending.outcome() for pending in fetching] == [b"body"] * _MANY
        targets = {request.target for request in server.requests}
        assert targets == {f"/{number}" for number in range(_MANY)}

    def test_many_are_read_at_once(self, probe: Probe, serve: Serve) -> None:
        """One that waits for its next piece holds up neither other bodies nor other requests."""
        server = serve(*[_SILENT] * _MANY, _OK)
        replies = [probe.send(get(server.url, stream=True)) for _ in range(_MANY)]
        reading = [reply.start_read() for reply in replies]
        assert probe.fetch(get(server.url)) == b"ok"
        server.release()
        assert [pending.outcome() for pending in reading] == [b"firstsecond"] * _MANY

    def test_the_collector_runs_at_any_moment(
        self, serve: Serve, backend: str, limit: float
    ) -> None:
        """Even while the pool's lock is held, which closing a forgotten body must not wait for."""
        server = serve(answer(b"first", b"second", framing="chunked"))

        def forget(probe: Probe) -> None:  # pragma: no cover - in the child
            cycle = probe.send(get(server.url, stream=True)).take()
            cycle.append(cycle)

        def work() -> None:  # pragma: no cover - in the child
            probe = self.make_probe(self.make_transport(), backend, limit)
            for moment in range(_MOMENTS):
                gc.disable()
                forget(probe)
                gc.set_threshold(gc.get_count()[0] + moment)  # It runs after so many new objects.
                gc.enable()
                assert probe.fetch(get(server.url)) == b"firstsecond"
            with ThreadPoolExecutor(2) as other_threads:
                for _ in other_threads.map(forget, [probe] * _MOMENTS):
                    assert probe.fetch(get(server.url)) == b"firstsecond"

        run_in_child(work, limit)

    def test_closing_the_transport(self, probe: Probe, serve: Serve) -> None:
        """Its idle connections are closed; twice does no harm."""
        server = serve(_OK)
        assert probe.fetch(get(server.url)) == b"ok"
        probe.close()
        server.wait_until_gone()
        probe.close()

    @pytest.mark.parametrize("size", [2, 16_000_000], ids=["waiting", "writing"])
    def test_closing_the_transport_while_it_sends(self, probe: Probe, size: int) -> None:
        """Closing ends, whatever becomes of the request."""
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            sending = probe.start(post(f"http://127.0.0.1:{deaf.getsockname()[1]}", bytes(size)))
            connection, _ = deaf.accept()
            with connection:
                assert sending.lasts(SHORT)
                probe.close()

    def test_using_a_closed_transport(self, probe: Probe, serve: Serve) -> None:
        """It opens anew, or says that it is closed."""
        server = serve(_OK)
        assert probe.fetch(get(server.url)) == b"ok"
        probe.close()
        with suppress(ClientClosed):
            assert probe.fetch(get(server.url)) == b"ok"

    def test_closing_the_transport_ends_a_read(self, probe: Probe, serve: Serve) -> None:
        """Whoever waits for the next piece of a body gets an error instead of waiting on."""
        server = serve(_SILENT)
        reply = probe.send(get(server.url, stream=True))
        assert reply.read_exactly(5) == b"first"
        waiting = reply.start_next()
        probe.close()
        with pytest.raises(TransportError):
            waiting.outcome()
        server.wait_until_gone()


class CancellationContract(Contract):
    """What is cancelled leaves no connection behind."""

    def test_waiting_for_the_headers(self, probe: LoopProbe, serve: Serve) -> None:
        """The call ends, and so does its connection."""
        server = serve((Hold(),))
        sending = probe.start(get(server.url))
        server.wait_for_requests(1)
        sending.cancel()
        server.wait_until_gone()

    @streams
    def test_waiting_for_a_piece(self, probe: LoopProbe, serve: Serve, *, stream: bool) -> None:
        """Who reads closes the body while being cancelled."""
        server = serve(_SILENT)
        reply = probe.send(get(server.url, stream=stream))
        assert reply.read_exactly(5) == b"first"
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
        reading.cancel()
        server.wait_until_gone()

    def test_what_was_cancelled_has_not_ended(self, probe: LoopProbe, serve: Serve) -> None:
        """Reading on goes on, or fails; it does not look like the end of the body."""
        server = serve(_SILENT)
        reply = probe.send(get(server.url, stream=True))
        assert reply.read_exactly(5) == b"first"
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

        with suppress(TransportError):
            assert probe.run(read).outcome() == b"second"


class LimitedPoolContract(Contract):
    """For a transport whose library can limit the connections of its pool."""

    def make_limited_transport(self) -> object:
        """Return a new transport that opens one connection at most."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to limit its pool")

    def test_no_connection_becomes_free(self, drive: Drive, serve: Serve) -> None:
        """`Timeout.pool` is the limit; afterwards the pool is whole."""
        server = serve(_SILENT)
        probe = drive(self.make_limited_transport())
        reply = probe.send(get(server.url, stream=True))
        timeout = evolve(PATIENT, pool=SHORT)
        fails(probe, get(server.url, timeout=timeout), PoolTimeout)
        reply.close()
        server.release()
        assert probe.fetch(get(server.url)) == b"firstsecond"

    def test_a_forgotten_body_gives_its_place_back(self, drive: Drive, serve: Serve) -> None:
        """The pool does not run dry of what its users left behind."""
        server = serve(_SILENT)
        probe = drive(self.make_limited_transport())
        for _ in range(3):
            probe.send(get(server.url, stream=True)).forget()
        server.wait_until_gone()
