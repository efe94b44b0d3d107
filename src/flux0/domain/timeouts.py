"""Deadlines of calls, and the messages of timeout errors for all transports."""

from __future__ import annotations

from typing import Final

from attrs import frozen

from flux0.domain.errors import (
    ConnectTimeout,
    PoolTimeout,
    ReadTimeout,
    Sent,
    TransportTimeout,
    WriteTimeout,
)

_EXPIRED: Final[dict[type[TransportTimeout], str]] = {
    ConnectTimeout: "could not connect{} (connect timeout)",
    PoolTimeout: "no connection of the pool became free{} (pool timeout)",
    ReadTimeout: "no data received{} (read timeout; set timeout_ms)",
    WriteTimeout: "the server accepted no data{} (write timeout; set timeout_ms)",
}


@frozen
class Deadline:
    """The moment by which a call must end.

    Attributes:
        moment: the deadline, as a value of `Time.monotonic()`.
        limit: the call's `timeout_ms`, converted to seconds for the error message.
    """

    moment: float
    limit: float

    def left(self, now: float) -> float:
        return self.moment - now

    def exceeded(self, sent: Sent = "maybe") -> ReadTimeout:
        error = ReadTimeout(f"the call took longer than {duration(self.limit)} (timeout_ms)")
        error.sent = sent
        return error


def timed_out(kind: type[TransportTimeout], seconds: float | None) -> TransportTimeout:
    limit = "" if seconds is None else f" within {duration(seconds)}"
    return kind(_EXPIRED.get(kind, "the request timed out{}").format(limit))


def duration(seconds: float) -> str:
    return f"{round(seconds, 3):g} s"
