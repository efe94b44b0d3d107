"""Forked children, in which contract tests call code that can hang or kill its process."""

from __future__ import annotations

import gc
import os
import signal
import traceback
import warnings
from collections.abc import Callable


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
