"""urllib3 and requests: requests are sent once, and exceptions of user code are not wrapped."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from threading import Thread
from typing import Any

import httpx
import pytest
import requests
import urllib3
from attrs import frozen
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.auth import AuthBase
from urllib3.connection import HTTPConnection

from flux0 import BackoffStrategy, Flux0, RequestsTransport, RetryConfig, Urllib3Transport
from flux0.adapters.urllib3 import (
    connection as urllib3_connection,
    http_response as urllib3_response,
)
from flux0.domain.errors import (
    ConnectError,
    ConnectionInterrupted,
    InvalidArgument,
    MissingDependency,
    ReadTimeout,
    TransportError,
)
from flux0.ports import Transport
from flux0.testing.contract.byte_server import DEFAULT_TIMEOUT, ByteServer
from flux0.testing.contract.harness import get
from flux0.testing.contract.responses import (
    Disconnect,
    Reset,
    ServerSteps,
    WaitForRelease,
    Write,
    http_response,
)
from support.proxy import Proxy
from support.secured import Secured
from support.sending import HALF, OK, Pieces, fetch_sync, limiting

SHORT_TIMEOUT = 0.3
EAGER = RetryConfig("backoff", BackoffStrategy(1, 1, 1, 60_000), max_attempts=3)

Call = Callable[[str], bytes]


@frozen
class Library:
    """requests or urllib3, with the same way to create a transport."""

    name: str

    def __str__(self) -> str:
        return self.name

    def make(self, *, ca_file: str | None = None, proxy: str | None = None) -> Transport:
        return self.make_with_user(ca_file=ca_file, proxy=proxy)[0]

    def make_with_user(
        self, *, ca_file: str | None = None, proxy: str | None = None
    ) -> tuple[Transport, Call]:
        """Return a transport, and a function that sends a GET over the user's client."""
        headers = {"accept-encoding": "br, zstd"}
        if self.name == "requests":
            session = requests.Session()
            session.headers.update(headers)
            session.trust_env = False
            session.verify = ca_file or True
            session.proxies = {"http": proxy, "https": proxy} if proxy else {}
            return RequestsTransport(session), lambda url: session.get(url).content
        options: dict[str, Any] = {"headers": headers, "ca_certs": ca_file}
        manager = (
            urllib3.PoolManager(**options)
            if proxy is None
            else urllib3.ProxyManager(proxy, **options)
        )
        return Urllib3Transport(manager), lambda url: manager.request("GET", url).data


over_both = pytest.mark.parametrize("library", [Library("urllib3"), Library("requests")], ids=str)


def client(url: str, transport: Transport, **options: Any) -> Flux0:
    return Flux0(url, transport=transport, retry_config=EAGER, **options)


def failure_of_post(url: str, transport: Transport) -> Any:
    """Return the exception that a POST raises."""
    with client(url, transport) as flux0, pytest.raises(BaseException) as caught:  # noqa: PT011 - the caller checks it
        flux0.sessions.create(agent_id="a")
    return caught.value


# --- through a proxy


@over_both
def test_close_wakes_a_reader_of_tls_in_tls(library: Library, secured: Secured) -> None:
    """The object for TLS inside TLS is not a socket, so `close` must find the raw socket."""
    with Proxy(tls=secured.server) as proxy, ByteServer(OK, HALF, tls=secured.server) as server:
        transport = library.make(ca_file=secured.ca_file, proxy=proxy.url)
        assert fetch_sync(transport, get(server.url)) == b"ok"
        body = transport.send(get(server.url, stream=True)).body
        pieces = Pieces(body)
        assert next(pieces) == b"first"
        failures: list[BaseException] = []

        def read() -> None:
            with pytest.raises(TransportError) as caught:
                next(pieces)
            failures.append(caught.value)

        reading = Thread(target=read)
        reading.start()
        body.close()
        reading.join(DEFAULT_TIMEOUT)
        assert [type(failure) for failure in failures] == [ConnectionInterrupted]
        server.wait_until_closed()


# --- options of the user's manager


def test_socket_options_and_source_address_are_used() -> None:
    option = socket.SOL_SOCKET, socket.SO_KEEPALIVE
    keep_alive = urllib3.PoolManager(socket_options=[(*option, 1)])
    elsewhere = urllib3.PoolManager(source_address=("192.0.2.1", 0))  # No computer has it.
    with ByteServer(OK) as server:
        response = Urllib3Transport(keep_alive).send(get(server.url))
        assert response.raw_response.connection.sock.getsockopt(*option) != 0
        response.body.close()
        with pytest.raises(ConnectError):
            Urllib3Transport(elsewhere).send(get(server.url))


# --- connections that are not reused


@over_both
def test_connections_idle_for_four_seconds_are_not_reused(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time to read a body is not idle time."""
    now = 100.0
    for module in (urllib3_connection, urllib3_response):
        monkeypatch.setattr(module, "monotonic", lambda: now)
    with ByteServer(OK) as server:
        transport = library.make()
        for idle_seconds, connections in ((0.0, 1), (3.9, 1), (3.9, 1), (4.1, 2), (3.9, 2)):
            now += idle_seconds
            body = transport.send(get(server.url, stream=True)).body
            now += 600
            assert b"".join(Pieces(body)) == b"ok"
            assert server.connections == connections
        assert {request.headers["accept-encoding"] for request in server.requests} == {
            "gzip, deflate"
        }


@over_both
@pytest.mark.parametrize("proxied", [False, True], ids=["direct", "proxied"])
def test_untracked_idle_connections_are_not_reused(library: Library, *, proxied: bool) -> None:
    """User code has used the pool before flux0. Its connections do not record their requests."""
    with ByteServer(OK) as server, Proxy() as proxy:
        transport, send_as_user = library.make_with_user(proxy=proxy.url if proxied else None)
        for send, connections in (
            (send_as_user, 1),
            (send_as_user, 1),
            (None, 2),
            (send_as_user, 2),
        ):
            body = fetch_sync(transport, get(server.url)) if send is None else send(server.url)
            assert (body, server.connections) == (b"ok", connections)


@over_both
def test_user_requests_share_the_pools_of_the_transport(library: Library) -> None:
    transport, send_as_user = library.make_with_user()
    with ByteServer(HALF, OK) as server:
        body = transport.send(get(server.url, stream=True)).body
        assert send_as_user(server.url) == b"ok"
        body.close()
    with pytest.raises((requests.ConnectionError, urllib3.exceptions.MaxRetryError)):
        send_as_user(server.url)


# --- exceptions of user code


USER_ERRORS = [
    OSError("the disk is full"),
    UnicodeError("not a letter"),
    requests.ConnectionError("redis is down"),
    requests.ReadTimeout("redis is slow"),
    urllib3.exceptions.ProtocolError("redis is odd"),
    KeyError("tenant"),
    httpx.ConnectError("of another service"),  # Reading its attribute `request` raises an error.
]
ERRORS_OUTSIDE_REQUESTS = [USER_ERRORS[0], USER_ERRORS[1], USER_ERRORS[5]]


def raising(error: Exception) -> Callable[..., Any]:
    def act(*_: Any, **__: Any) -> Any:
        raise error

    return act


def raising_nothing(*_: Any) -> None: ...


def raising_session(where: str, error: Exception) -> requests.Session:
    """Return a session whose hook, authentication or adapter raises `error`."""
    session = requests.Session()
    if where.startswith("hook"):
        session.hooks["response"] = raising(error)
    elif where == "auth":
        session.auth = type("Auth", (AuthBase,), {"__call__": raising(error)})()
    else:
        base = HTTPAdapter if where == "HTTPAdapter" else BaseAdapter
        methods = {"send": raising(error), "close": raising_nothing}
        adapter: Any = type("Adapter", (base,), methods)
        session.mount("http://", adapter())
    return session


@pytest.mark.parametrize(
    ("where", "raised"),
    [(where, raised) for where in ("hook", "hook, redirect", "auth") for raised in USER_ERRORS]
    + [
        (where, raised)
        for where in ("adapter", "HTTPAdapter")
        for raised in ERRORS_OUTSIDE_REQUESTS
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_exceptions_of_user_code_are_raised_unchanged(where: str, raised: Exception) -> None:
    session = raising_session(where, raised)
    moved = http_response(b"", status="302 Found", headers=[("Location", "http://[")])
    with ByteServer(moved if where == "hook, redirect" else OK) as server:
        assert failure_of_post(server.url, RequestsTransport(session)) is raised
        assert len(server.requests) == where.startswith("hook")


def test_failed_request_of_a_hook_is_not_the_failure_of_the_call() -> None:
    """The hook's own request fails to connect. The call's request was sent."""
    session = requests.Session()

    def report(response: requests.Response, **_: Any) -> None:
        session.post("http://127.0.0.1:1/", hooks={"response": []})

    session.hooks["response"] = report
    with ByteServer(OK) as server:
        raised = failure_of_post(server.url, RequestsTransport(session))
        assert isinstance(raised, requests.ConnectionError)
        assert len(server.requests) == 1


def test_exception_of_a_user_manager_is_raised_unchanged() -> None:
    full = OSError("the disk is full")

    class Manager(urllib3.PoolManager):
        urlopen = raising(full)

    with ByteServer(OK) as server:
        assert failure_of_post(server.url, Urllib3Transport(Manager())) is full


# --- untracked connections


class _UntrackedConnection(HTTPConnection):
    """A connection with its own method `request`, like in a recorder. flux0 does not track it."""

    def request(self, *args: Any, **options: Any) -> None:
        super().request(*args, **options)


@over_both
def test_recorder_may_start_and_stop_between_requests(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorder, such as vcrpy, replaces the connection class of all pools."""
    with ByteServer(http_response(b"first", b"second", framing="chunked", gzip=True)) as server:
        transport = library.make()
        for _ in range(2):
            assert fetch_sync(transport, get(server.url)) == b"firstsecond"
            with monkeypatch.context() as recording:
                recording.setattr(urllib3.HTTPConnectionPool, "ConnectionCls", _UntrackedConnection)
                transport.close()
                assert fetch_sync(transport, get(server.url)) == b"firstsecond"


@over_both
@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        ((Reset(),), ConnectionInterrupted),
        (
            (*http_response(framing="chunked")[:1], Write(b"x\r\n"), Disconnect()),
            ConnectionInterrupted,
        ),
        (http_response(b"a", WaitForRelease(), framing="chunked"), ReadTimeout),
    ],
    ids=["reset", "chunk", "timeout"],
)
def test_failure_of_an_untracked_connection_is_an_interruption(
    library: Library,
    monkeypatch: pytest.MonkeyPatch,
    steps: ServerSteps,
    kind: type[TransportError],
) -> None:
    monkeypatch.setattr(urllib3.HTTPConnectionPool, "ConnectionCls", _UntrackedConnection)
    limits = [limiting(read=SHORT_TIMEOUT)] if kind is ReadTimeout else []
    with (
        ByteServer(steps) as server,
        client(server.url, library.make(), middleware=limits) as flux0,
    ):
        with pytest.raises(kind) as raised:
            flux0.sessions.create(agent_id="a")
        assert raised.value.attempts == 1
        assert len(server.requests) <= 1  # The timeout may expire before the server has read.
    caught = failure_of_post("http://127.0.0.1:1", library.make())
    assert (type(caught), caught.attempts) == (ConnectionInterrupted, 1)


class _WrappedSocket:
    """An object with the methods of a socket, like the sockets of some tunnels."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


@pytest.mark.parametrize("wrap", [socket.socket.dup, _WrappedSocket], ids=["socket", "wrapped"])
def test_connection_class_of_the_user_opens_the_socket(wrap: Callable[[Any], Any]) -> None:
    opened: list[Any] = []

    class Connection(HTTPConnection):
        def _new_conn(self) -> Any:
            sock = socket.create_connection((self.host, self.port))
            opened.extend([sock, wrap(sock)])
            return opened[-1]

    manager: Any = urllib3.PoolManager()
    pool = type("Pool", (urllib3.HTTPConnectionPool,), {"ConnectionCls": Connection})
    manager.pool_classes_by_scheme = {"http": pool}
    with ByteServer(OK) as server:
        fetch_sync(Urllib3Transport(manager), get(server.url))
        assert len(server.requests) == 1
    assert len(opened) == 2
    manager.clear()
    for sock in opened:
        sock.close()


RECORDED = """
import http.client
import urllib3.connection

class Recorder(urllib3.connection.HTTPConnection):
    pass

own = urllib3.connection.HTTPConnection
urllib3.connection.HTTPConnection = http.client.HTTPConnection = Recorder

import flux0
flux0.RequestsTransport(), flux0.Urllib3Transport()
from flux0.adapters.urllib3.connection import Urllib3Connection
assert Urllib3Connection.__bases__ == (own,)
"""


def test_transport_may_be_created_while_a_recorder_is_active() -> None:
    done = subprocess.run([sys.executable, "-c", RECORDED], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


# --- wrong arguments and packages


@pytest.mark.parametrize(
    ("make", "value", "fix"),
    [
        (Urllib3Transport, requests.Session(), "RequestsTransport"),
        (Urllib3Transport, urllib3.PoolManager, "PoolManager()"),
        (Urllib3Transport, urllib3.HTTPConnectionPool("127.0.0.1"), "must be a PoolManager"),
        (RequestsTransport, urllib3.PoolManager(), "Urllib3Transport"),
        (RequestsTransport, requests.Session, "Session()"),
        (RequestsTransport, HTTPAdapter(), "must be a Session"),
    ],
)
def test_object_of_the_wrong_type_is_rejected(make: Any, value: Any, fix: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        make(value)
    assert fix in str(caught.value)


@pytest.mark.parametrize("make", [Urllib3Transport, RequestsTransport])
def test_urllib3_future_is_rejected(
    make: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib3_connection, "HTTPConnection", object)
    with pytest.raises(MissingDependency, match="urllib3-future"):
        make()
