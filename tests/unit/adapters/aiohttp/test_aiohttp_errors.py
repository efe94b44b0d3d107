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

from flux0.adapters.aiohttp.transport import AiohttpTransport
from flux0.domain.errors import (
    ConnectError,
    ConnectionInterrupted,
    ConnectTimeout,
    InvalidArgument,
    ProtocolError,
    TransportError,
)
from flux0.domain.headers import Headers
from flux0.ports import Timeout
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import Disconnect, WaitForRelease, Write, http_response
from support.sending import OK, fetch, get, post

SHORT = 0.2
LARGE = bytes(1_000_000)

Run = Callable[[AiohttpTransport], Coroutine[Any, Any, Any]]
Handler = aiohttp.ClientHandlerType
Sent = aiohttp.ClientRequest
Got = aiohttp.ClientResponse


def over_a_session(run: Run, **options: Any) -> Any:
    """Run `run` with a transport over a session that has these options."""

    async def main() -> Any:
        for name in {"connector", "cookie_jar"} & set(options):
            options[name] = options[name]()  # Which needs the loop.
        async with aiohttp.ClientSession(**options) as session:
            return await run(AiohttpTransport(session))

    return asyncio.run(main())


def failure(url: str, body: bytes | None = b"{}", **options: Any) -> Exception:
    """Return what a request over a session with these options raises."""
    request = get(url) if body is None else post(url, body)

    async def run(transport: AiohttpTransport) -> Exception:
        try:
            await fetch(transport, request)
        except Exception as error:  # noqa: BLE001 - which it is, is for the test to say
            return error
        raise AssertionError("nothing was raised")

    error = over_a_session(run, **options)
    assert isinstance(error, Exception)
    return error


bodies = pytest.mark.parametrize("body", [None, b"{}", LARGE], ids=["get", "small", "large"])


# --- what the user's code raises


ERRORS = [
    OSError("disk full"),
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
]
OF_EACH_KIND = [ERRORS[0], ERRORS[6], ERRORS[9]]
EVENTS = [
    "request_start",
    "connection_create_start",
    "dns_resolvehost_start",
    "connection_create_end",
    "request_headers_sent",
    "request_chunk_sent",
    "request_end",
]
AFTER = ("middleware, after", "request_end")


def raising(where: str, error: Exception) -> dict[str, Any]:
    """Return options of a session with code of the user's that raises `error`."""

    async def fail(*_: object) -> Any:
        raise error

    async def fail_after(request: Sent, handler: Handler) -> Got:
        (await handler(request)).release()
        raise error

    class Jar(aiohttp.DummyCookieJar):
        def filter_cookies(self, request_url: URL) -> Any:
            raise error

    if where == "cookie jar":
        return {"cookie_jar": Jar}
    if where.startswith("middleware"):
        return {"middlewares": (fail_after if where.endswith("after") else fail,)}
    trace = aiohttp.TraceConfig()
    getattr(trace, f"on_{where}").append(fail)
    return {"trace_configs": [trace]}


@pytest.mark.parametrize(
    ("where", "error", "body"),
    [
        (where, error, b"{}")
        for where in ("middleware, before", "middleware, after", "connection_create_end")
        for error in ERRORS
    ]
    + [(where, error, b"{}") for where in (*EVENTS, "cookie jar") for error in OF_EACH_KIND]
    + [(where, ERRORS[0], LARGE) for where in EVENTS[4:]]
    + [(where, ERRORS[0], None) for where in ("request_headers_sent", "request_end")],
    ids=lambda given: given if isinstance(given, str) else type(given).__name__,
)
def test_what_the_users_code_raises_is_raised_as_it_is(
    where: str, error: Exception, body: bytes | None
) -> None:
    with ByteServer(OK) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        assert failure(url, body, **raising(where, error)) is error
        assert len(server.requests) <= (where in AFTER)


@pytest.mark.parametrize("error", OF_EACH_KIND, ids=lambda error: type(error).__name__)
def test_what_a_trace_of_a_pooled_connection_raises(error: Exception) -> None:
    async def run(transport: AiohttpTransport) -> None:
        assert await fetch(transport, post(server.url)) == b"ok"
        with pytest.raises(type(error)) as caught:
            await fetch(transport, post(server.url))
        assert caught.value is error

    with ByteServer(OK) as server:
        over_a_session(run, **raising("connection_reuseconn", error))
        assert len(server.requests) == 1


@pytest.mark.parametrize("error", OF_EACH_KIND, ids=lambda error: type(error).__name__)
def test_what_a_trace_of_failures_raises(error: Exception) -> None:
    with ByteServer((Disconnect(),)) as server:
        assert failure(server.url, **raising("request_exception", error)) is error
        assert len(server.requests) == 1


def test_what_a_middleware_makes_of_an_error_of_aiohttp() -> None:
    mine = OSError("mine")

    async def convert(request: Sent, handler: Handler) -> Got:
        try:
            return await handler(request)
        except aiohttp.ServerDisconnectedError as error:
            raise mine from error

    with ByteServer((Disconnect(),)) as server:
        assert failure(server.url, middlewares=(convert,)) is mine
        assert isinstance(mine.__cause__, aiohttp.ServerDisconnectedError)
        assert len(server.requests) == 1


def test_a_call_that_a_middleware_makes_by_itself() -> None:
    """Over the same session; its failure is the user's, and does not count for the request."""

    async def call(request: Sent, handler: Handler) -> Got:
        async with request.session.get(tokens, middlewares=()) as token:
            await token.read()
        return await handler(request)

    nobody = "http://127.0.0.1:1"
    with ByteServer((Disconnect(),)) as down, ByteServer(OK) as up, ByteServer(OK) as server:
        tokens = down.url
        error = failure(server.url, middlewares=(call,))
        assert isinstance(error, aiohttp.ServerDisconnectedError)
        tokens = nobody
        assert isinstance(failure(server.url, middlewares=(call,)), aiohttp.ClientConnectorError)
        tokens = up.url
        assert type(failure(nobody, middlewares=(call,))) is ConnectError
        assert server.connections == 0


def test_traces_are_told_of_the_users_own_requests_as_before() -> None:
    told: list[Any] = []

    async def note(_session: object, context: Any, _params: object) -> None:
        told.append(context.trace_request_ctx)

    async def run(url: str) -> None:
        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(note)
        async with aiohttp.ClientSession(trace_configs=[trace]) as session:
            AiohttpTransport(session)
            await fetch(AiohttpTransport(session), post(url))
            async with session.get(url, trace_request_ctx="mine") as response:
                assert await response.read() == b"ok"

    with ByteServer(OK) as server:
        asyncio.run(run(server.url))
    assert told == [None, "mine"]


class Wrapper:
    """Sends by itself, as `aiohttp_retry.RetryClient` does."""


@pytest.mark.parametrize("wrong", [Wrapper(), aiohttp.ClientSession, "http://127.0.0.1"])
def test_what_only_wraps_a_session_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidArgument, match="pass "):
        AiohttpTransport(wrong)


# --- whether the request was sent


class Refusing(aiohttp.TCPConnector):
    """Makes one connection, and no other."""

    left = 1

    async def connect(self, *args: Any, **options: Any) -> Any:
        if not self.left:
            raise aiohttp.ClientConnectionError("no more")
        self.left -= 1
        return await super().connect(*args, **options)


def test_a_middleware_that_sends_twice_has_the_last_word() -> None:
    """As those do that answer a challenge; afterwards it is not known that nothing was sent."""

    async def twice(request: Sent, handler: Handler) -> Got:
        first = await handler(request)
        assert await first.read() == b"who is it?"
        return await handler(request)

    steps = (*http_response(b"who is it?", status="401 Unauthorized"), Disconnect())
    with ByteServer(steps, OK) as server:
        error = failure(server.url, middlewares=(twice,), connector=Refusing)
        assert type(error) is ConnectionInterrupted
        assert len(server.requests) == 1


def test_a_body_that_a_middleware_has_replaced_may_have_been_sent() -> None:
    async def replace(request: Sent, handler: Handler) -> Got:
        await request.update_body(b"signed")
        return await handler(request)

    async def run(transport: AiohttpTransport) -> None:
        assert await fetch(transport, post(server.url)) == b"ok"
        with pytest.raises(TransportError) as caught:
            await fetch(transport, post("http://127.0.0.1:1"))
        assert not isinstance(caught.value, ConnectError)

    with ByteServer(OK) as server:
        over_a_session(run, middlewares=(replace,))
        assert [received.body for received in server.requests] == [b"signed"]


def test_expecting_a_100_continue_is_refused() -> None:
    """aiohttp would wait for it without end."""

    async def run(transport: AiohttpTransport) -> None:
        with pytest.raises(InvalidArgument, match="expect"):
            await fetch(transport, post(server.url))
        given = evolve(post(server.url), headers=Headers((("expect", "100-continue"),)))
        with pytest.raises(InvalidArgument, match="expect"):
            await fetch(AiohttpTransport(), given)

    with ByteServer(OK) as server:
        over_a_session(run, headers={"Expect": "100-continue"})
        assert server.requests == ()


# --- connections from the pool


LATE = Write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")


@bodies
@pytest.mark.parametrize(
    "then",
    [(WaitForRelease(), LATE, WaitForRelease()), (Disconnect(),)],
    ids=["an answer", "the end"],
)
def test_what_came_unseen_is_not_taken_for_the_next_answer(body: bytes | None, then: Any) -> None:
    """The event loop had no time to look at the connection."""

    async def run(transport: AiohttpTransport) -> None:
        assert await fetch(transport, post(server.url)) == b"first"
        server.release()
        time.sleep(SHORT)  # As code does that computes something: what comes meanwhile is unseen.
        second = get(server.url) if body is None else post(server.url, body)
        assert await fetch(transport, second) == b"second"
        assert await fetch(transport, post(server.url)) == b"third"

    first = (*http_response(b"first"), *then)
    with ByteServer(first, http_response(b"second"), http_response(b"third")) as server:
        over_a_session(run)
        assert (len(server.requests), server.connections) == (3, 2)


def test_a_resolver_that_takes_too_long() -> None:
    class Slow(AbstractResolver):
        async def resolve(self, *_: Any, **__: Any) -> Any:
            await asyncio.sleep(60)

        async def close(self) -> None: ...

    async def run(transport: AiohttpTransport) -> None:
        with pytest.raises(ConnectTimeout):
            await transport.send_async(get("http://flux0.invalid", timeout=Timeout(pool=SHORT)))

    over_a_session(run, connector=lambda: aiohttp.TCPConnector(resolver=Slow()))


# --- broken answers


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"


@pytest.mark.parametrize("before", [b"", INTERIM], ids=["alone", "after-interim"])
@pytest.mark.parametrize("cut", range(-4, 1))
def test_events_before_a_broken_chunk_in_the_same_segment(before: bytes, cut: int) -> None:
    async def run(transport: AiohttpTransport) -> None:
        response = await transport.send_async(get(server.url, stream=True))
        pieces = aiter(response.body)
        assert await anext(pieces) == b"first"
        with pytest.raises(ProtocolError):
            await anext(pieces)

    split = len(before) + len(HEAD) + cut
    wire = before + HEAD + b"5\r\nfirst\r\nxyz\r\n"
    steps = (Write(wire),) if not cut else (Write(wire[:split]), Write(wire[split:]))
    with ByteServer((*steps, WaitForRelease())) as server:
        over_a_session(run)
