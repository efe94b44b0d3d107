"""The test harness, with which the same test checks sync and async transports.

The test itself runs in the main thread. The transport is called in worker threads or in an event
loop, as in an application. If a call hangs, the test fails instead of hanging too.
"""

# ruff: noqa: S101 - the tests in this module use assert statements

from __future__ import annotations

import gc
import socket
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager
from ssl import SSLContext
from threading import Thread
from time import monotonic
from typing import Any, Final, Generic, TypeAlias, TypeVar, cast

from anyio.from_thread import start_blocking_portal
from attrs import evolve, frozen

from flux0.domain.headers import Headers
from flux0.ports import AsyncByteStream, AsyncTransport, Request, Response, Timeout
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import ServerSteps

T = TypeVar("T")
Work: TypeAlias = Callable[[], Coroutine[Any, Any, T]]
Start: TypeAlias = Callable[[Work[Any]], Future[Any]]

# `LONG` is the default timeout of requests and reads, in seconds. `LONG` is longer than
# `Contract.timeout`, so that a test detects a hanging call before the call's own timeout expires.
LONG: Final = 60.0
_SHORTEST: Final = 0.001  # The shortest timeout, because `read_async` needs a timeout above 0.
LONG_TIMEOUT: Final = Timeout(connect=LONG, read=LONG, write=LONG, pool=LONG)


def get(
    url: str, *headers: tuple[str, str], stream: bool = False, timeout: Timeout = LONG_TIMEOUT
) -> Request:
    return Request("GET", url, Headers(headers), stream=stream, timeout=timeout)


def post(url: str, body: bytes = b"{}", *, timeout: Timeout = LONG_TIMEOUT) -> Request:
    return Request("POST", url, Headers(), body, timeout=timeout)


@frozen
class Pending(Generic[T]):
    """A call of a transport's method, which another thread or task is executing."""

    future: Future[T]
    timeout: float

    def outcome(self) -> T:
        self.error()
        return self.future.result()

    def error(self) -> BaseException | None:
        wait([self.future], self.timeout)
        problem = f"the transport hangs: the call did not end within {self.timeout:.1f} s"
        assert self.future.done(), problem
        return self.future.exception()

    def is_pending_after(self, seconds: float) -> bool:
        return not wait([self.future], seconds).done


class ReceivedResponse:
    """A response whose body has not been read yet. `head` is the `Response` without the body."""

    def __init__(self, head: Response[Any], run: Callable[[Work[Any]], Pending[Any]]) -> None:
        self.head: Response[None] = evolve(head, body=None)
        self._body: Any = head.body
        self._run = run

    def start_read(self, size: int | None = 1, timeout: float = LONG) -> Pending[bytes]:
        """Start to read the body, until at least `size` bytes were received.

        If `size` is None, the whole body is read. `timeout` limits all reads together, in seconds.
        """

        async def pieces() -> bytes:
            data, end = b"", monotonic() + timeout
            while size is None or len(data) < size:
                left = max(end - monotonic(), _SHORTEST)
                piece: bytes | None = await self._body.read_async(left)
                if piece is None:
                    break
                data += piece
            return data

        return self._run(pieces)

    def read(self, size: int | None = None, timeout: float = LONG) -> bytes:
        return self.start_read(size, timeout).outcome()

    def close(self) -> None:
        self._run(self._body.close_async).outcome()

    def detach(self, *, in_cycle: bool = False) -> Any:
        """Return the body, and remove this object's reference to it.

        If `in_cycle` is true, create a list that contains the body and itself, so that only the
        garbage collector can free the body.
        """
        body, self._body = self._body, None
        self.head = evolve(self.head, raw_response=None)
        cycle: list[Any] = [body]
        cycle += [cycle] * in_cycle
        return body

    def drop(self, *, in_cycle: bool) -> None:
        """Remove the last references to the body, in the thread or event loop that reads it.

        If `in_cycle` is true, run the garbage collector to free the body.
        """

        async def drop() -> None:
            self.detach(in_cycle=in_cycle)

        self._run(drop).outcome()
        if in_cycle:
            gc.collect()


@frozen
class Harness:
    """Starts servers for a test, and runs the calls of a transport in threads or an event loop."""

    _transport: AsyncTransport  # If the transport is sync, it is wrapped in a `BlockingAsAsync`.
    # The function `_start` starts a call in another thread or task.
    _start: Start
    _timeout: float  # If a call takes more than this number of seconds, the test fails.
    servers: ExitStack  # Closing `servers` stops all servers.

    def run(self, call: Work[T]) -> Pending[T]:
        return Pending(self._start(call), self._timeout)

    def serve(self, *responses: ServerSteps, **options: Any) -> ByteServer:
        return self.servers.enter_context(ByteServer(*responses, timeout=self._timeout, **options))

    def listen(self) -> tuple[socket.socket, str]:
        listener = self.servers.enter_context(socket.create_server(("127.0.0.1", 0)))
        return listener, f"http://127.0.0.1:{listener.getsockname()[1]}/"

    def start(self, request: Request) -> Pending[ReceivedResponse]:
        async def send() -> ReceivedResponse:
            return ReceivedResponse(await self._send(request), self.run)

        return self.run(send)

    def send(self, request: Request) -> ReceivedResponse:
        return self.start(request).outcome()

    def exchange(
        self, steps: ServerSteps, *, tls: SSLContext | None = None, **options: Any
    ) -> tuple[ByteServer, ReceivedResponse]:
        server = self.serve(steps, tls=tls)
        return server, self.send(get(server.url, **options))

    def read_first(self, steps: ServerSteps, **options: Any) -> tuple[ByteServer, ReceivedResponse]:
        server, response = self.exchange(steps, **options)
        first = response.read(5)
        assert first == b"first", f"the body must begin with b'first', not {first!r}"
        return server, response

    def start_fetch(self, request: Request, timeout: float | None = LONG) -> Pending[bytes]:
        async def fetch() -> bytes:
            body, pieces = (await self._send(request)).body, list[bytes]()
            while (piece := await body.read_async(timeout)) is not None:
                pieces.append(piece)
            return b"".join(pieces)

        return self.run(fetch)

    def fetch(self, request: Request) -> bytes:
        return self.start_fetch(request).outcome()

    async def _send(self, request: Request) -> Response[AsyncByteStream]:
        response = await self._transport.send_async(request)
        check_body(response.body, "read_async")
        return response

    def close(self) -> None:
        self.run(self._transport.close_async).outcome()


def run_in_thread(call: Work[T]) -> Future[T]:
    """Run the coroutine of `call` in a new thread. It must block instead of suspending."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            call().send(None)
        except StopIteration as stop:
            future.set_result(stop.value)
        except BaseException as error:  # noqa: BLE001 - the test gets any error
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


@contextmanager
def event_loop(backend: str, timeout: float) -> Generator[Start, None, None]:
    """Run an event loop in a thread, and yield a function that starts tasks in the loop.

    At the end of the `with` block, running tasks are cancelled. If the loop does not stop within
    `timeout` seconds, its thread is abandoned.
    """
    running = ExitStack()
    portal = running.enter_context(start_blocking_portal(backend))

    def stop() -> None:
        with running:
            portal.call(portal.stop, True)  # noqa: FBT003 - cancels running tasks

    stopping = Thread(target=stop, daemon=True)
    try:
        yield portal.start_task_soon
    finally:
        stopping.start()
        stopping.join(timeout)


def check_body(body: object, method: str) -> None:
    problem = f"the body of a response must have a method {method}(timeout), but {body!r} has none"
    assert hasattr(body, method), problem


class BlockingAsAsync:
    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        response = self._wrapped.send(request)
        check_body(response.body, "read")
        return evolve(response, body=BlockingAsAsync(response.body))

    async def read_async(self, timeout: float | None) -> bytes | None:
        return cast("bytes | None", self._wrapped.read(timeout))

    async def close_async(self) -> None:
        self._wrapped.close()
