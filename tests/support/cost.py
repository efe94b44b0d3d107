"""Measures the cost of code by counting, not by time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from support.garbage_collection import no_garbage_collection


def calls_made(work: Callable[[], object]) -> int:
    """Return the number of functions that `work` calls."""
    calls = 0

    def count(_: FrameType, event: str, __: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    before = sys.getprofile()
    with no_garbage_collection():
        sys.setprofile(count)
        try:
            work()
        finally:
            sys.setprofile(before)
    return calls


def steps_taken(work: Callable[[], object]) -> int:
    """Return the number of Python lines that `work` runs plus the C functions that it calls."""
    steps = 0

    def trace(_: FrameType, event: str, __: object) -> Any:
        nonlocal steps
        steps += event == "line"
        return trace

    def count(_: FrameType, event: str, __: object) -> None:
        nonlocal steps
        steps += event == "c_call"

    before = sys.gettrace(), sys.getprofile()
    with no_garbage_collection():
        sys.settrace(trace)
        sys.setprofile(count)
        try:
            work()
        finally:
            sys.settrace(before[0])
            sys.setprofile(before[1])
    return steps
