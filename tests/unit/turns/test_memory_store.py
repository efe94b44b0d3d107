"""`MemoryTurnStore`: what the contract of stores does not test."""

# The moment has no public name.
# pyright: reportPrivateUsage=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

import gc
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import permutations
from typing import Any

import pytest

from flux0 import MemoryTurnStore, TurnRunning
from flux0.runtime.event_loop import do_nothing
from flux0.runtime.turn_log import LogEnd, TurnLog
from flux0.turns import memory_store
from support.redis_server import wait_until


def new_log() -> TurnLog:
    return TurnLog("turn-1", 1000, lambda _: None)


def alarm_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "flux0-alarms"}


def test_expired_turns_are_removed_without_a_call() -> None:
    now, threads = [1000.0], alarm_threads()
    store = MemoryTurnStore(keep_seconds=0.05, clock=lambda: now[0])
    store.release("session", released := new_log(), store.claim("session", released, refuse=True))
    logs = [new_log() for _ in range(3)]
    for number in range(3):
        store.claim(f"session-{number}", logs[number], refuse=True)
    logs[0].finish(LogEnd())
    logs[1].finish(LogEnd())
    references = [*map(weakref.ref, logs)]
    del logs[:]
    assert store.find("session-1") is references[1]()

    now[0] += 1
    wait_until(lambda: not any(reference() for reference in references[:2]))
    running = references[2]()
    assert running is not None
    assert store.find("session-2") is running

    # Later turns are removed, too, after the store was empty.
    running.finish(LogEnd())
    del running
    now[0] += 1
    wait_until(lambda: references[2]() is None)
    later = new_log()
    store.claim("session", later, refuse=True)
    later.finish(LogEnd())
    reference = weakref.ref(later)
    del later
    now[0] += 1
    wait_until(lambda: reference() is None)
    # No thread looks for expired turns in an empty store.
    wait_until(lambda: alarm_threads() <= threads)


def test_expired_turns_are_removed_at_the_next_claim_in_a_subinterpreter_without_daemon_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory_store, "DAEMON_THREADS", False)
    now, threads = [1000.0], alarm_threads()
    store = MemoryTurnStore(keep_seconds=0.05, clock=lambda: now[0])
    store.claim("session-1", log := new_log(), refuse=True)
    log.finish(LogEnd())
    reference = weakref.ref(log)
    del log
    now[0] += 1
    store.claim("session-2", new_log(), refuse=True)
    assert reference() is None
    assert alarm_threads() <= threads


def test_store_without_references_is_freed_before_its_turns_expire() -> None:
    store, log = MemoryTurnStore(), new_log()
    store.claim("session", log, refuse=True)
    log.finish(LogEnd())
    reference = weakref.ref(store)
    del store, log
    gc.collect()
    assert reference() is None


class ClaimedTwice(TurnLog):
    """A log that starts a second claim of its session in the middle of its own claim."""

    claim_again: Callable[[], object] = do_nothing

    @property
    def on_end(self) -> Callable[[], object]:
        return self._on_end

    @on_end.setter
    def on_end(self, on_end: Callable[[], object]) -> None:
        self._on_end = on_end
        self.claim_again()


class AnnouncedLock:
    """A lock that calls a function before it is acquired."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.on_enter: Callable[[], object] = do_nothing

    def __enter__(self) -> None:
        self.on_enter()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_one_of_two_claims_at_the_same_time_is_refused() -> None:
    store, second = MemoryTurnStore(), new_log()
    lock: Any = AnnouncedLock()
    store._turns.get().changing = lock
    log = ClaimedTwice("turn-1", 1000, do_nothing)
    goes_on, threads = threading.Event(), ThreadPoolExecutor(1)
    results: list[Future[TurnLog | None]] = []

    def claim() -> TurnLog | None:
        try:
            return store.claim("session", second, refuse=True)
        finally:
            goes_on.set()

    def claim_again() -> None:
        lock.on_enter = goes_on.set
        results.append(threads.submit(claim))
        assert goes_on.wait(20)

    log.claim_again = claim_again
    with threads:
        assert store.claim("session", log, refuse=True) is None
        with pytest.raises(TurnRunning):
            results[0].result()
    assert store.find("session") is log


def test_turn_before_three_claims_is_found_after_all_were_released_in_any_order() -> None:
    for order in permutations(range(3)):
        store, kept, claims = MemoryTurnStore(), new_log(), [new_log() for _ in range(3)]
        store.claim("session", kept, refuse=True)
        kept.finish(LogEnd())
        previous = [store.claim("session", log, refuse=False) for log in claims]
        for number in order:
            claims[number].finish(LogEnd())
            store.release("session", claims[number], previous[number])
        assert store.find("session") is kept


def test_claim_can_be_released_after_the_store_was_closed() -> None:
    store, log = MemoryTurnStore(), new_log()
    store.claim("session", log, refuse=True)
    store.close()
    log.finish(LogEnd())
    store.release("session", log, None)
    assert store.find("session") is None


def test_closed_store_knows_no_turn() -> None:
    store, log = MemoryTurnStore(), new_log()
    store.claim("session", log, refuse=True)
    store.close()
    assert store.find("session") is None


def test_release_of_a_turn_that_was_replaced_changes_nothing() -> None:
    store, first, second = MemoryTurnStore(), new_log(), new_log()
    store.claim("session", first, refuse=True)
    store.claim("session", second, refuse=False)
    store.release("session", first, None)
    assert store.find("session") is second
    store.release("session", second, first)
    assert store.find("session") is None


def test_ended_turn_is_kept_for_a_while_also_if_a_later_claim_is_released() -> None:
    now = [1000.0]
    store, log = MemoryTurnStore(keep_seconds=60, clock=lambda: now[0]), new_log()
    store.claim("session", log, refuse=True)
    log.finish(LogEnd())
    now[0] += 60
    assert store.find("session") is log
    later = new_log()
    store.release("session", later, store.claim("session", later, refuse=True))
    assert store.find("session") is log
    now[0] += 1
    assert store.find("session") is None


def test_kept_turns_need_at_most_half_more_memory_than_their_bytes() -> None:
    store, size = MemoryTurnStore(), 0
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for turn in range(100):
            log = TurnLog(f"turn-{turn}", 10**6, lambda _: None)
            store.claim(f"session-{turn}", log, refuse=True)
            for number in range(1, 81):
                event = b"event: chunk\nid: %d\ndata: %s\n\n" % (number, b"x" * 220)
                log.append(event)
                size += len(event)
            log.finish(LogEnd(finished=True))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size > 100 * 19_000
    assert after - before < 1.5 * size


def test_memory_of_a_session_does_not_grow_with_its_ended_turns() -> None:
    store = MemoryTurnStore()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(1000):
            log = new_log()
            store.claim("session", log, refuse=True)
            log.finish(LogEnd(finished=True))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 100_000
