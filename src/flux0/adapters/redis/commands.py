"""The commands that are sent to Redis. Each runs one script."""

from __future__ import annotations

from os import urandom
from typing import TypeAlias, final
from urllib.parse import quote

from attrs import frozen

from flux0.adapters.redis import scripts

Command: TypeAlias = "tuple[str | bytes | int, ...]"


@final
@frozen
class TurnName:
    """The name of a turn in Redis.

    Attributes:
        session: The key of its session, with which the names of all its keys start.
        id: The id of the turn.
    """

    session: str
    id: str

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the turn: info, log, lease and followers."""
        return tuple(map(self.key, ("info", "log", "lease", "followers")))

    def key(self, kind: str) -> str:
        """Return one of the keys, such as `log`."""
        return f"{self.session}:{self.id}:{kind}"


@final
@frozen
class Lease:
    """The times of leases in seconds.

    Attributes:
        total_seconds: The longest time after which readers notice that the reading process has
            ended.
        key_seconds: The time after which the key of a lease expires.
        renew_seconds: The time between two renewals.
        grace_seconds: The time for which the key may be missing, for example after Redis was
            restarted.
    """

    total_seconds: float
    key_seconds: float
    renew_seconds: float
    grace_seconds: float

    @classmethod
    def of(cls, seconds: float) -> Lease:
        """Return the times for `total_seconds`."""
        return cls(seconds, seconds * 0.6, seconds * 0.2, seconds * 0.4)


@final
@frozen
class Batch:
    """Consecutive events of a turn, and its end.

    Attributes:
        sent: The number of the last event that Redis has.
        first: The number of the first event.
        last: The number of the last event; `sent` if there is no event.
        events: The events, one after the other.
        kept: The number of the oldest event that is kept.
        end: The encoded end of the turn; empty if it has not ended.
        is_cut: Whether more events are available.
    """

    sent: int
    first: int
    last: int
    events: bytes
    kept: int
    end: bytes
    is_cut: bool


@final
class Commands:
    """Creates the commands of one process.

    Args:
        prefix: The start of all keys and channels.
        process: The id of the process, unique in all processes.
        keep_seconds: The time for which a turn is kept after its end.
        lease: The times of leases.
    """

    def __init__(self, prefix: str, process: str, keep_seconds: float, lease: Lease) -> None:
        self._prefix = prefix
        self._process = process
        self._keep_ms = round(keep_seconds * 1000)
        self._lease_ms = round(lease.key_seconds * 1000)
        self._ttl_ms = self._keep_ms + self._lease_ms
        self._channels = f"{prefix}process:"
        self.channel: str = self._channels + process

    def session(self, session_id: str) -> str:
        """Return the key of a session. It contains the hash tag of all its keys."""
        # A brace in the session id would change the hash tag.
        return f"{self._prefix}{{{quote(session_id, safe='')}}}"

    def find(self, session: str) -> Command:
        """Get the id of the turn of a session, or None."""
        return "GET", session

    def claim(self, turn: TurnName, max_bytes: int, expected: TurnName, *, refuse: bool) -> Command:
        """Replace the expected turn of the session; its id is empty if there is none.

        The reply is `["changed", id]` if the session has another turn, `["running"]` if the
        expected turn is running and `refuse` is True, or `["claimed", is_running]`.
        """
        keys = (turn.session, turn.key("info"), turn.key("lease"))
        expected_keys = (expected.key("info"), expected.key("lease"))
        values = (turn.id, expected.id, int(refuse), self._process, max_bytes)
        return _run(scripts.CLAIM, keys + expected_keys, *values, self._lease_ms, self._ttl_ms)

    def release(self, turn: TurnName, previous: TurnName) -> Command:
        """Give the session back to the previous turn; its id is empty if there is none."""
        return _run(scripts.RELEASE, (turn.session, previous.key("info")), turn.id, previous.id)

    def append(
        self, turn: TurnName, max_bytes: int, batch: Batch, *, is_released: bool, replaced: bytes
    ) -> Command:
        """Append events, or renew the lease. The reply is `[last event, request to stop]`."""
        times = (self._lease_ms, self._keep_ms)
        values = (turn.id, self._process, max_bytes, *times, self._channels, int(is_released))
        events = (batch.sent, batch.first, batch.last, batch.events, batch.kept, batch.end)
        return _run(scripts.APPEND, (turn.session, *turn.keys), *values, replaced, *events)

    def read(self, turn: TurnName, first: int) -> Command:
        """Follow a turn, and read its events from number `first`.

        The reply is empty if Redis does not have the turn. Otherwise it is `[max_bytes, last event,
        end, remaining lease in ms, [number, events, number, events, ...]]`.
        """
        return _run(scripts.READ, turn.keys, self._process, first, _MAX_ENTRIES, self._ttl_ms)

    def leave(self, turn: TurnName) -> Command:
        """End to follow a turn."""
        return "SREM", turn.key("followers"), self._process

    def stop(self, turn: TurnName, request: bytes) -> Command:
        """Ask the process that reads a turn to stop it."""
        return _run(scripts.STOP, (turn.key("info"),), request, self._channels, turn.id)

    def wake_listener(self) -> Command:
        """Wake the thread that listens to the channel of this process."""
        return "PUBLISH", self.channel, ""


# The largest number of entries that one command reads.
_MAX_ENTRIES = 100


def _run(script: str, keys: tuple[str, ...], *values: str | bytes | int) -> Command:
    # The script itself is sent, and not its hash. This needs some bytes, but no second attempt if
    # the server does not know the script.
    return ("EVAL", script, len(keys), *keys, *values)


def stop_request(reason: str) -> bytes:
    """Return a request to stop. It has a unique start, so that two requests differ."""
    return f"{urandom(8).hex()} {reason}".encode()


def as_bytes(value: bytes | str | None) -> bytes:
    """Return a value in a reply as bytes. Some clients decode all replies."""
    return value.encode() if isinstance(value, str) else value or b""


def as_text(value: bytes | str | None) -> str:
    """Return a value in a reply as a str; None becomes an empty str."""
    return as_bytes(value).decode()
