"""Tracks the open turns of a client, so that a session never has two.

The server runs one turn per session. A second turn stops the events of the first one, and closing
the first stream after that cancels the second turn (measured, 0.1.0b4). So a message first waits
until the previous message of its session has been sent, and then closes the stream of its turn.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar
from weakref import WeakValueDictionary

from flux0.client.streams import AsyncEventStream, EventStream
from flux0.domain.timeouts import Deadline
from flux0.runtime.processes import PerProcess

if TYPE_CHECKING:
    import anyio

L = TypeVar("L")

SessionKey: TypeAlias = tuple[str, str]  # The URL of the server and the id of the session.

_ANOTHER_MESSAGE = (
    "the stream was closed by another message on its session: a session has one turn at a time"
)


class OpenTurns:
    """The latest stream of each session, while the user has a reference to it.

    A thread waits for other threads, and a task for other tasks. A thread and a task that send on
    one session at the same time do not wait for each other.
    """

    def __init__(self) -> None:
        self._streams: WeakValueDictionary[SessionKey, EventStream | AsyncEventStream]
        self._streams = WeakValueDictionary()
        self._threads = PerProcess(lambda: _Locks[Lock](Lock))
        self._tasks: _Locks[anyio.Lock] = _Locks(_task_lock)

    @contextmanager
    def exclusive(
        self, session: SessionKey, deadline: Deadline | None, now: float
    ) -> Generator[None, None, None]:
        """Exclude other threads that send on `session`, and close the open stream of the session.

        An async stream is only scheduled to be closed by its event loop, which may happen after the
        next turn has begun. Raises `ReadTimeout` if the wait does not end by the deadline.
        """
        lock = self._threads.get().lock_for(session)
        if deadline is None:
            lock.acquire()
        elif not lock.acquire(timeout=max(deadline.left(now), 0)):
            raise deadline.exceeded()
        try:
            stream = self._streams.pop(session, None)
            if isinstance(stream, EventStream):
                stream.close(_ANOTHER_MESSAGE)
            elif stream is not None:
                stream.close_soon(_ANOTHER_MESSAGE)
            yield
        finally:
            lock.release()

    @asynccontextmanager
    async def exclusive_async(
        self, session: SessionKey, deadline: Deadline | None, now: float
    ) -> AsyncGenerator[None, None]:
        """Exclude other tasks that send on `session`, and close the open stream of the session.

        Raises `ReadTimeout` if the wait does not end by the deadline.
        """
        from anyio import move_on_after  # noqa: PLC0415 - slow to import; comes with httpx

        lock = self._tasks.lock_for(session)
        with move_on_after(None if deadline is None else deadline.left(now)) as scope:
            await lock.acquire()
        if deadline is not None and scope.cancelled_caught:
            raise deadline.exceeded()
        try:
            stream = self._streams.pop(session, None)
            if isinstance(stream, EventStream):
                stream.close(_ANOTHER_MESSAGE)
            elif stream is not None:
                await stream.close_async(_ANOTHER_MESSAGE)
            yield
        finally:
            lock.release()

    def add(self, session: SessionKey, stream: EventStream | AsyncEventStream) -> None:
        """Record the stream that is now open on `session`."""
        self._streams[session] = stream


class _Locks(Generic[L]):
    """One lock per session, which exists while it is held or waited for."""

    def __init__(self, new_lock: Callable[[], L]) -> None:
        self._new_lock = new_lock
        self._guard = Lock()
        self._locks: WeakValueDictionary[SessionKey, L] = WeakValueDictionary()

    def lock_for(self, session: SessionKey) -> L:
        with self._guard:
            return self._locks.setdefault(session, self._new_lock())


def _task_lock() -> anyio.Lock:
    from anyio import Lock as TaskLock  # noqa: PLC0415 - slow to import; comes with httpx

    return TaskLock()
