"""The contract's part on TLS."""

# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from attrs import evolve

from flux0.domain.errors import ConnectionInterrupted, ConnectTimeout, TLSError, TransportError
from flux0.testing.contract.answers import Hold, Write, WriteBelowTLS, answer
from flux0.testing.contract.base import PATIENT, SHORT, Contract, Drive, Serve, get
from flux0.testing.contract.faults import fails
from flux0.testing.contract.probe import Probe


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
    def ca_file(self, authority: trustme.CA, tmp_path: Path) -> str:
        """Where its certificate is."""
        path = tmp_path / "ca.pem"
        authority.cert_pem.write_to_path(path)
        return str(path)

    def test_a_trusted_server(
        self, drive: Drive, serve: Serve, authority: trustme.CA, ca_file: str
    ) -> None:
        """The same as without TLS."""
        server = serve(answer(b"secret", framing="chunked"), tls=_context(authority, "127.0.0.1"))
        probe = drive(self.make_trusting_transport(ca_file))
        assert probe.fetch(get(server.url, stream=True)) == b"secret"
        assert probe.fetch(get(server.url)) == b"secret"
        assert server.connections == 1

    def test_an_unknown_authority(self, probe: Probe, serve: Serve, authority: trustme.CA) -> None:
        """Nothing is sent."""
        server = serve(answer(b""), tls=_context(authority, "127.0.0.1"))
        fails(probe, get(server.url), TLSError)
        assert server.requests == ()

    def test_another_name(
        self, drive: Drive, serve: Serve, authority: trustme.CA, ca_file: str
    ) -> None:
        """Nothing is sent."""
        server = serve(answer(b""), tls=_context(authority, "elsewhere.example"))
        fails(drive(self.make_trusting_transport(ca_file)), get(server.url), TLSError)
        assert server.requests == ()

    def test_a_server_without_tls(self, probe: Probe, serve: Serve) -> None:
        """It answers in plain HTTP."""
        server = serve(unasked=(Write(b"HTTP/1.1 400 Bad Request\r\n\r\n"), Hold()))
        fails(probe, get(f"https://{server.host}:{server.port}"), TLSError)

    def test_a_silent_server(self, probe: Probe, serve: Serve) -> None:
        """The handshake is a part of connecting."""
        server = serve(unasked=(Hold(),))
        url = f"https://{server.host}:{server.port}"
        fails(probe, get(url, timeout=evolve(PATIENT, connect=SHORT)), ConnectTimeout)
        server.wait_until_gone()

    def test_the_encryption_breaks_within_a_body(
        self, drive: Drive, serve: Serve, authority: trustme.CA, ca_file: str
    ) -> None:
        """By then the server has the request."""
        noise = WriteBelowTLS(b"\x17\x03\x03\x00\x20" + bytes(32))
        steps = (*answer(b"first", Hold(), framing="chunked")[:-1], noise)
        server = serve(steps, tls=_context(authority, "127.0.0.1"))
        reply = drive(self.make_trusting_transport(ca_file)).send(get(server.url))
        assert reply.read_exactly(5) == b"first"
        server.release()
        with pytest.raises(ConnectionInterrupted) as caught:
            reply.read()
        assert isinstance(caught.value.__cause__, Exception)
        server.wait_until_gone()

    def test_closing_ends_a_read_under_tls(
        self, drive: Drive, serve: Serve, authority: trustme.CA, ca_file: str
    ) -> None:
        """As without TLS: the waiting thread or task gets an error, at once."""
        steps = answer(b"first", Hold(), framing="chunked")
        server = serve(steps, tls=_context(authority, "127.0.0.1"))
        reply = drive(self.make_trusting_transport(ca_file)).send(get(server.url, stream=True))
        assert reply.read_exactly(5) == b"first"
        waiting = reply.start_next()
        reply.close()
        server.wait_until_gone()
        with pytest.raises(TransportError):
            waiting.outcome()


def _context(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = authority.issue_cert(name)
    certificate.configure_cert(context)  # pyright: ignore[reportUnknownMemberType] - it also takes a type of pyOpenSSL
    return context
