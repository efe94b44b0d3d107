"""The pools of a built-in client, and the limit of its open exchanges.

For each request, httpcore examines all connections of a pool several times. With 2,000 open streams
in one pool, this blocks an event loop for seconds. In a pool with more than 100 connections,
httpcore also closes each idle connection, because it treats active connections as idle. Therefore a
client has several pools of 100 connections each. httpcore cannot limit several pools together, so
`Pools` lets a call wait while too many exchanges are open.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from threading import Lock
from typing import Any, Final

from anyio import Event, move_on_after
from attrs import define

from flux0.adapters.shared.limits import MAX_IDLE_CONNECTIONS
from flux0.domain.errors import ConnectError, PoolTimeout
from flux0.domain.timeouts import timed_out
from flux0.ports import Interrupt
from flux0.runtime.waker import Waker

# A busy process needs many connections: each turn uses one until its agent has finished.
MAX_EXCHANGES: Final = 4000
_POOL_SIZE: Final = MAX_IDLE_CONNECTIONS


@define(eq=False)
class Pool:
    """An httpx transport with its own connection pool, and the pool's number of open exchanges."""

    transport: Any
    open_exchanges: int = 0


@define(eq=False)
class Place:
    """The place that one open exchange takes in a connection pool.

    Attributes:
        wake: A function that is called when the waiting exchange has got a place in a pool.
        pool: The pool; None while the exchange waits for a place, and after `Pools.leave`.
    """

    wake: Callable[[], object]
    pool: Any = None


class Pools:
    """The connection pools of one client. Each open exchange takes a place in one of the pools.

    A new exchange gets a place in the first pool with a free place, so that consecutive calls reuse
    the same connections.

    Args:
        make: A function that creates a transport of httpx.
        close: A function that closes a transport that no exchange uses any more.
        limit: The largest number of open exchanges in all pools together.
    """

    def __init__(self, make: Callable[[], Any], close: Callable[[Any], object], limit: int) -> None:
        self._make = make
        self._close = close
        self._free = limit
        self._lock = Lock()
        self._pools: list[Pool] = []
        self._waiting: deque[Place] = deque()
        self._closed = False

    def transports(self) -> tuple[Any, ...]:
        return tuple(pool.transport for pool in self._pools.copy())

    def close(self) -> None:
        """Close the idle connections now, and the others when their exchanges end; for sync code.

        A signal handler or a finalizer may call this method in a thread that holds a lock in the
        HTTP library. Therefore no lock is acquired, and no socket is closed while it is in use.
        """
        self._closed = True
        for transport in self.transports():
            _close_idle(transport)

    def enter(self, timeout: float | None, interrupt: Interrupt) -> Place:
        """Reserve a place in a connection pool for one exchange. If all are taken, wait for one.

        Raises:
            PoolTimeout: No place became free within `timeout` seconds.
            ConnectError: `interrupt.fire` was called during the wait, for example because the
                client was closed.
        """
        waker = Waker()
        place = self._reserve(waker.wake)
        if place.pool is None:
            with self._queued(place, timeout):
                interrupt.on_fire(waker.wake)
                woken = waker.wait(timeout)
                if woken and place.pool is None:
                    raise ConnectError("the wait for a connection was interrupted")
        return place

    async def enter_async(self, timeout: float | None) -> Place:
        event = Event()
        place = self._reserve(event.set)
        if place.pool is None:
            with self._queued(place, timeout), move_on_after(timeout):
                await event.wait()
        return place

    def leave(self, place: Place) -> None:
        """Free the exchange's place in its pool, or end its wait for a place.

        If the pool has no other exchanges, close the pool, except the client's first pool. Further
        calls for the same place do nothing.
        """
        with self._lock:
            pool, place.pool = place.pool, None
            if pool is None:
                if place in self._waiting:
                    self._waiting.remove(place)
                return
            if self._closed:
                _close_idle(pool.transport)
            if self._waiting:
                waiting = self._waiting.popleft()
                waiting.pool = pool
                waiting.wake()
                return
            self._free += 1
            pool.open_exchanges -= 1
            if pool.open_exchanges or pool is self._pools[0]:
                return
            self._pools.remove(pool)
        self._close(pool.transport)

    def _reserve(self, wake: Callable[[], object]) -> Place:
        place = Place(wake)
        with self._lock:
            if not self._free:
                self._waiting.append(place)
                return place
            free = (pool for pool in self._pools if pool.open_exchanges < _POOL_SIZE)
            place.pool = next(free, None)
            if place.pool is None:
                place.pool = Pool(self._make())
                self._pools.append(place.pool)
            place.pool.open_exchanges += 1
            self._free -= 1
        return place

    @contextmanager
    def _queued(self, place: Place, timeout: float | None) -> Generator[None, None, None]:
        try:
            yield
            if place.pool is None:
                raise timed_out(PoolTimeout, timeout)  # noqa: TRY301
        except BaseException:
            self.leave(place)
            raise


def _close_idle(transport: Any) -> None:
    for connection in transport._pool.connections:  # noqa: SLF001 - httpx has no public name
        if connection.is_idle():
            connection.close()
