"""Calls a function when this thread is about to acquire a lock, or to wait for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from threading import Lock, RLock
from types import FrameType
from typing import Any

_LOCK, _RLOCK = type(Lock()), type(RLock())


@contextmanager
def before_wait(act: Callable[[], object]) -> Generator[None, None, None]:
    """Call `act` before this thread waits for an `RLock`, after it has tried not to wait."""
    tries = 0

    def on_event(_: FrameType, event: str, function: Any) -> None:
        nonlocal tries
        if event == "c_call" and function.__name__ == "acquire":
            tries += type(function.__self__) is _RLOCK
            if tries == 2:
                act()

    sys.setprofile(on_event)
    try:
        yield
    finally:
        sys.setprofile(None)


@contextmanager
def before_lock(act: Callable[[], object]) -> Generator[None, None, None]:
    """Call `act` before this thread acquires a `Lock` for the first time.

    The effect is the same as if another thread were faster.
    """

    def on_event(_: FrameType, event: str, function: Any) -> None:
        is_acquire = event == "c_call" and function.__name__ == "acquire"
        if is_acquire and type(function.__self__) is _LOCK:
            sys.setprofile(None)
            act()

    sys.setprofile(on_event)
    try:
        yield
    finally:
        sys.setprofile(None)
