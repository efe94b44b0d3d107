"""The contract for connecting, with and without TLS. If connecting fails, no request is sent."""

# ruff: noqa: S101 - the tests in this module use assert statements

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve

from flux0.domain import errors
from flux0.testing.contract.base import EXPIRY, SHORT, Contract, check, check_expired, fails
from flux0.testing.contract.harness import LONG_TIMEOUT, Harness, ReceivedResponse, get
from flux0.testing.contract.responses import (
    FRAMINGS,
    Disconnect,
    Sleep,
    WaitForRelease,
    Write,
    http_response,
)

if TYPE_CHECKING:
    import trustme

_SHORT_CONNECT = evolve(LONG_TIMEOUT, connect=EXPIRY)


class ConnectContract(Contract):
    """If the connection cannot be established, the error is a `ConnectError` or a subclass."""

    @pytest.mark.parametrize(
        "host",
        ["flux0.invalid", "flüx.invalid", "xn--a-.invalid", "a" * 64 + ".invalid", "a..invalid"],
    )
    def test_unknown_host_is_a_connect_error(self, harness: Harness, host: str) -> None:
        """No host has a name in `.invalid` (RFC 2606). A part of a name has 1 to 63 bytes."""
        fails(lambda: harness.send(get(f"http://{host}/")), errors.ConnectError)

    def test_refused_connection_is_a_connect_error(self, harness: Harness) -> None:
        listener, url = harness.listen()
        listener.close()
        fails(lambda: harness.send(get(url)), errors.ConnectError)

    def test_connect_timeout_expires(self, harness: Harness) -> None:
        listener, url = harness.listen()
        listener.listen(0)
        with ExitStack() as sockets:
            for _ in range(4):
                waiting = sockets.enter_context(socket.socket())
                waiting.settimeout(0)
                waiting.connect_ex(listener.getsockname())
            fails(lambda: harness.send(get(url, timeout=_SHORT_CONNECT)), errors.ConnectTimeout)

    def test_each_address_of_a_host_is_tried(
        self, harness: Harness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = harness.serve(http_response(b"ok"))
        resolve = socket.getaddrinfo

        def resolve_to_two(host: Any, *args: Any, **options: Any) -> list[Any]:
            is_ours = host in {"two.invalid", b"two.invalid"}
            addresses = ("127.0.0.2", "127.0.0.1") if is_ours else (host,)
            return [found for each in addresses for found in resolve(each, *args, **options)]

        monkeypatch.setattr(socket, "getaddrinfo", resolve_to_two)
        check(harness.fetch(get(f"http://two.invalid:{server.port}")), b"ok", "the body")

    def test_ipv6_host_has_brackets(self, harness: Harness) -> None:
        """The `host` header has the brackets of an IPv6 address (RFC 9110, section 7.2)."""
        try:
            server = harness.serve(http_response(b"ok"), host="::1")
        except OSError:  # pragma: no cover - depends on the machine
            pytest.skip("this machine has no IPv6")
        check(harness.fetch(get(server.url)), b"ok", "the body")
        host = server.requests[0].headers["host"]
        assert host == f"[::1]:{server.port}", "the host header must have the URL's host"


class TLSContract(Contract):
    """Over TLS, certificates are verified. Reading and closing a body work as without TLS."""

    def make_trusting_transport(self, ca_file: str) -> Any:
        """Return a new transport that trusts the authorities in the PEM file `ca_file`."""
        raise NotImplementedError(f"{type(self).__name__} must define make_trusting_transport()")

    @pytest.fixture
    def authority(self) -> trustme.CA:
        # The other checks need no trustme, which not each Python can install.
        import trustme  # noqa: PLC0415

        return trustme.CA()

    @pytest.fixture
    def tls(self, authority: trustme.CA) -> ssl.SSLContext:
        return _context(authority, "127.0.0.1")

    @pytest.fixture
    def trusting(
        self, new_harness: Callable[[Any], Harness], authority: trustme.CA, tmp_path: Path
    ) -> Harness:
        path = tmp_path / "ca.pem"
        authority.cert_pem.write_to_path(path)
        return new_harness(self.make_trusting_transport(str(path)))

    def test_trusted_server_is_used_over_tls(self, trusting: Harness, tls: ssl.SSLContext) -> None:
        server = trusting.serve(http_response(b"secret", framing="chunked"), tls=tls)
        check(trusting.fetch(get(server.url, stream=True)), b"secret", "the body")
        check(trusting.fetch(get(server.url)), b"secret", "the body")
        assert server.connections == 1, "the connection was not reused"

    def test_unknown_authority_is_a_tls_error(self, harness: Harness, tls: ssl.SSLContext) -> None:
        server = harness.serve(http_response(b""), tls=tls)
        fails(lambda: harness.send(get(server.url)), errors.TLSError)
        assert server.requests == (), "the request was sent over an untrusted connection"

    def test_certificate_for_another_host_is_a_tls_error(
        self, trusting: Harness, authority: trustme.CA
    ) -> None:
        server = trusting.serve(http_response(b""), tls=_context(authority, "elsewhere.example"))
        fails(lambda: trusting.send(get(server.url)), errors.TLSError)
        assert server.requests == (), "the request was sent over an untrusted connection"

    def test_plain_http_instead_of_tls_is_a_tls_error(self, harness: Harness) -> None:
        steps = Write(b"HTTP/1.1 400 Bad Request\r\n\r\n"), WaitForRelease()
        server = harness.serve(on_connect=steps)
        url = server.url.replace("http:", "https:")
        fails(lambda: harness.send(get(url)), errors.TLSError)

    def test_connect_timeout_limits_the_tls_handshake(self, harness: Harness) -> None:
        server = harness.serve(on_connect=(WaitForRelease(),))
        url = server.url.replace("http:", "https:")
        fails(lambda: harness.send(get(url, timeout=_SHORT_CONNECT)), errors.ConnectTimeout)
        server.wait_until_closed()

    def test_malformed_response_over_tls_is_a_protocol_error(
        self, trusting: Harness, tls: ssl.SSLContext
    ) -> None:
        head = Write(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}")
        server = trusting.serve((head, Disconnect()), tls=tls)
        fails(lambda: trusting.send(get(server.url)), errors.ProtocolError)
        server.wait_until_closed()

    def test_corrupt_tls_record_in_a_body_is_an_interruption(
        self, trusting: Harness, tls: ssl.SSLContext
    ) -> None:
        """The error is not a `TLSError`, because the server has already received the request."""
        noise = Write(b"\x17\x03\x03\x00\x20" + bytes(32), below_tls=True)
        steps = (*http_response(b"first", WaitForRelease(), framing="chunked")[:-1], noise)
        server, response = trusting.read_first(steps, tls=tls)
        server.release()
        fails(response.read, errors.ConnectionInterrupted)
        server.wait_until_closed()

    def test_each_read_has_its_own_timeout(self, trusting: Harness, tls: ssl.SSLContext) -> None:
        pieces = b"first", Sleep(2 * SHORT), b"second", WaitForRelease(), b"third"
        responses = dict[str, ReceivedResponse]()
        for framing, context in product(FRAMINGS, (None, tls)):
            steps = http_response(*pieces, framing=framing)
            _, response = trusting.exchange(steps, tls=context, stream=True)
            check(response.read(5, timeout=SHORT), b"first", "the first piece")
            responses[f"{framing}, TLS: {context is tls}"] = response
        reads = {name: response.start_read(6) for name, response in responses.items()}
        second = {name: read.outcome() for name, read in reads.items()}
        check(second, dict.fromkeys(reads, b"second"), "the second pieces")
        check_expired({name: each.start_read(timeout=EXPIRY) for name, each in responses.items()})

    def test_part_of_a_tls_record_does_not_extend_the_timeout(
        self, trusting: Harness, tls: ssl.SSLContext
    ) -> None:
        """A TLS record arrives in two parts. The timeout expires before the second part arrives."""
        parts, pause = (b"\x17\x03\x03\x00\x20", bytes(32)), Sleep(1.6 * SHORT)
        late = (step for part in parts for step in (pause, Write(part, below_tls=True)))
        steps = (*http_response(b"first", WaitForRelease(), framing="chunked")[:-1], *late)
        server, response = trusting.read_first(steps, tls=tls)
        reading = response.start_read(timeout=2 * SHORT)
        server.release()
        fails(reading.outcome, errors.ReadTimeout)

    def test_close_ends_a_read_over_tls(self, trusting: Harness, tls: ssl.SSLContext) -> None:
        steps = http_response(b"first", WaitForRelease(), framing="chunked")
        server, response = trusting.read_first(steps, tls=tls)
        waiting = response.start_read()
        response.close()
        server.wait_until_closed()
        with pytest.raises(errors.TransportError):
            waiting.outcome()


class LimitedPoolContract(Contract):
    """The contract tests for a transport that limits the number of its connections.

    Define the method `make_limited_transport` in a subclass.
    """

    def make_limited_transport(self) -> object:
        """Return a new transport that opens at most one connection at a time."""
        raise NotImplementedError(f"{type(self).__name__} must define make_limited_transport()")

    @pytest.fixture
    def limited(self, new_harness: Callable[[Any], Harness]) -> Harness:
        return new_harness(self.make_limited_transport())

    def test_pool_timeout_expires(self, limited: Harness) -> None:
        steps = http_response(b"first", WaitForRelease(), b"second", framing="chunked")
        server, response = limited.exchange(steps, stream=True)
        request = get(server.url, timeout=evolve(LONG_TIMEOUT, pool=EXPIRY))
        fails(lambda: limited.send(request), errors.PoolTimeout)
        response.close()
        server.release()
        check(limited.fetch(get(server.url)), b"firstsecond", "the body")

    def test_garbage_collected_body_frees_its_place_in_the_pool(self, limited: Harness) -> None:
        server = limited.serve(http_response(b"first", WaitForRelease(), framing="chunked"))
        for _ in range(3):
            limited.send(get(server.url, stream=True)).drop(in_cycle=False)
        server.wait_until_closed()


def _context(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)  # pyright: ignore[reportUnknownMemberType] - it also takes a type of pyOpenSSL
    return context
