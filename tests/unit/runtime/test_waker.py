"""A waker: one thread wakes another, before or during its wait."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from flux0.runtime.waker import Waker

TOO_LONG = 20.0


def test_several_wakes_end_one_wait() -> None:
    waker = Waker()
    assert not waker.wait(0)
    waker.wake()
    waker.wake()
    assert waker.wait(0)
    assert not waker.wait(0)


def test_wake_in_another_thread_ends_the_wait() -> None:
    waker = Waker()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(waker.wait, TOO_LONG)
        waker.wake()
        assert waiting.result(TOO_LONG)
