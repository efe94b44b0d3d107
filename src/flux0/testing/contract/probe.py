"""Drives a transport from a test's own thread, so that every test is written once.

A `Probe` wraps a `Transport` or an `AsyncTransport`. Each step runs where such a step runs in
life, in a worker thread or in an event loop, and fails the test instead of hanging it.
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
from flux0.ports import AsyncByteStream, AsyncTransport, ByteStream, Request, Response, Transport

T = TypeVar("T")


@frozen
class Pending(Generic[T]):
    """Something that a transport is busy with, on the side."""

    future: Future[T]
    patience: float

    def outcome(self) -> T:
        """Return or raise what it came to; fail if it does not come to an end."""
        wait([self.future], self.patience)
        assert self.future.done(), f"the transport hangs: no outcome within {self.patience} s"
        return self.future.result()

    def lasts(self, seconds: float) -> bool:
        """Whether it is not over within so many seconds."""
        return not wait([self.future], seconds).done

    def cancel(self) -> None:
        """Cancel the task that it runs in."""
        self.future.cancel()


class Reply(ABC):
    """An answer whose body is still to be read.

    Attributes:
        status_code, headers, raw_response: as the transport gave them.
    """

    def __init__(self, response: Response[Any], pieces: Any) -> None:
        self.status_code: int = response.status_code
        self.headers: Headers = response.headers
        self.raw_response: Any = response.raw_response
        self._body: Any = response.body
        self._pieces: Any = pieces

    @abstractmethod
    def start_next(self) -> Pending[bytes | None]:
        """Begin to wait for the next piece, or None for the end."""

    @abstractmethod
    def start_read(self) -> Pending[bytes]:
        """Begin to read what is left of the body."""

    @abstractmethod
    def start_close(self) -> Pending[None]:
        """Begin to close the body."""

    @abstractmethod
    def start_forget(self) -> Pending[None]:
        """Begin to drop the references to the body, where it was read."""

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
        self.start_close().outcome()

    def forget(self) -> None:
        """Drop the references to the body, where it was read."""
        self.start_forget().outcome()


class Probe(ABC):
    """A transport, and the threads or the loop that its calls run in."""

    @abstractmethod
    def start(self, request: Request) -> Pending[Reply]:
        """Begin to send `request`."""

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
        return self.send(request).read()

    def close(self) -> None:
        """Close the transport."""
        self.start_close().outcome()


class ThreadProbe(Probe):
    """Drives a `Transport`, every step in a thread of its own."""

    def __init__(self, transport: Transport, patience: float) -> None:
        self._transport = transport
        self._patience = patience

    def start(self, request: Request) -> Pending[Reply]:
        """Begin to send `request`."""
        return self.run(lambda: _ThreadReply(self._transport.send(request), self))

    def start_close(self) -> Pending[None]:
        """Begin to close the transport."""
        return self.run(self._transport.close)

    def stop(self) -> None:
        """Do nothing: the threads have ended with their steps."""

    def run(self, step: Callable[[], T]) -> Pending[T]:
        """Begin `step` in a thread."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(step())
            except BaseException as error:  # noqa: BLE001 - for the test, whatever it is
                future.set_exception(error)

        Thread(target=run, daemon=True).start()
        return Pending(future, self._patience)


class _ThreadReply(Reply):
    def __init__(self, response: Response[ByteStream], probe: ThreadProbe) -> None:
        super().__init__(response, iter(response.body))
        self._run = probe.run

    def start_next(self) -> Pending[bytes | None]:
        return self._run(lambda: next(self._pieces, None))

    def start_read(self) -> Pending[bytes]:
        return self._run(lambda: b"".join(self._pieces))

    def start_close(self) -> Pending[None]:
        return self._run(self._body.close)

    def start_forget(self) -> Pending[None]:
        return self._run(self._forget)

    def _forget(self) -> None:
        self.take()


class LoopProbe(Probe):
    """Drives an `AsyncTransport`, every step in a task of its own in one event loop."""

    def __init__(self, transport: AsyncTransport, backend: str, patience: float) -> None:
        self._transport = transport
        self._patience = patience
        self._running = ExitStack()
        self._portal: BlockingPortal
        self._portal = self._running.enter_context(start_blocking_portal(backend))

    def start(self, request: Request) -> Pending[Reply]:
        """Begin to send `request`."""

        async def send() -> Reply:
            return _LoopReply(await self._transport.send_async(request), self)

        return self.run(send)

    def start_close(self) -> Pending[None]:
        """Begin to close the transport."""
        return self.run(self._transport.close_async)

    def stop(self) -> None:
        """End the loop."""
        self._running.close()

    def run(self, step: Callable[[], Awaitable[T]]) -> Pending[T]:
        """Begin `step` in a task."""
        return Pending(self._portal.start_task_soon(step), self._patience)


class _LoopReply(Reply):
    def __init__(self, response: Response[AsyncByteStream], probe: LoopProbe) -> None:
        super().__init__(response, aiter(response.body))
        self._run = probe.run

    def start_next(self) -> Pending[bytes | None]:
        return self._run(self._next)

    async def _next(self) -> bytes | None:
        return await anext(self._pieces, None)

    def start_read(self) -> Pending[bytes]:
        return self._run(self._read)

    async def _read(self) -> bytes:
        return b"".join([piece async for piece in self._pieces])

    def start_close(self) -> Pending[None]:
        return self._run(self._body.close_async)

    def start_forget(self) -> Pending[None]:
        return self._run(self._forget)

    async def _forget(self) -> None:
        self.take()
