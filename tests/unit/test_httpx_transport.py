"""The httpx transport: the contract, and what is httpx's own."""

from __future__ import annotations

import ssl

import httpx

from flux0.adapters.httpx import HttpxTransport
from flux0.testing.contract import (
    AsyncTransportContract,
    LimitedPoolContract,
    TransportContract,
)


class TestHttpxTransport(LimitedPoolContract, TransportContract):
    def make_transport(self) -> HttpxTransport:
        return HttpxTransport()

    def make_trusting_transport(self, ca_file: str) -> HttpxTransport:
        return _Configured(httpx.Client(verify=ssl.create_default_context(cafile=ca_file)))

    def make_limited_transport(self) -> HttpxTransport:
        return _Configured(httpx.Client(limits=httpx.Limits(max_connections=1)))


class TestAsyncHttpxTransport(LimitedPoolContract, AsyncTransportContract):
    def make_transport(self) -> HttpxTransport:
        return HttpxTransport()

    def make_trusting_transport(self, ca_file: str) -> HttpxTransport:
        context = ssl.create_default_context(cafile=ca_file)
        return _AsyncConfigured(httpx.AsyncClient(verify=context))

    def make_limited_transport(self) -> HttpxTransport:
        return _AsyncConfigured(httpx.AsyncClient(limits=httpx.Limits(max_connections=1)))


class _Configured(HttpxTransport):
    """Closes the client that it was given, as its user would."""

    def __init__(self, client: httpx.Client) -> None:
        super().__init__(client)
        self._given = client

    def close(self) -> None:
        super().close()
        self._given.close()


class _AsyncConfigured(HttpxTransport):
    """Closes the client that it was given, as its user would."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        super().__init__(async_client=client)
        self._given = client

    async def close_async(self) -> None:
        await super().close_async()
        await self._given.aclose()
