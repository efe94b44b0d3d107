"""Deadlines, and the messages of timeouts."""

from __future__ import annotations

import pytest

from flux0.domain.errors import (
    ConnectTimeout,
    PoolTimeout,
    ReadTimeout,
    Sent,
    TransportTimeout,
    WriteTimeout,
)
from flux0.domain.timeouts import Deadline, duration, timed_out


def test_time_until_a_deadline_becomes_negative_after_it() -> None:
    deadline = Deadline(moment=105.0, limit=10.0)
    assert [deadline.left(now) for now in (95.0, 105.0, 106.0)] == [10.0, 0.0, -1.0]


@pytest.mark.parametrize("sent", ["no", "maybe"])
def test_exceeded_deadline_names_the_limit_and_whether_the_request_was_sent(sent: Sent) -> None:
    error = Deadline(moment=105.0, limit=0.25).exceeded(sent)
    assert str(error) == "the call took longer than 0.25 s (timeout_ms)"
    assert error.sent == sent


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (ConnectTimeout, "could not connect within 1.5 s (connect timeout)"),
        (PoolTimeout, "no connection of the pool became free within 1.5 s (pool timeout)"),
        (ReadTimeout, "no data received within 1.5 s (read timeout; set timeout_ms)"),
        (WriteTimeout, "the server accepted no data within 1.5 s (write timeout; set timeout_ms)"),
        (TransportTimeout, "the request timed out within 1.5 s"),
    ],
)
def test_timeout_names_its_limit_if_known(kind: type[TransportTimeout], message: str) -> None:
    assert str(timed_out(kind, 1.5)) == message
    assert str(timed_out(kind, None)) == message.replace(" within 1.5 s", "")


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.3, "0.3 s"), (60.0, "60 s"), (0.0004, "0 s"), (1.23456, "1.235 s")]
)
def test_duration_has_at_most_three_decimals(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
