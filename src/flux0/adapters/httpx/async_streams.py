"""The connections of async clients, which wrap the network streams of httpcore."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from math import inf
from time import monotonic
from typing import Any, Final

from anyio import CancelScope, create_task_group
from anyio.lowlevel import checkpoint

from flux0.adapters.httpx.connections import Backend, HttpxConnection
from flux0.adapters.httpx.exchange import current_exchange
from flux0.adapters.shared.chunks import Chunks
from flux0.adapters.shared.limits import LARGE_REQUEST_BYTES, READ_BYTES
from flux0.runtime.event_loop import shielded

_MAX_PORT: Final = 65_535


class AsyncConnection(HttpxConnection):
    def __init__(self, stream: Any, backend: Backend, connect_by: float | None = None) -> None:
        super().__init__(backend, connect_by)
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        received = self._pop_received()
        if received is None:
            data = await self._stream.read(max_bytes, self._read_limit(timeout))
            received = self._on_received(data)
        return received

    def content_reader(self) -> Callable[[float | None], Awaitable[bytes]] | None:
        chunks = self._start_content()
        return None if chunks is None else partial(self._read_content, chunks)

    async def _read_content(self, chunks: Chunks, timeout: float | None) -> bytes:
        content = self._decode_early(chunks)
        if content is None:
            expiry = inf if timeout is None else monotonic() + timeout
            content = self._decode(chunks, await self._stream.read(READ_BYTES, timeout))
            while content is None:
                left = None if timeout is None else self._seconds_until(expiry)
                content = self._decode(chunks, await self._stream.read(READ_BYTES, left))
        return content

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        data = self._next_to_send(buffer)
        exchange = current_exchange.get()()
        if len(data) > LARGE_REQUEST_BYTES and exchange is not None and not exchange.is_multiplexed:
            await self._write_and_read(data, timeout)
        elif data:
            await self._stream.write(data, self._connect_limit(timeout))

    async def _write_and_read(self, data: bytes, timeout: float | None) -> None:
        """Send `data`, and receive the start of a response meanwhile.

        If a write fails, asyncio discards received data that was not read yet. Therefore the
        response is read during the write.
        """
        failure: Exception | None = None
        async with create_task_group() as tasks:
            tasks.start_soon(self._read_early, tasks.cancel_scope)
            try:
                # Two checkpoints give the `_read_early` task time to start, and to receive bytes
                # that have already arrived. If these bytes reject the request, the task cancels the
                # write.
                for _ in range(2):
                    await checkpoint()
                await self._stream.write(data, timeout)
            except Exception as error:  # noqa: BLE001 - a task group would wrap the error
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        self._raise_if_rejected()

    async def _read_early(self, writing: CancelScope) -> None:
        # If the connection fails, `write` raises an error, too. Ignore the error that `read`
        # raises.
        with suppress(self._backend.httpcore_module.NetworkError):
            self._early_data = await self._stream.read(READ_BYTES)
            if self._is_rejected():
                writing.cancel()

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> AsyncConnection:
        limit = self._connect_limit(timeout)
        try:
            stream = await self._stream.start_tls(ssl_context, server_hostname, limit)
        # If the task is cancelled, httpcore does not close the connection, so close the connection
        # here.
        except BaseException:
            await shielded(self.aclose)
            raise
        return AsyncConnection(stream, self._backend, self._connect_by)

    def _get_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def _is_readable(self) -> bool:
        if self._stream.get_extra_info("is_readable"):
            return True
        tls = self._stream.get_extra_info("ssl_object")
        if not isinstance(tls, ssl.SSLObject):
            return False
        try:
            tls.read(1)  # The event loop has moved the received bytes from the socket into `tls`.
        except ssl.SSLError as error:
            return not isinstance(error, ssl.SSLWantReadError)
        return True


class AsyncBackend(Backend):
    async def connect_tcp(self, *, timeout: float | None = None, **options: Any) -> AsyncConnection:
        connect_by = None if timeout is None else monotonic() + timeout
        # anyio raises an exception group for such a port.
        if options["port"] > _MAX_PORT:
            raise self.httpcore_module.ConnectError(f"the port must be at most {_MAX_PORT}")
        try:
            stream = await self.backend.connect_tcp(timeout=timeout, **options)
        except UnicodeError as error:  # The host name is not valid.
            raise self.httpcore_module.ConnectError(error) from error
        return AsyncConnection(stream, self, connect_by)

    async def connect_unix_socket(self, **options: Any) -> AsyncConnection:
        stream = await self.backend.connect_unix_socket(**options)
        return AsyncConnection(stream, self)
