"""httpx, and httpx2 which is made like it: their clients, in every kind of code."""

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
    """One of the libraries, in one kind of code."""

    @property
    def library(self) -> Any:
        return import_module(self.transport)

    def kind(self, name: str) -> Any:
        """Return a class of the library, or its asynchronous twin."""
        return getattr(self.library, name if self.mode == "sync" else f"Async{name}")

    def client(self, **options: Any) -> Any:
        return self.kind("Client")(**options)

    def transport_over(self, client: Any) -> Any:
        """Return a transport over a client, or over its own."""
        name, _ = TRANSPORTS[self.transport]
        argument = "client" if self.mode == "sync" else "async_client"
        return getattr(flux0, name)(**{argument: client})

    def act(self, act: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function as this kind of client calls it: as it is, or as a coroutine."""
        if self.mode == "sync":
            return act

        async def act_async(*args: Any) -> Any:
            return act(*args)

        return act_async

    @asynccontextmanager
    async def closing(self, client: Any) -> AsyncGenerator[Any, None]:
        """Give a transport over a client, and close both."""
        transport = self.transport_over(client)
        try:
            yield transport
        finally:
            await sending.in_mode(self.mode, transport).close_async()
            if client is not None:
                await client.aclose() if hasattr(client, "aclose") else client.close()

    async def fetch(self, transport: Any, request: Request) -> tuple[int, bytes]:
        """Send a request, and return the status and the body of its answer."""
        response = await sending.in_mode(self.mode, transport).send_async(request)
        return response.status_code, await sending.read(response.body)

    async def fetch_once(self, request: Request, **options: Any) -> tuple[int, bytes]:
        """Do so over a client with these options, or over the transport's own without any."""
        async with self.closing(self.client(**options) if options else None) as transport:
            return await self.fetch(transport, request)

    async def create_session(self, url: str, transport: Any) -> None:
        """Have a client send a POST, which must not be sent twice."""
        either = modes.in_mode(self.mode, Flux0(url, transport=transport, retry_config=FAST))
        await either.sessions.create_async(agent_id="a")

    async def create_session_once(self, url: str, **options: Any) -> None:
        """Do so over a client of the library with these options."""
        async with self.closing(self.client(**options)) as transport:
            await self.create_session(url, transport)


FAMILY = tuple(OverHttpx(way.transport, way.mode) for way in WAYS if "httpx" in way.transport)
FAMILY_BLOCKING = tuple(way for way in FAMILY if way.mode == "sync")
FAMILY_LOOPS = tuple(way for way in FAMILY if way.mode != "sync")


class HttpxContract(LimitedPoolContract):
    """How to make the transports that the contract asks for."""

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
            """Closes the clients that it was given, as their user would."""

            def close(self) -> None:
                super().close()  # pyright: ignore[reportUnknownMemberType]
                client.close()

            async def close_async(self) -> None:
                await super().close_async()  # pyright: ignore[reportUnknownMemberType]
                await async_client.aclose()

        return Configured(client, async_client)
