"""Features of all built-in transports that the contract does not require."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import AsyncGenerator
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from anyio import CancelScope, create_task_group
from anyio.lowlevel import checkpoint
from attrs import evolve

import flux0
from flux0 import AsyncEventStream, Flux0, StreamIdleTimeout
from flux0.domain.errors import ConnectError, ConnectionInterrupted, ProtocolError
from flux0.ports import AsyncTransport
from flux0.runtime import event_loop
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.harness import get
from flux0.testing.contract.responses import (
    Disconnect,
    Sleep,
    WaitForRelease,
    Write,
    head,
    http_response,
    size,
    to_bytes,
    truncated,
)
from support import sending
from support.in_memory import SSE, chunk
from support.modes import call_blocking, in_mode, run
from support.secured import Secured
from support.sending import AGENTS, HALF, OK, Pieces, fetch, over
from support.transports import LIBRARIES, SYNC_WAYS, TRANSPORTS, WAYS, Way

pytestmark = pytest.mark.usefixtures("little_garbage")


AT_LOCKS = Path(__file__).parents[2] / "support/at_locks.py"
SURPLUS = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nothers"
LAST_CHUNK = b"0\r\n\r\n"


@pytest.mark.parametrize("early", range(len(LAST_CHUNK)))
@over(*LIBRARIES)
async def test_surplus_bytes_are_not_the_next_response(way: Way, early: int) -> None:
    """`early` is how many bytes of the last chunk that arrive together with the content."""
    start, first, _ = map(to_bytes, zip(http_response(b"first", framing="chunked")))
    beginning, end = start + first + LAST_CHUNK[:early], LAST_CHUNK[early:] + SURPLUS
    in_two_parts = (Write(beginning), WaitForRelease(), Write(end), WaitForRelease())
    with_length = (Write(to_bytes(OK) + SURPLUS), WaitForRelease())
    transport = sending.as_async(way.mode, way.make_transport())
    with ByteServer(
        in_two_parts, http_response(b"second", framing="chunked"), with_length, OK
    ) as server:
        pieces = Pieces((await transport.send_async(get(server.url, stream=True))).body)
        assert await anext(pieces) == b"first"
        server.release()
        assert b"".join([piece async for piece in pieces]) == b""
        for body in (b"second", b"ok", b"ok"):
            assert await fetch(transport, get(server.url)) == body
        assert server.connections == 3
        await transport.close_async()


def _client_with_cookies(way: Way) -> dict[str, Any]:
    """Return the argument of the transport: a client of the user, whose cookies are stored."""
    cookies = {"login": "secret", "flux0_user_sub": "eve"}
    library: Any = import_module(way.transport)
    if way.transport == "requests":
        session = library.Session()
        session.cookies.update(cookies)
        return {"session": session}
    if way.transport == "urllib3":  # It stores no cookies.
        fields = {"cookie": "login=secret; flux0_user_sub=eve"}
        return {"pool_manager": library.PoolManager(headers=fields)}
    if way.transport == "aiohttp":
        jar = library.CookieJar(unsafe=True)  # For an address instead of a name.
        return {"session": library.ClientSession(cookies=cookies, cookie_jar=jar)}
    if way.mode == "sync":
        return {"client": library.Client(cookies=cookies)}
    return {"async_client": library.AsyncClient(cookies=cookies)}


@over(*WAYS)
async def test_cookies_of_the_users_client_are_sent_with_the_cookies_of_a_call(way: Way) -> None:
    """A cookie of a call replaces only the client's cookie with the same name."""
    name = "mine" if way.transport == "aiohttp" else "caf\xe9"  # aiohttp sends UTF-8.
    argument = _client_with_cookies(way)
    (users,) = argument.values()
    transport = getattr(flux0, TRANSPORTS[way.transport][0])(**argument)
    with ByteServer(AGENTS) as server:
        async with in_mode(way.mode, Flux0(server.url, transport=transport)) as client:
            await client.sessions.list_async()
            await client.sessions.list_async(user="ada")
            await client.sessions.list_async(user="ada", http_headers={"cookie": f"login={name}"})
            await client.sessions.list_async(http_headers={"cookie": "a=1"})
    if hasattr(users, "aclose"):
        await users.aclose()
    elif hasattr(users, "close") and (closing := users.close()) is not None:
        await closing

    sent = [set(request.headers["cookie"].split("; ")) for request in server.requests]
    assert sent == [
        {"login=secret", "flux0_user_sub=eve"},
        {"login=secret", "flux0_user_sub=ada"},
        {f"login={name}", "flux0_user_sub=ada"},
        {"login=secret", "flux0_user_sub=eve", "a=1"},
    ]


@over(*LIBRARIES)
async def test_invalid_url_is_a_connect_error(way: Way) -> None:
    transport = sending.as_async(way.mode, way.make_transport())
    for url in ("http://*/", "http://127.0.0.1:99999/", "ftp://127.0.0.1/", "http:///"):
        with pytest.raises(ConnectError) as caught:
            await transport.send_async(get(url))
        assert isinstance(caught.value.__cause__, Exception)
    await transport.close_async()


@over(*LIBRARIES)
async def test_path_of_the_server_url_is_sent_percent_encoded(way: Way) -> None:
    with ByteServer(http_response(b'{"data": []}')) as server:
        flux0 = Flux0(
            f"{server.url}/é/%c3%a9/a%2fb/a%20b/%41/c%/[d]/", transport=way.make_transport()
        )
        async with in_mode(way.mode, flux0) as either:
            await either.agents.list_async()
        assert server.requests[0].target == ("/%C3%A9/%C3%A9/a%2Fb/a%20b/A/c%25/%5Bd%5D/api/agents")


@over(*LIBRARIES)
async def test_truncated_head_is_an_interruption(way: Way) -> None:
    whole = head("200 OK", [("Content-Length", "0")])
    cuts = [truncated((whole,), length) for length in range(size((whole,)))]
    # urllib3 reads a truncated content-length field, and may report that the field is invalid.
    kinds = (ConnectionInterrupted, *[ProtocolError] * (way.transport in ("requests", "urllib3")))
    transport = sending.as_async(way.mode, way.make_transport())
    with ByteServer(*cuts) as server:
        for _ in cuts:
            with pytest.raises(kinds):
                await fetch(transport, get(server.url))
        await transport.close_async()


# aiohttp loads its trusted certificates when it is imported, so the environment has no effect.
@over(*(way for way in LIBRARIES if way.transport != "aiohttp"))
async def test_tls_connection_closed_within_a_body_is_an_interruption(
    way: Way, secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", secured.ca_file)
    transport = sending.as_async(way.mode, way.make_transport())
    steps = (*http_response(b"first", framing="chunked")[:2], Disconnect())
    with ByteServer(steps, tls=secured.server) as server:
        pieces = Pieces((await transport.send_async(get(server.url))).body)
        assert await anext(pieces) == b"first"
        with pytest.raises(ConnectionInterrupted):
            await anext(pieces)
        await transport.close_async()


@over(*LIBRARIES)
async def test_corrupt_gzip_data_within_a_chunked_body_is_a_protocol_error(way: Way) -> None:
    coding = [("Content-Encoding", "gzip")]
    steps = http_response(b"no gzip", WaitForRelease(), headers=coding, framing="chunked")
    transport = sending.as_async(way.mode, way.make_transport())
    with ByteServer(steps) as server:
        pieces = Pieces((await transport.send_async(get(server.url, stream=True))).body)
        with pytest.raises(ProtocolError, match=r"^the gzip data is invalid: "):
            assert b"".join([piece async for piece in pieces]) == b"unreachable"
        await call_blocking(way.mode, server.wait_until_closed)
        await transport.close_async()


@over(*LIBRARIES)
async def test_accept_encoding_lists_the_decoded_codings_unless_the_user_sets_it(way: Way) -> None:
    transport = sending.as_async(way.mode, way.make_transport())
    with ByteServer(OK) as server:
        await fetch(transport, get(server.url))
        await fetch(transport, get(server.url, ("Accept-Encoding", "identity")))
        await transport.close_async()
        sent = [request.headers["accept-encoding"] for request in server.requests]
    assert sent == ["gzip, deflate", "identity"]


@over(*LIBRARIES)
async def test_body_can_be_read_after_its_transport_was_garbage_collected(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_loop, "_CLOSE_DELAY", 0.0)
    with ByteServer(HALF) as server:
        response = await sending.as_async(way.mode, way.make_transport()).send_async(
            get(server.url)
        )
        response = evolve(response, raw_response=None)
        gc.collect()
        for _ in range(20 if way.mode != "sync" else 0):
            await checkpoint()
        pieces = Pieces(response.body)
        assert await anext(pieces) == b"first"
        server.release()
        assert b"".join([piece async for piece in pieces]) == b"second"
        assert await anext(pieces, None) is None


@over(*WAYS)
async def test_garbage_collected_transport_closes_its_connections(way: Way) -> None:
    with ByteServer(OK) as server:
        assert (
            await fetch(sending.as_async(way.mode, way.make_transport()), get(server.url)) == b"ok"
        )
        gc.collect()
        await call_blocking(way.mode, server.wait_until_closed)


LOOPS = [way for way in WAYS if way.mode != "sync" and way.transport in ("aiohttp", "httpx")]


@pytest.mark.parametrize("way", LOOPS, ids=str)
@pytest.mark.parametrize("cycle", [False, True], ids=["plain", "cycle"])
def test_body_may_outlive_its_event_loop(way: Way, *, cycle: bool) -> None:
    """The connection is closed when the loop ends. If the body is freed later, nothing warns."""
    kept: list[Any] = []

    async def use() -> None:
        transport = sending.as_async(way.mode, way.make_transport())
        body = (await transport.send_async(get(server.url, stream=True))).body
        pieces = Pieces(body)
        assert await anext(pieces) == b"first"
        kept.extend((body, pieces, kept) if cycle else (body, pieces))

    with ByteServer(HALF) as server:
        run(way.mode, use)
        server.wait_until_closed()
    kept = []
    gc.collect()


@pytest.mark.parametrize("way", LOOPS, ids=str)
def test_close_that_is_cancelled_closes_all_connections(way: Way) -> None:
    async def use() -> None:
        transport = sending.as_async(way.mode, way.make_transport())
        async with create_task_group() as calls:
            for _ in range(3):
                calls.start_soon(fetch, transport, get(server.url))
            await call_blocking(way.mode, server.wait_for_requests, 3)
            server.release()
        with CancelScope() as scope:
            scope.cancel()
            await transport.close_async()
        await call_blocking(way.mode, server.wait_until_closed)

    with ByteServer((WaitForRelease(), *OK)) as server:
        run(way.mode, use)


@pytest.mark.parametrize("way", [way for way in LOOPS if way.mode == "asyncio"], ids=str)
def test_close_that_is_cancelled_when_its_event_loop_ends_closes_all_connections(way: Way) -> None:
    """The close is cancelled after 0, 1, ... steps, and the loop ends some steps later."""

    async def use(server: ByteServer, steps: int, more_steps: int) -> AsyncTransport:
        transport = sending.as_async(way.mode, way.make_transport())
        async with create_task_group() as calls:
            for _ in range(3):
                calls.start_soon(fetch, transport, get(server.url))
            await call_blocking(way.mode, server.wait_for_requests, 3)
            server.release()
        closing = asyncio.ensure_future(transport.close_async())
        for _ in range(steps):
            await asyncio.sleep(0)
        closing.cancel()
        for _ in range(more_steps):
            await asyncio.sleep(0)
        return transport

    for steps, more_steps in product(range(7), range(7)):
        with ByteServer((WaitForRelease(), *OK)) as server:
            transport = asyncio.run(use(server, steps, more_steps))
            server.wait_until_closed()
            del transport
            gc.collect()


@pytest.mark.parametrize("way", LOOPS, ids=str)
def test_event_loop_closes_a_generator_with_an_unfinished_body_without_a_warning(
    way: Way, recwarn: pytest.WarningsRecorder
) -> None:
    """The generator is suspended when the loop ends. trio closes generators in any order."""

    async def pieces(transport: AsyncTransport) -> AsyncGenerator[bytes, None]:
        body = (await transport.send_async(get(server.url, stream=True))).body
        async for piece in Pieces(body):
            yield piece

    kept: list[Any] = []

    async def use() -> None:
        transport = sending.as_async(way.mode, way.make_transport())
        kept.extend((transport, pieces(transport)))
        assert await anext(kept[-1]) == b"first"

    for _ in range(8):
        with ByteServer(HALF) as server:
            run(way.mode, use)
            server.wait_until_closed()
        kept.clear()
        gc.collect()
    assert [str(each.message) for each in recwarn] == []


@pytest.mark.parametrize("way", SYNC_WAYS, ids=str)
def test_call_in_a_signal_handler_does_not_wait_for_a_lock_of_its_thread(way: Way) -> None:
    """Over httpx, it raises an error instead. The interrupted call continues."""
    turn = http_response(chunk("a"), headers=SSE.items(), framing="chunked")
    with ByteServer(turn) as server:
        name, _ = TRANSPORTS[way.transport]
        command = [sys.executable, str(AT_LOCKS), "call", server.url, name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert int(done.stdout) > 0


IDLE = 0.5  # An idle timeout in seconds.


# The contract tests the timeouts of reads over each transport. This test needs a sync and an async
# stream.
@over(*(way for way in LIBRARIES if way.transport in ("aiohttp", "urllib3")))
async def test_comments_do_not_extend_the_idle_timeout(way: Way) -> None:
    """The second event arrives after the idle timeout, but soon after a comment."""
    late = Sleep(0.8 * IDLE), b": comment\n\n", Sleep(0.8 * IDLE), chunk("b"), WaitForRelease()
    turn = http_response(chunk("a"), *late, headers=SSE.items(), framing="chunked")
    with ByteServer(turn) as server:
        flux0 = Flux0(
            server.url, transport=way.make_transport(), stream_idle_timeout_ms=int(IDLE * 1000)
        )
        async with in_mode(way.mode, flux0) as either:
            stream = await either.sessions.create_event_async(session_id="s", content="Hi")
            assert await anext(stream)
            with pytest.raises(StreamIdleTimeout):
                await anext(stream)
    assert stream.event_count == 1


# The number of open streams. It exceeds the default limits of httpx and aiohttp on connections, and
# the default limit of anyio on threads.
MANY = 110


@pytest.mark.parametrize("way", LIBRARIES, ids=str)
def test_client_may_have_many_open_streams(way: Way) -> None:
    turn = http_response(
        chunk("a"), WaitForRelease(), chunk("b"), headers=SSE.items(), framing="chunked"
    )

    async def test() -> None:
        async with in_mode(way.mode, Flux0(server.url, transport=way.make_transport())) as flux0:
            streams: list[AsyncEventStream] = []
            for number in range(MANY):
                stream = await flux0.sessions.create_event_async(
                    session_id=f"s{number}", content="Hi"
                )
                await anext(stream)
                streams.append(stream)
            assert server.open_connections == MANY
            server.release()
            for stream in streams:
                assert len([event async for event in stream]) == 1
                assert stream.finished

    with ByteServer(turn) as server:
        run(way.mode, test)
        server.wait_until_closed()


@pytest.mark.parametrize("name", ["aiohttp", "httpx"])
def test_transport_can_be_used_in_one_event_loop_after_another(name: str) -> None:
    ways = [way for way in LOOPS if way.transport == name] * 2
    transport = sending.as_async("asyncio", ways[0].make_transport())

    async def use() -> None:
        assert await fetch(transport, get(server.url)) == b"ok"

    with ByteServer(OK) as server:
        for way in ways:
            run(way.mode, use)
            server.wait_until_closed()
        assert server.connections == len(ways)
