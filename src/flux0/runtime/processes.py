"""What synchronous adapters need where a process forks.

A forked child has its parent's connections, and its locks as they were at that moment. It must not
use either: the connections are the parent's still, and nobody is left to release the locks.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from os import getpid
from threading import RLock
from typing import Final, Generic, TypeVar

from flux0.domain.errors import ConnectionInterrupted

T = TypeVar("T")

# Held while something takes locks of another library's own, for which a fork waits: OpenSSL, which
# reads certificates, would leave them locked in the child. Reentrant, as a signal may fork.
fork_lock: Final = RLock()
with suppress(AttributeError):  # On Windows there is no fork.
    os.register_at_fork(
        before=fork_lock.acquire,
        after_in_parent=fork_lock.release,
        after_in_child=fork_lock.release,
    )


class PerProcess(Generic[T]):
    """One resource for each process, made when first asked for.

    What was inherited is kept, since it would be closed where it is garbage.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        # Python imports this codec when it first looks up a host. A child that is forked at that
        # moment would wait for ever for the lock of the import.
        "".encode("idna")
        self._make = make
        self._made: dict[int, T] = {}

    def get(self) -> T:
        """Return the resource of the running process."""
        pid = getpid()
        made = self._made.get(pid)
        if made is None:
            made = self._made.setdefault(pid, self._make())  # Another thread may have been first.
        return made


class OwnerProcess:
    """The process that something was made in."""

    def __init__(self) -> None:
        self._pid = getpid()

    def is_left(self) -> bool:
        """Whether the running process is another, forked from it."""
        return getpid() != self._pid

    def check(self) -> None:
        """Raise if the running process is another: it would take bytes of the parent's."""
        if getpid() != self._pid:
            raise ConnectionInterrupted("the body belongs to the process that this one forked from")
