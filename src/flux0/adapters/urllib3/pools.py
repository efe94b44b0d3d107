"""Connection pools of `urllib3`, whose connections record whether a request was sent."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from functools import partial
from math import inf
from queue import Empty, Full
from threading import RLock
from time import monotonic
from typing import Any, Final, cast
from weakref import finalize, ref

import urllib3

from flux0.adapters.urllib3.connection import (
    Lease,
    Urllib3Connection,
    current_exchange,
    is_unmodified,
    tracked_class,
)
from flux0.ports import Interrupt
from flux0.runtime.processes import call_with_lock
from flux0.runtime.waker import Waker

# Seconds between two checks of `interrupt.fired` by a thread that waits for a connection of a
# user's full pool.
_INTERRUPT_CHECK_SECONDS: Final = 0.1
# If the garbage collector frees a place, or an exception interrupts a thread that was just woken,
# no thread is woken. Therefore a waiting thread looks for a free place after this number of
# seconds, too.
_CHECK_SECONDS: Final = 1.0


def track(pool: Any, size: int | None = None) -> None:
    """Make `pool` use only tracked connections, which record whether a request was sent.

    Its idle untracked connections are closed. If a recorder such as vcrpy has replaced the pool's
    connection class, its connections are not tracked, because the recorder may replay a response
    without sending the request. With such a pool, flux0 does not know whether a request was sent.

    Args:
        pool: A pool of urllib3.
        size: The number of slots of a built-in pool; None for a user's pool. Create a built-in pool
            with `maxsize=1`, because urllib3 adds the slots to its queue one by one, which takes
            longer than a call for 1,000 slots.
    """
    slots = pool.pool
    if slots is None:  # The user has closed the pool.
        return
    if not isinstance(slots, (Slots, _UserSlots)):
        slots = pool.pool = _UserSlots(slots) if size is None else Slots(size)
        # When the garbage collector frees the pool, close the pool's idle connections. urllib3
        # closes idle connections only in a queue that urllib3 has created itself.
        if isinstance(slots, Slots):
            finalize(pool, slots.close)
    connection_class: Any = pool.ConnectionCls
    if issubclass(connection_class, Urllib3Connection):
        if is_unmodified(cast("Any", type(pool)).ConnectionCls):
            return
        # A recorder such as vcrpy has replaced the class attribute `ConnectionCls`. The instance
        # attribute from an earlier call of `track` hides the class attribute, so delete the
        # instance attribute.
        del pool.ConnectionCls
    elif is_unmodified(connection_class):
        pool.ConnectionCls = tracked_class(connection_class)
        if pool.num_connections:
            slots.close_idle()


class Slots:
    """The connections of a built-in pool. urllib3 uses it in place of `queue.LifoQueue`.

    Like `LifoQueue`, it returns the last connection first. It has no lock of Python, so a signal
    handler or a finalizer can close it, and an exception of a signal handler leaves no lock held.
    It also works if gevent has replaced `LifoQueue`. `Interrupt.fire` ends the wait for a place.

    Args:
        size: The largest number of idle connections. If urllib3 calls `get` with `block=True`, also
            the largest number of exchanges that use a connection.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        # `_idle`, `_open` and `_waiting` need no lock: single operations of a `list`, a `set` and a
        # `deque` are atomic.
        self._idle: list[Any] = []
        # Weak references to the leases. The callback of a reference is a function of C. In a
        # function of Python, Python would ignore the exception of a signal handler.
        self._open: set[ref[Lease]] = set()
        # A lock of C, because an exception cannot interrupt its `with` statement. A signal handler
        # may make a call while its thread holds the lock.
        self._lock = RLock()
        self._waiting: deque[Waker] = deque()
        self._closed = False

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Return an idle connection, or None if the caller may open a new connection.

        If `block`, the current exchange gets a place. Raises `Empty` if no place became free within
        `timeout` seconds, or before `Interrupt.fire` was called.
        """
        exchange = current_exchange.get()()
        if block and exchange is not None:
            lease = exchange.lease = Lease()
            if not self._enter(lease):
                self._wait(lease, timeout, exchange.interrupt)
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _enter(self, lease: Lease) -> bool:
        with self._lock:
            if len(self._open) >= self._size:
                return False
            self._open.add(ref(lease, self._open.discard))
            return True

    def _wait(self, lease: Lease, timeout: float | None, interrupt: Interrupt) -> None:
        end = inf if timeout is None else monotonic() + timeout
        waker, is_queued = Waker(), False
        interrupt.on_fire(waker.wake)
        try:
            while True:
                if not is_queued:
                    self._waiting.append(waker)
                # Try again to get a place: one can have become free before `waker` was added.
                if self._enter(lease):
                    return
                left = end - monotonic()
                if left <= 0:
                    raise Empty
                is_queued = not waker.wait(min(left, _CHECK_SECONDS))
                if interrupt.fired:
                    raise Empty
        finally:
            with suppress(ValueError):
                self._waiting.remove(waker)
            # `put` can have woken this thread for a place that the thread has not taken. In this
            # case, wake another waiting thread.
            if len(self._open) < self._size:
                self._wake_next()

    def put(self, slot: Any, block: bool = True) -> None:  # noqa: ARG002 - as in LifoQueue
        """Keep a connection, and free the place of its exchange. Never waits.

        If `slot` is None, free the place of the current exchange: its connection is closed.
        """
        connection, holder = slot, slot
        if isinstance(slot, Urllib3Connection):
            connection = slot.detach()
        elif slot is None:
            holder = current_exchange.get()()
        if connection is not None:
            if len(self._idle) < self._size:
                self._idle.append(connection)
            else:
                connection.close()
        if self._closed:
            self.close_idle()
        lease: Lease | None = getattr(holder, "lease", None)
        if lease is not None:
            self._open.discard(ref(lease))
        self._wake_next()

    def qsize(self) -> int:
        """Return the number of idle connections. vcrpy calls this method after a recording."""
        return len(self._idle)

    def close(self) -> None:
        """Close the idle connections, and each connection that is returned from now on."""
        self._closed = True
        self.close_idle()

    def close_idle(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _wake_next(self) -> None:
        with suppress(IndexError):
            self._waiting.popleft().wake()


class _UserSlots:
    """Wraps the queue of a pool that the user has created.

    `Interrupt.fire` ends a call's wait for a connection from the queue.

    Args:
        queue: The pool's queue. Other threads may be waiting for this queue, so it stays in use.
    """

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self.qsize = queue.qsize

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Return an idle connection, or None if the caller may open a new connection.

        The wait is limited by the request's pool timeout.
        """
        exchange = current_exchange.get()()
        if not block or exchange is None:
            return self._queue.get(block, timeout)
        left = inf if exchange.timeout.pool is None else exchange.timeout.pool
        end = monotonic() + left
        while True:
            try:
                return self._queue.get(timeout=max(0.0, min(left, _INTERRUPT_CHECK_SECONDS)))
            except Empty:
                left = end - monotonic()
                if left <= 0 or exchange.interrupt.fired:
                    raise

    def put(self, slot: Any, block: bool = True) -> None:  # noqa: ARG002 - as in LifoQueue
        connection = slot
        if isinstance(slot, Urllib3Connection):
            if slot.is_returned:
                return
            connection = slot.detach()
        try:
            self._queue.put(connection, block=False)
        except Full:
            if connection is not None:
                connection.close()
        # If an exception interrupts this method, urllib3 calls it again. If it already has put the
        # connection into the queue, the next call adds a slot, but otherwise the pool would lose
        # one.
        if isinstance(slot, Urllib3Connection):
            slot.is_returned = True

    def close_idle(self) -> None:
        connections: list[Any] = []
        with suppress(Empty):
            while True:
                connections.append(self._queue.get(block=False))
        for connection in connections:
            if connection is not None:
                connection.close()
            self.put(None)


def close_pools(manager: urllib3.PoolManager) -> None:
    """Close the idle connections of a pool manager, and remove its pools. Never waits for a lock.

    `PoolManager.clear` only removes the pools. The connections of a pool stay open as long as an
    object refers to the pool, such as an exception that the user has stored.

    Args:
        manager: A built-in pool manager.
    """
    call_with_lock(manager.pools.lock, partial(_close_pools, manager))


def _close_pools(manager: urllib3.PoolManager) -> None:
    pools: list[Any]
    pools = [manager.pools[key] for key in manager.pools.keys()]  # noqa: SIM118 - not iterable
    manager.clear()
    for pool in pools:
        # If `pool.pool` is None, urllib3 raises `ClosedPoolError` for each later request.
        slots, pool.pool = pool.pool, None
        # A pool that was never used, or is already closed, has no `Slots` object.
        if isinstance(slots, Slots):
            slots.close()
