"""Connection pools of `urllib3`, whose connections record whether a request was sent."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from functools import partial
from math import inf
from queue import Empty, Full
from threading import TIMEOUT_MAX
from time import monotonic
from typing import Any, cast
from weakref import finalize

import urllib3

from flux0.adapters.urllib3.connection import (
    Urllib3Connection,
    current_exchange,
    is_unmodified,
    tracked_class,
)
from flux0.ports import Interrupt
from flux0.runtime.processes import call_with_lock
from flux0.runtime.waker import Waker


def track(pool: Any, size: int | None = None) -> None:
    """Make `pool` use only tracked connections, which record whether a request was sent.

    The pool's queue is replaced by `Slots`, and its idle untracked connections are closed. If a
    recorder such as vcrpy has replaced the pool's connection class, its connections are not
    tracked, because the recorder may replay a response without sending the request. With such a
    pool, flux0 does not know whether a request was sent.

    Args:
        pool: A pool of urllib3.
        size: The number of slots of a built-in pool; None to keep the number of a user's pool.
            Create a built-in pool with `maxsize=1`, because urllib3 adds the slots to its queue one
            by one, which takes longer than a call for 1,000 slots.
    """
    # Read `pool.pool` once, because another thread can replace it. After the user has closed the
    # pool, it is None.
    queue = pool.pool
    if isinstance(queue, pool.QueueCls):
        _replace_queue(pool, queue, size)
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
        if pool.num_connections and pool.pool is not None:
            _close_idle(pool.pool)


def _replace_queue(pool: Any, queue: Any, size: int | None) -> None:
    slots = pool.pool = Slots(queue.maxsize if size is None else size)
    # When the garbage collector frees the pool, close the pool's idle connections. urllib3 closes
    # idle connections only in a queue that urllib3 has created itself.
    finalize(pool, slots.close)
    _close_idle(queue)
    # Other threads of the user can be waiting for the old queue. Give each of them a free slot.
    with suppress(Full):
        for _ in range(queue.maxsize):
            queue.put(None, block=False)


def _close_idle(slots: Any) -> None:
    connections: list[Any] = []
    with suppress(Empty):
        while True:
            connections.append(slots.get(block=False))
    for connection in connections:
        if connection is not None:
            connection.close()
        slots.put(None)


class Slots:
    """The slots of a pool: idle connections, and None for each free slot.

    Like `queue.LifoQueue`, which urllib3 uses, it returns the last slot first. It has no lock, so a
    signal handler or a finalizer can close it. It also works if gevent has replaced `LifoQueue`.
    `Interrupt.fire` and the request's pool timeout end the wait for a slot.

    Args:
        size: The number of slots.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        # `_slots` and `_waiting` need no lock: single operations of a `list` and a `deque` are
        # atomic.
        self._slots: list[Any] = [None] * size
        self._waiting: deque[Waker] = deque()
        self._closed = False

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Return an idle connection, or None if the pool has a free slot for a new connection.

        Raises `Empty` if no slot became free within the pool timeout, or before `Interrupt.fire`
        was called. `timeout` replaces the pool timeout in calls without flux0.
        """
        try:
            return self._slots.pop()
        except IndexError:
            if not block:
                raise Empty from None
        return self._wait(timeout)

    def _wait(self, timeout: float | None) -> Any:
        interrupt, waker, exchange = Interrupt(), Waker(), current_exchange.get()
        if exchange is not None:
            interrupt, timeout = exchange.interrupt, exchange.timeout.pool
        end = inf if timeout is None else monotonic() + timeout
        interrupt.on_fire(waker.wake)
        try:
            while True:
                self._waiting.append(waker)
                # Try again to take a slot: a slot can have become free before `waker` was added.
                with suppress(IndexError):
                    return self._slots.pop()
                woken = waker.wait(min(max(end - monotonic(), 0), TIMEOUT_MAX))
                if not woken or interrupt.fired:
                    raise Empty
        finally:
            with suppress(ValueError):
                self._waiting.remove(waker)
            # `put` can have woken this thread for a free slot that the thread has not taken. In
            # this case, wake another waiting thread.
            if self._slots:
                self._wake_next()

    def put(self, slot: Any, block: bool = True) -> None:  # noqa: ARG002 - as in LifoQueue
        """Return a connection, or None for a free slot. Never waits.

        If a call is interrupted by Ctrl-C before it gets a slot, urllib3 nevertheless returns a
        free slot. Therefore, a surplus slot is dropped, and its connection is closed.
        """
        if len(self._slots) < self._size:
            self._slots.append(slot)
            self._wake_next()
        elif slot is not None:
            slot.close()
        if self._closed:
            self._close_idle()

    def close(self) -> None:
        """Close the idle connections, and each connection that is returned from now on."""
        self._closed = True
        self._close_idle()

    def _close_idle(self) -> None:
        with suppress(IndexError):
            while True:
                connection = self._slots.pop()
                if connection is not None:
                    connection.close()

    def _wake_next(self) -> None:
        with suppress(IndexError):
            self._waiting.popleft().wake()


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
