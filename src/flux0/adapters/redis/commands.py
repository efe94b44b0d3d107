"""Commands for Redis, and the names of keys and channels and the expiry times in Redis."""

from __future__ import annotations

from os import urandom
from typing import TypeAlias, final
from urllib.parse import quote, unquote

from attrs import frozen

from flux0.domain.safe_text import escaped

# A `Command` is a Redis command with its arguments. In the command `EVALSHA`, the first argument is
# a script's text. Before the class `Worker` sends the command, it replaces the text with the hash.
Command: TypeAlias = "tuple[str | bytes | int, ...]"


def run_script(script: str, keys: tuple[str, ...], *values: str | bytes | int) -> Command:
    return ("EVALSHA", script, len(keys), *keys, *values)


@final
@frozen
class TurnName:
    """The name of a turn in Redis. The keys for the turn's data contain this name.

    Attributes:
        session: The key of the turn's session.
        id: The turn's id; empty if the name identifies no turn.
    """

    session: str
    id: str

    @property
    def shown(self) -> str:
        """The ids of the session and of the turn, for a log line."""
        session_id = unquote(self.session.rpartition("{")[2].removesuffix("}"))
        return f"session={escaped(session_id)} turn={self.id}"

    @property
    def info(self) -> str:
        return f"{self.session}:{self.id}"

    @property
    def keys(self) -> tuple[str, str]:
        return self.info, f"{self.info}:log"


@final
class Settings:
    """The names that one process uses in Redis, and the times for all turns.

    Args:
        prefix: The start of the names of all keys and channels.
        keep: The time in seconds for which a turn is kept after its end.
        lease: The longest time in seconds after which other processes report an error for a turn if
            the process that reads the turn has ended, or if Redis does not respond.

    Attributes:
        process: The name of this process: its channel, and the key of its lease.
        everyone: The channel on which all processes listen.
        keep: The argument `keep`.
        lease: The argument `lease`.
        renew: Seconds between two renewals of a lease, and between two attempts to reach Redis.
        expiry: Seconds after which a process that has not renewed its lease counts as lost, and
            after which a subscription without data counts as broken. Other processes check the
            lease when they renew their own leases. When Redis is reachable again, each process has
            this time to renew its lease.
        check: Seconds between two checks whether Redis responds.
        give_up: Seconds after which the copy of a turn ends if Redis does not respond for the
            turn. The next check is at most `check` seconds later.
        expiry_ms: The time `expiry` in milliseconds.
        keep_ms: Milliseconds after which the keys of an ended turn expire.
        ttl_ms: Milliseconds after which the keys of a running turn expire, unless they are renewed.
    """

    def __init__(self, prefix: str, keep: float, lease: float) -> None:
        self._prefix = prefix
        self.process: str = f"{prefix}process:{urandom(12).hex()}"
        self.everyone: str = f"{prefix}process:all"
        self.keep: float = keep
        self.lease: float = lease
        self.renew: float = lease * 0.2
        self.expiry: float = lease * 0.55
        self.check: float = lease * 0.1
        self.give_up: float = lease - self.check
        self.expiry_ms: int = round(self.expiry * 1000)
        self.keep_ms: int = round(keep * 1000)
        self.ttl_ms: int = round((keep + lease) * 1000)

    def name(self, session_id: str, turn_id: str) -> TurnName:
        """Return the name of a turn. It contains a hash tag: the quoted session id in braces.

        All keys of a session have the same hash tag, so they are in one slot of a Redis Cluster.
        """
        # The session id is quoted, because a brace in the session id changes the hash tag.
        return TurnName(f"{self._prefix}{{{quote(session_id, safe='')}}}", turn_id)


def as_bytes(value: bytes | str | None) -> bytes:
    """Return a value from a Redis reply as bytes. Some clients decode all replies to str."""
    return value.encode() if isinstance(value, str) else value or b""


def as_text(value: bytes | str | None) -> str:
    return as_bytes(value).decode()
