"""Streams and calls over loopback, compared with the HTTP libraries; and calls of the core."""

from __future__ import annotations

import asyncio
import atexit
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import aiohttp
import httpx
import requests
import urllib3
from attrs import frozen

import flux0
from benchmarks import data
from benchmarks.measuring import Case, Effort, Sample
from benchmarks.server import EVENT_BYTES, serving, session_id
from flux0 import Flux0
from flux0.domain.headers import Headers
from flux0.ports import Request, Response

HEADERS = {"accept": "text/event-stream", "content-type": "application/json"}
BODY = b'{"type":"message","source":"user","content":"Hi"}'
_CALL_TARGETS = {"urllib3": 1.3, "aiohttp": 1.6}


def streams(effort: Effort) -> Iterator[Case]:
    """A turn whose events arrive at intervals of 0.5 ms, so that the caches are cold."""
    return _turns("stream", effort, count=300, pause=0.0005)


def bursts(effort: Effort) -> Iterator[Case]:
    """A turn whose events arrive at once, so that the HTTP library does the least work."""
    return _turns("burst", effort, count=1000, pause=0.0)


def _turns(scenario: str, effort: Effort, *, count: int, pause: float) -> Iterator[Case]:
    session = session_id(count, pause)
    texts = data.texts(data.turn(EVENT_BYTES, count))

    def bare(library: Library, url: str) -> None:
        decoded = map(json.loads, texts)  # `read` decodes one event after each piece.
        library.runner(library.read, url, decoded)()
        deque(decoded, 0)  # Decode the rest: some pieces contained several events.

    with serving() as base:
        url = f"{base}/api/sessions/{session}/events/stream"
        for library in libraries():
            ours = read_turn if library.loop is None else read_turn_async
            client = Flux0(base, transport=library.transport())
            yield Case(
                scenario,
                library.name,
                effort.cpu(count, library.runner(ours, client, session)),
                {"bare + json.loads": effort.cpu(count, bare, library, url)},
            )


def read_turn(client: Flux0, session: str) -> None:
    """Read a turn over flux0."""
    for _ in client.sessions.create_event(session_id=session, content="Hi"):
        pass


async def read_turn_async(client: Flux0, session: str) -> None:
    """The async version of `read_turn`."""
    async for _ in await client.sessions.create_event_async(session_id=session, content="Hi"):
        pass


def calls(effort: Effort) -> Iterator[Case]:
    """`agents.list()` with ten agents, compared with the HTTP library and `json.loads`."""
    with serving() as base:
        for library in libraries():
            agents = Flux0(base, transport=library.transport()).agents
            ours = agents.list if library.loop is None else agents.list_async
            bare = library.runner(library.fetch, f"{base}/api/agents")
            yield Case(
                "call",
                library.name,
                effort.cpu(1, library.runner(ours)),
                {"bare + json.loads": effort.cpu(1, bare)},
                target=_CALL_TARGETS.get(library.name, 1.15),
            )


def first_calls(effort: Effort) -> Iterator[Case]:
    """A new client, its first call and its end, in milliseconds, compared with a limit."""
    with serving() as base:
        url = f"{base}/api/agents"
        for name, transport, bare, limit in (
            ("httpx", flux0.HttpxTransport, httpx.Client, 1.5),
            ("urllib3", flux0.Urllib3Transport, urllib3.PoolManager, 1.0),
            ("requests", flux0.RequestsTransport, requests.Session, None),
        ):
            limits: dict[str, Sample] = {} if limit is None else {f"{limit} ms": _constant(limit)}
            ours = _milliseconds(effort, _first_call, base, transport)
            peers = {**limits, "bare": _milliseconds(effort, _bare_first_call, url, bare)}
            target = None if limit is None else 1.0
            yield Case("first", name, ours, peers, target=target, unit="ms")


def _first_call(base: str, transport: Callable[[], Any]) -> None:
    with Flux0(base, transport=transport()) as client:
        client.agents.list()


def _bare_first_call(url: str, make: Callable[[], Any]) -> None:
    with make() as client:
        response = client.request("GET", url)
        json.loads(getattr(response, "content", None) or response.data)


def _constant(amount: float) -> Sample:
    return lambda: amount


def _milliseconds(effort: Effort, work: Callable[..., object], *arguments: object) -> Sample:
    microseconds = effort.cpu(1, work, *arguments)
    return lambda: microseconds() / 1000


def core(effort: Effort) -> Iterator[Case]:
    """A core call with a transport that does nothing, compared with `json.loads`."""
    body = data.listing(10, data.AGENT)
    client = Flux0(transport=Stub((body,)))
    name = "agents.list() over a transport that does nothing"
    peers = {"json.loads": effort.cpu(1, json.loads, body)}
    yield Case("core", name, effort.cpu(1, client.agents.list), peers)


class Stub:
    """A transport without a network, which returns the same body for each request."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces

    def send(self, request: Request) -> Response[Any]:
        """Return the response, with the content type that the request accepts."""
        self._unread = iter(self._pieces)
        return Response(200, Headers((("content-type", request.headers["accept"]),)), self)

    def read(self, timeout: float | None) -> bytes | None:
        """Return the next piece."""
        return next(self._unread, None)

    def close(self) -> None:
        """Do nothing. This object is the transport and the body."""


# --- the HTTP libraries, used as their documentation recommends


@frozen
class Library:
    """An HTTP library, the flux0 transport for it, and functions that use only the library.

    `fetch` returns the JSON of a response. `read` reads a stream to its end, and calls `next` on
    its second argument after each piece. If there is a loop, both are coroutine functions.
    """

    name: str
    transport: Callable[[], Any]
    fetch: Callable[[str], Any]
    read: Callable[[str, Iterator[Any]], Any]
    loop: asyncio.AbstractEventLoop | None = None

    def runner(self, work: Callable[..., Any], *arguments: object) -> Callable[..., object]:
        """Return a function that runs `work`, in the loop if there is one."""
        loop = self.loop
        if loop is None:
            return partial(work, *arguments)
        return lambda *more: loop.run_until_complete(work(*arguments, *more))


def libraries() -> list[Library]:
    """Return all libraries, with open clients."""
    httpx_family = [
        make(name, transport)
        for name, transport in (("httpx", flux0.HttpxTransport), ("httpx2", flux0.Httpx2Transport))
        for make in (_httpx, _httpx_async)
    ]
    return [*httpx_family, _requests(), _urllib3(), _aiohttp()]


def _httpx(name: str, transport: Callable[[], Any]) -> Library:
    client = import_module(name).Client()

    def read(url: str, decoded: Iterator[object]) -> None:
        with client.stream("POST", url, content=BODY, headers=HEADERS) as response:
            for _ in response.iter_raw():
                next(decoded, None)

    return Library(name, transport, lambda url: json.loads(client.get(url).content), read)


def _httpx_async(name: str, transport: Callable[[], Any]) -> Library:
    client = import_module(name).AsyncClient()

    async def fetch(url: str) -> object:
        return json.loads((await client.get(url)).content)

    async def read(url: str, decoded: Iterator[object]) -> None:
        async with client.stream("POST", url, content=BODY, headers=HEADERS) as response:
            async for _ in response.aiter_raw():
                next(decoded, None)

    return Library(f"{name} async", transport, fetch, read, asyncio.new_event_loop())


def _requests() -> Library:
    session = requests.Session()

    def read(url: str, decoded: Iterator[object]) -> None:
        with session.post(url, data=BODY, stream=True, headers=HEADERS) as response:
            for _ in response.iter_content(None):
                next(decoded, None)

    transport = flux0.RequestsTransport
    return Library("requests", transport, lambda url: json.loads(session.get(url).content), read)


def _urllib3() -> Library:
    pool = urllib3.PoolManager()

    def read(url: str, decoded: Iterator[object]) -> None:
        response = pool.request("POST", url, body=BODY, preload_content=False, headers=HEADERS)
        for _ in response.stream():
            next(decoded, None)
        response.release_conn()

    transport = flux0.Urllib3Transport
    return Library(
        "urllib3", transport, lambda url: json.loads(pool.request("GET", url).data), read
    )


def _aiohttp() -> Library:
    loop = asyncio.new_event_loop()

    async def open_session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    session = loop.run_until_complete(open_session())
    atexit.register(lambda: loop.run_until_complete(session.close()))

    async def read(url: str, decoded: Iterator[object]) -> None:
        async with session.post(url, data=BODY, headers=HEADERS) as response:
            async for _ in response.content.iter_any():
                next(decoded, None)

    async def fetch(url: str) -> object:
        async with session.get(url) as response:
            return json.loads(await response.read())

    return Library("aiohttp", flux0.AiohttpTransport, fetch, read, loop)
