"""Over urllib3 and requests: what was sent is known, and what users' code raises is theirs."""

from __future__ import annotations

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
from flux0.adapters.urllib3 import connection as urllib3_connection, http_response as http_answer
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
from support.sending import HALF, OK, fetch_sync, get

EAGER = RetryConfig("backoff", BackoffStrategy(1, 1, 1, 60_000), max_attempts=3)

Call = Callable[[str], bytes]


@frozen
class Library:
    """How the two libraries are told the same."""

    name: str

    def __str__(self) -> str:
        return self.name

    def make(self, *, ca_file: str | None = None, proxy: str | None = None) -> Transport:
        return self.make_with_user(ca_file=ca_file, proxy=proxy)[0]

    def make_with_user(
        self, *, ca_file: str | None = None, proxy: str | None = None
    ) -> tuple[Transport, Call]:
        """Return a transport, and how its user sends a GET over the same connections."""
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
    """Return what a POST raises."""
    with client(url, transport) as flux0, pytest.raises(BaseException) as caught:  # noqa: PT011 - looked at
        flux0.sessions.create(agent_id="a")
    return caught.value


# --- through a proxy


@over_both
def test_a_tunnel_through_a_secured_proxy(library: Library, secured: Secured) -> None:
    """TLS within TLS, of which no plain socket knows."""
    with Proxy(tls=secured.server) as proxy, ByteServer(OK, HALF, tls=secured.server) as server:
        transport = library.make(ca_file=secured.ca_file, proxy=proxy.url)
        assert fetch_sync(transport, get(server.url)) == b"ok"
        body = transport.send(get(server.url, stream=True)).body
        pieces = iter(body)
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


# --- connections that are not used again


@over_both
def test_a_connection_that_rested_is_not_used_again(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long body is no rest."""
    now = 100.0
    for module in (urllib3_connection, http_answer):
        monkeypatch.setattr(module, "monotonic", lambda: now)
    with ByteServer(OK) as server:
        transport = library.make()
        for rested, connections in ((0.0, 1), (3.9, 1), (3.9, 1), (4.1, 2), (3.9, 2)):
            now += rested
            body = transport.send(get(server.url, stream=True)).body
            now += 600
            assert b"".join(body) == b"ok"
            assert server.connections == connections
        assert {request.headers["accept-encoding"] for request in server.requests} == {
            "gzip, deflate"
        }


@over_both
@pytest.mark.parametrize("proxied", [False, True], ids=["direct", "proxied"])
def test_connections_from_before_are_not_used(library: Library, *, proxied: bool) -> None:
    """Of those that the user's code left in the pool, nobody would know what happens on them."""
    with ByteServer(OK) as server, Proxy() as proxy:
        transport, theirs = library.make_with_user(proxy=proxy.url if proxied else None)
        for send, connections in ((theirs, 1), (theirs, 1), (None, 2), (theirs, 2)):
            body = fetch_sync(transport, get(server.url)) if send is None else send(server.url)
            assert (body, server.connections) == (b"ok", connections)


@over_both
def test_what_the_user_sends_over_the_same_pools_goes_on(library: Library) -> None:
    transport, theirs = library.make_with_user()
    with ByteServer(HALF, OK) as server:
        body = transport.send(get(server.url, stream=True)).body
        assert theirs(server.url) == b"ok"
        body.close()
    with pytest.raises((requests.ConnectionError, urllib3.exceptions.MaxRetryError)):
        theirs(server.url)


@pytest.mark.parametrize("block", [False, True])
def test_the_place_of_a_connection_from_before_stays(*, block: bool) -> None:
    with ByteServer(HALF) as server:
        manager = urllib3.PoolManager(maxsize=2, block=block)
        server.release()
        assert manager.request("GET", server.url).data == b"firstsecond"
        transport = Urllib3Transport(manager)
        bodies = [transport.send(get(server.url)).body for _ in range(2)]
        assert [b"".join(body) for body in bodies] == [b"firstsecond"] * 2
        assert server.connections == 3


def test_a_pool_that_its_user_closed() -> None:
    with ByteServer(OK) as server:
        manager = urllib3.PoolManager()
        manager.connection_from_url(server.url).close()
        with pytest.raises(ConnectError, match="closed"):
            Urllib3Transport(manager).send(get(server.url))


# --- what the user's code raises


USERS_ERRORS = [
    OSError("the disk is full"),
    UnicodeError("not a letter"),
    requests.ConnectionError("redis is down"),
    requests.ReadTimeout("redis is slow"),
    urllib3.exceptions.ProtocolError("redis is odd"),
    KeyError("tenant"),
    httpx.ConnectError("of another service"),  # It raises where it is asked for its request.
]
NOT_OF_REQUESTS = [USERS_ERRORS[0], USERS_ERRORS[1], USERS_ERRORS[5]]


def raising(error: Exception) -> Callable[..., Any]:
    def act(*_: Any, **__: Any) -> Any:
        raise error

    return act


def raising_nothing(*_: Any) -> None: ...


def raising_session(where: str, error: Exception) -> requests.Session:
    """Return a session with code of the user's that raises `error`."""
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
    [(where, raised) for where in ("hook", "hook, redirect", "auth") for raised in USERS_ERRORS]
    + [(where, raised) for where in ("adapter", "HTTPAdapter") for raised in NOT_OF_REQUESTS],
    ids=lambda given: given if isinstance(given, str) else type(given).__name__,
)
def test_what_the_users_code_raises_is_raised_as_it_is(where: str, raised: Exception) -> None:
    session = raising_session(where, raised)
    moved = http_response(b"", status="302 Found", headers=[("Location", "http://[")])
    with ByteServer(moved if where == "hook, redirect" else OK) as server:
        assert failure_of_post(server.url, RequestsTransport(session)) is raised
        assert len(server.requests) == where.startswith("hook")


def test_a_hook_that_sends_a_request_of_its_own() -> None:
    """That one fails to connect, which says nothing of the first."""
    session = requests.Session()

    def report(response: requests.Response, **_: Any) -> None:
        session.post("http://127.0.0.1:1/", hooks={"response": []})

    session.hooks["response"] = report
    with ByteServer(OK) as server:
        raised = failure_of_post(server.url, RequestsTransport(session))
        assert isinstance(raised, requests.ConnectionError)
        assert len(server.requests) == 1


def test_a_manager_of_the_users_raises() -> None:
    full = OSError("the disk is full")

    class Manager(urllib3.PoolManager):
        urlopen = raising(full)

    with ByteServer(OK) as server:
        assert failure_of_post(server.url, Urllib3Transport(Manager())) is full


# --- connections of others


class _Unwatched(HTTPConnection):
    """Sends in a way of its own, of which nothing is noted."""

    def request(self, *args: Any, **options: Any) -> None:
        super().request(*args, **options)


@over_both
def test_a_recorder_comes_and_goes(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorders put their own class of connections in place of urllib3's, in all pools."""
    with ByteServer(http_response(b"first", b"second", framing="chunked", gzip=True)) as server:
        transport = library.make()
        for _ in range(2):
            assert fetch_sync(transport, get(server.url)) == b"firstsecond"
            with monkeypatch.context() as recording:
                recording.setattr(urllib3.HTTPConnectionPool, "ConnectionCls", _Unwatched)
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
    ids=["reset", "chunk", "silent"],
)
def test_of_a_connection_that_notes_nothing_nobody_knows(
    library: Library,
    monkeypatch: pytest.MonkeyPatch,
    steps: ServerSteps,
    kind: type[TransportError],
) -> None:
    monkeypatch.setattr(urllib3.HTTPConnectionPool, "ConnectionCls", _Unwatched)
    with ByteServer(steps) as server, client(server.url, library.make()) as flux0:
        with pytest.raises(kind):
            flux0.sessions.create(agent_id="a", timeout_ms=300)
        assert len(server.requests) == 1
    caught = failure_of_post("http://127.0.0.1:1", library.make())
    assert (type(caught), caught.attempts) == (ConnectionInterrupted, 1)


RECORDED = """
import http.client
import urllib3.connection

class Recorder(urllib3.connection.HTTPConnection):
    pass

own = urllib3.connection.HTTPConnection
urllib3.connection.HTTPConnection = http.client.HTTPConnection = Recorder

import flux0
flux0.RequestsTransport(), flux0.Urllib3Transport()
from flux0.adapters.urllib3.connection import TrackedConnection
assert TrackedConnection.__bases__ == (own,)
"""


def test_a_transport_is_first_made_while_a_recorder_is_in_urllib3s_place() -> None:
    done = subprocess.run([sys.executable, "-c", RECORDED], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


# --- what is refused, and what is not


@pytest.mark.parametrize(
    ("make", "given", "way_out"),
    [
        (Urllib3Transport, requests.Session(), "RequestsTransport"),
        (Urllib3Transport, urllib3.PoolManager, "PoolManager()"),
        (Urllib3Transport, urllib3.HTTPConnectionPool("127.0.0.1"), "must be a PoolManager"),
        (RequestsTransport, urllib3.PoolManager(), "Urllib3Transport"),
        (RequestsTransport, requests.Session, "Session()"),
        (RequestsTransport, HTTPAdapter(), "must be a Session"),
    ],
)
def test_a_wrong_object_is_refused(make: Any, given: Any, way_out: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        make(given)
    assert way_out in str(caught.value)


@pytest.mark.parametrize("make", [Urllib3Transport, RequestsTransport])
def test_another_package_in_urllib3s_place_is_refused(
    make: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib3_connection, "HTTPConnection", object)
    with pytest.raises(MissingDependency, match="urllib3-future"):
        make()
