"""Calls the observers of a client, and logs the end of each turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any, TypeVar, cast

from attrs import evolve

from flux0.domain import arguments
from flux0.domain.errors import InvalidArgument
from flux0.domain.headers import Headers
from flux0.flows import CallRequest, Flow, Middleware, SendFlow, chain
from flux0.middleware.logging import (
    is_turn_logged,
    log_failed_observer,
    log_turn,
    log_unconfirmed_end,
)
from flux0.observers import AttemptEnd, Call, CallEnd, Observer, TurnEnd
from flux0.ports import Response, Time

T = TypeVar("T")


class Observers:
    """The observers of one client.

    `observe_call` runs around a whole call, and `observe_attempt` around each attempt.
    """

    def __init__(self, observers: Iterable[Observer], time: Time) -> None:
        self._observers = _checked(observers)
        self._clock = time.monotonic
        # `_failed` contains the ids of the observers that have raised an exception. The set cannot
        # contain the observers themselves, because an observer can have no hash.
        self._failed: set[int] = set()
        # The first warning about an unconfirmed end of a turn acquires this lock and never releases
        # it, so that later warnings are not logged.
        self._warned = Lock()
        self._postponed: deque[Callable[[], None]] = deque()

    def __bool__(self) -> bool:
        return bool(self._observers)

    def observe_call(self, request: CallRequest, flow: Flow[T]) -> Flow[T]:
        # `request.call` is not None, because `observe_call` is called only if the client has
        # observers.
        call = cast("Call", request.call)
        start, error = self._clock(), None
        self.flush()
        self._notify(lambda observer: observer.on_call_start(call))
        try:
            return (yield from flow)
        except BaseException as raised:
            error = self._reported_error(raised, request)
            raise
        finally:
            end = CallEnd(self._clock() - start, error)
            self._notify(lambda observer: observer.on_call_end(call, end))

    def observe_attempt(
        self, layers: Sequence[Middleware], request: CallRequest, send: SendFlow
    ) -> Flow[Response[Any]]:
        status: int | None = None

        def record_status(request: CallRequest) -> Flow[Response[Any]]:
            nonlocal status
            response = yield from send(request)
            status = response.status_code
            return response

        attempt = chain(layers, record_status)
        # A request that the user's middleware has created has no `call`. Attempts to send such a
        # request are not reported to the observers.
        if (call := request.call) is None:
            return (yield from attempt(request))
        number, error = request.attempt, None
        added = Headers()
        for fields in self._notify(lambda observer: _header_fields(observer, call, number)):
            added = added.merge(fields)
        request = evolve(request, headers=added.merge(request.headers))
        start = self._clock()
        try:
            return (yield from attempt(request))
        except BaseException as raised:
            error = self._reported_error(raised, request)
            raise
        finally:
            end = AttemptEnd(number, self._clock() - start, status, error)
            self._notify(lambda observer: observer.on_attempt_end(call, end))

    def is_turn_observed(self) -> bool:
        return bool(self._observers) or is_turn_logged()

    def first_event(self, call: Call | None, seconds: float) -> None:
        if call is not None:
            self._notify(lambda observer: observer.on_first_event(call, seconds))

    def turn_ended(self, call: Call | None, turn: TurnEnd, *, is_relayed: bool) -> None:
        log_turn(turn, is_relayed=is_relayed)
        if call is not None:
            self._notify(lambda observer: observer.on_turn_end(call, turn))

    def trace_parent(self, call: Call | None) -> str | None:
        known = () if call is None else self._notify(lambda observer: _trace_parent(observer, call))
        return next(filter(None, known), None)

    def unconfirmed_end(self) -> None:
        if self._warned.acquire(blocking=False):
            log_unconfirmed_end()

    def postpone(self, report: Callable[[], None]) -> None:
        """Call `report` later: at the client's next call, or when the client is closed.

        Safe in finalizers, because this method acquires no lock.
        """
        self._postponed.append(report)

    def flush(self) -> None:
        for _ in range(len(self._postponed)):
            # `popleft` raises IndexError if another thread has removed the last item meanwhile.
            with suppress(IndexError):
                self._postponed.popleft()()

    def _notify(self, report: Callable[[Observer], T]) -> list[T]:
        results: list[T] = []
        for observer in self._observers:
            try:
                results.append(report(observer))
            except Exception as error:  # noqa: BLE001 - an observer must not break the call
                if id(observer) not in self._failed:
                    self._failed.add(id(observer))
                    log_failed_observer(observer, error)
        return results

    def _reported_error(self, error: BaseException, request: CallRequest) -> BaseException:
        """Return the error to report to observers for an exception that a call raised.

        At its deadline, an async call is cancelled, and the caller gets `Deadline.exceeded()`. So
        after the deadline, observers get this error instead of the cancellation, too.
        """
        deadline = request.deadline
        if isinstance(error, Exception) or deadline is None:
            return error
        return error if deadline.left(self._clock()) > 0 else deadline.exceeded()


def _trace_parent(observer: Observer, call: Call) -> str | None:
    if (value := observer.trace_parent(call)) is not None:
        arguments.headers("trace_parent", {"traceparent": value})
    return value


def _header_fields(observer: Observer, call: Call, number: int) -> Headers:
    fields = observer.on_attempt_start(call, number)
    return Headers() if not fields else arguments.headers("on_attempt_start", fields)


def _checked(observers: object) -> tuple[Observer, ...]:
    if isinstance(observers, Observer) or not isinstance(observers, Iterable):
        raise InvalidArgument("observers", f"must be a list of observers: pass [{observers!r}]")
    each = cast("Iterable[object]", observers)
    return tuple(arguments.instance("observers", Observer, observer) for observer in each)
