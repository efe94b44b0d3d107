"""The httpx transport: the contract, and what is httpx's own."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import ssl
import threading
import warnings
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import httpx
import pytest
from attrs import evolve

from flux0 import Flux0
from flux0.adapters.httpx import HttpxTransport
from flux0.adapters.support.event_loop import running_loop
from flux0.domain.errors import (
    ClientClosed,
    ConnectionInterrupted,
    TransportError,
)
from flux0.domain.headers import Headers
from flux0.ports import Request
from flux0.testing.contract import (
    AsyncTransportContract,
    LimitedPoolContract,
    TransportContract,
)
from flux0.testing.contract.answers import Hold, answer, cut, head, size
from flux0.testing.contract.byte_server import ByteServer

OK = answer(b"ok")
HALF = answer(b"first", Hold(), b"second", framing="chunked")


class TestHttpxTransport(LimitedPoolContract, TransportContract):
    def make_transport(self) -> HttpxTransport:
        return HttpxTransport()

    def make_trusting_transport(self, ca_file: str) -> HttpxTransport:
        return configured(verify=ssl.create_default_context(cafile=ca_file))

    def make_limited_transport(self) -> HttpxTransport:
        return configured(limits=httpx.Limits(max_connections=1))

    def test_a_body_outlives_its_transport(self) -> None:
        with ByteServer(HALF) as server:
            pieces = iter(HttpxTransport().send(get(server.url)).body)
            assert next(pieces) == b"first"
            server.release()
            assert next(pieces) == b"second"
            assert next(pieces, None) is None
            assert next(pieces, None) is None


class TestAsyncHttpxTransport(LimitedPoolContract, AsyncTransportContract):
    def make_transport(self) -> HttpxTransport:
        return HttpxTransport()

    def make_trusting_transport(self, ca_file: str) -> HttpxTransport:
        return configured(verify=ssl.create_default_context(cafile=ca_file))

    def make_limited_transport(self) -> HttpxTransport:
        return configured(limits=httpx.Limits(max_connections=1))

    def test_an_asynchronous_body_outlives_its_transport(self, run: Run) -> None:
        async def main() -> None:
            pieces = aiter((await HttpxTransport().send_async(get(server.url))).body)
            assert await anext(pieces) == b"first"
            server.release()
            assert await anext(pieces) == b"second"
            assert await anext(pieces, None) is None
            assert await anext(pieces, None) is None

        with ByteServer(HALF) as server:
            run(main)


class Configured(HttpxTransport):
    """Closes the clients that it was given, as their user would."""

    def __init__(self, client: httpx.Client, async_client: httpx.AsyncClient | None = None) -> None:
        super().__init__(client, async_client)
        self.given = (client, async_client)

    def close(self) -> None:
        super().close()
        client, _ = self.given
        client.close()

    async def close_async(self) -> None:
        await super().close_async()
        _, async_client = self.given
        if async_client is not None:
            await async_client.aclose()


def configured(**options: Any) -> Configured:
    return Configured(httpx.Client(**options), httpx.AsyncClient(**options))


# --- what the tests below share

Fetch = Callable[[HttpxTransport, Request], bytes]
Run = Callable[[Callable[[], Awaitable[Any]]], Any]


def fetch(transport: HttpxTransport, request: Request) -> bytes:
    return b"".join(transport.send(request).body)


async def fetch_async(transport: HttpxTransport, request: Request) -> bytes:
    response = await transport.send_async(request)
    return b"".join([piece async for piece in response.body])


def get(url: str, *, stream: bool = False) -> Request:
    return Request("GET", url, Headers(), stream=stream)


@pytest.fixture(params=["threads", "asyncio", "trio"])
def once(request: pytest.FixtureRequest) -> Fetch:
    """Sends one request, reads its body and closes the transport, in a new event loop if in any."""

    def send(transport: HttpxTransport, sent: Request) -> bytes:
        try:
            return fetch(transport, sent)
        finally:
            transport.close()

    async def send_async(transport: HttpxTransport, sent: Request) -> bytes:
        try:
            return await fetch_async(transport, sent)
        finally:
            await transport.close_async()

    if request.param == "threads":
        return send
    return lambda transport, sent: anyio.run(send_async, transport, sent, backend=request.param)


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine in a new event loop."""
    return lambda main: anyio.run(main, backend=request.param)


# --- requests and answers


def test_a_head_cut_short_is_an_interruption(once: Fetch) -> None:
    whole = head("200 OK", [("Content-Length", "0")])
    cuts = [cut((whole,), length) for length in range(size((whole,)))]
    with ByteServer(*cuts) as server:
        for _ in cuts:
            with pytest.raises(ConnectionInterrupted):
                once(HttpxTransport(), get(server.url))


def test_an_error_can_be_read_again_from_the_raw_response() -> None:
    detail = {"detail": "no such thing"}
    steps = answer(json.dumps(detail).encode(), status="404 Not Found", gzip=True)
    request = get("", stream=True)
    with ByteServer(steps) as server:
        sync_response = HttpxTransport().send(evolve(request, url=server.url))
        list(sync_response.body)

        async def main() -> Any:
            response = await HttpxTransport().send_async(evolve(request, url=server.url))
            assert [piece async for piece in response.body]
            return response.raw_response

        for raw in (sync_response.raw_response, anyio.run(main)):
            assert raw.json() == detail
            assert raw.text == json.dumps(detail)
            assert raw.read() == raw.content


# --- a client of the user's


def test_its_headers_and_authentication_are_used(once: Fetch) -> None:
    options: Any = {"headers": {"x-team": "blue", "accept": "text/html"}, "auth": ("me", "secret")}
    request = evolve(get(""), headers=Headers((("accept", "application/json"),)))
    with ByteServer(OK) as server:
        once(configured(**options), evolve(request, url=server.url))
        (received,) = server.requests
        assert received.headers["x-team"] == "blue"
        assert received.headers["authorization"].startswith("Basic ")
        assert received.headers["accept"] == "application/json"


def test_its_hooks_are_called_and_what_they_raise_is_not_touched(once: Fetch) -> None:
    def hook(request: httpx.Request) -> None:
        raise RuntimeError(f"no {request.method}")

    async def hook_async(request: httpx.Request) -> None:
        hook(request)

    with ByteServer(OK) as server, httpx.Client(event_hooks={"request": [hook]}) as client:
        async_client = httpx.AsyncClient(event_hooks={"request": [hook_async]})
        with pytest.raises(RuntimeError, match="no GET"):
            once(Configured(client, async_client), get(server.url))


def test_it_is_not_closed_and_keeps_its_cookies() -> None:
    with ByteServer(answer(headers=[("Set-Cookie", "a=1")])) as server, httpx.Client() as client:
        for _ in range(2):
            transport = HttpxTransport(client)
            fetch(transport, get(server.url))
            transport.close()
            del transport
        assert not client.is_closed
        assert server.connections == 1
        assert server.requests[1].headers["cookie"] == "a=1"


def test_the_asynchronous_one_is_not_closed_and_keeps_its_cookies(run: Run) -> None:
    async def main() -> None:
        async with httpx.AsyncClient() as client:
            for _ in range(2):
                transport = HttpxTransport(async_client=client)
                await fetch_async(transport, get(server.url))
                await transport.close_async()
                del transport
            assert not client.is_closed

    with ByteServer(answer(headers=[("Set-Cookie", "a=1")])) as server:
        run(main)
        assert server.connections == 1
        assert server.requests[1].headers["cookie"] == "a=1"


def test_one_of_an_event_loop_that_is_over_says_so() -> None:
    with ByteServer(OK, OK) as server:
        transport = HttpxTransport(async_client=httpx.AsyncClient())
        asyncio.run(fetch_async(transport, get(server.url)))
        with pytest.raises(ClientClosed, match="event loop"):
            asyncio.run(fetch_async(transport, get(server.url)))
        with warnings.catch_warnings():  # The client cannot be closed any more.
            warnings.simplefilter("ignore", ResourceWarning)
            del transport
            gc.collect()


class Minimal:
    """Has what `HttpxTransport` asks of a client, and no more; its requests know no timeouts."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def build_request(
        self,
        method: str,
        url: str,
        *,
        content: bytes | None,
        headers: httpx.Headers,
        timeout: httpx.Timeout,
    ) -> httpx.Request:
        return httpx.Request(method, url, content=content, headers=headers)

    def send(
        self, request: httpx.Request, *, stream: bool, follow_redirects: bool
    ) -> httpx.Response:
        return self._client.send(request, stream=stream, follow_redirects=follow_redirects)


def test_all_that_is_used_is_build_request_and_send() -> None:
    with ByteServer(OK) as server, httpx.Client() as client:
        transport = HttpxTransport(Minimal(client))
        assert fetch(transport, get(server.url, stream=True)) == b"ok"
        transport.close()
        assert fetch(transport, get(server.url)) == b"ok"


class Shared(httpx.BaseTransport):
    """Answers with a body that waits, and that came over a connection with more users."""

    def __init__(self, **extensions: Any) -> None:
        self._extensions = extensions
        self.read = threading.Event()
        self.released = threading.Event()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Waiting(self), extensions=self._extensions)


class Waiting(httpx.SyncByteStream):
    def __init__(self, transport: Shared) -> None:
        self._transport = transport

    def __iter__(self) -> Iterator[bytes]:
        self._transport.read.set()
        self._transport.released.wait(10)
        yield from ()


class NetworkStream:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def get_extra_info(self, info: str) -> object:
        return {"socket": self._connection}[info]


def closed_while_read(shared: Shared) -> None:
    with httpx.Client(transport=shared) as client:
        body = HttpxTransport(client).send(get("http://flux0.invalid")).body
        errors: list[TransportError] = []

        def read() -> None:
            try:
                list(body)
            except TransportError as error:
                errors.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        shared.read.wait(10)
        body.close()
        shared.released.set()
        reader.join()
        assert [type(error) for error in errors] == [ConnectionInterrupted]


def test_a_body_without_a_socket_can_be_closed_while_it_is_read() -> None:
    closed_while_read(Shared())


def test_closing_does_not_touch_the_other_streams_of_a_connection() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream = NetworkStream(ours)
        closed_while_read(Shared(http_version=b"HTTP/2", network_stream=stream))
        ours.sendall(b"x")
        assert theirs.recv(1) == b"x"
        closed_while_read(Shared(http_version=b"HTTP/1.1", network_stream=stream))
        assert theirs.recv(1) == b""


# --- clients of our own


def test_a_forgotten_transport_closes_its_connections() -> None:
    with ByteServer(OK) as server:
        transport = HttpxTransport()
        assert fetch(transport, get(server.url)) == b"ok"
        del transport
        server.wait_until_gone()


def test_a_forgotten_transport_closes_its_connections_in_its_loop(run: Run) -> None:
    async def main() -> None:
        transport = HttpxTransport()
        assert await fetch_async(transport, get(server.url)) == b"ok"
        del transport
        await anyio.to_thread.run_sync(server.wait_until_gone)

    with ByteServer(OK) as server:
        run(main)


def test_one_transport_serves_one_event_loop_after_another() -> None:
    transport = HttpxTransport()
    loops: list[weakref.ref[Any]] = []

    async def main() -> None:
        loops.append(weakref.ref(running_loop()))
        assert await fetch_async(transport, get(server.url)) == b"ok"

    with ByteServer(OK) as server:
        for backend in ("asyncio", "trio", "asyncio", "trio"):
            anyio.run(main, backend=backend)
            server.wait_until_gone()
        assert server.connections == 4
    gc.collect()
    assert [loop() for loop in loops] == [None] * 4, "what is over is kept"


def test_a_client_that_sent_nothing_is_forgotten_without_a_thread() -> None:
    started: list[Callable[[], None]] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("flux0.adapters.support.httpx_family.in_thread", started.append)
        transport = HttpxTransport()
        del transport
        gc.collect()
        assert not started
        with ByteServer(OK) as server:
            transport = HttpxTransport()
            assert fetch(transport, get(server.url)) == b"ok"
            del transport
            gc.collect()
            assert len(started) == 1
            started[0]()  # Which closes the connection.
            server.wait_until_gone()


def test_a_body_may_be_kept_beyond_its_event_loop(run: Run) -> None:
    transport = HttpxTransport()
    kept: list[Any] = []

    async def main() -> None:
        body = (await transport.send_async(get(server.url, stream=True))).body
        pieces = aiter(body)
        assert await anext(pieces) == b"first"
        kept.extend((body, pieces))

    with ByteServer(HALF) as server:
        run(main)
        server.wait_until_gone()
    kept.clear()
    gc.collect()


def test_closing_goes_on_when_its_task_is_cancelled() -> None:
    async def main() -> None:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=1)) as client:
            transport = HttpxTransport(async_client=client)
            for pauses in range(1, 8):
                body = (await transport.send_async(get(server.url, stream=True))).body
                assert await anext(aiter(body)) == b"first"
                closing = asyncio.ensure_future(body.close_async())
                for _ in range(pauses):
                    await asyncio.sleep(0)
                closing.cancel()
                await asyncio.wait([closing])
                await asyncio.to_thread(server.wait_until_gone)

    with ByteServer(HALF) as server:
        asyncio.run(main())


def test_a_response_that_was_read_already_is_read_again() -> None:
    """As a transport without sockets gives it, or a hook that reads leaves it."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"data": []})

    with (
        httpx.Client(transport=httpx.MockTransport(answer)) as client,
        Flux0("http://flux0.invalid", client=client) as flux0,
    ):
        assert list(flux0.agents.list()) == []


def test_a_response_that_was_read_already_is_read_again_by_asynchronous_code() -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"data": []})

    async def main() -> int:
        async with (
            httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client,
            Flux0("http://flux0.invalid", async_client=client) as flux0,
        ):
            return len(await flux0.agents.list_async())

    assert asyncio.run(main()) == 0
