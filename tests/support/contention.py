"""Reports when a thread is about to wait for a lock that another thread holds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from threading import RLock
from types import FrameType
from typing import Any

_RLOCK = type(RLock())


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
