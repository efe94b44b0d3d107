"""Receives response bodies over httpx and httpx2, for `SyncBody` and `AsyncBody`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import suppress
from types import AsyncGeneratorType
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from flux0.adapters.httpx.cancellation import Uninterrupted
from flux0.adapters.httpx.connections import HttpxConnection
from flux0.adapters.httpx.exchange import HttpxExchange, package_of
from flux0.adapters.shared.exchange import shut_down
from flux0.domain.errors import TransportError
from flux0.domain.http import is_success
from flux0.ports import Request, Timeout
from flux0.runtime.event_loop import Loop, close_nested_generators, schedule_close, shielded

if TYPE_CHECKING:
    import httpx

_HTTP2_WARNING: Final = (
    "the turn is streamed over HTTP/2, so closing the stream early does not cancel the agent: "
    "use a client without http2=True"
)


class _HttpxSource:
    """Receives the encoded body of one response from its connection.

    httpx decompresses bodies without limits, so flux0 decompresses the body itself.
    """

    def __init__(
        self,
        request: Request,
        built: httpx.Request,
        exchange: HttpxExchange,
        response: httpx.Response,
        transport: object,
    ) -> None:
        # `_already_read` is True if the user's hook or custom transport has already read the body.
        self._already_read = response.is_stream_consumed
        # If a user's hook called `raise_for_status`, httpx has closed the response. The body of a
        # closed response cannot be read.
        unreadable = response.is_closed and not self._already_read
        self._has_body = is_success(response.status_code) or not unreadable
        coding = response.headers.get("content-encoding", "")
        self.coding: str = "" if self._already_read else coding
        self._exchange = exchange
        self._response = response
        http2 = response.http_version == "HTTP/2"
        # `shut_down` shuts down `_connection`. `_connection` is None if other exchanges can use the
        # connection: over HTTP/2, and if a recorder such as vcrpy has read and closed the original
        # response, and copied its extensions.
        shared = http2 or exchange.progress.is_closed
        self._connection: Any = None if shared else response.extensions.get("network_stream")
        # Read the content directly from the connection only if the response still has httpx's own
        # stream, unread: a user's hook can replace or read the stream.
        is_own = package_of(response.stream) == exchange.library.httpx.__name__
        is_unread = not (response.is_closed or self._already_read)
        self._read_content: Any = None
        if isinstance(self._connection, HttpxConnection) and is_own and is_unread:
            self._read_content = self._connection.content_reader()
        # `_transport` keeps the transport alive while the body exists: the finalizer of a
        # garbage-collected transport closes the client and the connection of the body.
        self._transport = transport
        self._timeouts: dict[str, float | None] = built.extensions.get("timeout", {})
        if http2 and request.is_streaming(response.status_code):
            warnings.warn(_HTTP2_WARNING, RuntimeWarning, stacklevel=2)

    def _start_piece(self, timeout: float | None) -> None:
        """Start the timeout for the next piece of a body. Chunk sizes and trailers do not reset it.

        Over HTTP/2, httpcore looks up the read timeout in `_timeouts` for each piece of a response
        body. Over HTTP/1.1, httpcore looks it up only once for a body, so `HttpxConnection` applies
        the timeout of each piece.
        """
        if isinstance(self._connection, HttpxConnection):
            self._connection.start_piece(timeout)
        else:
            self._timeouts["read"] = timeout

    def translate_error(self, error: BaseException, timeout: float | None) -> TransportError | None:
        exchange = self._exchange
        exchange.timeout = Timeout(read=timeout)
        errors = (exchange.library.httpx.RequestError, exchange.library.httpx.StreamError)
        known = isinstance(error, errors) or exchange.raised_by_httpcore(error)
        if self._read_content is not None:
            known = exchange.is_known(error)
        # Remove the stored exception from the exchange. The traceback of the exception refers to
        # the body, and the user's `raw_response` refers to the exchange, so the stored exception
        # keeps the body in memory.
        exchange.failure = None
        return exchange.to_transport_error(error) if known else None

    def shut_down(self) -> None:
        if self._connection is not None:
            shut_down(self._connection.get_extra_info("socket"))


class SyncHttpxSource(_HttpxSource):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        response: Any = self._response
        read = self._already_read
        self._raw: Iterator[bytes] = response.iter_bytes() if read else iter(response.stream)

    def receive(self, timeout: float | None) -> bytes | None:
        if self._read_content is None:
            self._start_piece(timeout)
        elif piece := self._read_content(timeout):
            return cast("bytes", piece)
        return next(self._raw, None) if self._has_body else None

    def finish(self) -> None:
        self._response.close()

    def release(self) -> None:
        # Closing can raise an error if the connection was already shut down. Ignore the error,
        # because no code reads the body any more.
        for connection in self._exchange.abandon():
            with suppress(Exception):
                connection.close()
        with suppress(Exception):
            self._response.close()


class AsyncHttpxSource(_HttpxSource):
    # Open async bodies are not closed at exit. If a daemon thread reads such a body, closing the
    # body makes the read fail, and the thread prints the error while the interpreter exits.
    close_at_exit: ClassVar[bool] = False

    # The generator that reads the body over httpcore; None until the body needs it. An event loop
    # that is about to end must not start a generator: asyncio would emit a warning.
    _raw: AsyncGeneratorType[bytes, None] | None = None

    async def receive(self, timeout: float | None) -> bytes | None:
        if self._read_content is None:
            self._start_piece(timeout)
        elif piece := await self._read_content(timeout):
            return cast("bytes", piece)
        if not self._has_body:
            return None
        raw = self._raw
        if raw is None:
            response: Any = self._response
            raw = response.aiter_bytes() if self._already_read else aiter(response.stream)
            self._raw = raw
        return await Uninterrupted(anext(raw, None))

    async def finish(self) -> None:
        await Uninterrupted(self._response.aclose())

    async def close(self) -> None:
        # If another task closes the response just after the reader received the last piece, the
        # generator `_raw` stays suspended, and must be closed, too.
        if not self._response.is_closed or getattr(self._raw, "ag_frame", None) is not None:
            await shielded(self._release)

    async def _release(self) -> None:
        with suppress(Exception):  # Ignore all errors, because no code reads the body any more.
            # Python cannot close a generator while a reader waits in the generator. In this case,
            # `finish` closes the response, and the reader's wait ends with an error.
            if self._raw is not None and not self._raw.ag_running:
                await close_nested_generators(self._raw)
        for connection in self._exchange.abandon():
            with suppress(Exception):
                await connection.aclose()
        with suppress(Exception):
            await self.finish()

    def close_from_finalizer(self, loop: Loop) -> None:
        """Shut the connection down now, and release the connection later in `loop`.

        The shutdown does not wait for `loop`, because a loop that is about to end may never run
        the release.
        """
        if not self._response.is_closed:
            self.shut_down()
        if hasattr(loop, "run_sync_soon"):
            schedule_close(loop, self._release, at_end=self._close_socket)
        else:
            schedule_close(loop, self._release_later)

    def _close_socket(self) -> None:
        """Close the socket of an open body, because trio's run no longer starts tasks."""
        if self._connection is not None and not self._response.is_closed:
            self._connection.get_extra_info("socket").close()

    async def _release_later(self) -> None:
        """Release the connection in the event loop's next iteration.

        A loop that ends cancels its tasks and waits for them. If this task is cancelled during the
        release, the connection stays in memory. Therefore the task first waits in `sleep`, and
        ignores a cancellation there.
        """
        import asyncio  # noqa: PLC0415 - slow to import, and already imported under asyncio

        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        await self._release()
