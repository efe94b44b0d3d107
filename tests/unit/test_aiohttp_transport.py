"""The aiohttp transport: the contract, and what is aiohttp's own."""

from __future__ import annotations

import ssl

import aiohttp

from flux0.adapters.aiohttp import AiohttpTransport
from flux0.ports import AsyncByteStream, Request, Response
from flux0.testing.contract import AsyncTransportContract, LimitedPoolContract


class TestAiohttpTransport(LimitedPoolContract, AsyncTransportContract):
    backends = ("asyncio",)

    def make_transport(self) -> AiohttpTransport:
        return AiohttpTransport()

    def make_trusting_transport(self, ca_file: str) -> _Configured:
        return _Configured(ssl_context=ssl.create_default_context(cafile=ca_file))

    def make_limited_transport(self) -> _Configured:
        return _Configured(limit=1)


class _Configured:
    """Makes a session in the loop that uses it, and closes it as its user would."""

    def __init__(self, *, limit: int = 100, ssl_context: ssl.SSLContext | None = None) -> None:
        self._limit = limit
        self._ssl: ssl.SSLContext | bool = True if ssl_context is None else ssl_context
        self._made: tuple[aiohttp.ClientSession, AiohttpTransport] | None = None

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        if self._made is None:
            connector = aiohttp.TCPConnector(limit=self._limit, ssl=self._ssl)
            session = aiohttp.ClientSession(connector=connector)
            self._made = session, AiohttpTransport(session)
        return await self._made[1].send_async(request)

    async def close_async(self) -> None:
        if self._made is not None:
            session, transport = self._made
            await transport.close_async()
            await session.close()
