"""Tools for tests of httpx and httpx2, sync and async."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any, ClassVar

from attrs import frozen

import flux0
from flux0 import BackoffStrategy, Flux0, RetryConfig
from flux0.ports import Request
from flux0.testing.contract import LimitedPoolContract
from support import modes, sending
from support.transports import TRANSPORTS, WAYS, Way

FAST = RetryConfig(backoff=BackoffStrategy(1, 1, 1, 10_000), max_attempts=3)


@frozen
class OverHttpx(Way):
    """httpx or httpx2, in sync code or under one event loop."""

    @property
    def library(self) -> Any:
        return import_module(self.transport)

    def kind(self, name: str) -> Any:
        """Return a class of the library; in async modes, its async version."""
        return getattr(self.library, name if self.mode == "sync" else f"Async{name}")

    def client(self, **options: Any) -> Any:
        return self.kind("Client")(**options)

    def transport_over(self, client: Any) -> Any:
        """Return a transport over `client`, or over the built-in client if `client` is None."""
        name, _ = TRANSPORTS[self.transport]
        argument = "client" if self.mode == "sync" else "async_client"
        return getattr(flux0, name)(**{argument: client})

    def act(self, act: Callable[..., Any]) -> Callable[..., Any]:
        """Return `act` as a callback for the client. Async clients need a coroutine function."""
        if self.mode == "sync":
            return act

        async def act_async(*args: Any) -> Any:
            return act(*args)

        return act_async

    @asynccontextmanager
    async def closing(self, client: Any) -> AsyncGenerator[Any, None]:
        """Yield a transport over a client, and close both at the end."""
        transport = self.transport_over(client)
        try:
            yield transport
        finally:
            await sending.as_async(self.mode, transport).close_async()
            if client is not None:
                await client.aclose() if hasattr(client, "aclose") else client.close()

    async def fetch(self, transport: Any, request: Request) -> tuple[int, bytes]:
        """Send a request, and return the response's status and body."""
        response = await sending.as_async(self.mode, transport).send_async(request)
        return response.status_code, await sending.read(response.body)

    async def fetch_once(self, request: Request, **options: Any) -> tuple[int, bytes]:
        """Call `fetch` over a new client with these options, or over the built-in client."""
        async with self.closing(self.client(**options) if options else None) as transport:
            return await self.fetch(transport, request)

    async def create_session(self, url: str, transport: Any) -> None:
        """Send a POST with a `Flux0` client that retries."""
        client = modes.in_mode(self.mode, Flux0(url, transport=transport, retry_config=FAST))
        await client.sessions.create_async(agent_id="a")

    async def create_session_once(self, url: str, **options: Any) -> None:
        """Call `create_session` over the library's new client with these options."""
        async with self.closing(self.client(**options)) as transport:
            await self.create_session(url, transport)


# httpx2 has the same adapter as httpx, and does not run under trio again.
FAMILY = tuple(
    OverHttpx(way.transport, way.mode)
    for way in WAYS
    if "httpx" in way.transport and (way.transport, way.mode) != ("httpx2", "trio")
)
FAMILY_SYNC = tuple(way for way in FAMILY if way.mode == "sync")
# The sync and the async adapter.
VERSIONS = tuple(way for way in FAMILY if str(way) in ("httpx-sync", "httpx-asyncio"))


class HttpxContract(LimitedPoolContract):
    """Creates the transports for the contract."""

    transport: ClassVar[Any]

    def make_transport(self) -> Any:
        return self.transport()

    def make_trusting_transport(self, ca_file: str) -> Any:
        return self._configured(verify=ssl.create_default_context(cafile=ca_file))

    def make_limited_transport(self) -> Any:
        return self._configured(limits=self._library().Limits(max_connections=1))

    def _library(self) -> Any:
        return import_module(self.transport.__name__.removesuffix("Transport").lower())

    def _configured(self, **options: Any) -> Any:
        library, transport = self._library(), self.transport
        client, async_client = library.Client(**options), library.AsyncClient(**options)

        class Configured(transport):  # type: ignore[misc, valid-type]
            """Closes its clients, as a user would."""

            def close(self) -> None:
                super().close()  # pyright: ignore[reportUnknownMemberType]
                client.close()

            async def close_async(self) -> None:
                await super().close_async()  # pyright: ignore[reportUnknownMemberType]
                await async_client.aclose()

        return Configured(client, async_client)
