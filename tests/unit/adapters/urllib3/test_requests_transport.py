"""The requests transport: the contract, and what is requests' own."""

from __future__ import annotations

import socket
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.auth import HTTPDigestAuth

from flux0.adapters.urllib3.requests_transport import RequestsTransport
from flux0.domain.errors import (
    ConnectError,
    ConnectionInterrupted,
    InvalidArgument,
    ProtocolError,
    ReadTimeout,
    TransportError,
)
from flux0.testing.contract import TransportContract
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import (
    FRAMINGS,
    Framing,
    Reset,
    ServerSteps,
    WaitForRelease,
    http_response,
    to_bytes,
)
from support.secured import Secured
from support.sending import OK, fetch_sync, get, post


class TestRequestsTransport(TransportContract):
    def make_transport(self) -> RequestsTransport:
        return RequestsTransport()

    def make_trusting_transport(self, ca_file: str) -> RequestsTransport:
        session = requests.Session()
        session.verify = ca_file
        return RequestsTransport(session)

    def test_a_test_of_ones_own_needs_nothing_of_the_contract(self) -> None:
        assert isinstance(self.make_transport(), RequestsTransport)


def hooked(
    hook: Callable[[requests.Response], object], session: requests.Session | None = None
) -> RequestsTransport:
    """Return a transport over a session that has this hook."""

    def call(response: requests.Response, **_: Any) -> None:
        hook(response)

    session = session or requests.Session()
    session.hooks["response"] = call
    return RequestsTransport(session)


def test_a_users_session_keeps_what_it_has_and_stays_open() -> None:
    session = requests.Session()
    session.mount("http://", HTTPAdapter(pool_maxsize=1, pool_block=True))
    session.headers.update({"x-key": "k", "accept": "text/plain"})
    session.auth = ("me", "password")
    session.params = {"tenant": "7"}
    seen: list[int] = []
    cookie = http_response(b"ok", headers=[("Set-Cookie", "flux0_user_sub=me; Path=/")])
    with ByteServer(cookie) as server:
        transport = hooked(lambda response: seen.append(response.status_code), session)
        for explicit in ([], [("authorization", "Bearer mine")]):
            request = get(f"{server.url}/x?a=b", ("accept", "application/json"), *explicit)
            assert fetch_sync(transport, request) == b"ok"
        transport.close()
        assert session.get(server.url).content == b"ok"
        first, second, _ = server.requests
        assert server.connections == 1
        assert first.target == "/x?a=b&tenant=7"
        assert first.headers["x-key"] == "k"
        assert first.headers.get_all("accept") == ("application/json",)
        assert first.headers["authorization"] == f"Basic {b64encode(b'me:password').decode()}"
        assert second.headers["authorization"] == "Bearer mine"
        assert second.headers["cookie"] == "flux0_user_sub=me"
        assert seen == [200, 200, 200]


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


# --- hooks and authentication


def test_a_hook_may_raise_for_the_status() -> None:
    transport = hooked(lambda response: response.raise_for_status())
    with ByteServer(http_response(b"no", status="404 Not Found"), OK) as server:
        response = transport.send(get(server.url))
        assert (response.status_code, b"".join(response.body)) == (404, b"no")
        assert fetch_sync(transport, get(server.url)) == b"ok"
        assert server.connections == 1


def test_a_hook_may_read_the_body() -> None:
    seen: list[str] = []
    transport = hooked(lambda response: seen.append(response.text))
    with ByteServer(http_response(b"ok", gzip=True, headers=[("X-A", "b")])) as server:
        for _ in range(2):
            response = transport.send(get(server.url, stream=True))
            assert b"".join(response.body) == b"ok"
            assert response.headers["x-a"] == "b"
        assert seen == ["ok", "ok"]
        assert server.connections == 1


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("what", ["response", "raw"])
def test_a_hook_that_closes_the_response_leaves_no_body(what: str, framing: Framing) -> None:
    transport = hooked(lambda response: (response if what == "response" else response.raw).close())
    with (
        ByteServer(http_response(b"ok", framing=framing)) as server,
        pytest.raises(ConnectionInterrupted),
    ):
        fetch_sync(transport, get(server.url))


@pytest.mark.parametrize("second", [OK, (Reset(),)], ids=["answered", "reset"])
def test_digest_authentication_of_the_session_answers_its_challenge(second: ServerSteps) -> None:
    session = requests.Session()
    session.auth = HTTPDigestAuth("me", "password")
    challenge = http_response(
        b"who?",
        status="401 Unauthorized",
        headers=[("WWW-Authenticate", 'Digest realm="r", nonce="n", qop="auth"')],
    )
    body = bytes(range(256)) * 300
    with ByteServer(challenge, second) as server:
        sent = post(server.url, body)
        if second is OK:
            assert fetch_sync(RequestsTransport(session), sent) == b"ok"
        else:
            with pytest.raises(ConnectionInterrupted):
                RequestsTransport(session).send(sent)
        assert [request.body for request in server.requests] == [body, body]
        assert server.requests[1].headers["authorization"].startswith("Digest")


def test_no_connection_for_the_answer_to_a_challenge_means_that_something_was_sent() -> None:
    """The server has got the first request, so nobody may take this for one that never left."""
    challenge = http_response(
        status="401 Unauthorized",
        headers=[("WWW-Authenticate", 'Digest realm="r", nonce="n"'), ("Connection", "close")],
    )
    listener = socket.create_server(("127.0.0.1", 0))

    def challenge_and_die() -> None:
        connection, _ = listener.accept()
        listener.close()
        with connection:
            connection.recv(65536)
            connection.sendall(to_bytes(challenge))

    session = requests.Session()
    session.auth = HTTPDigestAuth("me", "password")
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with ThreadPoolExecutor(1) as threads, session:
        threads.submit(challenge_and_die)
        with pytest.raises(ConnectionInterrupted):
            RequestsTransport(session).send(post(url))


def test_no_password_comes_from_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password secret\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(netrc))
    with ByteServer(OK) as server:
        fetch_sync(RequestsTransport(), get(server.url))
        fetch_sync(RequestsTransport(), get(server.url, ("authorization", "Bearer token")))
        fetch_sync(RequestsTransport(requests.Session()), get(server.url))
        none, own, asked_for = server.requests
        assert "authorization" not in none.headers
        assert own.headers["authorization"] == "Bearer token"
        assert asked_for.headers["authorization"].startswith("Basic")


# --- what is asked for, and what comes


def test_the_body_of_a_redirect_is_not_waited_for() -> None:
    moved = http_response(
        b"first",
        WaitForRelease(),
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
        server.wait_until_closed()


def test_certificates_of_the_session_count_more_than_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, secured: Secured
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "nowhere.pem"))
    session = requests.Session()
    session.verify = secured.ca_file
    with ByteServer(OK, tls=secured.server) as server:
        assert fetch_sync(RequestsTransport(session), get(server.url)) == b"ok"


def test_certificates_that_are_not_there(tmp_path: Path) -> None:
    session = requests.Session()
    session.verify = str(tmp_path / "nowhere.pem")
    with pytest.raises(ConnectError, match=r"nowhere\.pem"):
        RequestsTransport(session).send(get("https://127.0.0.1:1/"))


def test_a_header_that_requests_refuses_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        RequestsTransport().send(get("http://127.0.0.1:1/", ("x-a", " b")))


# --- adapters of the user's


def over(respond: Callable[[], requests.Response]) -> RequestsTransport:
    """Return a transport over an adapter of the user's that opens no connection."""

    class Adapter(BaseAdapter):
        def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
            return respond()

        def close(self) -> None: ...

    session = requests.Session()
    session.mount("http://", Adapter())
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
