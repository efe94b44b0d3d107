"""The urllib3 transport: the contract, what is urllib3's own, and the reading of its responses.

The transport over requests reads by the same code.
"""

from __future__ import annotations

import gc
import signal
import socket
import ssl

import pytest
import trustme
import urllib3
from attrs import evolve

from flux0.adapters.urllib3 import Urllib3Transport
from flux0.domain.errors import (
    ConnectError,
    ConnectionInterrupted,
    ConnectTimeout,
    ProtocolError,
    TransportError,
)
from flux0.domain.headers import Headers
from flux0.ports import Request, Timeout
from flux0.testing.contract import LimitedPoolContract, TransportContract
from flux0.testing.contract.answers import (
    Answer,
    Disconnect,
    Framing,
    Hold,
    Reset,
    Write,
    answer,
    cut,
    head,
    size,
)
from flux0.testing.contract.byte_server import ByteServer
from support.proxy import Proxy

PATIENT = Timeout(connect=60.0, read=60.0, write=60.0, pool=60.0, idle=60.0)
SHORT = 0.1  # Seconds to wait for what never comes.
OK = answer(b"ok")


class TestUrllib3Transport(LimitedPoolContract, TransportContract):
    def make_transport(self) -> Urllib3Transport:
        return Urllib3Transport()

    def make_trusting_transport(self, ca_file: str) -> Urllib3Transport:
        return Urllib3Transport(urllib3.PoolManager(ca_certs=ca_file))

    def make_limited_transport(self) -> Urllib3Transport:
        return Urllib3Transport(urllib3.PoolManager(maxsize=1, block=True))


def get(url: str, *headers: tuple[str, str], stream: bool = False) -> Request:
    return Request("GET", url, Headers(headers), stream=stream, timeout=PATIENT)


def fetch(transport: Urllib3Transport, url: str, *headers: tuple[str, str]) -> bytes:
    return b"".join(transport.send(get(url, *headers)).body)


def body_error(steps: Answer) -> TransportError:
    """Return what reading the body of an answer raises."""
    with ByteServer(steps) as server, pytest.raises(TransportError) as caught:
        fetch(Urllib3Transport(), server.url)
    return caught.value


def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = authority.issue_cert("127.0.0.1")
    certificate.configure_cert(context)  # pyright: ignore[reportUnknownMemberType] - of pyOpenSSL
    return context


def test_a_users_manager_keeps_its_headers_and_stays_open() -> None:
    manager = urllib3.PoolManager(headers={"x-key": "k", "accept": "text/plain"})
    with ByteServer(OK) as server:
        transport = Urllib3Transport(manager)
        assert fetch(transport, server.url, ("Accept", "application/json")) == b"ok"
        transport.close()
        assert manager.request("GET", server.url).data == b"ok"
        first, _ = server.requests
        assert first.headers["x-key"] == "k"
        assert first.headers.get_all("accept") == ("application/json",)
        assert server.connections == 1


def test_a_users_manager_neither_retries_nor_follows() -> None:
    moved = answer(b"", status="307 Temporary Redirect", headers=[("Location", "/elsewhere")])
    busy = answer(b"", status="503 Busy", headers=[("Retry-After", "0")])
    retry = urllib3.Retry(5, allowed_methods=None, status_forcelist=[503])
    with ByteServer((Reset(),), moved, busy) as server:
        transport = Urllib3Transport(urllib3.PoolManager(retries=retry))
        target = "/api/agents/..%2Fagents?types=%5B%22a%22%5D"
        with pytest.raises(ConnectionInterrupted):
            fetch(transport, f"{server.url}{target}")
        statuses = [transport.send(get(server.url)).status_code for _ in range(2)]
        assert statuses == [307, 503]
        assert [request.target for request in server.requests] == [target, "/", "/"]


def test_a_users_manager_does_not_end_what_is_read_over_it() -> None:
    with ByteServer(answer(b"first", Hold(), b"second", framing="chunked")) as server:
        transport = Urllib3Transport(urllib3.PoolManager())
        pieces = iter(transport.send(get(server.url, stream=True)).body)
        assert next(pieces) == b"first"
        transport.close()
        server.release()
        assert list(pieces) == [b"second"]


def test_a_closed_transport_opens_new_connections() -> None:
    with ByteServer(OK) as server:
        transport = Urllib3Transport()
        assert fetch(transport, server.url) == b"ok"
        transport.close()
        server.wait_until_gone()
        assert fetch(transport, server.url) == b"ok"


def test_one_transport_talks_to_several_servers() -> None:
    with ByteServer(answer(b"one")) as one, ByteServer(answer(b"two")) as two:
        transport = Urllib3Transport()
        targets = [f"{one.url}/a?b=c", two.url, one.url]
        assert [fetch(transport, url) for url in targets] == [b"one", b"two", b"one"]
        assert [request.target for request in one.requests] == ["/a?b=c", "/"]


def test_a_proxy_of_the_manager_is_used() -> None:
    with ByteServer(OK) as proxy:
        transport = Urllib3Transport(urllib3.ProxyManager(proxy.url))
        url = "http://flux0.invalid/api/agents/..%2Fx?a=%2F"
        assert fetch(transport, url, ("accept", "application/json")) == b"ok"
        (request,) = proxy.requests
        assert request.target == url
        assert request.headers["host"] == "flux0.invalid"
        assert request.headers.get_all("accept") == ("application/json",)


def test_a_manager_of_the_user_looks_at_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy() as proxy, ByteServer(OK) as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        assert fetch(Urllib3Transport(urllib3.PoolManager()), server.url) == b"ok"
        assert proxy.requests == ()


# http.client leaves the socket of a tunnel that failed to the garbage collector in some Pythons.
leaves_a_socket = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@leaves_a_socket
def test_a_proxy_refuses_the_tunnel() -> None:
    with ByteServer(answer(b"", status="407 Proxy Authentication Required")) as proxy:
        transport = Urllib3Transport(urllib3.ProxyManager(proxy.url))
        with pytest.raises(ConnectError, match="407") as caught:
            transport.send(get("https://flux0.invalid/"))
        assert isinstance(caught.value.__cause__, urllib3.exceptions.ProxyError)
        del caught
        gc.collect()


@leaves_a_socket
def test_a_proxy_is_silent_about_the_tunnel() -> None:
    with ByteServer((Hold(),)) as proxy:
        transport = Urllib3Transport(urllib3.ProxyManager(proxy.url))
        request = evolve(get("https://flux0.invalid/"), timeout=evolve(PATIENT, connect=SHORT))
        with pytest.raises(ConnectTimeout):
            transport.send(request)
        gc.collect()


def test_a_proxy_is_not_there() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(ConnectError) as caught:
            Urllib3Transport(urllib3.ProxyManager(proxy)).send(get("http://flux0.invalid/"))
    assert type(caught.value) is ConnectError


def test_messages_do_not_quote_the_url() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/?key=secret"
        with pytest.raises(ConnectError) as caught:
            Urllib3Transport().send(get(url))
    assert "refused" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_port_that_cannot_be_is_a_connect_error() -> None:
    with pytest.raises(ConnectError):
        Urllib3Transport().send(get("http://127.0.0.1:99999/"))


def test_the_body_of_an_error_is_in_the_raw_response() -> None:
    with ByteServer(answer(b'{"detail": "no"}', status="404 Not Found", gzip=True)) as server:
        response = Urllib3Transport().send(get(server.url, stream=True))
        assert b"".join(response.body) == b'{"detail": "no"}'
        assert isinstance(response.raw_response, urllib3.HTTPResponse)
        assert response.raw_response.json() == {"detail": "no"}
        del response  # Which the body does not need.
        assert fetch(Urllib3Transport(), server.url) == b'{"detail": "no"}'


def test_a_body_outlives_its_transport() -> None:
    with ByteServer(answer(b"first", Hold(), b"second", framing="chunked")) as server:
        body = Urllib3Transport().send(get(server.url, stream=True)).body
        gc.collect()
        server.release()
        assert b"".join(body) == b"firstsecond"


def test_an_interrupted_read_does_not_look_like_an_end() -> None:
    with ByteServer(answer(b"first", Hold(), framing="chunked")) as server:
        pieces = iter(Urllib3Transport().send(get(server.url, stream=True)).body)
        assert next(pieces) == b"first"
        previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, SHORT)
            with pytest.raises(KeyboardInterrupt):
                next(pieces)
        finally:
            signal.signal(signal.SIGALRM, previous)
        server.wait_until_gone()
        with pytest.raises(ConnectionInterrupted):
            next(pieces)


def test_a_stream_may_have_no_idle_timeout() -> None:
    with ByteServer(answer(b"first", Hold(), b"second", framing="chunked")) as server:
        request = evolve(get(server.url, stream=True), timeout=evolve(PATIENT, idle=None))
        pieces = iter(Urllib3Transport().send(request).body)
        assert next(pieces) == b"first"
        server.release()
        assert list(pieces) == [b"second"]


@pytest.mark.parametrize("end", [Disconnect(), Reset()], ids=["closed", "reset"])
def test_a_server_that_leaves_within_tls_may_have_acted(end: Disconnect | Reset) -> None:
    """Only what happens before the request may count as not sent."""
    authority = trustme.CA()
    with ByteServer((end,), tls=server_context(authority)) as server:
        trusted = authority.cert_pem.bytes().decode()
        transport = Urllib3Transport(urllib3.PoolManager(ca_cert_data=trusted))
        with pytest.raises(ConnectionInterrupted):
            transport.send(get(server.url))


def test_tls_that_breaks_off_within_a_body_is_an_interruption() -> None:
    authority = trustme.CA()
    steps = (*answer(b"first", framing="chunked")[:2], Disconnect())
    with ByteServer(steps, tls=server_context(authority)) as server:
        trusted = authority.cert_pem.bytes().decode()
        transport = Urllib3Transport(urllib3.PoolManager(ca_cert_data=trusted))
        pieces = iter(transport.send(get(server.url)).body)
        assert next(pieces) == b"first"
        with pytest.raises(ConnectionInterrupted):
            next(pieces)


@pytest.mark.parametrize("framing", ["chunked", "content-length"])
def test_a_head_that_is_cut_off_is_never_a_whole_answer(framing: Framing) -> None:
    whole = answer(b"body", framing=framing)
    cuts = range(1, size(whole[:1]))
    with ByteServer(*(cut(whole, length) for length in cuts)) as server:
        transport = Urllib3Transport()
        for _ in cuts:
            # A field that was cut short may read as broken framing.
            with pytest.raises((ConnectionInterrupted, ProtocolError)):
                fetch(transport, server.url)


@pytest.mark.parametrize(
    "garbage",
    [b"\x00\xff", b"ICY 200 OK", b"HTTP/2.0 200 OK\r\n\r\n"],
    ids=["binary", "icy", "version"],
)
def test_what_is_not_http_is_a_protocol_error_even_when_cut_off(garbage: bytes) -> None:
    with ByteServer((Write(garbage), Disconnect())) as server, pytest.raises(ProtocolError):
        Urllib3Transport().send(get(server.url))


@pytest.mark.parametrize(
    "fields",
    [
        [("Transfer-Encoding", "gzip, chunked")],
        [("Content-Length", "four")],
        [("Content-Length", "-4")],
        [("Content-Length", "4"), ("Content-Length", "5")],
        [("Content-Length", "4"), ("Content-Encoding", "br")],
    ],
)
def test_a_body_that_cannot_be_told_is_a_protocol_error(fields: list[tuple[str, str]]) -> None:
    assert type(body_error((head("200 OK", fields), Write(b"body"), Disconnect()))) is ProtocolError


@pytest.mark.parametrize(
    "body",
    [
        b"-4\r\nbody\r\n0\r\n\r\n",
        b"0_4\r\nbody\r\n0\r\n\r\n",
        b"xyz\r\nbody\r\n0\r\n\r\n",
        b"\r\nbody\r\n0\r\n\r\n",
        b"3\r\nbody\r\n0\r\n\r\n",
        b"4;" + b"x" * 70_000 + b"\r\nbody\r\n0\r\n\r\n",
    ],
    ids=["negative", "underscore", "letters", "empty", "short", "long-line"],
)
def test_chunks_that_do_not_fit_are_a_protocol_error(body: bytes) -> None:
    chunked = head("200 OK", [("Transfer-Encoding", "chunked")])
    assert type(body_error((chunked, Write(body), Disconnect()))) is ProtocolError


def test_a_chunk_is_handed_over_before_it_is_whole() -> None:
    chunked = head("200 OK", [("Transfer-Encoding", "chunked")])
    with ByteServer((chunked, Write(b"9\r\nfirst"), Hold(), Write(b"last\r\n0\r\n\r\n"))) as server:
        pieces = iter(Urllib3Transport().send(get(server.url)).body)
        assert next(pieces) == b"first"
        server.release()
        assert list(pieces) == [b"last"]


def test_a_large_chunk_comes_in_pieces() -> None:
    whole = bytes(200_000)
    with ByteServer(answer(whole, framing="chunked")) as server:
        pieces = list(Urllib3Transport().send(get(server.url)).body)
        assert b"".join(pieces) == whole
        assert max(len(piece) for piece in pieces) <= 64 * 1024
