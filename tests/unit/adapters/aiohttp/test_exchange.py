"""Errors over aiohttp: the class that is raised, and how often the request is sent."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Callable, Coroutine
from functools import partial
from select import select
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver
from attrs import evolve
from yarl import URL

from flux0.adapters.aiohttp.transport import AiohttpTransport
from flux0.domain.errors import (
    ClientClosed,
    ConnectError,
    ConnectionInterrupted,
    ConnectTimeout,
    InvalidArgument,
    ProtocolError,
    ReadTimeout,
    TransportError,
)
from flux0.domain.headers import Headers
from flux0.ports import Timeout
from flux0.testing.contract.byte_server import DEFAULT_TIMEOUT, ByteServer
from flux0.testing.contract.harness import get, post
from flux0.testing.contract.responses import Disconnect, WaitForRelease, Write, http_response
from support.sending import HALF, OK, Pieces, fetch

SHORT = 0.2
LARGE = bytes(1_100_000)  # aiohttp warns about `bytes` of more than 1 MiB.

Run = Callable[[AiohttpTransport], Coroutine[Any, Any, Any]]
Handler = aiohttp.ClientHandlerType
Sent = aiohttp.ClientRequest
Got = aiohttp.ClientResponse


def over_a_session(run: Run, **options: Any) -> Any:
    """Call `run` with a transport over a session that has these options."""

    async def main() -> Any:
        for name in {"connector", "cookie_jar"} & set(options):
            options[name] = options[name]()  # These objects must be created in the event loop.
        async with aiohttp.ClientSession(**options) as session:
            return await run(AiohttpTransport(session))

    return asyncio.run(main())


def failure(url: str, body: bytes | None = b"{}", **options: Any) -> Exception:
    """Return the exception of a request over a session with these options."""
    request = get(url) if body is None else post(url, body)

    async def run(transport: AiohttpTransport) -> Exception:
        try:
            await fetch(transport, request)
        except Exception as error:  # noqa: BLE001 - the tests check its class
            return error
        raise AssertionError("nothing was raised")

    error = over_a_session(run, **options)
    assert isinstance(error, Exception)
    return error


bodies = pytest.mark.parametrize("body", [None, b"{}", LARGE], ids=["get", "small", "large"])


# --- exceptions of user code


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
OF_ITSELF = aiohttp.ClientOSError(104, "raised from itself")
OF_ITSELF.__cause__ = OF_ITSELF
EVENTS = [  # aiohttp treats errors of these trace functions as its own errors.
    "connection_create_start",
    "dns_resolvehost_start",
    "connection_create_end",
    "request_headers_sent",
    "request_chunk_sent",
]
AFTER = ("middleware, after", "request_end")


def raising(where: str, error: Exception) -> dict[str, Any]:
    """Return the options of a session whose user code raises `error`."""

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
        for where in ("middleware, before", "middleware, after")
        for error in ERRORS
    ]
    + [
        (where, error, b"{}")
        for where in ("request_start", "request_end", "cookie jar")
        for error in OF_EACH_KIND
    ]
    + [(where, RuntimeError("a bug"), b"{}") for where in EVENTS[:-1]]
    + [("request_end", ERRORS[0], body) for body in (LARGE, None)],
    ids=lambda given: given if isinstance(given, str) else type(given).__name__,
)
def test_exceptions_of_user_code_are_raised_unchanged(
    where: str, error: Exception, body: bytes | None
) -> None:
    with ByteServer(OK) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        assert failure(url, body, **raising(where, error)) is error
        assert len(server.requests) <= (where in AFTER)


@bodies
@pytest.mark.parametrize(
    "error", [*OF_EACH_KIND, OF_ITSELF], ids=lambda error: type(error).__name__
)
@pytest.mark.parametrize("where", EVENTS)
def test_aiohttp_error_of_a_trace_function_is_a_failure_of_the_request(
    where: str, error: Exception, body: bytes | None
) -> None:
    """The error says whether the request was sent, so a POST is never stored twice."""
    sending = where.startswith("request")
    if where == "request_chunk_sent" and body is None:
        return  # A request without a body has no such event.
    with ByteServer(OK) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        raised = failure(url, body, **raising(where, error))
        assert isinstance(raised, ConnectionInterrupted if sending else ConnectError)
        assert len(server.requests) <= sending


@pytest.mark.parametrize("error", OF_EACH_KIND, ids=lambda error: type(error).__name__)
def test_exception_of_a_trace_for_failures_is_raised_unchanged(error: Exception) -> None:
    with ByteServer((Disconnect(),)) as server:
        assert failure(server.url, **raising("request_exception", error)) is error
        assert len(server.requests) == 1


def test_exception_that_a_middleware_raises_from_an_aiohttp_error_is_unchanged() -> None:
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


def test_failed_request_of_a_middleware_is_not_the_failure_of_the_call() -> None:
    """The middleware sends its own request over the same session."""

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


class Wrapper:
    """An object that contains a session, such as `aiohttp_retry.RetryClient`."""


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (Wrapper(), r"must be a ClientSession, not a \w+.Wrapper"),
        (aiohttp.ClientSession, r"is the class ClientSession: pass ClientSession\(\)"),
        ("http://127.0.0.1", "must be a ClientSession, not a builtins.str"),
    ],
)
def test_wrapper_of_a_session_is_rejected(wrong: Any, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        AiohttpTransport(wrong)


# --- whether the request was sent


class Refusing(aiohttp.TCPConnector):
    """Opens one connection, and rejects further connections."""

    remaining = 1

    async def connect(self, *args: Any, **options: Any) -> Any:
        if not self.remaining:
            raise aiohttp.ClientConnectionError("no more")
        self.remaining -= 1
        return await super().connect(*args, **options)


def test_second_request_of_a_middleware_fails_before_it_is_sent() -> None:
    """The first request was sent, so the call fails with `ConnectionInterrupted`."""

    async def twice(request: Sent, handler: Handler) -> Got:
        first = await handler(request)
        assert await first.read() == b"who is it?"
        return await handler(request)

    steps = (*http_response(b"who is it?", status="401 Unauthorized"), Disconnect())
    with ByteServer(steps, OK) as server:
        error = failure(server.url, middlewares=(twice,), connector=Refusing)
        assert type(error) is ConnectionInterrupted
        assert len(server.requests) == 1


@bodies
def test_request_that_a_middleware_sends_again_has_its_body(body: bytes | None) -> None:
    async def twice(request: Sent, handler: Handler) -> Got:
        (await handler(request)).release()
        return await handler(request)

    request = get if body is None else partial(post, body=body)
    with ByteServer(http_response(b"no", status="401 Unauthorized"), OK) as server:
        over_a_session(
            lambda transport: fetch(transport, request(server.url)), middlewares=(twice,)
        )
        same = [received.body for received in server.requests] == [body or b""] * 2
    assert same


def test_middleware_may_replace_the_body() -> None:
    """If the connection is refused, the error indicates that nothing was sent."""

    async def replace(request: Sent, handler: Handler) -> Got:
        await request.update_body(b"signed")
        return await handler(request)

    async def run(transport: AiohttpTransport) -> None:
        assert await fetch(transport, post(server.url)) == b"ok"
        with pytest.raises(ConnectError):
            await fetch(transport, post("http://127.0.0.1:1"))

    with ByteServer(OK) as server:
        over_a_session(run, middlewares=(replace,))
        assert [received.body for received in server.requests] == [b"signed"]


def test_wait_for_100_continue_is_limited() -> None:
    """aiohttp itself would wait forever."""

    async def run(transport: AiohttpTransport) -> None:
        with pytest.raises(ReadTimeout):
            await fetch(transport, post(server.url, timeout=Timeout(read=SHORT)))

    with ByteServer(OK) as server:
        over_a_session(run, headers={"Expect": "100-continue"})
        assert server.requests == ()


# --- pooled connections


LATE = Write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")


@bodies
@pytest.mark.parametrize(
    "then",
    [(WaitForRelease(), LATE, WaitForRelease()), (WaitForRelease(), Disconnect())],
    ids=["response", "end"],
)
def test_connection_with_unread_bytes_is_not_reused(body: bytes | None, then: Any) -> None:
    """The bytes arrive while the event loop is blocked, so it has not read them."""

    async def run(transport: Any) -> None:
        assert await fetch(transport, post(server.url)) == b"first"
        (((protocol, _),),) = transport._session.connector._conns.values()
        server.release()
        # Block the event loop, as in a long computation.
        assert select([protocol.transport.get_extra_info("socket")], [], [], DEFAULT_TIMEOUT)[0]
        second = get(server.url) if body is None else post(server.url, body)
        assert await fetch(transport, second) == b"second"
        assert await fetch(transport, post(server.url)) == b"third"

    first = (*http_response(b"first"), *then)
    with ByteServer(first, http_response(b"second"), http_response(b"third")) as server:
        over_a_session(run)
        assert (len(server.requests), server.connections) == (3, 2)


def test_closing_the_session_of_the_user_ends_the_wait_for_a_connection() -> None:
    async def run(transport: Any) -> None:
        response = await transport.send_async(get(server.url, stream=True))
        waiting = asyncio.ensure_future(transport.send_async(get(server.url)))
        for _ in range(10):
            await asyncio.sleep(0)
        await transport._session.close()
        with pytest.raises(ClientClosed, match="the aiohttp session is closed"):
            await waiting
        await response.body.close_async()

    with ByteServer(HALF) as server:
        over_a_session(run, connector=lambda: aiohttp.TCPConnector(limit=1))
        assert len(server.requests) == 1


def test_slow_resolver_is_a_connect_timeout() -> None:
    class Slow(AbstractResolver):
        async def resolve(self, *_: Any, **__: Any) -> Any:
            await asyncio.sleep(60)

        async def close(self) -> None: ...

    async def run(transport: AiohttpTransport) -> None:
        with pytest.raises(ConnectTimeout):
            await transport.send_async(get("http://flux0.invalid", timeout=Timeout(connect=SHORT)))

    over_a_session(run, connector=lambda: aiohttp.TCPConnector(resolver=Slow()))


def test_cookies_of_the_session_and_of_the_request_are_sent_together() -> None:
    """A cookie of the request replaces only the session's cookie with the same name."""

    async def run(transport: AiohttpTransport) -> None:
        # A cookie jar of aiohttp has no cookies for IP addresses.
        url = server.url.replace("127.0.0.1", "localhost")
        assert await fetch(transport, get(url, ("cookie", "both=2; own=4"))) == b"ok"

    with ByteServer(OK) as server:
        over_a_session(run, cookies={"both": "1", "session": "3"})
        assert server.requests[0].headers["cookie"] == "both=2; session=3; own=4"


# --- invalid responses


@pytest.mark.parametrize("coding", ["xchunked", "chunked, x", "gzip"])
def test_unknown_transfer_coding_is_a_protocol_error(coding: str) -> None:
    """aiohttp would report the end of such a body when the connection ends."""

    async def run(transport: AiohttpTransport) -> None:
        with pytest.raises(ProtocolError, match="transfer-encoding"):
            await transport.send_async(get(server.url, stream=True))

    start = f"HTTP/1.1 200 OK\r\nTransfer-Encoding: {coding}\r\n\r\n".encode()
    with ByteServer((Write(start + b"data: 1"), Disconnect())) as server:
        over_a_session(run)


def test_stream_after_a_head_with_lf_line_ends_is_not_stored() -> None:
    """The memory usage does not depend on the stream's length."""
    piece = bytes(1_000_000)

    async def run(transport: AiohttpTransport) -> int:
        response = await transport.send_async(get(server.url, stream=True))
        tracemalloc.start()
        size = sum([len(piece) async for piece in Pieces(response.body)])
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
        return size

    start = Write(b"HTTP/1.1 200 OK\nContent-Type: text/event-stream\n\n")
    with ByteServer((start, *(Write(piece) for _ in range(40)), Disconnect())) as server:
        try:
            assert over_a_session(run) == 40 * len(piece)
        finally:
            tracemalloc.stop()


# --- secrets


def shown_by(error: BaseException | None) -> str:
    """Return the messages and reprs of an error and of its causes."""
    if error is None:
        return ""
    return f"{error!r} {error} {error.args!r} {shown_by(error.__cause__ or error.__context__)}"


SECRET_HEADERS = (("authorization", "Bearer hush"), ("cookie", "hush=hush"))
SECRET = b"Set-Cookie: sid=hush\r\n"
MALFORMED = [
    b"HTTP/1.1 200 OK\r\n" + SECRET + b"broken\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + SECRET.replace(b"hush", b"hush\x00hush") + b"\r\n",
    b"HTTP/1.1 200 OK\r\n" + SECRET.replace(b"hush", b"hush" * 20_000) + b"\r\n",
    b"HTTP/1.1 200 OK\r\n" + SECRET,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nhush\x00: hush\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n" + SECRET + b"\r\nhush",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhush\r\n",
    b"hush hush\r\n" + SECRET + b"\r\n",
    b"",
]


@pytest.mark.usefixtures("little_garbage")
@pytest.mark.parametrize("own", [True, False], ids=["own session", "user session"])
@pytest.mark.parametrize("data", MALFORMED, ids=range(len(MALFORMED)))
def test_errors_contain_no_secrets(
    data: bytes, caplog: pytest.LogCaptureFixture, *, own: bool
) -> None:
    async def run(transport: AiohttpTransport) -> None:
        transport = AiohttpTransport() if own else transport
        with pytest.raises(TransportError) as caught:
            await fetch(transport, get(server.url, *SECRET_HEADERS))
        texts.append(shown_by(caught.value))
        await transport.close_async()

    texts: list[str] = []
    with ByteServer((Write(data), Disconnect())) as server:
        over_a_session(run)
        assert len(server.requests) == 1
    gc.collect()
    shown = texts[0] if not data.startswith(b"hush") else texts[0].partition("starts with")[0]
    assert "hush" not in f"{shown} {caplog.text}"


def test_errors_of_a_proxy_contain_no_secrets() -> None:
    async def run(transport: AiohttpTransport) -> None:
        request = evolve(get("https://flux0.invalid"), headers=Headers(SECRET_HEADERS))
        with pytest.raises(ConnectError) as caught:
            await fetch(transport, request)
        assert "hush" not in shown_by(caught.value)

    for steps in (http_response(b"", status="407 No", headers=[("X", "hush")]), (Disconnect(),)):
        with ByteServer(steps) as server:
            over_a_session(run, proxy=server.url.replace("//", "//ada:hush@"))
    over_a_session(run, proxy="http://ada:hush@127.0.0.1:1")
