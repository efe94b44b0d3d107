"""The retry decision: which errors are retried, and after which wait."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from email.utils import format_datetime
from math import inf
from typing import Any

import pytest
from hypothesis import example, given, settings, strategies as st

from flux0.adapters.shared.failures import login_rejected_by_proxy, refused_by_proxy
from flux0.domain import errors
from flux0.domain.api_errors import APIError, api_error_class
from flux0.domain.errors import (
    ClientClosed,
    ConnectError,
    ConnectionInterrupted,
    ConnectTimeout,
    DecodeError,
    Flux0Error,
    InvalidArgument,
    PoolTimeout,
    ProtocolError,
    ReadTimeout,
    ResponseTooLarge,
    TLSError,
    TransportError,
    TransportTimeout,
    WriteTimeout,
)
from flux0.domain.headers import Headers
from flux0.domain.retrying import (
    DEFAULT_RETRIES,
    BackoffStrategy,
    RetryConfig,
    retry_after,
    wait_before_retry,
)
from support.time_zone import local_time_zone

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
ENDLESS = RetryConfig(backoff=BackoffStrategy(max_elapsed_time=10**12))
REFUSED = ConnectError("refused")


def status_error(status: int, retry_after: str | None = None) -> APIError:
    fields = () if retry_after is None else (("Retry-After", retry_after),)
    kind = api_error_class(status)
    return kind("no", status_code=status, body="", headers=Headers(fields))


def decide(config: RetryConfig, error: Flux0Error, **changes: Any) -> float | None:
    defaults = {"attempt": 1, "repeatable": True, "elapsed": 0.0, "left": inf, "jitter": 1.0}
    options: dict[str, Any] = {**defaults, **changes}
    return wait_before_retry(config, error, now=NOW, **options)


# --- which errors are retried

ALWAYS = [
    REFUSED,
    ConnectTimeout("slow"),
    status_error(429),
    refused_by_proxy("503 Service Unavailable"),
]
IF_REPEATABLE = [
    ConnectionInterrupted("reset"),
    *(status_error(status) for status in (401, 408, 500, 502, 503, 504)),
]
NEVER = [
    *(kind("no") for kind in (TLSError, PoolTimeout, ReadTimeout, WriteTimeout, ProtocolError)),
    *(kind("no") for kind in (TransportError, TransportTimeout, ClientClosed, DecodeError)),
    *(status_error(status) for status in (300, 307, 400, 403, 404, 405, 409, 418, 422, 425)),
    *(status_error(status) for status in (501, 505, 507, 520, 599)),
    ResponseTooLarge(1),
    InvalidArgument("id", "is bad"),
    Flux0Error("no"),
    login_rejected_by_proxy(),
    refused_by_proxy("407 Proxy Authentication Required"),
]


@pytest.mark.parametrize("repeatable", [True, False])
@pytest.mark.parametrize(
    "error",
    [*ALWAYS, *IF_REPEATABLE, *NEVER],
    ids=lambda error: f"{type(error).__name__}-{error}",
)
def test_only_temporary_errors_are_retried(error: Flux0Error, repeatable: bool) -> None:
    expected = error in ALWAYS or (repeatable and error in IF_REPEATABLE)
    without_connection_errors = RetryConfig(retry_connection_errors=False)

    for config in (DEFAULT_RETRIES, RetryConfig()):
        assert (decide(config, error, repeatable=repeatable) is not None) is expected
    assert decide(RetryConfig("none"), error, repeatable=repeatable) is None
    wait = decide(without_connection_errors, error, repeatable=repeatable)
    assert (wait is not None) is (expected and isinstance(error, APIError))


def test_errors_that_user_code_raised_are_never_retried() -> None:
    for retried in (ConnectError("of another call"), status_error(429), status_error(503)):
        errors.mark_user_error(retried)
        assert decide(DEFAULT_RETRIES, retried) is None


def test_retry_decision_covers_every_transport_error() -> None:
    def with_subclasses(kind: type[TransportError]) -> set[type[TransportError]]:
        return {kind}.union(*map(with_subclasses, kind.__subclasses__()))

    covered = {type(error) for error in (*ALWAYS, *IF_REPEATABLE, *NEVER)}

    assert {
        kind
        for kind in with_subclasses(TransportError)
        if kind.__module__ in ("flux0", errors.__name__)
    } <= covered


def test_max_attempts_limits_the_attempts() -> None:
    three = RetryConfig(max_attempts=3)

    assert [decide(three, REFUSED, attempt=n) is not None for n in (1, 2, 3, 4)] == [
        *(True, True),
        *(False, False),
    ]
    assert decide(RetryConfig(max_attempts=1), REFUSED) is None
    assert decide(ENDLESS, REFUSED, attempt=10**9) is not None
    assert DEFAULT_RETRIES.max_attempts == 3


# --- waits


def test_waits_grow_up_to_max_interval() -> None:
    backoff = BackoffStrategy()

    assert [backoff.ceiling(attempt) for attempt in (1, 2, 3, 4)] == [500, 750, 1125, 1687.5]
    assert backoff.ceiling(12) < 60_000
    assert backoff.ceiling(13) == backoff.ceiling(10**9) == 60_000
    assert BackoffStrategy(initial_interval=0, exponent=2).ceiling(99) == 0
    assert BackoffStrategy(exponent=0.5).ceiling(3) == 125
    assert [BackoffStrategy(exponent=0).ceiling(attempt) for attempt in (1, 2, 3)] == [500, 0, 0]
    assert [BackoffStrategy(max_interval=0).ceiling(attempt) for attempt in (1, 99)] == [0, 0]


def test_jitter_is_a_factor_of_the_longest_wait() -> None:
    for jitter, wait in ((0.0, 0.0), (0.5, 0.375), (1.0, 0.75)):
        assert decide(DEFAULT_RETRIES, REFUSED, attempt=2, jitter=jitter) == wait


MILLISECONDS = st.integers(0, 10**12) | st.floats(0, 1e12)
BACKOFFS: st.SearchStrategy[BackoffStrategy] = st.builds(
    BackoffStrategy,
    initial_interval=MILLISECONDS,
    max_interval=MILLISECONDS,
    exponent=st.floats(0, 10) | MILLISECONDS,
    max_elapsed_time=MILLISECONDS,
)


RETRY_AFTERS = (
    st.none()
    | st.integers(-10, 10**30).map(str)
    | st.timedeltas(timedelta(days=-1), timedelta(days=1)).map(lambda d: format_datetime(NOW + d))
)


AT_ONCE = {"retry_after_value": None, "elapsed": 0.0, "left": inf, "jitter": 1.0}


@settings(deadline=None)
@example(backoff=BackoffStrategy(10**12, 10**12, 10**12), attempt=10**9, **AT_ONCE)
@example(backoff=BackoffStrategy(5e-324, 1, 1e12), attempt=10**9, **AT_ONCE)  # type: ignore[arg-type]
@example(backoff=BackoffStrategy(10**12, 5e-324, 0.5), attempt=2000, **AT_ONCE)  # type: ignore[arg-type]
@given(
    backoff=BACKOFFS,
    retry_after_value=RETRY_AFTERS,
    attempt=st.integers(1, 10**9),
    elapsed=st.floats(0, 1e9),
    left=st.just(inf) | st.floats(-10, 1e9),
    jitter=st.floats(0, 1),
)
def test_wait_ends_before_the_deadline_and_max_elapsed_time(
    backoff: BackoffStrategy,
    retry_after_value: str | None,
    attempt: int,
    elapsed: float,
    left: float,
    jitter: float,
) -> None:
    wait = decide(
        RetryConfig(backoff=backoff),
        status_error(429, retry_after_value),
        attempt=attempt,
        elapsed=elapsed,
        left=left,
        jitter=jitter,
    )

    if wait is not None:
        assert 0 <= wait <= backoff.max_interval / 1000
        assert wait < left
        assert elapsed + wait < backoff.max_elapsed_time / 1000


def test_wait_until_the_deadline_itself_is_not_allowed() -> None:
    backoff = BackoffStrategy(initial_interval=1000, max_elapsed_time=3000)
    config = RetryConfig(backoff=backoff)

    assert decide(config, REFUSED, elapsed=1.99) == 1
    assert decide(config, REFUSED, elapsed=2.0) is None
    assert decide(config, REFUSED, left=1.01) == 1
    assert decide(config, REFUSED, left=1.0) is None
    assert decide(config, REFUSED, left=-1.0, jitter=0) is None
    assert decide(RetryConfig(backoff=BackoffStrategy(max_elapsed_time=0)), REFUSED) is None


# --- Retry-After


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *[("0", 0.0), ("7", 7.0), (" 7\t", 7.0), ("1.5", 1.5), ("007", 7.0)],
        *[("9" * 10, 9999999999.0), ("9" * 400, inf)],
        ("Thu, 01 Jan 2026 00:00:30 GMT", 30.0),
        ("Thursday, 01-Jan-26 00:00:30 GMT", 30.0),
        ("Thu Jan  1 00:00:30 2026", 30.0),
        ("Thu, 01 Jan 2026 00:00:30", 30.0),
        ("Thu, 01 Jan 2026 00:00:30 -0100", 3630.0),
        ("Thu, 01 Jan 2026 00:00:00 GMT", 0.0),
    ],
)
def test_retry_after_is_a_number_of_seconds_or_a_date(value: str, seconds: float) -> None:
    with local_time_zone("XYZ-9"):  # A date without a time zone is in UTC.
        assert retry_after(status_error(503, value), NOW) == seconds


@pytest.mark.parametrize(
    "value",
    [
        *(None, "", " ", "-5", "+5", "inf", "Infinity", "nan", "1e3", "0x10", "1_0", "\u0665"),
        *("5s", "5, 10", ".5", "5.", "soon", "1 Jan", "2026-01-01T00:00:30Z"),
        *("Wed, 31 Dec 2025 23:59:59 GMT", "Thu, 31 Feb 2026 00:00:30 GMT"),
        *("Thu, 01 Jan 99999 00:00:30 GMT", "Thu, 01 Jan 2026 00:00:30 +999999"),
        f"Thu, 01 Jan 2026 00:00:30 +{'9' * 20}",
        *("Thu, 01 Jan 0001 00:00:30 +2359", "Fri, 31 Dec 0001 00:00:30 GMT"),
    ],
)
def test_invalid_retry_after_is_ignored(value: str | None) -> None:
    assert retry_after(status_error(503, value), NOW) is None
    assert retry_after(REFUSED, NOW) is None


def test_retry_after_replaces_the_backoff() -> None:
    config = RetryConfig(backoff=BackoffStrategy(max_interval=10_000, max_elapsed_time=20_000))

    for status in (429, 503):
        assert decide(config, status_error(status, "7"), attempt=3, jitter=0.1) == 7
        assert decide(config, status_error(status, "0"), attempt=3) == 0
        assert decide(config, status_error(status, "99999"), attempt=3) == 10
        assert decide(config, status_error(status, "9" * 400), attempt=3) == 10
        assert decide(config, status_error(status, "soon"), attempt=1) == 0.5
        assert decide(config, status_error(status, "7"), elapsed=13.5) is None
        assert decide(config, status_error(status, "7"), left=6.5) is None


def test_new_token_is_sent_at_once_whatever_retry_after_is() -> None:
    assert decide(RetryConfig(), status_error(401, "7"), attempt=3, jitter=0.1) == 0


# --- invalid settings


@pytest.mark.parametrize(
    "value", [-1, 10**12 + 1, 10**400, 1e13, inf, math.nan, 1j, Decimal(1), "1", False]
)
@pytest.mark.parametrize(
    "argument", ["initial_interval", "max_interval", "exponent", "max_elapsed_time"]
)
def test_invalid_backoff_is_rejected(argument: str, value: Any) -> None:
    numbers = f"^{argument} must be a number from 0 to 1,000,000,000,000, not "
    with pytest.raises(InvalidArgument, match=numbers) as caught:
        BackoffStrategy(**{argument: value})

    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: RetryConfig(None), "strategy"),  # type: ignore[arg-type]
        (lambda: RetryConfig("always"), "strategy"),
        (lambda: RetryConfig(["backoff"]), "strategy"),  # type: ignore[arg-type]
        (lambda: RetryConfig(backoff=BackoffStrategy), "backoff"),  # type: ignore[arg-type]
        (lambda: RetryConfig(backoff={"exponent": 2}), "backoff"),  # type: ignore[arg-type]
        (lambda: RetryConfig(retry_connection_errors=None), "retry_connection_errors"),  # type: ignore[arg-type]
        (lambda: RetryConfig(retry_posts="no"), "retry_posts"),  # type: ignore[arg-type]
        (lambda: RetryConfig(retry_posts=1), "retry_posts"),  # type: ignore[arg-type]
        (lambda: RetryConfig(max_attempts="3"), "max_attempts"),  # type: ignore[arg-type]
        (lambda: RetryConfig(max_attempts=0), "max_attempts"),
        (lambda: RetryConfig(max_attempts=1.5), "max_attempts"),  # type: ignore[arg-type]
        (lambda: RetryConfig(max_attempts=True), "max_attempts"),
    ],
)
def test_invalid_retry_config_is_rejected(make: Callable[[], Any], argument: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        make()

    assert caught.value.argument == argument
    if argument == "strategy":
        assert "must be 'backoff' or 'none', not " in str(caught.value)
