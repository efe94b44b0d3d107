"""Real time: what its alarms do, and when its thread ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timezone
from queue import SimpleQueue
from typing import Any

import pytest

from flux0.adapters.time import SystemTime
from flux0.testing.contract.byte_server import PATIENCE

LATER = 3600.0
SOON = 0.02


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "flux0-alarms"]


class WatchedTime(SystemTime):
    """Knows which threads of alarms are its own, and not of a client that another test has made."""

    def __init__(self) -> None:
        super().__init__()
        self._others = running()

    def threads(self) -> list[threading.Thread]:
        return [thread for thread in running() if thread not in self._others]

    def join(self) -> None:
        for thread in self.threads():
            thread.join(PATIENCE)
        assert self.threads() == []


@pytest.fixture
def time() -> WatchedTime:
    return WatchedTime()


@pytest.fixture
def heard() -> SimpleQueue[str]:
    """What the alarms of a test have said."""
    return SimpleQueue()


def say(heard: SimpleQueue[str], word: str) -> Callable[[], None]:
    return lambda: heard.put(word)


def test_the_date_is_that_of_the_machine(time: WatchedTime) -> None:
    before = datetime.now(timezone.utc)
    assert before <= time.utc_now() <= datetime.now(timezone.utc)


def test_jitter_is_anything_from_0_to_1(time: WatchedTime) -> None:
    drawn = [time.jitter() for _ in range(1000)]
    assert 0 <= min(drawn) < 0.1
    assert 0.9 < max(drawn) <= 1


def test_an_alarm_goes_off_once_and_not_too_early(
    time: WatchedTime, heard: SimpleQueue[float]
) -> None:
    moment = time.monotonic() + SOON
    time.alarm(moment, lambda: heard.put(time.monotonic()))
    assert heard.get(timeout=PATIENCE) >= moment
    time.join()
    assert heard.empty()


def test_alarms_go_off_in_the_order_of_their_moments(
    time: WatchedTime, heard: SimpleQueue[str]
) -> None:
    now = time.monotonic()
    later = time.alarm(now + LATER, say(heard, "later"))
    time.alarm(now + 2 * SOON, say(heard, "second"))
    time.alarm(now + SOON, say(heard, "first"))
    assert [heard.get(timeout=PATIENCE) for _ in range(2)] == ["first", "second"]
    assert len(time.threads()) == 1
    later()
    time.alarm(now, say(heard, "overdue"))  # Which wakes the thread, and lets it end.
    assert heard.get(timeout=PATIENCE) == "overdue"
    time.join()


def test_a_cancelled_alarm_does_not_go_off(time: WatchedTime, heard: SimpleQueue[str]) -> None:
    moment = time.monotonic() + SOON
    cancel = time.alarm(moment, say(heard, "cancelled"))
    cancel()
    cancel()
    time.alarm(moment + SOON, say(heard, "kept"))
    assert heard.get(timeout=PATIENCE) == "kept"
    time.join()
    assert heard.empty()


def test_an_alarm_that_fails_does_not_stop_the_others(
    time: WatchedTime, heard: SimpleQueue[str]
) -> None:
    def fail() -> None:
        raise OSError

    moment = time.monotonic() + SOON
    time.alarm(moment, fail)
    time.alarm(moment, say(heard, "the other"))
    assert heard.get(timeout=PATIENCE) == "the other"
    time.join()


def test_a_thread_that_has_ended_is_started_again(
    time: WatchedTime, heard: SimpleQueue[str]
) -> None:
    for word in ("once", "again"):
        time.alarm(time.monotonic(), say(heard, word))
        assert heard.get(timeout=PATIENCE) == word
        time.join()


def test_an_alarm_may_be_further_away_than_a_system_can_wait(time: WatchedTime) -> None:
    cancel = time.alarm(1e30, lambda: None)
    heard: SimpleQueue[str] = SimpleQueue()
    time.alarm(time.monotonic(), say(heard, "sooner"))
    assert heard.get(timeout=PATIENCE) == "sooner"
    cancel()
    time.alarm(time.monotonic(), lambda: None)
    time.join()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_has_alarms_of_its_own(time: WatchedTime) -> None:
    reading, writing = os.pipe()
    cancel = time.alarm(time.monotonic() + LATER, lambda: None)
    child = os.fork()
    if child == 0:  # pragma: no cover - of another process
        os.write(writing, b"begun ")
        done = threading.Event()
        time.alarm(time.monotonic(), done.set)
        os.write(writing, b"heard" if done.wait(PATIENCE) else b"nothing")
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with open(reading, "rb") as said:
        assert said.read() == b"begun heard"
    cancel()
    time.alarm(time.monotonic(), lambda: None)
    time.join()


def run(code: str) -> Any:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=6 * PATIENCE,
        check=False,
    )


def test_an_alarm_does_not_keep_the_process_alive() -> None:
    done = run(
        "from flux0.adapters.time import SystemTime\n"
        f"SystemTime().alarm(SystemTime().monotonic() + {LATER}, print)"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_interpreter_that_is_ending_goes_without_alarms() -> None:
    """A last call, such as one that says goodbye, is not refused for the lack of a thread."""
    done = run(
        "import atexit\n"
        "from flux0.adapters.time import SystemTime\n"
        "time = SystemTime()\n"
        f"later = time.monotonic() + {LATER}\n"
        "atexit.register(lambda: print(time.alarm(later, print) is not None))"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
