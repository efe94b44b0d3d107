"""The contents of a turn, for the reader of its stream and for other threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from threading import RLock
from typing import Final, TypeVar

from flux0.domain.enums import SessionStatus
from flux0.domain.messages.accumulator import MessageAccumulator
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.stream_events import ChunkEvent, StatusEvent, StreamEvent
from flux0.ports import ServerSentEvent
from flux0.runtime.processes import NO_WAIT, OwnerProcess
from flux0.turns.turn import Received

T = TypeVar("T")
# `TurnContent.add` calls `fold` only after more than `_FOLDED_BYTES` received bytes, because
# acquiring the lock takes as much time as adding one chunk to a message.
_FOLDED_BYTES: Final = 16 * 1024


class TurnContent:
    """The messages, the status and the agent error in the events that the reader took so far.

    The reader takes events from `unread` without a lock. All methods except `add` can be called in
    any thread. Before they return a result, they add the events that the reader has taken meanwhile
    to the messages ("fold").

    Attributes:
        unread: The events that were received, but not taken by the reader.
        status: The last status; None if there was none. It is up to date after `fold`.
        agent_error: The last status event with an error; None if there was none. It is up to date
            after `fold`.
        text: The text that the last event appended to the answer. It is up to date after `fold`.
    """

    def __init__(self, accumulator: MessageAccumulator) -> None:
        self._accumulator = accumulator
        self._lock = RLock()
        self._is_folding = False
        self._process = OwnerProcess()
        self.unread: Iterator[tuple[StreamEvent, ServerSentEvent]] = iter(())
        self._taken: deque[StreamEvent] = deque()
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
        for event, _ in self.unread:
            self._taken.append(event)
            return event
        return None

    def take_all(self) -> Received:
        events = list(self.unread)
        self._taken.extend(event for event, _ in events)
        return events

    def add(self, events: Received, size: int) -> None:
        """Add received events of `size` bytes. The reader must have taken all earlier events."""
        self.unread = iter(events)
        self._size += size
        if self._size > _FOLDED_BYTES:
            self._size = 0
            self.fold()

    def fold(self, get: Callable[[], tuple[T, ...]] | None = None) -> tuple[T, ...]:
        """Update the messages with the events that the reader has taken, then return `get()`.

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
                taken, feed = self._taken, self._accumulator.feed
                while taken:
                    event = taken.popleft()
                    if type(event) is StatusEvent:
                        self.text, self.status = "", event.data.status
                        if event.data.status == SessionStatus.ERROR:
                            self.agent_error = event
                    else:
                        self.text = feed(event)
                if get is not None:
                    result = get()
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

    def _wait(self) -> bool:
        # In a forked child, no thread releases the lock.
        return not self._process.is_inherited() and self._lock.acquire()
