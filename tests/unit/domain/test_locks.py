"""The lock that an exception of a signal handler cannot leave held."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress

import pytest

from flux0.domain.locks import Busy, TryLock


def test_held_lock_raises_busy_and_stays_held() -> None:
    lock = TryLock()
    with lock:
        for _ in range(2):
            with pytest.raises(Busy), lock:
                pass
    with lock:
        pass


def test_lock_is_released_after_an_exception() -> None:
    lock = TryLock()
    with pytest.raises(ZeroDivisionError), lock:
        raise ZeroDivisionError
    with lock:
        pass


def test_lock_that_was_taken_stays_held() -> None:
    lock = TryLock()
    lock.take()
    with pytest.raises(Busy), lock:
        pass
    with pytest.raises(Busy):
        lock.take()


def test_waiting_continues_when_another_thread_releases_the_lock() -> None:
    lock, order = TryLock(), list[str]()

    def wait() -> None:
        started.set()
        with lock.waiting:
            order.append("waited")

    started, thread = threading.Event(), threading.Thread(target=wait)
    with lock.waiting:
        thread.start()
        started.wait()
        order.append("held")
    thread.join()
    assert order == ["held", "waited"]
    with lock:
        pass


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timers")
def test_exceptions_of_a_signal_handler_never_leave_the_lock_held() -> None:
    """Each lock is used by a function that a signal interrupts at a random instruction."""

    class Interruption(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interruption

    def use() -> None:
        used = list[int]()
        while True:
            with suppress(Busy), lock:
                used.append(1)
            with lock.waiting:
                used.append(1)

    previous = signal.signal(signal.SIGALRM, interrupt)
    lock = TryLock()
    try:
        for number in range(300):
            with suppress(Interruption):
                signal.setitimer(signal.ITIMER_REAL, 0.0002 + number * 1e-6)
                use()
            with lock:  # `Busy` would mean that the lock is still held.
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
