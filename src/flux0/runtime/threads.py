"""Runs sync functions and sync transports for async code, with a new thread for each call."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

from attrs import evolve

from flux0.domain.errors import ConnectError, ConnectionInterrupted, Flux0Error
from flux0.ports import AsyncByteStream, ByteStream, Interrupt, Request, Response, Transport
from flux0.runtime.processes import start_thread
from flux0.runtime.waker import AsyncWaker

T = TypeVar("T")


async def run_in_thread(function: Callable[[], T], failure: type[Flux0Error] = ConnectError) -> T:
    """Return the result of `function`, called in a new daemon thread.

    If the caller is cancelled, the thread continues, and its result is dropped. If no thread can be
    started, `failure` is raised.

    The worker threads of anyio are not suitable, because the interpreter waits for them at exit.
    """
    done = AsyncWaker()
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller
            errors.append(error)
        done.wake()

    run = partial(copy_context().run, work)
    start_thread(run, "flux0-call", failure, interruptible=False)
    await done.wait(None)
    if errors:
        raise errors.pop()
    return results[0]


class ThreadedTransport:
    """An async transport that runs each send and each read of a sync transport in a new thread.

    A cancelled call returns at once. Its thread runs until the sync transport's `send` returns, and
    then closes the response. If the sync transport supports `Request.interrupt`, `send` returns at
    once, too. The threads do not keep the process from exiting.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        request = evolve(request, interrupt=Interrupt())
        responses: list[Response[ByteStream]] = []

        def send() -> Response[ByteStream]:
            response = self._transport.send(request)
            responses.append(response)
            # If the call was cancelled before `append`, close the response here.
            if request.interrupt.fired:
                response.body.close()
            return response

        try:
            response = await run_in_thread(send)
        except BaseException:
            # The garbage collector can end the wait, so no lock is used. `fire` sets `fired` before
            # the loop reads `responses`, so `send` or the loop closes the response.
            request.interrupt.fire()
            for response in responses:
                response.body.close()
            raise
        # `received` has the type Any: type checkers do not let `evolve` change the type of `body`.
        received: Any = response
        return evolve(received, body=_ThreadedBody(response.body))

    async def close_async(self) -> None:
        try:
            await run_in_thread(self._transport.close)
        except ConnectError:
            self._transport.close()


class _ThreadedBody:
    def __init__(self, body: ByteStream) -> None:
        self._body = body

    async def read_async(self, timeout: float | None) -> bytes | None:
        try:
            return await run_in_thread(partial(self._body.read, timeout), ConnectionInterrupted)
        except BaseException:
            # If the task of this call was cancelled, a thread is still reading the body. This
            # thread ends when the body is closed.
            self._body.close()
            raise

    async def close_async(self) -> None:
        self._body.close()
