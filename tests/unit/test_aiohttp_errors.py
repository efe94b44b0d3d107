"""What goes wrong over aiohttp: whose error it is, and how often the server got the request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver
from attrs import evolve
from yarl import URL

from flux0.adapters.aiohttp import AiohttpTransport
from flux0.domain.errors import (
    ConnectError,
    ConnectionInterrupted,
    ConnectTimeout,
    Flux0Error,
    InvalidArgument,
    PoolTimeout,
    ProtocolError,
    ReadTimeout,
    TransportError,
)
from flux0.domain.headers import Headers
from flux0.ports import AsyncByteStream, Request, Response, Timeout
from flux0.testing.contract.answers import Answer, Disconnect, Hold, Reset, Write, answer
from flux0.testing.contract.byte_server import ByteServer
from support.proxy import Proxy

OK = answer(b"ok")
SHORT = 0.2
SMALL, LARGE = b"{}", bytes(1_000_000)

Run = Callable[[aiohttp.ClientSession], Coroutine[Any, Any, Any]]


def request(url: str, body: bytes | None = SMALL, **options: Any) -> Request:
    return Request("GET" if body is None else "POST", url, Headers(), body, **options)


async def read(body: AsyncByteStream) -> bytes:
    return b"".join([piece async for piece in body])


async def fetch(transport: AiohttpTransport, sent: Request) -> bytes:
    return await read((await transport.send_async(sent)).body)


def over_a_session(run: Run, **options: Any) -> Any:
    """Run `run` with a session that has these options."""

    async def main() -> Any:
        connector = options.pop("connector", aiohttp.TCPConnector)()
        async with aiohttp.ClientSession(connector=connector, **options) as session:
            return await run(session)

    return asyncio.run(main())


def failure(url: str, body: bytes | None = SMALL, **options: Any) -> Exception:
    """Return what a request over a session with these options raises."""

    async def run(session: aiohttp.ClientSession) -> Exception:
        try:
            await fetch(AiohttpTransport(session), request(url, body))
        except Exception as error:  # noqa: BLE001 - which it is, is for the test to say
            return error
        raise AssertionError("nothing was raised")

    error = over_a_session(run, **options)
    assert isinstance(error, Exception)
    return error


bodies = pytest.mark.parametrize("body", [None, SMALL, LARGE], ids=["get", "small", "large"])
errors = pytest.mark.parametrize(
    "error",
    [
        OSError("disk full"),
        ConnectionResetError("redis is down"),
        TimeoutError("db"),
        asyncio.TimeoutError("db"),
        UnicodeError("no text"),
        RuntimeError("a bug"),
        ValueError("a bug"),
        aiohttp.ClientOSError(104, "of another call"),
        aiohttp.ServerDisconnectedError("of another call"),
        aiohttp.ServerTimeoutError("of another call"),
        aiohttp.InvalidURL("of another call"),
        aiohttp.ClientPayloadError("of another call"),
    ],
    ids=lambda error: type(error).__name__,
)


# --- what the user's code raises


@errors
@bodies
def test_what_a_middleware_raises_before_sending(error: Exception, body: bytes | None) -> None:
    async def fail(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        raise error

    with ByteServer(OK) as server:
        assert failure(server.url, body, middlewares=(fail,)) is error
        assert server.connections == 0


@errors
@bodies
def test_what_a_middleware_raises_after_sending(error: Exception, body: bytes | None) -> None:
    async def fail(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        (await handler(request)).release()
        raise error

    with ByteServer(OK) as server:
        assert failure(server.url, body, middlewares=(fail,)) is error
        assert len(server.requests) == 1


@bodies
def test_what_a_middleware_makes_of_an_error_of_aiohttp(body: bytes | None) -> None:
    mine = OSError("mine")

    async def convert(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        try:
            return await handler(request)
        except aiohttp.ServerDisconnectedError as error:
            raise mine from error

    with ByteServer((Disconnect(),)) as server:
        assert failure(server.url, body, middlewares=(convert,)) is mine
        assert isinstance(mine.__cause__, aiohttp.ServerDisconnectedError)
        assert len(server.requests) == 1


def test_a_call_that_a_middleware_makes_by_itself() -> None:
    """Over the same session; its failure is the user's, and does not count for the request."""

    async def call(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        await request.session.get(tokens, middlewares=())
        return await handler(request)

    with ByteServer((Disconnect(),)) as other, ByteServer(OK) as server:
        tokens = other.url
        error = failure(server.url, middlewares=(call,))
        assert isinstance(error, aiohttp.ServerDisconnectedError)
        assert server.connections == 0
        tokens = "http://127.0.0.1:1"
        assert isinstance(failure(server.url, middlewares=(call,)), aiohttp.ClientConnectorError)


def test_a_call_that_a_middleware_makes_says_nothing_of_the_request() -> None:
    async def call(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        async with request.session.get(tokens, middlewares=()) as token:
            await token.read()
        return await handler(request)

    with ByteServer(OK) as other:
        tokens = other.url
        assert type(failure("http://127.0.0.1:1", middlewares=(call,))) is ConnectError


EVENTS = [
    "request_start",
    "connection_create_start",
    "dns_resolvehost_start",
    "connection_create_end",
    "request_headers_sent",
    "request_chunk_sent",
    "request_end",
]


@pytest.mark.parametrize(
    ("event", "body"),
    [(event, body) for event in EVENTS for body in (SMALL, LARGE)]
    + [(event, None) for event in EVENTS if event != "request_chunk_sent"],
)
@errors
def test_what_a_trace_raises(event: str, error: Exception, body: bytes | None) -> None:
    async def fail(*_: object) -> None:
        raise error

    trace = aiohttp.TraceConfig()
    getattr(trace, f"on_{event}").append(fail)
    with ByteServer(OK) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        assert failure(url, body, trace_configs=[trace]) is error
        assert len(server.requests) <= (event == "request_end")


@errors
def test_what_a_trace_of_a_pooled_connection_raises(error: Exception) -> None:
    async def fail(*_: object) -> None:
        raise error

    async def run(session: aiohttp.ClientSession) -> None:
        transport = AiohttpTransport(session)
        assert await fetch(transport, request(server.url)) == b"ok"
        with pytest.raises(type(error)) as caught:
            await fetch(transport, request(server.url))
        assert caught.value is error

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(fail)
    with ByteServer(OK) as server:
        over_a_session(run, trace_configs=[trace])
        assert len(server.requests) == 1


@errors
def test_what_a_trace_of_failures_raises(error: Exception) -> None:
    async def fail(*_: object) -> None:
        raise error

    trace = aiohttp.TraceConfig()
    trace.on_request_exception.append(fail)
    with ByteServer((Disconnect(),)) as server:
        assert failure(server.url, trace_configs=[trace]) is error
        assert len(server.requests) == 1


@errors
def test_what_a_cookie_jar_raises(error: Exception) -> None:
    class Jar(aiohttp.DummyCookieJar):
        def filter_cookies(self, request_url: URL) -> Any:
            raise error

    async def run(session: aiohttp.ClientSession) -> None:
        async with aiohttp.ClientSession(cookie_jar=Jar()) as own:
            with pytest.raises(type(error)) as caught:
                await fetch(AiohttpTransport(own), request(server.url))
            assert caught.value is error

    with ByteServer(OK) as server:
        over_a_session(run)
        assert server.connections == 0


def test_traces_are_told_of_the_users_own_requests_as_before() -> None:
    told: list[Any] = []

    async def note(_session: object, context: Any, _params: object) -> None:
        told.append(context.trace_request_ctx)

    async def run(session: aiohttp.ClientSession) -> None:
        AiohttpTransport(session)
        transport = AiohttpTransport(session)
        await fetch(transport, request(server.url))
        async with session.get(server.url, trace_request_ctx="mine") as response:
            assert await response.read() == b"ok"

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(note)
    with ByteServer(OK) as server:
        over_a_session(run, trace_configs=[trace])
    assert told == [None, "mine"]


class Wrapper:
    """Sends by itself, as `aiohttp_retry.RetryClient` does."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session


def test_what_only_wraps_a_session_is_refused() -> None:
    async def run(session: aiohttp.ClientSession) -> None:
        wrong: Any
        for wrong in (Wrapper(session), aiohttp.ClientSession, "http://127.0.0.1"):
            with pytest.raises(InvalidArgument, match="pass "):
                AiohttpTransport(wrong)

    over_a_session(run)


# --- whether the request was sent


def test_a_middleware_that_sends_twice_has_the_last_word() -> None:
    """As those do that answer a challenge; afterwards it is not known that nothing was sent."""

    async def twice(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        first = await handler(request)
        assert await first.read() == b"who is it?"
        return await handler(request)

    steps = (*answer(b"who is it?", status="401 Unauthorized"), Disconnect())
    with ByteServer(steps, OK) as server:
        error = failure(server.url, middlewares=(twice,), connector=Refusing)
        assert type(error) is ConnectionInterrupted
        assert len(server.requests) == 1


class Refusing(aiohttp.TCPConnector):
    """Makes one connection, and no other."""

    left = 1

    async def connect(self, *args: Any, **options: Any) -> Any:
        if not self.left:
            raise aiohttp.ClientConnectionError("no more")
        self.left -= 1
        return await super().connect(*args, **options)


def test_a_body_that_a_middleware_has_replaced_may_have_been_sent() -> None:
    async def replace(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        await request.update_body(b"signed")
        return await handler(request)

    async def run(session: aiohttp.ClientSession) -> None:
        transport = AiohttpTransport(session)
        assert await fetch(transport, request(server.url)) == b"ok"
        with pytest.raises(TransportError) as caught:
            await fetch(transport, request("http://127.0.0.1:1"))
        assert not isinstance(caught.value, ConnectError)

    with ByteServer(OK) as server:
        over_a_session(run, middlewares=(replace,))
        assert [received.body for received in server.requests] == [b"signed"]


def test_expecting_a_100_continue_is_refused() -> None:
    """aiohttp would wait for it without end."""

    async def run(session: aiohttp.ClientSession) -> None:
        with pytest.raises(InvalidArgument, match="expect"):
            await fetch(AiohttpTransport(session), request(server.url))
        given = evolve(request(server.url), headers=Headers((("expect", "100-continue"),)))
        with pytest.raises(InvalidArgument, match="expect"):
            await fetch(AiohttpTransport(), given)

    with ByteServer(OK) as server:
        over_a_session(run, headers={"Expect": "100-continue"})
        assert server.requests == ()


# --- proxies


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> Callable[[Proxy], None]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return lambda proxy: monkeypatch.setenv("http_proxy", proxy.url)


def fetch_over_its_own(url: str, body: bytes | None = SMALL) -> bytes:
    async def main() -> bytes:
        transport = AiohttpTransport()
        try:
            return await fetch(transport, request(url, body))
        finally:
            await transport.close_async()

    return asyncio.run(main())


def test_a_session_of_the_users_looks_at_no_environment(proxied: Callable[[Proxy], None]) -> None:
    async def run(session: aiohttp.ClientSession) -> None:
        assert await fetch(AiohttpTransport(session), request(server.url)) == b"ok"

    with ByteServer(OK) as server, Proxy() as proxy:
        proxied(proxy)
        over_a_session(run)
        assert proxy.requests == ()


@pytest.mark.parametrize("breaking", [Disconnect(), Reset()], ids=["closed", "reset"])
def test_a_request_through_a_proxy_is_sent_once(
    proxied: Callable[[Proxy], None], breaking: Any
) -> None:
    with ByteServer((breaking,)) as server, Proxy() as proxy:
        proxied(proxy)
        with pytest.raises(ConnectionInterrupted):
            fetch_over_its_own(server.url)
        assert len(server.requests) == 1


# --- connections from the pool


LATE = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"


@bodies
@pytest.mark.parametrize("blocked", [False, True], ids=["seen", "unseen"])
def test_an_answer_to_nothing_is_not_taken_for_the_next(
    body: bytes | None, *, blocked: bool
) -> None:
    async def run(session: aiohttp.ClientSession) -> None:
        transport = AiohttpTransport(session)
        assert await fetch(transport, request(server.url)) == b"first"
        server.release()
        if blocked:  # Nor where the event loop had no time to look at it.
            time.sleep(SHORT)
        else:
            await asyncio.sleep(SHORT)
        assert await fetch(transport, request(server.url, body)) == b"second"
        assert await fetch(transport, request(server.url)) == b"third"

    first = (*answer(b"first"), Hold(), Write(LATE), Hold())
    with ByteServer(first, answer(b"second"), answer(b"third")) as server:
        over_a_session(run)
        assert (len(server.requests), server.connections) == (3, 2)


@bodies
def test_a_connection_that_has_ended_unseen_is_not_used(body: bytes | None) -> None:
    async def run(session: aiohttp.ClientSession) -> None:
        transport = AiohttpTransport(session)
        assert await fetch(transport, request(server.url)) == b"ok"
        time.sleep(SHORT)
        assert await fetch(transport, request(server.url, body)) == b"ok"

    with ByteServer((*OK, Disconnect()), OK) as server:
        over_a_session(run)
        assert len(server.requests) == 2


# --- timeouts


def test_which_timeout_it_was() -> None:
    async def run(session: aiohttp.ClientSession) -> None:
        transport = AiohttpTransport(session)
        held = await transport.send_async(request(server.url, stream=True))
        with pytest.raises(PoolTimeout):
            await transport.send_async(request(server.url, timeout=Timeout(pool=SHORT)))
        await held.body.close_async()
        with pytest.raises(ReadTimeout):
            await transport.send_async(request(server.url, timeout=Timeout(read=SHORT)))

    steps: Answer = (*answer(b"first", Hold(), framing="chunked"),)
    with ByteServer(steps, (Hold(),)) as server:
        over_a_session(run, connector=lambda: aiohttp.TCPConnector(limit=1))


def test_a_resolver_that_takes_too_long() -> None:
    class Slow(AbstractResolver):
        async def resolve(self, *_: Any, **__: Any) -> Any:
            await asyncio.sleep(60)

        async def close(self) -> None:
            pass

    async def run(session: aiohttp.ClientSession) -> None:
        sent = request("http://flux0.invalid", timeout=Timeout(pool=SHORT))
        with pytest.raises(ConnectTimeout):
            await AiohttpTransport(session).send_async(sent)

    over_a_session(run, connector=lambda: aiohttp.TCPConnector(resolver=Slow()))


# --- broken answers


def stream_of(steps: Answer) -> tuple[bytes, Flux0Error]:
    """Return what a stream hands out, and what ends it."""

    async def run(session: aiohttp.ClientSession) -> tuple[bytes, Flux0Error]:
        sent = request(server.url, stream=True)
        response: Response[AsyncByteStream] = await AiohttpTransport(session).send_async(sent)
        pieces: list[bytes] = []
        try:
            async for piece in response.body:
                pieces.append(piece)  # noqa: PERF401 - what came before the failure counts
        except TransportError as error:
            return b"".join(pieces), error
        raise AssertionError("nothing was raised")

    with ByteServer(steps) as server:
        result: tuple[bytes, Flux0Error] = over_a_session(run)
    return result


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"


@pytest.mark.parametrize("before", [b"", INTERIM], ids=["alone", "after-interim"])
@pytest.mark.parametrize("cut", range(-4, 1))
def test_events_before_a_broken_chunk_in_the_same_segment(before: bytes, cut: int) -> None:
    split = len(before) + len(HEAD) + cut
    wire = before + HEAD + b"5\r\nfirst\r\nxyz\r\n"
    steps = (Write(wire),) if not cut else (Write(wire[:split]), Write(wire[split:]))
    data, error = stream_of((*steps, Hold()))
    assert data == b"first"
    assert type(error) is ProtocolError
