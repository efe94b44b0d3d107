"""Checks of the options that a client and its calls take."""

from __future__ import annotations

from flux0.domain.errors import InvalidArgument
from flux0.domain.retrying import RetryConfig

_LONGEST_WAIT_MS = 2**31 - 1  # More is an OverflowError in socket.settimeout.


def server_url(url: object) -> str:
    """Return the URL that routes are appended to, without a trailing slash.

    Raises:
        InvalidArgument: it is not an absolute http or https URL, or has a query or a fragment.
    """
    if not isinstance(url, str):
        raise InvalidArgument("server_url", f"must be a text, and is {url!r}")
    if not _is_base_url(url):
        raise InvalidArgument("server_url", f"must be like http://127.0.0.1:8080, and is {url!r}")
    return url.rstrip("/")


def seconds(argument: str, milliseconds: object) -> float:
    """Return a duration in milliseconds as seconds.

    Raises:
        InvalidArgument: it is not a number above 0, or more than 24 days; names `argument`.
    """
    if (
        isinstance(milliseconds, bool)
        or not isinstance(milliseconds, (int, float))
        or not 0 < milliseconds <= _LONGEST_WAIT_MS
    ):
        problem = f"must be a number of milliseconds above 0, and is {milliseconds!r}"
        raise InvalidArgument(argument, problem)
    return milliseconds / 1000


def size(argument: str, number: object) -> int:
    """Return a limit in bytes.

    Raises:
        InvalidArgument: it is not an integer above 0; names `argument`.
    """
    if isinstance(number, bool) or not isinstance(number, int) or number <= 0:
        raise InvalidArgument(argument, f"must be a number of bytes above 0, and is {number!r}")
    return number


def _is_base_url(url: str) -> bool:
    from urllib.parse import urlsplit  # noqa: PLC0415 - not needed to import this package

    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and parts.port != 0
    except ValueError:  # A port that is not a number, or brackets that do not match.
        return False
    plain = url.isprintable() and not any(character in url for character in " ?#\\")
    return named and plain and parts.scheme in ("http", "https")


def retries(argument: str, config: object) -> RetryConfig:
    """Return a retry policy.

    Raises:
        InvalidArgument: it is anything else; names `argument`.
    """
    if not isinstance(config, RetryConfig):
        raise InvalidArgument(argument, f"must be a RetryConfig, and is {config!r}")
    return config
