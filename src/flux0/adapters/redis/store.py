"""A store of background turns in Redis or Valkey."""

from __future__ import annotations

from inspect import isclass, iscoroutinefunction
from typing import Final, final
from weakref import finalize

from flux0.adapters.redis.commands import Settings
from flux0.adapters.redis.process import StoreProcess
from flux0.adapters.redis.worker import RedisClient
from flux0.domain import arguments
from flux0.domain.errors import InvalidArgument, MissingDependency
from flux0.runtime.processes import PerProcess
from flux0.runtime.turn_log import TurnLog
from flux0.turn_store import StoreState, TurnStore

_MIN_KEEP_SECONDS: Final = 1.0
_MIN_LEASE_SECONDS: Final = 0.1


@final
class RedisTurnStore(TurnStore):
    """Shares background turns between all processes that use the same Redis or Valkey.

        turns = BackgroundTurns(RedisTurnStore.from_url("redis://127.0.0.1:6379/0"))

    Args:
        client: A sync client, such as `redis.Redis`, `redis.RedisCluster` or `valkey.Valkey`.
        prefix: The start of the names of all keys and channels in Redis.
        keep_seconds: The time in seconds for which a turn is kept after its end.
        lease_seconds: The time in seconds after which other processes report an error for a turn if
            the process that reads the turn has ended, or if Redis cannot be reached.
    """

    def __init__(
        self,
        client: RedisClient,
        *,
        prefix: str = "flux0:",
        keep_seconds: float = 300.0,
        lease_seconds: float = 5.0,
    ) -> None:
        _check_client(client)
        arguments.text("prefix", prefix)
        _check_seconds("keep_seconds", keep_seconds, _MIN_KEEP_SECONDS)
        _check_seconds("lease_seconds", lease_seconds, _MIN_LEASE_SECONDS)
        options = prefix, keep_seconds, lease_seconds
        # The store's threads refer to the list of clients, but not to the store. Therefore, an
        # unreferenced store is freed, and its threads end.
        self._owned_clients = owned = list[RedisClient]()
        self._process = PerProcess(lambda: StoreProcess(client, owned, Settings(*options)))
        finalize(self, self._process.discard, StoreProcess.retire).atexit = False

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        prefix: str = "flux0:",
        keep_seconds: float = 300.0,
        lease_seconds: float = 5.0,
    ) -> RedisTurnStore:
        """Create a store with its own client; needs the package `redis`.

        Args:
            url: The URL of Redis or Valkey, such as `rediss://user:password@host:6379/0`.
            prefix: The start of the names of all keys and channels in Redis.
            keep_seconds: The time in seconds for which a turn is kept after its end.
            lease_seconds: The time in seconds after which other processes report an error for a
                turn if the process that reads the turn has ended, or if Redis cannot be reached.
        """
        try:
            from redis import Redis  # noqa: PLC0415 - optional, and slow to import
            from redis.backoff import NoBackoff  # noqa: PLC0415
            from redis.retry import Retry  # noqa: PLC0415
        except ModuleNotFoundError as error:
            problem = "RedisTurnStore needs the package redis: pip install 'flux0-client[redis]'"
            raise MissingDependency(problem) from error
        _check_seconds("lease_seconds", lease_seconds, _MIN_LEASE_SECONDS)
        # If a connection does not respond, the lease must be renewed over a new connection before
        # it expires. The renewal starts after `Settings.renew` seconds, and takes this timeout.
        timeout = lease_seconds * 0.3
        try:
            client = Redis.from_url(  # pyright: ignore[reportUnknownMemberType] - of redis
                arguments.text("url", url),
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                retry=Retry(NoBackoff(), 1),
            )
        except ValueError:
            problem = "must be like redis://127.0.0.1:6379/0"
            raise InvalidArgument("url", problem) from None
        store = cls(client, prefix=prefix, keep_seconds=keep_seconds, lease_seconds=lease_seconds)
        store._owned_clients.append(client)
        return store

    def claim(self, session_id: str, log: TurnLog, *, refuse: bool) -> TurnLog | None:
        return self._process.get().claim(session_id, log, refuse=refuse)

    def release(self, session_id: str, log: TurnLog, previous: TurnLog | None) -> None:  # noqa: ARG002 - its id is known
        self._process.get().release(session_id, log)

    def find(self, session_id: str) -> TurnLog | None:
        return self._process.get().find(session_id)

    def state(self) -> StoreState:
        return self._process.get().state()

    def close(self) -> None:
        """Write the ends of turns to Redis, and end the store's threads.

        If the store was created by `from_url`, its connections are closed, too. If you do not call
        this method, the threads end when the store is unreferenced and its last turn has ended.
        """
        self._process.get().close()


def _check_client(client: object) -> None:
    name = type(client).__name__
    if isinstance(client, str):
        problem = "is a str: call RedisTurnStore.from_url(url)"
    elif isclass(client):
        problem = f"is the class {client.__name__}: pass {client.__name__}()"
    elif (execute := getattr(client, "execute_command", None)) is None:
        problem = f"must be a sync client, such as redis.Redis, not {name}"
    elif iscoroutinefunction(execute):
        problem = (
            f"is an async {name}: pass a sync client, such as redis.Redis. The store uses it in "
            f"its own threads, so it does not block async code"
        )
    else:
        return
    raise InvalidArgument("client", problem)


def _check_seconds(argument: str, seconds: object, smallest: float) -> None:
    if arguments.interval(argument, seconds) < smallest:
        raise InvalidArgument(argument, f"must be at least {smallest:g}, not {seconds!r}")
