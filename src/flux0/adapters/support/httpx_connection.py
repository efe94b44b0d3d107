"""The connections of our own clients over httpx and its kin.

httpcore makes them as ever, and they are wrapped. The wrapper knows what httpcore does not tell:
which socket an exchange uses, and whether bytes are left over when an answer has ended.
"""

from __future__ import annotations

import ssl
from contextvars import ContextVar
from typing import Any, Final

from flux0.adapters.support.httpx_exchange import Exchange

# httpcore limits the head of an answer to 100 KiB, but not how many interim answers come first.
_MAX_BYTES_BEFORE_BODY: Final = 256 * 1024

# The exchange that the running thread or task waits for.
current: Final[ContextVar[Exchange | None]] = ContextVar("current", default=None)


def instrument(client: Any, wrapper: type[Backend | AsyncBackend], core: Any) -> Any:
    """Have a new client make its connections through `wrapper`, and return it.

    httpcore's pools take a network backend, but httpx has no argument to pass one on.
    """
    for transport in (client._transport, *client._mounts.values()):  # noqa: SLF001 - see above
        if transport is not None:
            pool = transport._pool  # noqa: SLF001
            pool._network_backend = wrapper(pool._network_backend, core)  # noqa: SLF001
    return client


class Backend:
    """Makes connections, synchronously."""

    def __init__(self, backend: Any, core: Any) -> None:
        self._backend = backend
        self._core = core

    def connect_tcp(self, **options: Any) -> Connection:
        """Return a new connection."""
        return Connection(self._backend.connect_tcp(**options), self._core)


class AsyncBackend:
    """Makes connections, asynchronously."""

    def __init__(self, backend: Any, core: Any) -> None:
        self._backend = backend
        self._core = core

    async def connect_tcp(self, **options: Any) -> AsyncConnection:
        """Return a new connection."""
        return AsyncConnection(await self._backend.connect_tcp(**options), self._core)


class _Connection:
    """What both kinds of connections know.

    The last byte that has arrived is held back until httpcore asks for more. So when an answer ends
    and there is a byte still, it belongs to another answer, and the connection is not used again.
    """

    def __init__(self, stream: Any, core: Any) -> None:
        self._stream = stream
        self._core = core
        self._held = b""

    def get_extra_info(self, info: str) -> Any:
        """Do as `httpcore.NetworkStream` does, which closes an idle connection that is readable."""
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
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError:
            pass
        return True

    def _use(self) -> None:
        """Take note of who waits, before something is written."""
        exchange = current.get()
        if exchange is not None:
            exchange.use(self)

    def _take(self) -> bytes:
        held, self._held = self._held, b""
        return held

    def _hold(self, data: bytes) -> bytes:
        """Take what has arrived, and return what to hand over."""
        exchange = current.get()
        if exchange is not None and not exchange.answered:
            exchange.received += len(data)
            if exchange.received > _MAX_BYTES_BEFORE_BODY:
                raise self._core.RemoteProtocolError("too much came before the body of the answer")
        if len(data) > 1:
            self._held = data[-1:]
            return data[:-1]
        return data


class Connection(_Connection):
    """A connection for synchronous code, which httpcore takes for an `httpcore.NetworkStream`."""

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what has arrived, at most `max_bytes`."""
        return self._take() or self._hold(self._stream.read(max_bytes, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send `buffer`."""
        self._use()
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def start_tls(self, *args: Any, **options: Any) -> Connection:
        """Return this connection, secured."""
        return Connection(self._stream.start_tls(*args, **options), self._core)


class AsyncConnection(_Connection):
    """A connection for asynchronous code, in place of an `httpcore.AsyncNetworkStream`."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what has arrived, at most `max_bytes`."""
        return self._take() or self._hold(await self._stream.read(max_bytes, timeout))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send `buffer`."""
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    async def start_tls(self, *args: Any, **options: Any) -> AsyncConnection:
        """Return this connection, secured."""
        return AsyncConnection(await self._stream.start_tls(*args, **options), self._core)
