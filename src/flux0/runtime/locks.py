"""A lock that never waits, and that an exception of a signal handler cannot leave held."""

from __future__ import annotations

from _queue import Empty, SimpleQueue
from operator import attrgetter
from typing import Any, Final

Busy: Final = Empty
"""The exception that `with` raises if a `TryLock` is held."""


class TryLock:
    """A lock for `with`, which raises `Busy` instead of waiting.

    A signal handler may raise an exception between any two calls of Python code. If it did so after
    `Lock.acquire(blocking=False)` has returned, and before the `try` statement, the lock would stay
    held forever. The `with` statement of this class calls only functions of C: it takes the token
    of a queue, and puts a token back. Safe in finalizers, and under gevent, which never switches to
    another greenlet here.
    """

    def __init__(self) -> None:
        # `_queue` contains the class of C. gevent replaces the class in `queue`.
        tokens: SimpleQueue[Any] = SimpleQueue()
        tokens.put(None)
        self.take = tokens.get_nowait
        # `with` passes the class of the exception, or None, as the token.
        self._put = tokens.put

    # Properties whose getters are functions of C.
    __enter__ = property(attrgetter("take"))
    __exit__ = property(attrgetter("_put"))
