"""The system time: its alarms, and the thread that calls them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from queue import SimpleQueue
from weakref import finalize

import anyio
import pytest

from flux0.runtime.time import SystemTime
from flux0.testing.contract.byte_server import DEFAULT_TIMEOUT
from support.in_memory import in_simulated_time
from support.time_zone import local_time_zone
from support.transports import Mode

LATER = 3600.0
SOON = 0.02


def alarm_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "flux0-alarms"]


class WatchedTime(SystemTime):
    """A `SystemTime` whose alarms record words. `threads` returns its own alarm threads."""

    def __init__(self) -> None:
        super().__init__()
        self._other_threads = alarm_threads()
        self._words: SimpleQueue[str] = SimpleQueue()

    def set_alarm(self, seconds: float, word: str) -> Callable[[], object]:
        """Set an alarm that records `word` after `seconds`; return a function that cancels it."""
        return self.alarm(self.monotonic() + seconds, lambda: self._words.put(word))

    def next_word(self) -> str:
        return self._words.get(timeout=DEFAULT_TIMEOUT)

    def threads(self) -> list[threading.Thread]:
        return [thread for thread in alarm_threads() if thread not in self._other_threads]

    def join(self) -> None:
        """Wait for the alarm thread's end, and check that no more words were recorded."""
        for thread in self.threads():
            thread.join(DEFAULT_TIMEOUT)
        assert self.threads() == []
        assert self._words.empty()


@pytest.fixture
def time() -> WatchedTime:
    return WatchedTime()


@pytest.fixture
def far_away() -> Iterator[None]:
    """The local time differs from UTC."""
    with local_time_zone("Asia/Tokyo"):
        yield


@pytest.mark.usefixtures("far_away")
def test_utc_now_is_the_system_date_and_jitter_is_between_0_and_1(time: WatchedTime) -> None:
    before = datetime.now(timezone.utc)
    assert before <= time.utc_now() <= datetime.now(timezone.utc)
    drawn = [time.jitter() for _ in range(1000)]
    assert 0 <= min(drawn) < 0.1
    assert 0.9 < max(drawn) <= 1


def test_alarm_is_called_once_and_not_early(time: WatchedTime) -> None:
    calls: SimpleQueue[float] = SimpleQueue()
    moment = time.monotonic() + SOON
    time.alarm(moment, lambda: calls.put(time.monotonic()))
    assert calls.get(timeout=DEFAULT_TIMEOUT) >= moment
    time.join()
    assert calls.empty()


def test_alarms_are_called_in_the_order_of_their_moments(time: WatchedTime) -> None:
    later = time.set_alarm(LATER, "later")
    time.set_alarm(2 * SOON, "second")
    time.set_alarm(SOON, "first")
    assert [time.next_word(), time.next_word()] == ["first", "second"]
    assert len(time.threads()) == 1
    later()
    time.set_alarm(0, "overdue")  # This wakes the thread, which then ends.
    assert time.next_word() == "overdue"
    time.join()


def test_cancelled_alarm_is_not_called(time: WatchedTime) -> None:
    cancelled = threading.Event()
    time.alarm(time.monotonic(), cancelled.wait)  # The thread calls no other alarm until then.
    cancel = time.set_alarm(0, "cancelled")
    cancel()
    cancel()
    time.set_alarm(0, "kept")
    cancelled.set()
    assert time.next_word() == "kept"
    time.join()


def test_cancelled_alarm_is_freed_while_the_thread_waits(time: WatchedTime) -> None:
    """The alarm of a call refers to its connection, which must not stay open until `LATER`."""

    def act() -> None: ...

    freed = threading.Event()
    finalize(act, freed.set)
    cancel = time.alarm(time.monotonic() + LATER, act)
    time.set_alarm(0, "now")
    assert time.next_word() == "now"
    cancel()
    del act, cancel
    assert freed.wait(DEFAULT_TIMEOUT)


def test_alarm_that_raises_does_not_stop_the_others(time: WatchedTime) -> None:
    def fail() -> None:
        raise OSError

    time.alarm(time.monotonic() + SOON, fail)
    time.set_alarm(SOON, "the other")
    assert time.next_word() == "the other"
    time.join()


def test_ended_alarm_thread_is_started_again(time: WatchedTime) -> None:
    for word in ("once", "again"):
        time.set_alarm(0, word)
        assert time.next_word() == word
        time.join()


def test_alarm_may_be_later_than_the_longest_possible_wait(time: WatchedTime) -> None:
    cancel = time.set_alarm(1e30, "much later")
    time.set_alarm(0, "sooner")
    assert time.next_word() == "sooner"
    cancel()
    time.set_alarm(0, "last")
    assert time.next_word() == "last"
    time.join()


def test_forked_child_has_its_own_alarms(time: WatchedTime) -> None:
    time.set_alarm(LATER, "later")
    child = os.fork()
    if child == 0:  # pragma: no cover - runs in the child
        time.set_alarm(0, "called")
        os._exit(time.next_word() != "called")
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("at_exit", [False, True], ids=["running", "ending"])
def test_alarm_does_not_keep_the_process_alive(*, at_exit: bool) -> None:
    """With `at_exit`, the alarm is set while Python exits and can start no thread."""
    code = (
        "import atexit\n"
        "from flux0.runtime.time import SystemTime\n"
        "time = SystemTime()\n"
        f"later = time.monotonic() + {LATER}\n"
        "set = lambda: print(time.alarm(later, print) is not None)\n"
        f"{'atexit.register(set)' if at_exit else 'set()'}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_sleep_waits() -> None:
    time = SystemTime()
    start = time.monotonic()
    time.sleep(SOON)
    assert time.monotonic() - start >= SOON


@in_simulated_time
async def test_async_sleep_waits(mode: Mode) -> None:
    start = anyio.current_time()
    await SystemTime().sleep_async(LATER)
    assert (mode, anyio.current_time() - start) == (mode, LATER)


def test_interruptible_sleep_waits_at_most_as_long_as_a_lock_can() -> None:
    waits: list[float] = []
    for seconds in (LATER, 1e30):
        SystemTime().sleep_or_wake(seconds, waits.append)
    assert waits == [LATER, threading.TIMEOUT_MAX]
