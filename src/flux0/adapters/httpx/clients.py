"""The built-in clients of httpx and httpx2, and the tracking of all clients.

httpcore does not report which socket an exchange uses, or whether bytes are left after the end of a
response. So flux0 opens the connections itself, for built-in clients and for clients of the user.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import lru_cache, partial
from typing import Any

from flux0.adapters.httpx.connections import AsyncBackend
from flux0.adapters.httpx.sockets import SyncBackend
from flux0.adapters.shared.bodies import OpenBodies
from flux0.adapters.shared.failures import failure
from flux0.adapters.shared.limits import (
    MAX_CONNECTIONS,
    MAX_IDLE_CONNECTIONS,
    MAX_IDLE_SECONDS,
)
from flux0.domain.errors import ConnectError
from flux0.ports import Timeout
from flux0.runtime.processes import fork_lock


def track_client(client: Any, httpx_module: Any, httpcore_module: Any) -> Any:
    """Track the future connections of the user's client, and return the client."""
    if isinstance(client, (httpx_module.Client, httpx_module.AsyncClient)):
        for transport in (client._transport, *client._mounts.values()):  # noqa: SLF001 - see below
            track_transport(transport, httpx_module, httpcore_module)
    return client


def track_transport(transport: Any, httpx_module: Any, httpcore_module: Any) -> None:
    """Track the future connections of a transport of httpx.

    Pools of httpcore accept a network backend, but httpx has no argument for it. Transports of
    other classes, and existing connections, stay unchanged.
    """
    if isinstance(transport, httpx_module.HTTPTransport):
        transport._pool._network_backend = SyncBackend(httpcore_module)  # noqa: SLF001
    elif isinstance(transport, httpx_module.AsyncHTTPTransport):
        pool: Any = transport._pool  # noqa: SLF001
        if not isinstance(pool._network_backend, AsyncBackend):  # noqa: SLF001
            pool._network_backend = AsyncBackend(pool._network_backend, httpcore_module)  # noqa: SLF001


class _BuiltInClient:
    """A client without cookies, authentication and redirects.

    Clients of httpx look for these in each call, which takes a quarter of the time of the call.
    """

    def __init__(self, httpx_module: Any, transport: Any) -> None:
        self._httpx_module = httpx_module
        self._httpx_transport = transport
        # Parsing the URL takes a tenth of the time of a call.
        self._parse_url = lru_cache(128)(httpx_module.URL)

    def build_request(self, method: str, url: str, *, timeout: Any, **options: Any) -> Any:
        """Return a request of the library."""
        limits = dict(zip(("connect", "read", "write", "pool"), timeout, strict=True))
        request: Any = self._httpx_module.Request
        return request(method, self._parse_url(url), extensions={"timeout": limits}, **options)


class SyncBuiltInClient(_BuiltInClient):
    """A built-in client for sync code."""

    def send(self, request: Any, **_: object) -> Any:
        """Send a request and return the library's response."""
        try:
            response = self._httpx_transport.handle_request(request)
        except self._httpx_module.RequestError as error:
            error.request = request  # `httpx.Client` sets it, too.
            raise
        response.request = request
        return response

    def close(self) -> None:
        """Close all connections."""
        self._httpx_transport.close()


class AsyncBuiltInClient(_BuiltInClient):
    """A built-in client for async code."""

    async def send(self, request: Any, **_: object) -> Any:
        """Send a request and return the library's response."""
        try:
            response = await self._httpx_transport.handle_async_request(request)
        except self._httpx_module.RequestError as error:
            error.request = request  # `httpx.AsyncClient` sets it, too.
            raise
        response.request = request
        return response

    async def aclose(self) -> None:
        """Close all connections."""
        await self._httpx_transport.aclose()


class BuiltInClients:
    """The built-in clients of a transport: a client for each proxy, and a client without proxy.

    A client is created at its first use, and again at the first use after `close`.

    Attributes:
        bodies: The sync bodies that are read over these clients.
    """

    def __init__(self, httpx_module: Any, httpcore_module: Any, *, is_async: bool) -> None:
        self._create = partial(_create_client, httpx_module, httpcore_module, is_async=is_async)
        self._lock = threading.Lock()
        self.bodies: OpenBodies = OpenBodies()
        self._clients: dict[str | None, Any] = {}

    @property
    def has_clients(self) -> bool:
        """Whether any client was created since the last `close`. Acquires no lock."""
        return bool(self._clients)

    def get(self, proxy: str | None) -> Any:
        """Return the client for the proxy with this URL, or for no proxy."""
        with self._lock:
            if proxy not in self._clients:
                self._clients[proxy] = self._create(proxy)
            return self._clients[proxy]

    def close(self) -> None:
        """Close the sync clients and their bodies."""
        self.bodies.close()
        self.close_clients()

    def close_clients(self) -> None:
        """Close the sync clients."""
        for client in self._pop_clients():
            client.close()

    async def close_async(self) -> None:
        """Close the async clients."""
        for client in self._pop_clients():
            await client.aclose()

    def _pop_clients(self) -> Iterable[Any]:
        with self._lock:
            clients, self._clients = self._clients, {}
        return clients.values()


def _create_client(
    httpx_module: Any, httpcore_module: Any, proxy: str | None, *, is_async: bool
) -> SyncBuiltInClient | AsyncBuiltInClient:
    limits = httpx_module.Limits(
        max_connections=MAX_CONNECTIONS,
        max_keepalive_connections=MAX_IDLE_CONNECTIONS,
        keepalive_expiry=MAX_IDLE_SECONDS,
    )
    kind = httpx_module.AsyncHTTPTransport if is_async else httpx_module.HTTPTransport
    try:
        with fork_lock:  # OpenSSL reads the certificates, and holds a lock of its own meanwhile.
            transport = kind(limits=limits, proxy=proxy)
    except ImportError as error:  # SOCKS proxies need an extra, such as httpx[socks].
        raise failure(ConnectError, error, Timeout()) from error
    track_transport(transport, httpx_module, httpcore_module)
    return (AsyncBuiltInClient if is_async else SyncBuiltInClient)(httpx_module, transport)
