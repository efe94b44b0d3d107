"""The two drivers: they perform what flows describe, one by blocking, one by awaiting.

Both hold a call to its deadline. Asynchronous code is interrupted when it passes. Synchronous code
cannot be: its waits are shortened to what is left as it sends, and the clock is read after each.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from attrs import evolve, frozen

from flux0.domain.errors import ReadTimeout, ResponseTooLarge
from flux0.flows import Close, Effect, Flow, ReadBody, Send, Sleep
from flux0.ports import AsyncTransport, Request, Timeout, Transport

T = TypeVar("T")
Clock = Callable[[], float]

# Seconds for the transport's own timeout to come first, since it knows what it waited for.
_GRACE = 0.1


@frozen(eq=False)
class Driver:
    """Drives flows for synchronous code, over `transport`, with `sleep` and `clock` in seconds."""

    transport: Transport
    sleep: Callable[[float], None]
    clock: Clock

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
                response = self.transport.send(_shortened(request, self.clock))
                if _is_over(request.deadline, self.clock):
                    response.body.close()
                    raise _too_late()
                return response
            case ReadBody(response):
                pieces = _Pieces(effect, self.clock)
                try:
                    for piece in response.body:
                        pieces.add(piece)
                finally:
                    response.body.close()
                return pieces.joined()
            case Close(response):
                response.body.close()
                return None
            case Sleep(seconds):
                self.sleep(seconds)
                return None
            case _:
                raise _no_effect(effect)


@frozen(eq=False)
class AsyncDriver:
    """Drives flows for asynchronous code."""

    transport: AsyncTransport
    sleep: Callable[[float], Awaitable[None]]
    clock: Clock

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
                sending = self.transport.send_async(_shortened(request, self.clock))
                return await self._before(request.deadline, sending)
            case ReadBody(response, _, deadline):
                try:
                    return await self._before(deadline, self._read(effect))
                finally:
                    await response.body.close_async()
            case Close(response):
                await response.body.close_async()
                return None
            case Sleep(seconds):
                await self.sleep(seconds)
                return None
            case _:
                raise _no_effect(effect)

    async def _read(self, effect: ReadBody) -> bytes:
        pieces = _Pieces(effect, self.clock)
        async for piece in effect.response.body:
            pieces.add(piece)
        return pieces.joined()

    async def _before(self, deadline: float | None, waiting: Awaitable[T]) -> T:
        """Return what `waiting` gives, or raise when the deadline passes first."""
        if deadline is None:
            return await waiting
        from anyio import move_on_after  # noqa: PLC0415 - slow to import; comes with httpx

        with move_on_after(deadline + _GRACE - self.clock()):
            return await waiting
        raise _too_late()


class _Pieces:
    """The pieces of a body, and the checks of their sum and of the time they take."""

    def __init__(self, effect: ReadBody, clock: Clock) -> None:
        self._limit = effect.limit
        self._deadline = effect.deadline
        self._clock = clock
        self._size = 0
        self._pieces: list[bytes] = []

    def add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._limit:
            raise ResponseTooLarge(self._limit)
        self._pieces.append(piece)
        if _is_over(self._deadline, self._clock):
            raise _too_late()

    def joined(self) -> bytes:
        if _is_over(self._deadline, self._clock):
            raise _too_late()
        return b"".join(self._pieces)


def _shortened(request: Request, clock: Clock) -> Request:
    """Return `request` with no timeout longer than what is left of the call's time."""
    if request.deadline is None:
        return request
    left = request.deadline - clock()
    if left <= 0:
        raise _too_late()
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


def _is_over(deadline: float | None, clock: Clock) -> bool:
    return deadline is not None and clock() > deadline


def _no_effect(value: object) -> TypeError:
    return TypeError(f"a flow yields effects, and those of other flows by yield from: {value!r}")


def _too_late() -> ReadTimeout:
    return ReadTimeout("the call took longer than its timeout_ms")
