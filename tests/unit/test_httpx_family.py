"""What the transports over httpx and httpx2 promise beyond the contract.

Most tests run synchronously, under asyncio and under trio.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import anyio
import httpcore
import httpx
import pytest
import trustme
from attrs import evolve, frozen

import flux0
from flux0 import BackoffStrategy, Flux0, RetryConfig
from flux0.adapters.support.bodies import run
from flux0.adapters.support.httpx_connection import AsyncConnection
from flux0.domain.errors import (
    APIError,
    ClientClosed,
    ConnectError,
    ConnectionInterrupted,
    ConnectTimeout,
    Flux0Error,
    InvalidArgument,
    ProtocolError,
    ReadTimeout,
    TransportError,
    TransportTimeout,
)
from flux0.domain.headers import Headers
from flux0.ports import Interrupt, Request, Timeout
from flux0.testing.contract.answers import (
    Answer,
    Disconnect,
    Hold,
    Reset,
    Write,
    answer,
    written,
)
from flux0.testing.contract.byte_server import ByteServer
from support.proxy import Proxy

OK = answer(b"ok")
SOON = Timeout(connect=0.2, read=0.2)
FAST = RetryConfig(backoff=BackoffStrategy(1, 1, 1, 10_000), max_attempts=3)


@frozen
class Over:
    """One library, used synchronously or in an event loop of this kind."""

    library: Any
    loop: str | None

    def __str__(self) -> str:
        return f"{self.library.__name__}-{self.loop or 'sync'}"

    def transport(self, **options: Any) -> Any:
        """Return a transport over a client with these options, or over its own without any."""
        transport = getattr(flux0, f"{self.library.__name__.title()}Transport")
        if not options:
            return transport()
        if self.loop is None:
            return transport(self.library.Client(**options))
        return transport(async_client=self.library.AsyncClient(**options))

    def act(self, act: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function as this kind of client calls it: as it is, or as a coroutine."""
        if self.loop is None:
            return act

        async def act_async(*args: Any) -> Any:
            return act(*args)

        return act_async

    def fetch(self, request: Request, over: Any = None, **options: Any) -> tuple[int, bytes]:
        """Send a request, read the answer, and return its status and body."""

        async def fetch(transport: Any) -> tuple[int, bytes]:
            response = await self.send(transport, request)
            return response.status_code, b"".join(await self.pieces(response))

        fetched: tuple[int, bytes]
        fetched = self.run(self.transport(**options) if over is None else over, fetch)
        return fetched

    async def send(self, transport: Any, request: Request) -> Any:
        """Send a request and return the response."""
        if self.loop is None:
            return transport.send(request)
        return await transport.send_async(request)

    async def pieces(self, response: Any, into: list[bytes] | None = None) -> list[bytes]:
        """Return the pieces of a body, and put them where they are seen if reading fails."""
        pieces: list[bytes] = [] if into is None else into
        if self.loop is None:
            for piece in response.body:
                pieces.append(piece)  # noqa: PERF402 - one after the other, since it may fail
        else:
            async for piece in response.body:
                pieces.append(piece)  # noqa: PERF401
        return pieces

    async def create(self, client: Flux0) -> None:
        """Create a session, which is a POST that must not be sent twice."""
        if self.loop is None:
            client.sessions.create(agent_id="a")
        else:
            await client.sessions.create_async(agent_id="a")

    def run(self, transport: Any, use: Callable[[Any], Awaitable[Any]]) -> Any:
        """Return what `use` returns, and close the transport and its client."""

        async def main() -> Any:
            try:
                return await use(transport)
            finally:
                await transport.close_async()
                if transport._async_client is not None:
                    await transport._async_client.aclose()

        if self.loop is not None:
            return anyio.run(main, backend=self.loop)
        try:
            use(transport).send(None)  # type: ignore[attr-defined]
        except StopIteration as stop:
            return stop.value
        finally:
            transport.close()
            if transport._client is not None:
                transport._client.close()
        raise AssertionError("a synchronous test has awaited something")

    def create_session(self, url: str, **options: Any) -> None:
        """Have a client with these options create a session."""

        async def create(transport: Any) -> None:
            await self.create(Flux0(url, transport=transport, retry_config=FAST))

        self.run(self.transport(**options), create)


LIBRARIES: list[Any] = [httpx]
if sys.version_info >= (3, 11):  # As httpx2 needs.
    import httpx2

    LIBRARIES.append(httpx2)
LOOPS = (None, "asyncio", "trio")


@pytest.fixture(params=[Over(library, loop) for library in LIBRARIES for loop in LOOPS], ids=str)
def over(request: pytest.FixtureRequest) -> Over:
    over: Over = request.param
    return over


@pytest.fixture(params=[Over(library, None) for library in LIBRARIES], ids=str)
def sync(request: pytest.FixtureRequest) -> Over:
    over: Over = request.param
    return over


def get(url: str, *, stream: bool = False, **headers: str) -> Request:
    pairs = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Request("GET", url, Headers(pairs), stream=stream)


def post(url: str) -> Request:
    return Request("POST", url, Headers(), b"{}")


class Secured:
    """Certificates of a server at 127.0.0.1, and who trusts them."""

    def __init__(self) -> None:
        self._authority = authority = trustme.CA()
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(self.server)  # pyright: ignore[reportUnknownMemberType] - of pyOpenSSL
        self.trusting = ssl.create_default_context()
        authority.configure_trust(self.trusting)  # pyright: ignore[reportUnknownMemberType]

    def write_authority(self, folder: Path) -> str:
        """Return the path of a file with the certificate of who is to be trusted."""
        path = str(folder / "ca.pem")
        self._authority.cert_pem.write_to_path(path)
        return path


@pytest.fixture(scope="module")
def secured() -> Secured:
    return Secured()


# --- what was sent is sent once


BREAKS: dict[str, Answer] = {
    "closed": (Disconnect(),),
    "reset": (Reset(),),
    "closed within the head": (Write(b"HTTP/1.1 200 OK\r\n"), Disconnect()),
    "reset within the head": (Write(b"HTTP/1.1 200 OK\r\n"), Reset()),
    "not HTTP": (Write(b"SSH-2.0\r\n\r\n"), Disconnect()),
}


@pytest.mark.parametrize("tunnel", [False, True], ids=["forwarded", "tunnelled"])
@pytest.mark.parametrize("pooled", [False, True], ids=["fresh", "pooled"])
@pytest.mark.parametrize("breaks", BREAKS)
def test_a_post_through_a_proxy_is_sent_once(
    over: Over, breaks: str, secured: Secured, *, pooled: bool, tunnel: bool
) -> None:
    async def use(transport: Any) -> None:
        client = Flux0(server.url, transport=transport, retry_config=FAST)
        if pooled:
            await over.pieces(await over.send(transport, get(server.url)))
        with pytest.raises(TransportError) as caught:
            await over.create(client)
        assert not isinstance(caught.value, ConnectError)

    tls = secured.server if tunnel else None
    with ByteServer(*[OK] * pooled, BREAKS[breaks], tls=tls) as server, Proxy() as proxy:
        over.run(over.transport(proxy=proxy.url, verify=secured.trusting), use)
        assert [request.method for request in server.requests] == ["GET"] * pooled + ["POST"]
        assert proxy.requests


@pytest.mark.parametrize(
    ("does", "kind"),
    [
        ((Disconnect(),), ConnectError),
        ((Reset(),), ConnectError),
        ((Write(b"nonsense\r\n\r\n"), Disconnect()), ConnectError),
        ((Hold(),), ConnectTimeout),
    ],
    ids=["closed", "reset", "nonsense", "silence"],
)
def test_a_proxy_that_breaks_before_the_tunnel_sends_nothing(
    over: Over, does: Answer, kind: type[ConnectError]
) -> None:
    timeout = SOON if kind is ConnectTimeout else Timeout()
    with ByteServer(does) as proxy:
        with pytest.raises(ConnectError) as caught:
            over.fetch(evolve(post("https://127.0.0.1:9"), timeout=timeout), proxy=proxy.url)
        assert type(caught.value) is kind


def test_a_url_that_is_none_is_refused(over: Over) -> None:
    for url in ("http://[", "http://a b:c/", "gopher://127.0.0.1"):
        with pytest.raises(ConnectError) as caught:
            over.fetch(post(url))
        assert isinstance(caught.value.__cause__, Exception)


@pytest.mark.parametrize("location", ["http://[", "http://a b:c/", "http://a:99999999", "\xff"])
def test_a_redirect_that_leads_nowhere_is_an_answer(over: Over, location: str) -> None:
    moved = answer(b"moved", status="302 Found", headers=[("Location", location), ("X-A", "b")])
    for options in ({}, {"trust_env": False}):
        with ByteServer(moved) as server:
            assert over.fetch(post(server.url), **options) == (302, b"moved")
            with pytest.raises(APIError) as caught:
                over.create_session(server.url, **options)
            assert caught.value.status_code == 302
            assert caught.value.body == "moved"
            assert dict(caught.value.headers)["x-a"] == "b"
            assert caught.value.headers["location"] == location
            assert len(server.requests) == 2


# --- code of the user's


class Stop(Exception):
    """Raised by code of the user's."""


def nested(over: Over) -> Exception:
    """Return an error of the library's, from a request of the user's own."""
    try:
        over.library.Client().get("http://127.0.0.1:1")
    except over.library.ConnectError as error:
        failure: Exception = error
        return failure
    raise AssertionError("somebody listens there")


RAISED: dict[str, Callable[[Over], Exception]] = {
    "its own": lambda _: Stop("stop"),
    "OSError": lambda _: OSError("the disk is full"),
    "UnicodeError": lambda _: UnicodeError("no such letter"),
    "RuntimeError": lambda _: RuntimeError("stop"),
    "TimeoutError": lambda _: TimeoutError("redis"),
    "SSLError": lambda _: ssl.SSLError("of something else"),
    "of a nested call": nested,
    "of the library": lambda over: over.library.ReadTimeout("of something else"),
    "InvalidURL": lambda over: over.library.InvalidURL("of something else"),
}


def raising(over: Over, error: Exception, where: str) -> dict[str, Any]:
    """Return options of a client with code that raises `error`."""

    def act(*_: object) -> None:
        raise error

    class Auth(over.library.Auth):  # type: ignore[misc, name-defined]
        def auth_flow(self, request: Any) -> Generator[Any, Any, None]:
            if where == "auth, before":
                raise error
            yield request
            raise error

    if where.startswith("auth"):
        return {"auth": Auth()}
    if where == "transport":
        base = over.library.BaseTransport if over.loop is None else over.library.AsyncBaseTransport
        name = "handle_request" if over.loop is None else "handle_async_request"
        transport = type("Raising", (base,), {name: over.act(act)})
        return {"transport": transport()}
    return {"event_hooks": {where: [over.act(act)]}}


@pytest.mark.parametrize("raised", RAISED)
@pytest.mark.parametrize("where", ["request", "response", "auth, before", "auth, after"])
def test_what_the_users_code_raises_is_raised_as_it_is(over: Over, where: str, raised: str) -> None:
    error = RAISED[raised](over)
    with ByteServer(OK) as server:
        with pytest.raises(type(error)) as caught:
            over.create_session(server.url, **raising(over, error, where))
        assert caught.value is error
        assert len(server.requests) == (where in ("response", "auth, after"))


@pytest.mark.parametrize("raised", ["its own", "OSError", "UnicodeError", "RuntimeError"])
def test_what_the_users_transport_raises_is_raised_as_it_is(over: Over, raised: str) -> None:
    error = RAISED[raised](over)
    with pytest.raises(type(error)) as caught:
        over.create_session("http://flux0.invalid", **raising(over, error, "transport"))
    assert caught.value is error


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        ("ConnectError", ConnectionInterrupted),
        ("ConnectTimeout", TransportTimeout),
        ("PoolTimeout", TransportTimeout),
        ("ReadTimeout", ReadTimeout),
        ("ProxyError", ConnectionInterrupted),
        ("UnsupportedProtocol", ProtocolError),
    ],
)
def test_a_transport_that_nothing_traces_proves_nothing(
    over: Over, raised: str, kind: type[TransportError]
) -> None:
    """It may have sent the request before, so that a POST is not sent again."""
    error = getattr(over.library, raised)("says the transport")
    with pytest.raises(TransportError, match="says the transport") as caught:
        over.fetch(post("http://flux0.invalid"), **raising(over, error, "transport"))
    assert type(caught.value) is kind
    assert caught.value.__cause__ is error


def test_raise_for_status_in_a_hook_raises_the_error_of_that_status(over: Over) -> None:
    def check(response: Any) -> None:
        response.raise_for_status()

    hook = over.act(check)
    with ByteServer(answer(b"no", status="404 Not Found")) as server:
        with pytest.raises(APIError) as caught:
            over.create_session(server.url, event_hooks={"response": [hook]})
        assert caught.value.status_code == 404
        assert type(caught.value.raw_response) is over.library.Response
        assert len(server.requests) == 1


def test_a_hook_may_read_the_body(over: Over) -> None:
    def read(response: Any) -> None:
        response.read()

    async def read_async(response: Any) -> None:
        await response.aread()

    hook = read if over.loop is None else read_async
    for status in (200, 404):
        steps = answer(b"text", status=f"{status} So", gzip=True)
        with ByteServer(steps) as server:
            body = over.fetch(get(server.url), event_hooks={"response": [hook]})
            assert body == (status, b"text")


def test_a_status_error_of_another_request_is_the_hooks_own(over: Over) -> None:
    other = over.library.Request("GET", "http://flux0.invalid")
    error = over.library.HTTPStatusError(
        "not mine", request=other, response=over.library.Response(404, request=other)
    )
    with ByteServer(OK) as server, pytest.raises(over.library.HTTPStatusError) as caught:
        over.fetch(get(server.url), **raising(over, error, "response"))
    assert caught.value is error


def test_a_trace_of_the_users_goes_on(over: Over) -> None:
    seen: list[str] = []

    def trace(event: str, info: object) -> None:
        seen.append(event)

    base: Any = over.library.Client if over.loop is None else over.library.AsyncClient

    class Tracing(base):  # type: ignore[misc]
        def build_request(self, *args: Any, **options: Any) -> Any:
            options["extensions"] = {"trace": over.act(trace)}
            return super().build_request(*args, **options)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    transport = over.transport(trust_env=False)
    attribute = "_client" if over.loop is None else "_async_client"
    setattr(transport, attribute, Tracing())
    with ByteServer(OK) as server:
        assert over.fetch(get(server.url), transport) == (200, b"ok")
    assert "connection.connect_tcp.complete" in seen
    assert "http11.send_request_headers.started" in seen


def test_a_hook_that_replaces_the_trace_leaves_nothing_proven(over: Over) -> None:
    def replace(request: Any) -> None:
        request.extensions["trace"] = over.act(lambda *_: None)

    with pytest.raises(TransportError) as caught:
        over.fetch(post("http://127.0.0.1:1"), event_hooks={"request": [over.act(replace)]})
    assert type(caught.value) is ConnectionInterrupted


# --- what is asked for


@pytest.mark.parametrize("options", [{}, {"headers": {"accept-encoding": "br, zstd"}}])
def test_only_what_is_undone_here_is_asked_for(over: Over, options: dict[str, Any]) -> None:
    with ByteServer(OK) as server:
        over.fetch(get(server.url), **options)
        over.fetch(get(server.url, accept_encoding="identity"), **options)
        asked = [request.headers["accept-encoding"] for request in server.requests]
    assert asked == ["gzip, deflate", "identity"]


# --- connections


def surplus(steps: Answer) -> Answer:
    """Return an answer with another behind it, in the same write."""
    first, *rest = steps
    assert isinstance(first, Write)
    whole = first.data + b"".join(step.data for step in rest if isinstance(step, Write))
    return (Write(whole + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nanother's"[:-2]),)


@pytest.mark.parametrize("framing", ["chunked", "content-length"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
def test_a_connection_with_something_left_over_is_not_used_again(
    over: Over,
    secured: Secured,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    framing: Any,
    *,
    secure: bool,
) -> None:
    long = b"x" * 40_000  # More than one record of TLS, so that the surplus has one of its own.

    async def use(transport: Any) -> None:
        for body in (b"mine", long, b"last"):
            response = await over.send(transport, get(server.url))
            assert b"".join(await over.pieces(response)) == body

    monkeypatch.setenv("SSL_CERT_FILE", secured.write_authority(tmp_path))
    tls = secured.server if secure else None
    answers = [surplus(answer(body, framing=framing)) for body in (b"mine", long)]
    with ByteServer(*answers, answer(b"last"), tls=tls) as server:
        over.run(over.transport(), use)
        assert server.connections == 3


def test_our_own_connections_are_the_ones_that_are_used(over: Over) -> None:
    """This fails if the library no longer looks where `instrument` puts them."""

    async def use(transport: Any) -> None:
        response = await over.send(transport, get(server.url))
        await over.pieces(response)
        stream = response.raw_response.extensions["network_stream"]
        assert type(stream).__module__ == "flux0.adapters.support.httpx_connection"

    with ByteServer(OK) as server:
        over.run(over.transport(), use)


@pytest.mark.parametrize("surplus", [OK, (Write(b"\r\n"),)], ids=["an answer", "a line"])
def test_a_client_of_the_users_does_not_mix_answers_up(over: Over, surplus: Answer) -> None:
    """What comes with an answer and is not part of it answers no other request."""

    async def use(transport: Any) -> None:
        for _ in range(2):
            response = await over.send(transport, get(server.url))
            assert b"".join(await over.pieces(response)) == b"ok"

    with ByteServer((Write(written((*OK, *surplus))), Hold()), OK) as server:
        over.run(over.transport(trust_env=False), use)
        assert server.connections == 2


def test_two_transports_and_their_user_share_a_client(sync: Over) -> None:
    with ByteServer(OK) as server, sync.library.Client() as client:
        transports = [type(sync.transport())(client) for _ in range(2)]
        for transport in transports:
            assert b"".join(transport.send(get(server.url)).body) == b"ok"
        assert client.get(server.url).text == "ok"
        assert server.connections == 1


def test_a_client_of_the_users_may_have_a_unix_socket(over: Over, tmp_path: Path) -> None:
    library, path = over.library, str(tmp_path / "socket")
    kind = library.HTTPTransport if over.loop is None else library.AsyncHTTPTransport
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(written(OK))

        with ThreadPoolExecutor() as threads:
            threads.submit(serve)
            assert over.fetch(get("http://flux0"), transport=kind(uds=path)) == (200, b"ok")


def test_a_client_of_the_users_may_connect_again(over: Over) -> None:
    library = over.library
    kind = library.HTTPTransport if over.loop is None else library.AsyncHTTPTransport
    with pytest.raises(ConnectError):
        over.fetch(get("http://127.0.0.1:1"), transport=kind(retries=1))


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("connection", ["new, of the user's", "new", "pooled"])
def test_an_interrupt_wakes_a_call(
    sync: Over,
    secured: Secured,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    connection: str,
    *,
    secure: bool,
) -> None:
    """Over a client of the user's, one for which a new connection is made."""
    monkeypatch.setenv("SSL_CERT_FILE", secured.write_authority(tmp_path))
    pooled = connection == "pooled"
    interrupt = Interrupt()

    def wake() -> None:
        server.wait_for_requests(1 + pooled)
        interrupt.fire()

    tls = secured.server if secure else None
    with ByteServer(*[OK] * pooled, (Write(b"HTTP/1.1 200"), Hold()), tls=tls) as server:
        transport = sync.transport(**{"trust_env": True} if "user" in connection else {})
        if pooled:
            assert b"".join(transport.send(get(server.url)).body) == b"ok"
        waker = threading.Thread(target=wake)
        waker.start()
        with pytest.raises(ConnectionInterrupted):
            sync.fetch(evolve(post(server.url), interrupt=interrupt), transport)
        waker.join()
        server.wait_until_gone()
        assert server.connections == 1


def test_a_second_reader_is_refused_and_the_first_goes_on(sync: Over) -> None:
    with (
        ByteServer(answer(b"a", Hold(), b"b", framing="chunked")) as server,
        ThreadPoolExecutor(2) as threads,
    ):
        transport = sync.transport()
        body = iter(transport.send(get(server.url, stream=True)).body)
        assert next(body) == b"a"
        readers = [threads.submit(next, body) for _ in range(2)]
        refused, reading = wait(readers, return_when=FIRST_COMPLETED)
        with pytest.raises(Flux0Error, match="reading this body"):
            refused.pop().result()
        server.release()
        assert reading.pop().result() == b"b"
        transport.close()


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_second_asynchronous_reader_is_refused_and_the_first_goes_on(loop: str) -> None:
    async def main() -> None:
        transport = flux0.HttpxTransport()
        response = await transport.send_async(get(server.url, stream=True))
        body = aiter(response.body)
        assert await anext(body) == b"a"
        got: list[bytes] = []
        async with anyio.create_task_group() as tasks:

            async def read() -> None:
                got.append(await anext(body))

            tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(Flux0Error, match="reading this body"):
                await anext(body)
            server.release()
        assert got == [b"b"]
        await response.body.close_async()
        await transport.close_async()

    with ByteServer(answer(b"a", Hold(), b"b", framing="chunked")) as server:
        anyio.run(main, backend=loop)


def test_a_turn_over_http_2_warns(over: Over) -> None:
    def handle(_: object) -> Any:
        content = over.library.ByteStream(b"data")
        return over.library.Response(200, stream=content, extensions={"http_version": b"HTTP/2"})

    transport = over.library.MockTransport(handle)
    with pytest.warns(RuntimeWarning, match="without http2=True"):
        body = over.fetch(get("http://flux0.invalid", stream=True), transport=transport)
    assert body == (200, b"data")


def test_bytes_in_the_buffer_of_tls_are_something_left_over(secured: Secured) -> None:
    """An event loop puts all that has arrived there, so that its socket has nothing to read."""
    arrived, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = secured.trusting.wrap_bio(arrived, sent, server_hostname="127.0.0.1")
    server = secured.server.wrap_bio(sent, arrived, server_side=True)
    for side in (client, server, client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()

    class Stream:
        def get_extra_info(self, info: str) -> object:
            return {"is_readable": False, "ssl_object": client}[info]

    connection = AsyncConnection(Stream(), None)
    assert not connection.get_extra_info("is_readable")
    server.write(b"another's")
    assert connection.get_extra_info("is_readable")
    client.read()
    assert not connection.get_extra_info("is_readable")
    with contextlib.suppress(ssl.SSLWantReadError):
        server.unwrap()
    assert connection.get_extra_info("is_readable")


def test_the_wait_for_content_is_over_when_something_else_has_come() -> None:
    """A read that would begin after the timeout does not begin."""
    connection = AsyncConnection(httpcore.AsyncMockStream([]), httpcore)
    connection.awaited = time.monotonic() - 1

    with pytest.raises(httpcore.ReadTimeout):
        run(connection.read(1, 0.5))


def test_an_interrupt_leaves_the_connection_of_others_alone(sync: Over) -> None:
    """One of HTTP/2 may be others' too, and some that a transport of the user's makes have none."""
    ours, theirs = socket.socketpair()

    class Stream:
        def __init__(self, connection: socket.socket | None) -> None:
            self._connection = connection

        def get_extra_info(self, _: str) -> object:
            return self._connection

    class Shared(sync.library.BaseTransport):  # type: ignore[misc, name-defined]
        def handle_request(self, request: Any) -> Any:
            trace = request.extensions["trace"]
            trace("connection.connect_tcp.complete", {"return_value": Stream(ours)})
            trace("http2.send_request_headers.started", {"request": httpcore.Request("GET", "/")})
            interrupt.fire()
            trace("connection.start_tls.complete", {"return_value": Stream(None)})
            return sync.library.Response(200, content=b"ok")

    interrupt = Interrupt()
    with ours, theirs:
        request = evolve(get("http://flux0.invalid"), interrupt=interrupt)
        assert sync.fetch(request, transport=Shared()) == (200, b"ok")
        ours.sendall(b"x")
        assert theirs.recv(1) == b"x"


# --- bodies


def refuse(*_: object) -> None:
    raise RuntimeError("can't start new thread at interpreter shutdown")


@pytest.mark.parametrize(
    ("name", "stub"), [("start_new_thread", refuse), ("sys.is_finalizing", lambda: True)]
)
def test_a_stream_that_is_left_as_python_ends_is_kept(
    sync: Over, monkeypatch: pytest.MonkeyPatch, name: str, stub: Callable[..., Any]
) -> None:
    """No thread can be started any more, and the pool's locks are not taken."""

    with ByteServer(answer(b"data", Hold(), framing="chunked")) as server:
        transport = sync.transport()
        body = transport.send(get(server.url, stream=True)).body
        assert next(iter(body)) == b"data"
        with monkeypatch.context() as patched:
            patched.setattr(f"flux0.adapters.support.bodies.{name}", stub)
            del body
        server.wait_until_gone()
        transport.close()


def test_a_coroutine_that_waits_needs_an_event_loop() -> None:
    class Waiting:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def waits() -> None:
        await Waiting()

    with pytest.raises(AssertionError, match="event loop"):
        run(waits())


# --- what is not a client


def test_what_is_no_client_is_refused() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"client": 3}, "must be like an httpx.Client"),
        ({"client": httpx.Client}, "pass Client()"),
        ({"client": httpx.AsyncClient()}, "pass it as async_client="),
        ({"async_client": httpx.Client()}, "pass it as client="),
        ({"async_client": httpx.AsyncClient}, "pass AsyncClient()"),
    ]
    for arguments, problem in wrong:
        with pytest.raises(InvalidArgument) as caught:
            flux0.HttpxTransport(**arguments)
        assert problem in str(caught.value)
        assert [caught.value.argument] == list(arguments)


def test_a_client_of_the_other_library_is_refused() -> None:
    def client(name: str) -> Any:
        return type("Client", (), {"__module__": name, "send": None, "build_request": None})()

    transports: Any = {"httpx": flux0.HttpxTransport}
    if len(LIBRARIES) == 2:
        transports["httpx2"] = flux0.Httpx2Transport
    for library, transport in transports.items():
        other = {"httpx": "httpx2", "httpx2": "httpx"}[library]
        with pytest.raises(InvalidArgument, match=f"{other.title()}Transport"):
            transport(client(other))


def test_a_transport_with_one_kind_of_client_says_what_it_serves() -> None:
    with httpx.Client() as client:
        transport = flux0.HttpxTransport(client)
        assert (transport.serves_sync, transport.serves_async) == (True, False)
        with pytest.raises(Flux0Error, match="synchronous client only"):
            anyio.run(transport.send_async, get("http://flux0.invalid"))
    transport = flux0.HttpxTransport(async_client=httpx.AsyncClient())
    assert (transport.serves_sync, transport.serves_async) == (False, True)
    with pytest.raises(Flux0Error, match="asynchronous client only"):
        transport.send(get("http://flux0.invalid"))
    transport = flux0.HttpxTransport()
    assert (transport.serves_sync, transport.serves_async) == (True, True)


def test_a_synchronous_client_serves_asynchronous_calls_in_threads() -> None:
    async def main() -> None:
        async with Flux0(server.url, transport=flux0.HttpxTransport(client)) as both:
            assert list(await both.agents.list_async()) == []

    with (
        ByteServer(answer(b'{"data": []}')) as server,
        httpx.Client(headers={"x-team": "blue"}) as client,
    ):
        anyio.run(main)
        assert server.requests[0].headers["x-team"] == "blue"


def test_a_client_that_is_closed_says_so(over: Over) -> None:
    transport = over.transport(trust_env=False)
    with ByteServer(OK) as server:
        over.fetch(get(server.url), transport)
        with pytest.raises(ClientClosed, match=over.library.__name__):
            over.fetch(get(server.url), transport)
