"""A lock that never waits, and that an exception of a signal handler cannot leave held."""

from __future__ import annotations

from _queue import Empty, SimpleQueue
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

Busy: Final = Empty
"""The exception that `with` raises if a `TryLock` is held."""


class _Guard:
    """A context manager whose `with` statement calls only functions of C."""

    def __init__(self, enter: Callable[[], Any], leave: Callable[..., Any]) -> None:
        self._enter = enter
        self._leave = leave

    if TYPE_CHECKING:

        def __enter__(self) -> object: ...

        def __exit__(self, *_: object) -> None: ...
    else:
        # The getters of these properties are functions of C, too.
        __enter__ = property(attrgetter("_enter"))
        __exit__ = property(attrgetter("_leave"))


class TryLock(_Guard):
    """A lock for `with`, which raises `Busy` instead of waiting.

    A signal handler may raise an exception between any two calls of Python code. If it did so after
    `Lock.acquire(blocking=False)` has returned, and before the `try` statement, the lock would stay
    held forever. The `with` statement of this class takes the token of a queue, and puts a token
    back. Safe in finalizers, and under gevent, which cannot switch to another greenlet here.

    Attributes:
        take: A function that takes the lock forever, or raises `Busy`.
        locked: A function that returns whether the lock is held.
        waiting: The same lock for `with`, but it waits while the lock is held.
    """

    def __init__(self) -> None:
        # gevent replaces the class in the module `queue`; `_queue` contains the class of C.
        tokens: SimpleQueue[Any] = SimpleQueue()
        # `with` passes the class of an exception, or None, to `put`: the next token.
        tokens.put(None)
        super().__init__(tokens.get_nowait, tokens.put)
        self.take: Callable[[], object] = tokens.get_nowait
        self.locked: Callable[[], bool] = tokens.empty
        self.waiting: _Guard = _Guard(tokens.get, tokens.put)
