"""The messages of expired timeouts: the same timeout has the same message on every transport."""

from __future__ import annotations

from typing import Final

from flux0.domain.errors import (
    ConnectTimeout,
    PoolTimeout,
    ReadTimeout,
    TransportTimeout,
    WriteTimeout,
)

_EXPIRED: Final[dict[type[TransportTimeout], str]] = {
    ConnectTimeout: "could not connect{} (connect timeout)",
    PoolTimeout: "no connection of the pool became free{} (pool timeout)",
    ReadTimeout: "no data received{} (read timeout; set timeout_ms)",
    WriteTimeout: "the server accepted no data{} (write timeout; set timeout_ms)",
}


def timed_out(kind: type[TransportTimeout], seconds: float | None) -> TransportTimeout:
    """Return the error of a timeout that expired after `seconds`; None if the limit is unknown."""
    limit = "" if seconds is None else f" within {duration(seconds)}"
    return kind(_EXPIRED.get(kind, "the request timed out{}").format(limit))


def duration(seconds: float) -> str:
    """Return seconds as text, such as `0.3 s`."""
    return f"{round(seconds, 3):g} s"
