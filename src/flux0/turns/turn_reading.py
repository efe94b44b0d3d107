"""Reads the stream of a background turn into its log, in a thread or in a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from itertools import count
from typing import Any, Final, Generic, TypeVar

from flux0.domain.background_errors import ReaderLost, TurnStopped
from flux0.domain.errors import ConnectionInterrupted, Flux0Error, drop_tracebacks
from flux0.middleware.logging import log_failed_background_turn, log_lost_reader
from flux0.relay_format import encoded
from flux0.runtime.event_loop import Loop, is_stopped, running_loop, schedule_close, start_task
from flux0.runtime.processes import start_thread
from flux0.runtime.turn_log import LogEnd, TurnLog
from flux0.turns.streams import AsyncEventStream, EventStream
from flux0.turns.turn import Received

S = TypeVar("S", EventStream, AsyncEventStream)

_LOST: Final = "the event loop or the thread that read the background turn has ended"


class TurnReading(ABC, Generic[S]):
    """Reads the stream of one background turn. The methods can be called in any thread.

    Args:
        create_log: A function that returns the turn's log. Its argument is the function that stops
            the turn.
        on_end: A function that is called at the turn's end, possibly by a finalizer.

    Attributes:
        log: The turn's log.
    """

    def __init__(
        self,
        create_log: Callable[[Callable[[str], object]], TurnLog],
        on_end: Callable[[TurnReading[S]], object],
    ) -> None:
        self.log: TurnLog = create_log(lambda reason: self.stop(TurnStopped(reason)))
        self._on_end: Callable[[TurnReading[S]], object] = on_end
        self._stream: S | None = None
        self._stopped: Flux0Error | None = None
        self._numbers = count(1)

    def start(self, stream: S) -> None:
        self._stream = stream
        self.log.trace_parent = stream.mark_relayed().trace_parent
        self._start(stream)
        # If another thread called `stop` while the message was being sent, `stop` had no stream to
        # close. In this case, close the stream here.
        if self._stopped is not None:
            self.stop(self._stopped)

    def stop(self, error: Flux0Error) -> None:
        """Close the stream, and end the turn with `error`. If the turn has ended, do nothing.

        If the message is still being sent, its stream is closed later, by `start`.
        """
        self._stopped = self._stopped or error
        if (stream := self._stream) is not None:
            self._close(stream, error.problem)

    def end(self, error: Flux0Error | None = None, *, finished: bool = False) -> None:
        self._stream = None
        # `self.log` stores the error, and a frame in the error's traceback refers to `self.log`.
        # Drop the traceback, because this cycle keeps the log and the error in memory.
        drop_tracebacks(error)
        self.log.finish(LogEnd(self._stopped or error, finished))
        self._on_end(self)

    def _append(self, events: Received) -> None:
        numbers = self._numbers
        self.log.append(*[encoded(*each, str(next(numbers))) for each in events])

    @contextmanager
    def _reading(self, stream: S) -> Generator[None, None, None]:
        try:
            yield
        except Flux0Error as error:
            self.end(error)
        except Exception as error:  # noqa: BLE001 - user code can raise any exception
            log_failed_background_turn(error)
            problem = f"reading the background turn raised {type(error).__name__}; see the log"
            failure = Flux0Error(problem)
            failure.__cause__ = error
            self.end(failure)
        # When an event loop ends, it cancels its tasks. The cancellation is a BaseException.
        except BaseException as error:
            # A GeneratorExit can come from a finalizer, which must not wait for a log handler.
            if not isinstance(error, GeneratorExit):
                log_lost_reader(_LOST, stream.session_id)
            self.end(ReaderLost(_LOST))
            raise
        else:
            self.end(finished=stream.finished)

    @abstractmethod
    def _start(self, stream: S) -> None: ...

    @abstractmethod
    def _close(self, stream: S, reason: str) -> None: ...


class ThreadReading(TurnReading[EventStream]):
    def _start(self, stream: EventStream) -> None:
        # If the reading thread cannot be started, the error is ConnectionInterrupted, because the
        # message was sent. A ConnectError means that the message was not sent.
        read = partial(copy_context().run, partial(self._read, stream))
        start_thread(read, "flux0-background-turn", ConnectionInterrupted)

    def _read(self, stream: EventStream) -> None:
        with self._reading(stream), stream:
            for events in stream.received():
                self._append(events)
            stream.confirm()

    def _close(self, stream: EventStream, reason: str) -> None:
        # `_close` does not wait for the end of the reading thread: in some transports, closing the
        # stream does not end a read in another thread, and this read continues until the idle
        # timeout.
        try:
            stream.close(reason)
        finally:
            self.end()


class TaskReading(TurnReading[AsyncEventStream]):
    """Reads the stream of a background turn in a task.

    Attributes:
        loop: The task's event loop: the loop that was running when this object was created.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.loop: Loop = running_loop()
        self.log.loop = self.loop
        # `_tasks` keeps a reference to the reading task: an event loop has only weak references to
        # its tasks, so the garbage collector can free a running task.
        self._tasks: list[object] = []

    def lose(self) -> None:
        """End the turn: the event loop that read the turn has ended without ending its tasks."""
        if self._stream is not None:
            log_lost_reader(_LOST, self._stream.session_id)
        self.stop(ReaderLost(_LOST))
        self.end()

    def _start(self, stream: AsyncEventStream) -> None:
        self._tasks.append(start_task(partial(self._read, stream)))

    async def _read(self, stream: AsyncEventStream) -> None:
        with self._reading(stream):
            async with stream:
                async for events in stream.received():
                    self._append(events)
                await stream.confirm()

    def _close(self, stream: AsyncEventStream, reason: str) -> None:
        async def close() -> None:
            try:
                await stream.close_async(reason)
            finally:
                self.end()

        if is_stopped(self.loop) or not schedule_close(self.loop, close):
            stream.close_soon(reason)
            self.end()
