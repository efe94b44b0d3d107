"""The contract of stores: each test runs over every store, with two stores of two processes."""

# redis has incomplete types.
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

import pytest
from attrs import define, field, frozen
from redis import Redis, RedisCluster

from flux0.adapters.redis.store import RedisTurnStore
from flux0.domain.errors import StreamIdleTimeout, TurnRunning, TurnTooLarge
from flux0.runtime.turn_log import LogEnd, TurnLog
from flux0.runtime.waker import Waker
from flux0.turn_store import TurnStore
from flux0.turns.memory_store import MemoryTurnStore
from support.redis_server import is_installed, redis_cluster, redis_server

KEEP_SECONDS = 300.0
LEASE_SECONDS = 20.0
SESSION = "session-1"
TIMEOUT = 20.0


@frozen
class Stores:
    """Two stores as in two processes, and a function that waits until an ended turn expires."""

    first: TurnStore
    second: TurnStore
    wait_until_expired: Callable[[], object]


@contextmanager
def memory_stores() -> Generator[Stores, None, None]:
    """A memory store serves one process, so both stores are the same."""
    now = [1000.0]

    def pass_time() -> None:
        now[0] += KEEP_SECONDS + 1

    store = MemoryTurnStore(keep_seconds=KEEP_SECONDS, clock=lambda: now[0])
    yield Stores(store, store, pass_time)
    store.close()


@frozen(slots=False)  # for cached_property
class Servers:
    """The Redis server and the Redis Cluster of all tests. They start at the first use."""

    folder: Path
    stack: ExitStack

    @cached_property
    def single(self) -> str:
        return self.stack.enter_context(redis_server(self.folder)).url

    @cached_property
    def cluster_port(self) -> int:
        return self.stack.enter_context(redis_cluster(self.folder)).port


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Generator[Servers, None, None]:
    with ExitStack() as stack:
        yield Servers(tmp_path_factory.mktemp("redis"), stack)


@contextmanager
def redis_stores(
    admin: Redis | RedisCluster, make: Callable[[], Redis | RedisCluster]
) -> Generator[Stores, None, None]:
    """Two stores with threads and connections of their own, as in two processes."""
    with admin, make() as first, make() as second:
        admin.flushall()

        def let_expire() -> None:
            for key in admin.scan_iter():
                ttl = admin.pttl(key)
                # -2: the key was deleted after `scan_iter` returned it, because its turn has ended.
                assert ttl == -2 or 0 < ttl <= (KEEP_SECONDS + LEASE_SECONDS) * 1000
            admin.flushall()

        one, other = (
            RedisTurnStore(client, keep_seconds=KEEP_SECONDS, lease_seconds=LEASE_SECONDS)
            for client in (first, second)
        )
        yield Stores(one, other, let_expire)
        one.close()
        other.close()


def over_redis(servers: Servers) -> AbstractContextManager[Stores]:
    def connect() -> Redis:
        return Redis.from_url(servers.single)

    return redis_stores(connect(), connect)


def over_redis_with_decoded_replies(servers: Servers) -> AbstractContextManager[Stores]:
    """The user has only the permissions that the documentation names."""
    admin = Redis.from_url(servers.single)
    admin.acl_setuser(
        "limited",
        enabled=True,
        passwords=["+secret"],
        keys=["flux0:*"],
        reset_channels=True,
        channels=["flux0:process:*"],
        categories=["+@connection", "+@pubsub", "+@read", "+@scripting", "+@write"],
    )
    url = servers.single.replace("//", "//limited:secret@")
    return redis_stores(admin, lambda: Redis.from_url(url, decode_responses=True, protocol=2))


def over_redis_cluster(servers: Servers) -> AbstractContextManager[Stores]:
    def connect() -> RedisCluster:
        # After `RedisCluster.from_url`, `close` of redis-py leaves connections open.
        return RedisCluster(host="127.0.0.1", port=servers.cluster_port)

    return redis_stores(connect(), connect)


MAKERS: dict[str, Callable[[Servers], AbstractContextManager[Stores]]] = {
    "memory": lambda _: memory_stores()
}
if is_installed():
    MAKERS.update(
        {
            "redis": over_redis,
            "redis with decoded replies": over_redis_with_decoded_replies,
            "redis cluster": over_redis_cluster,
        }
    )


@pytest.fixture(params=MAKERS)
def stores(request: pytest.FixtureRequest, servers: Servers) -> Generator[Stores, None, None]:
    with MAKERS[request.param](servers) as made:
        yield made


@define
class Reader:
    """The process that reads a turn: its log, and the reasons for which it was asked to stop."""

    log: TurnLog
    reasons: list[str] = field(factory=list[str])
    stopped: Waker = field(factory=Waker)

    def stop(self, reason: str) -> None:
        self.reasons.append(reason)
        self.stopped.wake()


def reader(turn_id: str, max_bytes: int = 1000) -> Reader:
    def stop(reason: str) -> None:
        made.stop(reason)

    made = Reader(TurnLog(turn_id, max_bytes, stop))
    return made


def started(store: TurnStore, turn_id: str = "turn-1", max_bytes: int = 1000) -> Reader:
    made = reader(turn_id, max_bytes)
    assert store.claim(SESSION, made.log, refuse=True) is None
    return made


def event(number: int, size: int = 0) -> bytes:
    return f"id: {number}\ndata: {'x' * size}\n\n".encode()


def wait_until(log: TurnLog, condition: Callable[[], bool]) -> None:
    while True:
        waker = Waker()
        cancel = log.on_change(waker.wake)
        if condition():
            cancel()
            return
        assert waker.wait(TIMEOUT), "the log did not change"


def found(store: TurnStore) -> TurnLog:
    log = store.find(SESSION)
    assert log is not None
    return log


def test_session_without_a_turn_has_none(stores: Stores) -> None:
    assert stores.first.find(SESSION) is None


def test_events_and_end_reach_the_other_process(stores: Stores) -> None:
    writer = started(stores.first)
    writer.log.append(event(1))
    copy = found(stores.second)
    assert (copy.turn_id, copy.max_bytes) == ("turn-1", 1000)
    wait_until(copy, lambda: copy.last == 1)
    assert list(copy.read(0)) == [event(1)]
    for number in (2, 3, 4):
        writer.log.append(event(number))
    wait_until(copy, lambda: copy.last == 4)
    assert list(copy.read(2)) == [event(3), event(4)]
    assert list(copy.read(4)) == []
    assert not copy.is_ended

    error = StreamIdleTimeout("no event")
    error.correlation_id = "RID(1)"
    writer.log.finish(LogEnd(error))
    wait_until(copy, lambda: copy.is_ended)
    assert copy.end is not None
    assert type(copy.end.error) is StreamIdleTimeout
    assert copy.end.error.problem == "no event"
    assert copy.end.error.correlation_id == "RID(1)"
    assert copy.last == 4


def test_ended_turn_is_found_until_it_expires(stores: Stores) -> None:
    writer = started(stores.first)
    writer.log.append(event(1))
    writer.log.finish(LogEnd(finished=True))
    copy = found(stores.second)
    wait_until(copy, lambda: copy.is_ended)
    assert copy.end == LogEnd(finished=True)
    assert list(copy.read(0)) == [event(1)]

    stores.wait_until_expired()
    assert stores.second.find(SESSION) is None
    assert stores.first.find(SESSION) is None


def test_claim_is_refused_while_a_turn_is_running_in_any_process(stores: Stores) -> None:
    started(stores.first)
    for store in (stores.first, stores.second):
        with pytest.raises(TurnRunning) as raised:
            store.claim(SESSION, reader("turn-2").log, refuse=True)
        assert raised.value.sent == "no"
        assert found(store).turn_id == "turn-1"


@pytest.mark.parametrize("refuse", [True, False])
def test_claim_after_an_ended_turn_replaces_it(stores: Stores, refuse: bool) -> None:
    writer = started(stores.first)
    writer.log.finish(LogEnd())
    copy = found(stores.second)
    wait_until(copy, lambda: copy.is_ended)

    previous = stores.second.claim(SESSION, reader("turn-2").log, refuse=refuse)
    assert previous is None or previous.is_ended
    assert found(stores.first).turn_id == found(stores.second).turn_id == "turn-2"


def test_claim_returns_the_running_turn_which_can_be_stopped(stores: Stores) -> None:
    first, second = started(stores.first), reader("turn-2")
    previous = stores.second.claim(SESSION, second.log, refuse=False)
    assert previous is not None
    assert previous.turn_id == "turn-1"
    assert not previous.is_ended
    assert found(stores.first).turn_id == "turn-2"

    previous.stop("another message")
    assert first.stopped.wait(TIMEOUT)
    assert first.reasons == ["another message"]
    first.log.finish(LogEnd())
    wait_until(previous, lambda: previous.is_ended)
    assert second.reasons == []


def test_found_turn_can_be_stopped_from_both_processes(stores: Stores) -> None:
    writer = started(stores.first)
    for number, store in enumerate((stores.first, stores.second), 1):
        found(store).stop("the stop button")
        assert writer.stopped.wait(TIMEOUT)
        assert writer.reasons == ["the stop button"] * number


def test_released_turn_is_not_found(stores: Stores) -> None:
    writer = started(stores.first)
    writer.log.finish(LogEnd())
    stores.first.release(SESSION, writer.log, None)

    assert stores.first.find(SESSION) is None
    assert stores.second.claim(SESSION, reader("turn-2").log, refuse=True) is None


def test_released_turn_ends_for_those_who_wait_for_it(stores: Stores) -> None:
    first, second = started(stores.first), reader("turn-2")
    previous = stores.second.claim(SESSION, second.log, refuse=False)
    assert previous is not None
    first.log.finish(LogEnd())
    stores.first.release(SESSION, first.log, None)

    wait_until(previous, lambda: previous.is_ended)
    assert found(stores.first).turn_id == "turn-2"


def test_running_turn_is_found_again_after_its_successor_is_released(stores: Stores) -> None:
    first, second = started(stores.first), reader("turn-2")
    previous = stores.second.claim(SESSION, second.log, refuse=False)
    second.log.finish(LogEnd())
    stores.second.release(SESSION, second.log, previous)

    assert found(stores.second).turn_id == "turn-1"
    copy = found(stores.second)
    first.log.append(event(1))
    wait_until(copy, lambda: copy.last == 1)
    first.log.finish(LogEnd())
    wait_until(copy, lambda: copy.is_ended)
    stores.wait_until_expired()
    assert stores.second.find(SESSION) is None


@pytest.mark.parametrize("ends_before", [True, False])
def test_ended_turn_is_found_again_after_its_successor_is_released(
    stores: Stores, ends_before: bool
) -> None:
    first, second = started(stores.first), reader("turn-2")
    copy = found(stores.second)
    if ends_before:
        first.log.finish(LogEnd())
        wait_until(copy, lambda: copy.is_ended)
    previous = stores.second.claim(SESSION, second.log, refuse=False)
    first.log.finish(LogEnd())
    wait_until(copy, lambda: copy.is_ended)
    second.log.finish(LogEnd())
    stores.second.release(SESSION, second.log, previous)

    # `release` does not wait, but later calls of the same process see its effect.
    assert found(stores.second).turn_id == "turn-1"
    assert found(stores.first).turn_id == "turn-1"
    stores.wait_until_expired()
    assert stores.second.find(SESSION) is None


def test_reader_that_needs_dropped_events_gets_an_error(stores: Stores) -> None:
    writer = started(stores.first, max_bytes=1000)
    for number in range(1, 101):
        writer.log.append(event(number, 80))
    assert writer.log.last == 100
    copy = found(stores.second)
    wait_until(copy, lambda: copy.last == 100)

    assert 5 <= copy.last - copy.first + 1 <= 11
    with pytest.raises(TurnTooLarge):
        copy.read(0)
    assert list(copy.read(98)) == [event(99, 80), event(100, 80)]


def test_sessions_are_independent(stores: Stores) -> None:
    started(stores.first)
    assert stores.second.find("session-2") is None
    assert stores.second.claim("session-2", reader("turn-2").log, refuse=True) is None
    assert found(stores.first).turn_id == "turn-1"


def test_session_id_may_have_any_characters(stores: Stores) -> None:
    """In a cluster, the part of a key in braces selects the server."""

    def run_turn(session_id: str) -> None:
        log = reader(f"turn of {session_id}").log
        assert stores.first.claim(session_id, log, refuse=True) is None
        log.append(event(1))
        copy = stores.second.find(session_id)
        assert copy is not None
        wait_until(copy, lambda: copy.last == 1)
        log.finish(LogEnd(finished=True))
        wait_until(copy, lambda: copy.is_ended)

    for session_id in ("}a{", "{}", "a b:c", "é"):
        run_turn(session_id)


def test_callers_of_one_process_share_a_log(stores: Stores) -> None:
    started(stores.first)
    assert found(stores.second) is found(stores.second)


def test_thousand_events_arrive_complete_and_in_order(stores: Stores) -> None:
    writer = started(stores.first, max_bytes=10**6)
    copy = found(stores.second)
    events = [event(number) for number in range(1, 1001)]
    for each in events:
        writer.log.append(each)
    writer.log.finish(LogEnd(finished=True))
    wait_until(copy, lambda: copy.is_ended)
    assert list(copy.read(0)) == events
