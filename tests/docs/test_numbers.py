"""The numbers on the pages and in docstrings are the numbers in the code.

A statement has `{}` in the place of its number. If the page of limits or CONTRIBUTING.md has a
number with a unit that belongs to no statement, a test fails: a new limit needs a statement.
"""

# The limits are private constants.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import re
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from flux0 import (
    BackgroundTurn,
    BackgroundTurns,
    EventStream,
    Flux0,
    MemoryTurnStore,
    RedisTurnStore,
)
from flux0.adapters.httpx.pools import MAX_EXCHANGES
from flux0.adapters.redis import worker
from flux0.adapters.shared import limits
from flux0.cli.descriptions import ID_LENGTH
from flux0.client import background_turns
from flux0.client.flux0 import DEFAULT_IDLE_TIMEOUT
from flux0.domain.messages.json_patch import MAX_DEPTH, VALUE_SIZE
from flux0.domain.retrying import DEFAULT_RETRIES
from flux0.middleware.retry import RetryBudget
from flux0.ports import Timeout
from flux0.runtime.turn_log import READ_BYTES
from flux0.testing.contract import TransportContract
from flux0.turns import open_turns
from flux0.turns.turn import AFTER_AGENT_ERROR
from slow.planted_bugs import MIN_PERCENT, bugs

ROOT = Path(__file__).parents[2]
UNITS = (
    r"s|ms|[KM]iB|bytes|seconds|minutes|characters|levels|retries|attempts|connections|"
    r"idle connections|open exchanges|lines|pixels|bugs|mutants|tests|days"
)
NUMBER = re.compile(rf"(?<![\w.`-])[\d,]*\d(?:\.\d+)?[ -](?:%|(?:{UNITS})\b)")
WORDS = {3: "three", 4: "four", 10: "ten"}


def default(function: Any, name: str) -> Any:
    return signature(function).parameters[name].default


def seconds(function: Any, name: str) -> float:
    """Return the default of a parameter in milliseconds, in seconds."""
    number: float = default(function, name) / 1000
    return number


def in_units(size: float) -> str:
    """Return a number of bytes, such as `16 MiB`."""
    return f"{size / 1024**2:g} MiB" if size >= 1024**2 else f"{size / 1024:g} KiB"


TIMEOUT = Timeout()
RELIABILITY = "docs/reliability.md"
BACKGROUND = "docs/how-to/background-turns.md"
TURNS = "docs/turns.md"
TRANSPORTS = "docs/transports.md"
CLIENT = "src/flux0/client/flux0.py"
TURNS_CODE = "src/flux0/client/background_turns.py"
STREAMS = "src/flux0/turns/streams.py"
QUEUE, CLOSE = open_turns._MAX_QUEUE_SECONDS, open_turns._MAX_CLOSE_SECONDS
STOP = background_turns._MAX_STOP_SECONDS
EVENT = in_units(default(Flux0, "max_event_bytes"))
BODY = in_units(default(Flux0, "max_body_bytes"))
MESSAGES = in_units(default(Flux0, "max_turn_bytes"))
KEPT = in_units(default(BackgroundTurns, "max_turn_bytes"))
WAITING = in_units(READ_BYTES)
CONTRIBUTING = "CONTRIBUTING.md"
BUGS = (len(list(bugs())) - 1) // 50 * 50  # Rounded down: "more than 750".


def setting(name: str) -> int:
    """Return a number in pyproject.toml."""
    (number,) = re.findall(rf"(?m)^{name} = (\d+)", (ROOT / "pyproject.toml").read_text("utf-8"))
    return int(number)


STATEMENTS: list[tuple[str, str, object]] = [
    (RELIABILITY, "with TLS | {} s |", TIMEOUT.connect),
    (RELIABILITY, "connection in the pool | {} s |", TIMEOUT.pool),
    (RELIABILITY, "accept or send data | {} s |", TIMEOUT.read),
    (RELIABILITY, "accept or send data | {} s |", TIMEOUT.write),
    (RELIABILITY, "event of a stream | {} s |", DEFAULT_IDLE_TIMEOUT),
    (
        RELIABILITY,
        "timeout of background turns and of `relay()` is at most {} s",
        AFTER_AGENT_ERROR,
    ),
    (BACKGROUND, "the turn ends {} s after the last event", AFTER_AGENT_ERROR),
    ("docs/how-to/chat-components.md", "end {} s after the last event", AFTER_AGENT_ERROR),
    (RELIABILITY, "with {} retries", default(RetryBudget, "capacity")),
    (
        RELIABILITY,
        "{} successful calls",
        WORDS[default(RetryBudget, "successes_per_retry")],
    ),
    (RELIABILITY, "event of a stream | {} |", EVENT),
    (RELIABILITY, "that is not a stream | {} |", BODY),
    (RELIABILITY, "built from one turn | {} |", MESSAGES),
    (RELIABILITY, "{} open exchanges", MAX_EXCHANGES),
    (RELIABILITY, "{} s, and then raise `PoolTimeout`", TIMEOUT.pool),
    (
        RELIABILITY,
        "keeps up to {} idle connections. The built-in pool",
        limits.MAX_IDLE_CONNECTIONS,
    ),
    (RELIABILITY, "{} connections for each server", limits.MAX_CONNECTIONS),
    (RELIABILITY, "up to {} in total", limits.MAX_CONNECTIONS),
    (RELIABILITY, "keeps up to {} idle connections. Your own client", limits.MAX_IDLE_CONNECTIONS),
    (RELIABILITY, "idle for {} seconds, is never", WORDS[int(limits.MAX_IDLE_SECONDS)]),
    (RELIABILITY, "up to {} s for each", QUEUE),
    (RELIABILITY, "{} s for a blocked event loop", CLOSE),
    (RELIABILITY, "limit of {} s", QUEUE),
    (RELIABILITY, "`TransportTimeout` after {} s", QUEUE),
    (BACKGROUND, "after {} s at the latest", worker._MAX_CALL_SECONDS),
    (BACKGROUND, "up to about {}", WAITING),
    (BACKGROUND, "`keep_seconds=` of the store | {} s |", default(RedisTurnStore, "keep_seconds")),
    (BACKGROUND, "`keep_seconds=` of the store | {} s |", default(MemoryTurnStore, "keep_seconds")),
    (BACKGROUND, "(lease_seconds=)` | {} s |", default(RedisTurnStore, "lease_seconds")),
    (BACKGROUND, "(lease_seconds=)` | {} s |", default(RedisTurnStore.from_url, "lease_seconds")),
    (BACKGROUND, "(max_turn_bytes=)` | {} |", KEPT),
    (BACKGROUND, "(drain_seconds=)` | {} s |", default(BackgroundTurns.close, "drain_seconds")),
    (
        "docs/how-to/web.md",
        "{} s without an event (`heartbeat_ms`)",
        seconds(BackgroundTurn.relay, "heartbeat_ms"),
    ),
    (TURNS, "{} s (`heartbeat_ms`)", seconds(EventStream.relay, "heartbeat_ms")),
    (TURNS, "the default is {}. In the size of a message", MESSAGES),
    (TURNS, "adds {} bytes", VALUE_SIZE),
    (TURNS, "nested {} levels deep", MAX_DEPTH),
    (TURNS, "more than {} of events wait to be sent", WAITING),
    ("docs/promises.md", "about {} of a stream", WAITING),
    (TRANSPORTS, "have at most {}", in_units(limits.MAX_OVERHEAD_BYTES)),
    (TRANSPORTS, "tests wait for {} seconds", TransportContract.idle_test_seconds),
    (TRANSPORTS, "for at most {} seconds", WORDS[int(limits.MAX_IDLE_SECONDS)]),
    (TRANSPORTS, "hangs for {} seconds", TransportContract.timeout),
    (CONTRIBUTING, "with each of more than {} bugs", BUGS),
    (CONTRIBUTING, "must detect at least {} % of the bugs", MIN_PERCENT["detected"]),
    (
        CONTRIBUTING,
        "The test file of the changed module must detect at least {} %",
        MIN_PERCENT["nearest file"],
    ),
    (CONTRIBUTING, "requires {} % line coverage", setting("fail_under")),
    (CONTRIBUTING, "requires {} % branch coverage", setting("fail_under")),
    (CONTRIBUTING, "a timeout of {} seconds", setting("timeout")),
    ("docs/common-errors.md", "needs more than {} minutes", DEFAULT_IDLE_TIMEOUT / 60),
    ("docs/common-errors.md", "An id has {} characters", ID_LENGTH),
    ("docs/command-line.md", "{} s", DEFAULT_IDLE_TIMEOUT),
    ("docs/errors.md", "connection refused ({} attempts)", DEFAULT_RETRIES.max_attempts),
    (CLIENT, "a GET is sent up to {} times", WORDS[DEFAULT_RETRIES.max_attempts or 0]),
    (CLIENT, "connecting is limited to {} s", TIMEOUT.connect),
    (CLIENT, "or received is limited to {} s", TIMEOUT.read),
    (CLIENT, "between two events of a stream. Default: {} s", DEFAULT_IDLE_TIMEOUT),
    (CLIENT, "one event of a stream. Default: {}", EVENT),
    (CLIENT, "how the size is counted. Default: {}", MESSAGES),
    (CLIENT, "that is not streamed. Default: {}", BODY),
    (TURNS_CODE, "all kept events of one turn. Default: {}", KEPT),
    (TURNS_CODE, "within {} s after it was stopped", STOP),
    (TURNS_CODE, "The turn did not end within {} s.", STOP),
    (STREAMS, "the idle timeout, by default {} s", DEFAULT_IDLE_TIMEOUT),
    (STREAMS, "more than {} wait for the web server", WAITING),
    ("src/flux0/cli/app.py", "the turn fails. Default: {}.", DEFAULT_IDLE_TIMEOUT),
    ("src/flux0/domain/messages/accumulator.py", "more than {} levels deep", MAX_DEPTH),
    ("src/flux0/runtime/turn_log.py", "at most about {}.", WAITING),
]


def text_of(path: str) -> str:
    """Return the text of a file. Each sequence of white space becomes one space."""
    return " ".join((ROOT / path).read_text("utf-8").split())


def shown(statement: str, number: object) -> str:
    return statement.format(f"{number:,g}" if isinstance(number, (int, float)) else number)


@pytest.mark.parametrize(("path", "statement", "number"), STATEMENTS)
def test_documented_number_is_the_number_in_the_code(
    path: str, statement: str, number: object
) -> None:
    assert shown(statement, number) in text_of(path)


@pytest.mark.parametrize("checked", [RELIABILITY, CONTRIBUTING])
def test_each_number_on_the_page_belongs_to_a_statement(checked: str) -> None:
    text = re.sub(r"```.*?```", "", text_of(checked))  # Samples have numbers of their own.
    for page, statement, number in STATEMENTS:
        if page == checked:
            text = text.replace(shown(statement, number), "")
    assert NUMBER.findall(text) == []
