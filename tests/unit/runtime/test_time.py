"""Real time: what its alarms do, and when its thread ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timezone
from queue import SimpleQueue

import pytest

from flux0.runtime.time import SystemTime
from flux0.testing.contract.byte_server import PATIENCE

LATER = 3600.0
SOON = 0.02


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "flux0-alarms"]


class WatchedTime(SystemTime):
    """Keeps what its alarms say, and knows which threads are its own and not another test's."""

    def __init__(self) -> None:
        super().__init__()
        self._others = running()
        self._said: SimpleQueue[str] = SimpleQueue()

    def say(self, seconds: float, word: str) -> Callable[[], object]:
        """Have `word` said in so many seconds; return what cancels it."""
        return self.alarm(self.monotonic() + seconds, lambda: self._said.put(word))

    def hear(self) -> str:
        return self._said.get(timeout=PATIENCE)

    def threads(self) -> list[threading.Thread]:
        return [thread for thread in running() if thread not in self._others]

    def join(self) -> None:
        """Wait for the end of the thread, after which nothing more is said."""
        for thread in self.threads():
            thread.join(PATIENCE)
        assert self.threads() == []
        assert self._said.empty()


@pytest.fixture
def time() -> WatchedTime:
    return WatchedTime()


def test_the_date_is_that_of_the_machine_and_jitter_anything_from_0_to_1(time: WatchedTime) -> None:
    before = datetime.now(timezone.utc)
    assert before <= time.utc_now() <= datetime.now(timezone.utc)
    drawn = [time.jitter() for _ in range(1000)]
    assert 0 <= min(drawn) < 0.1
    assert 0.9 < max(drawn) <= 1


def test_an_alarm_goes_off_once_and_not_too_early(time: WatchedTime) -> None:
    heard: SimpleQueue[float] = SimpleQueue()
    moment = time.monotonic() + SOON
    time.alarm(moment, lambda: heard.put(time.monotonic()))
    assert heard.get(timeout=PATIENCE) >= moment
    time.join()
    assert heard.empty()


def test_alarms_go_off_in_the_order_of_their_moments(time: WatchedTime) -> None:
    later = time.say(LATER, "later")
    time.say(2 * SOON, "second")
    time.say(SOON, "first")
    assert [time.hear(), time.hear()] == ["first", "second"]
    assert len(time.threads()) == 1
    later()
    time.say(0, "overdue")  # Which wakes the thread, and lets it end.
    assert time.hear() == "overdue"
    time.join()


def test_a_cancelled_alarm_does_not_go_off(time: WatchedTime) -> None:
    cancel = time.say(SOON, "cancelled")
    cancel()
    cancel()
    time.say(2 * SOON, "kept")
    assert time.hear() == "kept"
    time.join()


def test_an_alarm_that_fails_does_not_stop_the_others(time: WatchedTime) -> None:
    def fail() -> None:
        raise OSError

    time.alarm(time.monotonic() + SOON, fail)
    time.say(SOON, "the other")
    assert time.hear() == "the other"
    time.join()


def test_a_thread_that_has_ended_is_started_again(time: WatchedTime) -> None:
    for word in ("once", "again"):
        time.say(0, word)
        assert time.hear() == word
        time.join()


def test_an_alarm_may_be_further_away_than_a_system_can_wait(time: WatchedTime) -> None:
    cancel = time.say(1e30, "much later")
    time.say(0, "sooner")
    assert time.hear() == "sooner"
    cancel()
    time.say(0, "last")
    assert time.hear() == "last"
    time.join()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_has_alarms_of_its_own(time: WatchedTime) -> None:
    time.say(LATER, "later")
    child = os.fork()
    if child == 0:  # pragma: no cover - of another process
        time.say(0, "heard")
        os._exit(time.hear() != "heard")
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("at_exit", [False, True], ids=["running", "ending"])
def test_an_alarm_does_not_keep_the_process_alive(*, at_exit: bool) -> None:
    """And one that is set as the interpreter ends is not refused for the lack of a thread."""
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
