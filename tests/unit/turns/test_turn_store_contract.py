"""The contract of stores, over each store of flux0."""

# redis has incomplete types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property, partial
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import pytest
from attrs import frozen
from redis import Redis, RedisCluster

from flux0.adapters.redis.store import RedisTurnStore
from flux0.domain.background_errors import TurnRunning, TurnTooLarge
from flux0.domain.errors import StreamIdleTimeout
from flux0.runtime.turn_log import LogEnd, TurnLog
from flux0.testing.contract import LocalTurnStoreContract, TurnStoreContract
from flux0.turns.memory_store import MemoryTurnStore
from support.redis_server import (
    NOT_INSTALLED,
    RedisServer,
    is_installed,
    redis_cluster,
    redis_server,
)
from unit.testing.contract.test_base import arguments_of

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


def test_store_without_a_state_of_its_own_is_available() -> None:
    state = MemoryTurnStore().state()
    assert (state.is_available, state.failures, state.followed_turns) == (True, 0, 0)


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
        self.server.check_expiry()

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


# --- the contract detects bugs


class Found:
    """A log that `find` returns, with other attributes."""

    def __init__(self, log: TurnLog, **others: Any) -> None:
        vars(self).update(others, log=log)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.log, name)


find, claim = MemoryTurnStore.find, MemoryTurnStore.claim


def finding(change: Callable[[TurnLog], Mapping[str, Any]]) -> Callable[..., Any]:
    """Return a bug: `find` returns logs with other attributes."""

    def find_another(store: MemoryTurnStore, session_id: str) -> Any:
        log = find(store, session_id)
        return log and Found(log, **change(log))

    return find_another


def reading(read: Callable[[TurnLog, int], Sequence[bytes]]) -> Callable[..., Any]:
    """Return a bug: logs that `find` returns are read with `read`."""
    return finding(lambda log: {"read": partial(read, log)})


def close_at_release(store: MemoryTurnStore, *_: object) -> None:
    store.close()


def claim_always(store: MemoryTurnStore, id: str, log: TurnLog, *, refuse: bool) -> Any:
    return claim(store, id, log, refuse=False)


def claim_with_a_doubt(store: MemoryTurnStore, id: str, log: TurnLog, *, refuse: bool) -> Any:
    try:
        return claim(store, id, log, refuse=refuse)
    except TurnRunning as error:
        error.sent = "maybe"
        raise


def claim_without_a_result(store: MemoryTurnStore, id: str, log: TurnLog, *, refuse: bool) -> None:
    claim(store, id, log, refuse=refuse)


def claim_without_a_stop(store: MemoryTurnStore, id: str, log: TurnLog, *, refuse: bool) -> Any:
    previous = claim(store, id, log, refuse=refuse)
    return previous and Found(previous, stop=str)


def claim_once(store: MemoryTurnStore, id: str, log: TurnLog, *, refuse: bool) -> Any:
    if find(store, id):
        raise TurnRunning("a turn is kept")
    return claim(store, id, log, refuse=refuse)


def find_one_session(store: MemoryTurnStore, _: str) -> TurnLog | None:
    return next((found for each in ("}a{", "session-1") if (found := find(store, each))), None)


# Methods with a bug, each with the tests of the contract that must fail.
BUGS: list[tuple[str, Callable[..., Any], str]] = [
    ("find", lambda *_: TurnLog("turn", 1, str), "session_without_a_turn_has_none"),
    ("find", find_one_session, "sessions_are_independent_and_their_ids_may_have_any_characters"),
    (
        "find",
        reading(lambda log, after: log.read(after)[::-1]),
        "events_and_end_reach_the_other_process thousand_events_arrive_complete_and_in_order "
        "reader_that_needs_dropped_events_gets_an_error",
    ),
    (
        "find",
        reading(lambda log, after: log.read(after)[1:]),
        "events_and_end_reach_the_other_process thousand_events_arrive_complete_and_in_order "
        "ended_turn_is_found sessions_are_independent_and_their_ids_may_have_any_characters",
    ),
    (
        "find",
        reading(lambda log, after: log.read(max(after, 98))),
        "reader_that_needs_dropped_events_gets_an_error",
    ),
    (
        "find",
        finding(lambda _: {"turn_id": "other"}),
        "events_and_end_reach_the_other_process claim_after_an_ended_turn_replaces_it "
        "claim_returns_the_running_turn_which_can_be_stopped "
        "claim_is_refused_while_a_turn_is_running_in_any_process "
        "released_turn_ends_for_those_who_wait_for_it "
        "turn_is_found_again_after_its_successor_is_released",
    ),
    ("find", finding(lambda _: {"max_bytes": 7}), "events_and_end_reach_the_other_process"),
    (
        *("find", finding(lambda log: {"last": log.last + 1})),
        "turn_is_found_again_after_its_successor_is_released",
    ),
    (
        "find",
        finding(lambda log: {"end": log.end and LogEnd(log.end.error, not log.end.finished)}),
        "ended_turn_is_found",
    ),
    (
        "find",
        finding(lambda log: {"end": log.end and LogEnd(StreamIdleTimeout("no event"))}),
        "events_and_end_reach_the_other_process",
    ),
    ("find", finding(lambda _: {}), "callers_of_one_process_share_a_log"),
    ("find", finding(lambda _: {"stop": str}), "found_turn_can_be_stopped_from_both_processes"),
    ("claim", claim_always, "claim_is_refused_while_a_turn_is_running_in_any_process"),
    ("claim", claim_with_a_doubt, "claim_is_refused_while_a_turn_is_running_in_any_process"),
    ("claim", claim_without_a_result, "claim_returns_the_running_turn_which_can_be_stopped"),
    ("claim", claim_without_a_stop, "claim_returns_the_running_turn_which_can_be_stopped"),
    ("claim", claim_once, "claim_after_an_ended_turn_replaces_it"),
    (
        "release",
        lambda *_: None,
        "released_turn_is_not_found turn_is_found_again_after_its_successor_is_released",
    ),
    (
        "release",
        close_at_release,
        "released_turn_ends_for_those_who_wait_for_it "
        "turn_is_found_again_after_its_successor_is_released",
    ),
    ("_is_expired", lambda *_: False, "ended_turns_expire"),
]


DETECTING = {test for *_, tests in BUGS for test in tests.split()}


class QuickContract(LocalTurnStoreContract):
    timeout: ClassVar[float] = 0.1

    def make_store(self, *, keep_seconds: float, lease_seconds: float) -> MemoryTurnStore:
        return MemoryTurnStore(keep_seconds=keep_seconds / 20)


def run_each(test: str) -> None:
    """Run a test of the contract with all its parameters."""
    contract, function = QuickContract(), getattr(QuickContract, f"test_{test}")
    for arguments in arguments_of(function):
        given = {**arguments, "stores": contract.make_stores()}
        names = [*signature(function).parameters][1:]
        function(contract, **{name: given[name] for name in names})


@pytest.mark.parametrize("test", sorted(DETECTING))
def test_contract_accepts_a_local_store_without_a_bug(
    test: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test that always fails would detect each bug."""
    monkeypatch.setattr(QuickContract, "timeout", 10.0)
    run_each(test)


@pytest.mark.parametrize(
    ("method", "bug", "test"),
    [
        pytest.param(method, bug, test, id=f"{number}-{test}")
        for number, (method, bug, tests) in enumerate(BUGS)
        for test in tests.split()
    ],
)
def test_contract_detects_a_bug_in_a_local_store(
    monkeypatch: pytest.MonkeyPatch, method: str, bug: Callable[..., Any], test: str
) -> None:
    monkeypatch.setattr(MemoryTurnStore, method, bug)
    with pytest.raises((AssertionError, TurnRunning, TurnTooLarge, pytest.fail.Exception)):
        run_each(test)


def test_each_test_of_the_contract_of_local_stores_detects_a_bug() -> None:
    names = {name[5:] for name in dir(LocalTurnStoreContract) if name.startswith("test_")}
    assert names - DETECTING == {"forked_child_is_another_process"}


redis_claim, redis_close = RedisTurnStore.claim, RedisTurnStore.close
redis_find, redis_release = RedisTurnStore.find, RedisTurnStore.release
kept: list[TurnLog | None] = []


def claim_and_keep(store: RedisTurnStore, id: str, log: TurnLog, *, refuse: bool) -> Any:
    kept.append(log)
    return redis_claim(store, id, log, refuse=refuse)


def close_and_end_turns(store: RedisTurnStore) -> None:
    redis_close(store)
    for log in filter(None, kept):
        log.finish(LogEnd())


def find_and_keep(store: RedisTurnStore, session_id: str) -> TurnLog | None:
    kept.append(found := redis_find(store, session_id))
    return found


def find_a_copy(store: RedisTurnStore, session_id: str) -> TurnLog | None:
    found = redis_find(store, session_id)
    return found and TurnLog(found.turn_id, found.max_bytes, found.stop)


def ask_and_release(store: RedisTurnStore, *arguments: Any) -> None:
    with suppress(Exception):  # The contract may close the client during the call.
        client = store._process.get()._client  # pyright: ignore[reportPrivateUsage]
        client.execute_command("EXISTS", "turn")
    redis_release(store, *arguments)


def do_nothing(store: RedisTurnStore, *arguments: Any) -> None: ...


@needs_redis
@pytest.mark.parametrize(
    ("bugs", "test"),
    [
        ({"find": find_and_keep}, "unreferenced_copy_is_garbage_collected"),
        ({"find": find_a_copy}, "events_and_end_reach_the_other_process"),
        ({"release": ask_and_release}, "release_does_not_wait_for_another_program"),
        ({"release": do_nothing}, "released_turn_is_not_found"),
        ({"close": do_nothing}, "closing_a_store_ends_its_copies"),
        (
            {"claim": claim_and_keep, "close": close_and_end_turns},
            "closing_a_store_ends_its_copies",
        ),
    ],
)
def test_contract_detects_a_bug(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, bugs: Mapping[str, object], test: str
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
            for method, bug in bugs.items():
                patch.setattr(RedisTurnStore, method, bug)
            with pytest.raises(AssertionError):
                getattr(contract, f"test_{test}")(stores)
