"""Resources and locks of a process and its forks."""

from __future__ import annotations

import os
import sys
from _thread import start_new_thread
from queue import SimpleQueue
from threading import Event, Lock, Thread, current_thread
from typing import Any, cast

import pytest

from flux0.runtime import processes
from flux0.runtime.processes import (
    RUNNING,
    PerProcess,
    call_with_lock,
    run_in_new_thread,
    start_thread,
)
from support.forking import in_child

TOO_LONG = 10.0


def test_function_is_called_by_one_thread_when_the_lock_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock, called, waits, threads = Lock(), Event(), Event(), list[object]()

    class Watched:
        def acquire(self, *, blocking: bool) -> bool:
            if threads:
                waits.set()
            return lock.acquire(blocking=blocking)

        def release(self) -> None:
            lock.release()

    def start(act: Any, args: tuple[()]) -> None:
        threads.append(act)
        start_new_thread(act, args)

    monkeypatch.setattr(processes, "start_new_thread", start)
    with lock:
        call_with_lock(cast("Any", Watched()), called.set)
        assert waits.wait(TOO_LONG)
        assert not called.is_set()
    assert called.wait(TOO_LONG)
    assert len(threads) == 1
    with lock:
        pass


def test_function_is_called_at_once_if_the_lock_is_free() -> None:
    lock, called = Lock(), Event()
    call_with_lock(lock, called.set)
    assert called.is_set()
    assert not lock.locked()


def test_new_thread_calls_the_function_unless_the_interpreter_exits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = Event()
    assert run_in_new_thread(called.set)
    assert called.wait(TOO_LONG)
    called.clear()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "is_finalizing", lambda: True)
        assert not run_in_new_thread(called.set)
    assert not called.is_set()


def test_started_thread_is_a_daemon_with_the_name() -> None:
    started: SimpleQueue[Thread] = SimpleQueue()
    start_thread(lambda: started.put(current_thread()), "flux0-test")
    thread = started.get(timeout=TOO_LONG)
    assert (thread.name, thread.daemon) == ("flux0-test", True)


def test_started_thread_is_no_daemon_if_the_interpreter_has_no_daemon_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`test_subinterpreters` uses a real subinterpreter, on Python 3.13 and newer."""
    daemons: SimpleQueue[bool] = SimpleQueue()
    monkeypatch.setattr(processes, "DAEMON_THREADS", False)
    start_thread(lambda: daemons.put(current_thread().daemon), "flux0-test")
    assert daemons.get(timeout=TOO_LONG) is False


def test_all_threads_get_the_resource_that_was_stored_first() -> None:
    """Another thread creates the resource while `get` creates it. A nested call takes its place."""
    made: list[object] = []

    def make() -> object:
        if not made:
            made.append(None)
            made.append(resource.get())
        return object()

    resource = PerProcess(make)
    assert resource.get() is made[1]
    made.clear()
    assert resource.get() is not None
    assert made == []


def test_forked_child_has_its_own_resource_and_its_own_id() -> None:
    resource, parent = PerProcess(object), RUNNING.id
    parents = resource.get()

    def check() -> None:
        assert resource.get() is not parents
        assert RUNNING.id == os.getpid() != parent

    in_child(check)
    assert resource.get() is parents
    closed: list[object] = []
    for _ in range(2):
        resource.discard(closed.append)
    assert closed == [parents]
    assert RUNNING.id == os.getpid() == parent
