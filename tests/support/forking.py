"""Runs a function in a forked child process."""

from __future__ import annotations

import gc
import os
import signal
import traceback
from collections.abc import Callable

import coverage

_TIMEOUT_SECONDS = 20


def in_child(act: Callable[[], object]) -> None:
    """Call `act` in a forked child; fail if it raises or hangs."""
    child = os.fork()
    if child == 0:
        _run_and_exit(act)
    _, result = os.waitpid(child, 0)
    assert result == 0, "the child failed, or was ended because it hung"


def _run_and_exit(act: Callable[[], object]) -> None:
    code = 1
    try:
        signal.alarm(_TIMEOUT_SECONDS)
        act()
        gc.collect()
        code = 0
    except BaseException:  # noqa: BLE001 - the child must not continue with the parent's tests
        traceback.print_exc()
    finally:
        save_coverage()
        os._exit(code)


def save_coverage() -> None:
    """Save the coverage of this process, if it is measured."""
    measured = coverage.Coverage.current()
    if measured is not None:
        measured.save()
