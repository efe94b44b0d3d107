"""The contract's part on connecting, with TLS and without: nothing was sent if that fails."""

# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme
from attrs import evolve

from flux0.domain import errors
from flux0.testing.contract.base import SHORT, Contract, fails
from flux0.testing.contract.probe import PATIENT, Probe, get
from flux0.testing.contract.responses import Disconnect, Hold, Write, answer

_IMPATIENT = evolve(PATIENT, connect=SHORT)


class ConnectContract(Contract):
    """No connection: nothing was sent, and the error says so."""

    @pytest.mark.parametrize(
        "host",
        ["flux0.invalid", "flüx.invalid", "xn--a-.invalid", "a" * 64 + ".invalid", "a..invalid"],
    )
    def test_there_is_no_such_name(self, probe: Probe, host: str) -> None:
        """`.invalid` has no hosts (RFC 2606), and labels have 1 to 63 characters."""
        fails(lambda: probe.send(get(f"http://{host}/")), errors.ConnectError)

    def test_the_connection_is_refused(self, probe: Probe) -> None:
        """Nobody listens."""
        listener, url = probe.listen()
        listener.close()
        fails(lambda: probe.send(get(url)), errors.ConnectError)

    def test_connecting_takes_too_long(self, probe: Probe) -> None:
        """The port's queue of connections is full; `Timeout.connect` is the limit."""
        listener, url = probe.listen()
        listener.listen(0)
        with ExitStack() as sockets:
            for _ in range(4):
                waiting = sockets.enter_context(socket.socket())
                waiting.settimeout(0)
                waiting.connect_ex(listener.getsockname())
            fails(lambda: probe.send(get(url, timeout=_IMPATIENT)), errors.ConnectTimeout)


class TLSContract(Contract):
    """A server is trusted for a certificate of its name by a known authority, or not at all."""

    def make_trusting_transport(self, ca_file: str) -> Any:
        """Return a new transport that trusts the authorities in the PEM file `ca_file`."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to trust {ca_file}")

    @pytest.fixture
    def authority(self) -> trustme.CA:
        """An authority that nobody trusts unless told to."""
        return trustme.CA()

    @pytest.fixture
    def tls(self, authority: trustme.CA) -> ssl.SSLContext:
        """What secures the connections of a server at 127.0.0.1."""
        return _context(authority, "127.0.0.1")

    @pytest.fixture
    def trusting(
        self, drive: Callable[[Any], Probe], authority: trustme.CA, tmp_path: Path
    ) -> Probe:
        """Drives a transport that trusts the authority."""
        path = tmp_path / "ca.pem"
        authority.cert_pem.write_to_path(path)
        return drive(self.make_trusting_transport(str(path)))

    def test_a_trusted_server(self, trusting: Probe, tls: ssl.SSLContext) -> None:
        """The same as without TLS."""
        server = trusting.serve(answer(b"secret", framing="chunked"), tls=tls)
        assert trusting.fetch(get(server.url, stream=True)) == b"secret"
        assert trusting.fetch(get(server.url)) == b"secret"
        assert server.connections == 1

    def test_an_unknown_authority(self, probe: Probe, tls: ssl.SSLContext) -> None:
        """Nothing is sent."""
        server = probe.serve(answer(b""), tls=tls)
        fails(lambda: probe.send(get(server.url)), errors.TLSError)
        assert server.requests == ()

    def test_another_name(self, trusting: Probe, authority: trustme.CA) -> None:
        """Nothing is sent."""
        server = trusting.serve(answer(b""), tls=_context(authority, "elsewhere.example"))
        fails(lambda: trusting.send(get(server.url)), errors.TLSError)
        assert server.requests == ()

    def test_a_server_without_tls(self, probe: Probe) -> None:
        """It answers in plain HTTP."""
        server = probe.serve(unasked=(Write(b"HTTP/1.1 400 Bad Request\r\n\r\n"), Hold()))
        url = server.url.replace("http:", "https:")
        fails(lambda: probe.send(get(url)), errors.TLSError)

    def test_a_silent_server(self, probe: Probe) -> None:
        """The handshake is a part of connecting."""
        server = probe.serve(unasked=(Hold(),))
        url = server.url.replace("http:", "https:")
        fails(lambda: probe.send(get(url, timeout=_IMPATIENT)), errors.ConnectTimeout)
        server.wait_until_gone()

    def test_an_answer_over_tls_is_not_http(self, trusting: Probe, tls: ssl.SSLContext) -> None:
        """The same as without TLS."""
        head = Write(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}")
        server = trusting.serve((head, Disconnect()), tls=tls)
        fails(lambda: trusting.send(get(server.url)), errors.ProtocolError)
        server.wait_until_gone()

    def test_the_encryption_breaks_within_a_body(
        self, trusting: Probe, tls: ssl.SSLContext
    ) -> None:
        """By then the server has the request."""
        noise = Write(b"\x17\x03\x03\x00\x20" + bytes(32), below_tls=True)
        steps = (*answer(b"first", Hold(), framing="chunked")[:-1], noise)
        server, reply = trusting.begin(steps, tls=tls)
        server.release()
        fails(reply.read, errors.ConnectionInterrupted)
        server.wait_until_gone()

    def test_closing_ends_a_read_under_tls(self, trusting: Probe, tls: ssl.SSLContext) -> None:
        """As without TLS: the waiting thread or task gets an error, at once."""
        server, reply = trusting.begin(answer(b"first", Hold(), framing="chunked"), tls=tls)
        waiting = reply.start_next()
        reply.close()
        server.wait_until_gone()
        with pytest.raises(errors.TransportError):
            waiting.outcome()


class LimitedPoolContract(Contract):
    """For a transport whose library can limit the connections of its pool."""

    def make_limited_transport(self) -> object:
        """Return a new transport that opens one connection at most."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to limit its pool")

    @pytest.fixture
    def limited(self, drive: Callable[[Any], Probe]) -> Probe:
        """Drives a transport that opens one connection at most."""
        return drive(self.make_limited_transport())

    def test_no_connection_becomes_free(self, limited: Probe) -> None:
        """`Timeout.pool` is the limit; afterwards the pool is whole."""
        steps = answer(b"first", Hold(), b"second", framing="chunked")
        server, reply = limited.ask(steps, stream=True)
        request = get(server.url, timeout=evolve(PATIENT, pool=SHORT))
        fails(lambda: limited.send(request), errors.PoolTimeout)
        reply.close()
        server.release()
        assert limited.fetch(get(server.url)) == b"firstsecond"

    def test_a_forgotten_body_gives_its_place_back(self, limited: Probe) -> None:
        """The pool does not run dry of what its users left behind."""
        server = limited.serve(answer(b"first", Hold(), framing="chunked"))
        for _ in range(3):
            limited.send(get(server.url, stream=True)).forget(in_a_cycle=False)
        server.wait_until_gone()


def _context(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)  # pyright: ignore[reportUnknownMemberType] - it also takes a type of pyOpenSSL
    return context
