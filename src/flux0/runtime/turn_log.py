"""The log of a turn: its encoded events, for any number of readers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from attrs import frozen

from flux0.domain import api_errors, background_errors, errors
from flux0.domain.background_errors import ReaderLost, TurnTooLarge
from flux0.domain.errors import Flux0Error
from flux0.runtime.event_loop import do_nothing
from flux0.runtime.processes import RUNNING

# One call of `TurnLog.read` returns events of at most about this number of bytes, so that relays
# send small pieces.
READ_BYTES: Final = 64 * 1024
_PLAIN: Final = (str, int, float, type(None))
_INHERITED: Final = "a forked child cannot read a turn that its parent reads"


@frozen
class LogEnd:
    """The end of a turn's log. In another process, a copied log may end before the turn.

    Attributes:
        error: The error that ended the turn; None if the turn was read to its end.
        finished: Whether the end is confirmed, as in `EventStream.finished`.
        is_of_copy: Whether only copies of the log have ended: the copy of this process, or the
            copies of all processes that cannot reach the process that reads the turn. The turn may
            continue in its process, so relays send `error` without an event number.
    """

    error: Flux0Error | None = None
    finished: bool = False
    is_of_copy: bool = False

    @property
    def has_numbered_error(self) -> bool:
        """Whether relays send `error` with an event number, as the turn's last event."""
        return self.error is not None and not self.is_of_copy

    def to_json(self) -> bytes:
        """Encode this end of a turn as JSON, for another process."""
        if self.error is None:
            return json.dumps({"finished": self.finished}).encode()
        # The JSON contains the error's plain values and not a pickle: unpickling runs code in the
        # pickled data, and other programs can write to the store.
        state = {
            name: value for name, value in vars(self.error).items() if isinstance(value, _PLAIN)
        }
        error = {"type": type(self.error).__name__, "problem": self.error.problem, "state": state}
        end = {"finished": self.finished, "is_of_copy": self.is_of_copy, "error": error}
        return json.dumps(end).encode()

    @classmethod
    def from_json(cls, data: bytes) -> LogEnd:
        """Decode the end of a turn from the JSON that `to_json` returned."""
        end: dict[str, Any] = json.loads(data)
        if (shown := end.get("error")) is None:
            return cls(finished=end["finished"])
        kinds = {**vars(errors), **vars(api_errors), **vars(background_errors)}
        kind = kinds.get(shown["type"])
        if not (isinstance(kind, type) and issubclass(kind, Flux0Error)):
            kind = Flux0Error
        error = errors.restore(kind, (shown["problem"],), shown["state"])
        # Versions of flux0 before this member wrote no `is_of_copy`.
        return cls(error, end["finished"], end.get("is_of_copy", False))


class TurnLog:
    """The events of one turn in this process, numbered from 1.

    One thread or task at a time appends events. Any number of threads, and tasks of any event
    loop, can read them. No method acquires a lock, so finalizers can call all methods.

    If the events have more than `max_bytes`, the oldest events are dropped until at most half of
    `max_bytes` is left. The newest event is always kept.

    Args:
        turn_id: The turn's id, unique in all processes.
        max_bytes: The largest size of all kept events together, in bytes.
        stop: A function that asks the turn's reader to stop, for the reason in its argument. It
            does not wait until the turn has ended. It may block if the store is `blocking`.

    Attributes:
        turn_id: The turn's id, unique in all processes.
        max_bytes: The largest size of all kept events together, in bytes.
        stop: The function `stop` that was passed. After the turn's end, a function that does
            nothing.
        on_end: A function that is called once, when the turn ends, possibly by a finalizer. The
            store may set it in `TurnStore.claim`.
        loop: The event loop that reads the turn; None if the loop is unknown, or a thread reads it.
        trace_parent: The turn's span, from `Observer.trace_parent`. It is set before the first
            event.
        size: The size of all kept events in bytes.
    """

    def __init__(self, turn_id: str, max_bytes: int, stop: Callable[[str], object]) -> None:
        self.turn_id: str = turn_id
        self.max_bytes: int = max_bytes
        self.stop: Callable[[str], object] = stop
        self.on_end: Callable[[], object] = do_nothing
        self.loop: object = None
        self.trace_parent: str | None = None
        self._process = RUNNING.id
        # `_kept` contains the number of the oldest kept event, and the kept events. Both are in one
        # tuple, so that a reader in another thread never combines the number with another list.
        self._kept: tuple[int, list[bytes]] = (1, [])
        self.size: int = 0
        # Several threads can end the turn at the same time. Each thread adds its end to `_ends`,
        # and only the first end is used.
        self._ends: list[LogEnd] = []
        self._wakers: dict[object, Callable[[], object]] = {}

    @property
    def first(self) -> int:
        """The number of the oldest kept event. It is 1 until events are dropped."""
        return self._kept[0]

    @property
    def last(self) -> int:
        """The number of the newest event; 0 if there is none."""
        first, events = self._kept
        return first + len(events) - 1

    @property
    def end(self) -> LogEnd | None:
        """The turn's end, with its error if it failed; None while the turn is running."""
        return self._ends[0] if self._ends else None

    @property
    def is_ended(self) -> bool:
        """Whether the turn has ended. After its end, no events are added."""
        return bool(self._ends)

    def append(self, *events: bytes) -> None:
        """Add complete server-sent events. In a background turn, each has its number as its `id`.

        Does nothing if the turn has ended.
        """
        if self._ends:
            return
        self._kept[1].extend(events)
        self.size += sum(map(len, events))
        if self.size > self.max_bytes:
            self._drop_oldest()
        self._wake()

    def extend(self, number: int, events: Sequence[bytes]) -> None:
        """Add copies of events from another process. `number` is the first event's number.

        If `number` is not `last + 1`, all older events are dropped first, so that readers get an
        error instead of missing or repeating events. Does nothing if the turn has ended.
        """
        if number != self.last + 1 and not self._ends:
            self._kept = (number, [])
            self.size = 0
        self.append(*events)

    def drop(self, last: int) -> None:
        """Drop the events up to the number `last`. Only the thread that adds events may call it."""
        first, events = self._kept
        count = last + 1 - first
        self.size -= sum(map(len, events[:count]))
        self._kept = (last + 1, events[count:])

    def finish(self, end: LogEnd) -> None:
        """End the turn. Only the first call has an effect."""
        self._ends.append(end)
        if self._ends[0] is end:
            on_end = self.on_end
            # The functions `stop` and `on_end` refer to this log. The log drops both functions,
            # because a reference cycle keeps the log in memory until the garbage collector runs.
            self.on_end = self.stop = do_nothing
            on_end()
            self._wake()

    def read(self, after: int) -> Sequence[bytes]:
        """Return the events that follow the event with the number `after`, at most about 64 KiB.

        The result is empty if no event follows yet. If the result is empty, and `end` was set
        before this call, the turn has no more events.

        Raises:
            TurnTooLarge: The event that follows `after` was dropped.
            ReaderLost: The process is a forked child, and the log belongs to its parent.
        """
        return self.read_or_end(after) or ()

    def read_or_end(self, after: int) -> Sequence[bytes] | None:
        """Return the same as `read`, but None if the turn has ended, and no event follows."""
        if RUNNING.id != self._process:
            raise ReaderLost(_INHERITED)
        is_ended = bool(self._ends)  # No event follows an end, so read the end before the events.
        first, events = self._kept
        if after < first - 1:
            raise TurnTooLarge(self.max_bytes)
        start = end = after - first + 1
        if is_ended and start >= len(events):
            return None
        size = 0
        while end < len(events) and size < READ_BYTES:
            size += len(events[end])
            end += 1
        return events[start:end]

    def has_more(self, after: int) -> bool:
        """Return whether an event follows the event number `after`, or the turn has ended."""
        first, events = self._kept
        return first + len(events) - 1 > after or bool(self._ends)

    def on_change(self, wake: Callable[[], object]) -> Callable[[], object]:
        """Call `wake` once, after the next event or the turn's end. Return a function to cancel it.

        `wake` is called in the thread that adds the event or ends the turn, possibly by a
        finalizer: it must return quickly, and must not acquire a lock or raise. After `on_change`,
        check `end` and `read` again before you wait, because the change may have happened before
        this call.
        """
        key, wakers = object(), self._wakers
        wakers[key] = wake
        cancel: Callable[[], object] = partial(wakers.pop, key, None)
        if wakers is not self._wakers and cancel():
            # During this call of `on_change`, another thread has added an event to this log, or
            # ended the turn, but has not called `wake`. Therefore, call `wake` here.
            wake()
        return cancel

    def _drop_oldest(self) -> None:
        first, events = self._kept
        count, size = 0, self.size
        while size > self.max_bytes // 2 and count < len(events) - 1:
            size -= len(events[count])
            count += 1
        self.drop(first + count - 1)

    def _wake(self) -> None:
        # A reader adds a waker, and then looks for events. This method runs after an event was
        # added. Without the GIL, a processor may reorder a write and a later read, and `len` and
        # `bool` of a dictionary acquire no lock: then both could miss the change of the other.
        # According to the page "Thread Safety Guarantees" of Python's documentation, `copy`,
        # `popitem` and `d[key] = value` hold the lock of the dictionary. If the lock was acquired
        # here first, the reader sees the event (and the new `_wakers`); otherwise, `copy` or
        # `popitem` has the waker.
        wakers = self._wakers
        if wakers.copy():
            self._wakers = {}
            # `popitem` raises KeyError when no function is left in `wakers`. A loop over `wakers`
            # fails if another thread changes the dictionary during the loop.
            with suppress(KeyError):
                while True:
                    wakers.popitem()[1]()
