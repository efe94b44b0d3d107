"""Asynchronous use of a synchronous transport, in threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextvars import copy_context
from threading import Lock, Thread
from typing import TypeVar

from anyio import Event
from attrs import evolve

from flux0.ports import AsyncByteStream, ByteStream, Interrupt, Request, Response, Transport
from flux0.runtime.event_loop import call_soon, running_loop

T = TypeVar("T")


class ThreadedTransport:
    """Sends and reads in a thread each, so that the event loop is never blocked.

    A cancelled call returns at once. Its thread is woken if the transport can be, closes what it
    holds, and does not keep the process alive.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        """Send `request` once; see `AsyncTransport.send_async`."""
        sending = _Sending(self._transport, request)
        try:
            response = await _in_thread(sending)
        except BaseException:
            sending.abandon()
            raise
        body = _ThreadedBody(response.body)
        return Response(
            response.status_code,
            response.headers,
            body,
            response.raw_response,
            response.close_delimited,
        )

    async def close_async(self) -> None:
        """Close the synchronous transport."""
        await _in_thread(self._transport.close)


class _Sending:
    """Sends a request; the answer is closed, instead of lost, when nobody waits for it any more."""

    def __init__(self, transport: Transport, request: Request) -> None:
        self._transport = transport
        self._request = evolve(request, interrupt=Interrupt())
        self._lock = Lock()
        self._abandoned = False
        self._response: Response[ByteStream] | None = None

    def __call__(self) -> Response[ByteStream]:
        response = self._transport.send(self._request)
        with self._lock:
            self._response = response
            abandoned = self._abandoned
        if abandoned:
            response.body.close()
        return response

    def abandon(self) -> None:
        """End the sending, or close what has come of it."""
        with self._lock:
            self._abandoned = True
            response = self._response
        if response is None:
            self._request.interrupt.fire()
        else:
            response.body.close()


class _ThreadedBody:
    """The body of a response, each piece of it pulled in a thread."""

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


async def _in_thread(function: Callable[[], T]) -> T:
    """Return what `function` returns in a thread of its own.

    Not in one of anyio's, for which the interpreter waits at its end.
    """
    loop, done = running_loop(), Event()
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - the caller's, whatever it is
            errors.append(error)
        call_soon(loop, done.set)

    Thread(target=copy_context().run, args=(work,), name="flux0-call", daemon=True).start()
    await done.wait()
    if errors:
        raise errors.pop()
    return results[0]
