"""Asynchronous use of a synchronous transport, in worker threads over anyio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from threading import Lock
from typing import Generic, TypeVar

from anyio import CapacityLimiter, to_thread

from flux0.ports import AsyncByteStream, ByteStream, Request, Response, Transport

T = TypeVar("T")


class ThreadedTransport:
    """Sends and reads in a worker thread each, so that the event loop is never blocked.

    A cancelled call returns at once. Its thread ends when the library lets go of it, and what it
    then holds is closed.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        """Send `request` once; see `AsyncTransport.send_async`."""
        sending = _Abandonable(lambda: self._transport.send(request), _close)
        try:
            response = await _in_thread(sending)
        except BaseException:
            sending.abandon()
            raise
        body = _ThreadedBody(response.body)
        return Response(response.status_code, response.headers, body, response.raw_response)

    async def close_async(self) -> None:
        """Close the synchronous transport."""
        await _in_thread(self._transport.close)


class _ThreadedBody:
    """The body of a response, each piece of it pulled in a worker thread."""

    def __init__(self, body: ByteStream) -> None:
        self._body = body
        self._pieces = iter(body)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            piece = await _in_thread(lambda: next(self._pieces, None))
        except BaseException:
            self._body.close()  # Which also ends a read that a cancelled call left behind.
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def close_async(self) -> None:
        self._body.close()


class _Abandonable(Generic[T]):
    """A function whose result is discarded, instead of lost, when nobody waits for it any more."""

    def __init__(self, function: Callable[[], T], discard: Callable[[T], None]) -> None:
        self._function = function
        self._discard = discard
        self._lock = Lock()
        self._abandoned = False
        self._results: list[T] = []

    def __call__(self) -> T:
        result = self._function()
        with self._lock:
            self._results.append(result)
            if self._abandoned:
                self._discard(result)
        return result

    def abandon(self) -> None:
        with self._lock:
            self._abandoned = True
            for result in self._results:
                self._discard(result)


def _close(response: Response[ByteStream]) -> None:
    response.body.close()


async def _in_thread(function: Callable[[], T]) -> T:
    # A limiter of its own: threads wait for agents, and must not starve others of threads.
    return await to_thread.run_sync(function, abandon_on_cancel=True, limiter=CapacityLimiter(1))
