"""The commands that are sent to Redis."""

from __future__ import annotations

from os import urandom
from typing import TypeAlias, final
from urllib.parse import quote

from attrs import frozen

from flux0.adapters.redis import scripts

# A command and its arguments. After `EVALSHA` comes the script. The worker sends its hash.
Command: TypeAlias = "tuple[str | bytes | int, ...]"


@final
@frozen
class TurnName:
    """The name of a turn in Redis.

    Attributes:
        session: The key of its session.
        id: The id of the turn; empty for no turn.
    """

    session: str
    id: str

    @property
    def info(self) -> str:
        return f"{self.session}:{self.id}"

    @property
    def keys(self) -> tuple[str, str]:
        return self.info, f"{self.info}:log"


@final
@frozen
class Times:
    """The times of all turns, in seconds.

    Attributes:
        keep: The time for which a turn is kept after its end.
        lease: The longest time after which readers notice that the reading process has ended, or
            that Redis does not respond.
        renew: The time between two renewals of a lease, and between two attempts to reach Redis.
        expiry: The time without a renewal after which a process is lost. It is checked only at the
            next renewal. If Redis was unreachable, the process has this time to renew its lease.
        check: The time between two checks whether Redis responds.
    """

    keep: float
    lease: float
    renew: float
    expiry: float
    check: float

    @classmethod
    def of(cls, keep: float, lease: float) -> Times:
        return cls(keep, lease, lease * 0.2, lease * 0.55, lease * 0.1)


@final
class Commands:
    """Creates the commands of one process. The scripts describe their replies.

    Args:
        prefix: The start of all keys and channels.
        times: The times of all turns.

    Attributes:
        process: The name of this process: its channel, and the key of its lease.
        everyone: The channel of all processes.
    """

    def __init__(self, prefix: str, times: Times) -> None:
        self._prefix = prefix
        self.process: str = f"{prefix}process:{urandom(12).hex()}"
        self.everyone: str = f"{prefix}process:all"
        self._lease_ms = round(times.expiry * 1000)
        self._keep_ms = round(times.keep * 1000)
        self._ttl_ms = round((times.keep + times.lease) * 1000)

    def session(self, session_id: str) -> str:
        """Return the key of a session. It contains the hash tag of all its keys."""
        # A brace in the session id would change the hash tag.
        return f"{self._prefix}{{{quote(session_id, safe='')}}}"

    def find(self, session: str) -> Command:
        """Get the id of the turn of a session, and the name of its process."""
        return "HMGET", session, "turn", "process"

    def claim(self, turn: TurnName, max_bytes: int, expected: TurnName, *, refuse: bool) -> Command:
        """Replace the expected turn of the session."""
        keys = (turn.session, turn.info, expected.info)
        values = (turn.id, expected.id, int(refuse), self.process, max_bytes, self._ttl_ms)
        return ("EVALSHA", scripts.CLAIM, len(keys), *keys, *values)

    def release(self, turn: TurnName, previous: TurnName) -> Command:
        """Give the session back to the previous turn."""
        keys = (turn.session, turn.info, previous.info)
        return ("EVALSHA", scripts.RELEASE, len(keys), *keys, turn.id, previous.id)

    def append(
        self, turn: TurnName, generation: int, numbers: tuple[int, ...], *content: bytes
    ) -> Command:
        """Append events and the end; keep the turn, which may have no new events.

        `numbers` are the numbers of the last event that Redis has, of the first and the last event
        to append, and of the oldest event that is kept. `content` is the events and the end.
        """
        ttl_ms = self._keep_ms if content[-1] else self._ttl_ms
        keys = (turn.session, *turn.keys)
        return ("EVALSHA", scripts.APPEND, len(keys), *keys, generation, ttl_ms, *numbers, *content)

    def restore(self, turn: TurnName, max_bytes: int) -> Command:
        """Create a turn again, without its events."""
        values = (self.process, max_bytes, self._ttl_ms, self.everyone)
        return ("EVALSHA", scripts.RESTORE, 2, *turn.keys, *values)

    def read(self, turn: TurnName, first: int) -> Command:
        """Start to follow a turn, and read its events from the number `first` on."""
        return ("EVALSHA", scripts.READ, 2, *turn.keys, self.process, first, _MAX_ENTRIES)

    def leave(self, turn: TurnName) -> Command:
        """Stop following a turn."""
        return "HDEL", turn.info, f"@{self.process}"

    def stop(self, turn: TurnName, reason: str) -> Command:
        """Ask the process that reads a turn to stop it."""
        # The request has a unique start, so that two requests with one reason differ.
        return ("EVALSHA", scripts.STOP, 1, turn.info, f"{urandom(8).hex()} {reason}")

    def lose(self, turn: TurnName, process: str, end: bytes) -> Command:
        """End a turn whose process is lost."""
        return ("EVALSHA", scripts.LOSE, 2, *turn.keys, process, end, self._keep_ms)

    def renew(self) -> Command:
        return ("EVALSHA", scripts.RENEW, 1, self.process, self._lease_ms)

    def lease(self, process: str) -> Command:
        return "GET", process

    def wake(self, process: str, message: str = "") -> Command:
        """Send the key of a turn to a process, so that the process checks this turn."""
        return "PUBLISH", process, message


# The largest number of entries that one command reads.
_MAX_ENTRIES = 100


def as_bytes(value: bytes | str | None) -> bytes:
    """Return a value in a reply as bytes. Some clients decode all replies."""
    return value.encode() if isinstance(value, str) else value or b""


def as_text(value: bytes | str | None) -> str:
    return as_bytes(value).decode()
