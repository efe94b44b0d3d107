"""Drives a transport from a test's own thread, so that every test is written once.

A `Probe` wraps a `Transport` or an `AsyncTransport`. Each call runs in a worker thread or in an
event loop, as it would in a program, and a call that hangs fails the test instead of stopping it.
"""

# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, wait
from contextlib import ExitStack
from threading import Thread
from typing import Any, Generic, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal
from attrs import frozen

from flux0.domain.headers import Headers
from flux0.ports import AsyncTransport, Request, Response, Transport

T = TypeVar("T")


@frozen
class Pending(Generic[T]):
    """A call of a transport that runs elsewhere."""

    future: Future[T]
    patience: float

    def outcome(self) -> T:
        """Return or raise what the call does; fail if it does not end."""
        wait([self.future], self.patience)
        assert self.future.done(), f"the transport hangs: no outcome within {self.patience:.1f} s"
        return self.future.result()

    def lasts(self, seconds: float) -> bool:
        """Return whether the call is not over within so many seconds."""
        return not wait([self.future], seconds).done

    def cancel(self) -> None:
        """Cancel the task that the call runs in."""
        self.future.cancel()


class Reply(ABC):
    """An answer whose body is still to be read.

    Attributes:
        status_code, headers, raw_response, ends_by_closing: as the transport gave them.
    """

    def __init__(
        self, response: Response[Any], pieces: Any, run: Callable[[Any], Pending[Any]]
    ) -> None:
        self.status_code: int = response.status_code
        self.headers: Headers = response.headers
        self.raw_response: Any = response.raw_response
        self.ends_by_closing: bool = response.ends_by_closing
        self._body: Any = response.body
        self._pieces: Any = pieces
        self._run = run

    # What runs elsewhere; asynchronous where the transport is.
    _next: Callable[[], Any]
    _read: Callable[[], Any]
    _close: Callable[[], Any]
    _forget: Callable[[], Any]

    def start_next(self) -> Pending[bytes | None]:
        """Begin to wait for the next piece, or None for the end."""
        return self._run(self._next)

    def start_read(self) -> Pending[bytes]:
        """Begin to read what is left of the body."""
        return self._run(self._read)

    def take(self) -> list[Any]:
        """Return the body and its iterator, and hold them no longer."""
        taken = [self._body, self._pieces]
        self._body = self._pieces = self.raw_response = None
        return taken

    def next(self) -> bytes | None:
        """Return the next piece, or None at the end."""
        return self.start_next().outcome()

    def read(self) -> bytes:
        """Return what is left of the body."""
        return self.start_read().outcome()

    def read_exactly(self, size: int) -> bytes:
        """Return the next pieces until they have `size` bytes or the body ends."""
        data = b""
        while len(data) < size and (piece := self.next()) is not None:
            data += piece
        return data

    def close(self) -> None:
        """Close the body."""
        self._run(self._close).outcome()

    def forget(self) -> None:
        """Drop the references to the body, in the thread or loop that reads it."""
        self._run(self._forget).outcome()


class Probe(ABC):
    """A transport, and the threads or the loop that its calls run in."""

    @abstractmethod
    def start(self, request: Request) -> Pending[Reply]:
        """Begin to send `request`."""

    @abstractmethod
    def start_fetch(self, request: Request) -> Pending[bytes]:
        """Begin to send `request` and to read the whole body of its answer."""

    @abstractmethod
    def start_close(self) -> Pending[None]:
        """Begin to close the transport."""

    @abstractmethod
    def stop(self) -> None:
        """End the loop, if there is one."""

    def send(self, request: Request) -> Reply:
        """Send `request` and return its answer."""
        return self.start(request).outcome()

    def fetch(self, request: Request) -> bytes:
        """Send `request` and return the whole body of its answer."""
        return self.start_fetch(request).outcome()

    def close(self) -> None:
        """Close the transport."""
        self.start_close().outcome()


class ThreadProbe(Probe):
    """Drives a `Transport`, every call in a thread of its own."""

    def __init__(self, transport: Transport, patience: float) -> None:
        self._transport = transport
        self._patience = patience

    def start(self, request: Request) -> Pending[Reply]:
        """Begin to send `request`."""

        def send() -> Reply:
            response = self._transport.send(request)
            return _ThreadReply(response, iter(response.body), self.run)

        return self.run(send)

    def start_fetch(self, request: Request) -> Pending[bytes]:
        """Begin to send `request` and to read the whole body of its answer."""
        return self.run(lambda: b"".join(self._transport.send(request).body))

    def start_close(self) -> Pending[None]:
        """Begin to close the transport."""
        return self.run(self._transport.close)

    def stop(self) -> None:
        """Do nothing: each thread has ended with its call."""

    def run(self, call: Callable[[], T]) -> Pending[T]:
        """Begin `call` in a thread."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - for the test, whatever it is
                future.set_exception(error)

        Thread(target=run, daemon=True).start()
        return Pending(future, self._patience)


class _ThreadReply(Reply):
    def _next(self) -> bytes | None:
        return next(self._pieces, None)

    def _read(self) -> bytes:
        return b"".join(self._pieces)

    def _close(self) -> None:
        self._body.close()

    def _forget(self) -> None:
        self.take()


class LoopProbe(Probe):
    """Drives an `AsyncTransport`, every call in a task of its own in one event loop."""

    def __init__(self, transport: AsyncTransport, backend: str, patience: float) -> None:
        self._transport = transport
        self._patience = patience
        self._running = ExitStack()
        self._portal: BlockingPortal
        self._portal = self._running.enter_context(start_blocking_portal(backend))

    def start(self, request: Request) -> Pending[Reply]:
        """Begin to send `request`."""

        async def send() -> Reply:
            response = await self._transport.send_async(request)
            return _LoopReply(response, aiter(response.body), self.run)

        return self.run(send)

    def start_fetch(self, request: Request) -> Pending[bytes]:
        """Begin to send `request` and to read the whole body of its answer."""

        async def fetch() -> bytes:
            response = await self._transport.send_async(request)
            return b"".join([piece async for piece in response.body])

        return self.run(fetch)

    def start_close(self) -> Pending[None]:
        """Begin to close the transport."""
        return self.run(self._transport.close_async)

    def stop(self) -> None:
        """End the loop, or leave it alone if it hangs."""
        stopping = Thread(target=self._stop, daemon=True)
        stopping.start()
        stopping.join(self._patience)

    def _stop(self) -> None:
        self._portal.call(self._portal.stop, True)  # noqa: FBT003 - cancels what still runs
        self._running.close()

    def run(self, call: Callable[[], Awaitable[T]]) -> Pending[T]:
        """Begin `call` in a task."""
        return Pending(self._portal.start_task_soon(call), self._patience)


class _LoopReply(Reply):
    async def _next(self) -> bytes | None:
        return await anext(self._pieces, None)

    async def _read(self) -> bytes:
        return b"".join([piece async for piece in self._pieces])

    async def _close(self) -> None:
        await self._body.close_async()

    async def _forget(self) -> None:
        self.take()
