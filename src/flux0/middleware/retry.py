"""The retry middleware: sends a failed request again, according to the retry policy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import count
from math import inf
from typing import Any

from attrs import evolve, frozen

from flux0.domain.api_errors import AuthenticationError
from flux0.domain.errors import Flux0Error
from flux0.domain.retrying import DEFAULT_RETRIES, RetryDetails, wait_before_retry
from flux0.domain.safe_text import shown_url
from flux0.flows import CallRequest, Flow, SendFlow, Sleep
from flux0.middleware.logging import log_retry
from flux0.ports import Response, Time


class RetryBudget:
    """A token bucket that limits the retries of a client: many retries can worsen an outage.

    The budget starts full, with `capacity` retries. Each retry takes 1 from the budget, and
    `successes_per_retry` successful calls add 1. If the budget is empty, failed calls are not
    retried. All threads of a client share one budget. The budget has no lock: a child that is
    forked while a thread holds a lock waits for this lock forever.
    """

    def __init__(self, capacity: int = 100, successes_per_retry: int = 10) -> None:
        # Each item of the deque `_retries` is a retry that is still allowed. Threads share the
        # deque without a lock, because single operations of a deque are atomic.
        self._retries = deque(range(capacity), maxlen=capacity)
        self._successes = count(1)
        self._successes_per_retry = successes_per_retry

    def spend(self) -> bool:
        try:
            self._retries.pop()
        except IndexError:
            return False
        return True

    def add_success(self) -> None:
        number = next(self._successes)
        if number % self._successes_per_retry == 0:
            # If the deque `_retries` is full, `append` removes its oldest item, so there are never
            # more than `capacity` retries.
            self._retries.append(number)


@frozen(eq=False)
class Retry:
    """Retries a request after temporary failures, by the policy in `request.retries`.

    A streaming request is retried only before its response head is received, and only if the server
    has certainly not acted on it; `retry_posts` does not change this. If all attempts fail, the
    last error is raised; its attribute `attempts` is the number of attempts.
    """

    _budget: RetryBudget
    _time: Time
    _on_retry: Callable[[RetryDetails], None] | None

    def __call__(self, request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        start = self._time.monotonic()
        sent = renewed = False
        while True:
            try:
                response = yield from send(request)
            except Flux0Error as error:
                sent = sent or error.sent != "no"
                error.sent = "maybe" if sent else "no"
                wait = self._wait(request, error, start, renewed)
                if wait is None:
                    if not error.from_user_code:
                        error.attach_request(request.operation, request.method, request.url)
                        error.attempts = request.attempt
                    raise
                names = request.operation, request.method, shown_url(request.url)
                details = RetryDetails(*names, request.attempt, delay_ms=wait * 1000, cause=error)
                renewed = renewed or isinstance(error, AuthenticationError)
                log_retry(details)
                if self._on_retry is not None:
                    self._on_retry(details)
            else:
                self._budget.add_success()
                return response
            yield Sleep(wait)
            request = evolve(request, attempt=request.attempt + 1)

    def _wait(
        self, request: CallRequest, error: Flux0Error, start: float, renewed: bool
    ) -> float | None:
        config = request.retries or DEFAULT_RETRIES
        now = self._time.monotonic()
        repeatable = request.is_idempotent or (config.retry_posts and not request.stream)
        if unauthorized := isinstance(error, AuthenticationError):
            computed = request.header_functions.keys() - request.headers
            repeatable = "authorization" in computed and not renewed
        wait = wait_before_retry(
            config,
            error,
            attempt=request.attempt,
            repeatable=repeatable,
            elapsed=now - start,
            left=inf if request.deadline is None else request.deadline.left(now),
            jitter=self._time.jitter(),
            now=self._time.utc_now(),
        )
        # A retry after a response with status 401 takes nothing from the budget. When a token
        # expires, all calls fail together, and each call is repeated only once, with a new token.
        return wait if wait is not None and (unauthorized or self._budget.spend()) else None
