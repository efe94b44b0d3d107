"""Logging of each exchange, without what must not be logged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import urlsplit

from flux0.flows import Flow, SendFlow
from flux0.ports import Request, Response

_LONGEST_BODY = 1000


class DebugLogger(Protocol):
    """What takes the debug messages: a `logging.Logger`, or anything with the same `debug`."""

    def debug(self, msg: str, *args: Any) -> None:
        """Take one message, with `%`-style arguments."""
        ...


class DebugLogging:
    """Tells a logger of each request, its answer or its failure, and how long that took.

    Header values are shown by allow-list, bodies are cut, and credentials in a URL are left out.
    """

    def __init__(self, logger: DebugLogger, clock: Callable[[], float]) -> None:
        self._logger = logger
        self._clock = clock

    def __call__(self, request: Request, send: SendFlow) -> Flow[Response[Any]]:
        """Return what the next layer returns."""
        url = _without_credentials(request.url)
        self._logger.debug(
            "%s %s headers=%s body=%s",
            request.method,
            url,
            request.headers.redacted(),
            _cut(request.body),
        )
        began = self._clock()
        try:
            response = yield from send(request)
        except Exception as error:
            self._logger.debug(
                "%s %s failed after %.1f ms: %s: %s",
                request.method,
                url,
                1000 * (self._clock() - began),
                type(error).__name__,
                error,
            )
            raise
        self._logger.debug(
            "%s %s answered %d in %.1f ms headers=%s",
            request.method,
            url,
            response.status_code,
            1000 * (self._clock() - began),
            response.headers.redacted(),
        )
        return response


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    return parts._replace(netloc=f"***@{parts.netloc.rpartition('@')[2]}").geturl()


def _cut(body: bytes | None) -> str:
    if body is None:
        return "none"
    text = body[:_LONGEST_BODY].decode("utf-8", "replace")
    return text if len(body) <= _LONGEST_BODY else f"{text}... ({len(body):,} bytes)"
