"""Clients over httpx and its kin that are made here: what `HttpClient` asks for, and no more.

The library's own clients also look for cookies, authentication and redirects, of which there are
none here. That takes them a quarter of the time of a call.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import lru_cache, partial
from typing import Any

from flux0.adapters.httpx.connection import instrument
from flux0.adapters.shared.bodies import OpenBodies
from flux0.adapters.shared.failures import failure
from flux0.adapters.shared.limits import MAX_CONNECTIONS, MAX_IDLE_CONNECTIONS, MAX_IDLE_SECONDS
from flux0.domain.errors import ConnectError
from flux0.ports import Timeout
from flux0.runtime.processes import fork_lock


class _AnyOwnClient:
    def __init__(self, library: Any, transport: Any) -> None:
        self._library = library
        self._transport = transport
        self._url = lru_cache(128)(library.URL)  # Taking one apart is a tenth of a call.

    def build_request(self, method: str, url: str, *, timeout: Any, **options: Any) -> Any:
        """Return a request of the library."""
        limits = dict(zip(("connect", "read", "write", "pool"), timeout, strict=True))
        request: Any = self._library.Request
        return request(method, self._url(url), extensions={"timeout": limits}, **options)


class OwnClient(_AnyOwnClient):
    """A client for synchronous code."""

    def send(self, request: Any, **_: object) -> Any:
        """Send a request and return the library's response."""
        try:
            response = self._transport.handle_request(request)
        except self._library.RequestError as error:
            error.request = request  # As the library's own clients do.
            raise
        response.request = request
        return response

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()


class AsyncOwnClient(_AnyOwnClient):
    """A client for asynchronous code."""

    async def send(self, request: Any, **_: object) -> Any:
        """Send a request and return the library's response."""
        try:
            response = await self._transport.handle_async_request(request)
        except self._library.RequestError as error:
            error.request = request  # As above.
            raise
        response.request = request
        return response

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()


class OwnClients:
    """The clients that are made here, when first needed and again after closing.

    There is one for each proxy, and one for no proxy.

    Attributes:
        bodies: what synchronous code reads over them.
    """

    def __init__(self, library: Any, core: Any, *, asynchronous: bool) -> None:
        self._make = partial(_make, library, core, asynchronous=asynchronous)
        self._lock = threading.Lock()
        self.bodies: OpenBodies = OpenBodies()
        self._clients: dict[str | None, Any] = {}

    @property
    def is_used(self) -> bool:
        """Whether there is a client to close; takes no lock."""
        return bool(self._clients)

    def get(self, proxy: str | None) -> Any:
        """Return the client that goes through a proxy, or through none."""
        with self._lock:
            if proxy not in self._clients:
                self._clients[proxy] = self._make(proxy)
            return self._clients[proxy]

    def close(self) -> None:
        """Close the clients for synchronous code, and what is read over them."""
        self.bodies.close()
        self.close_clients()

    def close_clients(self) -> None:
        """Close the clients for synchronous code."""
        for client in self._take():
            client.close()

    async def close_async(self) -> None:
        """Close the clients for asynchronous code."""
        for client in self._take():
            await client.aclose()

    def _take(self) -> Iterable[Any]:
        with self._lock:
            clients, self._clients = self._clients, {}
        return clients.values()


def _make(
    library: Any, core: Any, proxy: str | None, *, asynchronous: bool
) -> OwnClient | AsyncOwnClient:
    limits = library.Limits(
        max_connections=MAX_CONNECTIONS,
        max_keepalive_connections=MAX_IDLE_CONNECTIONS,
        keepalive_expiry=MAX_IDLE_SECONDS,
    )
    kind = library.AsyncHTTPTransport if asynchronous else library.HTTPTransport
    try:
        with fork_lock:  # It has OpenSSL read the certificates.
            transport = kind(limits=limits, proxy=proxy)
    except ImportError as error:  # It goes through SOCKS proxies with an extra of its own.
        raise failure(ConnectError, error, Timeout()) from error
    instrument(transport, library, core)
    return (AsyncOwnClient if asynchronous else OwnClient)(library, transport)
