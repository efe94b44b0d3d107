"""Resources, locks and threads that stay usable when the process forks or exits.

A forked child inherits the parent's connections and locks. The child must not use the connections,
because they belong to the parent. A lock that another thread held at the fork is never released in
the child.
"""

from __future__ import annotations

import os
import sys
from _thread import start_new_thread
from collections.abc import Callable
from contextlib import suppress
from os import getpid
from threading import RLock
from typing import Final, Generic, TypeVar

from flux0.domain.errors import ConnectionInterrupted

T = TypeVar("T")

# `os.fork` waits for this lock. Hold it while another library holds locks of its own: OpenSSL takes
# one when it reads certificates, and the child would inherit it locked. It is reentrant, because a
# signal handler may fork.
fork_lock: Final = RLock()
with suppress(AttributeError):  # Windows has no fork.
    os.register_at_fork(
        before=fork_lock.acquire,
        after_in_parent=fork_lock.release,
        after_in_child=fork_lock.release,
    )


def run_in_new_thread(act: Callable[[], object]) -> bool:
    """Call `act` in a new thread, which holds no lock.

    Return False, without calling `act`, if the interpreter is exiting and starts no more threads.
    """
    with suppress(RuntimeError):
        if not sys.is_finalizing():  # Python 3.10 would crash.
            start_new_thread(act, ())
            return True
    return False


class PerProcess(Generic[T]):
    """One resource for each process, created at the first use.

    A child keeps a reference to the parent's resource, because garbage collection would close it.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        # Python imports this codec at the first host lookup. A child that was forked during the
        # import would wait forever for the import lock, so import it now.
        "".encode("idna")
        self._make = make
        self._resources: dict[int, T] = {}

    def get(self) -> T:
        """Return the resource of the running process."""
        pid = getpid()
        resource = self._resources.get(pid)
        if resource is None:
            # Another thread may have stored a resource in the meantime. Then use that resource.
            resource = self._resources.setdefault(pid, self._make())
        return resource


class OwnerProcess:
    """The process that created an object."""

    def __init__(self) -> None:
        self._pid = getpid()

    def is_inherited(self) -> bool:
        """Return whether the running process is a fork that inherited the object."""
        return getpid() != self._pid

    def check(self) -> None:
        """Raise `ConnectionInterrupted` in a forked child, which would take the parent's bytes."""
        if getpid() != self._pid:
            raise ConnectionInterrupted("the body belongs to the process that this one forked from")
