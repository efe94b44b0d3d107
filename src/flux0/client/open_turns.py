"""Which turns a client has open, so that a session never has two.

The server runs one turn a session. A second one silences the first for ever, and closing the first
after that kills the second (measured, 0.1.0b4). So messages on one session take turns: each waits
until the one before is on its way, closes its stream, and goes out then.
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

SessionKey: TypeAlias = tuple[str, str]  # the server's URL and the session's id

_ANOTHER_MESSAGE = "the stream was closed by another message on its session"


class OpenTurns:
    """The streams that a client has handed out and somebody still holds.

    Threads wait for threads and tasks for tasks. A thread and a task that send on one session at
    the very same time do not wait for each other.
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
        """Wait for other threads that send on `session`, and close the stream that is open on it.

        An asynchronous stream is closed when its event loop gets to it, which may be too late for
        the turn that follows. Raises `ReadTimeout` if the wait does not end by the deadline.
        """
        lock = self._threads.get().of(session)
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
        """Wait for other tasks that send on `session`, and close the stream that is open on it.

        Raises `ReadTimeout` if the wait does not end by the deadline.
        """
        from anyio import move_on_after  # noqa: PLC0415 - slow to import; comes with httpx

        lock = self._tasks.of(session)
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
        """Take note of the stream that is now open on `session`."""
        self._streams[session] = stream


class _Locks(Generic[L]):
    """A lock for each session, for as long as somebody holds it or waits for it."""

    def __init__(self, make: Callable[[], L]) -> None:
        self._make = make
        self._making = Lock()
        self._held: WeakValueDictionary[SessionKey, L] = WeakValueDictionary()

    def of(self, session: SessionKey) -> L:
        with self._making:
            return self._held.setdefault(session, self._make())


def _task_lock() -> anyio.Lock:
    from anyio import Lock as TaskLock  # noqa: PLC0415 - slow to import; comes with httpx

    return TaskLock()
