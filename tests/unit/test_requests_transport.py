"""The requests transport: the contract, and what is requests' own."""

from __future__ import annotations

import ssl
from base64 import b64encode
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
import urllib3
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.auth import HTTPDigestAuth

from flux0.adapters.requests import RequestsTransport
from flux0.domain.errors import (
    ConnectError,
    ConnectionInterrupted,
    InvalidArgument,
    ProtocolError,
    ReadTimeout,
    TransportError,
)
from flux0.domain.headers import Headers
from flux0.ports import Request, Timeout
from flux0.testing.contract import TransportContract
from flux0.testing.contract.answers import FRAMINGS, Framing, Hold, Reset, answer, head
from flux0.testing.contract.byte_server import ByteServer

PATIENT = Timeout(connect=60.0, read=60.0, write=60.0, pool=60.0, idle=60.0)
OK = answer(b"ok")


class TestRequestsTransport(TransportContract):
    def make_transport(self) -> RequestsTransport:
        return RequestsTransport()

    def make_trusting_transport(self, ca_file: str) -> RequestsTransport:
        session = requests.Session()
        session.verify = ca_file
        return RequestsTransport(session)


def get(url: str, *headers: tuple[str, str], stream: bool = False) -> Request:
    return Request("GET", url, Headers(headers), stream=stream, timeout=PATIENT)


def fetch(transport: RequestsTransport, url: str, *headers: tuple[str, str]) -> bytes:
    return b"".join(transport.send(get(url, *headers)).body)


def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = authority.issue_cert("127.0.0.1")
    certificate.configure_cert(context)  # pyright: ignore[reportUnknownMemberType] - of pyOpenSSL
    return context


def test_a_users_session_keeps_what_it_has_and_stays_open() -> None:
    session = requests.Session()
    session.headers.update({"x-key": "k", "accept": "text/plain"})
    session.auth = ("me", "password")
    session.params = {"tenant": "7"}
    seen: list[int] = []

    def see(response: requests.Response, **_: Any) -> None:
        seen.append(response.status_code)

    session.hooks["response"] = see
    cookie = answer(b"ok", headers=[("Set-Cookie", "flux0_user_sub=me; Path=/")])
    with ByteServer(cookie) as server:
        transport = RequestsTransport(session)
        for _ in range(2):
            assert fetch(transport, f"{server.url}/x?a=b", ("accept", "application/json")) == b"ok"
        transport.close()
        assert session.get(server.url).content == b"ok"
        first, second, _ = server.requests
        assert server.connections == 1
        assert first.target == "/x?a=b&tenant=7"
        assert first.headers["x-key"] == "k"
        assert first.headers.get_all("accept") == ("application/json",)
        assert first.headers["authorization"] == f"Basic {b64encode(b'me:password').decode()}"
        assert second.headers["cookie"] == "flux0_user_sub=me"
        assert seen == [200, 200, 200]


def test_an_adapter_of_the_session_is_used() -> None:
    session = requests.Session()
    session.mount("http://", HTTPAdapter(pool_maxsize=1, pool_block=True))
    cookie = answer(b"ok", headers=[("Set-Cookie", "a=b")])
    with ByteServer(cookie, OK) as server:
        transport = RequestsTransport(session)
        assert [fetch(transport, server.url) for _ in range(2)] == [b"ok", b"ok"]
        assert session.get(server.url).content == b"ok"
        assert server.connections == 1
        assert [each.headers.get("cookie") for each in server.requests] == [None, "a=b", "a=b"]


@pytest.mark.parametrize(
    "retry",
    [
        urllib3.Retry(5, allowed_methods=None),
        urllib3.Retry(total=None, read=3, allowed_methods=None),
        urllib3.Retry(0, status_forcelist=[503]),
    ],
    ids=["total", "no-total", "status"],
)
def test_an_adapter_that_retries_is_refused(retry: urllib3.Retry) -> None:
    session = requests.Session()
    transport = RequestsTransport(session)
    session.mount("http://", HTTPAdapter(max_retries=retry))
    with pytest.raises(InvalidArgument, match="max_retries"):
        RequestsTransport(session)
    with ByteServer((Reset(),)) as server:
        with pytest.raises(InvalidArgument, match="RetryConfig"):
            transport.send(get(server.url))
        assert server.requests == ()


def test_a_hook_may_raise_for_the_status() -> None:
    def raise_for_status(response: requests.Response, **_: Any) -> None:
        response.raise_for_status()

    session = requests.Session()
    session.hooks["response"] = raise_for_status
    with ByteServer(answer(b"no", status="404 Not Found"), OK) as server:
        transport = RequestsTransport(session)
        response = transport.send(get(server.url))
        assert (response.status_code, b"".join(response.body)) == (404, b"no")
        assert fetch(transport, server.url) == b"ok"
        assert server.connections == 1


def test_a_hook_may_read_the_body() -> None:
    seen: list[str] = []

    def read(response: requests.Response, **_: Any) -> None:
        seen.append(response.text)

    session = requests.Session()
    session.hooks["response"] = read
    with ByteServer(answer(b"ok", gzip=True, headers=[("X-A", "b")])) as server:
        transport = RequestsTransport(session)
        for _ in range(2):
            response = transport.send(get(server.url, stream=True))
            assert b"".join(response.body) == b"ok"
            assert response.headers["x-a"] == "b"
        assert seen == ["ok", "ok"]
        assert server.connections == 1


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("what", ["response", "raw"])
def test_a_hook_that_closes_the_response_leaves_no_body(what: str, framing: Framing) -> None:
    def close(response: requests.Response, **_: Any) -> None:
        (response if what == "response" else response.raw).close()

    session = requests.Session()
    session.hooks["response"] = close
    steps = answer(b"ok", framing=framing)
    with ByteServer(steps) as server, pytest.raises(ConnectionInterrupted):
        fetch(RequestsTransport(session), server.url)


def test_digest_authentication_of_the_session_answers_its_challenge() -> None:
    session = requests.Session()
    session.auth = HTTPDigestAuth("me", "password")
    challenge = answer(
        b"who?",
        status="401 Unauthorized",
        headers=[("WWW-Authenticate", 'Digest realm="r", nonce="n", qop="auth"')],
    )
    body = bytes(range(256)) * 300
    with ByteServer(challenge, OK) as server:
        request = Request("POST", server.url, Headers(), body, timeout=PATIENT)
        response = RequestsTransport(session).send(request)
        assert (response.status_code, b"".join(response.body)) == (200, b"ok")
        assert [request.body for request in server.requests] == [body, body]
        assert server.requests[1].headers["authorization"].startswith("Digest")


def test_the_body_of_a_redirect_is_not_waited_for() -> None:
    moved = answer(
        b"first",
        Hold(),
        status="307 Temporary Redirect",
        headers=[("Location", "http://[")],
        framing="chunked",
    )
    with ByteServer(moved) as server:
        response = RequestsTransport().send(get(server.url))
        assert response.status_code == 307
        assert response.headers["location"] == "http://["
        assert response.raw_response.headers["location"] == "http://["
        assert next(iter(response.body)) == b"first"
        response.body.close()
        server.wait_until_gone()


def test_the_body_of_an_error_is_in_the_raw_response() -> None:
    with ByteServer(answer(b'{"detail": "no"}', status="404 Not Found", gzip=True)) as server:
        response = RequestsTransport().send(get(server.url, stream=True))
        assert b"".join(response.body) == b'{"detail": "no"}'
        assert isinstance(response.raw_response, requests.Response)
        assert response.raw_response.json() == {"detail": "no"}
        assert response.raw_response.url == f"{server.url}/"


def test_a_closed_transport_opens_new_connections() -> None:
    with ByteServer(OK) as server:
        transport = RequestsTransport()
        assert fetch(transport, server.url) == b"ok"
        transport.close()
        server.wait_until_gone()
        assert fetch(transport, server.url) == b"ok"


def test_no_password_comes_from_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password secret\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(netrc))
    with ByteServer(OK) as server:
        fetch(RequestsTransport(), server.url)
        fetch(RequestsTransport(), server.url, ("authorization", "Bearer token"))
        fetch(RequestsTransport(requests.Session()), server.url)
        none, own, asked_for = server.requests
        assert "authorization" not in none.headers
        assert own.headers["authorization"] == "Bearer token"
        assert asked_for.headers["authorization"].startswith("Basic")


def test_certificates_of_the_session_count_more_than_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "nowhere.pem"))
    authority = trustme.CA()
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    session = requests.Session()
    session.verify = str(ca_file)
    with ByteServer(OK, tls=server_context(authority)) as server:
        assert fetch(RequestsTransport(session), server.url) == b"ok"


def test_certificates_that_are_not_there(tmp_path: Path) -> None:
    session = requests.Session()
    session.verify = str(tmp_path / "nowhere.pem")
    with pytest.raises(ConnectError, match=r"nowhere\.pem"):
        RequestsTransport(session).send(get("https://127.0.0.1:1/"))


@pytest.mark.parametrize(
    "url", ["http://*/", "http://127.0.0.1:99999/", "ftp://127.0.0.1/", "127.0.0.1/"]
)
def test_a_url_that_requests_refuses_is_a_connect_error(url: str) -> None:
    with pytest.raises(ConnectError):
        RequestsTransport().send(get(url))


def test_a_header_that_requests_refuses_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        RequestsTransport().send(get("http://127.0.0.1:1/", ("x-a", " b")))


def test_lengths_that_differ_are_a_protocol_error() -> None:
    fields = [("Content-Length", "1"), ("Content-Length", "2")]
    with ByteServer((head("200 OK", fields),)) as server, pytest.raises(ProtocolError):
        RequestsTransport().send(get(server.url))


class _Adapter(BaseAdapter):
    """An adapter of the user's that opens no connection."""

    def __init__(self, answer: Callable[[], requests.Response]) -> None:
        super().__init__()
        self._answer = answer

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        return self._answer()

    def close(self) -> None:
        pass


def over(answer: Callable[[], requests.Response]) -> RequestsTransport:
    session = requests.Session()
    session.mount("http://", _Adapter(answer))
    return RequestsTransport(session)


def test_an_adapter_may_answer_with_any_file() -> None:
    def file() -> requests.Response:
        response = requests.Response()
        response.status_code = 200
        response.headers["x-a"] = "b"
        response.raw = BytesIO(b"from a file")
        return response

    response = over(file).send(get("http://flux0.invalid/", stream=True))
    assert response.headers["x-a"] == "b"
    assert b"".join(response.body) == b"from a file"


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (requests.ConnectTimeout(), ReadTimeout),  # Of what was sent before, nobody knows.
        (requests.ReadTimeout("slow"), ReadTimeout),
        (requests.ConnectionError("gone"), ConnectionInterrupted),
        (requests.exceptions.ChunkedEncodingError("cut"), ConnectionInterrupted),
        (requests.ConnectionError(ConnectionResetError("gone")), ConnectionInterrupted),
    ],
)
def test_an_adapter_may_raise_whatever_requests_has(
    raised: Exception, kind: type[TransportError]
) -> None:
    def fail() -> requests.Response:
        raise raised

    with pytest.raises(TransportError) as caught:
        over(fail).send(get("http://flux0.invalid/"))
    assert type(caught.value) is kind
    assert caught.value.__cause__ is raised
    assert str(caught.value)
