"""The sync and the async driver, which perform the I/O operations that flows yield.

Both drivers end a call at its deadline, and when the client is closed. The async driver cancels the
call. In a sync call, another thread ends the wait, for example by shutting the socket down: read
timeouts are not sufficient, because they never expire while a server keeps sending bytes.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from inspect import iscoroutine
from typing import TYPE_CHECKING, TypeVar, cast

from attrs import astuple, evolve, field, frozen

from flux0.domain.errors import InvalidArgument, ReadTimeout, ResponseTooLarge, Sent
from flux0.domain.timeouts import Deadline
from flux0.flows import Await, CallRequest, Effect, Flow, ReadBody, Send, Sleep
from flux0.ports import AsyncTransport, ByteStream, Response, Time, Timeout, Transport
from flux0.runtime.event_loop import StartLimit, call_soon, load_anyio, running_loop
from flux0.runtime.waker import Waker
from flux0.turns.running_calls import RunningCall, RunningCalls

if TYPE_CHECKING:
    from anyio import CancelScope

T = TypeVar("T")

# flux0 ends a call `_GRACE` seconds after the call's deadline. The transport's timeouts expire
# earlier, at the deadline, so the caller gets the transport's error, which names the operation that
# took too long.
_GRACE = 0.1


@frozen(eq=False)
class Driver:
    """Runs flows over a sync transport: performs each I/O operation that a flow yields."""

    transport: Transport
    time: Time
    calls: RunningCalls = field(factory=RunningCalls)

    def run(self, flow: Flow[T], deadline: Deadline | None = None) -> T:
        with self.calls.start(deadline) as call:
            if deadline is not None:
                call.cancel_at(deadline.moment + _GRACE, self.time)
            try:
                effect = next(flow)
                while True:
                    try:
                        outcome = self._perform(effect, call)
                    except BaseException as error:  # noqa: BLE001 - the flow handles it
                        effect = flow.throw(call.failed(effect, error))
                    else:
                        effect = flow.send(call.succeeded(effect, outcome))
            except StopIteration as stop:
                return cast("T", stop.value)

    def _perform(self, effect: Effect, call: RunningCall) -> object:
        match effect:
            case Send(request):
                return self._send(request, call)
            case ReadBody(_, response):
                try:
                    call.on_cancel(response.body.close)
                    return self._read(effect, call.deadline)
                finally:
                    response.body.close()
            case Sleep(seconds):
                self._sleep(seconds, call)
                return None
            case Await(awaitable, argument):
                if iscoroutine(awaitable):
                    # If a coroutine is neither awaited nor closed, Python prints a warning.
                    awaitable.close()
                raise InvalidArgument(argument, "is async: call the _async method")
            case _:
                raise _not_an_effect(effect)

    def _send(self, request: CallRequest, call: RunningCall) -> Response[ByteStream]:
        call.on_cancel(request.interrupt.fire)
        response = self.transport.send(_limited(request, call.deadline, self.time))
        _check_body(response.body, "read")
        if call.deadline is not None and call.deadline.left(self.time.monotonic()) < 0:
            response.body.close()
            raise call.deadline.exceeded()
        return response

    def _read(self, effect: ReadBody, deadline: Deadline | None) -> bytes:
        timeout, read = effect.request.timeout.read, effect.response.body.read
        body = bytearray()
        with _until(deadline, self.time):
            while (piece := read(_limit(timeout, deadline, self.time))) is not None:
                _append(body, piece, effect.limit)
        return bytes(body)

    def _sleep(self, seconds: float, call: RunningCall) -> None:
        left = seconds if call.deadline is None else call.deadline.left(self.time.monotonic())
        waker = Waker()
        call.on_cancel(waker.wake)
        self.time.sleep_or_wake(max(min(seconds, left), 0), waker.wait)
        call.check()
        if call.deadline is not None and left < seconds:
            raise call.deadline.exceeded()


@frozen(eq=False)
class AsyncDriver:
    transport: AsyncTransport
    time: Time
    calls: RunningCalls = field(factory=RunningCalls)
    _start_limit: StartLimit = field(factory=StartLimit, init=False)

    async def run(self, flow: Flow[T], deadline: Deadline | None = None) -> T:
        left = None if deadline is None else deadline.left(self.time.monotonic()) + _GRACE
        scope: CancelScope = load_anyio().move_on_after(left)
        call = self.calls.start(deadline, partial(call_soon, running_loop(), scope.cancel))
        with scope, call:
            await self._start_limit.wait()
            try:
                effect = next(flow)
                while True:
                    try:
                        outcome = await self._perform(effect, call)
                    except BaseException as error:  # noqa: BLE001 - the flow handles it
                        effect = flow.throw(call.failed(effect, error))
                    else:
                        effect = flow.send(call.succeeded(effect, outcome))
            except StopIteration as stop:
                return cast("T", stop.value)
        raise call.ended()

    async def _perform(self, effect: Effect, call: RunningCall) -> object:
        match effect:
            case Send(request):
                call.check()
                limited = _limited(request, call.deadline, self.time)
                response = await self.transport.send_async(limited)
                _check_body(response.body, "read_async")
                return response
            case ReadBody(_, response):
                try:
                    return await self._read(effect, call.deadline)
                finally:
                    await response.body.close_async()
            case Sleep(seconds):
                with _until(call.deadline, self.time):
                    await self.time.sleep_async(seconds)
                return None
            case Await(awaitable):
                return await awaitable
            case _:
                raise _not_an_effect(effect)

    async def _read(self, effect: ReadBody, deadline: Deadline | None) -> bytes:
        timeout, read = effect.request.timeout.read, effect.response.body.read_async
        body = bytearray()
        with _until(deadline, self.time):
            while (piece := await read(_limit(timeout, deadline, self.time))) is not None:
                _append(body, piece, effect.limit)
        return bytes(body)


def _check_body(body: object, method: str) -> None:
    if not hasattr(body, method):
        raise TypeError(f"the transport returned the body {body!r} without {method}(timeout)")


def _append(body: bytearray, piece: bytes, limit: int) -> None:
    body += piece
    if len(body) > limit:
        raise ResponseTooLarge(limit)


@contextmanager
def _until(deadline: Deadline | None, time: Time) -> Generator[None, None, None]:
    cause: BaseException | None = None
    try:
        yield
    except ReadTimeout as error:
        if deadline is None or deadline.left(time.monotonic()) > 0:
            raise
        cause = error.__cause__
    if deadline is not None and deadline.left(time.monotonic()) <= 0:
        raise deadline.exceeded() from cause


def _limit(
    timeout: float | None, deadline: Deadline | None, time: Time, sent: Sent = "maybe"
) -> float | None:
    if deadline is None:
        return timeout
    left = deadline.left(time.monotonic())
    if left <= 0:
        raise deadline.exceeded(sent)
    return left if timeout is None else min(timeout, left)


def _limited(request: CallRequest, deadline: Deadline | None, time: Time) -> CallRequest:
    left = _limit(None, deadline, time, "no")
    if left is None:
        return request
    limited = (left if each is None else min(each, left) for each in astuple(request.timeout))
    return evolve(request, timeout=Timeout(*limited))


def _not_an_effect(value: object) -> TypeError:
    problem = f"a middleware must yield an effect such as Sleep, not {value!r}"
    return TypeError(f"{problem}: to send a request or call a flow, use `yield from`")
