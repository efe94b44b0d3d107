"""Checks after a test that the threads, connections and turns have ended that the test has started.

Event loops have sockets, so an event loop that was not closed is noticed, too.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any, cast
from weakref import WeakSet

import pytest

from flux0.runtime.turn_log import TurnLog
from flux0.turns.background_turn import TurnReading

# The longest time in seconds to wait. Threads end within milliseconds on an idle machine.
_LIMIT = 20.0
# Seconds after which the garbage collector runs, which may take longer than a thread takes to end.
_COLLECTS_AFTER = 0.01
_DESCRIPTORS = Path("/proc/self/fd")
# These threads end later: the thread of all alarms after its last alarm, and the worker threads of
# trio after ten idle seconds.
_LASTING = ("flux0-alarms", "Trio thread")


def _threads() -> set[str]:
    return {str(each) for each in threading.enumerate() if not each.name.startswith(_LASTING)}


def _sockets() -> set[str]:
    sockets: set[str] = set()
    for name in os.listdir(_DESCRIPTORS) if _DESCRIPTORS.exists() else ():
        with suppress(OSError):  # Another thread has closed it in the meantime.
            sockets.add(os.readlink(_DESCRIPTORS / name))
    return {each for each in sockets if each.startswith("socket:")}


def _running(turns: list[TurnLog]) -> set[str]:
    return {f"background turn {turn.turn_id}" for turn in turns if not turn.is_ended}


@pytest.fixture(autouse=True)
def everything_is_released() -> Iterator[None]:
    """Fail a test that leaves a thread, a socket or a background turn without an end.

    Threads and sockets may be released by the garbage collector, but each turn has an end.
    """
    begun: WeakSet[TurnLog] = WeakSet()
    create = cast("Any", TurnReading).__init__

    def record(reading: TurnReading[Any], *args: Any) -> None:
        create(reading, *args)
        begun.add(reading.log)

    before = _threads() | _sockets()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TurnReading, "__init__", record)
        yield
    turns = [*begun]
    begin, pause = monotonic(), 0.0005
    while left := (_threads() | _sockets() | _running(turns)) - before:
        seconds = monotonic() - begin
        if seconds > _LIMIT:
            pytest.fail(f"the test has left open: {sorted(left)}")
        if seconds > _COLLECTS_AFTER:
            gc.collect()
        sleep(pause)
        pause = min(2 * pause, 0.05)
