"""The sync and the async driver, which perform the effects that flows describe.

The sync driver blocks; the async driver awaits. Both end a call at its deadline, and when the
client is closed. The async driver cancels the call. The sync driver closes the connection of the
call from another thread, because read timeouts never expire while a server keeps sending bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import iscoroutine
from typing import TYPE_CHECKING, TypeVar

from attrs import evolve, field, frozen

from flux0.client.open_calls import CLIENT_CLOSED, OpenCalls
from flux0.domain.errors import (
    ClientClosed,
    Flux0Error,
    InvalidArgument,
    ReadTimeout,
    ResponseTooLarge,
    Sent,
    TransportError,
    TransportTimeout,
)
from flux0.domain.http import is_rejected
from flux0.domain.timeouts import Deadline
from flux0.flows import Await, CallRequest, Effect, Flow, ReadBody, Send, Sleep
from flux0.ports import AsyncTransport, ByteStream, Response, Time, Transport
from flux0.runtime.event_loop import StartLimit, call_soon, load_anyio, running_loop
from flux0.runtime.waker import Waker

if TYPE_CHECKING:
    from anyio import CancelScope

T = TypeVar("T")
E = TypeVar("E", bound=Flux0Error)

# The driver ends a call this many seconds after the deadline. The timeouts of the transport expire
# at the deadline, so the transport raises its error first, which names the operation that
# took too long.
_GRACE = 0.1


class _Progress:
    """Records whether a call has sent its request, for the attribute `sent` of its error."""

    def __init__(self) -> None:
        self.sent: Sent = "no"
        self._request: CallRequest | None = None

    def record(self, effect: Effect, outcome: object) -> None:
        """Record the outcome of an effect: the result, or the exception that was raised."""
        if not isinstance(effect, Send):
            return
        self._request = effect.request
        if isinstance(outcome, Response):
            rejected = is_rejected(outcome.status_code)
        else:
            rejected = isinstance(outcome, Flux0Error) and outcome.sent == "no"
        if not rejected:
            self.sent = "maybe"

    def ended(self, error: E) -> E:
        """Return `error`, after adding the last request of the cancelled call and `sent` to it."""
        if self._request is not None:
            request = self._request
            error.attach_request(request.operation, request.method, request.url)
            error.attempts = request.attempt
        error.sent = self.sent
        return error


@frozen(eq=False)
class Driver:
    """Runs flows over a sync transport: performs each effect, and sends its outcome to the flow."""

    transport: Transport
    time: Time
    calls: OpenCalls = field(factory=OpenCalls)

    def run(self, flow: Flow[T], deadline: Deadline | None = None) -> T:
        """Perform the effects of `flow` until it returns, and return its result."""
        progress = _Progress()
        try:
            effect = next(flow)
            while True:
                try:
                    outcome = self._perform(effect, deadline)
                except BaseException as error:  # noqa: BLE001 - the flow handles it, and cleans up
                    explained = self.calls.explain(error)
                    progress.record(effect, explained)
                    effect = flow.throw(explained)
                else:
                    progress.record(effect, outcome)
                    effect = flow.send(outcome)
        except StopIteration as stop:
            result: T = stop.value
            return result
        except Flux0Error as error:
            error.sent = progress.sent
            raise

    def _perform(self, effect: Effect, deadline: Deadline | None) -> object:
        match effect:
            case Send(request):
                self.calls.check()
                return self._send(request)
            case ReadBody(request, response):
                close = response.body.close
                try:
                    return self._wakeable(request.deadline, close, partial(self._read, effect))
                finally:
                    close()
            case Sleep(seconds):
                self._sleep(seconds, deadline)
                return None
            case Await(awaitable, argument):
                if iscoroutine(awaitable):
                    awaitable.close()  # Avoid the warning "coroutine was never awaited".
                raise InvalidArgument(argument, "is async: call the _async method")
            case _:
                raise _not_an_effect(effect)

    def _send(self, request: CallRequest) -> Response[ByteStream]:
        deadline = request.deadline
        if deadline is not None:
            request = _limited(request, deadline, self.time)
        send = partial(self.transport.send, request)
        response = self._wakeable(deadline, request.interrupt.fire, send)
        _check_body(response.body, "read")
        if deadline is not None and self.time.monotonic() > deadline.moment:
            response.body.close()
            raise deadline.exceeded()
        return response

    def _read(self, effect: ReadBody) -> bytes:
        request, read = effect.request, effect.response.body.read
        size, pieces = 0, list[bytes]()
        try:
            while (piece := read(_read_timeout(request, self.time))) is not None:
                size += len(piece)
                pieces.append(piece)
                _check_size(size, effect.limit)
        except ReadTimeout as error:
            _check_deadline(request, self.time, error.__cause__)
            raise
        _check_deadline(request, self.time)
        return b"".join(pieces)

    def _sleep(self, seconds: float, deadline: Deadline | None) -> None:
        left = seconds if deadline is None else deadline.left(self.time.monotonic())
        waker = Waker()
        with self.calls.wake_on_close(waker.wake):
            self.time.sleep_or_wake(max(min(seconds, left), 0), waker.wait)
        self.calls.check()
        if deadline is not None and left < seconds:
            raise deadline.exceeded()

    def _wakeable(
        self, deadline: Deadline | None, wake: Callable[[], object], work: Callable[[], T]
    ) -> T:
        """Call `work` and return its result.

        If `work` is still running at the deadline, or when the client is closed, another thread
        calls `wake`, which must end `work`.
        """
        if deadline is None:
            with self.calls.wake_on_close(wake):
                return work()
        cancel = self.time.alarm(deadline.moment + _GRACE, wake)
        try:
            with self.calls.wake_on_close(wake):
                return work()
        except TransportTimeout:
            raise  # Keep this error: it names the operation that took too long.
        except TransportError as error:
            if self.time.monotonic() > deadline.moment + _GRACE and not self.calls.closed:
                raise deadline.exceeded(error.sent) from error.__cause__ or error
            raise
        finally:
            cancel()


@frozen(eq=False)
class AsyncDriver:
    """The async version of `Driver`."""

    transport: AsyncTransport
    time: Time
    calls: OpenCalls = field(factory=OpenCalls)
    _start_limit: StartLimit = field(factory=StartLimit, init=False)

    async def run(self, flow: Flow[T], deadline: Deadline | None = None) -> T:
        """The async version of `Driver.run`."""
        progress = _Progress()
        left = None if deadline is None else deadline.left(self.time.monotonic()) + _GRACE
        scope: CancelScope = load_anyio().move_on_after(left)
        with scope:
            cancel = partial(call_soon, running_loop(), scope.cancel)
            with self.calls.wake_on_close(cancel):
                await self._start_limit.wait()
                return await self._run(flow, deadline, progress)
        if deadline is None or self.calls.closed:
            raise progress.ended(ClientClosed(CLIENT_CLOSED))
        raise progress.ended(deadline.exceeded())

    async def _run(self, flow: Flow[T], deadline: Deadline | None, progress: _Progress) -> T:
        try:
            effect = next(flow)
            while True:
                try:
                    outcome = await self._perform(effect, deadline)
                except BaseException as error:  # noqa: BLE001 - the flow handles it, and cleans up
                    explained = self.calls.explain(error)
                    progress.record(effect, explained)
                    effect = flow.throw(explained)
                else:
                    progress.record(effect, outcome)
                    effect = flow.send(outcome)
        except StopIteration as stop:
            result: T = stop.value
            return result
        except Flux0Error as error:
            error.sent = progress.sent
            raise

    async def _perform(self, effect: Effect, deadline: Deadline | None) -> object:
        match effect:
            case Send(request):
                self.calls.check()
                if request.deadline is not None:
                    request = _limited(request, request.deadline, self.time)
                response = await self.transport.send_async(request)
                _check_body(response.body, "read_async")
                return response
            case ReadBody(_, response):
                try:
                    return await self._read(effect)
                finally:
                    await response.body.close_async()
            case Sleep(seconds):
                await self.time.sleep_async(seconds)
                if deadline is not None and deadline.left(self.time.monotonic()) <= 0:
                    raise deadline.exceeded()
                return None
            case Await(awaitable):
                return await awaitable
            case _:
                raise _not_an_effect(effect)

    async def _read(self, effect: ReadBody) -> bytes:
        request, read = effect.request, effect.response.body.read_async
        size, pieces = 0, list[bytes]()
        try:
            while (piece := await read(_read_timeout(request, self.time))) is not None:
                size += len(piece)
                pieces.append(piece)
                _check_size(size, effect.limit)
        except ReadTimeout as error:
            _check_deadline(request, self.time, error.__cause__)
            raise
        _check_deadline(request, self.time)
        return b"".join(pieces)


def _check_body(body: object, method: str) -> None:
    if not hasattr(body, method):
        raise TypeError(f"the transport returned the body {body!r} without {method}(timeout)")


def _read_timeout(request: CallRequest, time: Time) -> float | None:
    """Return the timeout of the next read. The deadline limits it, too."""
    if request.deadline is None:
        return request.timeout.read
    return _shorter(request.timeout.read, _time_left(request.deadline, time))


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise ResponseTooLarge(limit)


def _check_deadline(request: CallRequest, time: Time, cause: BaseException | None = None) -> None:
    if request.deadline is not None and request.deadline.left(time.monotonic()) <= 0:
        raise request.deadline.exceeded() from cause


def _time_left(deadline: Deadline, time: Time, sent: Sent = "maybe") -> float:
    """Return the seconds until the deadline; raise an error with this `sent` after it."""
    left = deadline.left(time.monotonic())
    if left <= 0:
        raise deadline.exceeded(sent)
    return left


def _limited(request: CallRequest, deadline: Deadline, time: Time) -> CallRequest:
    """Return `request`, with its timeouts limited to the time until the deadline."""
    left = _time_left(deadline, time, "no")
    timeout = request.timeout
    return evolve(
        request,
        timeout=evolve(
            timeout,
            connect=_shorter(timeout.connect, left),
            read=_shorter(timeout.read, left),
            write=_shorter(timeout.write, left),
            pool=_shorter(timeout.pool, left),
        ),
    )


def _shorter(timeout: float | None, left: float) -> float:
    return left if timeout is None else min(timeout, left)


def _not_an_effect(value: object) -> TypeError:
    return TypeError(
        f"a flow must yield effects, not {value!r}; call other flows with `yield from`"
    )
