"""Calls and streams over bare HTTP libraries, as their own documents tell to make them."""

from __future__ import annotations

import asyncio
import atexit
import json
from collections.abc import Callable, Coroutine
from importlib import import_module
from typing import Any, TypeAlias

import aiohttp
import httpx
import requests
import urllib3
from attrs import frozen

import flux0

_BODY = b'{"type":"message","source":"user","content":"Hi"}'
_HEADERS = {"accept": "text/event-stream", "content-type": "application/json"}

# Fetches a URL and returns its JSON; or reads a stream to its end.
Fetch: TypeAlias = Callable[[str], object]
FetchAsync: TypeAlias = Callable[[str], Coroutine[Any, Any, object]]


@frozen
class Library:
    """A library, its transport of ours, and what it is measured by."""

    name: str
    transport: Callable[[], Any]
    fetch: Fetch | FetchAsync
    read: Fetch | FetchAsync
    loop: asyncio.AbstractEventLoop | None = None  # Of a library for asynchronous code.


def all_of() -> list[Library]:
    """Return every library, with clients that are open."""
    httpx2 = import_module("httpx2")
    return [
        _httpx("httpx", httpx, flux0.HttpxTransport),
        _httpx_async("httpx async", httpx, flux0.HttpxTransport),
        _httpx("httpx2", httpx2, flux0.Httpx2Transport),
        _httpx_async("httpx2 async", httpx2, flux0.Httpx2Transport),
        _requests(),
        _urllib3(),
        _aiohttp(),
    ]


def _httpx(name: str, library: Any, transport: Callable[[], Any]) -> Library:
    client = library.Client()

    def read(url: str) -> None:
        with client.stream("POST", url, content=_BODY, headers=_HEADERS) as response:
            for _ in response.iter_raw():
                pass

    return Library(name, transport, lambda url: json.loads(client.get(url).content), read)


def _httpx_async(name: str, library: Any, transport: Callable[[], Any]) -> Library:
    client = library.AsyncClient()

    async def fetch(url: str) -> object:
        return json.loads((await client.get(url)).content)

    async def read(url: str) -> None:
        async with client.stream("POST", url, content=_BODY, headers=_HEADERS) as response:
            async for _ in response.aiter_raw():
                pass

    return Library(name, transport, fetch, read, asyncio.new_event_loop())


def _requests() -> Library:
    session = requests.Session()

    def read(url: str) -> None:
        with session.post(url, data=_BODY, headers=_HEADERS, stream=True) as response:
            for _ in response.iter_content(None):
                pass

    def fetch(url: str) -> object:
        return json.loads(session.get(url).content)

    return Library("requests", flux0.RequestsTransport, fetch, read)


def _urllib3() -> Library:
    pool = urllib3.PoolManager()

    def read(url: str) -> None:
        response = pool.request("POST", url, body=_BODY, headers=_HEADERS, preload_content=False)
        for _ in response.stream():
            pass
        response.release_conn()

    def fetch(url: str) -> object:
        return json.loads(pool.request("GET", url).data)

    return Library("urllib3", flux0.Urllib3Transport, fetch, read)


def _aiohttp() -> Library:
    loop = asyncio.new_event_loop()

    async def open_session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    session = loop.run_until_complete(open_session())
    atexit.register(lambda: loop.run_until_complete(session.close()))

    async def read(url: str) -> None:
        async with session.post(url, data=_BODY, headers=_HEADERS) as response:
            async for _ in response.content.iter_any():
                pass

    async def fetch(url: str) -> object:
        async with session.get(url) as response:
            return json.loads(await response.read())

    return Library("aiohttp", flux0.AiohttpTransport, fetch, read, loop)
