"""When and how long a call is tried again, as values."""

from __future__ import annotations

from typing import Any

from attrs import Attribute, field, frozen

from flux0.domain.errors import InvalidArgument


def _non_negative(_: object, attribute: Attribute[Any], value: Any) -> None:
    if value < 0:
        raise InvalidArgument(attribute.name, f"must not be negative, and is {value}")


def _known_strategy(_: object, __: object, value: str) -> None:
    if value not in ("backoff", "none"):
        raise InvalidArgument("strategy", f"must be 'backoff' or 'none', and is {value!r}")


@frozen
class BackoffStrategy:
    """Waits that grow from `initial_interval` by `exponent` up to `max_interval`.

    Intervals are in milliseconds. No retry begins `max_elapsed_time` or more after the first try.
    """

    initial_interval: int = field(default=500, validator=_non_negative)
    max_interval: int = field(default=60_000, validator=_non_negative)
    exponent: float = field(default=1.5, validator=_non_negative)
    max_elapsed_time: int = field(default=3_600_000, validator=_non_negative)


@frozen
class RetryConfig:
    """What is tried again: `strategy` is `"backoff"` or `"none"`.

    `retry_connection_errors` covers connections that could not be made, were reset, or died in the
    pool.
    """

    strategy: str = field(default="backoff", validator=_known_strategy)
    backoff: BackoffStrategy = BackoffStrategy()
    retry_connection_errors: bool = True
