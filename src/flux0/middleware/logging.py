"""Logging: requests and responses without credentials, retries, turns and failed observers."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from flux0.domain.errors import AgentError, Flux0Error, mark_user_error
from flux0.domain.retrying import RetryDetails
from flux0.domain.safe_text import escaped, shown_json, shown_url
from flux0.flows import CallRequest, Flow, SendFlow
from flux0.observers import TurnEnd
from flux0.ports import Response, Time

if TYPE_CHECKING:
    import logging

_LONGEST_BODY = 1000
# `_INFO` and `_WARNING` have the values of `logging.INFO` and `logging.WARNING`. The module logging
# is not imported here, because the import is slow.
_INFO, _WARNING = 20, 30
TURN_ENDED = (
    "turn ended: ending=%s%s agent=%s session=%s turn=%s events=%d first_event=%s total=%.3fs"
)
_UNCONFIRMED = (
    "the end of a turn is unconfirmed: a proxy may hide that the server was killed, so replies can "
    "be incomplete. Behind nginx, set proxy_http_version 1.1 and proxy_pass_header Server: see "
    "https://github.com/flux0-ai/flux0-client-python/blob/main/docs/proxies.md"
)


class DebugLogger(Protocol):
    """A debug logger: a `logging.Logger`, or an object with the same `debug` method."""

    def debug(self, msg: str, *args: Any) -> None: ...


class Logging:
    """Logs each attempt: method, URL, headers, body, status or error, and duration.

    Values of header fields, query parameters and JSON members are hidden if they may be
    credentials. Long bodies are truncated.
    """

    def __init__(self, logger: DebugLogger, time: Time) -> None:
        self._logger = logger
        self._time = time

    def __call__(self, request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        where = f"{request.method} {shown_url(request.url)}"
        debug = self._debug
        headers, body = request.headers.redacted(), _shown(request.body)
        debug("%s attempt=%d headers=%s body=%s", where, request.attempt, headers, body)
        start = self._time.monotonic()
        try:
            response = yield from send(request)
        except Exception as error:
            duration = 1000 * (self._time.monotonic() - start)
            # The logger gets the error's text, and not the error: a log handler can store its
            # arguments, and a stored error keeps its traceback and the objects in the traceback in
            # memory.
            text = escaped(str(error))
            debug("%s failed after %.1f ms: %s: %s", where, duration, type(error).__name__, text)
            raise
        duration = 1000 * (self._time.monotonic() - start)
        result = response.status_code, duration, response.headers.redacted(), _shown(response.body)
        debug("%s returned %d in %.1f ms headers=%s body=%s", where, *result)
        return response

    def _debug(self, message: str, *args: Any) -> None:
        try:
            self._logger.debug(message, *args)
        except Flux0Error as error:
            mark_user_error(error)
            raise


def log_retry(details: RetryDetails) -> None:
    """Log a retry to the logger `flux0`.

    The level is WARNING, because Python prints warnings even if no logging handler is configured.
    """
    cause = type(details.cause).__name__, str(details.cause)
    retry = details.method, details.url, details.attempt, *cause, details.delay_ms
    _logger().warning("%s %s: attempt %d failed (%s: %s), retrying in %.0f ms", *retry)


def is_turn_logged() -> bool:
    return _logger().isEnabledFor(_INFO)


def log_turn(turn: TurnEnd, *, is_relayed: bool = False) -> None:
    """Log the end of a turn to the logger `flux0`, without the contents of messages.

    The level is WARNING if an error has ended the turn, and INFO otherwise. If the turn is relayed,
    the level is INFO, because `log_relayed_turn` logs the error.
    """
    error = turn.error or turn.agent_error
    shown = "" if error is None else f" error={type(error).__name__}"
    if turn.error is not None:
        shown += f" sent={turn.error.sent}"
    ids = turn.agent_name or turn.agent_id, turn.session_id, turn.correlation_id
    first = turn.seconds_to_first_event
    _logger().log(
        _INFO if turn.error is None or is_relayed else _WARNING,
        TURN_ENDED,
        turn.ending,
        shown,
        *map(escaped, map(str, ids)),
        turn.event_count,
        None if first is None else f"{first:.3f}s",
        turn.seconds,
    )


def log_relayed_turn(turn: TurnEnd) -> None:
    """Log the errors of a turn, because relays show their readers only a general sentence."""
    reported = None if isinstance(turn.error, AgentError) else turn.agent_error
    for error in filter(None, (reported, turn.error)):
        ids = (escaped(str(each)) for each in (turn.session_id, turn.correlation_id))
        _logger().error("relayed turn failed: %s session=%s turn=%s", error, *ids)


def log_lost_reader(problem: str, session_id: str) -> None:
    _logger().warning("%s: session=%s", problem, escaped(session_id))


def log_unconfirmed_end() -> None:
    """Log a warning to the logger `flux0`: the end of a turn is unconfirmed.

    The warning names the proxy settings that let flux0 confirm the ends of turns.
    """
    _logger().warning(_UNCONFIRMED)


def log_failed_observer(observer: object, error: Exception) -> None:
    message = "the observer %r raised an exception; its later exceptions are not logged"
    _logger().error(message, observer, exc_info=error)


def log_failed_background_turn(error: Exception) -> None:
    _logger().error("an unexpected exception ended a background turn", exc_info=error)


# The logger is cached, because `logging.getLogger` acquires a lock.
@cache
def _logger() -> logging.Logger:
    import logging  # noqa: PLC0415 - slow to import; HTTP libraries import it, too

    return logging.getLogger("flux0")


def _shown(body: object) -> str:
    if body is None:
        return "none"
    if not isinstance(body, bytes):
        return "a stream"
    text = shown_json(body.decode("utf-8", "replace"))
    shown = escaped(text[:_LONGEST_BODY])
    return shown if len(text) <= _LONGEST_BODY else f"{shown}... ({len(body):,} bytes)"
