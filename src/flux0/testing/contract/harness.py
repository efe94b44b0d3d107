"""Drives a transport from a test's own thread, so that every test is written once.

Each call of a transport runs in a worker thread or in an event loop, as it would in a program, and
one that hangs fails the test instead of stopping it.
"""

# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

import gc
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager
from ssl import SSLContext
from threading import Thread
from typing import Any, Final, Generic, TypeAlias, TypeVar

from anyio.from_thread import start_blocking_portal
from attrs import evolve, frozen

from flux0.domain.headers import Headers
from flux0.ports import AsyncByteStream, AsyncTransport, Request, Response, Timeout
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import ServerSteps

T = TypeVar("T")
Work: TypeAlias = Callable[[], Coroutine[Any, Any, T]]

# Long enough never to be reached, so that a hang shows as a hang.
LONG_TIMEOUT: Final = Timeout(connect=60.0, read=60.0, write=60.0, pool=60.0, idle=60.0)


def get(url: str, *, stream: bool = False, timeout: Timeout = LONG_TIMEOUT) -> Request:
    """Return a plain GET."""
    return Request("GET", url, Headers(), stream=stream, timeout=timeout)


def post(url: str, body: bytes = b"{}", *, timeout: Timeout = LONG_TIMEOUT) -> Request:
    """Return a plain POST."""
    return Request("POST", url, Headers(), body, timeout=timeout)


@frozen
class Pending(Generic[T]):
    """A call of a transport that runs elsewhere."""

    future: Future[T]
    timeout: float

    def outcome(self) -> T:
        """Return or raise what the call does; fail if it does not end."""
        wait([self.future], self.timeout)
        assert self.future.done(), f"the transport hangs: no outcome within {self.timeout:.1f} s"
        return self.future.result()

    def is_pending_after(self, seconds: float) -> bool:
        """Return whether the call is not over within so many seconds."""
        return not wait([self.future], seconds).done


class ReceivedResponse:
    """An answer whose body is still to be read; its head is as the transport gave it."""

    def __init__(self, head: Response[Any], run: Callable[[Work[Any]], Pending[Any]]) -> None:
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

    def detach(self, *, in_cycle: bool = False) -> list[Any]:
        """Return the body and its iterator, and hold them no longer."""
        taken = [self._body, self._pieces]
        taken += [taken] * in_cycle
        self._body = self._pieces = None
        self.head = evolve(self.head, raw_response=None)
        return taken

    def drop(self, *, in_cycle: bool) -> None:
        """Drop the body, in the thread or loop that reads it, or for the collector to find."""

        async def drop() -> None:
            self.detach(in_cycle=in_cycle)

        self._run(drop).outcome()
        if in_cycle:
            gc.collect()


@frozen
class Harness:
    """A transport, what its calls run in, and the servers of a test."""

    _transport: AsyncTransport  # Or a blocking one in its form.
    _begin: Callable[[Work[Any]], Future[Any]]  # Begins a call elsewhere.
    _timeout: float  # Seconds that a call may take before it counts as hung.
    servers: ExitStack  # Ends the servers.

    def run(self, call: Work[T]) -> Pending[T]:
        """Begin `call` elsewhere."""
        return Pending(self._begin(call), self._timeout)

    def serve(self, *answers: ServerSteps, **options: Any) -> ByteServer:
        """Return a `ByteServer` with these arguments that runs until the test is over."""
        return self.servers.enter_context(ByteServer(*answers, timeout=self._timeout, **options))

    def listen(self) -> tuple[socket.socket, str]:
        """Return a socket that hears connections, which nobody accepts, and its URL."""
        deaf = self.servers.enter_context(socket.create_server(("127.0.0.1", 0)))
        return deaf, f"http://127.0.0.1:{deaf.getsockname()[1]}/"

    def start(self, request: Request) -> Pending[ReceivedResponse]:
        """Begin to send `request`."""

        async def send() -> ReceivedResponse:
            return ReceivedResponse(await self._transport.send_async(request), self.run)

        return self.run(send)

    def send(self, request: Request) -> ReceivedResponse:
        """Send `request` and return its answer."""
        return self.start(request).outcome()

    def exchange(
        self, answer: ServerSteps, *, tls: SSLContext | None = None, **options: Any
    ) -> tuple[ByteServer, ReceivedResponse]:
        """Send `get` with these options to a server that answers so; return both."""
        server = self.serve(answer, tls=tls)
        return server, self.send(get(server.url, **options))

    def read_first(
        self, answer: ServerSteps, **options: Any
    ) -> tuple[ByteServer, ReceivedResponse]:
        """Do as `ask`, and read the piece `first`."""
        server, response = self.exchange(answer, **options)
        assert response.read(5) == b"first"
        return server, response

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
        self.run(self._transport.close_async).outcome()


def run_in_thread(call: Work[T]) -> Future[T]:
    """Begin a call that blocks where asynchronous code would let others run."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            call().send(None)
        except StopIteration as stop:
            future.set_result(stop.value)
        except BaseException as error:  # noqa: BLE001 - for the test, whatever it is
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


@contextmanager
def event_loop(
    backend: str, timeout: float
) -> Generator[Callable[[Work[Any]], Future[Any]], None, None]:
    """Run an event loop, and yield what begins a task in it. One that hangs is left alone."""
    running = ExitStack()
    portal = running.enter_context(start_blocking_portal(backend))

    def stop() -> None:
        with running:
            portal.call(portal.stop, True)  # noqa: FBT003 - cancels what still runs

    stopping = Thread(target=stop, daemon=True)
    try:
        yield portal.start_task_soon
    finally:
        stopping.start()
        stopping.join(timeout)


class BlockingAsAsync:
    """A `Transport` or a `ByteStream` with the methods of its asynchronous twin, which block."""

    def __init__(self, twin: Any) -> None:
        self._twin = twin

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        """Do as `Transport.send` does."""
        response = self._twin.send(request)
        return evolve(response, body=BlockingAsAsync(response.body))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._twin:
            yield piece

    async def close_async(self) -> None:
        """Do as `close` does."""
        self._twin.close()
