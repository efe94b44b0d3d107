"""Resources, locks and threads that are safe when the process forks or exits.

A forked child inherits the connections and locks of its parent. The child must not use the
connections, because the parent still uses them. If another thread held a lock during the fork, the
lock is never released in the child.
"""

from __future__ import annotations

import os
import sys
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from os import getpid
from threading import Lock, RLock, Thread, get_ident, main_thread
from typing import Final, Generic, TypeVar, final

from flux0.domain.errors import ConnectError, Flux0Error

T = TypeVar("T")
# `NO_WAIT` is the argument `blocking` of `Lock.acquire`. Pass `NO_WAIT` by position: a call with a
# keyword argument takes twice the time.
NO_WAIT: Final = False


def _allows_daemon_threads() -> bool:
    try:
        Thread(daemon=True)
    except RuntimeError:  # pragma: no cover - coverage is not measured in subinterpreters
        return False
    return True


# A subinterpreter can forbid daemon threads.
DAEMON_THREADS: Final[bool] = _allows_daemon_threads()


@final
class _RunningProcess:
    """The running process. An object that stores `id` is inherited if `id` differs later.

    Attributes:
        id: The process id. Reading this attribute takes a fifth of the time of `os.getpid`, which
            is a system call.
    """

    def __init__(self) -> None:
        self.update()

    def update(self) -> None:
        self.id: int = getpid()


RUNNING: Final = _RunningProcess()

# `os.fork` waits until `fork_lock` is free. A thread must hold `fork_lock` while it calls a library
# that acquires an internal lock, such as OpenSSL, which reads certificates. Otherwise, a child that
# is forked while the internal lock is locked waits for this lock forever. `fork_lock` is reentrant,
# because a signal handler can fork.
fork_lock: Final = RLock()
with suppress(AttributeError):  # Windows cannot fork, and lacks `register_at_fork`.
    os.register_at_fork(
        before=fork_lock.acquire,
        after_in_parent=fork_lock.release,
        after_in_child=fork_lock.release,
    )
    os.register_at_fork(after_in_child=RUNNING.update)


def run_in_new_thread(act: Callable[[], object]) -> bool:
    """Call `act` in a new thread. Unlike the current thread, the new thread holds no lock.

    Returns False, without calling `act`, if the interpreter exits and no longer starts threads.
    """
    with suppress(RuntimeError):
        if not sys.is_finalizing():  # Python 3.10 crashes if a thread is started at exit.
            start_new_thread(act, ())
            return True
    return False


def call_with_lock(lock: Lock | RLock, act: Callable[[], object], *, wait: bool = False) -> None:
    """Call `act` while holding `lock`, without waiting for `lock` in this thread.

    If `lock` is held, a new thread waits for `lock`, and calls `act`. Safe in signal handlers and
    finalizers, which may run in the thread that holds `lock`. If `wait` is True, this thread waits.
    """
    if lock.acquire(blocking=wait):
        try:
            act()
        finally:
            lock.release()
    else:
        run_in_new_thread(partial(call_with_lock, lock, act, wait=True))


def start_thread(
    act: Callable[[], object],
    name: str,
    failure: type[Flux0Error] = ConnectError,
    *,
    interruptible: bool = True,
) -> None:
    """Start a daemon thread that calls `act`. Raises `failure` if no thread can be started.

    A subinterpreter can forbid daemon threads. Then the thread is not a daemon thread, and the end
    of the subinterpreter waits until `act` has returned.

    `Thread.start` waits for the new thread. If a signal handler raises an exception in this wait,
    the new thread can wait forever for a lock that `Thread.start` has left held. Signal handlers
    run in the main thread only. If `interruptible`, the main thread lets another thread call
    `Thread.start`, which takes 0.1 ms longer.
    """
    errors: list[RuntimeError] = []
    started = allocate_lock()

    def start() -> None:
        # Create the `Thread` here: the module threading calls Python code when it is freed.
        try:
            Thread(target=act, name=name, daemon=DAEMON_THREADS).start()
        except RuntimeError as error:
            errors.append(error)
        finally:
            started.release()

    started.acquire()
    if not (interruptible and get_ident() == main_thread().ident and run_in_new_thread(start)):
        start()
    started.acquire()
    if errors:
        error = errors.pop()
        raise failure(f"no thread could be started: {error}") from error


class PerProcess(Generic[T]):
    """One resource for each process, created at the first use.

    A forked child keeps a reference to its parent's resource. So the child's garbage collector does
    not close the resource, which the parent still uses.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        # Import the codec "idna" now. Python imports this codec at the first lookup of a host name,
        # and a child that is forked during this import waits forever for the import lock.
        "".encode("idna")
        self._make = make
        self._resources: dict[int, T] = {}

    def get(self) -> T:
        resource = self._resources.get(RUNNING.id)
        if resource is None:
            # If another thread has stored a resource meanwhile, `setdefault` returns that resource.
            resource = self._resources.setdefault(RUNNING.id, self._make())
        return resource

    def discard(self, close: Callable[[T], object]) -> None:
        """Remove the resource of this process, if there is one, and call `close` with it."""
        resource = self._resources.pop(RUNNING.id, None)
        if resource is not None:
            close(resource)
