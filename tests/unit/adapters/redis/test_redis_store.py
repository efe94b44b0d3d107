"""`RedisTurnStore`: its arguments, threads and connections, and failures of Redis."""

# redis has incomplete types.
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar, cast

import pytest
import redis
import redis.asyncio
from attrs import define, field, frozen
from opentelemetry import context
from redis import Redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.crc import key_slot
from redis.retry import Retry

from flux0 import BackgroundTurns, Flux0, RedisTurnStore, StoreState
from flux0.adapters.redis import followed, lease, outage, store as store_module, worker
from flux0.adapters.redis.commands import Settings, TurnName, as_text
from flux0.adapters.redis.followed import FollowedTurn
from flux0.adapters.redis.published import PublishedTurn
from flux0.adapters.redis.subscription import Subscription
from flux0.adapters.redis.worker import Steps, Worker
from flux0.domain.background_errors import (
    ReaderLost,
    TurnRunning,
    TurnStopped,
    TurnStoreError,
    TurnTooLarge,
)
from flux0.domain.errors import ClientClosed, InvalidArgument, MissingDependency
from flux0.runtime.turn_log import LogEnd, TurnLog
from flux0.testing import FakeTransport
from flux0.testing.contract.forking import forks_while_threads_run
from flux0.turns.log_relay import LogReader, wait_for_end
from support.ending import ends_soon
from support.forking import in_child
from support.garbage_collection import needs_gil, no_garbage_collection
from support.modes import run
from support.programs import REDIS, needs
from support.redis_server import (
    RedisServer,
    redis_server,
    redis_with_sentinel,
    redis_with_tls,
    wait_until,
)
from support.transports import ASYNC, Mode
from support.turn_processes import event, turn_bytes
from support.unreachable import unreachable_address

pytestmark = needs(REDIS)

T = TypeVar("T")

TIMEOUT = 20.0
LEASE_SECONDS = 1.0
with_short_lease = pytest.mark.parametrize("lease_seconds", [LEASE_SECONDS], indirect=True)
# A batch takes two of these events.
LARGE = [f"id: {number}\ndata: {'x' * 50_000}\n\n".encode() for number in range(1, 5)]


def nothing(*_: object) -> None:
    pass


class Interrupted(Redis):
    """Calls functions before it sends commands."""

    actions: list[Callable[[], object]] | None = None

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Pipeline:
        if self.actions:
            self.actions.pop(0)()
        return super().pipeline(transaction, shard_hint)


@contextmanager
def interrupted_store(
    server: RedisServer,
) -> Generator[tuple[Interrupted, RedisTurnStore, Redis], None, None]:
    """Yield an `Interrupted` client, a store that uses it, and another client."""
    with (
        Interrupted(port=server.port) as client,
        closing(RedisTurnStore(client)) as store,
        server.client() as admin,
    ):
        yield client, store, admin


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def server(shared: RedisServer) -> Iterator[RedisServer]:
    """The server without data. After the test, each key expires sooner or later."""
    with shared.client() as client:
        client.flushall()
    yield shared
    shared.check_expiry()


@pytest.fixture
def lease_seconds(request: pytest.FixtureRequest) -> float:
    """The lease is long, unless a test needs a short lease: a busy machine may delay a renewal."""
    seconds: float = getattr(request, "param", 5.0)
    return seconds


@pytest.fixture
def store(server: RedisServer, lease_seconds: float) -> Iterator[RedisTurnStore]:
    made = RedisTurnStore.from_url(server.url, lease_seconds=lease_seconds)
    yield made
    made.close()


@pytest.fixture
def other(server: RedisServer, lease_seconds: float) -> Iterator[RedisTurnStore]:
    made = RedisTurnStore.from_url(server.url, lease_seconds=lease_seconds)
    yield made
    made.close()


def new_log(turn_id: str = "turn") -> TurnLog:
    return TurnLog(turn_id, 10**6, lambda _: None)


def claimed(store: RedisTurnStore, session_id: str = "session", turn_id: str = "turn") -> TurnLog:
    log = new_log(turn_id)
    assert store.claim(session_id, log, refuse=True) is None
    return log


class GrowingLog(TurnLog):
    """Another thread adds an event after each step of the worker, up to a number of events."""

    limit = 0

    def on_change(self, wake: Callable[[], object]) -> Callable[[], object]:
        cancel = super().on_change(wake)
        self._grow()
        return cancel

    def read(self, after: int) -> Sequence[bytes]:
        events = super().read(after)
        self._grow()
        return events

    def _grow(self) -> None:
        if self.last < self.limit:
            self.append(event("turn", self.last + 1))


def without_timeout(server: RedisServer) -> Redis:
    return Redis(port=server.port, socket_timeout=None, retry=Retry(NoBackoff(), 0))


def wait_for_listeners(client: Any, count: int) -> None:
    """Wait until the listeners of all stores have connected."""
    wait_until(lambda: client.pubsub_numsub("flux0:process:all")[0][1] == count)


def copied_by(client: Redis) -> str:
    """Return the channel of the process that follows the turn."""
    (follower,) = followers(client)
    return follower


def followers(client: Redis) -> list[str]:
    fields = cast("dict[bytes, bytes]", client.hgetall("flux0:{session}:turn"))
    return [field[1:].decode() for field in fields if field.startswith(b"@")]


def wait_for_events(log: TurnLog, count: int) -> None:
    while log.last < count and not log.is_ended:
        assert LogReader(log, log.last).wait(TIMEOUT)
    assert log.last >= count


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("flux0-redis")}


@pytest.mark.parametrize(
    ("client", "problem"),
    [
        ("redis://127.0.0.1", "is a str: call RedisTurnStore.from_url(url)"),
        (Redis, "is the class Redis: pass Redis()"),
        (redis.asyncio.Redis(), "is an async Redis: pass a sync client, such as redis.Redis"),
        (object(), "must be a sync client, such as redis.Redis, not object"),
    ],
)
def test_other_clients_are_rejected(client: Any, problem: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        RedisTurnStore(client)
    assert raised.value.argument == "client"
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"prefix": 1}, "prefix must be a str, not int"),
        ({"keep_seconds": 0}, "keep_seconds must be at least 1, not 0"),
        ({"lease_seconds": 0.01}, "lease_seconds must be at least 0.1, not 0.01"),
        ({"lease_seconds": "5"}, "lease_seconds must be a number"),
    ],
)
def test_invalid_options_are_rejected(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        RedisTurnStore.from_url("redis://127.0.0.1", **options)
    with Redis() as client, pytest.raises(InvalidArgument, match=problem):
        RedisTurnStore(client, **options)


@pytest.mark.parametrize("url", ["127.0.0.1:6379", "redis://127.0.0.1:secret", "http://a", "", 1])
def test_invalid_url_is_rejected_without_showing_it(url: Any) -> None:
    with pytest.raises(InvalidArgument) as raised:
        RedisTurnStore.from_url(url)
    assert raised.value.argument == "url"
    assert "secret" not in str(raised.value)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(MissingDependency) as raised:
        RedisTurnStore.from_url("redis://127.0.0.1")
    assert str(raised.value).endswith("needs the package redis: pip install 'flux0-client[redis]'")


def test_message_is_not_sent_if_redis_cannot_be_reached(tmp_path: Path) -> None:
    fake = FakeTransport("Hi")
    with redis_server(tmp_path) as server, Flux0(transport=fake) as client:
        turns = BackgroundTurns(RedisTurnStore.from_url(server.url))
        conversation = client.conversation(agent=client.agents.first())
        server.stop()
        with pytest.raises(TurnStoreError) as raised:
            turns.start(conversation, "Hello")
        assert raised.value.sent == "no"
        assert isinstance(raised.value.__cause__, redis.ConnectionError)
        assert not client.sessions.list_events(session_id=conversation.session_id)
        turns.close()


def test_claim_that_redis_receives_too_late_is_undone(tmp_path: Path) -> None:
    with (
        redis_server(tmp_path) as server,
        Interrupted(port=server.port, socket_timeout=2.0, retry=Retry(NoBackoff(), 0)) as client,
        closing(RedisTurnStore.from_url(server.url)) as store,
        closing(RedisTurnStore(client, lease_seconds=LEASE_SECONDS)) as other,
        server.client() as admin,
    ):
        log = claimed(store)
        log.finish(LogEnd())
        wait_until(lambda: bool(admin.hexists("flux0:{session}:turn", "end")))
        late = new_log("late")
        # The claim is sent after the permission, the lease, and the present turn's id.
        client.actions = [nothing, nothing, nothing, server.pause]
        with pytest.raises(TurnStoreError):
            other.claim("session", late, refuse=False)
        late.finish(LogEnd())
        other.release("session", late, None)
        server.resume()

        wait_until(lambda: bool(admin.exists("flux0:{session}:late")))
        wait_until(lambda: admin.hget("flux0:{session}", "turn") == b"turn")


def test_claim_whose_caller_was_cancelled_leaves_no_turn(
    server: RedisServer, other: RedisTurnStore
) -> None:
    log = new_log()
    with interrupted_store(server) as (client, store, admin):

        def cancel() -> None:
            log.finish(LogEnd())
            store.release("session", log, None)

        # The claim is sent after the permission, the lease, and the present turn's id.
        client.actions = [nothing, nothing, nothing, cancel]
        assert store.claim("session", log, refuse=True) is None
        wait_until(lambda: bool(admin.hexists("flux0:{session}:turn", "end")))
        wait_until(lambda: other.find("session") is None)


def test_release_is_repeated_only_while_the_turn_would_be_kept(tmp_path: Path) -> None:
    before = threads()
    with redis_server(tmp_path) as server:
        store = RedisTurnStore.from_url(server.url, lease_seconds=LEASE_SECONDS, keep_seconds=1)
        server.stop()
        log = new_log()
        with pytest.raises(TurnStoreError):
            store.claim("session", log, refuse=True)
        log.finish(LogEnd())
        store.release("session", log, None)
        started = threads() - before
        del store
        gc.collect()
        wait_until(lambda: not any(thread.is_alive() for thread in started))


def test_running_turn_of_the_process_is_known_although_redis_has_lost_its_data(
    server: RedisServer, store: RedisTurnStore
) -> None:
    log = claimed(store)
    with server.client() as client:
        process = as_text(client.hget("flux0:{session}", "process"))
        wait_until(lambda: client.get(process) == b"2")  # The process has published the turn.
        client.flushall()
    with pytest.raises(TurnRunning):
        store.claim("session", new_log("turn-2"), refuse=True)
    newer = new_log("turn-2")
    assert store.claim("session", newer, refuse=False) is log
    assert store.find("session") is newer


def test_ended_turn_of_the_process_is_found_with_its_own_log(store: RedisTurnStore) -> None:
    """Redis names the session's last turn, and the process needs no copy of its own turn.

    Some milliseconds later, the end is stored, and the process no longer keeps its own log. A busy
    machine may need more time for one attempt.
    """

    def finds_own_log(number: int) -> bool:
        log = claimed(store, f"session {number}", f"turn {number}")
        log.finish(LogEnd())
        found = store.find(f"session {number}")
        assert found is not None
        assert found.is_ended
        return found is log

    assert any(map(finds_own_log, range(50)))


def test_reply_for_a_copy_that_is_no_longer_referenced_is_ignored() -> None:
    log = new_log()
    with Redis() as client:
        jobs = Worker(client, Settings("flux0:", 60, 5))
        turn = followed_turn(log, jobs)
    del log
    assert turn.update(None)


class Accepting:
    """A lease that Redis accepts."""

    def is_accepted(self) -> Steps[bool]:
        yield from ()
        return True


def followed_turn(log: TurnLog, jobs: Worker) -> FollowedTurn:
    name = jobs.settings.name("session", log.turn_id)
    return FollowedTurn(name, log, jobs, Accepting(), {})


class Turn:
    """A turn, and the reasons for which it was asked to stop. It ends at the first reason."""

    def __init__(self, turn_id: str) -> None:
        self.reasons: list[str] = []
        self.log = TurnLog(turn_id, 10**6, self._stop)

    def _stop(self, reason: str) -> None:
        self.reasons.append(reason)
        self.log.finish(LogEnd(TurnStopped(reason)))


REPLACED = "another message was sent on the session while Redis had lost this turn"


def save(client: Any) -> Callable[[], None]:
    """Return a function that replaces the data of Redis at once by the present data."""
    dumps = {key: (client.pttl(key), client.dump(key)) for key in client.scan_iter()}

    def load() -> None:
        with client.pipeline() as transaction:
            transaction.flushall()
            for key, (ttl, dump) in dumps.items():
                transaction.restore(key, ttl, dump)
            transaction.execute()

    return load


@pytest.mark.parametrize("loss", ["empty", "older turn", "session evicted", "turn evicted"])
def test_turn_is_stopped_if_another_turn_was_started_while_redis_had_lost_it(
    server: RedisServer, loss: str
) -> None:
    """The lease is long, so that the process does not restore the turn before the second claim."""
    first, second = Turn("first"), Turn("second")
    with (
        server.client() as client,
        closing(RedisTurnStore.from_url(server.url, lease_seconds=60.0)) as store,
        closing(RedisTurnStore.from_url(server.url, lease_seconds=60.0)) as other,
    ):
        older = claimed(store, turn_id="older")
        older.append(event("older", 1))
        older.finish(LogEnd())
        wait_until(lambda: bool(client.hexists("flux0:{session}:older", "end")))
        load = save(client)
        # An event that is appended after the claim can be sent twice, and thus restore the turn.
        first.log.append(event("first", 1))
        assert store.claim("session", first.log, refuse=True) is None
        wait_until(lambda: client.hget("flux0:{session}:first", "last") == b"1")
        process = as_text(client.hget("flux0:{session}", "process"))
        wait_until(lambda: client.get(process) == b"4")  # The next renewal is in 12 s.
        if loss == "empty":
            client.flushall()
        elif loss == "older turn":
            load()
        else:
            client.delete(
                "flux0:{session}" if loss == "session evicted" else "flux0:{session}:first"
            )
        assert other.claim("session", second.log, refuse=False) is None
        first.log.append(event("first", 2))

        assert wait_for_end(first.log, TIMEOUT)
        assert first.reasons == [REPLACED]
        second.log.append(event("second", 1))
        wait_until(lambda: client.hget("flux0:{session}:second", "last") == b"1")
        assert second.reasons == []
        found = store.find("session")
        assert found is not None
        assert found.turn_id == "second"


@pytest.mark.parametrize("loss", ["empty", "older turn", "session", "turn", "log", "lease"])
def test_running_turn_keeps_its_session_and_its_readers_if_redis_loses_data(
    server: RedisServer, store: RedisTurnStore, other: RedisTurnStore, loss: str
) -> None:
    turn = Turn("turn")
    with server.client() as client:
        older = claimed(store, turn_id="older")
        older.finish(LogEnd())
        wait_until(lambda: bool(client.hexists("flux0:{session}:older", "end")))
        load = save(client)
        store.claim("session", turn.log, refuse=False)
        turn.log.trace_parent = "span"
        turn.log.append(event("turn", 1))
        copy = other.find("session")
        assert copy is not None
        wait_for_events(copy, 1)
        if loss == "empty":
            client.flushall()
        elif loss == "older turn":
            load()
        else:
            turn_key = "flux0:{session}:turn"
            process = as_text(client.hget(turn_key, "process"))
            keys = {"session": "flux0:{session}", "turn": turn_key, "log": f"{turn_key}:log"}
            client.delete(keys.get(loss, process))
        turn.log.append(event("turn", 2))
        wait_for_events(copy, 2)
        with closing(RedisTurnStore.from_url(server.url)) as third:

            def is_found() -> bool:
                found = third.find("session")
                return found is not None and (found.turn_id, found.last) == ("turn", 2)

            wait_until(is_found)
            found = third.find("session")
            assert found is not None
            assert found.trace_parent == copy.trace_parent == "span"
        turn.log.finish(LogEnd(finished=True))
        assert wait_for_end(copy, TIMEOUT)
        assert copy.end == LogEnd(finished=True)
        assert b"".join(copy.read(0)) == turn_bytes("turn", 2)
        assert turn.reasons == []


@pytest.mark.parametrize("joins", ["the reading process", "another process", "both"])
def test_ended_turn_that_is_running_in_an_older_snapshot_ends_again(
    server: RedisServer,
    store: RedisTurnStore,
    other: RedisTurnStore,
    joins: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Without this interval, a process reads a turn before the turn ends, and must be notified.
    monkeypatch.setattr(worker, "_MIN_INTERVAL", 0.0)
    with server.client() as client:
        log = claimed(store)
        log.append(event("turn", 1))
        wait_until(lambda: client.hget("flux0:{session}:turn", "last") == b"1")
        load = save(client)
        log.finish(LogEnd())
        wait_until(lambda: bool(client.hexists("flux0:{session}:turn", "end")))
        claimed(store, "another session")  # So the lease of the process is renewed.
        wait_for_listeners(client, 1)
        load()
        stores = {"the reading process": [store], "another process": [other]}
        for each in stores.get(joins, [store, other]):
            found = each.find("session")
            assert found is not None
            assert list(found.read(0)) == [event("turn", 1)]
            assert wait_for_end(found, TIMEOUT)
            assert found.end is not None
            assert isinstance(found.end.error, ReaderLost)
            assert found.end.is_of_copy
        assert other.claim("session", new_log("next"), refuse=True) is None


class Late(Redis):
    """A client whose listener connects when `connects` is set."""

    connects: threading.Event

    def pubsub(self, **options: Any) -> Any:
        assert self.connects.wait(TIMEOUT)
        return super().pubsub(**options)  # type: ignore[no-untyped-call]


def calls_of(client: Redis, command: str) -> int:
    """Return the number of calls of a command since the start of the server."""
    commands: Any = client.info("commandstats")
    return cast("int", commands.get(f"cmdstat_{command}", {"calls": 0})["calls"])


publishes = partial(calls_of, command="publish")


def test_ended_turn_in_an_older_snapshot_ends_again_if_its_process_listens_too_late(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first question whether the turn is running gets lost."""
    monkeypatch.setattr(store_module, "Settings", quick)
    with (
        Late(port=server.port) as client,
        closing(RedisTurnStore(client, lease_seconds=60.0)) as store,
        closing(RedisTurnStore.from_url(server.url, lease_seconds=60.0)) as other,
    ):
        client.connects = threading.Event()
        log = claimed(store)
        wait_until(lambda: bool(client.exists("flux0:{session}:turn")))
        load = save(client)
        log.finish(LogEnd())
        wait_until(lambda: bool(client.hexists("flux0:{session}:turn", "end")))
        load()
        claimed(store, "another session")  # So the lease of the process is renewed.
        assert other.find("unknown session") is None
        published = publishes(client)
        copy = other.find("session")
        assert copy is not None
        wait_until(lambda: publishes(client) > published)
        assert not copy.is_ended
        client.connects.set()
        assert wait_for_end(copy, TIMEOUT)
        assert copy.end is not None
        assert isinstance(copy.end.error, ReaderLost)


def test_evicted_data_of_an_idle_turn_is_restored_when_its_follower_notices_the_loss(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reading process itself would notice the loss later: it renews its lease each 20 s."""
    with (
        server.client() as client,
        closing(RedisTurnStore.from_url(server.url, lease_seconds=60.0)) as store,
    ):
        log = claimed(store)
        wait_for_listeners(client, 1)
        monkeypatch.setattr(store_module, "Settings", quick)
        with closing(RedisTurnStore.from_url(server.url, lease_seconds=60.0)) as other:
            published = publishes(client)
            copy = other.find("session")
            assert copy is not None
            wait_for_listeners(client, 2)
            wait_until(lambda: publishes(client) > published + 1)
            # If the lease of the follower is evicted, too, the follower notices the loss.
            client.delete("flux0:{session}:turn", copied_by(client))
            wait_until(lambda: bool(client.exists("flux0:{session}:turn")))
            log.append(event("turn", 1))
            wait_for_events(copy, 1)
            log.finish(LogEnd())


def test_copy_that_is_unknown_in_an_older_snapshot_is_followed_again(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "Settings", quick)
    with (
        server.client() as client,
        closing(RedisTurnStore.from_url(server.url, lease_seconds=60.0)) as store,
        closing(RedisTurnStore.from_url(server.url, lease_seconds=60.0)) as other,
    ):
        log = claimed(store)
        log.append(event("turn", 1))
        wait_until(lambda: client.hget("flux0:{session}:turn", "last") == b"1")
        load = save(client)
        copy = other.find("session")
        assert copy is not None
        wait_until(lambda: bool(client.exists(copied_by(client))))
        load()
        log.append(event("turn", 2))
        wait_for_events(copy, 2)


def test_lost_data_of_an_idle_turn_is_restored(
    server: RedisServer, store: RedisTurnStore, other: RedisTurnStore
) -> None:
    log = claimed(store)
    log.append(event("turn", 1))
    with server.client() as client:
        wait_until(lambda: client.hget("flux0:{session}:turn", "last") == b"1")
        client.flushall()
        wait_until(lambda: other.find("session") is not None)
        copy = other.find("session")
        assert copy is not None
        wait_for_events(copy, 1)
        # A follower notices that events are missing, and asks the process for them.
        log.append(event("turn", 2))
        wait_for_events(copy, 2)
        with closing(RedisTurnStore.from_url(server.url)) as third:
            with client.pipeline() as transaction:
                transaction.delete("flux0:{session}:turn:log")
                transaction.execute()
            late = third.find("session")
            assert late is not None
            wait_for_events(late, 2)


@pytest.mark.parametrize("first_is_released_first", [True, False])
def test_two_claims_that_are_released_leave_no_turn(
    server: RedisServer, store: RedisTurnStore, other: RedisTurnStore, first_is_released_first: bool
) -> None:
    first, second = new_log("first"), new_log("second")
    assert store.claim("session", first, refuse=False) is None
    previous = other.claim("session", second, refuse=False)
    first.finish(LogEnd())
    second.finish(LogEnd())
    with server.client() as client:
        if first_is_released_first:
            store.release("session", first, None)
            wait_until(lambda: not client.hexists("flux0:{session}:first", "process"))
            other.release("session", second, previous)
        else:
            other.release("session", second, previous)
            wait_until(lambda: client.hget("flux0:{session}", "turn") == b"first")
            store.release("session", first, None)
        for turn_id in ("first", "second"):
            wait_until(partial(client.hexists, f"flux0:{{session}}:{turn_id}", "end"))
    wait_until(lambda: other.find("session") is None)


class CutOff(Redis):
    """A client that cannot reach Redis while `is_cut_off` is set."""

    is_cut_off = False
    on_cut_off: Callable[[], object] = staticmethod(nothing)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Pipeline:
        if self.is_cut_off:
            self.on_cut_off()
            raise redis.ConnectionError("no route to host")
        return super().pipeline(transaction, shard_hint)


def is_complete(store: RedisTurnStore, content: bytes) -> bool:
    found = store.find("session")
    assert found is not None
    return found.end == LogEnd(finished=True) and b"".join(found.read(0)) == content


@with_short_lease
@pytest.mark.parametrize("is_replaced", [True, False])
def test_turn_continues_or_is_replaced_after_its_process_was_cut_off_from_redis(
    server: RedisServer, other: RedisTurnStore, is_replaced: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    turn, second = Turn("turn"), Turn("second")
    with (
        CutOff(port=server.port) as client,
        closing(RedisTurnStore(client, lease_seconds=LEASE_SECONDS)) as store,
    ):
        store.claim("session", turn.log, refuse=True)
        turn.log.append(event("turn", 1))
        copy = other.find("session")
        assert copy is not None
        wait_for_events(copy, 1)
        client.is_cut_off = True
        turn.log.append(event("turn", 2))
        assert wait_for_end(copy, TIMEOUT)
        assert copy.end is not None
        # The turn continues in its own process, so the error has no number of an event.
        assert not copy.end.has_numbered_error
        assert isinstance(copy.end.error, ReaderLost)
        assert store.find("session") is turn.log
        assert not turn.reasons
        if is_replaced:
            assert other.claim("session", second.log, refuse=True) is None
        client.is_cut_off = False
        if is_replaced:
            assert wait_for_end(turn.log, TIMEOUT)
            assert turn.reasons == [REPLACED]
            assert not second.log.is_ended
            assert other.find("session") is second.log
        wait_until(lambda: "can be reached again" in caplog.text)
        if not is_replaced:
            turn.log.append(event("turn", 3))
            turn.log.finish(LogEnd(finished=True))
            # The readers in all processes find the complete turn.
            for each in (store, other):
                wait_until(partial(is_complete, each, turn_bytes("turn", 3)))
            assert not turn.reasons
    lines = [record.getMessage() for record in caplog.records if record.name == "flux0"]
    assert [line.partition(":")[0] for line in lines if "Redis can" in line[:9]] == [
        "Redis cannot be reached",
        "Redis can be reached again",
    ]
    assert len([line for line in lines if line.startswith("the process that read the turn")]) == 1


@with_short_lease
def test_copy_ends_if_redis_no_longer_has_its_events(
    server: RedisServer, store: RedisTurnStore, other: RedisTurnStore
) -> None:
    log = claimed(store)
    log.append(event("turn", 1))
    copy = other.find("session")
    assert copy is not None
    wait_for_events(copy, 1)
    with server.client() as client:
        client.hset("flux0:{session}:turn", "last", 2)
        client.publish(copied_by(client), "flux0:{session}:turn")
    assert wait_for_end(copy, TIMEOUT)
    assert copy.end is not None
    assert isinstance(copy.end.error, TurnStoreError)
    assert copy.end.error.sent == "maybe"
    with server.client() as client:
        client.hset("flux0:{session}:turn", "last", 1)
    found = other.find("session")
    assert found is not None
    assert found is not copy
    wait_for_events(found, 1)


def test_turn_whose_data_was_evicted_is_not_found(
    server: RedisServer, store: RedisTurnStore, other: RedisTurnStore
) -> None:
    log = claimed(store)
    log.finish(LogEnd())
    copy = other.find("session")
    assert copy is not None
    assert wait_for_end(copy, TIMEOUT)
    del copy
    with server.client() as client:
        client.delete("flux0:{session}:turn")
    wait_until(lambda: other.find("session") is None)


@with_short_lease
def test_invalid_data_in_redis_ends_the_copy(
    server: RedisServer, store: RedisTurnStore, other: RedisTurnStore
) -> None:
    claimed(store)
    copy = other.find("session")
    assert copy is not None
    with server.client() as client:
        client.hset("flux0:{session}:turn", "end", "not JSON")
        client.publish(copied_by(client), "flux0:{session}:turn")
    assert wait_for_end(copy, TIMEOUT)
    assert copy.end is not None
    assert isinstance(copy.end.error, TurnStoreError)


def all_events(log: TurnLog) -> list[bytes]:
    reader, events = LogReader(log), list[bytes]()
    while more := reader.read():
        events += more
    return events


def test_large_events_and_many_entries_arrive_complete(
    store: RedisTurnStore,
    other: RedisTurnStore,
    server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(followed, "_MAX_ENTRIES", 20)
    log = TurnLog("turn", 10**9, lambda _: None)
    store.claim("session", log, refuse=True)
    copy = other.find("session")
    assert copy is not None
    for number in range(1, 61):
        log.append(event("turn", number))
        wait_for_events(copy, number)  # The event has an entry of its own.
    large = [f"id: {number}\ndata: {'x' * 50_000}\n\n".encode() for number in range(61, 140)]
    log.append(*large)
    log.finish(LogEnd(finished=True))
    # If the events of an entry are missing, this store waits for 40 s.
    with (
        server.client() as client,
        closing(RedisTurnStore.from_url(server.url, lease_seconds=200.0)) as third,
    ):
        wait_until(lambda: bool(client.hexists("flux0:{session}:turn", "end")))
        late = third.find("session")
        assert late is not None
        for each in (copy, late):
            assert wait_for_end(each, TIMEOUT)
            assert b"".join(all_events(each)) == turn_bytes("turn", 60) + b"".join(large)


@pytest.mark.parametrize("loss", ["all data", "the turn without its log"])
def test_copy_keeps_its_events_if_redis_gets_them_again_in_other_batches(
    server: RedisServer, store: RedisTurnStore, other: RedisTurnStore, loss: str
) -> None:
    log = claimed(store)
    copy = other.find("session")
    assert copy is not None
    for number in (1, 2, 3):
        log.append(LARGE[number - 1])
        wait_for_events(copy, number)
    with server.client() as client:
        client.flushall() if loss == "all data" else client.delete("flux0:{session}:turn")
        log.append(LARGE[3])
        wait_for_events(copy, 4)
        # A large batch would delay other sessions.
        assert client.xlen("flux0:{session}:turn:log") > 1
    assert all_events(copy) == LARGE


def test_event_that_is_added_while_a_batch_is_created_does_not_wait_for_the_next_event(
    store: RedisTurnStore, other: RedisTurnStore
) -> None:

    class GrowingLog(TurnLog):
        def read(self, after: int) -> Sequence[bytes]:
            read = super().read(after)
            if after == 2 and self.last == 3:
                self.append(LARGE[3])
            return read

    log = GrowingLog("turn", 10**9, lambda _: None)
    # Without another event, the store sends the next command after a third of `keep_seconds`.
    store.claim("session", log, refuse=True)
    log.extend(1, LARGE[:3])
    copy = other.find("session")
    assert copy is not None
    wait_for_events(copy, 4)
    assert all_events(copy) == LARGE
    log.finish(LogEnd())


def test_two_calls_at_once_get_the_same_copy(server: RedisServer, store: RedisTurnStore) -> None:
    claimed(store)
    found: SimpleQueue[TurnLog | None] = SimpleQueue()
    with Interrupted(port=server.port) as client, closing(RedisTurnStore(client)) as other:

        def find_twice() -> None:
            for _ in range(2):
                threading.Thread(target=lambda: found.put(other.find("session"))).start()
            wait_until(lambda: other._process.get()._worker._inbox.qsize() == 2)

        client.actions = [find_twice]
        assert other.find("another session") is None
        copies = [found.get(timeout=TIMEOUT) for _ in range(2)]
        assert copies[0] is copies[1] is not None


def test_event_that_was_added_before_the_listener_has_connected_arrives(
    server: RedisServer, store: RedisTurnStore
) -> None:
    log = claimed(store)
    with (
        Late(port=server.port) as client,
        closing(RedisTurnStore(client, lease_seconds=200.0)) as other,
        server.client() as admin,
    ):
        client.connects = threading.Event()
        copy = other.find("session")
        assert copy is not None
        wait_until(lambda: bool(admin.exists(copied_by(admin))))  # The copy has been read again.
        log.append(event("turn", 1))
        wait_until(lambda: admin.hget("flux0:{session}:turn", "last") == b"1")
        client.connects.set()
        wait_for_events(copy, 1)


def test_copy_that_is_unreferenced_while_it_is_read_is_no_longer_followed(
    server: RedisServer, store: RedisTurnStore
) -> None:
    log = claimed(store)
    with interrupted_store(server) as (client, other, admin):
        copies = [other.find("session")]
        assert len(followers(admin)) == 1
        client.actions = [copies.clear]
        log.append(event("turn", 1))
        wait_until(lambda: not followers(admin))
        assert copies == []


def test_newer_copy_is_followed_after_the_older_copy_became_unreferenced(
    server: RedisServer, store: RedisTurnStore
) -> None:
    log = claimed(store)
    with interrupted_store(server) as (client, other, admin):
        copies = [other.find("session")]
        wait_until(lambda: bool(admin.exists(copied_by(admin))))
        client.actions = [copies.clear]
        copy = other.find("session")
        assert copies == []
        assert copy is not None
        for number in range(1, 6):
            log.append(event("turn", number))
            wait_for_events(copy, number)


@pytest.mark.parametrize("limit", range(1, 10))
def test_event_that_is_added_at_any_moment_wakes_the_worker(
    store: RedisTurnStore, other: RedisTurnStore, limit: int
) -> None:
    log = GrowingLog("turn", 10**6, lambda _: None)
    log.limit = limit
    store.claim("session", log, refuse=True)
    copy = other.find("session")
    assert copy is not None
    wait_for_events(copy, limit)
    log.finish(LogEnd())
    assert wait_for_end(copy, TIMEOUT)


def test_unreferenced_copy_is_no_longer_followed(
    server: RedisServer, store: RedisTurnStore, other: RedisTurnStore
) -> None:
    claimed(store)
    copy = other.find("session")
    with server.client() as client:
        assert len(followers(client)) == 1
        del copy
        gc.collect()
        wait_until(lambda: not followers(client))
    assert other.find("session") is not None


@with_short_lease
def test_unreferenced_copy_is_no_longer_followed_after_redis_could_not_be_reached(
    server: RedisServer, store: RedisTurnStore
) -> None:
    claimed(store)
    with (
        CutOff(port=server.port) as client,
        closing(RedisTurnStore(client, lease_seconds=LEASE_SECONDS)) as other,
        server.client() as admin,
    ):
        copies = [other.find("session")]
        attempts: list[None] = []
        running: list[int] = []

        def drop_copy() -> None:
            copies.clear()
            attempts.append(None)
            running.append(other.state().followed_turns)

        client.on_cut_off = drop_copy
        client.is_cut_off = True
        wait_until(lambda: len(attempts) >= 3)  # The second attempt tries to leave the turn.
        assert len(followers(admin)) == 1
        client.is_cut_off = False
        wait_until(lambda: not followers(admin))
        assert running == [0] * len(attempts)


@with_short_lease
@needs_gil
def test_copy_of_an_ended_turn_is_not_kept(
    server: RedisServer, store: RedisTurnStore, other: RedisTurnStore
) -> None:
    log = claimed(store)
    copies = [other.find("session")]
    log.finish(LogEnd(finished=True))
    assert copies[0] is not None
    assert wait_for_end(copies[0], TIMEOUT)
    copy = weakref.ref(copies[0])
    with server.client() as client:
        lease = copied_by(client)
        wait_until(lambda: not client.exists(lease))  # The process has no more work.
        with no_garbage_collection():
            copies.append(other.find("session"))
            assert copies[0] is copies[1]
            copies.clear()
            wait_until(lambda: copy() is None)
        wait_until(lambda: not followers(client))


class Watched(Redis):
    """Counts the calls of `close`."""

    closes = 0

    def close(self) -> None:
        self.closes += 1
        super().close()


def test_closing_ends_the_threads_and_connections_and_the_copies(server: RedisServer) -> None:
    before = threads()
    with Watched(port=server.port) as client:
        stores = [RedisTurnStore.from_url(server.url), RedisTurnStore(client)]
        log = claimed(stores[0])
        copy = stores[1].find("session")
        assert copy is not None
        started = threads() - before
        assert len(started) == 4
        log.append(event("turn", 1))
        log.finish(LogEnd(finished=True))
        with ends_soon():
            stores[0].close()
            stores[0].close()
        assert wait_for_end(copy, TIMEOUT)
        assert copy.end == LogEnd(finished=True)

        stores.append(RedisTurnStore(client))
        running = claimed(stores[2], turn_id="running")
        copy = stores[1].find("session")
        assert copy is not None
        with ends_soon():
            stores[1].close()
        assert copy.end is not None
        assert isinstance(copy.end.error, ClientClosed)
        running.finish(LogEnd())
        stores[2].close()
        wait_until(lambda: not any(thread.is_alive() for thread in started))
        with pytest.raises(TurnStoreError, match="is closed"):
            stores[1].find("session")
        assert client.closes == 0


def test_closing_ends_the_copies_while_redis_is_paused(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server, without_timeout(server) as client:
        store, other = (RedisTurnStore(client, lease_seconds=60.0) for _ in range(2))
        log = claimed(store)
        copy = other.find("session")
        assert copy is not None
        server.pause()
        closer = threading.Thread(target=other.close)
        closer.start()
        is_ended = wait_for_end(copy, TIMEOUT)
        server.resume()
        closer.join()
        assert is_ended
        assert copy.end is not None
        assert isinstance(copy.end.error, ClientClosed)
        log.finish(LogEnd())
        store.close()


def test_threads_and_connections_of_a_garbage_collected_store_end_after_its_last_turn(
    server: RedisServer,
) -> None:
    with server.client() as client:
        before, connections = threads(), len(client.client_list())
        reading, following = (RedisTurnStore.from_url(server.url) for _ in range(2))
        turn = Turn("turn")
        assert reading.claim("session", turn.log, refuse=True) is None
        copy = following.find("session")
        assert copy is not None
        started = threads() - before
        assert len(started) == 4
        del reading, following

        with no_garbage_collection():
            turn.log.append(event("turn", 1))
            wait_for_events(copy, 1)
            copy.stop("the reason")
            assert wait_for_end(copy, TIMEOUT)
            assert turn.reasons == ["the reason"]
            wait_until(lambda: not any(thread.is_alive() for thread in started))
            wait_until(lambda: len(client.client_list()) == connections)
        assert list(copy.read(0)) == [event("turn", 1)]


def test_closing_writes_an_end_that_could_not_be_written_before(
    server: RedisServer, other: RedisTurnStore
) -> None:
    with (
        CutOff(port=server.port) as client,
        closing(RedisTurnStore(client, lease_seconds=60.0)) as store,
    ):
        log = claimed(store)
        copy = other.find("session")
        assert copy is not None
        failed = threading.Event()
        client.on_cut_off = failed.set
        client.is_cut_off = True
        log.finish(LogEnd(finished=True))
        assert failed.wait(TIMEOUT)
        client.is_cut_off = False  # The next attempt is in 12 s.
        store.close()
        assert wait_for_end(copy, TIMEOUT)
        assert copy.end == LogEnd(finished=True)


@pytest.mark.parametrize("when_idle", [True, False])
def test_thread_waits_for_jobs_that_start_later_only_if_the_store_was_not_closed(
    when_idle: bool,
) -> None:
    """The garbage collector can free a store while the job that reads its turn is in the inbox."""
    started: list[str] = []

    def now() -> Steps[None]:
        started.append("now")
        jobs.set_timer(later, 0.02)
        yield from ()

    def later() -> Steps[None]:
        started.append("later")
        yield from ()

    with Redis() as client:
        jobs = Worker(client, Settings("flux0:", 300.0, LEASE_SECONDS))
        jobs.submit(now)
        jobs.stop(when_idle=when_idle)
        jobs.run()
    assert started == (["now", "later"] if when_idle else ["now"])


@pytest.mark.parametrize("now", [True, False])
def test_job_that_is_submitted_while_it_runs_starts_again_before_its_timer(
    server: RedisServer, now: bool
) -> None:
    """For example, a message about a turn arrives while its job runs."""
    started: list[None] = []

    def job() -> Steps[None]:
        started.append(None)
        yield "GET", "flux0:text"
        if len(started) == 1:
            jobs.submit(job, now=now)
            yield "GET", "flux0:text"
            jobs.set_timer(job, 60.0)

    with server.client() as client, ends_soon():
        jobs = Worker(client, Settings("flux0:", 300.0, LEASE_SECONDS))
        jobs.submit(job)
        jobs.stop(when_idle=True)
        jobs.run()
    assert len(started) == 2


def test_jobs_wait_after_a_failure_until_the_failed_job_is_repeated(server: RedisServer) -> None:
    """Otherwise, each event would cause another attempt to reach Redis."""
    started: list[str] = []

    def fail() -> None:
        jobs.submit(second)
        raise redis.ConnectionError("no route to host")

    def first() -> Steps[None]:
        started.append("first")
        yield "GET", "flux0:text"

    def second() -> Steps[None]:
        started.append("second")
        yield "GET", "flux0:text"

    with Interrupted(port=server.port) as client:
        client.actions = [fail]
        jobs = Worker(client, quick("flux0:", 300.0, LEASE_SECONDS))
        jobs.submit(first)
        jobs.stop(when_idle=True)
        jobs.run()
    assert started == ["first", "first", "second"]


def test_end_of_a_turn_is_published_once() -> None:
    """A message about the turn, which arrives while its end is published, starts the job again."""
    log, worker = new_log(), Worker(Redis(), Settings("flux0:", 1.0, LEASE_SECONDS))
    turns: dict[str, PublishedTurn] = {}
    job = PublishedTurn(TurnName("session", "turn"), 1, log, worker, Accepting(), turns)
    turns["session:turn"] = job
    log.finish(LogEnd())
    steps = job.steps()
    next(steps)
    with pytest.raises(StopIteration):
        steps.send([0, b""])
    assert list(job.steps()) == []


def test_end_of_a_turn_is_stored_after_all_events_although_a_reply_was_lost(
    server: RedisServer, other: RedisTurnStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis has added the first event, and then gets a batch with both events and the end."""
    monkeypatch.setattr(store_module, "Settings", quick)

    def lose_reply_of_first_event(send: Callable[[], list[Any]], **_: bool) -> list[Any]:
        replies = send()
        if admin.hget("flux0:{session}:turn", "last") != b"1":
            client.left = 1
            return replies
        log.append(event("turn", 2))
        log.finish(LogEnd(finished=True))
        raise redis.ConnectionError("the connection was reset")

    with (
        Acting(port=server.port) as client,
        closing(RedisTurnStore(client, lease_seconds=60.0)) as store,
        server.client() as admin,
    ):
        log = claimed(store)
        client.act, client.left = lose_reply_of_first_event, 1
        log.append(event("turn", 1))
        assert wait_for_end(log, TIMEOUT)
        copy = other.find("session")
        assert copy is not None
        assert wait_for_end(copy, TIMEOUT)
        assert copy.end == LogEnd(finished=True)
        assert b"".join(copy.read(0)) == turn_bytes("turn", 2)


@pytest.mark.parametrize("closes", [True, False])
def test_store_without_a_turn_starts_no_thread(closes: bool) -> None:
    before = threads()
    store = RedisTurnStore.from_url("redis://127.0.0.1:1")
    assert threads() <= before
    if closes:
        store.close()


def test_threads_do_not_keep_the_process_running(server: RedisServer) -> None:
    script = f"""
from flux0 import RedisTurnStore
from flux0.runtime.turn_log import TurnLog
store = RedisTurnStore.from_url({server.url!r})
store.claim("session", TurnLog("turn", 1000, print), refuse=True)
print(store.find("session").turn_id)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=3 * TIMEOUT,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "turn\n", "")


@forks_while_threads_run
def test_forked_child_has_its_own_threads_and_follows_the_turn_of_its_parent(
    store: RedisTurnStore,
) -> None:
    log = claimed(store)
    log.append(event("turn", 1))

    def follow() -> None:
        copy = store.find("session")
        assert copy is not None
        assert copy is not log
        wait_for_events(copy, 1)
        with pytest.raises(TurnRunning):
            store.claim("session", new_log("turn-2"), refuse=True)
        claimed(store, "session of the child")
        store.close()

    in_child(follow)
    assert store.find("session") is log


@pytest.mark.parametrize("name", ["flux0-redis", "flux0-redis-listener"])
def test_message_is_not_sent_if_a_thread_cannot_be_started(
    name: str, store: RedisTurnStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if thread.name == name:
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(TurnStoreError) as raised:
            store.claim("session", new_log(), refuse=True)
    assert raised.value.sent == "no"
    claimed(store)


@pytest.mark.parametrize("mode", ASYNC)
def test_message_is_not_sent_from_async_code_if_no_thread_can_be_started(
    mode: Mode, store: RedisTurnStore
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def start() -> None:
        async with Flux0(transport=FakeTransport("Hi")) as client:
            conversation = await client.conversation_async(agent=await client.agents.first_async())
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(threading.Thread, "start", fail)
                with pytest.raises(TurnStoreError, match="no thread could be started") as raised:
                    await BackgroundTurns(store).start_async(conversation, "Hello")
            assert raised.value.sent == "no"
            assert not await conversation.history()

    run(mode, start)


def test_state_counts_turns_of_other_processes(
    store: RedisTurnStore, other: RedisTurnStore
) -> None:
    assert store.state() == StoreState()
    log = claimed(store)
    copy = other.find("session")
    assert (store.state(), other.state()) == (StoreState(), StoreState(followed_turns=1))
    log.finish(LogEnd())
    assert copy is not None
    assert wait_for_end(copy, TIMEOUT)
    assert other.state() == StoreState()


def test_state_says_whether_redis_is_available_and_how_often_it_was_not(tmp_path: Path) -> None:
    with (
        redis_server(tmp_path) as server,
        closing(RedisTurnStore.from_url(server.url, lease_seconds=LEASE_SECONDS)) as store,
    ):
        assert store.find("session") is None
        assert store.state() == StoreState()
        server.stop()
        with pytest.raises(TurnStoreError):
            store.find("session")
        assert store.state() == StoreState(is_available=False, failures=1)
        server.start()
        assert store.find("session") is None
        assert store.state() == StoreState(failures=1)


def test_threads_suppress_the_instrumentation_of_redis(server: RedisServer) -> None:
    """The threads belong to no request, so each command would be a trace of its own."""
    suppressed: list[object] = []

    class Instrumented(Redis):
        def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Pipeline:
            assert not transaction, "a transaction would need keys in one slot of a cluster"
            suppressed.append(context.get_value("suppress_instrumentation"))
            return super().pipeline(transaction, shard_hint)

        def pubsub(self, **options: Any) -> Any:
            suppressed.append(context.get_value("suppress_instrumentation"))
            return super().pubsub(**options)  # type: ignore[no-untyped-call]

    with (
        Instrumented.from_url(server.url) as client,
        closing(RedisTurnStore(client)) as store,
    ):
        assert store.find("session") is None
        wait_until(lambda: len(suppressed) > 1)
    assert set(suppressed) == {True}


def test_turn_of_the_process_is_found_while_redis_cannot_be_reached(tmp_path: Path) -> None:
    with (
        redis_server(tmp_path) as server,
        closing(RedisTurnStore.from_url(server.url, lease_seconds=LEASE_SECONDS)) as store,
    ):
        log = claimed(store)
        server.stop()
        assert store.find("session") is log
        with pytest.raises(TurnStoreError):
            store.find("another session")
        log.finish(LogEnd())
        assert store.find("session") is log
        with pytest.raises(TurnStoreError):  # It is not a `TurnRunning`.
            store.claim("session", new_log("next"), refuse=True)


def test_turn_that_ended_while_redis_could_not_be_reached_expires(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        redis_server(tmp_path) as server,
        closing(RedisTurnStore.from_url(server.url, lease_seconds=0.5, keep_seconds=1)) as store,
    ):
        log = weakref.ref(claimed(store))
        server.stop()
        found = store.find("session")
        assert found is not None
        with no_garbage_collection():
            found.finish(LogEnd())
            assert store.find("session") is found
            del found
            wait_until(lambda: log() is None)
        assert any("Redis cannot be reached" in record.getMessage() for record in caplog.records)
        with pytest.raises(TurnStoreError):
            store.find("session")


def test_turn_of_the_process_is_found_and_closed_while_redis_is_paused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a call waited for Redis, the test would not end."""
    monkeypatch.setattr(worker, "_MAX_CALL_SECONDS", 1000)
    with redis_server(tmp_path) as server, without_timeout(server) as client:
        before = threads()
        store = RedisTurnStore(client, lease_seconds=LEASE_SECONDS)
        log = claimed(store)
        wait_for_listeners(client, 1)
        started = threads() - before
        server.pause()
        log.append(event("turn", 1))
        assert store.find("session") is log
        log.finish(LogEnd())
        store.close()
        server.resume()
        wait_until(lambda: not any(thread.is_alive() for thread in started))


def test_threads_of_a_closed_and_collected_store_end_when_redis_responds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threads()
    with redis_server(tmp_path) as server, without_timeout(server) as client:
        store = RedisTurnStore(client, lease_seconds=60.0)
        log = claimed(store)
        started = threads() - before
        monkeypatch.setattr(worker, "_MAX_CALL_SECONDS", 0.1)
        server.pause()
        with pytest.raises(TurnStoreError):  # Now, the thread waits for Redis.
            store.find("another session")
        # Redis has not responded for the time of the lease, so `close` does not wait for it.
        process: Any = store._process.get()
        monkeypatch.setattr(process._worker.clock, "now", lambda: time.monotonic() + 60)
        with ends_soon():
            store.close()
        assert any(thread.is_alive() for thread in started)
        del store
        gc.collect()
        server.resume()
        wait_until(lambda: not any(thread.is_alive() for thread in started))
        log.finish(LogEnd())


@pytest.mark.parametrize("fail", [RedisServer.pause, RedisServer.stop])
def test_copy_ends_while_redis_does_not_respond_and_the_client_has_no_timeout(
    tmp_path: Path, fail: Callable[[RedisServer], None]
) -> None:
    with (
        redis_server(tmp_path) as server,
        without_timeout(server) as client,
        closing(RedisTurnStore(client, lease_seconds=LEASE_SECONDS)) as store,
        closing(RedisTurnStore(client, lease_seconds=LEASE_SECONDS)) as other,
    ):
        log = claimed(store)
        copy = other.find("session")
        assert copy is not None
        wait_for_listeners(client, 2)
        fail(server)
        with ends_soon():
            assert wait_for_end(copy, TIMEOUT)
        assert copy.end is not None
        assert copy.end.is_of_copy
        assert isinstance(copy.end.error, TurnStoreError)
        assert "could not be reached" in copy.end.error.problem
        if fail is RedisServer.pause:
            server.resume()
            for each in (store, other):  # When Redis has responded, `close` waits for the threads.
                assert each.find("another session") is None
        log.finish(LogEnd())


def test_user_without_channels_gets_an_error_before_the_first_claim(server: RedisServer) -> None:
    with server.client() as admin:
        admin.acl_setuser(
            "half", enabled=True, passwords=["+pw"], keys=["flux0:*"], reset_channels=True,
            categories=["+@all"],
        )  # fmt: skip
        url = server.url.replace("//", "//half:pw@")
        with closing(RedisTurnStore.from_url(url)) as store:
            calls: list[Callable[[], object]] = [
                lambda: store.claim("session", new_log(), refuse=True),
                lambda: store.find("session"),
            ]
            for call in calls:
                with pytest.raises(TurnStoreError, match="NoPermissionError") as raised:
                    call()
                assert raised.value.sent == "no"
        assert admin.keys() == []


def test_scripts_are_sent_once(store: RedisTurnStore, server: RedisServer) -> None:
    log = claimed(store)
    with server.client() as client:
        for number in (1, 2, 3):
            log.append(event("turn", number))
            wait_until(lambda: client.hget("flux0:{session}:turn", "last") == b"%d" % log.last)
            if number == 2:
                client.execute_command("SCRIPT FLUSH")
        commands: Any = client.info("commandstats")
        assert commands["cmdstat_evalsha"]["calls"] > commands["cmdstat_eval"]["calls"]


def test_caller_does_not_wait_longer_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_MAX_CALL_SECONDS", 0.1)
    with redis_server(tmp_path) as server:
        patient = without_timeout(server)
        with patient, closing(RedisTurnStore(patient, lease_seconds=LEASE_SECONDS)) as store:
            server.pause()
            with pytest.raises(TurnStoreError, match="did not respond within"):
                store.find("session")
            with pytest.raises(TurnStoreError, match="did not respond within") as raised:
                store.claim("session", new_log(), refuse=True)
            assert raised.value.sent == "no"
            server.resume()


@pytest.mark.parametrize("lease_seconds", [60.0], indirect=True)
def test_calls_that_fail_do_not_delay_the_events_of_other_sessions(
    server: RedisServer, store: RedisTurnStore, other: RedisTurnStore
) -> None:
    log = claimed(store)
    copy = other.find("session")
    assert copy is not None
    with server.client() as client:
        client.lpush("flux0:{broken}", "not a turn")
        client.expire("flux0:{broken}", 60)
        wait_for_listeners(client, 2)
    calls = 0
    # After a failure, jobs wait for a fifth of the lease. Meanwhile, thousands of calls fail.
    while copy.last == 0 and calls < 3000:
        with pytest.raises(TurnStoreError):
            other.find("broken")
        calls += 1
        if calls % 100 == 0:
            log.append(event("turn", calls))
    log.finish(LogEnd())
    assert calls < 3000


def test_command_that_fails_is_not_a_failure_of_redis(server: RedisServer) -> None:
    """Jobs of other turns are not delayed until the next attempt to reach Redis."""
    waited: list[float] = []

    def fail() -> Steps[None]:
        with pytest.raises(TurnStoreError):
            yield "HGET", "flux0:text", "field"

    def succeed() -> Steps[None]:
        yield "GET", "flux0:text"
        waited.append(jobs.redis.seconds)

    with server.client() as client:
        client.set("flux0:text", "not a hash", ex=60)
        jobs = Worker(client, Settings("flux0:", 300.0, LEASE_SECONDS))
        jobs.submit(fail, now=True)
        jobs.submit(succeed, now=True)
        jobs.stop(when_idle=True)
        jobs.run()
    assert waited == [0.0]


def test_time_without_commands_is_not_a_time_without_replies(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process may have been suspended, while Redis could have responded."""
    now, waited = [1000.0], list[float]()
    monkeypatch.setattr(outage, "monotonic", lambda: now[0])

    def get() -> Steps[None]:
        yield "GET", "flux0:text"

    settings = Settings("flux0:", 300.0, LEASE_SECONDS)
    with Interrupted(port=server.port) as client:
        jobs = Worker(client, settings)

        def suspend() -> None:
            now[0] += 1000
            waited.append(jobs.redis.seconds)

        client.actions = [suspend]
        now[0] += 1000
        jobs.submit(get, now=True)
        jobs.stop(when_idle=True)
        jobs.run()
    assert waited == [pytest.approx(settings.renew)]
    assert jobs.redis.seconds == 0


def test_lost_turn_is_kept_as_long_as_an_ended_turn(
    server: RedisServer, store: RedisTurnStore
) -> None:
    log = claimed(store)
    log.append(event("turn", 1))
    keys = ["flux0:{session}:turn", "flux0:{session}:turn:log"]
    with server.client() as client:
        wait_until(lambda: client.hget(keys[0], "last") == b"1")
        process = as_text(client.hget(keys[0], "process"))
        settings = Settings("flux0:", 9.0, 60.0)

        def lose(process: str) -> Any:
            _, *script = followed.lose(keys[0], process, settings)
            # The store can renew its keys at any time, but not within a transaction.
            with client.pipeline() as commands:
                commands.eval(*cast("Any", script))
                for key in keys:
                    commands.pttl(key)
                return commands.execute()

        is_lost, *times = lose("another process")
        assert is_lost == 0
        assert all(time > 9000 for time in times)
        is_lost, *times = lose(process)
        assert is_lost == 1
        assert all(0 < time <= 9000 for time in times)
    log.finish(LogEnd())


def test_call_after_the_end_of_the_thread_raises_at_once() -> None:
    """The store is closed after the call has checked it."""

    def steps() -> Steps[None]:
        yield "GET", "flux0:text"

    with Redis() as client:
        jobs = Worker(client, Settings("flux0:", 300.0, LEASE_SECONDS))
        jobs.stop()
        jobs.run()
        with ends_soon(), pytest.raises(TurnStoreError, match="is closed"):
            jobs.call(steps())


@define
class Followed:
    """A turn of the process `process`."""

    ends: list[str] = field(factory=list[str])
    is_running: bool = True
    process: str = "process"

    def steps(self) -> Steps[None]:
        yield from ()

    def lose(self, process: str) -> None:
        self.ends.append(process)


def test_process_is_lost_if_its_lease_does_not_change_while_redis_responds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, turn = [1000.0], Followed()
    settings = Settings("flux0:", 300.0, LEASE_SECONDS)
    with Redis() as client:
        jobs = Worker(client, settings)
        monkeypatch.setattr(jobs.clock, "now", lambda: now[0])
        checks = lease.Lease(jobs, {}, {"turn": cast("Any", turn)}, nothing)
    for seconds, count, ends in (
        (0.0, b"1", []),
        (0.9, b"1", []),
        (0.9, b"2", []),  # The process has renewed its lease.
        (0.9, None, []),  # The key of the lease has expired.
        (0.9, TurnStoreError("unreachable"), []),
        (9.0, None, []),  # Meanwhile, the process could not renew its lease, either.
        (0.9, None, []),
        (0.2, None, ["process"]),
    ):
        now[0] += seconds * settings.expiry
        steps = checks.steps()
        next(steps)
        with suppress(StopIteration, TurnStoreError):
            steps.throw(count) if isinstance(count, Exception) else steps.send(b"99")
            steps.send(count)
        assert turn.ends == ends


@pytest.mark.parametrize("is_unreachable", [False, True])
def test_lease_that_cannot_be_read_hides_other_leases_only_if_redis_is_unreachable(
    monkeypatch: pytest.MonkeyPatch, is_unreachable: bool
) -> None:
    """In a cluster, the lease of one process may be on a lost node."""
    turns = {name: Followed(process=name) for name in ("first", "second")}
    now, settings = [1000.0], Settings("flux0:", 300.0, LEASE_SECONDS)
    lost: list[object] = []
    with Redis() as client:
        jobs = Worker(client, settings)
        monkeypatch.setattr(jobs.clock, "now", lambda: now[0])
        checks = lease.Lease(jobs, {}, cast("Any", turns), nothing)
    for _ in range(2):
        steps = checks.steps()
        next(steps)
        _, unreadable = steps.send(b"99")
        if is_unreachable:
            jobs.redis.fail("connection refused")
            with pytest.raises(TurnStoreError):
                steps.throw(TurnStoreError("connection refused"))
            jobs.redis.respond()
        else:
            _, readable = steps.throw(TurnStoreError("the node is lost"))
            with pytest.raises(StopIteration):
                steps.send(b"1")
            assert {unreadable, readable} == turns.keys()
            lost = [readable]
        now[0] += 2 * settings.expiry
    assert [turn.ends for turn in turns.values()] == [lost, lost]


def connection_error(text: str = "connection refused") -> TurnStoreError:
    error = TurnStoreError("Redis cannot be used")
    error.__cause__ = redis.ConnectionError(text)
    return error


@pytest.fixture
def reporting(monkeypatch: pytest.MonkeyPatch) -> tuple[Worker, list[float]]:
    """A worker that reports outages, and the time of its clock."""
    now = [1000.0]
    with Redis() as client:
        jobs = Worker(client, Settings("flux0:", 300.0, LEASE_SECONDS))
    monkeypatch.setattr(jobs.clock, "now", lambda: now[0])
    return jobs, now


def test_lost_connection_is_logged_for_one_turn_although_its_error_changes(
    reporting: tuple[Worker, list[float]], caplog: pytest.LogCaptureFixture
) -> None:
    jobs, now = reporting
    first, second = (outage.Outage(jobs.clock) for _ in range(2))
    for turn in (first, second):
        jobs.report(turn, "a turn cannot be stored", connection_error())
    for turn in (second, first):
        now[0] += 2 * LEASE_SECONDS
        jobs.report(turn, "a turn cannot be stored", connection_error("timeout"))
    assert len(caplog.messages) == 1


def test_later_loss_of_a_connection_is_logged_although_the_first_turn_has_not_recovered(
    reporting: tuple[Worker, list[float]], caplog: pytest.LogCaptureFixture
) -> None:
    """The copy of the first turn may be unreferenced, so that no response is expected."""
    jobs, now = reporting
    first, second = (outage.Outage(jobs.clock) for _ in range(2))
    first.fail("connection refused")
    jobs.report(first, "a turn cannot be stored", connection_error())
    now[0] += 2 * LEASE_SECONDS
    jobs.report(second, "a turn cannot be stored", connection_error())
    assert len(caplog.messages) == 2


@pytest.mark.parametrize("cause", [redis.ResponseError("OOM"), None])
def test_other_errors_are_logged_for_each_turn(
    reporting: tuple[Worker, list[float]], cause: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    jobs, _ = reporting
    error = connection_error()
    error.__cause__ = cause
    for turn in [outage.Outage(jobs.clock) for _ in range(2)]:
        turn.fail("invalid data")
        jobs.report(turn, "a turn cannot be read", error)
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(
    ("error", "leases", "count"), [("", 0.1, 1), ("", 0.5, 0), ("connection refused", 0.1, 0)]
)
def test_silent_subscription_is_logged_only_if_commands_get_replies(
    reporting: tuple[Worker, list[float]],
    error: str,
    leases: float,
    count: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A command may wait for its reply at the moment when the subscription has failed."""
    jobs, now = reporting
    listener = Subscription(jobs._client, jobs, nothing, nothing)
    listener._outage.expect()
    now[0] += LEASE_SECONDS
    jobs.redis.expect()
    if error:
        jobs.redis.fail(error)
    now[0] += leases * LEASE_SECONDS
    listener._fail(TimeoutError("no data"))
    assert len(caplog.messages) == count


def test_turn_is_stopped_although_its_process_receives_no_messages(
    server: RedisServer, other: RedisTurnStore
) -> None:
    attempts: list[None] = []

    class Deaf(Redis):
        def pubsub(self, **options: Any) -> Any:
            attempts.append(None)
            raise redis.ConnectionError(f"no route to host {options}")

    turn = Turn("turn")
    with Deaf(port=server.port) as client, closing(RedisTurnStore(client)) as store:
        assert store.claim("session", turn.log, refuse=True) is None
        turn.log.append(event("turn", 1))
        wait_until(lambda: client.hget("flux0:{session}:turn", "last") == b"1")
        copy = other.find("session")
        assert copy is not None
        copy.stop("the reason")
        assert wait_for_end(turn.log, TIMEOUT)
    assert turn.reasons == ["the reason"]
    assert len(attempts) < 100  # The thread waits between two attempts.


class Counting(Redis):
    """Counts the subscriptions, and the calls of `get_message` of all subscriptions."""

    subscriptions = waits = 0

    def pubsub(self, **options: Any) -> Any:
        self.subscriptions += 1
        subscriber: Any = super().pubsub(**options)  # type: ignore[no-untyped-call]
        get_message = subscriber.get_message

        def count(*args: Any, **arguments: Any) -> Any:
            self.waits += 1
            return get_message(*args, **arguments)

        subscriber.get_message = count
        return subscriber


def test_idle_listener_waits_for_messages(server: RedisServer) -> None:
    with (
        Counting(port=server.port) as client,
        closing(RedisTurnStore(client, lease_seconds=60.0)) as store,
    ):
        for _ in range(300):
            assert store.find("session") is None
        wait_until(lambda: client.waits > 2)
        assert client.waits < 25


def test_idle_listener_keeps_its_connection(server: RedisServer) -> None:
    with (
        Counting(port=server.port) as client,
        closing(RedisTurnStore(client, lease_seconds=0.1)) as store,
    ):
        assert store.find("session") is None
        wait_until(lambda: client.waits > 9)  # Most waits have ended without a message.
        assert client.subscriptions == 1


def test_paused_redis_is_reported_after_the_timeouts_of_the_built_in_client(
    tmp_path: Path,
) -> None:
    with (
        redis_server(tmp_path) as server,
        closing(RedisTurnStore.from_url(server.url, lease_seconds=LEASE_SECONDS)) as store,
    ):
        server.pause()
        try:
            with ends_soon(), pytest.raises(TurnStoreError, match="TimeoutError"):
                store.find("session")
        finally:
            server.resume()


def test_idle_connection_of_the_listener_is_checked(server: RedisServer) -> None:
    """So the listener notices that its connection has failed."""
    with (
        server.client() as client,
        closing(RedisTurnStore.from_url(server.url, lease_seconds=0.1)) as store,
    ):
        assert store.find("session") is None
        before = calls_of(client, "ping")
        wait_until(lambda: calls_of(client, "ping") > before)


def test_unreachable_redis_is_reported_after_the_timeouts_of_the_built_in_client() -> None:
    with unreachable_address() as (host, port):
        url, error = f"redis://{host}:{port}", pytest.raises(TurnStoreError, match="TimeoutError")
        with closing(RedisTurnStore.from_url(url, lease_seconds=0.1)) as store, ends_soon(), error:
            store.find("session")


def test_stop_that_waits_for_redis_does_not_block_the_store(
    store: RedisTurnStore, other: RedisTurnStore
) -> None:
    found: SimpleQueue[TurnLog | None] = SimpleQueue()
    log = TurnLog("turn", 1000, lambda _: found.put(store.find("another session")))
    store.claim("session", log, refuse=True)
    copy = other.find("session")
    assert copy is not None
    copy.stop("the reason")
    with ends_soon():
        assert found.get(timeout=TIMEOUT) is None
    log.finish(LogEnd())


def test_turn_is_stopped_once_although_events_follow(
    store: RedisTurnStore, other: RedisTurnStore
) -> None:
    reasons: SimpleQueue[str] = SimpleQueue()
    log = TurnLog("turn", 1000, reasons.put)
    store.claim("session", log, refuse=True)
    copy = other.find("session")
    assert copy is not None
    copy.stop("the reason")
    assert reasons.get(timeout=TIMEOUT) == "the reason"
    for number in (1, 2, 3):
        log.append(event("turn", number))
        wait_for_events(copy, number)
    assert reasons.empty()
    log.finish(LogEnd())


def test_keys_of_an_idle_turn_do_not_expire(server: RedisServer) -> None:
    with (
        server.client() as client,
        closing(RedisTurnStore(client, keep_seconds=1.0, lease_seconds=0.5)) as store,
    ):
        log, left = claimed(store), list[int]()

        def is_renewed() -> bool:
            left.append(int(client.pttl("flux0:{session}:turn")))
            return left[-1] > max(min(left), 1000)

        wait_until(is_renewed)
        log.finish(LogEnd())


def test_check_of_an_idle_turn_renews_all_its_keys(
    server: RedisServer, store: RedisTurnStore
) -> None:
    log = claimed(store)
    log.append(event("turn", 1))
    keys = ("flux0:{session}", "flux0:{session}:turn", "flux0:{session}:turn:log")
    with server.client() as client:
        wait_until(lambda: client.hget("flux0:{session}:turn", "last") == b"1")
        wait_for_listeners(client, 1)
        for key in keys:
            client.pexpire(key, 100_000)
        client.publish(as_text(client.hget("flux0:{session}", "process")), keys[1])
        wait_until(lambda: all(int(client.pttl(key)) > 200_000 for key in keys))
    log.finish(LogEnd())


def test_keys_of_an_ended_turn_expire_after_keep_seconds(
    server: RedisServer, store: RedisTurnStore
) -> None:
    """The keys of a running turn expire later, by the time of the lease."""
    log = claimed(store)
    log.append(event("turn", 1))
    log.finish(LogEnd())
    with server.client() as client:
        wait_until(lambda: bool(client.hexists("flux0:{session}:turn", "end")))
        for key in ("flux0:{session}", "flux0:{session}:turn", "flux0:{session}:turn:log"):
            assert 200_000 < int(client.pttl(key)) <= 300_000


def test_lost_process_is_noticed_within_the_lease() -> None:
    """Other processes see the last renewal, and check for the next one, up to `renew` late."""
    settings = Settings("flux0:", 300.0, 5.0)
    assert settings.expiry + 2 * settings.renew <= settings.lease
    # The keys of a turn whose process was lost expire later than the turn of a running process.
    assert (settings.keep_ms, settings.ttl_ms) == (300_000, 305_000)


@pytest.mark.parametrize("session_id", ["session", "}", "{a}b", "a:b"])
def test_all_keys_of_a_session_are_in_one_slot_of_a_cluster(session_id: str) -> None:
    name = Settings("flux0:", 300.0, 5.0).name(session_id, "turn")
    assert len({key_slot(key.encode()) for key in (name.session, *name.keys)}) == 1


def test_copy_does_not_have_events_after_a_gap_under_the_numbers_of_missing_events() -> None:
    settings, log = Settings("flux0:", 300.0, LEASE_SECONDS), new_log()
    with Redis() as client:
        jobs = Worker(client, settings)
        turn = followed_turn(log, jobs)
    entry = b"5-0", (b"events", event("turn", 4) + event("turn", 5))
    assert not turn.update((1000, "process", 5, "", "", [entry], 1))
    assert (log.first, log.last) == (4, 5)
    with pytest.raises(TurnTooLarge):
        log.read(0)


def test_turn_is_lost_only_with_its_own_process() -> None:
    settings, log = Settings("flux0:", 300.0, LEASE_SECONDS), new_log()
    name = settings.name("session", "turn")
    with Redis() as client:
        turn = followed_turn(log, Worker(client, settings))
    turn.update((1000, "process", 0, "", "", [], 1))
    turn.lose("another process")
    assert next(turn.steps()) == followed.read(name, settings.process, 1, "process", asks=True)
    turn.lose("process")
    assert next(turn.steps()) == followed.lose(name.info, "process", settings)


def test_copy_ends_when_its_events_were_missing_for_almost_the_whole_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the events are missing for a second time, the copy waits again for the whole time."""
    now = [1000.0]
    settings, log = Settings("flux0:", 300.0, LEASE_SECONDS), new_log()
    with Redis() as client:
        jobs = Worker(client, settings)
        monkeypatch.setattr(jobs.clock, "now", lambda: now[0])
        turn = followed_turn(log, jobs)
    missing: Any = ()
    empty: Any = (1000, "process", 0, "", "", [], 1)
    for part, reply, is_ended in (
        (0.0, missing, False),
        (0.9, missing, False),
        (0.9, empty, False),
        (0.9, missing, False),
        (0.9, missing, False),
        (0.2, missing, True),
    ):
        now[0] += part * settings.give_up
        turn.update(reply)
        turn.check()
        assert log.is_ended is is_ended
    assert log.end is not None
    assert isinstance(log.end.error, TurnStoreError)


def test_events_that_are_kept_are_published_if_events_before_them_were_dropped(
    server: RedisServer, store: RedisTurnStore, other: RedisTurnStore
) -> None:
    log = TurnLog("turn", 1000, lambda _: None)
    store.claim("session", log, refuse=True)
    log.append(event("turn", 1))
    copy = other.find("session")
    assert copy is not None
    wait_for_events(copy, 1)
    log.append(*(event("turn", number) for number in range(2, 101)))
    assert log.first > 2
    wait_for_events(copy, 100)
    assert (copy.first, all_events(copy)) == (log.first, all_events(log))
    with server.client() as client:  # The dropped events use no memory in Redis.
        assert client.xlen("flux0:{session}:turn:log") == 1
    log.finish(LogEnd())


@pytest.mark.parametrize("connect", [redis_with_tls, redis_with_sentinel])
def test_events_are_shared_over_tls_and_sentinel(
    connect: Callable[[Path], AbstractContextManager[Redis]], tmp_path: Path
) -> None:
    with (
        connect(tmp_path) as client,
        closing(RedisTurnStore(client)) as store,
        closing(RedisTurnStore(client)) as other,
    ):
        log = claimed(store)
        copy = other.find("session")
        assert copy is not None
        log.append(event("turn", 1))
        log.finish(LogEnd(finished=True))
        assert wait_for_end(copy, TIMEOUT)
        assert copy.end == LogEnd(finished=True)
        assert list(copy.read(0)) == [event("turn", 1)]
        assert copy.trace_parent is None


@pytest.mark.parametrize("refuse", [True, False])
def test_slower_of_two_claims_at_once_sees_the_turn_of_the_faster(
    server: RedisServer, other: RedisTurnStore, refuse: bool
) -> None:
    with Interrupted(port=server.port) as client, closing(RedisTurnStore(client)) as store:
        faster: list[TurnLog] = []
        client.actions = [nothing, lambda: faster.append(claimed(other, turn_id="faster"))]
        log = new_log()
        if refuse:
            with pytest.raises(TurnRunning):
                store.claim("session", log, refuse=True)
        else:
            previous = store.claim("session", log, refuse=False)
            assert previous is not None
            assert previous.turn_id == "faster"
            log.finish(LogEnd())
        faster[0].finish(LogEnd())


def test_claim_is_refused_if_another_claim_has_just_replaced_the_turn_of_a_lost_process(
    server: RedisServer, other: RedisTurnStore
) -> None:
    with (
        closing(RedisTurnStore.from_url(server.url, lease_seconds=60.0)) as lost,
        Interrupted(port=server.port) as client,
        closing(RedisTurnStore(client)) as store,
        server.client() as admin,
    ):
        claimed(lost, turn_id="lost")
        process = as_text(admin.hget("flux0:{session}", "process"))
        wait_until(lambda: admin.get(process) == b"2")  # The next renewal is in 12 s.
        admin.delete(process)
        # The claim is sent after the permission, the lease, the present turn and its lease.
        faster = new_log("faster")
        claim = partial(other.claim, "session", faster, refuse=True)
        client.actions = [nothing, nothing, nothing, nothing, claim]
        with pytest.raises(TurnRunning):
            store.claim("session", new_log("late"), refuse=True)
        assert admin.hget("flux0:{session}", "turn") == b"faster"
        faster.finish(LogEnd())


class Acting(Redis):
    """Calls `act` instead of sending its nth batch of commands, with the function that sends it."""

    left = 0
    act: Callable[[Callable[..., list[Any]]], list[Any]]

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Pipeline:
        pipeline: Any = super().pipeline(transaction, shard_hint)
        self.left -= 1
        if self.left == 0:
            pipeline.execute = partial(self.act, partial(pipeline.execute, raise_on_error=False))
        return cast("Pipeline", pipeline)


def lose_request(_: Callable[[], list[Any]], **__: bool) -> list[Any]:
    raise redis.ConnectionError("the connection was reset")


def lose_reply(send: Callable[[], list[Any]], **__: bool) -> list[Any]:
    send()
    raise redis.ConnectionError("the connection was reset")


def send_twice(send: Any, **__: bool) -> list[Any]:
    """Send the batch again, as a client that has lost the reply."""
    pipeline = send.func.__self__
    commands = pipeline.command_stack.copy()
    send()
    pipeline.command_stack = commands
    return cast("list[Any]", send())


def reject(send: Callable[[], list[Any]], **__: bool) -> list[Any]:
    return [redis.ResponseError("OOM command not allowed") for _ in send()]


@frozen
class Stores:
    """A store whose client fails once, and a store of another process."""

    near: RedisTurnStore
    far: RedisTurnStore
    session: str

    def claim(self, *, refuse: bool) -> tuple[Turn, TurnLog | None]:
        """Claim the session for the near process. If that fails, undo the claim, and try again."""
        turn = Turn("near")
        try:
            return turn, self.near.claim(self.session, turn.log, refuse=refuse)
        except TurnStoreError:
            turn.log.finish(LogEnd())
            self.near.release(self.session, turn.log, None)
            turn = Turn("near again")
            return turn, self.near.claim(self.session, turn.log, refuse=refuse)


def again(call: Callable[[], T]) -> T:
    try:
        return call()
    except TurnStoreError:
        return call()


def check_stopped(turn: Turn, copy: TurnLog) -> None:
    assert wait_for_end(turn.log, TIMEOUT)
    assert wait_for_end(copy, TIMEOUT)
    assert set(turn.reasons) == {"the reason"}
    assert list(copy.read(0)) == list(turn.log.read(0)) != []
    assert copy.end is not None
    assert isinstance(copy.end.error, TurnStopped)


def read_near(stores: Stores) -> None:
    turn, previous = stores.claim(refuse=True)
    assert previous is None
    turn.log.append(event("turn", 1))
    copy = stores.far.find(stores.session)
    assert copy is not None
    wait_for_events(copy, 1)
    turn.log.append(event("turn", 2))
    wait_for_events(copy, 2)
    copy.stop("the reason")
    check_stopped(turn, copy)


def follow_near(stores: Stores) -> None:
    turn = Turn("far")
    assert stores.far.claim(stores.session, turn.log, refuse=True) is None
    turn.log.append(event("turn", 1))
    copy = again(lambda: stores.near.find(stores.session))
    assert copy is not None
    wait_for_events(copy, 1)
    turn.log.append(event("turn", 2))
    wait_for_events(copy, 2)
    again(lambda: copy.stop("the reason"))
    check_stopped(turn, copy)


def replace_near(stores: Stores) -> None:
    turn = Turn("far")
    assert stores.far.claim(stores.session, turn.log, refuse=True) is None
    turn.log.append(event("turn", 1))
    second, previous = stores.claim(refuse=False)
    assert previous is not None
    assert previous.turn_id == "far"
    again(lambda: previous.stop("the reason"))
    check_stopped(turn, previous)
    second.log.append(event("turn", 1))
    second.log.finish(LogEnd(finished=True))
    copy = stores.far.find(stores.session)
    assert copy is not None
    assert wait_for_end(copy, TIMEOUT)
    assert (copy.turn_id, copy.end) == (second.log.turn_id, LogEnd(finished=True))
    assert second.reasons == []


def quick(prefix: str, keep: float, lease: float) -> Settings:
    """Return settings with frequent attempts to reach Redis."""
    settings = Settings(prefix, keep, lease)
    settings.renew = 0.01
    return settings


def test_ended_turn_in_an_older_snapshot_ends_again_although_its_follower_has_asked_before(
    server: RedisServer,
) -> None:
    """The follower has not seen the end, and its connection breaks, as in a failover."""
    loaded = threading.Event()

    def send_later(send: Callable[[], list[Any]], **_: bool) -> list[Any]:
        assert loaded.wait(TIMEOUT)
        return send()

    with (
        server.client() as client,
        Acting(port=server.port) as second,
        closing(RedisTurnStore.from_url(server.url, lease_seconds=60.0)) as store,
        closing(RedisTurnStore(second, lease_seconds=60.0)) as other,
    ):
        log = claimed(store)
        wait_for_listeners(client, 1)
        (listener,) = client.client_list(_type="pubsub")
        published = publishes(client)
        copy = other.find("session")
        assert copy is not None
        wait_for_listeners(client, 2)
        wait_until(lambda: publishes(client) > published + 1)
        second.act, second.left = send_later, 1
        load = save(client)
        log.finish(LogEnd())
        wait_until(lambda: bool(client.hexists("flux0:{session}:turn", "end")))
        claimed(store, "another session")  # So the process has removed the turn.
        load()
        (own,) = (
            each for each in client.client_list(_type="pubsub") if each["id"] != listener["id"]
        )
        client.client_kill_filter(_id=own["id"])
        loaded.set()
        assert wait_for_end(copy, TIMEOUT)
        assert copy.end is not None
        assert isinstance(copy.end.error, ReaderLost)


@pytest.mark.parametrize("fault", [lose_request, lose_reply, send_twice, reject])
@pytest.mark.parametrize("use", [read_near, follow_near, replace_near])
def test_calls_and_turns_continue_after_one_failure_at_any_command(
    server: RedisServer,
    use: Callable[[Stores], None],
    fault: Callable[..., list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_module, "Settings", quick)
    with (
        Acting(port=server.port) as client,
        closing(RedisTurnStore(client, lease_seconds=60.0)) as near,
        closing(RedisTurnStore.from_url(server.url, lease_seconds=60.0)) as far,
    ):
        client.act, number = fault, 0
        while client.left <= 0:
            number += 1
            client.left = number
            with ends_soon():
                use(Stores(near, far, f"session {number}"))
        assert number > 5


def test_store_can_be_closed_at_any_command(server: RedisServer) -> None:
    """All calls end, and other processes get the end of the turn."""
    number, acted = 0, [True]
    with closing(RedisTurnStore.from_url(server.url, lease_seconds=60.0)) as far:
        followed = claimed(far, turn_id="followed")
        while acted:
            number += 1
            with Acting(port=server.port) as client:
                acted = close_at(number, client, far)
        followed.finish(LogEnd())
    assert number > 5


def close_at(number: int, client: Acting, far: RedisTurnStore) -> list[bool]:
    near, turn, acted = RedisTurnStore(client, lease_seconds=60.0), Turn("near"), list[bool]()
    copies: list[TurnLog | None] = []

    def close(send: Callable[[], list[Any]], **_: bool) -> list[Any]:
        acted.append(True)
        turn.log.finish(LogEnd(finished=True))
        closer.start()
        wait_until(lambda: near._process.get()._worker._is_stopped)
        return send()

    closer = threading.Thread(target=near.close)
    client.act, client.left = close, number
    with ends_soon():
        with suppress(TurnStoreError):
            assert near.claim(f"session {number}", turn.log, refuse=True) is None
            copies.append(far.find(f"session {number}"))
            copies.append(near.find("session"))
            turn.log.append(event("turn", 1))
            turn.log.finish(LogEnd(finished=True))
        near.close()  # If `closer` has not closed the store, this call waits for `near`'s threads.
        if acted:
            wait_until(lambda: closer.ident is not None)
            closer.join()
            assert not any(thread.is_alive() for thread in near._process.get()._threads)
        for copy in copies:
            assert copy is not None
            assert wait_for_end(copy, TIMEOUT)
    return acted


def test_address_of_a_unix_socket_is_its_path() -> None:
    client = Redis(unix_socket_path="/run/redis.sock")
    address = worker._address(client)  # pyright: ignore[reportPrivateUsage]
    assert address == "/run/redis.sock"
