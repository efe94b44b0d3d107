"""Drives a transport from a test's own thread, so that every test is written once.

Each call of a transport runs in a worker thread or in an event loop, as it would in a program, and
one that hangs fails the test instead of stopping it.
"""

# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from contextlib import ExitStack
from threading import Thread
from typing import Any, Generic, TypeAlias, TypeVar

from anyio.from_thread import start_blocking_portal
from attrs import evolve, frozen

from flux0.ports import AsyncByteStream, AsyncTransport, ByteStream, Request, Response, Transport

T = TypeVar("T")
Call: TypeAlias = Callable[[], Coroutine[Any, Any, T]]


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


class Reply:
    """An answer whose body is still to be read; its head is as the transport gave it."""

    def __init__(self, head: Response[Any], run: Callable[[Call[Any]], Pending[Any]]) -> None:
        self.head: Response[None] = evolve(head, body=None)
        self._body: Any = head.body
        self._pieces: Any = aiter(head.body)
        self._run = run

    def start_next(self) -> Pending[bytes | None]:
        """Begin to wait for the next piece, or None for the end."""

        async def following() -> Any:
            return await anext(self._pieces, None)

        return self._run(following)

    def read(self, size: int | None = None) -> bytes:
        """Return the next pieces until they have `size` bytes or the body ends, or all of them."""

        async def pieces() -> bytes:
            data = b""
            while size is None or len(data) < size:
                piece: bytes | None = await anext(self._pieces, None)
                if piece is None:
                    break
                data += piece
            return data

        read: bytes = self._run(pieces).outcome()
        return read

    def close(self) -> None:
        """Close the body."""
        self._run(self._body.close_async).outcome()

    def take(self) -> list[Any]:
        """Return the body and its iterator, and hold them no longer."""
        taken = [self._body, self._pieces]
        self._body = self._pieces = None
        self.head = evolve(self.head, raw_response=None)
        return taken

    def forget(self) -> None:
        """Drop the references to the body, in the thread or loop that reads it."""

        async def drop() -> None:
            self.take()

        self._run(drop).outcome()


class Probe(ABC):
    """A transport, and the threads or the loop that its calls run in."""

    def __init__(self, transport: AsyncTransport, patience: float) -> None:
        self._transport = transport
        self._patience = patience

    @abstractmethod
    def run(self, call: Call[T]) -> Pending[T]:
        """Begin `call` elsewhere."""

    @abstractmethod
    def stop(self) -> None:
        """End the loop, if there is one."""

    def start(self, request: Request) -> Pending[Reply]:
        """Begin to send `request`."""

        async def send() -> Reply:
            return Reply(await self._transport.send_async(request), self.run)

        return self.run(send)

    def send(self, request: Request) -> Reply:
        """Send `request` and return its answer."""
        return self.start(request).outcome()

    def start_fetch(self, request: Request) -> Pending[bytes]:
        """Begin to send `request` and to read the whole body of its answer."""

        async def fetch() -> bytes:
            response = await self._transport.send_async(request)
            return b"".join([piece async for piece in response.body])

        return self.run(fetch)

    def fetch(self, request: Request) -> bytes:
        """Send `request` and return the whole body of its answer."""
        return self.start_fetch(request).outcome()

    def close(self) -> None:
        """Close the transport."""

        async def close() -> None:
            await self._transport.close_async()

        self.run(close).outcome()


class ThreadProbe(Probe):
    """Drives a `Transport`, every call in a thread of its own."""

    def __init__(self, transport: Transport, patience: float) -> None:
        super().__init__(_Blocking(transport), patience)

    def run(self, call: Call[T]) -> Pending[T]:
        """Begin `call` in a thread."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                call().send(None)  # It blocks where asynchronous code would let others run.
            except StopIteration as stop:
                future.set_result(stop.value)
            except BaseException as error:  # noqa: BLE001 - for the test, whatever it is
                future.set_exception(error)

        Thread(target=run, daemon=True).start()
        return Pending(future, self._patience)

    def stop(self) -> None:
        """Do nothing: each thread has ended with its call."""


class LoopProbe(Probe):
    """Drives an `AsyncTransport`, every call in a task of its own in one event loop."""

    def __init__(self, transport: AsyncTransport, backend: str, patience: float) -> None:
        super().__init__(transport, patience)
        self._running = ExitStack()
        self._portal = self._running.enter_context(start_blocking_portal(backend))

    def run(self, call: Call[T]) -> Pending[T]:
        """Begin `call` in a task."""
        return Pending(self._portal.start_task_soon(call), self._patience)

    def stop(self) -> None:
        """End the loop, or leave it alone if it hangs."""
        stopping = Thread(target=self._stop, daemon=True)
        stopping.start()
        stopping.join(self._patience)

    def _stop(self) -> None:
        self._portal.call(self._portal.stop, True)  # noqa: FBT003 - cancels what still runs
        self._running.close()


class _Blocking:
    """A `Transport` with the methods of an `AsyncTransport`, which block."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        response: Response[Any] = self._transport.send(request)
        return evolve(response, body=_BlockingBody(response.body))

    async def close_async(self) -> None:
        self._transport.close()


class _BlockingBody:
    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._pieces = iter(stream)

    def __aiter__(self) -> _BlockingBody:
        return self

    async def __anext__(self) -> bytes:
        try:
            return next(self._pieces)
        except StopIteration:
            raise StopAsyncIteration from None

    async def close_async(self) -> None:
        self._stream.close()
