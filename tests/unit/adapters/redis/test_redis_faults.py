"""Faults of Redis without a closed connection: each row of the table in background-turns.md."""

# redis has incomplete types.
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any, TypeVar, cast

import pytest
import redis
from attrs import frozen
from redis import Redis, RedisCluster
from redis.backoff import NoBackoff
from redis.retry import Retry

from flux0 import RedisTurnStore
from flux0.adapters.redis.commands import Command, Settings, run_script
from flux0.adapters.redis.worker import Steps, Worker
from flux0.domain.api_errors import APIError
from flux0.domain.background_errors import ReaderLost, TurnRunning, TurnStopped, TurnStoreError
from flux0.domain.errors import Flux0Error
from flux0.domain.headers import Headers
from flux0.runtime.turn_log import LogEnd, TurnLog
from flux0.turns.log_relay import LogReader, wait_for_end
from support.programs import REDIS, needs
from support.redis_server import RedisServer, redis_cluster, redis_server, wait_until
from support.stalling import Stalling
from support.turn_processes import Turns, event, turn_bytes, turn_processes

pytestmark = needs(REDIS)

TIMEOUT = 20.0
LEASE_SECONDS = 1.0
# Tests without a fault of the connection do not fail if a busy machine delays a renewal.
LONG_LEASE_SECONDS = 5.0
KEY = "flux0:{session}:turn"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    with shared.client() as client:
        client.flushall()
    return shared


class Turn:
    """A turn that ends at the first request to stop."""

    def __init__(self, turn_id: str = "turn") -> None:
        self.log = TurnLog(turn_id, 10**6, self._stop)

    def _stop(self, reason: str) -> None:
        self.log.finish(LogEnd(TurnStopped(reason)))

    def append(self) -> None:
        self.log.append(event(self.log.turn_id, self.log.last + 1))


@frozen
class Pair:
    """A process that reads a turn, and a process that copies it, each behind its own proxy."""

    server: RedisServer
    reader: RedisTurnStore
    follower: RedisTurnStore
    reader_proxy: Stalling
    follower_proxy: Stalling

    def start(self) -> tuple[Turn, TurnLog]:
        turn = Turn()
        assert self.reader.claim("session", turn.log, refuse=True) is None
        turn.append()
        copy = self.follower.find("session")
        assert copy is not None
        wait_for_events(copy, 1)
        with self.server.client() as client:
            wait_until(lambda: client.pubsub_numsub("flux0:process:all")[0][1] == 2)
        return turn, copy


@contextmanager
def running_pair(server: RedisServer, lease_seconds: float) -> Generator[Pair, None, None]:
    with Stalling(server.port) as near, Stalling(server.port) as far:
        stores = [
            RedisTurnStore.from_url(f"redis://{proxy.address}", lease_seconds=lease_seconds)
            for proxy in (near, far)
        ]
        with closing(stores[0]), closing(stores[1]):
            yield Pair(server, stores[0], stores[1], near, far)
            near.heal()
            far.heal()


@pytest.fixture
def pair(server: RedisServer) -> Iterator[Pair]:
    with running_pair(server, LEASE_SECONDS) as made:
        yield made


@pytest.fixture
def calm_pair(server: RedisServer) -> Iterator[Pair]:
    with running_pair(server, LONG_LEASE_SECONDS) as made:
        yield made


def wait_for_events(log: TurnLog, count: int) -> None:
    while log.last < count and not log.is_ended:
        assert LogReader(log, log.last).wait(TIMEOUT), "no event was received"
    assert log.last >= count


def error_of(log: TurnLog) -> Flux0Error | None:
    assert wait_for_end(log, TIMEOUT), "the turn did not end"
    assert log.end is not None
    return log.end.error


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]


def test_follower_with_a_half_open_subscription_gets_all_events(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    turn, copy = pair.start()
    pair.follower_proxy.stall("subscription")
    begin = monotonic()
    for number in range(2, 6):
        turn.append()
        wait_for_events(copy, number)
    wait_until(lambda: len(warnings(caplog)) == 1)
    turn.append()
    turn.log.finish(LogEnd(finished=True))
    assert error_of(copy) is None
    assert b"".join(copy.read(0)) == turn_bytes("turn", 6)
    assert monotonic() - begin < TIMEOUT
    (line,) = warnings(caplog)
    assert line.startswith("the subscription to Redis does not respond: ")
    assert pair.follower_proxy.address in line


def test_turn_is_stopped_although_the_subscription_of_its_process_is_half_open(pair: Pair) -> None:
    turn, copy = pair.start()
    pair.reader_proxy.stall("subscription")
    copy.stop("the reason")
    assert isinstance(error_of(turn.log), TurnStopped)
    assert isinstance(error_of(copy), TurnStopped)


def test_subscription_that_responds_keeps_its_connection(pair: Pair) -> None:
    _, copy = pair.start()
    before = pair.follower_proxy.connections
    with pair.server.client() as client:
        pings = calls_of(client, "ping")
        wait_until(lambda: calls_of(client, "ping") > pings + 8)  # They took longer than a lease.
    assert pair.follower_proxy.connections == before
    assert not copy.is_ended


def calls_of(client: Redis, command: str) -> int:
    commands: Any = client.info("commandstats")
    return int(commands.get(f"cmdstat_{command}", {"calls": 0})["calls"])


def has_calls(client: Redis, command: str, count: int) -> bool:
    return calls_of(client, command) >= count


@pytest.mark.parametrize("kind", ["commands", "all"])
@pytest.mark.parametrize("role", ["reading", "following"])
def test_copy_continues_after_half_open_connections(
    server: RedisServer, role: str, kind: str
) -> None:
    """The connections stop responding when both processes have just renewed their leases.

    Then, the lease of the reading process is missing for the longest time.
    """
    with running_pair(server, 2 * LEASE_SECONDS) as pair:
        turn, copy = pair.start()
        proxy = pair.reader_proxy if role == "reading" else pair.follower_proxy
        others = [Turn("first"), Turn("second")]
        with server.client() as client:
            for store, other in zip((pair.reader, pair.follower), others, strict=True):
                lease = store._process.get()._settings.process
                count = int(client.get(lease) or 0)
                assert store.claim(other.log.turn_id, other.log, refuse=True) is None
                # The lease is renewed before and after the claim.
                wait_until(partial(is_renewed, client, lease, count + 2))
        before = proxy.connections
        proxy.stall(kind)
        wait_until(lambda: proxy.connections > before)
        turn.append()
        wait_for_events(copy, 2)
        turn.log.finish(LogEnd(finished=True))
        assert error_of(copy) is None
        for other in others:
            other.log.finish(LogEnd())


def is_renewed(client: Redis, lease: str, count: int) -> bool:
    return int(client.get(lease) or 0) >= count


def test_copy_ends_if_no_connection_to_redis_responds(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    turn, copy = pair.start()
    pair.follower_proxy.stall(new=True)
    error = error_of(copy)
    assert isinstance(error, TurnStoreError)
    assert copy.end is not None
    assert not copy.end.has_numbered_error
    wait_until(lambda: bool(warnings(caplog)))
    (line,) = warnings(caplog)
    assert line.startswith("Redis cannot be reached: ")
    assert pair.follower_proxy.address in line
    pair.follower_proxy.heal()
    turn.append()

    def is_found() -> bool:
        try:
            found = pair.follower.find("session")
        except TurnStoreError:
            return False
        return found is not None and found.last == 2

    wait_until(is_found)


@contextmanager
def two_masters(folder: Path) -> Generator[tuple[RedisServer, RedisServer, Stalling], None, None]:
    """Run two servers; also yield an address that leads to the first."""
    (folder / "old").mkdir()
    (folder / "new").mkdir()
    with (
        redis_server(folder / "old") as old,
        redis_server(folder / "new") as new,
        Stalling(old.port) as address,
    ):
        yield old, new, address


@pytest.mark.parametrize("has_own_client", [True, False])
def test_store_leaves_a_demoted_master(
    tmp_path: Path, has_own_client: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        two_masters(tmp_path) as (old, new, address),
        Redis.from_url(f"redis://{address.address}") as client,
        Redis.from_url(f"redis://{address.address}") as another_client,
    ):
        made = [
            RedisTurnStore(each, lease_seconds=LEASE_SECONDS)
            if has_own_client
            else RedisTurnStore.from_url(f"redis://{address.address}", lease_seconds=LEASE_SECONDS)
            for each in (client, another_client)
        ]
        with closing(made[0]) as store, closing(made[1]) as other:
            turn = Turn()
            assert store.claim("session", turn.log, refuse=True) is None
            turn.append()
            copy = other.find("session")
            assert copy is not None
            wait_for_events(copy, 1)
            address.port = new.port
            with old.client() as admin, new.client() as promoted:
                admin.replicaof("127.0.0.1", str(new.port))
                wait_until(lambda: promoted.get(b"flux0:none") is None)
                turn.append()
                wait_for_events(copy, 2)
                # Requests to stop a turn are sent to the new master.
                wait_until(lambda: promoted.pubsub_numsub("flux0:process:all")[0][1] == 2)
                started = Turn("second")
                assert store.claim("session 2", started.log, refuse=True) is None
                assert promoted.exists("flux0:{session%202}")
                turn.log.finish(LogEnd())
                started.log.finish(LogEnd())
                assert error_of(copy) is None
                admin.replicaof("NO", "ONE")
        lines = [line for line in warnings(caplog) if line.startswith("Redis cannot be reached")]
        assert all(address.address in line for line in lines)


def test_join_leaves_a_demoted_master_although_the_process_has_no_turn(tmp_path: Path) -> None:
    with (
        two_masters(tmp_path) as (old, new, address),
        closing(RedisTurnStore.from_url(old.url, lease_seconds=LEASE_SECONDS)) as reader,
        closing(RedisTurnStore.from_url(f"redis://{address.address}")) as other,
        old.client() as admin,
    ):
        turn = Turn()
        assert reader.claim("session", turn.log, refuse=True) is None
        assert other.find("unknown") is None
        address.port = new.port
        admin.config_set("slave-read-only", "yes")
        admin.replicaof("127.0.0.1", str(new.port))
        with pytest.raises(TurnStoreError, match="ReadOnlyError"):
            other.find("session")
        admin.replicaof("NO", "ONE")
        assert other.find("session") is None  # The new master has no data.
        turn.log.finish(LogEnd())


def test_process_without_turns_leaves_a_master_that_is_demoted_later_than_its_address_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first new connection still leads to the demoted master."""
    caplog.set_level("INFO", "flux0")
    with (
        two_masters(tmp_path) as (old, new, address),
        Redis.from_url(f"redis://{address.address}") as client,
        closing(RedisTurnStore(client, lease_seconds=LEASE_SECONDS)) as store,
        old.client() as admin,
    ):
        assert store.find("session") is None
        admin.replicaof("127.0.0.1", str(new.port))
        turn = Turn()
        with pytest.raises(TurnStoreError, match="ReadOnlyError"):
            store.claim("session", turn.log, refuse=True)
        failures = store.state().failures
        wait_until(lambda: store.state().failures > failures + 1)
        assert not store.state().is_available
        address.port = new.port
        wait_until(lambda: store.state().is_available)
        assert store.claim("session", turn.log, refuse=True) is None
        turn.log.finish(LogEnd())
        admin.replicaof("NO", "ONE")
    assert "can be reached again" not in caplog.text  # No WARNING was logged before.


def test_info_that_redis_can_be_reached_is_logged_only_if_it_can(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flux0")
    _, copy = pair.start()
    pair.follower_proxy.stall(new=True)
    assert isinstance(error_of(copy), TurnStoreError)
    wait_until(lambda: bool(warnings(caplog)))
    del copy
    gc.collect()
    failures = pair.follower.state().failures
    wait_until(lambda: pair.follower.state().failures > failures + 1)
    assert "can be reached again" not in caplog.text
    assert not pair.follower.state().is_available
    pair.follower_proxy.heal()
    wait_until(lambda: "can be reached again" in caplog.text)
    assert pair.follower.state().is_available


def test_renewal_that_fails_is_counted_once(tmp_path: Path) -> None:
    with (
        redis_server(tmp_path) as server,
        closing(RedisTurnStore.from_url(server.url, lease_seconds=60.0)) as store,
    ):
        assert store.find("session") is None
        server.stop()
        with pytest.raises(TurnStoreError):
            store.claim("session", Turn().log, refuse=True)
        assert store.state().failures == 1
        server.start()
        assert store.find("session") is None
        with server.client() as client:
            client.config_set("maxmemory", 1)
            with pytest.raises(TurnStoreError, match="OutOfMemoryError"):
                store.claim("session", Turn().log, refuse=True)
            client.config_set("maxmemory", 0)
        assert store.state().failures == 2


def test_turn_without_news_is_read_and_its_process_is_asked_once_in_each_lease(pair: Pair) -> None:
    _, copy = pair.start()
    with pair.server.client() as client:
        moments: list[float] = []
        # The first questions are sent because the subscription has just connected.
        while len(moments) < 6:
            before = calls_of(client, "publish")
            wait_until(partial(has_calls, client, "publish", before + 1))
            moments.append(monotonic())
    assert moments[-1] - moments[-3] > 1.9 * LEASE_SECONDS
    assert not copy.is_ended


def test_ended_turn_in_an_older_snapshot_ends_although_its_process_does_not_hear_the_question(
    pair: Pair,
) -> None:
    """Redis counts a listener whose connection is half-open."""
    turn, copy = pair.start()
    with pair.server.client() as client:
        wait_until(lambda: client.hget(KEY, "last") == b"1")
        dumps = {key: client.dump(key) for key in (KEY, f"{KEY}:log", "flux0:{session}")}
        turn.log.finish(LogEnd(finished=True))
        wait_until(lambda: bool(client.hexists(KEY, "end")))
        assert wait_for_end(copy, TIMEOUT)
        del copy
        other = Turn("another turn")  # The lease of the process is renewed.
        assert pair.reader.claim("another session", other.log, refuse=True) is None
        pair.reader_proxy.stall("subscription")
        for key, dump in dumps.items():
            client.restore(key, 60_000, dump or b"", replace=True)
        found = pair.follower.find("session")
        assert found is not None
        assert isinstance(error_of(found), ReaderLost)
        assert pair.follower.claim("session", Turn("next").log, refuse=True) is None
        other.log.finish(LogEnd())


def test_turn_that_was_lost_for_others_is_complete_when_its_process_reaches_redis_again(
    pair: Pair,
) -> None:
    turn, copy = pair.start()
    pair.reader_proxy.stall(new=True)
    turn.append()
    assert isinstance(error_of(copy), ReaderLost)
    assert copy.end is not None
    assert not copy.end.has_numbered_error  # A browser that reconnects gets event 2.
    turn.append()
    turn.log.finish(LogEnd(finished=True))
    pair.reader_proxy.heal()

    def is_complete(store: RedisTurnStore) -> bool:
        found = store.find("session")
        return found is not None and found.end == LogEnd(finished=True) and found.last == 3

    wait_until(lambda: is_complete(pair.follower))
    assert is_complete(pair.reader)


def test_readers_of_a_lost_turn_share_one_copy_until_the_turn_continues(pair: Pair) -> None:
    turn, copy = pair.start()
    pair.reader_proxy.stall(new=True)
    assert isinstance(error_of(copy), ReaderLost)
    with pair.server.client() as client:
        wait_until(lambda: bool(client.hget(KEY, "lost")))
    assert pair.follower.find("session") is copy
    pair.reader_proxy.heal()
    turn.append()

    def continues() -> bool:
        found = pair.follower.find("session")
        return found is not None and found is not copy and not found.is_ended and found.last == 2

    wait_until(continues)
    turn.log.finish(LogEnd(finished=True))


@pytest.mark.parametrize("key", [KEY, f"{KEY}:log"])
def test_wrong_value_of_one_turn_is_logged_once_in_both_processes_until_it_recovers(
    pair: Pair, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flux0")
    turn, copy = pair.start()
    with pair.server.client() as client:
        wait_until(lambda: client.hget(KEY, "last") == b"1")
        client.set(key, "another program", ex=60)
        turn.append()
        wait_until(lambda: any("cannot be stored" in line for line in warnings(caplog)))
        assert isinstance(error_of(copy), TurnStoreError)
        assert pair.reader.state().is_available
        lines = warnings(caplog)
        assert len({line.partition(":")[0] for line in lines}) == len(lines) == 2
        assert all("session=session turn=turn" in line and "WRONGTYPE" in line for line in lines)
        client.delete(key)
        wait_until(lambda: "can be stored in Redis again" in caplog.text)
    found = pair.follower.find("session")
    assert found is not None
    wait_for_events(found, 2)
    turn.log.finish(LogEnd())


def test_copy_without_readers_is_not_read_again_if_its_turn_has_a_wrong_value(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        closing(RedisTurnStore.from_url(server.url)) as reader,
        server.client() as client,
    ):
        turn = Turn()
        assert reader.claim("session", turn.log, refuse=True) is None
        before = set(threading.enumerate())
        store = RedisTurnStore.from_url(server.url, lease_seconds=LEASE_SECONDS)
        copy = store.find("session")
        started = set(threading.enumerate()) - before
        client.delete(KEY)
        client.set(KEY, "another program", ex=60)
        del copy, store
        gc.collect()
        wait_until(lambda: not any(each.is_alive() for each in started))
        turn.log.finish(LogEnd())
    assert "cannot be read" not in caplog.text


def test_wrong_value_of_one_turn_does_not_delay_other_turns(calm_pair: Pair) -> None:
    turn, _ = calm_pair.start()
    other = Turn("other")
    assert calm_pair.reader.claim("other session", other.log, refuse=True) is None
    copy = calm_pair.follower.find("other session")
    assert copy is not None
    with calm_pair.server.client() as client:
        client.delete(KEY)
        client.set(KEY, "another program", ex=60)
    turn.append()
    for number in range(1, 20):
        other.append()
        wait_for_events(copy, number)
    turn.log.finish(LogEnd())
    other.log.finish(LogEnd())


def kinds_of_api_errors() -> list[type[APIError]]:
    return [APIError, *APIError.__subclasses__()]


@pytest.mark.parametrize("kind", kinds_of_api_errors())
def test_api_error_keeps_its_class_in_other_processes(
    calm_pair: Pair, kind: type[APIError]
) -> None:
    turn, copy = calm_pair.start()
    error = kind("no such session", status_code=404, body="{}", headers=Headers((("a", "b"),)))
    turn.log.finish(LogEnd(error))
    received = error_of(copy)
    assert type(received) is kind
    assert isinstance(received, APIError)
    assert (str(received), received.status_code) == (str(error), 404)
    assert (received.sent, received.body, dict(received.headers)) == (error.sent, "{}", {})


def lose_all(client: Redis) -> None:
    client.flushall()


def evict_turn(client: Redis) -> None:
    client.delete(KEY, f"{KEY}:log")


def evict_lease(client: Redis) -> None:
    client.delete(client.hget(KEY, "process") or b"")


@pytest.mark.parametrize("lose", [lose_all, evict_turn, evict_lease])
def test_relay_continues_after_redis_lost_data(
    calm_pair: Pair, lose: Callable[[Redis], None]
) -> None:
    turn, copy = calm_pair.start()
    with calm_pair.server.client() as client:
        lose(client)
    turn.append()
    wait_for_events(copy, 2)
    turn.log.finish(LogEnd(finished=True))
    assert error_of(copy) is None
    assert b"".join(copy.read(0)) == turn_bytes("turn", 2)


def test_dead_process_blocks_a_session_no_longer_than_a_lease_if_the_clock_of_redis_was_set_back(
    pair: Pair,
) -> None:
    """After the clock was set back by an hour, each key expires an hour later."""
    pair.start()
    with pair.server.client() as client:
        process = client.hget(KEY, "process")
        assert process is not None
        pair.reader_proxy.stall(new=True)
        wait_until(lambda: not client.exists(process))
        client.set(process, 1, ex=3600)
    second = Turn("second")

    def is_claimed() -> bool:
        try:
            pair.follower.claim("session", second.log, refuse=True)
        except TurnRunning:
            return False
        return True

    wait_until(is_claimed)
    second.log.finish(LogEnd())


def test_generations_increase_although_the_clock_of_redis_was_set_back(calm_pair: Pair) -> None:
    turn, _ = calm_pair.start()
    turn.log.finish(LogEnd())
    with calm_pair.server.client() as client:
        wait_until(lambda: bool(client.hexists(KEY, "end")))
        future = 5 * 10**15
        client.hset("flux0:{session}", "generation", future)
        second = Turn("second")
        assert calm_pair.reader.claim("session", second.log, refuse=True) is None
        assert int(client.hget("flux0:{session}", "generation") or 0) == future + 1
    second.log.finish(LogEnd())


def test_copies_of_a_suspended_process_continue_if_redis_responded_meanwhile(
    server: RedisServer,
) -> None:
    """The process is suspended while one of its commands waits for a reply."""
    options = {"lease_seconds": LEASE_SECONDS}
    with (
        closing(RedisTurnStore.from_url(server.url, lease_seconds=60.0)) as store,
        Stalling(server.port) as proxy,
        turn_processes(1, f"redis://{proxy.address}", **options) as (process,),
    ):
        turn = Turn()
        assert store.claim("session", turn.log, refuse=True) is None
        turn.append()
        process.call(Turns.relay, "session", 1)
        process.call(Turns.wait_for_events, "turn", 1)
        server.pause()  # The renewal of the lease waits for a reply.
        try:
            Event().wait(LEASE_SECONDS / 2)
            process.send_signal(signal.SIGSTOP)
        finally:
            server.resume()
        Event().wait(2 * LEASE_SECONDS)
        process.send_signal(signal.SIGCONT)
        turn.append()
        process.call(Turns.wait_for_events, "turn", 2)
        turn.log.finish(LogEnd(finished=True))
        assert process.call(Turns.relayed, "session") == {turn_bytes("turn", 2): 1}


def test_turn_of_a_suspended_process_continues_for_others_when_the_process_continues(
    server: RedisServer,
) -> None:
    with (
        closing(RedisTurnStore.from_url(server.url, lease_seconds=LEASE_SECONDS)) as other,
        turn_processes(1, server.url, lease_seconds=LEASE_SECONDS) as (process,),
    ):
        process.call(Turns.claim, "session", "turn")
        process.call(Turns.append, "turn", 1)
        copy = other.find("session")
        assert copy is not None
        wait_for_events(copy, 1)
        process.send_signal(signal.SIGSTOP)
        try:
            assert isinstance(error_of(copy), ReaderLost)
        finally:
            process.send_signal(signal.SIGCONT)
        process.call(Turns.append, "turn", 1)

        def continues() -> bool:
            found = other.find("session")
            return found is not None and not found.is_ended and found.last == 2

        wait_until(continues)
        process.call(Turns.finish, "turn")


@frozen
class ClusterPair:
    """Two stores whose leases are on the first node of a cluster, and a node that may be lost."""

    first: RedisServer
    lost: RedisServer
    client: RedisCluster
    store: RedisTurnStore
    other: RedisTurnStore


@contextmanager
def cluster_pair(folder: Path, lease_seconds: float) -> Generator[ClusterPair, None, None]:
    with redis_cluster(folder, "--cluster-require-full-coverage", "no") as servers:
        first, lost, _ = servers
        clients = [cluster_client(first.port, RedisCluster) for _ in range(2)]
        stores = [store_with_lease_at(first.port, client, lease_seconds) for client in clients]
        with closing(stores[0]) as store, closing(stores[1]) as other:
            yield ClusterPair(first, lost, clients[0], store, other)
        for client in clients:
            client.close()


def warns_of_an_unreadable_turn(caplog: pytest.LogCaptureFixture) -> bool:
    problem = "a background turn of another process cannot be read"
    return any(problem in line for line in warnings(caplog))


@needs(REDIS)
def test_lost_node_of_a_cluster_ends_only_the_copies_of_its_sessions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with cluster_pair(tmp_path, 2.0) as pair:
        first, lost, client, store, other = (
            pair.first,
            pair.lost,
            pair.client,
            pair.store,
            pair.other,
        )
        turns: dict[int, list[Turn]] = {first.port: [], lost.port: []}
        for number in range(30):
            session = f"session-{number}"
            key = Settings("flux0:", 300.0, 5.0).name(session, "").session
            port = port_of(key, client)
            if port in turns and len(turns[port]) < 2:
                turns[port].append(Turn(session))
        copies: dict[str, TurnLog] = {}
        for turn in turns[first.port] + turns[lost.port]:
            session = turn.log.turn_id
            assert store.claim(session, turn.log, refuse=True) is None
            turn.append()
            found = other.find(session)
            assert found is not None
            wait_for_events(found, 1)
            copies[session] = found
        lost.stop()
        for turn in turns[lost.port]:
            assert isinstance(error_of(copies[turn.log.turn_id]), TurnStoreError)
            turn.log.finish(LogEnd())
        for turn in turns[first.port]:
            turn.append()
            copy = copies[turn.log.turn_id]
            wait_for_events(copy, 2)
            turn.log.finish(LogEnd(finished=True))
            assert error_of(copy) is None
        assert [len(each) for each in turns.values()] == [2, 2]
    starts = sorted(line.partition(":")[0] for line in warnings(caplog))
    assert starts == [
        "a background turn of another process cannot be read from Redis",
        "a background turn of this process cannot be stored in Redis",
    ]


@needs(REDIS)
def test_lost_node_of_a_cluster_is_logged_although_no_other_command_is_sent_at_the_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with cluster_pair(tmp_path, 120.0) as pair:
        names = (Settings("flux0:", 300.0, 5.0).name(f"{number}", "turn") for number in range(1000))
        name = next(name for name in names if port_of(name.session, pair.client) == pair.lost.port)
        session = name.session[len("flux0:{") : -1]
        turn = Turn()
        assert pair.store.claim(session, turn.log, refuse=True) is None
        copy = pair.other.find(session)
        everyone = "flux0:process:all"
        with pair.first.client() as client:
            wait_until(lambda: client.pubsub_numsub(everyone)[0][1] == 2)
            pair.lost.stop()
            client.publish(everyone, name.info)
        wait_until(lambda: len(warnings(caplog)) == 2)
        assert copy is not None
        assert not copy.is_ended
        turn.log.finish(LogEnd())
    assert warns_of_an_unreadable_turn(caplog)


class CountingCluster(RedisCluster):
    """Counts the pipelines of commands."""

    pipelines = 0

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> Any:
        self.pipelines += 1
        parent: Any = super()  # It has incomplete types.
        return parent.pipeline(transaction, shard_hint)


@needs(REDIS)
def test_lost_node_of_a_cluster_is_tried_once_in_each_attempt(tmp_path: Path) -> None:
    """A node that does not respond delays the commands for other nodes by one timeout."""
    options = "--cluster-require-full-coverage", "no"
    with (
        redis_cluster(tmp_path, *options) as (first, lost, _),
        closing(cluster_client(first.port, CountingCluster)) as client,
    ):
        keys = {port_of(f"key-{number}", client): f"key-{number}" for number in range(100)}
        # Other timers of the worker would also send commands.
        jobs = Worker(client, Settings("flux0:", 300.0, 60.0))
        thread = threading.Thread(target=jobs.run)
        thread.start()
        assert jobs.call(script_at(keys[first.port])) == 1
        lost.stop()
        counts: list[int] = []
        for _ in range(3):
            before = client.pipelines
            with pytest.raises(TurnStoreError):
                jobs.call(script_at(keys[lost.port]))
            counts.append(client.pipelines - before)
            assert jobs.call(published(keys[first.port])) == 0
            assert jobs.call(script_at(keys[first.port])) == 1
            assert cast("Any", client).get_default_node().port != lost.port
        jobs.stop()
        thread.join(TIMEOUT)
    assert counts[1:] == [1, 1]


class PartlyLost:
    """A client of a cluster whose node `lost` does not reply to the first pipeline.

    redis-py raises the error of the node for the whole pipeline, or returns it as the reply to the
    commands for this node, depending on the moment.

    Attributes:
        sent: The keys of each pipeline.
    """

    def __init__(self) -> None:
        self.sent: list[list[str]] = []

    def pipeline(self, transaction: bool) -> PartlyLost:
        assert not transaction
        self.sent.append([])
        return self

    def execute_command(self, _: str, key: str) -> None:
        self.sent[-1].append(key)

    def execute(self, raise_on_error: bool) -> list[object]:
        assert not raise_on_error
        error = redis.ConnectionError("the node is lost")
        is_lost = len(self.sent) == 1
        return [error if is_lost and key == "lost" else 1 for key in self.sent[-1]]

    def get_node_from_key(self, key: str) -> str:
        return key

    def replace_default_node(self, node: object) -> None:
        pass


def test_commands_are_sent_node_by_node_after_a_node_has_not_replied() -> None:
    client = PartlyLost()
    jobs = Worker(cast("Any", client), Settings("flux0:", 300.0, LEASE_SECONDS))

    def ask(key: str) -> Steps[None]:
        for _ in range(2):
            assert (yield "GET", key) == 1

    keys = ["first", "second", "lost"]
    for key in keys:
        jobs.submit(partial(ask, key))
    jobs.stop(when_idle=True)
    jobs.run()
    assert client.sent[0] == keys
    assert client.sent[1:3] == [["first"], ["second"]]
    assert [key for sent in client.sent for key in sent].count("lost") == 3


def script_at(key: str) -> Generator[Command, Any, int]:
    reply: int = yield run_script("return 1", (key,))
    return reply


def published(channel: str) -> Generator[Command, Any, int]:
    listeners: int = yield "PUBLISH", channel, ""
    return listeners


def store_with_lease_at(port: int, client: RedisCluster, lease_seconds: float) -> RedisTurnStore:
    """Return a store whose lease is on the node with this port."""
    stores = (RedisTurnStore(client, lease_seconds=lease_seconds) for _ in range(1000))
    return next(
        store for store in stores if port_of(store._process.get()._settings.process, client) == port
    )


C = TypeVar("C", bound=RedisCluster)


def cluster_client(port: int, kind: type[C]) -> C:
    cluster: Any = kind  # It has incomplete types.
    retry = Retry(NoBackoff(), 0)
    return cast("C", cluster(host="127.0.0.1", port=port, socket_timeout=1, retry=retry))


def port_of(key: str, client: Any) -> int:
    """Return the port of the node that has a key."""
    return int(client.get_node_from_key(key).port)
