"""Calls functions in many threads at the same time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import pytest

T = TypeVar("T")
THREADS = 8
_TOO_LONG = 60.0


@pytest.fixture(autouse=True)
def frequent_switches() -> Iterator[None]:
    """With the GIL, let Python switch between threads as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(*acts: Callable[[], T]) -> list[T]:
    """Return the results of functions that start at the same time, each in its own thread."""
    barrier = Barrier(len(acts))

    def run(act: Callable[[], T]) -> T:
        barrier.wait(_TOO_LONG)
        return act()

    with ThreadPoolExecutor(len(acts)) as threads:
        return [each.result(_TOO_LONG) for each in [threads.submit(run, act) for act in acts]]


def in_each_thread(act: Callable[[], T]) -> list[T]:
    return in_threads(*[act] * THREADS)
