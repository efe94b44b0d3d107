"""The contract's part on sending once: what may have reached the server is not sent again."""

# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

from contextlib import suppress
from threading import Event

import pytest
from attrs import evolve

from flux0.domain.errors import ConnectError, ConnectionInterrupted, TransportError
from flux0.testing.contract.answers import (
    Answer,
    Disconnect,
    Hold,
    Receive,
    Reset,
    Signal,
    Write,
    answer,
    head,
)
from flux0.testing.contract.base import PATIENT, SHORT, Contract, Serve, get, post
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.probe import Probe

_OK = answer(b"ok")
_BEGUN = Write(b"HTTP/1.1 200 OK\r\nContent-")

# What a server does that has read the whole request.
BREAKS: dict[str, Answer] = {
    "closed": (Disconnect(),),
    "reset": (Reset(),),
    "closed-in-head": (_BEGUN, Disconnect()),
    "reset-in-head": (_BEGUN, Reset()),
    "closed-after-interim": (head("103 Early Hints"), Disconnect()),
    "garbage": (Write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), Disconnect()),
    "silent": (Hold(),),
}
_LOCATIONS = ("http://[", "http://a b:c/", "\xe9", "", "javascript:alert(1)", "http:there", "x://")
pooling: pytest.MarkDecorator = pytest.mark.parametrize(
    "pooled", [False, True], ids=["fresh", "pooled"]
)


class NeverTwiceContract(Contract):
    """A server that may have acted on a request does not get it again."""

    @pytest.mark.parametrize("breaks", BREAKS)
    @pooling
    def test_a_request_reaches_the_server_once(
        self, probe: Probe, serve: Serve, breaks: str, *, pooled: bool
    ) -> None:
        """However the answer fails to come; and the error does not say that nothing was sent."""
        server = serve(*[_OK] * pooled, BREAKS[breaks], _OK)
        if pooled:
            assert probe.fetch(get(server.url)) == b"ok"
        with pytest.raises(TransportError) as caught:
            probe.send(post(server.url, timeout=evolve(PATIENT, read=SHORT)))
        assert not isinstance(caught.value, ConnectError)
        assert _posts(server) == 1

    @pooling
    def test_the_server_breaks_off_while_it_is_written_to(
        self, probe: Probe, serve: Serve, *, pooled: bool
    ) -> None:
        """It may have read enough to act."""
        begun = Event()
        breaks: Answer = (Receive(), Signal(begun), Reset())
        server = serve((*_OK, *breaks), _OK) if pooled else serve(unasked=breaks)
        if pooled:
            assert probe.fetch(get(server.url)) == b"ok"
        request = post(server.url, bytes(16_000_000))
        if pooled:
            with suppress(ConnectionInterrupted):
                probe.fetch(request)
                assert not begun.is_set(), "the request was sent again"
        else:
            with pytest.raises(ConnectionInterrupted):
                probe.send(request)
            assert server.connections == 1

    def test_a_connection_that_died_in_the_pool(self, probe: Probe, serve: Serve) -> None:
        """The next request goes out over a new one, or fails and was received once at most."""
        server = serve((*_OK, Hold(), Disconnect()), _OK)
        assert probe.fetch(get(server.url)) == b"ok"
        server.release()
        try:
            assert probe.fetch(post(server.url)) == b"ok"
            assert _posts(server) == 1
        except ConnectError:
            assert _posts(server) == 0
        except ConnectionInterrupted:
            assert _posts(server) <= 1
        assert probe.fetch(get(server.url)) == b"ok"

    @pytest.mark.parametrize("location", _LOCATIONS)
    def test_a_redirect_leads_nowhere(self, probe: Probe, serve: Serve, location: str) -> None:
        """Nobody follows it, so nobody has to understand it; what it says may be lost."""
        server = serve(answer(b"moved", status="302 Found", headers=[("Location", location)]))
        reply = probe.send(post(server.url))
        assert (reply.status_code, reply.headers["location"]) == (302, location)
        assert reply.read() in (b"moved", b"")
        assert _posts(server) == 1


def _posts(server: ByteServer) -> int:
    return sum(request.method == "POST" for request in server.requests)
