"""Relays and background turns, compared with streams that are only read.

`python -m benchmarks.relays browser` reads URLs from its standard input, requests each, and prints
a line at the end of each response.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from shutil import which
from socket import create_connection, socket
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any
from urllib.parse import urlsplit

import httpx
import uvicorn

from benchmarks import data
from benchmarks.exchanges import BODY, HEADERS, Stub, read_turn
from benchmarks.measuring import Case, Effort, Sample, collect_garbage
from benchmarks.server import EVENT_BYTES, serving, session_id
from flux0 import AiohttpTransport, BackgroundTurns, Flux0, HttpxTransport, RedisTurnStore

_COUNT = 1000
_READ_BYTES = 64 * 1024  # The size of a read of httpx.
_STREAMS, _PER_SECOND, _SECONDS = 50, 30, 1


def relays(effort: Effort) -> Iterator[Case]:
    """A turn whose events arrive at once, without a network: relays, compared with iteration."""
    turn = b"".join(data.turn(EVENT_BYTES, _COUNT))
    pieces = [turn[at : at + _READ_BYTES] for at in range(0, len(turn), _READ_BYTES)]
    client = Flux0(transport=Stub(pieces))
    peers = {"iteration": effort.cpu(_COUNT, read_turn, client, "s")}
    ours = effort.cpu(_COUNT, _relay, client)
    yield Case("relay", "stream.relay()", ours, peers, target=1.3)
    ours = effort.cpu(_COUNT, _relay_background, client, BackgroundTurns())
    yield Case("relay", "background turn in memory", ours, peers, target=1.6)
    if which("redis-server") is not None:
        with _redis() as url:
            turns = BackgroundTurns(RedisTurnStore.from_url(url))
            ours = effort.cpu(_COUNT, _relay_background, client, turns)
            yield Case("relay", "background turn in Redis, its process", ours, peers, target=1.8)
            # A store follows the turns of other stores as the turns of other processes.
            others = BackgroundTurns(RedisTurnStore.from_url(url))
            ours = effort.cpu(_COUNT, _relay_joined, others)
            limit: dict[str, Sample] = {"3 µs": lambda: 3.0}
            yield Case("relay", "background turn in Redis, second process", ours, limit, target=1.0)
            turns.close()
            others.close()


def _relay(client: Flux0) -> None:
    for _ in client.sessions.create_event(session_id="s", content="Hi").relay():
        pass


def _relay_background(client: Flux0, turns: BackgroundTurns) -> None:
    for _ in turns.start(client.conversation(session="s"), "Hi").relay():
        pass


def _relay_joined(turns: BackgroundTurns) -> None:
    turn = turns.join("s")
    assert turn is not None
    for _ in turn.relay():
        pass


@contextmanager
def _redis() -> Generator[str, None, None]:
    with TemporaryDirectory() as folder:
        path = Path(folder, "redis.socket")
        command = ("redis-server", "--port", "0", "--unixsocket", str(path), "--save", "")
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder) as process:
            try:
                while not path.exists():  # Redis accepts connections as soon as it exists.
                    time.sleep(0.01)
                yield f"unix://{path}"
            finally:
                process.kill()


def web(effort: Effort) -> Iterator[Case]:
    """A turn whose events arrive at once, and its relay over uvicorn, compared with 12 µs."""
    for name, transport in (("httpx", HttpxTransport), ("aiohttp", AiohttpTransport)):
        with serving() as base:
            client = Flux0(base, transport=transport())
            loop = asyncio.new_event_loop()
            fetch = loop.run_until_complete(_start_web_server(client))
            ours = effort.cpu(_COUNT, lambda: loop.run_until_complete(fetch()))  # noqa: B023
            yield Case("web", f"async relay, {name}", ours, {"12 µs": lambda: 12.0}, target=1.0)
            loop.run_until_complete(client.close_async())


async def _start_web_server(client: Flux0) -> Callable[[], Awaitable[object]]:
    """Start uvicorn and a browser, and return a function that lets the browser read a turn."""

    async def application(_: Any, __: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        session = session_id(_COUNT)
        stream = await client.sessions.create_event_async(session_id=session, content="Hi")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        async for piece in stream.relay():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})

    listener = socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application, lifespan="off", log_level="error"))
    tasks = [asyncio.create_task(server.serve([listener]))]
    browser = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, "browser"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert browser.stdin is not None
    assert browser.stdout is not None
    write, read = browser.stdin.write, browser.stdout.readline

    async def fetch() -> None:
        write(f"http://127.0.0.1:{listener.getsockname()[1]}\n".encode())
        assert await read() == b"ok\n"
        assert not tasks[0].done()

    return fetch


def _browse() -> None:
    for line in sys.stdin:
        url = urlsplit(line.strip())
        with create_connection((url.hostname or "", url.port or 80)) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            events = last = 0
            rest = b""
            while received := connection.recv(65536):
                rest += received
                events += rest.count(b"data: ")
                rest, last = rest[-6:], events
            print("ok" if last >= _COUNT else "incomplete", flush=True)


def paced(effort: Effort) -> Iterator[Case]:
    """50 async streams with 30 events in a second each, compared with bare httpx."""
    with serving() as base:
        loop = asyncio.new_event_loop()
        client, bare_client = Flux0(base), httpx.AsyncClient(limits=httpx.Limits())
        sample = partial(_paced, loop)
        bare = sample(partial(_bare, bare_client, base))
        for name, read, target in (
            ("iteration", _iterate, 1.0),
            ("stream.relay()", _relay_async, 1.2),
            ("background turn", partial(_relay_background_async, BackgroundTurns()), None),
        ):
            ours = sample(partial(read, client))
            peers = {"bare + json.loads": bare}
            yield Case("paced", f"50 streams, {name}", ours, peers, target=target, slow=True)
        loop.run_until_complete(client.close_async())
        loop.run_until_complete(bare_client.aclose())


def _paced(loop: asyncio.AbstractEventLoop, read: Callable[[str], AsyncIterator[object]]) -> Sample:
    """Measure the CPU time of an event, in microseconds, of streams that begin one by one."""
    count, pause = _PER_SECOND * _SECONDS, 1 / _PER_SECOND

    async def read_one(number: int) -> None:
        await asyncio.sleep(pause * number / _STREAMS)
        # Each stream has its own session. The server ignores the zeros at the end.
        async for _ in read(session_id(count, pause) + "0" * number):
            pass

    async def read_all() -> None:
        await asyncio.gather(*map(read_one, range(_STREAMS)))

    def measure() -> float:
        collect_garbage()
        begin = process_time()
        loop.run_until_complete(read_all())
        return (process_time() - begin) / (_STREAMS * count) * 1e6

    return measure


async def _bare(client: httpx.AsyncClient, base: str, session: str) -> AsyncIterator[object]:
    url = f"{base}/api/sessions/{session}/events/stream"
    async with client.stream("POST", url, content=BODY, headers=HEADERS) as response:
        async for piece in response.aiter_raw():
            for text in data.texts(piece.split(b"\n\n")[:-1]):
                yield json.loads(text)


async def _iterate(client: Flux0, session: str) -> AsyncIterator[object]:
    async for event in await client.sessions.create_event_async(session_id=session, content="Hi"):
        yield event


async def _relay_async(client: Flux0, session: str) -> AsyncIterator[object]:
    stream = await client.sessions.create_event_async(session_id=session, content="Hi")
    async for piece in stream.relay():
        yield piece


async def _relay_background_async(
    turns: BackgroundTurns, client: Flux0, session: str
) -> AsyncIterator[object]:
    turn = await turns.start_async(await client.conversation_async(session=session), "Hi")
    async for piece in turn.relay_async():
        yield piece


if __name__ == "__main__":
    _browse()
