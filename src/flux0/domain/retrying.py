"""When a failed call is tried again, and after how long: values and the pure decision."""

from __future__ import annotations

import re
from datetime import datetime, timezone

from attrs import field, frozen

from flux0.domain import arguments
from flux0.domain.errors import (
    APIError,
    ConnectError,
    ConnectionInterrupted,
    Flux0Error,
    InvalidArgument,
    PoolTimeout,
    TLSError,
    TransportError,
)


@frozen
class BackoffStrategy:
    """Waits that grow from `initial_interval` by `exponent` up to `max_interval`.

    Each wait is a random part of that ("full jitter"). Intervals are in milliseconds. No retry
    begins `max_elapsed_time` or more after the first attempt began.
    """

    initial_interval: int = 500
    max_interval: int = 60_000
    exponent: float = 1.5
    max_elapsed_time: int = 3_600_000

    def __attrs_post_init__(self) -> None:
        for name in ("initial_interval", "max_interval", "exponent", "max_elapsed_time"):
            arguments.interval(name, getattr(self, name))

    def ceiling(self, attempt: int) -> float:
        """Return the longest wait after `attempt`, which counts from 1, in milliseconds."""
        if self.initial_interval == 0:
            return 0.0
        try:
            growth = float(self.exponent) ** (attempt - 1)
        except OverflowError:  # As 1.5 does after some 1,750 attempts.
            return self.max_interval
        return min(self.initial_interval * growth, self.max_interval)


@frozen
class RetryConfig:
    """What is tried again: `strategy` is `"backoff"` or `"none"`.

    `retry_connection_errors` covers connections that could not be made, were reset, or died in the
    pool. `max_attempts` counts the first attempt; None sets no limit but the time. A POST is tried
    again only where the server surely did nothing, unless `retry_posts` says to treat it as a GET.
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
        arguments.attempts("max_attempts", self.max_attempts)
        for name in ("retry_connection_errors", "retry_posts"):
            arguments.flag(name, getattr(self, name))


DEFAULT_RETRIES = RetryConfig(max_attempts=3)

_TOO_MANY_REQUESTS = 429
_RETRIED_STATUSES = frozenset({408, _TOO_MANY_REQUESTS, 500, 502, 503, 504})


@frozen
class RetryDetails:
    """What is about to be tried again.

    `attempt` is the one that failed, counted from 1; `delay_ms` the wait before the next.
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
    """Return the seconds to wait before the next attempt, or None where there is to be none.

    Args:
        config: the policy.
        error: what the attempt failed by.
        attempt: which one failed, counted from 1.
        repeatable: doing the request twice does no harm.
        elapsed: the seconds since the first attempt began.
        left: the seconds until the call must be over.
        jitter: a random number from 0 to 1.
        now: the time that a `Retry-After` date is read by. No wait is longer than `max_interval`,
            whatever the server asks for.
    """
    if config.strategy == "none" or not _worth_it(config, error, repeatable=repeatable):
        return None
    if config.max_attempts is not None and attempt >= config.max_attempts:
        return None
    backoff = config.backoff
    asked = retry_after(error, now)
    if asked is None:
        wait = jitter * backoff.ceiling(attempt) / 1000
    else:
        wait = min(asked, backoff.max_interval / 1000)
    return wait if elapsed + wait < backoff.max_elapsed_time / 1000 and wait < left else None


def _worth_it(config: RetryConfig, error: Flux0Error, *, repeatable: bool) -> bool:
    if isinstance(error, APIError):
        if error.status_code == _TOO_MANY_REQUESTS:
            return True  # The server says that it took nothing.
        return repeatable and error.status_code in _RETRIED_STATUSES
    if not isinstance(error, TransportError) or not config.retry_connection_errors:
        return False
    if isinstance(error, ConnectError):
        # A certificate does not mend, and more attempts do not relieve a full pool.
        return not isinstance(error, (TLSError, PoolTimeout))
    return repeatable and isinstance(error, ConnectionInterrupted)


_SECONDS = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def retry_after(error: Flux0Error, now: datetime) -> float | None:
    """Return the seconds that an answer's `Retry-After` asks to wait, or None where it is no use.

    It is a number of seconds or an HTTP date (RFC 9110, section 10.2.3). Nonsense, and what is
    negative or past, are no use.
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
