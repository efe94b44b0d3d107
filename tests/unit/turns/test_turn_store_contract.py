"""The contract of stores, over each store of flux0."""

# redis has incomplete types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pytest
from attrs import frozen
from redis import Redis, RedisCluster

from flux0.adapters.redis.store import RedisTurnStore
from flux0.runtime.turn_log import TurnLog
from flux0.testing.contract import LocalTurnStoreContract, TurnStoreContract
from flux0.turns.memory_store import MemoryTurnStore
from support.redis_server import (
    NOT_INSTALLED,
    RedisServer,
    is_installed,
    redis_cluster,
    redis_server,
)

needs_redis = pytest.mark.skipif(not is_installed(), reason=NOT_INSTALLED)


@frozen(slots=False)  # for cached_property
class Servers:
    """The Redis server and the Redis Cluster of all tests. They start at the first use."""

    folder: Path
    stack: ExitStack

    @cached_property
    def single(self) -> RedisServer:
        return self.stack.enter_context(redis_server(self.folder))

    @cached_property
    def cluster(self) -> RedisServer:
        return self.stack.enter_context(redis_cluster(self.folder))


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Generator[Servers, None, None]:
    with ExitStack() as stack:
        yield Servers(tmp_path_factory.mktemp("redis"), stack)


class TestMemoryTurnStore(LocalTurnStoreContract):
    def make_store(self, *, keep_seconds: float, lease_seconds: float) -> MemoryTurnStore:
        return MemoryTurnStore(keep_seconds=keep_seconds)


class MemoryContract(TurnStoreContract):
    def make_store(self, *, keep_seconds: float, lease_seconds: float) -> MemoryTurnStore:
        return MemoryTurnStore(keep_seconds=keep_seconds)


def test_store_that_waits_for_no_program_needs_no_paused() -> None:
    contract = MemoryContract()
    with contract.paused():
        contract.make_store(keep_seconds=1, lease_seconds=1).close()


class RedisContract(TurnStoreContract):
    """Each store has its own client, as in its own process. The clients have no timeouts."""

    is_cluster: ClassVar[bool] = False

    @pytest.fixture(autouse=True)
    def empty(self, servers: Servers) -> Generator[None, None, None]:
        self.server: RedisServer = servers.cluster if self.is_cluster else servers.single
        with ExitStack() as self.stack, self.client() as admin:
            admin.flushall()
            self.prepare(admin)
            yield

    def prepare(self, admin: Redis | RedisCluster) -> None: ...

    def client(self) -> Redis | RedisCluster:
        return Redis.from_url(self.server.url)

    def make_store(self, *, keep_seconds: float, lease_seconds: float) -> RedisTurnStore:
        client = self.stack.enter_context(self.client())
        return RedisTurnStore(client, keep_seconds=keep_seconds, lease_seconds=lease_seconds)

    @contextmanager
    def paused(self) -> Generator[None, None, None]:
        self.server.pause()
        try:
            yield
        finally:
            self.server.resume()


@needs_redis
class TestRedisTurnStore(RedisContract):
    pass


@needs_redis
class TestRedisTurnStoreWithDecodedReplies(RedisContract):
    """The user has only the permissions that the documentation names."""

    def prepare(self, admin: Redis | RedisCluster) -> None:
        admin.acl_setuser(
            "limited",
            enabled=True,
            passwords=["+secret"],
            keys=["flux0:*"],
            reset_channels=True,
            channels=["flux0:process:*"],
            categories=["+@connection", "+@pubsub", "+@read", "+@scripting", "+@write"],
            commands=["+time"],
        )

    def make_store(self, *, keep_seconds: float, lease_seconds: float) -> RedisTurnStore:
        url = self.server.url.replace("//", "//limited:secret@")
        client = Redis.from_url(url, decode_responses=True, protocol=2)
        self.stack.enter_context(client)
        return RedisTurnStore(client, keep_seconds=keep_seconds, lease_seconds=lease_seconds)


@needs_redis
class TestRedisTurnStoreInACluster(RedisContract):
    is_cluster: ClassVar[bool] = True

    def client(self) -> RedisCluster:
        # After `RedisCluster.from_url`, `close` of redis-py leaves connections open.
        return RedisCluster(host="127.0.0.1", port=self.server.port)


find, release = RedisTurnStore.find, RedisTurnStore.release
kept: list[object] = []


def find_and_keep(store: RedisTurnStore, session_id: str) -> TurnLog | None:
    kept.append(found := find(store, session_id))
    return found


def find_a_copy(store: RedisTurnStore, session_id: str) -> TurnLog | None:
    found = find(store, session_id)
    return found and TurnLog(found.turn_id, found.max_bytes, found.stop)


def ask_and_release(store: RedisTurnStore, *arguments: Any) -> None:
    with suppress(Exception):  # The contract may close the client during the call.
        client = store._process.get()._client  # pyright: ignore[reportPrivateUsage]
        client.execute_command("EXISTS", "turn")
    release(store, *arguments)


def do_nothing(store: RedisTurnStore, *arguments: Any) -> None: ...


@needs_redis
@pytest.mark.parametrize(
    ("method", "bug", "test"),
    [
        ("find", find_and_keep, "unreferenced_copy_is_garbage_collected"),
        ("find", find_a_copy, "callers_of_one_process_share_a_log"),
        ("find", find_a_copy, "events_and_end_reach_the_other_process"),
        ("release", ask_and_release, "release_does_not_wait_for_another_program"),
        ("release", do_nothing, "released_turn_is_not_found"),
        ("close", do_nothing, "closing_a_store_ends_its_copies"),
    ],
)
def test_contract_detects_a_bug(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, method: str, bug: object, test: str
) -> None:
    contract = RedisContract()
    monkeypatch.setattr(RedisContract, "timeout", 0.5)
    with ExitStack() as contract.stack:
        contract.server = servers.single
        contract.stack.enter_context(contract.client()).flushall()
        stores = contract.make_stores()
        for store in stores:
            contract.stack.callback(store.close)
        with monkeypatch.context() as patch:
            patch.setattr(RedisTurnStore, method, bug)
            with pytest.raises(AssertionError):
                getattr(contract, f"test_{test}")(stores)
