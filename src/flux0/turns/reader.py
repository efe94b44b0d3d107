"""The reader of a stream: the thread or task whose loop gets the events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from inspect import CO_COROUTINE, CO_GENERATOR, currentframe
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NoReturn, final
from weakref import ref

from attrs import define, field

from flux0.domain.errors import StreamInUse
from flux0.domain.locks import Busy, TryLock
from flux0.turns.turn import Received, Turn

_DO_NOTHING: Final = int  # a function of C that has no effect


class Unread:
    """Received events that no reader has taken.

    Attributes:
        unread: The events, from last to first. One `pop` takes an event: no other thread gets the
            same event.
    """

    unread: Received


_NOTHING: Final = Unread()
_NOTHING.unread = []


@final
@define(eq=False)
class Reader:
    """Represents one loop that reads a stream.

    Attributes:
        owner: The thread or task that runs the loop.
        generators: The frame ids of all generators in which the loop runs.
        has_ended: Whether the loop has ended. Without the GIL, Python may free this object later.
    """

    owner: object
    generators: frozenset[int]
    has_ended: bool = False


@final
class ReaderRole:
    """Lets only one thread or task at a time read a stream.

    A `for` loop is the reader, also between two events, as long as it refers to its `Reader`. A
    call of `next` or `anext` is the reader until it returns. A loop may contain another loop over
    the same stream, even if both are in a generator that is continued in another thread.

    Args:
        running: A function that returns the running thread or task.
        turn: The turn, whose request is named in the error for a second reader.

    Attributes:
        readers: Weak references to the loops that read the stream.
        lock: A lock that a thread or task holds while it waits for the next events.
    """

    def __init__(self, running: Callable[[], object], turn: Turn) -> None:
        self._running = running
        self._turn = turn
        # `readers` has only weak references: when a loop has ended, even by Ctrl-C, its `Reader`
        # object is freed, and another thread or task may read the stream.
        self.readers: list[ref[Reader]] = []
        self.lock: TryLock = TryLock()

    def in_use(self) -> StreamInUse:
        return self._turn.attach_request(StreamInUse())

    def has_loop(self) -> bool:
        readers = [reference() for reference in self.readers.copy()]
        return any(reader is not None and not reader.has_ended for reader in readers)

    def check(self) -> None:
        self._check(self._running(), _running_generators)

    def begin(self, loop: _ReadingLoop | None, take: Callable[[], Any]) -> Callable[[], Any]:
        """Return the function that takes the next value: of the loop, or `take` if it is None.

        The first step of a loop makes the loop the stream's reader. Raises `StreamInUse` if another
        thread or task is reading the stream.
        """
        if loop is not None:
            if loop.reader is None:
                loop.begin(self.claim)
            return loop.take
        if self.readers:
            self.check()
        return take

    def claim(self, owner: object = None) -> Reader:
        """Register a loop that reads the stream, and return its `Reader`.

        `owner` is the thread or task that runs the loop; None means the thread or task that calls
        this method. Raises `StreamInUse` if another thread or task is reading the stream.
        """
        generators = _running_generators if owner is None else frozenset[int]
        owner = owner or self._running()
        # A second reader is rejected before it acquires the lock. Otherwise, a call of the first
        # reader at the same time raises StreamInUse, because the second reader holds the lock.
        self._check(owner, generators)
        try:
            with self.lock:
                self._check(owner, generators)
                reader = Reader(owner, generators())
                self.readers.append(ref(reader, self.readers.remove))
        except Busy:
            raise self.in_use() from None
        return reader

    def _check(self, owner: object, generators: Callable[[], frozenset[int]]) -> None:
        for reference in tuple(self.readers):
            reader = reference()
            if reader is None or reader.has_ended or reader.owner == owner:
                continue
            # A reader whose task has ended is ignored. With `asyncio.wait_for` of Python 3.11, each
            # call of `anext` runs in a new task, so the tasks of earlier calls have ended.
            has_ended = getattr(reader.owner, "done", bool)()
            if not has_ended and reader.generators.isdisjoint(generators()):
                # Delete the variable `reader`, because a stored error keeps the variables of this
                # function in memory. As long as a `Reader` is in memory, no other thread or task
                # can read the stream.
                del reader
                raise self.in_use()


def _running_generators() -> frozenset[int]:
    """Return the frame ids of all generators that the current thread or task is executing.

    A web server may run each step of a generator in another thread. Therefore, a loop in a
    generator is recognized by the generator's frame id, and not by the thread. Until the loop ends,
    the frame exists, so no other frame has the same id.
    """
    generators, frame = set[int](), currentframe()
    while frame is not None and not frame.f_code.co_flags & CO_COROUTINE:
        if frame.f_code.co_flags & CO_GENERATOR:
            generators.add(id(frame))
        frame = frame.f_back
    return frozenset(generators)


@define(eq=False, slots=False)
class _ReadingLoop:
    """The iterator of one loop over a stream. When the iterator is freed, the loop has ended.

    It is not a generator: if several threads continue one generator at the same time, Python raises
    ValueError or, without the GIL, crashes.

    Args:
        step: A function that returns the next value or, for async code, a coroutine.
        leave: A function that closes the stream after its last loop, except in a `with` block.
        take: A function that returns the next value from the received events, or a false value if
            there is none. Several threads may call it at the same time.
        reader: The loop's reader; None before the first step and after the end.
        is_pending: True if the stream must also be closed when the iterator is freed before its
            first step.
    """

    _step: Callable[[Any], Any]
    _leave: Callable[..., None]
    take: Callable[[], Any]
    reader: Reader | None = field(default=None, kw_only=True)
    is_pending: bool = field(default=False, kw_only=True)

    if not TYPE_CHECKING:
        # At the end of a loop, a function of C replaces `_on_freed`: an exception of a signal
        # handler would be lost in Python code that runs when the iterator is freed.
        __del__ = property(attrgetter("_on_freed"))

    def begin(self, claim: Callable[[], Reader]) -> None:
        self.is_pending = False
        self.reader = claim()
        self.__dict__.pop("_on_freed", None)

    def end(self, *, later: bool = False) -> None:
        """End the loop. If the garbage collector may call this method, pass `later=True`."""
        reader = self.reader
        if self.is_pending or reader is not None:
            if reader is not None:
                reader.has_ended = True
            del reader
            self.is_pending, self.reader = False, None
            self.__dict__["_on_freed"] = _DO_NOTHING
            self._leave(later=later)

    def _on_freed(self) -> None:
        # If a signal handler has interrupted `__init__`, the last attribute is missing.
        if hasattr(self, "is_pending"):
            self.end(later=True)


@final
@define(eq=False, slots=False)
class SyncLoop(_ReadingLoop):
    """The iterator of one `for` loop.

    Args:
        events: The received events, if the loop yields single events; empty if it calls `take`.
    """

    _events: Unread = field(default=_NOTHING, kw_only=True, alias="events")

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        # This is the usual case. `_step` does the same, but it takes more time.
        if self.reader is not None and (unread := self._events.unread):
            try:
                return unread.pop()[0]
            except IndexError:  # pragma: no cover - another thread has taken the last event
                pass
        return self._step(self)

    def close(self) -> None:
        self._step = _stop
        self.end(later=True)


def _stop(_: object) -> NoReturn:
    raise StopIteration


@final
class AsyncLoop(_ReadingLoop):
    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    def __anext__(self) -> Coroutine[Any, Any, Any]:
        coroutine: Coroutine[Any, Any, Any] = self._step(self)
        return coroutine

    async def aclose(self) -> None:
        self.end()
