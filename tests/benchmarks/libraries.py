"""Calls and streams over bare HTTP libraries, as their own documents tell to make them."""

from __future__ import annotations

import asyncio
import atexit
import json
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import aiohttp
import requests
import urllib3
from attrs import frozen

import flux0

_TURN: dict[str, Any] = {
    "headers": {"accept": "text/event-stream", "content-type": "application/json"}
}
_BODY = b'{"type":"message","source":"user","content":"Hi"}'


@frozen
class Library:
    """A library, its transport of ours, and what it is measured by: functions of a URL.

    `fetch` returns the JSON of an answer. `read` reads a stream to its end, and takes a thing from
    what it is given besides as each piece comes. They are coroutine functions where there is a
    loop.
    """

    name: str
    transport: Callable[[], Any]
    fetch: Callable[[str], Any]
    read: Callable[[str, Iterator[object]], Any]
    loop: asyncio.AbstractEventLoop | None = None

    def to_the_end(self, work: Callable[..., Any], *arguments: object) -> Callable[[], object]:
        """Return what does some work to its end, in the loop if there is one."""
        loop = self.loop
        if loop is None:
            return partial(work, *arguments)
        return lambda: loop.run_until_complete(work(*arguments))


def all_of() -> list[Library]:
    """Return every library, with clients that are open."""
    httpx_family = [
        make(name, transport)
        for name, transport in (("httpx", flux0.HttpxTransport), ("httpx2", flux0.Httpx2Transport))
        for make in (_httpx, _httpx_async)
    ]
    return [*httpx_family, _requests(), _urllib3(), _aiohttp()]


def _httpx(name: str, transport: Callable[[], Any]) -> Library:
    client = import_module(name).Client()

    def read(url: str, decoded: Iterator[object]) -> None:
        with client.stream("POST", url, content=_BODY, **_TURN) as response:
            for _ in response.iter_raw():
                next(decoded, None)

    return Library(name, transport, lambda url: json.loads(client.get(url).content), read)


def _httpx_async(name: str, transport: Callable[[], Any]) -> Library:
    client = import_module(name).AsyncClient()

    async def fetch(url: str) -> object:
        return json.loads((await client.get(url)).content)

    async def read(url: str, decoded: Iterator[object]) -> None:
        async with client.stream("POST", url, content=_BODY, **_TURN) as response:
            async for _ in response.aiter_raw():
                next(decoded, None)

    return Library(f"{name} async", transport, fetch, read, asyncio.new_event_loop())


def _requests() -> Library:
    session = requests.Session()

    def read(url: str, decoded: Iterator[object]) -> None:
        with session.post(url, data=_BODY, stream=True, **_TURN) as response:
            for _ in response.iter_content(None):
                next(decoded, None)

    transport = flux0.RequestsTransport
    return Library("requests", transport, lambda url: json.loads(session.get(url).content), read)


def _urllib3() -> Library:
    pool = urllib3.PoolManager()

    def read(url: str, decoded: Iterator[object]) -> None:
        response = pool.request("POST", url, body=_BODY, preload_content=False, **_TURN)
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
        async with session.post(url, data=_BODY, **_TURN) as response:
            async for _ in response.content.iter_any():
                next(decoded, None)

    async def fetch(url: str) -> object:
        async with session.get(url) as response:
            return json.loads(await response.read())

    return Library("aiohttp", flux0.AiohttpTransport, fetch, read, loop)
