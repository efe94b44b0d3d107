"""Tracked connections for clients of httpx, and the built-in clients that use them.

httpcore does not report which socket an exchange uses, or whether bytes are left after the end of a
response. So its connections are wrapped, in built-in clients and in clients of the user.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterable
from contextvars import ContextVar
from functools import lru_cache, partial
from time import monotonic
from typing import Any, Final

from attrs import frozen

from flux0.adapters.httpx.exchange import HttpxExchange
from flux0.adapters.shared.bodies import OpenBodies
from flux0.adapters.shared.failures import failure
from flux0.adapters.shared.limits import (
    MAX_CONNECTIONS,
    MAX_IDLE_CONNECTIONS,
    MAX_IDLE_SECONDS,
    MAX_OVERHEAD_BYTES,
)
from flux0.domain.errors import ConnectError
from flux0.ports import Timeout
from flux0.runtime.processes import fork_lock

# The exchange whose request the running thread or task sends.
current_exchange: Final[ContextVar[HttpxExchange]] = ContextVar("current_exchange")


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
        _wrap_backend(transport._pool, SyncBackend, httpcore_module)  # noqa: SLF001
    elif isinstance(transport, httpx_module.AsyncHTTPTransport):
        _wrap_backend(transport._pool, AsyncBackend, httpcore_module)  # noqa: SLF001


def _wrap_backend(
    pool: Any, backend: type[SyncBackend | AsyncBackend], httpcore_module: Any
) -> None:
    if not isinstance(pool._network_backend, backend):  # noqa: SLF001
        pool._network_backend = backend(pool._network_backend, httpcore_module)  # noqa: SLF001


@frozen
class SyncBackend:
    """An `httpcore.NetworkBackend` that opens tracked connections."""

    backend: Any
    httpcore_module: Any

    def connect_tcp(self, **options: Any) -> SyncConnection:
        """Return a new connection."""
        return SyncConnection(self.backend.connect_tcp(**options), self.httpcore_module)

    def connect_unix_socket(self, **options: Any) -> SyncConnection:
        """Return a new connection."""
        return SyncConnection(self.backend.connect_unix_socket(**options), self.httpcore_module)

    def sleep(self, seconds: float) -> None:
        """Wait before the next attempt to connect."""
        self.backend.sleep(seconds)


@frozen
class AsyncBackend:
    """An `httpcore.AsyncNetworkBackend` that opens tracked connections."""

    backend: Any
    httpcore_module: Any

    async def connect_tcp(self, **options: Any) -> AsyncConnection:
        """Return a new connection."""
        stream = await self.backend.connect_tcp(**options)
        return AsyncConnection(stream, self.httpcore_module)

    async def connect_unix_socket(self, **options: Any) -> AsyncConnection:
        """Return a new connection."""
        stream = await self.backend.connect_unix_socket(**options)
        return AsyncConnection(stream, self.httpcore_module)

    async def sleep(self, seconds: float) -> None:
        """Wait before the next attempt to connect."""
        await self.backend.sleep(seconds)


class TrackedConnection:
    """A network stream of httpcore that detects surplus bytes after the end of a response.

    httpcore would take surplus bytes for the response to the next request. So `read` returns all
    received bytes except the last one, and holds this byte back until httpcore reads again. If
    httpcore has found the end of the response without the held byte, the byte is surplus. The
    connection is then reported as readable, and the pool closes it instead of reusing it.

    In a chunked body, surplus bytes can only follow the last chunk, which has size 0. `read` holds
    no byte back until this chunk may have started. This saves a second read for each piece.

    Attributes:
        waiting_since: When the wait for the current piece of a body started (`time.monotonic`);
            None while a request is sent.
        chunked: Whether the body that is being read is chunked.
    """

    waiting_since: float | None = None
    chunked: bool = False

    def __init__(self, stream: Any, httpcore_module: Any) -> None:
        self._stream = stream
        self._httpcore_module = httpcore_module
        self._held_byte = b""
        self._last_byte = b""
        self._in_last_chunk = False  # Whether the last chunk may have started.

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def get_extra_info(self, info: str) -> Any:
        """Return a property of the stream. `is_readable` is also true if surplus bytes are left."""
        value = self._stream.get_extra_info(info)
        return (value or self._has_surplus()) if info == "is_readable" else value

    def _has_surplus(self) -> bool:
        if self._held_byte:
            return True
        tls = self._stream.get_extra_info("ssl_object")
        if not isinstance(tls, ssl.SSLObject):
            return False
        try:
            tls.read(1)  # Received bytes are in the buffer of TLS, and no longer in the socket.
        except ssl.SSLError as error:
            return not isinstance(error, ssl.SSLWantReadError)
        return True

    def _start_request(self) -> None:
        self.waiting_since, self.chunked, self._in_last_chunk = None, False, False

    def _pop_held_byte(self) -> bytes:
        held, self._held_byte = self._held_byte, b""
        return held

    def _remaining(self, timeout: float | None) -> float | None:
        """Return the rest of the timeout for the current piece, in seconds.

        httpcore reads again, with the full timeout, if the received bytes hold no content.
        """
        if timeout is None or self.waiting_since is None:
            return timeout
        remaining = self.waiting_since + timeout - monotonic()
        if remaining <= 0:
            raise self._httpcore_module.ReadTimeout("no data received")
        return remaining

    def _hold_back(self, data: bytes) -> bytes:
        """Return received data without the byte that is held back.

        Raises:
            RemoteProtocolError: The response head, with interim responses, exceeds 256 KiB.
        """
        exchange = current_exchange.get(None)
        if exchange is not None and exchange.sent and not exchange.head_received:
            exchange.head_bytes += len(data)
            if exchange.head_bytes > MAX_OVERHEAD_BYTES:
                raise self._httpcore_module.RemoteProtocolError(
                    f"the response head is larger than {MAX_OVERHEAD_BYTES} bytes"
                )
        # The size of the last chunk is a 0 at the start of a line.
        starts = b"\n0" in data or (data[:1] == b"0" and self._last_byte == b"\n")
        self._in_last_chunk = self._in_last_chunk or starts
        self._last_byte = data[-1:]
        if len(data) > 1 and (self._in_last_chunk or not self.chunked):
            self._held_byte = self._last_byte
            return data[:-1]
        return data


class SyncConnection(TrackedConnection):
    """A `TrackedConnection` for sync code."""

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return the next received bytes, at most `max_bytes`."""
        if self._held_byte:
            return self._pop_held_byte()
        return self._hold_back(self._stream.read(max_bytes, self._remaining(timeout)))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send `buffer`."""
        exchange = current_exchange.get(None)
        if exchange is not None:  # None if the user sends a request over their client.
            exchange.bind_connection(self)
        self._start_request()
        self._stream.write(buffer, timeout)

    def start_tls(self, *args: Any, **options: Any) -> SyncConnection:
        """Return the connection with TLS."""
        return SyncConnection(self._stream.start_tls(*args, **options), self._httpcore_module)


class AsyncConnection(TrackedConnection):
    """A `TrackedConnection` for async code."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return the next received bytes, at most `max_bytes`."""
        if self._held_byte:
            return self._pop_held_byte()
        return self._hold_back(await self._stream.read(max_bytes, self._remaining(timeout)))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send `buffer`."""
        self._start_request()
        await self._stream.write(buffer, timeout)

    async def start_tls(self, *args: Any, **options: Any) -> AsyncConnection:
        """Return the connection with TLS."""
        stream = await self._stream.start_tls(*args, **options)
        return AsyncConnection(stream, self._httpcore_module)


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
