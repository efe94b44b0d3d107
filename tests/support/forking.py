"""Runs a function in a forked child process."""

from __future__ import annotations

import gc
import os
import signal
import traceback
from collections.abc import Callable

import coverage

from flux0.testing.contract.byte_server import DEFAULT_TIMEOUT


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
        signal.alarm(int(DEFAULT_TIMEOUT))
        act()
        gc.collect()
        code = 0
    except BaseException:  # noqa: BLE001 - the child must not continue with the parent's tests
        traceback.print_exc()
    finally:
        measured = coverage.Coverage.current()
        if measured is not None:
            measured.save()
        os._exit(code)
