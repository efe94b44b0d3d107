"""The contract for the transport over httpx; connections and bodies of httpx and httpx2."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, ClassVar

import httpcore
import httpx
import pytest
from attrs import evolve

from flux0 import HttpxTransport
from flux0.domain.errors import (
    ClientClosed,
    ConnectError,
    ConnectionInterrupted,
    ProtocolError,
)
from flux0.ports import Interrupt
from flux0.testing.contract import AsyncTransportContract, TransportContract
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.harness import get, post
from flux0.testing.contract.responses import (
    Disconnect,
    Receive,
    WaitForRelease,
    Write,
    head,
    http_response,
    to_bytes,
)
from support import sending
from support.modes import call_blocking
from support.over_httpx import FAMILY, FAMILY_SYNC, HttpxContract, OverHttpx
from support.secured import Secured
from support.sending import HALF, OK, Pieces, as_async, fetch, fetch_sync, over
from support.transports import WithoutLongWaits


class TestHttpxTransport(WithoutLongWaits, HttpxContract, TransportContract):
    transport: ClassVar[type[HttpxTransport]] = HttpxTransport


class TestAsyncHttpxTransport(WithoutLongWaits, HttpxContract, AsyncTransportContract):
    backends: ClassVar[tuple[str, ...]] = ("asyncio",)
    transport: ClassVar[type[HttpxTransport]] = HttpxTransport


class TestTrioHttpxTransport(WithoutLongWaits, HttpxContract, AsyncTransportContract):
    backends: ClassVar[tuple[str, ...]] = ("trio",)
    transport: ClassVar[type[HttpxTransport]] = HttpxTransport


# --- connections


@over(*FAMILY)
async def test_tracked_connections_are_used(way: OverHttpx) -> None:
    """`track_transport` sets a private attribute, so a new library version may ignore it."""
    seen: list[Any] = []

    def see(response: Any) -> None:
        seen.append(response.extensions["network_stream"])

    client = way.client(event_hooks={"response": [way.act(see)]})
    with ByteServer(OK) as server:
        async with way.closing(client) as transport:
            await way.fetch(transport, get(server.url))
            (stream,) = seen
            assert stream.get_extra_info("server_addr") == (server.host, server.port)
            assert stream.get_extra_info("unknown") is None
    if way.mode != "trio":  # The sockets of trio raise ValueError.
        assert stream.get_extra_info("is_readable"), "the connection is closed"
    assert type(stream).__module__ in (
        "flux0.adapters.httpx.async_streams",
        "flux0.adapters.httpx.sockets",
    )


@over(*FAMILY)
async def test_users_client_never_returns_surplus_bytes_as_a_response(
    way: OverHttpx, secured: Secured
) -> None:
    surplus = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nothers"
    # The long body needs several TLS records. The surplus bytes are in the last record.
    bodies = (b"first", b"x" * 40_000, b"last")
    answers = [http_response(body, framing="chunked") for body in bodies]
    for tls in (None, secured.server):
        mixed = [(Write(to_bytes(each) + surplus), WaitForRelease()) for each in answers[:2]]
        with ByteServer(*mixed, answers[2], tls=tls) as server:
            async with way.closing(way.client(verify=secured.trusting())) as transport:
                for body in bodies:
                    same = await way.fetch(transport, get(server.url)) == (200, body)
                    assert same
            assert server.connections == 3
    with ByteServer((Write(to_bytes(OK) + b"\r\n"), WaitForRelease()), OK) as server:
        async with way.closing(way.client()) as transport:
            for _ in range(2):
                assert await way.fetch(transport, get(server.url)) == (200, b"ok")
        assert server.connections == 2


@over(*FAMILY)
async def test_response_with_two_ends_is_a_protocol_error(way: OverHttpx) -> None:
    start = head("200 OK", [("Content-Length", "5"), ("Transfer-Encoding", "chunked")])
    with ByteServer((start, Write(b"0\r\n\r\n"), WaitForRelease())) as server:
        async with way.closing(way.client()) as transport:
            with pytest.raises(ProtocolError, match="both a content-length and a transfer-enc"):
                await way.fetch(transport, get(server.url))


@pytest.mark.parametrize("way", FAMILY_SYNC, ids=str)
@pytest.mark.parametrize("pooled", [False, True], ids=["new, user's client", "pooled, TLS"])
def test_interrupt_ends_a_waiting_call(way: OverHttpx, secured: Secured, *, pooled: bool) -> None:
    interrupt = Interrupt()

    def wake() -> None:
        server.wait_for_requests(1 + pooled)
        interrupt.fire()

    tls = secured.server if pooled else None
    with ByteServer(*[OK] * pooled, (Write(b"HTTP/1.1 200"), WaitForRelease()), tls=tls) as server:
        transport = way.transport_over(None if pooled else way.client())
        if pooled:
            assert fetch_sync(transport, get(server.url)) == b"ok"
        waker = threading.Thread(target=wake)
        waker.start()
        with pytest.raises(ConnectionInterrupted):
            transport.send(evolve(post(server.url), interrupt=interrupt))
        waker.join()
        server.wait_until_closed()
        assert server.connections == 1


# --- shared connections


class NetworkStream:
    def __init__(self, connection: socket.socket | None) -> None:
        self._connection = connection

    def get_extra_info(self, info: str) -> object:
        return {"socket": self._connection}[info]


@over(*FAMILY_SYNC)
async def test_interrupt_does_not_shut_down_a_shared_connection(way: OverHttpx) -> None:
    """Requests over HTTP/2 share a connection. Streams of custom transports may have no socket."""
    ours, theirs = socket.socketpair()

    def handle(request: Any) -> Any:
        trace = request.extensions["trace"]
        trace("connection.connect_tcp.complete", {"return_value": NetworkStream(ours)})
        trace("http2.send_request_headers.started", {"request": httpcore.Request("GET", "/")})
        interrupt.fire()
        trace("connection.start_tls.complete", {"return_value": NetworkStream(None)})
        return way.library.Response(200, content=b"ok")

    interrupt = Interrupt()
    with ours, theirs:
        request = evolve(get("http://flux0.invalid"), interrupt=interrupt)
        transport = way.library.MockTransport(handle)
        assert await way.fetch_once(request, transport=transport) == (200, b"ok")
        ours.sendall(b"x")
        assert theirs.recv(1) == b"x"


@over(*FAMILY)
async def test_each_read_over_http2_has_its_own_timeout(way: OverHttpx) -> None:
    """httpcore gets the timeout of each read from the request."""

    def handle(request: Any) -> Any:
        class Timeouts(way.library.SyncByteStream, way.library.AsyncByteStream):  # type: ignore[misc, name-defined]
            def __iter__(self) -> Iterator[bytes]:
                for _ in range(2):
                    yield str(request.extensions["timeout"]["read"]).encode()

            async def __aiter__(self) -> AsyncIterator[bytes]:
                for piece in self:
                    yield piece

        return way.library.Response(200, stream=Timeouts(), extensions={"http_version": b"HTTP/2"})

    client = way.client(transport=way.library.MockTransport(handle))
    async with way.closing(client) as transport:
        send = sending.as_async(way.mode, transport).send_async
        body = (await send(get("http://flux0.invalid"))).body
        assert [await body.read_async(timeout) for timeout in (7.0, 8.0)] == [b"7.0", b"8.0"]
        await body.close_async()


def test_closing_a_body_does_not_shut_down_a_shared_connection() -> None:
    ours, theirs = socket.socketpair()

    def close(**extensions: Any) -> None:
        response = httpx.Response(200, stream=httpx.ByteStream(b"data"), extensions=extensions)
        with httpx.Client(transport=httpx.MockTransport(lambda _: response)) as client:
            HttpxTransport(client).send(get("http://flux0.invalid")).body.close()

    with ours, theirs:
        stream = NetworkStream(ours)
        close()
        close(http_version=b"HTTP/2", network_stream=stream)
        ours.sendall(b"x")
        assert theirs.recv(1) == b"x"
        close(http_version=b"HTTP/1.1", network_stream=stream)
        assert theirs.recv(1) == b""


# --- bodies


def test_body_closed_during_a_read_is_interrupted() -> None:
    """If another thread closes the body, the library may report the body's end."""

    class Closing(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            body.close()
            yield from ()

    response = httpx.Response(200, stream=Closing())
    with httpx.Client(transport=httpx.MockTransport(lambda _: response)) as client:
        body = HttpxTransport(client).send(get("http://flux0.invalid")).body
        with pytest.raises(ConnectionInterrupted):
            next(Pieces(body))


@over(*FAMILY_SYNC)
async def test_signal_handler_makes_a_call_during_a_call_of_its_thread(way: OverHttpx) -> None:
    """A built-in client has no lock that the interrupted call holds."""
    done: list[object] = []

    def handle(*_: object) -> None:
        done.append(fetch_sync(transport, get(server.url)))
        server.release()

    def interrupt() -> None:
        server.wait_for_requests(1)
        os.kill(os.getpid(), signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, handle)
    try:
        with (
            ByteServer((WaitForRelease(), *OK), OK) as server,
            closing(way.transport_over(None)) as transport,
            ThreadPoolExecutor() as threads,
        ):
            interrupting = threads.submit(interrupt)
            assert fetch_sync(transport, get(server.url)) == b"ok"
            interrupting.result()
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert done == [b"ok"]


# --- streams of responses that the user's code replaces


def upper_stream(way: OverHttpx, stream: Any) -> Any:
    """Return a stream with the content of `stream` in capitals."""

    class Upper(way.library.SyncByteStream, way.library.AsyncByteStream):  # type: ignore[misc, name-defined]
        def __iter__(self) -> Iterator[bytes]:
            for piece in stream:
                yield piece.upper()

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for piece in stream:
                yield piece.upper()

        def close(self) -> None:
            stream.close()

        async def aclose(self) -> None:
            await stream.aclose()

    return Upper()


def client_that_replaces_streams(way: OverHttpx, where: str) -> Any:
    def replace(response: Any) -> Any:
        response.stream = upper_stream(way, response.stream)
        return response

    kind = way.kind("HTTPTransport")

    class UpperTransport(kind):  # type: ignore[misc, valid-type]
        def handle_request(self, request: Any) -> Any:
            return replace(kind.handle_request(self, request))

        async def handle_async_request(self, request: Any) -> Any:
            return replace(await kind.handle_async_request(self, request))

    if where == "hook":
        return way.client(event_hooks={"response": [way.act(replace)]})
    return way.client(transport=UpperTransport())


@over(*FAMILY)
@pytest.mark.parametrize("where", ["hook", "transport"])
async def test_content_is_read_through_the_stream_of_the_user(way: OverHttpx, where: str) -> None:
    *parts, end = http_response(b"a", b"b", framing="chunked")
    assert isinstance(end, Write)
    with_surplus = (*parts, Write(end.data + b"HTTP/1.1 200 OK\r\n\r\n"))
    in_parts = http_response(b"c", WaitForRelease(), b"d", framing="chunked")
    invalid = (*http_response(b"e", framing="chunked")[:2], Write(b"z\r\n"))
    async with way.closing(client_that_replaces_streams(way, where)) as transport:
        sending = as_async(way.mode, transport)
        with ByteServer(with_surplus, in_parts, invalid) as server:
            assert await fetch(sending, get(server.url)) == b"AB"
            pieces = Pieces((await sending.send_async(get(server.url))).body)
            assert await anext(pieces) == b"C"
            server.release()
            assert await anext(pieces) == b"D"
            assert await anext(pieces, None) is None
            pieces = Pieces((await sending.send_async(get(server.url))).body)
            assert await anext(pieces) == b"E"
            with pytest.raises(ProtocolError):
                await anext(pieces)
            assert server.connections == 2  # The connection with surplus bytes is not reused.


@over(*FAMILY)
@pytest.mark.parametrize("failed", [False, True], ids=["read", "raise_for_status"])
async def test_hook_may_use_a_chunked_body(way: OverHttpx, *, failed: bool) -> None:
    def read(response: Any) -> None:
        response.read()

    async def read_async(response: Any) -> None:
        await response.aread()

    def raise_for_status(response: Any) -> None:
        response.raise_for_status()

    hook, status, expected = way.act(raise_for_status), "404 Not Found", (404, b"")
    if not failed:
        hook = read if way.mode == "sync" else read_async
        status, expected = "200 OK", (200, b"abcd")
    steps = http_response(b"ab", b"cd", framing="chunked", status=status)
    async with way.closing(way.client(event_hooks={"response": [hook]})) as transport:
        with ByteServer(steps) as server:
            assert await way.fetch(transport, get(server.url)) == expected


@over(*FAMILY)
@pytest.mark.parametrize("size", [10, 100_000])
async def test_request_that_authentication_sends_again_has_its_body(
    way: OverHttpx, size: int
) -> None:
    class Again(way.library.Auth):  # type: ignore[misc, name-defined]
        def auth_flow(self, request: Any) -> Generator[Any, Any, None]:
            yield request
            yield request

    body = b"x" * size
    with ByteServer(http_response(b"no", status="401 Unauthorized"), OK) as server:
        assert await way.fetch_once(post(server.url, body), auth=Again()) == (200, b"ok")
        assert [request.body for request in server.requests] == [body, body]


@over(*FAMILY_SYNC)
async def test_hook_that_reads_a_part_of_a_body_is_an_error(way: OverHttpx) -> None:
    """Otherwise, the part would be missing from the body."""

    def read_part(response: Any) -> None:
        assert next(response.iter_raw()) == b"ab"

    steps = http_response(b"ab", WaitForRelease(), b"cd", framing="chunked")
    async with way.closing(way.client(event_hooks={"response": [read_part]})) as transport:
        with ByteServer(steps) as server, pytest.raises(ProtocolError):
            await way.fetch(transport, get(server.url))


@over(*FAMILY)
async def test_proxy_without_a_connection_to_the_server_is_a_connect_error(way: OverHttpx) -> None:
    """The request was not sent, although the proxy received a request."""
    with ByteServer((Disconnect(),)) as proxy:
        for address, text in (
            (proxy.url, "^(?!cannot connect to the proxy).*proxy"),
            ("http://127.0.0.1:1", "^cannot connect to the proxy 127.0.0.1:1: "),
        ):
            with pytest.raises(ConnectError, match=text):
                await way.fetch_once(get("https://flux0.invalid"), proxy=address)
        assert [request.method for request in proxy.requests] == ["CONNECT"]


@over(*FAMILY)
async def test_connection_to_a_proxy_that_rejects_the_login_is_closed(way: OverHttpx) -> None:
    """httpcore itself leaves the connection open."""
    steps = Receive(), Write(b"\5\xff"), WaitForRelease()
    with ByteServer(on_connect=steps) as proxy:
        client = way.client(proxy=proxy.url.replace("http:", "socks5:"))
        async with way.closing(client) as transport:
            with pytest.raises(ConnectError, match="rejected the login") as caught:
                await way.fetch(transport, get("http://flux0.invalid"))
            await call_blocking(way.mode, proxy.wait_until_closed)
        assert caught.value.__traceback__ is not None  # It refers to the connection.


def test_error_of_a_closed_client_says_whether_the_request_was_sent() -> None:
    def close(_: httpx.Response) -> None:
        client.close()
        raise RuntimeError("the client is closed")

    client = httpx.Client(event_hooks={"response": [close]})
    transport = HttpxTransport(client)
    with ByteServer(OK) as server:
        for sent in ("maybe", "no"):
            with pytest.raises(ClientClosed) as caught:
                transport.send(get(server.url))
            assert caught.value.sent == sent


def test_end_of_a_response_from_an_application_in_this_process_is_confirmed() -> None:
    """Such a response has no connection that could close too early."""

    def application(_: object, start: Callable[..., object]) -> list[bytes]:
        start("200 OK", [])
        return [b"ok"]

    with httpx.Client(transport=httpx.WSGITransport(application)) as client:
        response = HttpxTransport(client).send(get("http://app.example"))
        assert not response.close_delimited
        assert b"".join(Pieces(response.body)) == b"ok"


# --- event loops


def test_connection_of_a_freed_body_is_closed_even_if_its_event_loop_is_blocked() -> None:
    async def run(server: ByteServer) -> None:
        transport = HttpxTransport()
        body = (await transport.send_async(get(server.url, stream=True))).body
        del body
        gc.collect()
        server.wait_until_closed()  # It blocks the event loop.
        await transport.close_async()

    with ByteServer(HALF) as server:
        asyncio.run(run(server))


def test_client_of_an_ended_event_loop_raises_client_closed() -> None:
    with ByteServer(OK, OK) as server:
        transport = HttpxTransport(async_client=httpx.AsyncClient())
        asyncio.run(fetch(transport, get(server.url)))
        with pytest.raises(ClientClosed, match="event loop"):
            asyncio.run(fetch(transport, get(server.url)))
        # The client cannot be closed, because its event loop has ended.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del transport
            gc.collect()


def test_closing_continues_when_its_task_is_cancelled() -> None:
    async def main() -> None:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=1)) as client:
            transport = HttpxTransport(async_client=client)
            for pauses in range(1, 8):
                body = (await transport.send_async(get(server.url, stream=True))).body
                assert await anext(Pieces(body)) == b"first"
                closing = asyncio.ensure_future(body.close_async())
                for _ in range(pauses):
                    await asyncio.sleep(0)
                closing.cancel()
                await asyncio.wait([closing])
                await asyncio.to_thread(server.wait_until_closed)

    with ByteServer(HALF) as server:
        asyncio.run(main())
