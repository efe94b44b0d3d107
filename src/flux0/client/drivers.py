"""The two drivers: they perform what flows describe, one by blocking, one by awaiting.

Both hold a call to its deadline. Asynchronous code is cancelled when it passes. Synchronous code
waits no longer than what is left, and is woken from another thread where bytes keep dripping in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import iscoroutine
from typing import TypeVar

from attrs import evolve, frozen

from flux0.domain.errors import (
    InvalidArgument,
    ResponseTooLarge,
    TransportError,
    TransportTimeout,
)
from flux0.domain.timeouts import Deadline
from flux0.flows import Await, Effect, Flow, ReadBody, Send, Sleep
from flux0.ports import AsyncTransport, ByteStream, Request, Response, Time, Timeout, Transport

T = TypeVar("T")

# Seconds for the transport's own timeout to come first, since it knows what it waited for.
_GRACE = 0.1


@frozen(eq=False)
class Driver:
    """Drives flows for synchronous code, over `transport` and by `time`."""

    transport: Transport
    time: Time

    def run(self, flow: Flow[T]) -> T:
        """Drive `flow` to its end and return its result."""
        try:
            effect = next(flow)
            while True:
                try:
                    outcome = self._perform(effect)
                except BaseException as error:  # noqa: BLE001 - the flow decides, and cleans up
                    effect = flow.throw(error)
                else:
                    effect = flow.send(outcome)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _perform(self, effect: Effect) -> object:
        match effect:
            case Send(request):
                return self._send(request)
            case ReadBody(response, _, deadline):
                stop = response.body.close
                try:
                    return self._in_time(deadline, stop, lambda: self._read(effect))
                finally:
                    stop()
            case Sleep(seconds):
                self.time.sleep(seconds)
                return None
            case Await(awaitable, argument):
                if iscoroutine(awaitable):
                    awaitable.close()  # Which would warn that nobody awaits it.
                raise InvalidArgument(argument, "is asynchronous: call an _async method")
            case _:
                raise _no_effect(effect)

    def _send(self, request: Request) -> Response[ByteStream]:
        deadline = request.deadline
        if deadline is None:
            return self.transport.send(request)
        limited = _limited(request, deadline, self.time)
        stop = request.interrupt.fire
        response = self._in_time(deadline, stop, lambda: self.transport.send(limited))
        if self.time.monotonic() > deadline.moment:
            response.body.close()
            raise deadline.exceeded()
        return response

    def _read(self, effect: ReadBody) -> bytes:
        size, pieces = 0, list[bytes]()
        for piece in effect.response.body:
            size += len(piece)
            pieces.append(piece)
            _check(effect, size, self.time)
        _check(effect, size, self.time)
        return b"".join(pieces)

    def _in_time(
        self, deadline: Deadline | None, stop: Callable[[], object], work: Callable[[], T]
    ) -> T:
        """Return what `work` gives; have `stop` called from another thread when time is up."""
        if deadline is None:
            return work()
        cancel = self.time.alarm(deadline.moment + _GRACE, stop)
        try:
            return work()
        except TransportTimeout:
            raise  # It says what was waited for, even where it comes late.
        except TransportError as error:
            if self.time.monotonic() > deadline.moment + _GRACE:
                raise deadline.exceeded() from error.__cause__ or error
            raise
        finally:
            cancel()


@frozen(eq=False)
class AsyncDriver:
    """Drives flows for asynchronous code, over `transport` and by `time`."""

    transport: AsyncTransport
    time: Time

    async def run(self, flow: Flow[T]) -> T:
        """Drive `flow` to its end and return its result."""
        try:
            effect = next(flow)
            while True:
                try:
                    outcome = await self._perform(effect)
                except BaseException as error:  # noqa: BLE001 - as above, cancellation included
                    effect = flow.throw(error)
                else:
                    effect = flow.send(outcome)
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def _perform(self, effect: Effect) -> object:
        match effect:
            case Send(request):
                deadline = request.deadline
                if deadline is not None:
                    request = _limited(request, deadline, self.time)
                return await self._in_time(deadline, self.transport.send_async(request))
            case ReadBody(response, _, deadline):
                try:
                    return await self._in_time(deadline, self._read(effect))
                finally:
                    await response.body.close_async()
            case Sleep(seconds):
                await self.time.sleep_async(seconds)
                return None
            case Await(awaitable):
                return await awaitable
            case _:
                raise _no_effect(effect)

    async def _read(self, effect: ReadBody) -> bytes:
        size, pieces = 0, list[bytes]()
        async for piece in effect.response.body:
            size += len(piece)
            pieces.append(piece)
            _check(effect, size, self.time)
        _check(effect, size, self.time)
        return b"".join(pieces)

    async def _in_time(self, deadline: Deadline | None, work: Awaitable[T]) -> T:
        """Return what `work` gives, or cancel it when time is up."""
        if deadline is None:
            return await work
        from anyio import move_on_after  # noqa: PLC0415 - slow to import; comes with httpx

        with move_on_after(deadline.moment + _GRACE - self.time.monotonic()):
            return await work
        raise deadline.exceeded()


def _check(effect: ReadBody, size: int, time: Time) -> None:
    """Raise if a body has grown too large, or takes too long."""
    if size > effect.limit:
        raise ResponseTooLarge(effect.limit)
    if effect.deadline is not None and time.monotonic() > effect.deadline.moment:
        raise effect.deadline.exceeded()


def _limited(request: Request, deadline: Deadline, time: Time) -> Request:
    """Return `request` with no timeout longer than the time that is left until the deadline."""
    left = deadline.left(time.monotonic())
    if left <= 0:
        raise deadline.exceeded()
    given = request.timeout
    return evolve(
        request,
        timeout=Timeout(
            connect=_shorter(given.connect, left),
            read=_shorter(given.read, left),
            write=_shorter(given.write, left),
            pool=_shorter(given.pool, left),
            idle=given.idle,
        ),
    )


def _shorter(timeout: float | None, left: float) -> float:
    return left if timeout is None else min(timeout, left)


def _no_effect(value: object) -> TypeError:
    return TypeError(f"a flow yields effects, and those of other flows by yield from: {value!r}")
