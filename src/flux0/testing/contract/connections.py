"""The contract for connections: each request is sent once, and each connection is released."""

# ruff: noqa: S101 - the tests in this module use assert statements

from __future__ import annotations

import gc
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from threading import Event
from typing import Any

import pytest
from anyio import CancelScope
from attrs import evolve

from flux0.domain import errors
from flux0.testing.contract.base import EXPIRY, Contract, check, fails, streams
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.forking import child_exit_code
from flux0.testing.contract.harness import LONG, LONG_TIMEOUT, Harness, get, post
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
_PARTIAL_HEAD = Write(b"HTTP/1.1 200 OK\r\nContent-")
_MANY = 20
_MOMENTS = range(0, 150, 2)

# `_BREAKS` maps the name of each failure to the server's steps after the server has read the whole
# request, and to the error that the transport must raise.
_BREAKS: dict[str, tuple[ServerSteps, type[errors.TransportError]]] = {
    "closed": ((Disconnect(),), errors.ConnectionInterrupted),
    "reset": ((Reset(),), errors.ConnectionInterrupted),
    "closed-in-head": ((_PARTIAL_HEAD, Disconnect()), errors.ConnectionInterrupted),
    "reset-in-head": ((_PARTIAL_HEAD, Reset()), errors.ConnectionInterrupted),
    "closed-after-interim": ((head("103 Early Hints"), Disconnect()), errors.ConnectionInterrupted),
    "silent": ((WaitForRelease(),), errors.ReadTimeout),
    "ssh": ((Write(b"SSH-2.0-OpenSSH\r\n\r\n"), Disconnect()), errors.ProtocolError),
    "nonsense": ((Write(b"HTTP/1.1 abc Nonsense\r\n\r\n"), Disconnect()), errors.ProtocolError),
    "binary": ((Write(b"\x00\xff" * 100 + b"\r\n\r\n"), Disconnect()), errors.ProtocolError),
}
# With the steps in `_SURPLUS`, the server sends a response, followed by surplus bytes, such as a
# 408 response for an idle connection.
_SURPLUS: dict[str, ServerSteps] = {
    "with-it": (Write(to_bytes(_OK) * 2),),
    "with-last-chunk": (Write(to_bytes((*http_response(b"ok", framing="chunked"), *_OK))),),
    "after-it": (*_OK, WaitForRelease(), *http_response(b"slow", status="408 Request Timeout")),
}
_LOCATIONS = (
    *("http://[", "http://a b:c/", "http://xn--/", "x://", "\xe9", ""),
    *("javascript:alert(1)", "http:there"),
)
_pooling = pytest.mark.parametrize("pooled", [False, True], ids=["fresh", "pooled"])
_half_read = pytest.mark.parametrize("read", [b"", b"first"], ids=["not-read", "half-read"])


class SendOnceContract(Contract):
    """A request that the server may have received is not sent again."""

    @pytest.mark.parametrize("breaks", _BREAKS)
    @_pooling
    def test_request_is_sent_once_if_its_response_fails(
        self, harness: Harness, breaks: str, *, pooled: bool
    ) -> None:
        """The client sends a request again after a `ConnectError`, so this error is not allowed."""
        steps, error = _BREAKS[breaks]
        server = harness.serve(*[_OK] * pooled, steps, _OK)
        if pooled:
            check(harness.fetch(get(server.url)), b"ok", "the body")
        read_timeout = EXPIRY if error is errors.ReadTimeout else LONG_TIMEOUT.read
        request = post(server.url, timeout=evolve(LONG_TIMEOUT, read=read_timeout))
        fails(lambda: harness.send(request), error)
        server.wait_for_requests(1 + pooled)
        server.wait_until_closed()
        assert _posts(server) == 1, "the request was not sent exactly once"

    def test_request_is_sent_once_if_writing_fails(self, harness: Harness) -> None:
        """The server may have acted on the bytes that it has read."""
        server = harness.serve(on_connect=(Receive(), Reset()))
        with pytest.raises(errors.ConnectionInterrupted):
            harness.send(post(server.url, bytes(16_000_000)))
        assert server.connections == 1, "the request was sent again"

    def test_request_that_the_server_began_to_read_is_not_resent(self, harness: Harness) -> None:
        """The server resets a pooled connection while it reads the request.

        The transport may send the request over a new connection only if the server has received no
        byte of it.
        """
        begun = Event()
        server = harness.serve((*_OK, Receive(), Signal(begun), Reset()), _OK)
        check(harness.fetch(get(server.url)), b"ok", "the body")
        body = b""
        with suppress(errors.ConnectionInterrupted):
            body = harness.fetch(post(server.url, bytes(16_000_000)))
        assert not (body and begun.is_set()), "the request was sent again"

    def test_request_over_a_closed_pooled_connection_is_not_sent_twice(
        self, harness: Harness
    ) -> None:
        """The transport sends the request over a new connection, or raises an error."""
        server = harness.serve((*_OK, WaitForRelease(), Disconnect()), _OK)
        check(harness.fetch(get(server.url)), b"ok", "the body")
        server.release()
        call = harness.start_fetch(post(server.url))
        error = call.error()
        if error is None:
            check(call.outcome(), b"ok", "the body of the response to the POST request")
        is_allowed = isinstance(error, errors.ConnectError | errors.ConnectionInterrupted)
        assert error is None or is_allowed, f"{error!r} must be a ConnectionInterrupted"
        least, most = error is None, not isinstance(error, errors.ConnectError)
        assert least <= _posts(server) <= most, (
            "the server must get one request, or none after a ConnectError"
        )
        check(harness.fetch(get(server.url)), b"ok", "the body")

    @pytest.mark.parametrize("location", _LOCATIONS)
    def test_redirects_are_not_followed(self, harness: Harness, location: str) -> None:
        """A redirect is returned even if its `location` is malformed. Its body may be dropped."""
        steps = http_response(b"moved", status="302 Found", headers=[("Location", location)])
        server = harness.serve(steps)
        response = harness.send(post(server.url))
        check(response.head.status_code, 302, "the status")
        check(response.head.headers.get("location"), location, "the location header")
        assert response.read() in (b"moved", b""), "read() must return the redirect's body, or b''"
        assert _posts(server) == 1, "the request was not sent exactly once"


class ReleaseContract(Contract):
    """A connection that is no longer needed is returned to the pool or closed at once."""

    @streams
    def test_finished_body_releases_its_connection_for_reuse(
        self, harness: Harness, *, stream: bool
    ) -> None:
        """If a response body was read to its end, `close` does not close the connection."""
        server = harness.serve(http_response(b"a", b"b", framing="chunked", gzip=True))
        for _ in range(3):
            response = harness.send(get(server.url, stream=stream))
            check(response.read(), b"ab", "the body")
            response.close()
            response.close()
        assert server.connections == 1, "the connection was not reused"

    def test_connection_is_not_reused_for_another_port(self, harness: Harness) -> None:
        servers = [harness.serve(http_response(name)) for name in (b"one", b"other")]
        received = [harness.fetch(get(server.url)) for server in servers]
        assert received == [b"one", b"other"], "a request was sent to the server of another URL"

    def test_connection_is_not_reused_for_another_scheme(self, harness: Harness) -> None:
        server = harness.serve(_OK)
        check(harness.fetch(get(server.url)), b"ok", "the body")
        url = server.url.replace("http:", "https:")
        with pytest.raises(errors.ConnectError):
            harness.send(get(url, timeout=evolve(LONG_TIMEOUT, connect=EXPIRY)))
        assert len(server.requests) == 1, "an https request was sent without TLS"

    def test_connection_is_not_reused_after_connection_close(self, harness: Harness) -> None:
        """A server may close the connection after `connection: close` (RFC 9112, section 9.6)."""
        server = harness.serve(http_response(b"ok", headers=[("Connection", "close")]))
        for _ in range(2):
            check(harness.fetch(get(server.url)), b"ok", "the body")
        check(server.connections, 2, "the number of connections after `connection: close`")

    @_half_read
    @streams
    def test_body_closed_early_closes_its_connection(
        self, harness: Harness, read: bytes, *, stream: bool
    ) -> None:
        """After `close`, reading the body raises an error: a closed body must not look complete."""
        server, response = harness.exchange(_SILENT, stream=stream)
        check(response.read(len(read)), read, "the body")
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
        """The body is freed at once, or by the garbage collector if it is in a reference cycle."""
        server, response = harness.exchange(_SILENT, stream=stream)
        check(response.read(len(read)), read, "the body")
        response.drop(in_cycle=in_cycle)
        server.wait_until_closed()

    @pytest.mark.parametrize("closed", ["body", "transport"])
    def test_close_ends_a_read_in_another_thread_or_task(
        self, harness: Harness, closed: str
    ) -> None:
        server, response = harness.read_first(_SILENT, stream=True)
        waiting = response.start_read()
        (response if closed == "body" else harness).close()
        with pytest.raises(errors.TransportError):
            waiting.outcome()
        server.wait_until_closed()

    @pytest.mark.parametrize("surplus", _SURPLUS)
    def test_connection_with_surplus_bytes_is_not_reused(
        self, harness: Harness, surplus: str
    ) -> None:
        arrived = Event()
        first = (*_SURPLUS[surplus], Signal(arrived), WaitForRelease())
        server = harness.serve(first, http_response(b"second"))
        check(harness.fetch(get(server.url)), b"ok", "the body")
        server.release()
        assert arrived.wait(self.timeout), "the server did not send the surplus bytes in time"
        check(harness.fetch(get(server.url)), b"second", "the body")
        check(server.connections, 2, "the number of connections after surplus bytes")

    def test_concurrent_requests_do_not_block_each_other(self, harness: Harness) -> None:
        server = harness.serve((WaitForRelease(), *http_response(b"body", framing="chunked")))
        fetching = [harness.start_fetch(get(f"{server.url}/{number}")) for number in range(_MANY)]
        server.wait_for_requests(_MANY)
        server.release()
        check([pending.outcome() for pending in fetching], [b"body"] * _MANY, "the bodies")
        targets = {request.target for request in server.requests}
        check(targets, {f"/{number}" for number in range(_MANY)}, "the received targets")

    def test_waiting_reads_do_not_block_other_calls(self, harness: Harness) -> None:
        server = harness.serve(*[_SILENT] * _MANY, _OK)
        responses = [harness.send(get(server.url, stream=True)) for _ in range(_MANY)]
        check([response.read(5) for response in responses], [b"first"] * _MANY, "the bodies")
        reading = [response.start_read() for response in responses]
        check(harness.fetch(get(server.url)), b"ok", "the body")
        server.release()
        check([pending.outcome() for pending in reading], [b"second"] * _MANY, "the bodies")

    def test_garbage_collection_at_any_moment_does_not_deadlock(
        self, harness: Harness, backend: str
    ) -> None:
        """The garbage collector may run in a thread that holds the pool's lock.

        Closing the connection of an unreferenced body must not wait for this lock.
        """
        server = harness.serve(http_response(b"first", b"second", framing="chunked"))

        def abandon(harness: Harness) -> None:  # pragma: no cover - in the child
            harness.send(get(server.url, stream=True)).detach(in_cycle=True)

        def work() -> None:  # pragma: no cover - in the child
            ending = ExitStack()  # The child process exits without closing the stack `ending`.
            harness = self.make_harness(self.make_transport(), backend, ending)
            for moment in _MOMENTS:
                signal.setitimer(signal.ITIMER_REAL, self.timeout)
                gc.disable()
                abandon(harness)
                # The garbage collector runs as soon as `moment` more objects have been created.
                gc.set_threshold(gc.get_count()[0] + moment)
                gc.enable()
                check(harness.fetch(get(server.url)), b"firstsecond", "the body")
            with ThreadPoolExecutor(2) as other_threads:
                for _ in other_threads.map(abandon, [harness] * len(_MOMENTS)):
                    signal.setitimer(signal.ITIMER_REAL, self.timeout)
                    check(harness.fetch(get(server.url)), b"firstsecond", "the body")

        code = child_exit_code(work, self.timeout)
        assert code == 0, (
            f"the transport {'hangs' if code == -signal.SIGALRM else 'failed'} in a child process: "
            "see the captured standard error"
        )

    def test_closing_the_transport_closes_idle_connections(self, harness: Harness) -> None:
        """A second `close` has no effect. A later request succeeds or raises `ClientClosed`."""
        server = harness.serve(_OK)
        responses = [harness.send(get(server.url, stream=True)) for _ in range(2)]
        check([response.read() for response in responses], [b"ok", b"ok"], "the bodies")
        harness.close()
        server.wait_until_closed()
        harness.close()
        with suppress(errors.ClientClosed):
            check(harness.fetch(get(server.url)), b"ok", "the body")

    @_half_read
    def test_closing_the_transport_closes_connections_of_bodies(
        self, harness: Harness, read: bytes
    ) -> None:
        server, response = harness.exchange(_SILENT, stream=True)
        check(response.read(len(read)), read, "the body")
        harness.close()
        server.wait_until_closed()
        with pytest.raises(errors.TransportError):
            response.read()

    @pytest.mark.parametrize("size", [2, 16_000_000], ids=["waiting", "writing"])
    def test_closing_the_transport_during_a_send_returns(self, harness: Harness, size: int) -> None:
        listener, url = harness.listen()
        sending = harness.start(post(url, bytes(size)))
        connection, _ = listener.accept()
        with connection:
            assert sending.is_pending_after(EXPIRY), "the request ended without a response"
            harness.close()


class CancellationContract(Contract):
    """A cancelled call leaves no open connection."""

    def test_cancelled_send_closes_its_connection(self, harness: Harness) -> None:
        server = harness.serve((WaitForRelease(),))
        sending = harness.start(get(server.url))
        server.wait_for_requests(1)
        sending.future.cancel()
        server.wait_until_closed()

    @streams
    def test_body_closed_on_cancellation_closes_its_connection(
        self, harness: Harness, *, stream: bool
    ) -> None:
        server, response = harness.read_first(_SILENT, stream=stream)
        body = response.detach()
        begun = Event()

        async def read() -> None:
            try:
                begun.set()
                await body.read_async(LONG)
            finally:
                await body.close_async()

        reading = harness.run(read)
        begun.wait()
        reading.future.cancel()
        server.wait_until_closed()

    def test_cancelled_read_does_not_end_the_body(self, harness: Harness) -> None:
        """After the cancellation, the next read returns the next piece or raises an error."""
        server, response = harness.read_first(_SILENT, stream=True)
        body = response.detach()

        async def read() -> Any:
            with CancelScope() as scope:
                scope.cancel()
                await body.read_async(LONG)
            server.release()
            try:
                return await body.read_async(LONG)
            finally:
                await body.close_async()

        with suppress(errors.TransportError):
            check(harness.run(read).outcome(), b"second", "the body")


def _posts(server: ByteServer) -> int:
    return sum(request.method == "POST" for request in server.requests)
