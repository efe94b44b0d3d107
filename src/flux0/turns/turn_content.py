"""The contents of a turn, for the reader of its stream and for other threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import RLock
from typing import Final, TypeVar

from flux0.domain.enums import SessionStatus
from flux0.domain.messages.accumulator import MessageAccumulator
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.stream_events import ChunkEvent, StatusEvent, StreamEvent
from flux0.runtime.processes import NO_WAIT, RUNNING
from flux0.turns.reader import Unread
from flux0.turns.turn import Received

T = TypeVar("T")
# `TurnContent.add` calls `fold` only after more than `_FOLDED_BYTES` received bytes, because
# acquiring the lock takes as much time as adding one chunk to a message.
_FOLDED_BYTES: Final = 16 * 1024


class TurnContent(Unread):
    """The messages, the status and the agent error in the events that the reader took so far.

    The reader takes events from `unread` without a lock. All methods except `add` can be called in
    any thread. Before they return a result, they add the events that the reader has taken meanwhile
    to the messages ("fold").

    Attributes:
        status: The last status; None if there was none. It is up to date after `fold`.
        agent_error: The last status event with an error; None if there was none. It is up to date
            after `fold`.
        text: The text that the last event appended to the answer. It is up to date after `fold`.
    """

    def __init__(self, accumulator: MessageAccumulator) -> None:
        self._accumulator = accumulator
        self._lock = RLock()
        self._is_folding = False
        self._process = RUNNING.id
        self.unread: Received = []
        # For each piece of the body: its events that were not added to the messages, and its events
        # that were not taken. Both lists are in the order of `unread`.
        self._batches: deque[tuple[Received, Received]] = deque()
        self._size = 0  # The number of received bytes since `add` has called `fold`.
        self.status: SessionStatus | str | None = None
        self.agent_error: StatusEvent | None = None
        self.text: str = ""

    @property
    def messages(self) -> tuple[TurnMessage, ...]:
        return self.fold(lambda: self._accumulator.messages)

    @property
    def first_chunks(self) -> tuple[ChunkEvent, ...]:
        return self.fold(lambda: self._accumulator.first_chunks)

    @property
    def is_interrupted(self) -> bool:
        return not self.fold(lambda: (True,))

    def finish(self, *, partial: bool = False) -> tuple[TurnMessage, ...]:
        return self.fold(lambda: self._accumulator.finish(partial=partial))

    def take_next(self) -> StreamEvent | None:
        try:
            return self.unread.pop()[0]
        except IndexError:
            return None

    def take_all(self) -> Received:
        events: Received = []
        # `pop` raises IndexError after the last event. Then `events` has all earlier events.
        with suppress(IndexError):
            events.extend(iter(self.unread.pop, None))
        return events

    def take_text(self) -> tuple[str, ...]:
        """Take events until one of them appends text to the answer, and return this text.

        Only `exclusively` may call this method. The result is a tuple with the text. It is empty if
        no unread event appends text. If an event was taken, and the agent has reported an error,
        `agent_error` is set, and the text in the result may be empty.
        """
        unread = self.unread
        while unread:
            try:
                unread.pop()
            except IndexError:  # pragma: no cover - another thread has taken the last event
                break
            self._fold_taken()
            if self.text or self.agent_error is not None:
                return (self.text,)
        return ()

    def add(self, events: Received, size: int) -> None:
        """Add received events of `size` bytes. The reader must have taken all earlier events.

        The list `events` belongs to this object from now on.
        """
        events.reverse()
        unread = events.copy()
        self._batches.append((events, unread))
        self.unread = unread
        self._size += size
        if self._size > _FOLDED_BYTES:
            self._size = 0
            self.fold()

    def fold(self, get: Callable[[], tuple[T, ...]] | None = None) -> tuple[T, ...]:
        """Update the messages with the events that the reader has taken, then return `get()`.

        Does nothing in the cases of `exclusively`.
        """

        def fold_and_get() -> tuple[T, ...]:
            self._fold_taken()
            return () if get is None else get()

        return self.exclusively(fold_and_get)

    def exclusively(self, act: Callable[[], tuple[T, ...]]) -> tuple[T, ...]:
        """Return `act()`. Only one thread at a time calls such a function.

        In two cases, the method does nothing and returns an empty tuple: if a signal handler or a
        finalizer that has interrupted the method calls it again, and in a forked child, if a thread
        of the parent was in the method during the fork.
        """
        result: tuple[T, ...] = ()
        try:
            if not (self._lock.acquire(NO_WAIT) or self._wait()):
                return ()
            if not self._is_folding:
                self._is_folding = True
                result = act()
                self._is_folding = False
        except BaseException:
            # Ctrl-C can raise KeyboardInterrupt at any place, even right after `acquire`. If the
            # lock is not released here, the next call of `fold` waits forever.
            self._is_folding = False
            # `release` raises RuntimeError if this thread does not hold the lock.
            with suppress(RuntimeError):
                self._lock.release()
            raise
        self._lock.release()
        return result

    def _fold_taken(self) -> None:
        batches, feed = self._batches, self._accumulator.feed
        while batches:
            pending, unread = batches[0]
            left = len(unread)
            while len(pending) > left:
                event, _ = pending.pop()
                if type(event) is StatusEvent:
                    self.text, self.status = "", event.data.status
                    if event.data.status == SessionStatus.ERROR:
                        self.agent_error = event
                else:
                    self.text = feed(event)
            if pending:  # If another thread has taken an event meanwhile, the next call adds it.
                break
            batches.popleft()

    def _wait(self) -> bool:
        # In a forked child, no thread releases the lock.
        return self._process == RUNNING.id and self._lock.acquire()
