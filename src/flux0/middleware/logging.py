"""Logging of each exchange, without what must not be logged."""

from __future__ import annotations

from typing import Any, Protocol

from flux0.domain.retrying import RetryDetails
from flux0.flows import Flow, SendFlow
from flux0.ports import Request, Response, Time

_LONGEST_BODY = 1000


class DebugLogger(Protocol):
    """What takes the debug messages: a `logging.Logger`, or anything with the same `debug`."""

    def debug(self, msg: str, *args: Any) -> None:
        """Take one message, with `%`-style arguments."""
        ...


class Logging:
    """Tells a logger of each attempt: method, URL, status or failure, and duration.

    Header values are shown by allow-list, and bodies are cut.
    """

    def __init__(self, logger: DebugLogger, time: Time) -> None:
        self._logger = logger
        self._time = time

    def __call__(self, request: Request, send: SendFlow) -> Flow[Response[Any]]:
        """Return what the next layer returns."""
        where = f"{request.method} {request.url}"
        debug = self._logger.debug
        shown = request.headers.redacted()
        debug("%s attempt=%d headers=%s body=%s", where, request.attempt, shown, _cut(request.body))
        began = self._time.monotonic()
        try:
            response = yield from send(request)
        except Exception as error:
            took = 1000 * (self._time.monotonic() - began)
            debug("%s failed after %.1f ms: %s: %s", where, took, type(error).__name__, error)
            raise
        debug(
            "%s answered %d in %.1f ms headers=%s body=%s",
            where,
            response.status_code,
            1000 * (self._time.monotonic() - began),
            response.headers.redacted(),
            _cut(response.body),
        )
        return response


def log_retry(details: RetryDetails) -> None:
    """Tell the logger `flux0` that a request is about to be tried again."""
    import logging  # noqa: PLC0415 - slow to import, and retries are rare

    logging.getLogger("flux0").info(
        "%s %s: attempt %d failed (%s: %s), trying again in %.0f ms",
        details.method,
        details.url,
        details.attempt,
        type(details.cause).__name__,
        details.cause,
        details.delay_ms,
    )


def _cut(body: object) -> str:
    if body is None:
        return "none"
    if not isinstance(body, bytes):
        return "a stream"
    text = body[:_LONGEST_BODY].decode("utf-8", "replace")
    return text if len(body) <= _LONGEST_BODY else f"{text}... ({len(body):,} bytes)"
