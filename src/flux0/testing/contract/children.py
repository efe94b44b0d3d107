"""A forked process for work that may hang for good, so that the tests do not hang with it."""

# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

import gc
import os
import signal
import traceback
import warnings
from collections.abc import Callable


def run_in_child(work: Callable[[], object], patience: float) -> None:
    """Run `work` in a child of this process.

    Raises:
        AssertionError: it raises, or does not end within `patience` seconds.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # The child uses no thread from here.
        child = os.fork()
    if child == 0:  # pragma: no cover - measured in the parent alone
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # Ends it, even where it waits for a lock.
        signal.setitimer(signal.ITIMER_REAL, patience)
        gc.freeze()  # What is garbage here may be in use in the parent.
        try:
            work()
        except BaseException:  # noqa: BLE001 - whatever it is, nothing of the parent's runs on
            os.write(2, traceback.format_exc().encode())
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code != -signal.SIGALRM, f"the transport hangs: no end within {patience:.1f} s"
    assert code == 0, "the transport failed in the child, as standard error tells"
