"""The reader of a stream: the thread or task whose loop gets the events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from threading import Lock
from typing import Any, TypeVar, final
from weakref import ref

from flux0.domain.errors import StreamInUse
from flux0.runtime.event_loop import do_nothing
from flux0.runtime.processes import NO_WAIT
from flux0.turns.turn import Turn

V = TypeVar("V", bound=Iterator[Any])


@final
class Reader:
    """A loop that reads a stream, together with the loops inside it.

    Attributes:
        owner: The thread or task that runs the loop.
    """

    __slots__ = ("__weakref__", "owner")

    def __init__(self, owner: object) -> None:
        self.owner: object = owner


@final
class ReaderRole:
    """Lets one thread or task read a stream at a time.

    A loop keeps the role between two events, as long as it refers to its `Reader`. A call of `next`
    or `anext` has the role until it returns.

    Args:
        running: Returns the running thread or task.
        turn: Adds the request to the error for a second reader.

    Attributes:
        reader: Returns the reader; None if no loop reads the stream.
        lock: Is held while a thread or task waits for the next events.
    """

    def __init__(self, running: Callable[[], object], turn: Turn) -> None:
        self._running = running
        self._turn = turn
        # A weak reference: a loop that is left gives up the role even if Ctrl-C interrupts it.
        self.reader: Callable[[], Reader | None] = do_nothing
        self.lock: Lock = Lock()

    def in_use(self) -> StreamInUse:
        """Return the error for a second reader."""
        return self._turn.attach_request(StreamInUse())

    def check(self) -> None:
        """Raise `StreamInUse` if another thread or task has a loop."""
        self._reader_of(self._running())

    def claim(self, owner: object = None) -> Reader:
        """Return the reader for a loop of `owner`; None means the running thread or task.

        The loops of one owner share a reader, so that a loop may contain another loop. Raises
        `StreamInUse` if another thread or task reads the stream.
        """
        owner = owner or self._running()
        reader = self._reader_of(owner)
        if reader is None:
            if not self.lock.acquire(NO_WAIT):
                raise self.in_use()
            try:
                reader = self._reader_of(owner) or Reader(owner)
                self.reader = ref(reader)
            finally:
                self.lock.release()
        return reader

    def _reader_of(self, owner: object) -> Reader | None:
        """Return the current reader; raise `StreamInUse` if it does not belong to `owner`."""
        reader = self.reader()
        if reader is not None and reader.owner != owner:
            # A task that has ended runs no loop: `asyncio.wait_for` of Python 3.11 runs each call
            # of `anext` in a task of its own.
            if not getattr(reader.owner, "done", bool)():
                raise self.in_use()
            reader.owner = owner
        return reader


def started(values: V) -> V:
    """Run a generator up to its first `yield`. Before, closing the generator would do nothing."""
    next(values)
    return values


@final
class AsyncLoop:
    """The iterator of one `async for` loop. When it is unreferenced, the loop has ended.

    Args:
        step: Returns the next value.
        leave: Closes the stream after its last loop, except in a `with` block.
        take: Returns the next value from the received events, if there is one.
        reader: The reader of the loop; None before the first step and after the end.
        is_pending: Whether the stream is closed even if the loop never starts.
    """

    def __init__(
        self,
        step: Callable[[AsyncLoop], Coroutine[Any, Any, Any]],
        leave: Callable[[], None],
        take: Callable[[], Any],
        *,
        reader: Reader | None = None,
        is_pending: bool = False,
    ) -> None:
        self._step = step
        self._leave = leave
        self.take: Callable[[], Any] = take
        self.reader: Reader | None = reader
        self.is_pending: bool = is_pending

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    def __anext__(self) -> Coroutine[Any, Any, Any]:
        return self._step(self)

    def end(self) -> None:
        """End the loop."""
        if self.is_pending or self.reader is not None:
            self.is_pending, self.reader = False, None
            self._leave()

    async def aclose(self) -> None:
        """End the loop."""
        self.end()

    def __del__(self) -> None:
        self.end()
