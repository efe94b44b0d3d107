"""A served fake and the real server send the same bytes in response to unusual raw requests."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator

import httpx
import pytest

from support.fake_scripts import scripted_fake
from support.server import Flux0Server

HOST = "host: x\r\n"
CLOSE = f"{HOST}connection: close\r\n"
JSON = f"{CLOSE}content-type: application/json\r\n"
AGENT = '{"name":"n","type":"scripted"}'
CHUNKED = "transfer-encoding: chunked\r\n"
CHUNKS = f"a;x=y\r\n{AGENT[:10]}\r\n14\r\n{AGENT[10:]}\r\n0\r\nt: u\r\n\r\n"
_TIMEOUT_SECONDS = 10.0

Ports = tuple[int, int]


@pytest.fixture(scope="module")
def ports(server_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    """A port of the real server, and a port of its fake. Both receive the same requests."""
    with (
        Flux0Server(server_python, tmp_path_factory.mktemp("port")) as server,
        scripted_fake(server.agent_id).serve() as url,
    ):
        yield server.port, int(url.rpartition(":")[2])


def request(
    method: str = "GET",
    target: str = "/api/agents",
    fields: str = CLOSE,
    body: str = "",
    version: str = "HTTP/1.1",
) -> str:
    return f"{method} {target} {version}\r\n{fields}\r\n{body}"


def exchange(port: int, text: str, *, half_close: bool = False) -> str:
    """Return all bytes that the server sends, with placeholders for the port, times and ids."""
    with socket.create_connection(("127.0.0.1", port), _TIMEOUT_SECONDS) as connection:
        # With MSG_MORE, the request and its end arrive together.
        connection.send(text.encode("latin-1"), socket.MSG_MORE if half_close else 0)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        response = b"".join(iter(lambda: connection.recv(65536), b""))
    comparable = response.decode("latin-1").replace(str(port), "PORT")
    return re.sub(r'(date: |"created_at":"|"id":")[^"\r]+', r"\1...", comparable)


def same(ports: Ports, text: str, *, half_close: bool = False) -> str:
    """Send the same request to both servers; return the response, which must be equal."""
    real, fake = (exchange(port, text, half_close=half_close) for port in ports)
    assert fake == real
    return fake


TARGETS = [
    *("//api/agents", "/api/x/../agents", "/api//agents", "http://x/api/agents", "*", "[", "x:80"),
    *("/api/agents#x", "/api/agents?a=1#b", "/api/agents?", "/api/agents;x", "/api/%61gents"),
    *("/api/agents/", "http://x/api/agents/", "x/api/agents", "/api/agents/%", "/api/agents/\\x"),
    *("/api/agents\x7f", "/api/ag\xe9nts", f"/api/agents?{'y' * 30_000}"),
]


@pytest.mark.parametrize("target", TARGETS)
def test_targets(ports: Ports, target: str) -> None:
    same(ports, request(target=target))


@pytest.mark.parametrize("target", ["/api/agents", "/api/agents/", "/nope"])
@pytest.mark.parametrize("method", ["TRACE", "FOO", "get", "CONNECT", "HEAD", "OPTIONS", "G@T"])
def test_methods(ports: Ports, method: str, target: str) -> None:
    same(ports, request(method, target))


LENGTHS = ["-1", "+2", "x", "", "1_0", " 30 ", "30, 30", "30,31", "0x1e", "9" * 23, "30\r\n{}: 30"]


@pytest.mark.parametrize("length", [*LENGTHS, "30\r\n{}: 5", f"30\r\n{CHUNKED[:-2]}"])
def test_content_lengths(ports: Ports, length: str) -> None:
    fields = f"{JSON}{{}}: {length}\r\n".replace("{}", "content-length")
    body = CHUNKS if CHUNKED[:-2] in length else AGENT
    same(ports, request("POST", fields=fields, body=body))


BODIES = [
    (CHUNKED, CHUNKS, "201"),
    (CHUNKED, "zz\r\n", "400"),
    ("transfer-encoding: gzip\r\n", AGENT, "400"),
    ("transfer-encoding: gzip, chunked\r\n", CHUNKS, "400"),
    ("expect: 100-continue\r\ncontent-length: 30\r\n", AGENT, "100"),
    ("content-length: 2\r\n", "{}", "422"),
]


@pytest.mark.parametrize(("fields", "body", "status"), BODIES)
def test_request_bodies(ports: Ports, fields: str, body: str, status: str) -> None:
    response = same(ports, request("POST", fields=JSON + fields, body=body))
    assert response.startswith(f"HTTP/1.1 {status} ")


HOSTS = ["x", "x:5", "127.0.0.1:5", "[::1]:5"]


@pytest.mark.parametrize("target", ["/api/agents", "/api/agents/"])
@pytest.mark.parametrize("fields", ["", *(f"host: {h}\r\n" for h in HOSTS), HOST + HOST])
def test_hosts(ports: Ports, fields: str, target: str) -> None:
    same(ports, request(target=target, fields=f"connection: close\r\n{fields}"))


@pytest.mark.parametrize(
    "text",
    [
        request(fields=CLOSE + "a: b\r\n" * 200),
        request(fields=f"{CLOSE}a: {'b' * 30_000}\r\n"),
        *(request(fields=f"{CLOSE}a{end}\r\n") for end in (": b\r\n c", " : b", "", ": \0", ": é")),
        *(request(version=f"HTTP/{number}") for number in ("1.0", "1.2", "2.0")),
        request(fields="connection: keep-alive\r\n", version="HTTP/1.0"),
        "GET /api/agents\r\n\r\n",
        "\x16\x03\x01\x02\r\n\r\n",
        "GET /api/agents HTTP/1.1\nhost: x\nconnection: close\n\n",
        f"\r\n\r\n{request()}",
        "".join(request(method, fields=HOST) for method in ("GET", "HEAD", "CONNECT")) + request(),
        request("POST", fields=JSON.replace("close", "x") + CHUNKED, body=CHUNKS) + request(),
        request(fields=f"{HOST}content-length: 3\r\n", body="abc") + request(),
    ],
)  # fmt: skip
def test_messages_and_connections(ports: Ports, text: str) -> None:
    assert same(ports, text)


def post(path: str, data: dict[str, str], fields: str) -> str:
    body = json.dumps(data)
    return request("POST", path, f"{fields}content-length: {len(body)}\r\n", body)


def test_event_that_cannot_be_sent_closes_the_connection(ports: Ports) -> None:
    agent = httpx.get(f"http://127.0.0.1:{ports[0]}/api/agents").json()["data"][0]
    for port in ports:
        exchange(port, post("/api/sessions", {"agent_id": agent["id"], "id": "0123456789"}, JSON))
    script = json.dumps([{"status": "typing", "event_id": "\ud800"}, {"text": "after"}])
    message = {"type": "message", "source": "user", "content": script}
    keep_alive = JSON.replace("close", "keep-alive")
    response = same(ports, post("/api/sessions/0123456789/events/stream", message, keep_alive))
    assert response.endswith("chunked\r\n\r\n0\r\n\r\n")


@pytest.mark.parametrize("text", [request(), request("POST", fields=JSON + CHUNKED, body=CHUNKS)])
def test_half_closed_connections(ports: Ports, text: str) -> None:
    assert same(ports, text, half_close=True) == ""
