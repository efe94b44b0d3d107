"""The retry policy: tries a failed request again, where that cannot do it twice."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from threading import Lock
from typing import Any

from attrs import evolve

from flux0.domain.errors import Flux0Error
from flux0.domain.retrying import DEFAULT_RETRIES, RetryDetails, wait_before_retry
from flux0.flows import Flow, SendFlow, Sleep
from flux0.ports import Request, Response, Time


class RetryBudget:
    """A token bucket that keeps many clients' retries from multiplying an outage.

    It holds `capacity` retries, and is full to begin with. Each retry takes one,
    `successes_per_retry` calls that succeed give one back; without a whole one nothing is tried
    again. One client has one budget, shared by its threads.
    """

    def __init__(self, capacity: int = 100, successes_per_retry: int = 10) -> None:
        # Counted in successes, since sums of fractions are not exact.
        self._price = successes_per_retry
        self._full = capacity * successes_per_retry
        self._left = self._full
        self._lock = Lock()

    def take(self) -> bool:
        """Take a retry; False when there is none."""
        with self._lock:
            if self._left < self._price:
                return False
            self._left -= self._price
            return True

    def give(self) -> None:
        """Take note of a success."""
        if self._left < self._full:
            with self._lock:
                self._left = min(self._full, self._left + 1)


class Retry:
    """Repeats a request after failures that a second attempt may mend.

    A streaming request is repeated only until its headers are in, and even with `retry_posts` only
    where the server surely did nothing. The error of the last attempt is raised, with `attempts`.
    """

    def __init__(
        self, budget: RetryBudget, time: Time, on_retry: Callable[[RetryDetails], None]
    ) -> None:
        self._budget = budget
        self._time = time
        self._on_retry = on_retry

    def __call__(self, request: Request, send: SendFlow) -> Flow[Response[Any]]:
        """Return the response of the first attempt that succeeds."""
        began = self._time.monotonic()
        while True:
            try:
                response = yield from send(request)
            except Flux0Error as error:
                wait = self._wait(request, error, began)
                if wait is None:
                    error.attach_request(request.operation, request.method, request.url)
                    error.attempts = request.attempt
                    raise
                self._on_retry(
                    RetryDetails(
                        operation=request.operation,
                        method=request.method,
                        url=request.url,
                        attempt=request.attempt,
                        delay_ms=wait * 1000,
                        cause=error,
                    )
                )
            else:
                self._budget.give()
                return response
            yield Sleep(wait)
            request = evolve(request, attempt=request.attempt + 1)

    def _wait(self, request: Request, error: Flux0Error, began: float) -> float | None:
        config = request.retries or DEFAULT_RETRIES
        now = self._time.monotonic()
        wait = wait_before_retry(
            config,
            error,
            attempt=request.attempt,
            repeatable=request.is_idempotent or (config.retry_posts and not request.stream),
            elapsed=now - began,
            left=inf if request.deadline is None else request.deadline.left(now),
            jitter=self._time.jitter(),
            now=self._time.utc_now(),
        )
        return wait if wait is not None and self._budget.take() else None
