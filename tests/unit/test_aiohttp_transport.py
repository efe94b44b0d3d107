"""The aiohttp transport: the contract, and what is aiohttp's own."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, ClassVar

import aiohttp
import pytest
import trio
import trustme
from aiohttp.client_proto import ResponseHandler
from attrs import frozen

from flux0.adapters.aiohttp import AiohttpTransport
from flux0.adapters.support.aiohttp_wire import RequestBody, Wire
from flux0.domain.errors import (
    ClientClosed,
    ConnectError,
    ConnectionInterrupted,
    Flux0Error,
    ProtocolError,
    TransportError,
)
from flux0.domain.headers import Headers
from flux0.ports import AsyncByteStream, Request, Response, Timeout
from flux0.testing.contract import AsyncTransportContract, LimitedPoolContract
from flux0.testing.contract.answers import Disconnect, Hold, Reset, Write, answer, cut, head, size
from flux0.testing.contract.byte_server import PATIENCE, ByteServer

OK = answer(b"ok")
SILENT = answer(b"first", Hold(), b"second", framing="chunked")
SHORT = 0.1
TIMEOUT = Timeout()

debug = pytest.mark.parametrize("debug", [False, True], ids=["usual", "debug"])


class TestAiohttpTransport(LimitedPoolContract, AsyncTransportContract):
    backends: ClassVar[Any] = ("asyncio",)

    def make_transport(self) -> AiohttpTransport:
        return AiohttpTransport()

    def make_trusting_transport(self, ca_file: str) -> Configured:
        context = ssl.create_default_context(cafile=ca_file)
        return Configured(partial(aiohttp.TCPConnector, ssl=context))

    def make_limited_transport(self) -> Configured:
        return Configured(partial(aiohttp.TCPConnector, limit=1))


class Configured:
    """Makes a session in the loop that uses it, and closes it as its user would."""

    def __init__(self, connector: Callable[[], aiohttp.TCPConnector]) -> None:
        self._connector = connector
        self._made: tuple[aiohttp.ClientSession, AiohttpTransport] | None = None

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        if self._made is None:
            session = aiohttp.ClientSession(connector=self._connector())
            self._made = session, AiohttpTransport(session)
        return await self._made[1].send_async(request)

    async def close_async(self) -> None:
        if self._made is not None:
            session, transport = self._made
            await transport.close_async()
            await session.close()


def get(url: str, *, stream: bool = False, timeout: Timeout = TIMEOUT) -> Request:
    return Request("GET", url, Headers(), stream=stream, timeout=timeout)


def post(url: str, body: bytes) -> Request:
    return Request("POST", url, Headers((("content-type", "application/json"),)), body=body)


@asynccontextmanager
async def own() -> AsyncGenerator[AiohttpTransport]:
    transport = AiohttpTransport()
    yield transport
    await transport.close_async()


async def read(body: AsyncByteStream) -> bytes:
    return b"".join([piece async for piece in body])


async def fetch(transport: AiohttpTransport, request: Request) -> bytes:
    return await read((await transport.send_async(request)).body)


async def begun(transport: AiohttpTransport, url: str) -> Response[AsyncByteStream]:
    """Return a stream of which the first piece was read, and more will come."""
    response = await transport.send_async(get(url, stream=True))
    assert await anext(aiter(response.body)) == b"first"
    return response


@frozen
class Gone:
    """Waits in a thread, while the loop runs on, until the client has closed its connections."""

    server: ByteServer

    async def __call__(self) -> None:
        await asyncio.to_thread(self.server.wait_until_gone)


# --- the user's session


def test_the_users_session_stays_open_and_as_it_is() -> None:
    seen: list[str] = []

    async def note(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        seen.append(request.method)
        return await handler(request)

    async def run(url: str) -> None:
        async with aiohttp.ClientSession(
            headers={"X-Own": "yes"}, cookies={"own": "1"}, middlewares=(note,)
        ) as session:
            transport = AiohttpTransport(session)
            assert await fetch(transport, get(url)) == b"ok"
            await transport.close_async()
            assert not session.closed
            assert await fetch(transport, get(url)) == b"ok"

    with ByteServer(OK) as server:
        asyncio.run(run(server.url.replace("127.0.0.1", "localhost")))
        assert server.connections == 1
        assert [request.headers["x-own"] for request in server.requests] == ["yes", "yes"]
        assert [request.headers["cookie"] for request in server.requests] == ["own=1", "own=1"]
    assert seen == ["GET", "GET"]


def test_a_middleware_may_read_the_body() -> None:
    """As one does that logs; aiohttp keeps it for whoever reads it again."""
    seen: list[bytes] = []

    async def log(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        response = await handler(request)
        seen.append(await response.read())
        return response

    async def run(url: str) -> None:
        async with aiohttp.ClientSession(middlewares=(log,)) as session:
            for body in (b"ok", b""):
                assert await fetch(AiohttpTransport(session), get(url)) == body

    with ByteServer(OK, answer(b"")) as server:
        asyncio.run(run(server.url))
    assert seen == [b"ok", b""]


BASIC = "Basic YWRhOnNlY3JldA=="  # ada:secret


@pytest.mark.parametrize(
    ("given", "options", "sent"),
    [
        ("Bearer mine", {"headers": {"Authorization": "Bearer session"}}, "Bearer mine"),
        (None, {"headers": {"Authorization": "Bearer session"}}, "Bearer session"),
        (None, {}, None),
    ],
)
def test_the_explicit_login_wins(
    given: str | None, options: dict[str, Any], sent: str | None
) -> None:
    async def run(url: str) -> None:
        headers = Headers(() if given is None else (("authorization", given),))
        async with aiohttp.ClientSession(**options) as session:
            assert await fetch(AiohttpTransport(session), Request("GET", url, headers)) == b"ok"

    with ByteServer(OK) as server:
        asyncio.run(run(server.url))
        assert server.requests[0].headers.get("authorization") == sent


@pytest.mark.filterwarnings("ignore:(BasicAuth|The 'auth' parameter) is deprecated")
def test_the_explicit_login_wins_over_that_of_a_session() -> None:
    async def run(url: str) -> None:
        async with aiohttp.ClientSession(auth=aiohttp.BasicAuth("ada", "secret")) as session:
            for headers in (Headers(), Headers((("authorization", "Bearer mine"),))):
                await fetch(AiohttpTransport(session), Request("GET", url, headers))

    with ByteServer(OK) as server:
        asyncio.run(run(server.url))
        sent = [request.headers["authorization"] for request in server.requests]
    assert sent == [BASIC, "Bearer mine"]


def test_what_a_session_does_with_answers_does_not_count() -> None:
    """Statuses, redirects, timeouts and compression are the core's to judge."""

    async def run(url: str) -> None:
        async with aiohttp.ClientSession(
            raise_for_status=True,
            auto_decompress=True,
            timeout=aiohttp.ClientTimeout(total=SHORT / 1000),
            headers={"Accept-Encoding": "br"},
        ) as session:
            response = await AiohttpTransport(session).send_async(get(url))
            assert response.status_code == 503
            assert await read(response.body) == b"busy"

    with ByteServer(answer(b"busy", status="503 Busy", gzip=True)) as server:
        asyncio.run(run(server.url))
        assert server.requests[0].headers["accept-encoding"] == "gzip, deflate"


def test_a_session_that_is_closed() -> None:
    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            transport = AiohttpTransport(session)
        with pytest.raises(ClientClosed):
            await transport.send_async(get("http://127.0.0.1:1"))

    asyncio.run(run())


def test_a_session_of_another_loop() -> None:
    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            transport = AiohttpTransport(session)
            elsewhere = transport.send_async(get("http://127.0.0.1:1"))
            with pytest.raises(Flux0Error, match="another event loop"):
                await asyncio.to_thread(asyncio.run, elsewhere)

    asyncio.run(run())


def test_trio_is_told_what_to_use_instead() -> None:
    async def run() -> None:
        transport = AiohttpTransport()
        with pytest.raises(Flux0Error, match="HttpxTransport"):
            await transport.send_async(get("http://127.0.0.1:1"))
        await transport.close_async()

    trio.run(run)


# --- requests


def test_a_get_is_not_sent_again_after_a_dead_connection() -> None:
    """aiohttp itself would repeat it."""

    async def run(url: str) -> None:
        async with own() as transport:
            assert await fetch(transport, get(url)) == b"ok"
            with pytest.raises(ConnectionInterrupted) as caught:
                await transport.send_async(get(url))
            assert isinstance(caught.value.__cause__, aiohttp.ServerDisconnectedError)

    with ByteServer(OK, (Disconnect(),), OK) as server:
        asyncio.run(run(server.url))
        assert len(server.requests) == 2


@pytest.mark.parametrize("url", ["http://127.0.0.1:65536/", "http:///", "ftp://127.0.0.1/"])
def test_an_address_that_is_none(url: str) -> None:
    async def run() -> None:
        async with own() as transport:
            with pytest.raises(ConnectError) as caught:
                await transport.send_async(get(url))
            assert isinstance(caught.value.__cause__, ValueError | aiohttp.ClientError)

    asyncio.run(run())


def test_percent_encodings_are_not_made_uniform() -> None:
    target = "/a%3ab/%c3%a9%41?q=%2F+x%20&z=%7e"

    async def run(url: str) -> None:
        async with own() as transport:
            await fetch(transport, get(f"{url}{target}"))

    with ByteServer(OK) as server:
        asyncio.run(run(server.url))
        assert [request.target for request in server.requests] == [target]


def test_cookies_of_a_named_host_are_not_kept_either() -> None:
    """aiohttp keeps none of an address; those of names it would."""

    async def run(url: str) -> None:
        async with own() as transport:
            for _ in range(2):
                await fetch(transport, get(url))

    with ByteServer(answer(b"", headers=[("Set-Cookie", "flux0_user_sub=me; Path=/")])) as server:
        asyncio.run(run(server.url.replace("127.0.0.1", "localhost")))
        assert not any("cookie" in request.headers for request in server.requests)


def test_a_header_field_may_be_longer_than_aiohttp_would_take() -> None:
    policy = "default-src " + "x" * 20_000

    async def run(url: str) -> None:
        async with own() as transport:
            response = await transport.send_async(get(url))
            assert response.headers["content-security-policy"] == policy
            assert await read(response.body) == b"ok"

    with ByteServer(answer(b"ok", headers=[("Content-Security-Policy", policy)])) as server:
        asyncio.run(run(server.url))


def test_only_what_can_be_undone_is_asked_for_unless_the_user_asks() -> None:
    async def run(url: str) -> None:
        async with own() as transport:
            await fetch(transport, get(url))
            headers = Headers((("Accept-Encoding", "identity"),))
            await fetch(transport, Request("GET", url, headers))

    with ByteServer(OK) as server:
        asyncio.run(run(server.url))
        asked = [request.headers["accept-encoding"] for request in server.requests]
    assert asked == ["gzip, deflate", "identity"]


def test_a_body_of_megabytes() -> None:
    """aiohttp warns of those that it is given as bytes, and a middleware may want to see it."""
    body = b'"' + b"x" * 3_000_000 + b'"'
    signed: list[bytes] = []

    async def sign(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        assert isinstance(request.body, aiohttp.Payload)
        signed.append(await request.body.as_bytes())
        return await handler(request)

    async def run(url: str) -> None:
        async with aiohttp.ClientSession(middlewares=(sign,)) as session:
            assert await fetch(AiohttpTransport(session), post(url, body)) == b"ok"

    with ByteServer(OK) as server:
        asyncio.run(run(server.url))
        (received,) = server.requests
    assert received.body == body
    assert signed == [body]
    assert received.headers.get_all("content-type") == ("application/json",)


def test_the_connection_is_reset_within_a_large_request() -> None:
    async def run(listener: socket.socket) -> None:
        async with own() as transport:
            sending = asyncio.ensure_future(transport.send_async(large(listener)))
            connection, _ = await asyncio.to_thread(listener.accept)
            with connection:
                await asyncio.to_thread(connection.recv, 1)
                linger = struct.pack("ii", 1, 0)  # So that closing resets.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            with pytest.raises(ConnectionInterrupted) as caught:
                await sending
            assert isinstance(caught.value.__cause__, aiohttp.ClientError)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        asyncio.run(run(listener))


def test_the_connection_is_lost_before_a_large_body_begins() -> None:
    """As it may be where a trace takes its time."""

    async def wait(*_: object) -> None:
        await asyncio.sleep(SHORT)

    async def run(url: str) -> None:
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(wait)
        async with aiohttp.ClientSession(trace_configs=[trace]) as session:
            with pytest.raises(ConnectionInterrupted):
                await AiohttpTransport(session).send_async(post(url, bytes(1_000_000)))

    with ByteServer(unasked=(Disconnect(),)) as server:
        asyncio.run(run(server.url))


@debug
def test_a_large_request_is_cancelled_while_it_is_sent(*, debug: bool) -> None:
    """It is not waited for until the server has taken what is written; asyncio would warn."""

    async def run(listener: socket.socket) -> socket.socket:
        async with own() as transport:
            sending = asyncio.ensure_future(transport.send_async(large(listener)))
            connection, _ = await asyncio.to_thread(listener.accept)
            await asyncio.to_thread(connection.recv, 1)
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending
            return connection

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        asyncio.run(run(listener), debug=debug),
    ):
        gc.collect()


def large(listener: socket.socket) -> Request:
    """A request that does not fit into the buffers on the way."""
    return post(f"http://127.0.0.1:{listener.getsockname()[1]}/", bytes(32_000_000))


def test_a_head_that_is_written_together_with_a_body_is_latin_1_too() -> None:
    """Which aiohttp does on some Pythons, and with some sizes."""

    async def run(server: ByteServer) -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(
            lambda: ResponseHandler(loop), server.host, server.port
        )
        wire = Wire.of(transport)
        wire.begin()
        wire.writelines(["GET / HTTP/1.1\r\nX-Name: caf\xe9\r\n\r\n".encode(), b""])
        await asyncio.to_thread(server.wait_for_requests, 1)
        transport.abort()

    with ByteServer(OK) as server:
        asyncio.run(run(server))
        assert server.requests[0].headers["x-name"] == "caf\xe9"


def test_a_recorder_can_read_the_body() -> None:
    """vcrpy takes what has a method `read` for a file."""
    recorded: list[bytes] = []

    async def record(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        assert isinstance(request.body, RequestBody)
        recorded.append(request.body.read())
        return await handler(request)

    async def run(url: str) -> None:
        async with aiohttp.ClientSession(middlewares=(record,)) as session:
            await fetch(AiohttpTransport(session), post(url, b"{}"))

    with ByteServer(OK) as server:
        asyncio.run(run(server.url))
    assert recorded == [b"{}"]


# --- bodies


def test_the_body_is_in_the_raw_response() -> None:
    async def run(url: str) -> None:
        async with own() as transport:
            response = await transport.send_async(get(url))
            assert await read(response.body) == b'{"detail": "no"}'
            await response.body.close_async()
            assert isinstance(response.raw_response, aiohttp.ClientResponse)
            assert await response.raw_response.read() == b'{"detail": "no"}'
            assert await response.raw_response.json(content_type=None) == {"detail": "no"}

    steps = answer(b'{"detail":', b' "no"}', status="404 Not Found", framing="chunked", gzip=True)
    with ByteServer(steps) as server:
        asyncio.run(run(server.url))


def test_a_body_until_close_is_reset() -> None:
    """aiohttp takes that for its end."""

    async def run(server: ByteServer) -> None:
        async with own() as transport:
            response = await begun(transport, server.url)
            server.release()
            with pytest.raises(ConnectionInterrupted) as caught:
                await read(response.body)
            assert isinstance(caught.value.__cause__, aiohttp.ClientOSError)

    with ByteServer((head("200 OK", []), Write(b"first"), Hold(), Reset())) as server:
        asyncio.run(run(server))


def test_what_came_before_the_end_of_a_connection_is_handed_over() -> None:
    """However late it is read."""
    steps = answer(b"first", b"second", framing="chunked")

    async def run(url: str, gone: Gone) -> None:
        async with own() as transport:
            response = await transport.send_async(get(url, stream=True))
            await gone()
            assert await anext(aiter(response.body)) == b"firstsecond"
            with pytest.raises(ConnectionInterrupted):
                await read(response.body)

    with ByteServer(cut(steps, size(steps) - 1)) as server:
        asyncio.run(run(server.url, Gone(server)))


def test_a_reader_may_take_longer_than_a_server_may_be_silent() -> None:
    """aiohttp's own timeout would pass while nobody waits, and with it what came before."""

    async def run(server: ByteServer) -> None:
        async with own() as transport:
            timeout = Timeout(idle=SHORT)
            response = await transport.send_async(get(server.url, stream=True, timeout=timeout))
            assert await anext(aiter(response.body)) == b"first"
            await asyncio.sleep(3 * SHORT)
            server.release()
            assert await read(response.body) == b"second"

    with ByteServer(SILENT) as server:
        asyncio.run(run(server))


def test_a_loop_that_was_blocked_does_not_make_the_server_silent() -> None:
    """Bytes that came in time count, though the timer and they are noticed together."""

    async def run(server: ByteServer) -> None:
        async with own() as transport:
            timeout = Timeout(idle=2 * SHORT)
            response = await transport.send_async(get(server.url, stream=True, timeout=timeout))
            assert await anext(aiter(response.body)) == b"first"
            reading = asyncio.ensure_future(read(response.body))
            await asyncio.sleep(0)
            server.release()
            time.sleep(4 * SHORT)  # As code does that computes something.
            assert await reading == b"second"

    with ByteServer(SILENT) as server:
        asyncio.run(run(server))


def test_framing_that_breaks_while_nobody_reads() -> None:
    async def run(server: ByteServer, gone: Gone) -> None:
        async with own() as transport:
            response = await begun(transport, server.url)
            server.release()
            await gone()
            with pytest.raises(ProtocolError):
                await read(response.body)

    start, first, *_ = answer(b"first", framing="chunked")
    with ByteServer((start, first, Hold(), Write(b"xyz\r\n"), Hold())) as server:
        asyncio.run(run(server, Gone(server)))


def test_after_a_failure_a_body_does_not_seem_to_end() -> None:
    async def run(url: str) -> None:
        async with own() as transport:
            body = (await transport.send_async(get(url))).body
            for _ in range(2):
                with pytest.raises(TransportError):
                    await read(body)

    with ByteServer(answer(b"?", headers=[("Content-Encoding", "x-unknown")])) as server:
        asyncio.run(run(server.url))


# --- what is left behind


@debug
@pytest.mark.parametrize("cycle", [False, True], ids=["plain", "cycle"])
def test_a_stream_that_outlives_its_loop(*, debug: bool, cycle: bool) -> None:
    """aiohttp warns of connections that are collected open; pytest makes a failure of it."""
    kept: list[Any] = []

    async def run(url: str) -> None:
        kept.append(await begun(AiohttpTransport(), url))
        if cycle:
            kept.append(kept)

    with ByteServer(SILENT) as server:
        asyncio.run(run(server.url), debug=debug)
        server.wait_until_gone()
    kept = []
    gc.collect()


@debug
def test_a_stream_of_the_users_session_that_outlives_its_loop(*, debug: bool) -> None:
    kept: list[Any] = []

    async def run(url: str) -> None:
        async with aiohttp.ClientSession() as session:
            kept.append(await begun(AiohttpTransport(session), url))

    with ByteServer(SILENT) as server:
        asyncio.run(run(server.url))
        server.wait_until_gone()
    kept.clear()
    gc.collect()


@debug
def test_a_transport_that_is_forgotten(*, debug: bool) -> None:
    async def run(url: str, gone: Gone) -> None:
        assert await fetch(AiohttpTransport(), get(url)) == b"ok"
        gc.collect()
        await gone()

    with ByteServer(OK) as server:
        asyncio.run(run(server.url, Gone(server)), debug=debug)


FORGETFUL = """
import asyncio, sys
from flux0 import AiohttpTransport, Flux0

kept = []

async def main():
    flux0 = Flux0(sys.argv[1], transport=AiohttpTransport())
    kept.append(await flux0.sessions.create_event_async(session_id="s", content="Hi"))

asyncio.run(main(), debug=True)
"""


def test_a_stream_that_is_kept_to_the_end_of_python() -> None:
    """aiohttp would say so, where asyncio is in debug mode."""
    turn = answer(Hold(), headers=[("Content-Type", "text/event-stream")], framing="chunked")
    with ByteServer(turn) as server:
        command = [sys.executable, "-W", "error::ResourceWarning", "-c", FORGETFUL, server.url]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if not line.startswith("Executing <Task")]
    assert (done.returncode, said) == (0, [])


def test_leaving_does_not_wait_for_the_other_side_to_end_its_tls() -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = authority.issue_cert("127.0.0.1")
    certificate.configure_cert(context)  # pyright: ignore[reportUnknownMemberType] - it also takes a type of pyOpenSSL
    trusting = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())

    def serve(listener: socket.socket) -> None:
        plain, _ = listener.accept()
        plain.settimeout(PATIENCE)
        with context.wrap_socket(plain, server_side=True) as connection:
            connection.recv(65536)
            for step in SILENT[:2]:
                assert isinstance(step, Write)
                connection.sendall(step.data)
            while socket.socket.recv(connection, 65536):  # Below TLS, which it does not end.
                pass

    async def run(listener: socket.socket) -> None:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        serving = asyncio.ensure_future(asyncio.to_thread(serve, listener))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting)) as session:
            response = await begun(AiohttpTransport(session), url)
            await response.body.close_async()
            await serving

    with socket.create_server(("127.0.0.1", 0)) as listener:
        asyncio.run(run(listener))


def test_one_transport_serves_loop_after_loop() -> None:
    transport = AiohttpTransport()

    async def run(url: str) -> None:
        assert await fetch(transport, get(url)) == b"ok"

    with ByteServer(OK) as server:
        for _ in range(2):
            asyncio.run(run(server.url))
            server.wait_until_gone()
        assert server.connections == 2
