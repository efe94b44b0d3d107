"""The pools of a built-in client, and the limit of its open exchanges.

For each request, httpcore examines all connections of a pool several times. With 2,000 open streams
in one pool, this would block an event loop for seconds. It also counts active connections as idle.
So a client has pools of 100 connections, and waits for a free place itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import TIMEOUT_MAX, Lock
from typing import Any, Final

from anyio import Event, move_on_after
from attrs import define

from flux0.adapters.shared.limits import MAX_IDLE_CONNECTIONS
from flux0.domain.errors import ConnectError, PoolTimeout
from flux0.domain.timeouts import timed_out
from flux0.ports import Interrupt
from flux0.runtime.waker import Waker

# A turn holds its connection while the agent thinks, so a busy process needs many connections.
MAX_EXCHANGES: Final = 4000
_POOL_SIZE: Final = MAX_IDLE_CONNECTIONS


@define(eq=False)
class Pool:
    """A transport of httpx with its own pool, and the number of its open exchanges."""

    transport: Any
    open: int = 0


@define(eq=False)
class _Waiter:
    wake: Callable[[], object]
    pool: Pool | None = None


class Pools:
    """The pools of one client. Each open exchange has a place in a pool.

    Full pools come first, so that the next calls reuse the same connections.

    Args:
        make: creates a transport of httpx.
        limit: the largest number of open exchanges.
    """

    def __init__(self, make: Callable[[], Any], limit: int) -> None:
        self._make = make
        self._free = limit
        self._lock = Lock()
        self._pools: list[Pool] = []
        self._waiting: deque[_Waiter] = deque()

    def transports(self) -> tuple[Any, ...]:
        """Return the transports of all pools."""
        with self._lock:
            return tuple(pool.transport for pool in self._pools)

    def enter(self, timeout: float | None, interrupt: Interrupt | None) -> Pool:
        """Return a pool with a place for one exchange, after waiting for it if necessary.

        Raises:
            PoolTimeout: No place became free within `timeout` seconds.
            ConnectError: The wait was interrupted.
        """
        waker = Waker()
        waiter = self._request(waker.wake)
        if waiter.pool is None:
            if interrupt is not None:
                interrupt.on_fire(waker.wake)
            woken = waker.wait(TIMEOUT_MAX if timeout is None else timeout)
            pool = self._stop_waiting(waiter)
            if pool is None:
                if woken:
                    raise ConnectError("the wait for a connection was interrupted")
                raise timed_out(PoolTimeout, timeout)
            return pool
        return waiter.pool

    async def enter_async(self, timeout: float | None) -> Pool:
        """The async version of `enter`, which ends when its task is cancelled."""
        event = Event()
        waiter = self._request(event.set)
        if waiter.pool is None:
            try:
                with move_on_after(timeout):
                    await event.wait()
            except BaseException:
                pool = self._stop_waiting(waiter)
                if pool is not None:
                    self.leave(pool)
                raise
            pool = self._stop_waiting(waiter)
            if pool is None:
                raise timed_out(PoolTimeout, timeout)
            return pool
        return waiter.pool

    def leave(self, pool: Pool) -> Any:
        """Free a place. Return the transport of the pool if the pool is now unused."""
        with self._lock:
            if self._waiting:
                waiter = self._waiting.popleft()
                waiter.pool = pool
                waiter.wake()
                return None
            self._free += 1
            pool.open -= 1
            if pool.open or pool is self._pools[0]:
                return None
            self._pools.remove(pool)
            return pool.transport

    def _request(self, wake: Callable[[], object]) -> _Waiter:
        """Return a waiter that has a place, or is in the queue."""
        waiter = _Waiter(wake)
        with self._lock:
            if self._free:
                pool = next((pool for pool in self._pools if pool.open < _POOL_SIZE), None)
                if pool is None:
                    pool = Pool(self._make())
                    self._pools.append(pool)
                pool.open += 1
                self._free -= 1
                waiter.pool = pool
            else:
                self._waiting.append(waiter)
        return waiter

    def _stop_waiting(self, waiter: _Waiter) -> Pool | None:
        """Return the pool of the waiter; if it has none, remove it from the queue."""
        with self._lock:
            if waiter.pool is None:
                self._waiting.remove(waiter)
            return waiter.pool
