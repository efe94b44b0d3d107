"""Reading of the responses of httpx, and of libraries that are made like it."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from time import monotonic
from types import AsyncGeneratorType
from typing import TYPE_CHECKING, Any, Final, cast
from weakref import finalize

from attrs import evolve

from flux0.adapters.httpx.connection import AnyConnection
from flux0.adapters.httpx.exchange import HttpxExchange
from flux0.adapters.shared.bodies import AsyncPulledBody, PulledBody, SyncPulledBody
from flux0.adapters.shared.exchange import shut_down
from flux0.domain.errors import TransportError
from flux0.domain.http import is_success
from flux0.ports import Request
from flux0.runtime.event_loop import (
    Loop,
    close_nested_generators,
    running_loop,
    schedule_close,
    shielded,
)

if TYPE_CHECKING:
    import httpx

_OVER_HTTP2: Final = (
    "a turn comes over HTTP/2, where the server does not notice that it is left early: "
    "use a client without http2=True"
)


class _HttpxBody(PulledBody):
    """The reading of a response.

    It goes below the library's response, which would decompress without a limit.
    """

    def __init__(
        self,
        request: Request,
        built: httpx.Request,
        exchange: HttpxExchange,
        response: httpx.Response,
        transport: object,
    ) -> None:
        # A hook, or a transport of the user's without sockets, may have read it.
        self._was_read = response.is_stream_consumed
        super().__init__("" if self._was_read else response.headers.get("content-encoding", ""))
        self._exchange = exchange
        self._response = response
        stream = response.extensions.get("network_stream")
        own = isinstance(stream, AnyConnection) and response.http_version != "HTTP/2"
        self._connection = stream if own else None  # That of HTTP/2 is shared.
        if self._connection is not None:
            self._connection.in_chunks = "transfer-encoding" in response.headers
        self._transport = transport  # Its client must outlive the body.
        failed = not is_success(response.status_code)
        # Users read the body of an error again, from `raw_response`.
        self._read_raw: list[bytes] | None = [] if failed and not self._was_read else None
        # A hook that raised for the status has lost the body.
        self.finished: bool = failed and response.is_closed and not self._was_read
        if request.is_streaming(response.status_code):
            if response.http_version == "HTTP/2":
                warnings.warn(_OVER_HTTP2, RuntimeWarning, stacklevel=2)
            # httpcore looks the read timeout up once more when it begins to read the body.
            built.extensions.get("timeout", {})["read"] = request.timeout.idle
            exchange.timeout = evolve(request.timeout, read=request.timeout.idle)

    def _waits(self) -> None:
        """Have the idle timeout run from now on, whatever comes that is no content."""
        if self._connection is not None:
            self._connection.awaited = monotonic()

    def _keep(self, data: bytes | None) -> bytes | None:
        """Take note of what was read, where users read it again, and return it."""
        if data is not None and self._read_raw is not None:
            self._read_raw.append(data)
        return data

    def _what_was_read(self) -> Any:
        """Return a stream of what was read, for the library to read it again."""
        return self._exchange.library.ByteStream(b"".join(self._read_raw or ()))

    def _translate_error(self, error: BaseException) -> TransportError | None:
        exchange = self._exchange
        raised = (exchange.library.RequestError, exchange.library.StreamError)
        known = isinstance(error, raised) or exchange.failed_by(error)
        return exchange.failed(error) if known else None

    def _shut_down(self) -> None:
        response = self._response
        stream = response.extensions.get("network_stream")
        # Other exchanges share a connection of HTTP/2.
        if stream is not None and response.http_version != "HTTP/2":
            shut_down(stream.get_extra_info("socket"))


class SyncHttpxBody(_HttpxBody, SyncPulledBody):
    """The reading of a response by synchronous code."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        response = self._response
        self._raw: Iterator[bytes]
        self._raw = response.iter_bytes() if self._was_read else iter(cast("Any", response.stream))

    def _receive(self) -> bytes | None:
        self._waits()
        return self._keep(next(self._raw, None))

    def _on_finished(self) -> None:
        response: Any = self._response
        if self._read_raw is None:
            response.close()
        else:
            response.stream.close()
            response.stream = self._what_was_read()
            with suppress(self._exchange.library.RequestError):
                response.read()

    def _release(self) -> None:
        with suppress(Exception):  # The connection is given up, however it takes that.
            self._response.close()


class _AsyncHttpxBody(_HttpxBody, AsyncPulledBody):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        response = self._response
        raw = response.aiter_bytes() if self._was_read else aiter(cast("Any", response.stream))
        self._raw = cast("AsyncGeneratorType[bytes, None]", raw)

    async def _receive(self) -> bytes | None:
        self._waits()
        return self._keep(await anext(self._raw, None))

    async def _on_finished(self) -> None:
        response: Any = self._response
        if self._read_raw is None:
            await response.aclose()
        else:
            await response.stream.aclose()
            response.stream = self._what_was_read()
            with suppress(self._exchange.library.RequestError):
                await response.aread()

    async def _on_failure(self, error: BaseException, /) -> None:
        if isinstance(error, Exception):
            await self.close()

    async def close(self) -> None:
        """Release the connection, even when cancelled."""
        self.closed = True
        if not self._response.is_closed:
            await shielded(self.release)

    async def release(self) -> None:
        """Release the connection."""
        with suppress(Exception):  # As above.
            if not self._raw.ag_running:  # If it is, who waits gets an error from what follows.
                await close_nested_generators(self._raw)
        with suppress(Exception):
            await self._response.aclose()

    def forget(self, loop: Loop) -> None:
        """Have `loop` release the connection; it ends now, since a loop that ends does no more."""
        if not (self.finished or self.closed or self._response.is_closed):
            self._shut_down()
        in_trio = hasattr(loop, "run_sync_soon")
        schedule_close(loop, self.release if in_trio else self._release_later)

    async def _release_later(self) -> None:
        """Release the connection, unless the loop ends now and closes nothing.

        A task that stands in a scope of anyio then would never be garbage, nor its connection.
        """
        import asyncio  # noqa: PLC0415 - not needed under trio

        with suppress(asyncio.CancelledError):  # The loop ends, and waits for this.
            await asyncio.sleep(0)
        await self.release()


class AsyncBody:
    """The body of a response, pulled by asynchronous code."""

    def __init__(self, *args: Any) -> None:
        self._reading = _AsyncHttpxBody(*args)
        # Not __del__, for the reason above.
        self._forgotten = finalize(self, self._reading.forget, running_loop())
        self._forgotten.atexit = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._reading.pull()
        if piece is None:
            self._forgotten.detach()
            raise StopAsyncIteration
        return piece

    async def close_async(self) -> None:
        """Release the connection; see `AsyncByteStream.close_async`."""
        self._forgotten.detach()
        await self._reading.close()
