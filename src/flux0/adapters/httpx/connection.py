"""The connections of clients over httpx and its kin, our own clients and those of users.

httpcore makes them as ever, and they are wrapped. The wrapper knows what httpcore does not tell:
which socket an exchange uses, and whether bytes are left over when an answer has ended.
"""

from __future__ import annotations

import ssl
from contextvars import ContextVar
from time import monotonic
from typing import Any, Final

from attrs import frozen

from flux0.adapters.httpx.exchange import HttpxExchange
from flux0.adapters.shared.limits import MAX_OVERHEAD_BYTES

# What the running thread or task sends.
current: Final[ContextVar[HttpxExchange]] = ContextVar("current")


def instrument_client(client: Any, library: Any, core: Any) -> Any:
    """Have a client of the user's make its connections as `instrument` says, and return it."""
    if isinstance(client, (library.Client, library.AsyncClient)):
        for transport in (client._transport, *client._mounts.values()):  # noqa: SLF001 - see below
            instrument(transport, library, core)
    return client


def instrument(transport: Any, library: Any, core: Any) -> None:
    """Have a transport of the library's make its connections through the backends below.

    httpcore's pools take a network backend, but httpx has no argument to pass one on. Transports
    that are not the library's own are left as they are, and so are connections from before.
    """
    if isinstance(transport, library.HTTPTransport):
        _wrap(transport._pool, Backend, core)  # noqa: SLF001
    elif isinstance(transport, library.AsyncHTTPTransport):
        _wrap(transport._pool, AsyncBackend, core)  # noqa: SLF001


def _wrap(pool: Any, backend: type[Backend | AsyncBackend], core: Any) -> None:
    if not isinstance(pool._network_backend, backend):  # noqa: SLF001
        pool._network_backend = backend(pool._network_backend, core)  # noqa: SLF001


@frozen
class Backend:
    """Makes connections for synchronous code, as `httpcore.NetworkBackend` does."""

    backend: Any
    core: Any

    def connect_tcp(self, **options: Any) -> Connection:
        """Return a new connection."""
        return Connection(self.backend.connect_tcp(**options), self.core)

    def connect_unix_socket(self, **options: Any) -> Connection:
        """Return a new connection."""
        return Connection(self.backend.connect_unix_socket(**options), self.core)

    def sleep(self, seconds: float) -> None:
        """Wait before a connection is tried again."""
        self.backend.sleep(seconds)


@frozen
class AsyncBackend:
    """Makes connections for asynchronous code, as `httpcore.AsyncNetworkBackend` does."""

    backend: Any
    core: Any

    async def connect_tcp(self, **options: Any) -> AsyncConnection:
        """Return a new connection."""
        return AsyncConnection(await self.backend.connect_tcp(**options), self.core)

    async def connect_unix_socket(self, **options: Any) -> AsyncConnection:
        """Return a new connection."""
        return AsyncConnection(await self.backend.connect_unix_socket(**options), self.core)

    async def sleep(self, seconds: float) -> None:
        """Wait before a connection is tried again."""
        await self.backend.sleep(seconds)


class AnyConnection:
    """What both kinds of connections know; all else is done by httpcore's own stream.

    The last byte that has arrived is held back until httpcore asks for more. So when an answer ends
    and there is a byte still, it belongs to another answer, and the connection is not used again.
    As long as there are chunks and the last one, of the size 0, has not begun, nothing is held.

    Attributes:
        awaited: since when a piece of a body is awaited; None while a request is sent.
        in_chunks: whether the body that is being read comes in chunks.
    """

    awaited: float | None = None
    in_chunks: bool = False

    def __init__(self, stream: Any, core: Any) -> None:
        self._stream = stream
        self._core = core
        self._held = b""
        self._last = b""
        self._may_end = False  # Whether the last chunk may have begun.

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def get_extra_info(self, info: str) -> Any:
        """Do as httpcore's stream does. A pool closes an idle connection that is readable."""
        known = self._stream.get_extra_info(info)
        return (known or self._has_more()) if info == "is_readable" else known

    def _has_more(self) -> bool:
        if self._held:
            return True
        tls = self._stream.get_extra_info("ssl_object")
        if not isinstance(tls, ssl.SSLObject):
            return False
        try:
            tls.read(1)  # What has arrived lies in its buffer, and no longer in the socket.
        except ssl.SSLError as error:
            return not isinstance(error, ssl.SSLWantReadError)
        return True

    def _begin(self) -> None:
        """Take note that a request goes out."""
        self.awaited, self.in_chunks, self._may_end = None, False, False

    def _take(self) -> bytes:
        held, self._held = self._held, b""
        return held

    def _left(self, timeout: float | None) -> float | None:
        """Return what is left of a timeout: httpcore reads on while no content comes."""
        if timeout is None or self.awaited is None:
            return timeout
        left = self.awaited + timeout - monotonic()
        if left <= 0:
            raise self._core.ReadTimeout("no data received")
        return left

    def _hold(self, data: bytes) -> bytes:
        """Take what has arrived, and return what to hand over."""
        exchange = current.get(None)
        if exchange is not None and exchange.sent and not exchange.answered:
            exchange.received += len(data)
            if exchange.received > MAX_OVERHEAD_BYTES:
                raise self._core.RemoteProtocolError("too much came before the body of the answer")
        begins = b"\n0" in data or (data[:1] == b"0" and self._last == b"\n")
        self._may_end = self._may_end or begins
        self._last = data[-1:]
        if len(data) > 1 and (self._may_end or not self.in_chunks):
            self._held = self._last
            return data[:-1]
        return data


class Connection(AnyConnection):
    """A connection for synchronous code."""

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what has arrived, at most `max_bytes`."""
        if self._held:
            return self._take()
        return self._hold(self._stream.read(max_bytes, self._left(timeout)))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send `buffer`."""
        exchange = current.get(None)
        if exchange is not None:  # Otherwise the user sends it.
            exchange.use(self)
        self._begin()
        self._stream.write(buffer, timeout)

    def start_tls(self, *args: Any, **options: Any) -> Connection:
        """Return this connection, secured."""
        return Connection(self._stream.start_tls(*args, **options), self._core)


class AsyncConnection(AnyConnection):
    """A connection for asynchronous code."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what has arrived, at most `max_bytes`."""
        if self._held:
            return self._take()
        return self._hold(await self._stream.read(max_bytes, self._left(timeout)))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send `buffer`."""
        self._begin()
        await self._stream.write(buffer, timeout)

    async def start_tls(self, *args: Any, **options: Any) -> AsyncConnection:
        """Return this connection, secured."""
        return AsyncConnection(await self._stream.start_tls(*args, **options), self._core)
