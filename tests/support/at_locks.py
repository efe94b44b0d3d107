"""A script that closes a client, forks, or makes a call while calls hold a lock.

It makes the same calls with many clients. When the calls of the first client acquire their first
lock, another thread acts: it closes the client, or it forks a child that makes the calls, too. With
the second client, the thread acts at the second lock, and so on. If the thread or the child does
not finish, it waits for the lock. Then the script prints where the lock was acquired.

A signal handler or the garbage collector could call `close` in the thread that holds the lock. Then
`close` would never return. In a forked child, the lock is never released. The action `call` makes a
call in the thread that holds the lock, as a signal handler would.

Arguments: `close`, `fork` or `call`, the URL of a server that responds with turns, and the class
names of transports. The script prints the number of locks with each transport.
"""

from __future__ import annotations

import faulthandler
import functools
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

_LIMIT = 10  # Seconds that the calls and `close` may take. They take some milliseconds.


class Watch:
    """Calls a function in another thread when this thread has acquired a number of locks."""

    def __init__(self) -> None:
        self._left = 0
        self._act: Callable[[], object] = int
        self._thread = threading.get_ident()

    def start(self, number: int, act: Callable[[], object]) -> None:
        self._left, self._act = number, act

    def stop(self) -> bool:
        """Return whether the function was called."""
        left, self._left = self._left, 0
        return left <= 0

    def on_acquired(self) -> None:
        if threading.get_ident() != self._thread:
            return
        self._left -= 1
        # While a thread holds `fork_lock`, no other thread can fork.
        if self._left == 0 and action == "call":
            self._act()
        elif self._left == 0 and not fork_lock._is_owned():  # type: ignore[attr-defined]
            thread = threading.Thread(target=self._act, daemon=True)
            thread.start()
            thread.join(_LIMIT)
            if thread.is_alive():
                traceback.print_stack()


def watched(make: Callable[[], Any]) -> type[Any]:
    """Return a class of locks that report to `watch` when they are acquired."""

    class Watched:
        def __init__(self) -> None:
            self._lock = make()

        def acquire(self, *args: Any, **options: Any) -> bool:
            acquired: bool = self._lock.acquire(*args, **options)
            if acquired:
                watch.on_acquired()
            return acquired

        def __enter__(self) -> None:
            self.acquire()

        def __exit__(self, *_: object) -> None:
            self._lock.release()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._lock, name)

    return Watched


if __name__ != "__main__":
    raise ImportError("this script replaces the locks of its process: run it, do not import it")
watch = Watch()
# Replace the locks of all modules that are imported from now on.
modules: Any = [threading, functools]
modules[0].Lock, modules[0].RLock = watched(threading.Lock), watched(threading.RLock)
modules[1].RLock = threading.RLock

import flux0  # noqa: E402
from flux0.runtime.processes import fork_lock  # noqa: E402


def make_calls(client: flux0.Flux0) -> None:
    """Make a call that is retried and fails, and two turns."""
    with suppress(flux0.ConnectError):
        client.agents.list(server_url="http://127.0.0.1:1")
    for _ in range(2):
        for _ in client.sessions.create_event(session_id="s", content="Hi"):
            pass


def close(client: flux0.Flux0) -> None:
    client.close()


def fork(client: flux0.Flux0) -> None:
    """Make the calls in a forked child. If the child fails or hangs, wait forever."""
    child = os.fork()
    if child == 0:
        signal.alarm(_LIMIT)
        make_calls(client)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        threading.Event().wait()


def call(client: flux0.Flux0) -> None:
    """Make a call. The response is a turn, so the call fails even if it is sent."""
    with suppress(flux0.Flux0Error):
        client.agents.list()


def count_locks(url: str, transport: str) -> int:
    retries = flux0.RetryConfig(backoff=flux0.BackoffStrategy(0), max_attempts=2)
    act = {"close": close, "fork": fork, "call": call}[action]
    locks, was_called = 0, True
    while was_called:
        locks += 1
        if action == "call":
            faulthandler.dump_traceback_later(_LIMIT, exit=True)
        client = flux0.Flux0(url, transport=getattr(flux0, transport)(), retry_config=retries)
        watch.start(locks, partial(act, client))
        with suppress(flux0.ClientClosed):
            make_calls(client)
        was_called = watch.stop()
        client.close()
    return locks - 1


logging.getLogger("flux0").addHandler(logging.NullHandler())  # Do not print the retries.
action, url, *transports = sys.argv[1:]
for transport in transports:
    print(count_locks(url, transport))
