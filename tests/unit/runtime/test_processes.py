"""Functions that finalizers and signal handlers call."""

from __future__ import annotations

from threading import Event, Lock

from flux0.runtime.processes import call_with_lock

TOO_LONG = 10.0


def test_function_is_called_when_the_lock_is_free() -> None:
    lock, called = Lock(), Event()
    with lock:
        call_with_lock(lock, called.set)
        assert not called.is_set()
    assert called.wait(TOO_LONG)
    with lock:
        pass


def test_function_is_called_at_once_if_the_lock_is_free() -> None:
    lock, called = Lock(), Event()
    call_with_lock(lock, called.set)
    assert called.is_set()
    assert not lock.locked()
