"""Checks after a test that the threads and connections have ended that the test has started."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

import pytest

# The longest time in seconds to wait. Threads end within milliseconds on an idle machine.
_LIMIT = 20.0
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


@pytest.fixture(autouse=True)
def everything_is_released() -> Iterator[None]:
    """Fail a test that leaves a thread or a socket, also if the garbage collector has run."""
    before = _threads() | _sockets()
    yield
    ends = monotonic() + _LIMIT
    while left := (_threads() | _sockets()) - before:
        if monotonic() > ends:
            pytest.fail(f"the test has left open: {sorted(left)}")
        gc.collect()
        sleep(0.001)
