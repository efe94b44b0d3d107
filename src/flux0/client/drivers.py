"""The sync and the async driver: they perform the effects that a flow yields.

Both end a call at its deadline. The async driver cancels the call. The sync driver limits each
timeout to the remaining time. A slow but steady response never reaches such a timeout, so an alarm
in another thread also closes its connection at the deadline.
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

# Seconds after the deadline. The transport's own timeout should expire first, because its error
# names the step that timed out.
_GRACE = 0.1


@frozen(eq=False)
class Driver:
    """Drives flows in sync code."""

    transport: Transport
    time: Time

    def run(self, flow: Flow[T]) -> T:
        """Perform the effects of `flow` and return its result."""
        try:
            effect = next(flow)
            while True:
                try:
                    outcome = self._perform(effect)
                except BaseException as error:  # noqa: BLE001 - the flow handles it or re-raises it
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
                    return self._until_deadline(deadline, stop, lambda: self._read(effect))
                finally:
                    stop()
            case Sleep(seconds):
                self.time.sleep(seconds)
                return None
            case Await(awaitable, argument):
                if iscoroutine(awaitable):
                    awaitable.close()  # Avoid the warning "coroutine was never awaited".
                raise InvalidArgument(argument, "is async: call an _async method")
            case _:
                raise _not_an_effect(effect)

    def _send(self, request: Request) -> Response[ByteStream]:
        deadline = request.deadline
        if deadline is None:
            return self.transport.send(request)
        limited = _with_limited_timeouts(request, deadline, self.time)
        stop = request.interrupt.fire
        response = self._until_deadline(deadline, stop, lambda: self.transport.send(limited))
        if self.time.monotonic() > deadline.moment:
            response.body.close()
            raise deadline.exceeded()
        return response

    def _read(self, effect: ReadBody) -> bytes:
        size, pieces = 0, list[bytes]()
        for piece in effect.response.body:
            size += len(piece)
            pieces.append(piece)
            _check_limits(effect, size, self.time)
        _check_limits(effect, size, self.time)
        return b"".join(pieces)

    def _until_deadline(
        self, deadline: Deadline | None, stop: Callable[[], object], work: Callable[[], T]
    ) -> T:
        """Return the result of `work`; at the deadline, call `stop` in another thread."""
        if deadline is None:
            return work()
        cancel = self.time.alarm(deadline.moment + _GRACE, stop)
        try:
            return work()
        except TransportTimeout:
            raise  # Its message names the step that timed out.
        except TransportError as error:
            if self.time.monotonic() > deadline.moment + _GRACE:
                raise deadline.exceeded() from error.__cause__ or error
            raise
        finally:
            cancel()


@frozen(eq=False)
class AsyncDriver:
    """Drives flows in async code."""

    transport: AsyncTransport
    time: Time

    async def run(self, flow: Flow[T]) -> T:
        """Perform the effects of `flow` and return its result."""
        try:
            effect = next(flow)
            while True:
                try:
                    outcome = await self._perform(effect)
                except BaseException as error:  # noqa: BLE001 - the flow handles it or re-raises it
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
                    request = _with_limited_timeouts(request, deadline, self.time)
                return await self._until_deadline(deadline, self.transport.send_async(request))
            case ReadBody(response, _, deadline):
                try:
                    return await self._until_deadline(deadline, self._read(effect))
                finally:
                    await response.body.close_async()
            case Sleep(seconds):
                await self.time.sleep_async(seconds)
                return None
            case Await(awaitable):
                return await awaitable
            case _:
                raise _not_an_effect(effect)

    async def _read(self, effect: ReadBody) -> bytes:
        size, pieces = 0, list[bytes]()
        async for piece in effect.response.body:
            size += len(piece)
            pieces.append(piece)
            _check_limits(effect, size, self.time)
        _check_limits(effect, size, self.time)
        return b"".join(pieces)

    async def _until_deadline(self, deadline: Deadline | None, work: Awaitable[T]) -> T:
        """Return the result of `work`; cancel it at the deadline."""
        if deadline is None:
            return await work
        from anyio import move_on_after  # noqa: PLC0415 - slow to import; comes with httpx

        with move_on_after(deadline.moment + _GRACE - self.time.monotonic()):
            return await work
        raise deadline.exceeded()


def _check_limits(effect: ReadBody, size: int, time: Time) -> None:
    if size > effect.limit:
        raise ResponseTooLarge(effect.limit)
    if effect.deadline is not None and time.monotonic() > effect.deadline.moment:
        raise effect.deadline.exceeded()


def _with_limited_timeouts(request: Request, deadline: Deadline, time: Time) -> Request:
    """Return `request` with all timeouts but `idle` limited to the time until the deadline."""
    remaining = deadline.left(time.monotonic())
    if remaining <= 0:
        raise deadline.exceeded()
    timeout = request.timeout
    return evolve(
        request,
        timeout=Timeout(
            connect=_shorter(timeout.connect, remaining),
            read=_shorter(timeout.read, remaining),
            write=_shorter(timeout.write, remaining),
            pool=_shorter(timeout.pool, remaining),
            idle=timeout.idle,
        ),
    )


def _shorter(timeout: float | None, remaining: float) -> float:
    return remaining if timeout is None else min(timeout, remaining)


def _not_an_effect(value: object) -> TypeError:
    return TypeError(
        f"a flow must yield effects, not {value!r}: to run another flow, use `yield from`"
    )
