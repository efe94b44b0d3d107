"""Forked children, in which contract tests call code that can hang or kill its process."""

from __future__ import annotations

import gc
import os
import signal
import traceback
import warnings
from collections.abc import Callable
from sysconfig import get_config_var
from typing import Final

import pytest

# Without the GIL, CPython 3.13.5 can leave a lock held in the child. In a program without flux0 and
# with four busy threads, 28 of 2,000 children hung.
forks_while_threads_run: Final = pytest.mark.skipif(
    bool(get_config_var("Py_GIL_DISABLED")),
    reason="Python without the GIL: a child that is forked while threads run can hang",
)


def child_exit_code(work: Callable[[], object], timeout: float) -> int:
    """Call `work` in a forked child, wait for the child's end, and return its exit code.

    `work` runs in a child, because a deadlock in a finalizer also blocks each later garbage
    collection of the process.
    """
    return exit_code(start_child(work, timeout))


def start_child(work: Callable[[], object], timeout: float) -> int:
    """Fork a child that calls `work`, and return the child's process id.

    The child's exit code is 1 if `work` raised an error, and `-signal.SIGALRM` if `work` hangs. A
    timer kills the child after `timeout` seconds; `work` can restart the timer.
    """
    with warnings.catch_warnings():
        # If a process with running threads is forked, Python 3.12 emits a DeprecationWarning.
        # Ignore the warning, because the child does not use these threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:  # pragma: no cover - coverage is measured only in the parent
        # The default action of SIGALRM kills the child even if the child is in a deadlock.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, timeout)
        gc.freeze()  # In the child, the garbage collector must not free the parent's objects.
        try:
            work()
        except BaseException:  # noqa: BLE001 - the child must never run the parent's code
            os.write(2, traceback.format_exc().encode())
            os._exit(1)
        os._exit(0)
    return child


def exit_code(child: int) -> int:
    """Wait until the child with the process id `child` has ended, and return its exit code."""
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)
