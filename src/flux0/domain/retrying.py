"""The retry policy: its settings, and the decision whether and when to retry a failed call."""

from __future__ import annotations

import re
from datetime import datetime, timezone

from attrs import field, frozen

from flux0.domain import arguments
from flux0.domain.api_errors import APIError, AuthenticationError, RateLimitError
from flux0.domain.errors import ConnectError, ConnectionInterrupted, Flux0Error, InvalidArgument


@frozen
class BackoffStrategy:
    """The waits between attempts, which grow exponentially and have random jitter.

    The longest wait after attempt n is `initial_interval * exponent ** (n - 1)`, but not more than
    `max_interval`. The actual wait is a random time from 0 to the longest wait ("full jitter"). All
    times are in milliseconds.

    Attributes:
        initial_interval: the longest wait after the first attempt, in milliseconds.
        max_interval: the upper limit of every wait in milliseconds, even if the server asks for a
            longer wait.
        exponent: the factor by which the longest wait grows after each attempt.
        max_elapsed_time: the longest time between the start of the first attempt and a retry, in
            milliseconds.
    """

    initial_interval: int = 500
    max_interval: int = 60_000
    exponent: float = 1.5
    max_elapsed_time: int = 3_600_000

    def __attrs_post_init__(self) -> None:
        for name in ("initial_interval", "max_interval", "exponent", "max_elapsed_time"):
            arguments.interval(name, getattr(self, name))

    def ceiling(self, attempt: int) -> float:
        """Return the longest wait after an attempt in milliseconds; the first attempt is 1."""
        try:
            growth = float(self.exponent) ** (attempt - 1)
        # With the default exponent, the interval is too large for a float after 1,750 attempts.
        except OverflowError:
            return self.max_interval
        return min(self.initial_interval * growth, self.max_interval)


@frozen
class RetryConfig:
    """The retry policy of a client or of one call.

    Idempotent requests (such as GET) are retried after connection errors and after the
    statuses 408, 429, 500, 502, 503 and 504. A POST is retried only if the server has certainly not
    acted on it: if the connection could not be established, or after a 429. If a function computes
    the header `authorization`, each request is retried once after a 401, without a wait.

    Attributes:
        strategy: `"backoff"`, or `"none"` for no retries.
        backoff: the waits between the attempts of a call.
        retry_connection_errors: whether to retry if the connection could not be established, or
            was interrupted.
        max_attempts: the largest number of attempts, including the first; None means that only
            `backoff.max_elapsed_time` limits the attempts, as in the generated client. A client
            without a `retry_config` makes up to 3 attempts.
        retry_posts: whether to retry a POST in the same cases as a GET. The server may then process
            a POST twice. `retry_posts` has no effect on messages.
    """

    strategy: str = "backoff"
    backoff: BackoffStrategy = BackoffStrategy()
    retry_connection_errors: bool = True
    max_attempts: int | None = field(default=None, kw_only=True)
    retry_posts: bool = field(default=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if self.strategy not in ("backoff", "none"):
            problem = f"must be 'backoff' or 'none', not {self.strategy!r}"
            raise InvalidArgument("strategy", problem)
        arguments.instance("backoff", BackoffStrategy, self.backoff)
        if self.max_attempts is not None:
            arguments.integer("max_attempts", self.max_attempts, smallest=1)
        for name in ("retry_connection_errors", "retry_posts"):
            arguments.instance(name, bool, getattr(self, name))


DEFAULT_RETRIES = RetryConfig(max_attempts=3)

_RETRIED_STATUSES = frozenset({401, 408, 429, 500, 502, 503, 504})


@frozen
class RetryDetails:
    """A description of the next retry, passed to `on_retry` before the wait.

    Attributes:
        operation: the call's name, such as `agents.list`.
        method: the request's HTTP method.
        url: the request URL, without credentials.
        attempt: the number of the attempt that failed; the first attempt is 1.
        delay_ms: the wait before the next attempt, in milliseconds.
        cause: the failed attempt's error.
    """

    operation: str
    method: str
    url: str
    attempt: int
    delay_ms: float
    cause: Flux0Error


def wait_before_retry(
    config: RetryConfig,
    error: Flux0Error,
    *,
    attempt: int,
    repeatable: bool,
    elapsed: float,
    left: float,
    jitter: float,
    now: datetime,
) -> float | None:
    """Return the seconds to wait before the next attempt, or None if the error must be raised.

    If the error response has a `Retry-After` header, the header determines the wait, up to
    `max_interval`.

    Args:
        config: the call's retry policy.
        error: the failed attempt's error.
        attempt: the number of the attempt that failed; the first attempt is 1.
        repeatable: True if the server may process the request twice without harm. After a 401
            response, True if the next attempt sends a new token.
        elapsed: the seconds since the first attempt started.
        left: the seconds until the call's deadline.
        jitter: a random number from 0 to 1.
        now: the current time, for a `Retry-After` that is a date.
    """
    if config.strategy == "none" or not _is_retryable(config, error, repeatable=repeatable):
        return None
    if config.max_attempts is not None and attempt >= config.max_attempts:
        return None
    backoff = config.backoff
    requested = 0.0 if isinstance(error, AuthenticationError) else retry_after(error, now)
    if requested is None:
        wait = jitter * backoff.ceiling(attempt) / 1000
    else:
        wait = min(requested, backoff.max_interval / 1000)
    return wait if elapsed + wait < backoff.max_elapsed_time / 1000 and wait < left else None


def _is_retryable(config: RetryConfig, error: Flux0Error, *, repeatable: bool) -> bool:
    if error.from_user_code:
        return False
    if isinstance(error, APIError):
        # A server that responds with status 429 has not acted on the request, so every request can
        # be repeated.
        repeatable = repeatable or isinstance(error, RateLimitError)
        return repeatable and error.status_code in _RETRIED_STATUSES
    if not config.retry_connection_errors:
        return False
    if isinstance(error, ConnectError):
        return not error.permanent
    return repeatable and isinstance(error, ConnectionInterrupted)


_SECONDS = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def retry_after(error: Flux0Error, now: datetime) -> float | None:
    """Return the seconds in the `Retry-After` header of an error response.

    The value is a number of seconds or an HTTP date (RFC 9110, section 10.2.3). Returns None if the
    header is missing or invalid, or if the date is in the past.
    """
    value = error.headers.get("retry-after", "").strip() if isinstance(error, APIError) else ""
    if not value:
        return None
    if _SECONDS.fullmatch(value):
        return float(value)
    from email.utils import parsedate_to_datetime  # noqa: PLC0415 - slow to import, rarely needed

    try:
        date = parsedate_to_datetime(value)
    except (ValueError, IndexError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    wait = (date - now).total_seconds()
    return wait if wait >= 0 else None
