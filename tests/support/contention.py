"""Calls a function when this thread is about to acquire a lock, or to wait for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from threading import RLock
from types import FrameType
from typing import Any

from flux0.domain.locks import TryLock


def before_wait(act: Callable[[], object]) -> AbstractContextManager[None]:
    """Call `act` before this thread waits for an `RLock`, after it has tried not to wait."""
    return _before_acquire(type(RLock()), 2, act)


def before_lock(lock: TryLock, act: Callable[[], object]) -> None:
    """Call `act` before `lock` is acquired next.

    The effect is the same as if another thread were faster.
    """
    attributes = vars(lock)
    enter = attributes["_enter"]

    def act_first() -> object:
        attributes["_enter"] = enter
        act()
        return enter()

    attributes["_enter"] = act_first


@contextmanager
def _before_acquire(
    kind: type[Any], number: int, act: Callable[[], object]
) -> Generator[None, None, None]:
    calls = 0

    def on_event(_: FrameType, event: str, function: Any) -> None:
        nonlocal calls
        is_acquire = event == "c_call" and function.__name__ == "acquire"
        if is_acquire and type(function.__self__) is kind:
            calls += 1
            if calls == number:
                act()

    sys.setprofile(on_event)
    try:
        yield
    finally:
        sys.setprofile(None)
