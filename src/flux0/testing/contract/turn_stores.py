"""The contract tests for turn stores, which share background turns between processes."""

# ruff: noqa: S101 - the tests in this module use assert statements

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from functools import partial
from typing import ClassVar, Final, TypeAlias, TypeVar

import pytest

from flux0.domain.background_errors import ReaderLost, TurnRunning, TurnTooLarge
from flux0.domain.errors import StreamIdleTimeout
from flux0.runtime.turn_log import LogEnd, TurnLog
from flux0.testing.contract import forking
from flux0.testing.contract.base import check
from flux0.turn_store import TurnStore

T = TypeVar("T")
Stores: TypeAlias = tuple[TurnStore, TurnStore]

_DONE: Final = LogEnd(finished=True)
_SESSION: Final = "session-1"
_IDS: Final = "the ids of the found turns"
_EVENTS: Final = "the events"
_EXIT_CODE: Final = "the exit code of the child"


class LocalTurnStoreContract:
    """The contract tests that every `TurnStore` must pass, even if it serves only one process.

    Define the method `make_store` in a subclass.

    Attributes:
        timeout: The longest time, in seconds, for which a test waits for an expected change.
    """

    timeout: ClassVar[float] = 20.0

    def make_store(self, *, keep_seconds: float, lease_seconds: float) -> TurnStore:
        """Return a new store.

        Args:
            keep_seconds: The time in seconds for which the store keeps a turn after its end.
            lease_seconds: The time in seconds after which the store reports that the process which
                reads a turn was killed.
        """
        raise NotImplementedError(f"{type(self).__name__} must define make_store()")

    def make_stores(self, *, keep_seconds: float = 300.0, lease_seconds: float = 20.0) -> Stores:
        """Return the same store twice, because the store serves only one process."""
        store = self.make_store(keep_seconds=keep_seconds, lease_seconds=lease_seconds)
        return store, store

    @pytest.fixture
    def stores(self) -> Iterator[Stores]:
        """The stores of two processes. They are closed after the test."""
        first, second = self.make_stores()
        with closing(first), closing(second):
            yield first, second

    def test_session_without_a_turn_has_none(self, stores: Stores) -> None:
        check(stores[0].find(_SESSION), None, "the turn of a new session")

    def test_events_and_end_reach_the_other_process(self, stores: Stores) -> None:
        """A copy in the other process has the turn's id, size limit, span, events and end."""
        log = _start(stores[0])
        log.trace_parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        log.append(_event(1))
        copy = _find(stores[1])
        check((copy.turn_id, copy.max_bytes), ("turn-1", 1000), "the copied turn_id and max_bytes")
        self.poll(lambda: copy.last == 1)
        check(copy.trace_parent, log.trace_parent, "the span of the copy")
        for number in (2, 3, 4):
            log.append(_event(number))
        self.poll(lambda: copy.last == log.last)
        check(list(copy.read(0)), [_event(number) for number in (1, 2, 3, 4)], _EVENTS)
        check(copy.end, None, "the end of a running turn's copied log")
        error = StreamIdleTimeout("no event")
        error.correlation_id = "RID(1)"
        log.finish(LogEnd(error))
        end = self.poll(lambda: copy.end)
        check(repr(end.error), repr(error), "the error of the copy")
        check(vars(end.error), vars(error), "the copied error's attributes")

    def test_ended_turn_is_found(self, stores: Stores) -> None:
        log = _start(stores[0])
        log.append(_event(1))
        log.finish(_DONE)
        copy = _find(stores[1])
        check(self.poll(lambda: copy.end), _DONE, "the end")
        check(list(copy.read(0)), [_event(1)], _EVENTS)

    def test_ended_turns_expire(self) -> None:
        """Turns expire, too, after `release` has undone a later turn of the session."""
        first, second = self.make_stores(keep_seconds=1.0, lease_seconds=1.0)
        with closing(first), closing(second):
            _start(first).finish(_DONE)
            for session_id, ends_before in (("before", True), ("after", False)):
                log, later = _start(first, session_id), _log(f"after {session_id}")
                if ends_before:
                    log.finish(_DONE)
                previous = second.claim(session_id, later, refuse=False)
                later.finish(LogEnd())
                second.release(session_id, later, previous)
                log.finish(_DONE)
            for session_id in (_SESSION, "before", "after"):
                for store in (first, second):
                    self.poll(partial(_is_missing, store, session_id))

    def test_claim_is_refused_while_a_turn_is_running_in_any_process(self, stores: Stores) -> None:
        """`claim` raises an error with `sent == "no"`, and the session keeps its running turn."""
        _start(stores[0])
        for store in stores:
            sent = ""
            try:
                store.claim(_SESSION, _log("turn-2"), refuse=True)
            except TurnRunning as error:
                sent = error.sent
            check((sent, _find(store).turn_id), ("no", "turn-1"), "`sent` and the id")

    @pytest.mark.parametrize("refuse", [True, False])
    def test_claim_after_an_ended_turn_replaces_it(self, stores: Stores, refuse: bool) -> None:
        _start(stores[0]).finish(_DONE)
        copy = _find(stores[1])
        self.poll(lambda: copy.is_ended)
        previous = stores[1].claim(_SESSION, _log("turn-2"), refuse=refuse)
        assert previous is None or previous.is_ended, "claim() must not return another turn"
        check(_ids(stores), ["turn-2"] * 2, _IDS)

    def test_claim_returns_the_running_turn_which_can_be_stopped(self, stores: Stores) -> None:
        reasons: list[str] = []
        log, later = _log("turn-1", stop=reasons.append), _log("turn-2")
        stores[0].claim(_SESSION, log, refuse=True)
        previous = _replace(stores[1], later)
        check((previous.turn_id, previous.is_ended), ("turn-1", False), "the replaced turn")
        check(_find(stores[1]).turn_id, "turn-2", "the id of the found turn")
        previous.stop("another message")
        self.poll(lambda: reasons == ["another message"])
        log.finish(LogEnd())
        self.poll(lambda: previous.is_ended)
        check(_ids(stores), ["turn-2"] * 2, _IDS)

    def test_found_turn_can_be_stopped_from_both_processes(self, stores: Stores) -> None:
        """`TurnLog.stop` of a copy calls the stop function in the process that reads the turn."""
        reasons: list[str] = []
        stores[0].claim(_SESSION, _log(stop=reasons.append), refuse=True)
        for store in stores:
            _find(store).stop("the stop button")
            self.poll(lambda: reasons == ["the stop button"])
            reasons.clear()

    def test_released_turn_is_not_found(self, stores: Stores) -> None:
        """After the release of a turn, `find` in the same process and `claim` return None."""
        log = _start(stores[0])
        log.finish(LogEnd())
        stores[0].release(_SESSION, log, None)
        check(stores[0].find(_SESSION), None, "the released turn")
        check(stores[1].claim(_SESSION, _log("turn-2"), refuse=True), None, "the replaced turn")

    def test_released_turn_ends_for_those_who_wait_for_it(self, stores: Stores) -> None:
        """If another turn has replaced the released turn, the session keeps the other turn."""
        log, later = _start(stores[0]), _log("turn-2")
        previous = _replace(stores[1], later)
        log.finish(LogEnd())
        stores[0].release(_SESSION, log, None)
        self.poll(lambda: previous.is_ended)
        check(_ids(stores), ["turn-2"] * 2, _IDS)
        later.append(_event(1))
        copy = _find(stores[0])
        self.poll(lambda: copy.last == 1)

    @pytest.mark.parametrize("ends", ["before", "during", "after"])
    def test_turn_is_found_again_after_its_successor_is_released(
        self, stores: Stores, ends: str
    ) -> None:
        """The first turn ends before, during or after the second turn, which replaced it."""
        log, later = _start(stores[0]), _log("turn-2")
        copy = _find(stores[1])

        def finish() -> None:
            log.finish(_DONE)
            self.poll(lambda: copy.is_ended)

        if ends == "before":
            finish()
        previous = stores[1].claim(_SESSION, later, refuse=False)
        if ends == "during":
            finish()
        later.finish(LogEnd())
        stores[1].release(_SESSION, later, previous)
        check([_find(store).turn_id for store in reversed(stores)], ["turn-1"] * 2, _IDS)
        log.append(_event(1))
        log.finish(_DONE)
        found = _find(stores[1])
        self.poll(lambda: found.is_ended)
        check(found.last, int(ends == "after"), "the number of events")

    def test_reader_that_needs_dropped_events_gets_an_error(self, stores: Stores) -> None:
        """A copied log that exceeds its size limit (`max_bytes`) drops its oldest events."""
        log = _start(stores[0])
        for number in range(1, 101):
            log.append(_event(number, 80))
        copy = _find(stores[1])
        self.poll(lambda: copy.last == log.last)
        with pytest.raises(TurnTooLarge):
            copy.read(0)
        check(list(copy.read(98)), [_event(99, 80), _event(100, 80)], _EVENTS)

    def test_sessions_are_independent_and_their_ids_may_have_any_characters(
        self, stores: Stores
    ) -> None:
        for session_id in ("}a{", "{}", "a b:c", "\u00e9", "a" * 900):
            size = len(session_id)
            _start(stores[0], session_id).append(_event(1, size))
            copy = _find(stores[1], session_id)
            self.poll(partial(copy.has_more, 0))
            check(list(copy.read(0)), [_event(1, size)], _EVENTS)

    def test_callers_of_one_process_share_a_log(self, stores: Stores) -> None:
        _start(stores[0])
        assert _find(stores[1]) is _find(stores[1]), "find() must return the same object again"

    def test_thousand_events_arrive_complete_and_in_order(self, stores: Stores) -> None:
        log = _log(max_bytes=10**6)
        stores[0].claim(_SESSION, log, refuse=True)
        copy = _find(stores[1])
        events = [_event(number) for number in range(1, 1001)]
        for each in events:
            log.append(each)
        log.finish(_DONE)
        self.poll(lambda: copy.is_ended)
        check(list(copy.read(0)), events, _EVENTS)

    @forking.forks_while_threads_run
    def test_forked_child_is_another_process(self, stores: Stores) -> None:
        """A forked child can use its parent's store. The parent still reads its own turns."""
        log = _start(stores[0])
        log.append(_event(1))

        def work() -> None:  # pragma: no cover - in the child
            self.check_in_child(stores[0])
            own = _start(stores[0], "session of the child")
            assert _find(stores[0], "session of the child") is own, "find() must return the log"
            own.finish(_DONE)
            stores[0].close()

        check(forking.child_exit_code(work, self.timeout), 0, _EXIT_CODE)
        assert _find(stores[0]) is log, "find() in the parent process must return its own log"
        copy = _find(stores[1])
        log.append(_event(2))
        log.finish(_DONE)
        check(self.poll(lambda: copy.end), _DONE, "the end")
        check(list(copy.read(0)), [_event(1), _event(2)], _EVENTS)

    def check_in_child(self, store: TurnStore) -> None:  # pragma: no cover - in the child
        """Check that `store` in a forked child does not find its parent's turn."""
        check(store.find(_SESSION), None, "the turn of the parent")

    def poll(self, condition: Callable[[], T | None]) -> T:
        """Call `condition` until its result is true, and return the result."""
        end = time.monotonic() + self.timeout
        while not (result := condition()):
            assert time.monotonic() < end, f"an expected change was not made in {self.timeout:g} s"
            time.sleep(0.001)
        return result


class TurnStoreContract(LocalTurnStoreContract):
    """The contract tests that a `TurnStore` must pass if several processes share its turns.

    Define the method `make_store` in a subclass. All stores that one test creates must share their
    turns. If the store uses another program, such as a database, define `paused` as well.
    """

    def paused(self) -> AbstractContextManager[object]:
        """Return a context manager in which the program that the store uses does not respond."""
        return nullcontext()

    def make_stores(self, *, keep_seconds: float = 300.0, lease_seconds: float = 20.0) -> Stores:
        """Return the stores of two processes."""
        make = partial(self.make_store, keep_seconds=keep_seconds, lease_seconds=lease_seconds)
        return make(), make()

    def check_in_child(self, store: TurnStore) -> None:  # pragma: no cover - in the child
        """Check that `store` in a forked child finds a copy of its parent's running turn."""
        copy = _find(store)
        self.poll(lambda: copy.last == 1)
        with pytest.raises(TurnRunning):
            store.claim(_SESSION, _log("turn-2"), refuse=True)

    def test_copy_ends_with_reader_lost_if_the_reading_process_is_killed(self) -> None:
        """The log's copy in another process keeps its events. The session accepts another turn."""
        read_end, write_end = os.pipe()
        make_stores = partial(self.make_stores, lease_seconds=1.0)

        def work() -> None:  # pragma: no cover - in the child
            os.close(write_end)
            store, _ = make_stores()
            _start(store).append(_event(1))
            os.read(read_end, 1)
            os.kill(os.getpid(), signal.SIGKILL)

        with ExitStack() as ending:
            # Fork before other threads start: a lock that they hold stays locked in the child.
            child = forking.start_child(work, self.timeout)
            ending.callback(lambda: check(forking.exit_code(child), -signal.SIGKILL, _EXIT_CODE))
            for end in (read_end, write_end):
                ending.callback(os.close, end)
            store, _ = (ending.enter_context(closing(each)) for each in make_stores())
            copy = self.poll(lambda: store.find(_SESSION))
            self.poll(lambda: copy.last == 1)
            os.write(write_end, b".")
            self.poll(lambda: copy.is_ended)
            check(copy.end and type(copy.end.error), ReaderLost, "the error of the copy")
            check(list(copy.read(0)), [_event(1)], _EVENTS)
            store.claim(_SESSION, _log("turn-2"), refuse=True)

    def test_threads_end_when_the_stores_are_closed(self) -> None:
        before = set(threading.enumerate())
        stores = self.make_stores()
        _start(stores[0]).finish(_DONE)
        stores[1].find(_SESSION)
        started = {*threading.enumerate()} - before
        for store in (*stores, *stores):
            store.close()
        self.poll(lambda: not any(thread.is_alive() for thread in started))

    def test_closing_a_store_ends_its_copies(self, stores: Stores) -> None:
        """A running turn's copied log ends with an error. The turn continues in its process."""
        log = _start(stores[0])
        copy = _find(stores[1])
        stores[1].close()
        end = self.poll(lambda: copy.end)
        assert end.error is not None, "the copied log must end with an error"
        check(log.end, None, "the end of the turn")

    def test_unreferenced_copy_is_garbage_collected(self, stores: Stores) -> None:
        """A process receives a turn's events as long as it has the turn's copied log in memory."""
        log = _start(stores[0])
        copy = weakref.ref(_find(stores[1]))
        log.append(_event(1))
        self.poll(lambda: gc.collect() >= 0 and copy() is None)
        check(_find(stores[1]).turn_id, "turn-1", "the new copy's turn_id")

    def test_release_does_not_wait_for_another_program(self, stores: Stores) -> None:
        """`release` must not wait for a database, because it is called in event loops."""
        log = _start(stores[0])
        log.finish(LogEnd())
        arguments = (_SESSION, log, None)
        release = threading.Thread(target=stores[0].release, args=arguments, daemon=True)
        with self.paused():
            release.start()
            release.join(self.timeout)
            assert not release.is_alive(), "release() must not block"
        check(stores[0].find(_SESSION), None, "the released turn")


def _log(
    turn_id: str = "turn-1", *, max_bytes: int = 1000, stop: Callable[[str], object] = str
) -> TurnLog:
    return TurnLog(turn_id, max_bytes, stop)


def _start(store: TurnStore, session_id: str = _SESSION) -> TurnLog:
    log = _log("turn-1" if session_id == _SESSION else f"turn of {session_id}")
    check(store.claim(session_id, log, refuse=True), None, "the replaced turn")
    return log


def _replace(store: TurnStore, later: TurnLog) -> TurnLog:
    previous = store.claim(_SESSION, later, refuse=False)
    assert previous is not None, "claim() must return the running turn"
    return previous


def _event(number: int, size: int = 0) -> bytes:
    return f"id: {number}\ndata: {'x' * size}\n\n".encode()


def _find(store: TurnStore, session_id: str = _SESSION) -> TurnLog:
    log = store.find(session_id)
    assert log is not None, f"find() must return the turn of the session {session_id!r}"
    return log


def _is_missing(store: TurnStore, session_id: str) -> bool:
    return store.find(session_id) is None


def _ids(stores: Stores) -> list[str]:
    return [_find(store).turn_id for store in stores]
