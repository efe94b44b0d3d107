"""The connection pool of a built-in client. httpx uses it in place of the pool of httpcore.

The pool of httpcore has locks that are Python classes. If a signal handler raises an exception
between two lines of such a lock, the lock stays held, and all later calls of the client wait
forever. Its cost also grows with the square of the number of connections.

Here, a connection belongs either to the pool or to the `Lease` of one exchange, and moves in one
atomic operation. If an exception interrupts the exchange at any instruction, the connection is
closed, and never returns to the pool.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from itertools import compress
from math import inf
from threading import RLock
from time import monotonic
from typing import Any, Final, cast
from weakref import ref

from attrs import define

from flux0.adapters.httpx.exchange import current_exchange
from flux0.adapters.shared.limits import MAX_IDLE_CONNECTIONS
from flux0.domain.errors import ConnectError, PoolTimeout
from flux0.domain.timeouts import timed_out
from flux0.ports import Interrupt
from flux0.runtime.event_loop import shielded
from flux0.runtime.waker import AsyncWaker, Waker

# A busy process needs many connections: each turn uses one until its agent has finished.
MAX_EXCHANGES: Final = 4000
# If the garbage collector frees an exchange, or if an exception interrupts a thread that has just
# been woken, no exchange is woken. Therefore a waiting exchange looks for a free place after this
# number of seconds, too.
_CHECK_SECONDS: Final = 1.0


class Lease:
    """The place of one open exchange in a pool, and the connection that the exchange uses.

    Without a reference to the lease, the place is free, and the connection is closed.
    """

    def __init__(self, pool: _Pool) -> None:
        self._owner = pool
        # The connection; empty before the exchange has a connection, and after its release. Only
        # the caller that removes the connection may close it or return it to the pool.
        self._held: list[Any] = []
        # Equal to a reference in `_Pool._open`; None if the exchange has no place yet.
        self.place: ref[Lease] | None = None

    @property
    def connection(self) -> Any:
        return next(iter(self._held), None)

    def hold(self, connection: Any) -> None:
        self._held.append(connection)

    def drop(self) -> None:
        """Remove a closed connection, before another connection is taken."""
        self._held.clear()

    # A signal handler can raise an exception after each call of a function of C, but not within
    # such a call. Therefore `extend` and `update` move a connection in one call: after two calls,
    # `pop` and `append`, an exception between them would leave the connection open.
    def take(self, connection: Any, idle: dict[Any, bool]) -> bool:
        """Move `connection` from `idle` to this lease. Return False if it is not in `idle`."""
        self._held.extend(compress((connection,), map(idle.pop, (connection,), (False,))))
        return bool(self._held)

    def give(self, idle: dict[Any, bool]) -> None:
        """Move the connection to `idle`, if there is one."""
        with suppress(IndexError):
            idle.update(zip(map(list[Any].pop, (self._held,)), (True,), strict=False))

    def release(self, *, reusable: bool) -> Any:
        """Release the connection and the place. Further calls do nothing.

        If `reusable`, the pool keeps the connection. Return a connection that the caller must
        close, or None.
        """
        unused = self._owner.keep(self) if reusable else None
        with suppress(IndexError):
            unused = self._held.pop()
        if self.place is not None:
            self._owner.free(self.place)
        return unused


@define(eq=False)
class _Waiting:
    """An exchange that waits for a place.

    Attributes:
        timeout: The longest wait in seconds; None means no limit.
        end: The value of `monotonic()` at which the timeout expires.
        wake: A function that ends the wait.
        is_queued: Whether the pool will call `wake` when a place becomes free.
    """

    timeout: float | None
    end: float
    wake: Callable[[], object]
    is_queued: bool = False

    @classmethod
    def start(cls, timeout: float | None, wake: Callable[[], object]) -> _Waiting:
        return cls(timeout, inf if timeout is None else monotonic() + timeout, wake)


class _Pool:
    """The idle connections and the open exchanges of a client.

    Args:
        pool: A pool of httpcore, which creates the connections for an origin.
        limit: The largest number of open exchanges.
    """

    def __init__(self, pool: Any, limit: int) -> None:
        self._create = pool.create_connection
        self._limit = limit
        # The idle connections, in the order in which they became idle. Single operations of a dict
        # are atomic, and so are copies of it.
        self._idle: dict[Any, bool] = {}
        # `discard`, a function of C, removes the place of a garbage-collected lease: if a signal
        # handler raised an exception in a callback of Python code, Python would ignore it.
        self._open: set[ref[Lease]] = set()
        # A lock of C, because an exception cannot interrupt its `with` statement. A signal handler
        # may make a call while its thread holds the lock.
        self._lock = RLock()
        self._waiting: deque[_Waiting] = deque()
        self.is_closed: bool = False

    def free(self, place: ref[Lease]) -> None:
        """Remove an exchange, and wake an exchange that waits for a place. Needs no lock."""
        self._open.discard(place)
        self._wake_next()

    def keep(self, lease: Lease) -> Any:
        """Keep the connection of a lease if it is idle. Return a connection to close, or None."""
        connection = lease.connection
        if connection is None or not connection.is_idle():
            return None
        lease.give(self._idle)
        # Look at `is_closed` afterwards: another thread may be closing the pool.
        if self.is_closed:
            return self._remove(connection)
        idle = list(self._idle)
        if len(idle) > MAX_IDLE_CONNECTIONS or (len(idle) > 1 and idle[0].has_expired()):
            return self._remove(idle[0])
        return None

    def _remove(self, connection: Any) -> Any:
        return connection if self._idle.pop(connection, False) else None

    def _enter(self, lease: Lease) -> bool:
        with self._lock:
            if len(self._open) >= self._limit:
                return False
            # Set `place` afterwards. If an exception interrupts this method before `add`, the
            # reference must not live on: its `discard` would fail, because it has no hash.
            self._open.add(ref(lease, self._open.discard))
            lease.place = ref(lease)
            return True

    def _wake_next(self) -> None:
        with suppress(IndexError):
            waiting = self._waiting.popleft()
            waiting.is_queued = False
            waiting.wake()

    def _take_idle(self, lease: Lease, origin: Any) -> Any:
        """Move the connection to `origin` that was used last to `lease`. Return the connection.

        Return None if there is none.
        """
        for connection in reversed(self._idle.copy()):
            if connection.can_handle_request(origin) and lease.take(connection, self._idle):
                return connection
        return None

    def _wait_seconds(self, lease: Lease, waiting: _Waiting) -> float | None:
        """Return None if the lease got a place, or else the seconds to wait before the next call.

        Raises `PoolTimeout` when the time of `waiting` has expired.
        """
        if not waiting.is_queued:
            waiting.is_queued = True
            self._waiting.append(waiting)
        if self._enter(lease):
            return None
        left = waiting.end - monotonic()
        if left <= 0:
            raise timed_out(PoolTimeout, waiting.timeout)
        return min(left, _CHECK_SECONDS)

    def _stop_waiting(self, waiting: _Waiting) -> None:
        with suppress(ValueError):
            self._waiting.remove(waiting)
        # `free` can have woken this exchange for a place that the exchange has not taken. In this
        # case, wake another waiting exchange.
        if len(self._open) < self._limit:
            self._wake_next()

    def _pop_all_idle(self) -> Iterator[Any]:
        with suppress(KeyError):
            while True:
                yield self._idle.popitem()[0]


class SyncPool(_Pool):
    """The pool of a sync client. httpx calls `handle_request` and `close`."""

    def handle_request(self, request: Any) -> Any:
        exchange: Any = current_exchange.get()()
        lease = exchange.lease = Lease(self)
        self.reserve(lease, request.extensions["timeout"]["pool"], exchange.interrupt)
        origin = request.url.origin
        while (connection := self._take_idle(lease, origin)) and connection.has_expired():
            connection.close()
            lease.drop()
        if connection is None:
            lease.hold(self._create(origin))
        response = lease.connection.handle_request(request)
        response.stream = _PooledStream(response.stream, lease)
        return response

    def close(self) -> None:
        """Close the idle connections now, and the others when their exchanges end.

        A signal handler or a finalizer may call this method. Therefore no lock is acquired, and no
        socket is closed while it is in use.
        """
        self.is_closed = True
        for connection in self._pop_all_idle():
            connection.close()

    def reserve(self, lease: Lease, timeout: float | None, interrupt: Interrupt) -> None:
        if self._enter(lease):
            return
        waker = Waker()
        waiting = _Waiting.start(timeout, waker.wake)
        interrupt.on_fire(waker.wake)
        try:
            while (seconds := self._wait_seconds(lease, waiting)) is not None:
                waker.wait(seconds)
                if interrupt.fired:
                    raise ConnectError("the wait for a connection was interrupted")
        finally:
            self._stop_waiting(waiting)


class AsyncPool(_Pool):
    """The async version of `SyncPool`, for one event loop."""

    async def handle_async_request(self, request: Any) -> Any:
        lease = cast("Any", current_exchange.get()()).lease = Lease(self)
        await self.reserve(lease, request.extensions["timeout"]["pool"])
        origin = request.url.origin
        while (connection := self._take_idle(lease, origin)) and connection.has_expired():
            await shielded(connection.aclose)
            lease.drop()
        if connection is None:
            lease.hold(self._create(origin))
        response = await lease.connection.handle_async_request(request)
        response.stream = _PooledAsyncStream(response.stream, lease)
        return response

    async def aclose(self) -> None:
        """Close all connections of the pool, including the connections in use.

        If the task is cancelled while one connection is closed, the others are closed, too.
        """
        self.is_closed = True
        leases = [place() for place in self._open.copy()]
        in_use = [lease.connection for lease in leases if lease and lease.connection]
        async with AsyncExitStack() as closing:
            for connection in (*self._pop_all_idle(), *in_use):
                closing.push_async_callback(connection.aclose)

    async def reserve(self, lease: Lease, timeout: float | None) -> None:
        if self._enter(lease):
            return
        waker = AsyncWaker()
        waiting = _Waiting.start(timeout, waker.wake)
        try:
            while (seconds := self._wait_seconds(lease, waiting)) is not None:
                await waker.wait(seconds)
        finally:
            self._stop_waiting(waiting)


class _PooledStream:
    """The encoded body of a response. `close` returns the connection to the pool."""

    def __init__(self, stream: Any, lease: Lease) -> None:
        self._stream = stream
        self._lease = lease

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._stream)

    def close(self) -> None:
        self._stream.close()
        if unused := self._lease.release(reusable=True):
            unused.close()


class _PooledAsyncStream:
    def __init__(self, stream: Any, lease: Lease) -> None:
        self._stream = stream
        self._lease = lease

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._stream)

    async def aclose(self) -> None:
        await self._stream.aclose()
        if unused := self._lease.release(reusable=True):
            await unused.aclose()
