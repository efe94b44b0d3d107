"""A script that closes a client, forks, or makes a call while calls hold a lock.

The actions `close` and `call` need many clients, which all make the same calls. When the calls of
the first client acquire their first lock, the script acts. With the second client, it acts at the
second lock, and so on. The action `fork` does not change the client, so one client is enough: the
script acts at each of its locks.

The action `close` closes the client in another thread, and the action `fork` forks a child that
makes the calls, too. If the thread or the child does not finish, it waits for the lock. Then the
script prints where the lock was acquired, and exits.

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
from itertools import count
from typing import Any

# The seconds that the calls and `close` may take. They take some milliseconds, but the first call
# imports an HTTP library, which takes some seconds on a busy machine.
_LIMIT = 40


class Watch:
    """Calls a function when this thread has acquired a number of locks.

    Attributes:
        acquired: The number of locks that this thread has acquired since `start`.
    """

    def __init__(self) -> None:
        self.acquired = 0
        self._number: int | None = None
        self._act: Callable[[], object] | None = None
        self._thread = threading.get_ident()

    def start(self, number: int | None, act: Callable[[], object]) -> None:
        """Call `act` after `number` locks; if `number` is None, after each lock."""
        self.acquired, self._number, self._act = 0, number, act

    def stop(self) -> None:
        self._act = None

    def on_acquired(self) -> None:
        act = self._act
        if act is None or threading.get_ident() != self._thread:
            return
        self.acquired += 1
        if self._number not in (None, self.acquired):
            return
        self._act = None  # The locks that this thread acquires while it acts are not counted.
        if action == "call":
            act()
        # While a thread holds `fork_lock`, no other thread can fork.
        elif not fork_lock._is_owned():  # type: ignore[attr-defined]
            thread = threading.Thread(target=act, daemon=True)
            thread.start()
            thread.join(_LIMIT)
            if thread.is_alive():
                traceback.print_stack()
                os._exit(1)
        self._act = act


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
    for number in [None] if action == "fork" else count(1):
        if action == "call":
            faulthandler.dump_traceback_later(_LIMIT, exit=True)
        client = flux0.Flux0(url, transport=getattr(flux0, transport)(), retry_config=retries)
        watch.start(number, partial(act, client))
        with suppress(flux0.ClientClosed):
            make_calls(client)
        watch.stop()
        client.close()
        if number is None or watch.acquired < number:
            break
    return watch.acquired


logging.getLogger("flux0").addHandler(logging.NullHandler())  # Do not print the retries.
action, url, *transports = sys.argv[1:]
for transport in transports:
    print(count_locks(url, transport))
