"""The requests transport: the contract, and features of requests."""

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
from flux0.ports import Request
from flux0.testing.contract import TransportContract
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.harness import get, post
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
from support.sending import OK, Pieces, fetch_sync
from support.transports import WithoutLongWaits


class TestRequestsTransport(WithoutLongWaits, TransportContract):
    def make_transport(self) -> RequestsTransport:
        return RequestsTransport()

    def make_trusting_transport(self, ca_file: str) -> RequestsTransport:
        session = requests.Session()
        session.verify = ca_file
        return RequestsTransport(session)

    def test_subclass_may_have_tests_without_the_fixtures_of_the_contract(self) -> None:
        assert isinstance(self.make_transport(), RequestsTransport)


def hooked(
    hook: Callable[[requests.Response], object], session: requests.Session | None = None
) -> RequestsTransport:
    """Return a transport over a session with this hook."""

    def call(response: requests.Response, **_: Any) -> None:
        hook(response)

    session = session or requests.Session()
    session.hooks["response"] = call
    return RequestsTransport(session)


def test_user_session_keeps_its_settings_and_stays_open() -> None:
    session = requests.Session()
    session.mount("http://", HTTPAdapter(pool_maxsize=1, pool_block=True))
    session.headers.update({"x-key": "k", "accept": "text/plain"})
    session.auth = ("me", "password")
    session.params = {"tenant": "7"}
    seen: list[int] = []
    cookie = http_response(b"ok", headers=[("Set-Cookie", "flux0_user_sub=me; Path=/")])
    with ByteServer(cookie) as server:
        transport = hooked(lambda response: seen.append(response.status_code), session)
        own = [("authorization", "Bearer mine"), ("accept-encoding", "identity")]
        for explicit in ([], own):
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
        assert second.headers.get_all("accept-encoding") == ("identity",)
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
def test_session_with_a_retrying_adapter_is_rejected(retry: urllib3.Retry) -> None:
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


def test_hook_may_call_raise_for_status() -> None:
    transport = hooked(lambda response: response.raise_for_status())
    with ByteServer(http_response(b"no", status="404 Not Found"), OK) as server:
        response = transport.send(get(server.url))
        assert (response.status_code, b"".join(Pieces(response.body))) == (404, b"no")
        assert fetch_sync(transport, get(server.url)) == b"ok"
        assert server.connections == 1


def test_hook_may_read_the_body() -> None:
    seen: list[str] = []
    transport = hooked(lambda response: seen.append(response.text))
    with ByteServer(http_response(b"ok", gzip=True, headers=[("X-A", "b")])) as server:
        for _ in range(2):
            response = transport.send(get(server.url, stream=True))
            assert b"".join(Pieces(response.body)) == b"ok"
            assert response.headers["x-a"] == "b"
        assert seen == ["ok", "ok"]
        assert server.connections == 1


def test_interrupt_after_a_hook_has_read_the_body_does_not_end_the_pooled_connection() -> None:
    """The connection may already serve another request."""

    def read_and_fire(response: requests.Response) -> None:
        assert response.content == b"ok"
        requests_sent[-1].interrupt.fire()

    requests_sent: list[Request] = []
    transport = hooked(read_and_fire)
    with ByteServer(OK) as server:
        for _ in range(2):
            requests_sent.append(get(server.url))
            assert fetch_sync(transport, requests_sent[-1]) == b"ok"
        assert server.connections == 1


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("closed", ["response", "raw"])
def test_body_closed_by_a_hook_is_an_interruption(closed: str, framing: Framing) -> None:
    transport = hooked(
        lambda response: (response if closed == "response" else response.raw).close()
    )
    with (
        ByteServer(http_response(b"ok", framing=framing)) as server,
        pytest.raises(ConnectionInterrupted),
    ):
        fetch_sync(transport, get(server.url))


@pytest.mark.parametrize("second", [OK, (Reset(),)], ids=["response", "reset"])
def test_digest_authentication_of_the_session_sends_a_second_request(second: ServerSteps) -> None:
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


def test_failed_connection_after_a_challenge_is_not_a_connect_error() -> None:
    """The server has received the first request, but a `ConnectError` means that it has not."""
    challenge = http_response(
        status="401 Unauthorized",
        headers=[("WWW-Authenticate", 'Digest realm="r", nonce="n"'), ("Connection", "close")],
    )
    listener = socket.create_server(("127.0.0.1", 0))

    def challenge_and_disconnect() -> None:
        connection, _ = listener.accept()
        listener.close()
        with connection:
            connection.recv(65536)
            connection.sendall(to_bytes(challenge))

    session = requests.Session()
    session.auth = HTTPDigestAuth("me", "password")
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with ThreadPoolExecutor(1) as threads, session:
        threads.submit(challenge_and_disconnect)
        with pytest.raises(ConnectionInterrupted):
            RequestsTransport(session).send(post(url))


def test_built_in_session_does_not_read_netrc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password secret\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(netrc))
    with ByteServer(OK) as server:
        fetch_sync(RequestsTransport(), get(server.url))
        fetch_sync(RequestsTransport(), get(server.url, ("authorization", "Bearer token")))
        fetch_sync(RequestsTransport(requests.Session()), get(server.url))
        built_in, explicit, user_session = server.requests
        assert "authorization" not in built_in.headers
        assert explicit.headers["authorization"] == "Bearer token"
        assert user_session.headers["authorization"].startswith("Basic")


# --- redirects, certificates and header fields


def test_redirect_is_returned_before_its_body_is_complete() -> None:
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
        assert next(Pieces(response.body)) == b"first"
        response.body.close()
        server.wait_until_closed()


def test_certificates_of_the_session_override_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, secured: Secured
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "missing.pem"))
    session = requests.Session()
    session.verify = secured.ca_file
    with ByteServer(OK, tls=secured.server) as server:
        assert fetch_sync(RequestsTransport(session), get(server.url)) == b"ok"


def test_missing_certificate_file_is_a_connect_error(tmp_path: Path) -> None:
    session = requests.Session()
    session.verify = str(tmp_path / "missing.pem")
    with pytest.raises(ConnectError, match=r"missing\.pem"):
        RequestsTransport(session).send(get("https://127.0.0.1:1/"))


def test_header_that_requests_rejects_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        RequestsTransport().send(get("http://127.0.0.1:1/", ("x-a", " b")))


# --- the user's adapters


def over(respond: Callable[[], requests.Response]) -> RequestsTransport:
    """Return a transport over an adapter that opens no connection and returns `respond()`."""

    class Adapter(BaseAdapter):
        def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
            return respond()

        def close(self) -> None: ...

    session = requests.Session()
    session.mount("http://", Adapter())
    return RequestsTransport(session)


def test_adapter_may_return_a_response_with_any_file() -> None:
    def file() -> requests.Response:
        response = requests.Response()
        response.status_code = 200
        response.headers["x-a"] = "b"
        response.raw = BytesIO(b"from a file")
        return response

    response = over(file).send(get("http://flux0.invalid/", stream=True))
    assert response.headers["x-a"] == "b"
    assert b"".join(Pieces(response.body)) == b"from a file"


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        # A user's adapter may have sent the request before it raised a ConnectTimeout.
        (requests.ConnectTimeout(), ReadTimeout),
        (requests.ReadTimeout("slow"), ReadTimeout),
        (requests.ConnectionError("gone"), ConnectionInterrupted),
        (requests.exceptions.ChunkedEncodingError("cut"), ConnectionInterrupted),
        (requests.ConnectionError(ConnectionResetError("gone")), ConnectionInterrupted),
    ],
)
def test_exceptions_of_requests_from_an_adapter_are_wrapped(
    raised: Exception, kind: type[TransportError]
) -> None:
    def fail() -> requests.Response:
        raise raised

    with pytest.raises(TransportError) as caught:
        over(fail).send(get("http://flux0.invalid/"))
    assert type(caught.value) is kind
    assert caught.value.__cause__ is raised
    assert str(caught.value)
