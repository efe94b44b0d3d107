"""The contract of stores, over each store of flux0."""

# redis has incomplete types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property, partial
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import pytest
from attrs import frozen
from redis import Redis, RedisCluster

from flux0.adapters.redis.store import RedisTurnStore
from flux0.domain.background_errors import TurnRunning
from flux0.domain.errors import StreamIdleTimeout
from flux0.runtime.turn_log import LogEnd, TurnLog
from flux0.testing.contract import LocalTurnStoreContract, TurnStoreContract, turn_stores
from flux0.testing.contract.forking import forks_while_threads_run
from flux0.turn_store import TurnStore
from flux0.turns.memory_store import MemoryTurnStore
from support.contract_checks import arguments_of, names_of_checks, recorded, rows_of
from support.programs import REDIS, needs
from support.redis_server import RedisServer, redis_cluster, redis_server

needs_redis = needs(REDIS)


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
        return self.stack.enter_context(redis_cluster(self.folder))[0]


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


# Each test of this module replaces methods of a store, and names the check that must fail.
Bug: TypeAlias = Mapping[str, Callable[..., Any]]
Bugs: TypeAlias = Bug | tuple[Bug, ...]
OWNER = os.getpid()


class Found:
    """A log that `find` or `claim` returns, with other attributes, or with changed attributes."""

    def __init__(
        self, log: TurnLog, others: Mapping[str, Any], changes: Mapping[str, Callable[[Any], Any]]
    ) -> None:
        vars(self).update(others, log=log, changes=changes)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.log, name)
        return self.changes[name](value) if name in self.changes else value


find, claim, release = MemoryTurnStore.find, MemoryTurnStore.claim, MemoryTurnStore.release
close = MemoryTurnStore.close
redis_claim, redis_close = RedisTurnStore.claim, RedisTurnStore.close
redis_find, redis_release = RedisTurnStore.find, RedisTurnStore.release


def finding(
    change: Callable[[TurnLog], Mapping[str, Any]] = lambda _: {},
    method: Callable[..., TurnLog | None] = find,
    **changes: Callable[[Any], Any],
) -> Bug:
    """Return a bug: `find` returns logs with other attributes, or with changed attributes."""

    def find_another(store: Any, session_id: str) -> Any:
        log = method(store, session_id)
        return log and Found(log, change(log), changes)

    return {"find": find_another}


def reading(read: Callable[[TurnLog, int], Sequence[bytes]], **options: Any) -> Bug:
    """Return a bug: logs that `find` returns are read with `read`."""
    return finding(lambda log: {"read": partial(read, log)}, **options)


def claiming(
    result: Callable[[TurnLog | None], Any], *, turn_id: str = "turn-2", method: Any = claim
) -> Bug:
    """Return a bug: the claim of one turn returns another result."""

    def claim_another(store: Any, session: str, log: TurnLog, *, refuse: bool) -> Any:
        previous = method(store, session, log, refuse=refuse)
        return result(previous) if log.turn_id == turn_id else previous

    return {"claim": claim_another}


def in_a_child(bug: Bug, **correct: Any) -> Bug:
    """Limit a bug to forked children. `correct` has the store's correct methods."""
    methods = {"find": find, "claim": claim, "close": close} | correct

    def method(name: str, *arguments: Any, **options: Any) -> Any:
        wrong = bug[name] if os.getpid() != OWNER else methods[name]
        return wrong(*arguments, **options)

    def bound(name: str) -> Callable[..., Any]:
        return lambda *arguments, **options: method(name, *arguments, **options)

    return {name: bound(name) for name in bug}


def in_the_parent(bug: Bug) -> Bug:
    """Limit a bug to the process of the tests."""

    def find_in_the_parent(*arguments: Any) -> Any:
        return (bug["find"] if os.getpid() == OWNER else find)(*arguments)

    return {"find": find_in_the_parent}


def has_nothing(_: int) -> bool:
    return False


def finish_without_a_confirmation(log: TurnLog, _: LogEnd) -> None:
    TurnLog.finish(log, LogEnd())


def read_without_the_first(log: TurnLog, after: int) -> Sequence[bytes]:
    return TurnLog.read(log, after)[1:]


def claiming_with(name: str, method: Callable[..., Any]) -> Bug:
    """Return a bug: logs of claimed turns have another method."""

    def claim_and_change(store: Any, session: str, log: TurnLog, *, refuse: bool) -> Any:
        setattr(log, name, partial(method, log))
        return claim(store, session, log, refuse=refuse)

    return {"claim": claim_and_change}


def other_turn(*_: object) -> TurnLog:
    return TurnLog("other", 1, str)


def ended_turn_of_other_kind(end: LogEnd | None) -> LogEnd | None:
    if end is None or end.error is None:
        return end
    error = type("Other", (type(end.error),), {})(end.error.problem)
    vars(error).update(vars(end.error))
    return LogEnd(error)


def end_with_another_request(end: LogEnd | None) -> LogEnd | None:
    if end is None or end.error is None:
        return end
    error = type(end.error)(end.error.problem)
    vars(error).update(vars(end.error), sent="other")
    return LogEnd(error)


def claim_always(store: MemoryTurnStore, id: str, log: TurnLog, *, refuse: bool) -> Any:
    return claim(store, id, log, refuse=False)


def claim_with_a_doubt(store: MemoryTurnStore, id: str, log: TurnLog, *, refuse: bool) -> Any:
    try:
        return claim(store, id, log, refuse=refuse)
    except TurnRunning as error:
        error.sent = "maybe"
        raise


def find_one_session(store: MemoryTurnStore, _: str) -> TurnLog | None:
    return next((found for each in ("}a{", "session-1") if (found := find(store, each))), None)


def remove_at_the_end() -> Bug:
    """Return a bug: the end of a replaced turn removes its session's turn."""

    def claim_and_remove(store: MemoryTurnStore, id: str, log: TurnLog, *, refuse: bool) -> Any:
        previous = claim(store, id, log, refuse=refuse)
        if previous is not None:
            previous.on_end = store.close
        return previous

    return {"claim": claim_and_remove}


def find_running_turns_first() -> Bug:
    """Return a bug: a running turn is found although another turn has replaced it."""
    replaced: list[TurnLog] = []

    def claim_and_record(store: MemoryTurnStore, id: str, log: TurnLog, *, refuse: bool) -> Any:
        previous = claim(store, id, log, refuse=refuse)
        replaced[:] = [previous] if previous else []
        return previous

    def find_replaced(store: MemoryTurnStore, id: str) -> TurnLog | None:
        return next((log for log in replaced if not log.is_ended), find(store, id))

    return {"claim": claim_and_record, "find": find_replaced}


def release_without_the_end(store: MemoryTurnStore, id: str, log: TurnLog, previous: Any) -> None:
    """A turn that ends after the release is kept forever."""
    release(store, id, log, previous)
    previous.on_end = str


def release_and_keep_ended(store: MemoryTurnStore, id: str, log: TurnLog, previous: Any) -> None:
    """A turn that ended before its successor is kept forever."""
    release(store, id, log, previous)
    store._ended_at.pop(previous, None)  # pyright: ignore[reportPrivateUsage]


def is_expired_unless_first(store: MemoryTurnStore, log: TurnLog) -> bool:
    return log.turn_id != "turn-1" and is_expired(store, log)


def fail(*_: object) -> None:
    raise OSError("the store is broken")


is_expired = MemoryTurnStore._is_expired  # pyright: ignore[reportPrivateUsage]
_reversed = reading(lambda log, after: log.read(after)[::-1])
_without_the_first = reading(read_without_the_first)
_other_id = finding(lambda _: {"turn_id": "other"})
_ends_never = claiming(lambda log: log and Found(log, {}, {"is_ended": lambda _: False}))

# The bugs that each check of each test must detect.
BUGS: Mapping[str, Mapping[str, Bugs]] = {
    "session_without_a_turn_has_none": {"the turn of a new session": {"find": other_turn}},
    "events_and_end_reach_the_other_process": {
        "the copied turn_id and max_bytes": (_other_id, finding(lambda _: {"max_bytes": 7})),
        "poll lambda: copy.last == 1": finding(last=lambda last: last + (last == 1)),
        "the span of the copy": finding(lambda _: {"trace_parent": None}),
        "poll lambda: copy.last == log.last": finding(last=lambda last: last - (last == 4)),
        "_EVENTS": (_reversed, _without_the_first),
        "the end of a running turn's copied log": finding(end=lambda end: end or LogEnd()),
        "the error of the copy": finding(end=ended_turn_of_other_kind),
        "the copied error's attributes": finding(end=end_with_another_request),
    },
    "ended_turn_is_found": {
        "the end": finding(end=lambda end: end and LogEnd(end.error, not end.finished)),
        "_EVENTS": _without_the_first,
    },
    "ended_turns_expire": {
        "poll partial(_is_missing, store, session_id)": (
            {"_is_expired": lambda *_: False},
            {"_is_expired": is_expired_unless_first},
            {"release": release_and_keep_ended},
            {"release": release_without_the_end},
        ),
    },
    "claim_is_refused_while_a_turn_is_running_in_any_process": {
        "`sent` and the id": ({"claim": claim_always}, {"claim": claim_with_a_doubt}, _other_id),
    },
    "claim_after_an_ended_turn_replaces_it": {
        "poll lambda: copy.is_ended": finding(is_ended=lambda _: False),
        "claim() must not return another turn": claiming(other_turn),
        "_IDS": _other_id,
    },
    "claim_returns_the_running_turn_which_can_be_stopped": {
        "the replaced turn": claiming(lambda log: log and Found(log, {"turn_id": "other"}, {})),
        "the id of the found turn": find_running_turns_first(),
        "poll lambda: reasons == ['another message']": claiming(
            lambda log: log and Found(log, {"stop": str}, {})
        ),
        "poll lambda: previous.is_ended": _ends_never,
        "_IDS": remove_at_the_end(),
    },
    "found_turn_can_be_stopped_from_both_processes": {
        "poll lambda: reasons == ['the stop button']": finding(lambda _: {"stop": str}),
    },
    "released_turn_is_not_found": {
        "the released turn": {"find": lambda *arguments: find(*arguments) or other_turn()},
        "the replaced turn": claiming(lambda log: log or other_turn()),
    },
    "released_turn_ends_for_those_who_wait_for_it": {
        "poll lambda: previous.is_ended": _ends_never,
        "_IDS": _other_id,
        "poll lambda: copy.last == 1": finding(last=lambda last: last + 1),
    },
    "turn_is_found_again_after_its_successor_is_released": {
        "poll lambda: copy.is_ended": finding(lambda log: {} if log.is_ended else {"is_ended": 0}),
        "_IDS": _other_id,
        "poll lambda: found.is_ended": finding(lambda log: {"is_ended": 0} if log.is_ended else {}),
        "the number of events": finding(last=lambda last: last + 1),
    },
    "reader_that_needs_dropped_events_gets_an_error": {
        "poll lambda: copy.last == log.last": finding(last=lambda last: last + 1),
        "raises TurnTooLarge": reading(lambda log, after: log.read(max(after, 98))),
        "_EVENTS": (_reversed, _without_the_first),
    },
    "sessions_are_independent_and_their_ids_may_have_any_characters": {
        "poll partial(copy.has_more, 0)": finding(lambda _: {"has_more": has_nothing}),
        "_EVENTS": (_without_the_first, {"find": find_one_session}),
    },
    "callers_of_one_process_share_a_log": {
        "find() must return the same object again": finding(),
    },
    "thousand_events_arrive_complete_and_in_order": {
        "poll lambda: copy.is_ended": finding(is_ended=lambda _: False),
        "_EVENTS": (_reversed, _without_the_first),
    },
    "forked_child_is_another_process": {
        "find() must return the log": in_a_child(finding()),
        "_EXIT_CODE": in_a_child({"close": fail}),
        "find() in the parent process must return its own log": in_the_parent(finding()),
        "the end": claiming_with("finish", finish_without_a_confirmation),
        "_EVENTS": claiming_with("read", read_without_the_first),
    },
}
# The bugs that checks in helper functions detect, each with a test that calls the function.
HELPER_BUGS: Mapping[Callable[..., Any], Mapping[str, tuple[str, Bug]]] = {
    turn_stores._start: {  # pyright: ignore[reportPrivateUsage]
        "the replaced turn": (
            "callers_of_one_process_share_a_log",
            claiming(other_turn, turn_id="turn-1"),
        ),
    },
    turn_stores._find: {  # pyright: ignore[reportPrivateUsage]
        "find() must return the turn of the session *": (
            "callers_of_one_process_share_a_log",
            {"find": lambda *_: None},
        ),
    },
    LocalTurnStoreContract.check_in_child: {
        "the turn of the parent": (
            "forked_child_is_another_process",
            in_a_child({"find": lambda *arguments: find(*arguments) or other_turn()}),
        ),
    },
}


class QuickContract(LocalTurnStoreContract):
    timeout: ClassVar[float] = 0.1

    def make_store(self, *, keep_seconds: float, lease_seconds: float) -> MemoryTurnStore:
        return MemoryTurnStore(keep_seconds=keep_seconds / 20)


def run_each(test: str) -> None:
    """Run a test of the contract with all its parameters."""
    contract, function = QuickContract(), getattr(QuickContract, f"test_{test}")
    if "forked_child" in test:
        # On a busy machine, the child needs some time.
        contract.timeout = 10.0  # type: ignore[misc]
    for arguments in arguments_of(function):
        given = {**arguments, "stores": contract.make_stores()}
        names = [*signature(function).parameters][1:]
        function(contract, **{name: given[name] for name in names})


@pytest.mark.parametrize("test", BUGS)
def test_contract_accepts_a_local_store_without_a_bug(
    test: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test that always fails would detect each bug."""
    monkeypatch.setattr(QuickContract, "timeout", 10.0)
    run_each(test)


def replaced(monkeypatch: pytest.MonkeyPatch, store: type[TurnStore], bug: Bug) -> None:
    for method, wrong in bug.items():
        monkeypatch.setattr(store, method, wrong)


@pytest.mark.parametrize(("test", "label", "bug"), rows_of(BUGS))
def test_only_this_check_detects_the_bug(
    monkeypatch: pytest.MonkeyPatch, test: str, label: str, bug: Bug
) -> None:
    replaced(monkeypatch, MemoryTurnStore, bug)
    with recorded(getattr(QuickContract, f"test_{test}")) as failures:
        run_each(test)
    assert failures.labels == {label}


@pytest.mark.parametrize(
    ("function", "label", "test", "bug"),
    [
        pytest.param(function, label, *row, id=f"{function.__name__}-{label}")
        for function, labels in HELPER_BUGS.items()
        for label, row in labels.items()
    ],
)
def test_only_this_check_of_a_helper_detects_the_bug(
    monkeypatch: pytest.MonkeyPatch, function: Any, label: str, test: str, bug: Bug
) -> None:
    replaced(monkeypatch, MemoryTurnStore, bug)
    with recorded(function) as failures:
        run_each(test)
    assert failures.labels == {label}


# Checks without bugs, each with a reason.
HARNESS: Mapping[str, str] = {
    "LocalTurnStoreContract.poll: an expected change was not made in * s": (
        "without the check, the test never ends"
    ),
    "_replace: claim() must return the running turn": (
        "without the check, the result None raises an AttributeError"
    ),
    "copy_ends_with_reader_lost_if_the_reading_process_is_killed: poll lambda: copy.last == 1": (
        "the timer of the child expires at the same moment, so the exit code of the child is wrong"
    ),
    "TurnStoreContract.check_in_child: poll lambda: copy.last == 1": (
        "the timer of the child expires at the same moment, so the exit code of the child is wrong"
    ),
}

# --- bugs of stores that several processes share

kept: list[TurnLog | None] = []
asking: list[threading.Thread] = []


def claim_and_keep(store: RedisTurnStore, id: str, log: TurnLog, *, refuse: bool) -> Any:
    kept.append(log)
    return redis_claim(store, id, log, refuse=refuse)


def close_and_end_turns(store: RedisTurnStore) -> None:
    redis_close(store)
    for log in filter(None, kept):
        log.finish(LogEnd())


def close_without_an_error(store: RedisTurnStore) -> None:
    for log in filter(None, kept):
        log.finish(LogEnd())
    redis_close(store)


def find_and_keep(store: RedisTurnStore, session_id: str) -> TurnLog | None:
    kept.append(found := redis_find(store, session_id))
    return found


def ask_and_release(store: RedisTurnStore, *arguments: Any) -> None:
    asking.append(threading.current_thread())
    redis_release(store, *arguments)
    with suppress(Exception):  # The contract may close the client during the call.
        client = store._process.get()._client  # pyright: ignore[reportPrivateUsage]
        client.execute_command("EXISTS", "turn")


def do_nothing(store: RedisTurnStore, *arguments: Any) -> None: ...


def claim_nothing(*_: object, **__: object) -> None: ...


def only_for(session: str, wrong: Any, correct: Any) -> Any:
    def method(store: RedisTurnStore, id: str, *arguments: Any, **options: Any) -> Any:
        return (wrong if id == session else correct)(store, id, *arguments, **options)

    return method


_redis_methods: dict[str, Any] = {"find": redis_find, "claim": redis_claim}
_lost = finding(end=lambda end: end and LogEnd(StreamIdleTimeout("lost")), method=redis_find)

REDIS_BUGS: Mapping[str, Mapping[str, Bugs]] = {
    "copy_ends_with_reader_lost_if_the_reading_process_is_killed": {
        "poll lambda: copy.is_ended": finding(is_ended=lambda _: False, method=redis_find),
        "the error of the copy": _lost,
        "_EVENTS": reading(read_without_the_first, method=redis_find),
    },
    "threads_end_when_the_stores_are_closed": {
        "poll lambda: not any((thread.is_alive() for thread in started))": {"close": do_nothing},
    },
    "closing_a_store_ends_its_copies": {
        "the copied log must end with an error": {
            "find": find_and_keep,
            "close": close_without_an_error,
        },
        "the end of the turn": {"claim": claim_and_keep, "close": close_and_end_turns},
    },
    "unreferenced_copy_is_garbage_collected": {
        "poll lambda: gc.collect() >= 0 and copy() is None": {"find": find_and_keep},
        "the new copy's turn_id": finding(lambda _: {"turn_id": "other"}, method=redis_find),
    },
    "release_does_not_wait_for_another_program": {
        "release() must not block": {"release": ask_and_release},
        "the released turn": {"release": do_nothing},
    },
}
REDIS_HELPER_BUGS: Mapping[str, Bug] = {
    "raises TurnRunning": in_a_child(
        {"claim": only_for("session-1", claim_nothing, redis_claim)}, **_redis_methods
    ),
}


# Without the GIL, a socket in garbage can be freed before the connection of redis that closes it.
in_any_order = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@contextmanager
def redis_contract(servers: Servers, bug: Bug) -> Generator[RedisContract, None, None]:
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr(RedisContract, "timeout", 3.0)
        contract = RedisContract()
        contract.stack, contract.server = stack, servers.single
        stack.enter_context(contract.client()).flushall()
        kept.clear()
        stack.callback(kept.clear)
        # Close the stores with their correct method.
        stores: list[RedisTurnStore] = []
        stack.callback(lambda: [redis_close(store) for store in stores])
        make_store = contract.make_store

        def make_and_record(**options: Any) -> RedisTurnStore:
            stores.append(store := make_store(**options))
            return store

        contract.make_store = make_and_record  # type: ignore[method-assign]
        replaced(patch, RedisTurnStore, bug)
        yield contract
        for thread in asking:
            thread.join()
        asking.clear()


def run_over_redis(contract: RedisContract, test: str) -> None:
    function = getattr(contract, f"test_{test}")
    function(*([contract.make_stores()] if "stores" in signature(function).parameters else []))


@needs_redis
@in_any_order
@pytest.mark.parametrize(("test", "label", "bug"), rows_of(REDIS_BUGS))
def test_only_this_check_detects_the_bug_of_a_shared_store(
    servers: Servers, test: str, label: str, bug: Bug
) -> None:
    with redis_contract(servers, bug) as contract:
        function = getattr(RedisContract, f"test_{test}")
        with recorded(function) as failures:
            run_over_redis(contract, test)
    assert failures.labels == {label}


@needs_redis
@forks_while_threads_run
@in_any_order
@pytest.mark.parametrize(("label", "bug"), REDIS_HELPER_BUGS.items())
def test_only_this_check_in_a_child_detects_the_bug(servers: Servers, label: str, bug: Bug) -> None:
    with (
        redis_contract(servers, bug) as contract,
        recorded(TurnStoreContract.check_in_child) as failures,
    ):
        run_over_redis(contract, "forked_child_is_another_process")
    assert failures.labels == {label}


def test_each_check_has_a_bug_that_only_it_detects() -> None:
    """A missing check here needs a row in `BUGS`, `HELPER_BUGS` or `REDIS_BUGS`."""
    helpers = {each.__qualname__: labels for each, labels in HELPER_BUGS.items()}
    in_children = {"TurnStoreContract.check_in_child": REDIS_HELPER_BUGS}
    tables: Mapping[str, Mapping[str, Any]]
    tables = {**BUGS, **REDIS_BUGS, **helpers, **in_children}
    rows = {f"{name}: {label}" for name, labels in tables.items() for label in labels}
    known = names_of_checks("turn_stores")
    assert (known - rows - HARNESS.keys(), (rows | HARNESS.keys()) - known) == (set(), set())
