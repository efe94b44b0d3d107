"""The running calls of a client, which any thread can cancel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast
from weakref import ref

from attrs import define, field

from flux0.domain.errors import ClientClosed, Flux0Error, Sent, TransportError, TransportTimeout
from flux0.domain.http import is_rejected
from flux0.domain.timeouts import Deadline
from flux0.flows import Await, CallRequest, Effect, Send
from flux0.ports import Response, Time
from flux0.runtime.event_loop import do_nothing
from flux0.runtime.processes import PerProcess

if TYPE_CHECKING:
    from typing_extensions import Self

CLIENT_CLOSED = "this Flux0 client is closed: create a new client"


class RunningCalls:
    """The running calls of one client. Closing the client cancels them.

    Each process has its own calls, so closing a client in a forked child does not cancel calls of
    the parent.

    Attributes:
        closed: whether the client was closed.
    """

    def __init__(self) -> None:
        self.closed: bool = False
        # Adding and removing a call are single operations of a `set`, which are atomic. `_calls`
        # has no lock, because a signal handler can close the client, and waits forever for a lock
        # that the interrupted code holds. A call is removed when it is freed, because a signal
        # handler could interrupt its `__exit__`. Cancelling an ended call has no effect.
        self._calls: PerProcess[set[ref[RunningCall]]] = PerProcess(set)

    def check(self) -> None:
        if self.closed:
            raise ClientClosed(CLIENT_CLOSED)

    def start(
        self, deadline: Deadline | None = None, wake: Callable[[], object] = do_nothing
    ) -> RunningCall:
        """Return a new call as a context manager. After `close`, `__enter__` raises `ClientClosed`.

        If the call is cancelled before `on_cancel` has set a function, `wake` is called.
        """
        return RunningCall(self, self._calls.get(), deadline, wake)

    def close(self) -> None:
        self.closed = True
        for reference in self._calls.get().copy():
            if (call := reference()) is not None:
                call.cancel()


@define(eq=False)
class RunningCall:
    """A call that any thread can cancel between the start and the end of its `with` block.

    The call waits in one operation at a time, such as reading a body. `on_cancel` sets the function
    that ends this wait.

    Attributes:
        deadline: The call's deadline; None if it has no `timeout_ms`.
    """

    _calls: RunningCalls
    _running: set[Any]  # weak references to calls
    deadline: Deadline | None
    _wake: Callable[[], object] = do_nothing
    _stop_alarm: Callable[[], object] = field(default=do_nothing, init=False)
    _cancelled: bool = field(default=False, init=False)
    _sent: Sent = field(default="no", init=False)
    _request: CallRequest | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        self._running.add(ref(self, self._running.discard))
        # `RunningCalls.close` in another thread does not cancel calls that are added after it. Such
        # a call raises `ClientClosed` here.
        self._calls.check()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._stop_alarm()
        if isinstance(error, Flux0Error):
            error.sent = self._sent

    def cancel(self) -> None:
        """Cancel the call: end its current wait. Later, `on_cancel` and `check` raise an error.

        Safe in any thread, in signal handlers and in finalizers.
        """
        self._cancelled = True
        self._wake()

    def cancel_at(self, moment: float, time: Time) -> None:
        self._stop_alarm = time.alarm(moment, self.cancel)

    def on_cancel(self, wake: Callable[[], object]) -> None:
        """Set `wake`, which ends the call's next wait. Raises an error if the call was cancelled.

        `wake` must not block or raise, and must have no effect after the end of the wait.
        """
        self._wake = wake
        self.check()

    def check(self) -> None:
        if self._cancelled:
            raise self._reason()

    def succeeded(self, effect: Effect, outcome: object) -> object:
        if isinstance(effect, Send):
            response = cast("Response[Any]", outcome)
            self._record(effect, rejected=is_rejected(response.status_code))
        return outcome

    def failed(self, effect: Effect, error: BaseException) -> BaseException:
        """Handle the error of an I/O operation (`effect`), and return the error to raise.

        Record whether a request was sent. If the operation failed because the call was cancelled or
        the client was closed, return an error that names this reason. If a timeout expired at the
        call's deadline, return the timeout's error, which names the operation that took too long.
        """
        cancelled = self._cancelled and not isinstance(error, TransportTimeout)
        if isinstance(error, (TransportError, ClientClosed)) and (cancelled or self._calls.closed):
            reason = self._reason()
            reason.__cause__, reason.sent = error.__cause__ or error, error.sent
            error = reason
        if isinstance(effect, Send):
            self._record(effect, rejected=isinstance(error, Flux0Error) and error.sent == "no")
        elif isinstance(effect, Await):
            self._request = effect.request or self._request
        return error

    def ended(self) -> Flux0Error:
        error = self._reason()
        if (request := self._request) is not None:
            error.attach_request(request.operation, request.method, request.url)
            error.attempts = request.attempt
        error.sent = self._sent
        return error

    def _record(self, effect: Send, *, rejected: bool) -> None:
        self._request = effect.request
        if not rejected:
            self._sent = "maybe"

    def _reason(self) -> Flux0Error:
        if self.deadline is None or self._calls.closed:
            return ClientClosed(CLIENT_CLOSED)
        return self.deadline.exceeded()
