"""A background turn: its stream is read into a log, which any number of readers relay.

A `TurnReading` reads the stream, in a thread or in a task. A `BackgroundTurn` is the object with
which readers relay the turn, or wait for its reply.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import partial
from itertools import count
from typing import Any, Final, Generic, TypeVar, final

from flux0.adapters.json import JsonCodec
from flux0.adapters.sse import SSEParser
from flux0.domain import arguments
from flux0.domain.background_errors import ReaderLost, TurnStopped
from flux0.domain.enums import SessionStatus
from flux0.domain.errors import (
    AgentError,
    ConnectionInterrupted,
    E,
    Flux0Error,
    InvalidArgument,
    StreamError,
    drop_tracebacks,
    fresh,
)
from flux0.domain.messages.accumulator import MessageAccumulator
from flux0.domain.messages.history import Reply
from flux0.domain.messages.tool_calls import joined_tool_calls
from flux0.domain.stream_events import StatusEvent, StreamEvent
from flux0.domain.uncopyable import Uncopyable
from flux0.middleware.logging import log_failed_background_turn, log_lost_reader
from flux0.relay_format import (
    FLUX0,
    Flux0Format,
    RelayEncoder,
    RelayFormat,
    checked_format,
    encoded,
)
from flux0.runtime.event_loop import Loop, is_stopped, running_loop, schedule_close, start_task
from flux0.runtime.processes import start_thread
from flux0.runtime.turn_log import LogEnd, TurnLog
from flux0.turns.log_relay import (
    AsyncRelay,
    LogReader,
    OpenRelays,
    Pieces,
    Relay,
    turn_pieces,
)
from flux0.turns.streams import AsyncEventStream, EventStream
from flux0.turns.turn import Received

S = TypeVar("S", EventStream, AsyncEventStream)

_LOST: Final = "the event loop or the thread that read the background turn has ended"
# The largest accepted number of digits in the header Last-Event-ID. Any client can send this
# header, and Python is slow to convert numbers with many digits.
_MAX_DIGITS = 18


@final
class BackgroundTurn(Uncopyable):
    """A turn that is read to its end in the background. `BackgroundTurns` returns it.

    Any number of readers, in threads and in tasks of any event loop, can relay the turn or wait for
    its reply, at different speeds. No reader delays or ends the turn.

    Attributes:
        session_id: The session's id.
        id: The turn's id, unique in all processes.
    """

    def __init__(self, session_id: str, log: TurnLog, relays: OpenRelays) -> None:
        self.session_id: str = session_id
        self.id: str = log.turn_id
        self._log = log
        self._relays = relays

    def __repr__(self) -> str:
        state = "running" if self.is_running else "ended"
        return f"<BackgroundTurn {state}, {self.event_count} events, session={self.session_id!r}>"

    @property
    def is_running(self) -> bool:
        """Whether the turn is still running: its stream is being read."""
        return not self._log.is_ended

    @property
    def event_count(self) -> int:
        """The number of events so far, including an event `error` at the turn's end."""
        end = self._log.end
        return self._log.last + (end is not None and end.has_numbered_error)

    @property
    def correlation_id(self) -> str | None:
        """The `correlation_id` of the turn's events and messages; None before the first event.

        Compare it with the `correlation_id` of the stored messages: the stored messages may belong
        to a newer turn.
        """
        parse, decode = SSEParser(max_event_bytes=None).feed, JsonCodec().decode_event
        with suppress(Flux0Error):  # Another thread may drop the oldest event.
            for encoded in self._log.read(self._log.first - 1):
                for event in map(decode, parse(encoded)):
                    if (id_ := getattr(event, "correlation_id", None)) is not None:
                        return str(id_)
        return None

    @property
    def trace_parent(self) -> str | None:
        """The turn's span as the value of a header field `traceparent`; None if it has no span.

        An observer such as `OpenTelemetry` creates the span. In other processes, the value is None
        until the first event.
        """
        return self._log.trace_parent

    def relay(
        self,
        *,
        after: int | str | None = None,
        heartbeat_ms: int | None = 15_000,
        format: RelayFormat = FLUX0,
    ) -> Iterator[bytes]:
        """Iterate over the encoded server-sent events of the turn, to forward them to a browser.

        In flux0's own format, the field `id` of each event is the event's number in the turn, from
        1. A browser that reconnects sends the last number in the header `Last-Event-ID`. If the
        turn fails or is stopped, the last event is named `error`, and its data is JSON with the
        `type` and `message` of the error. If `BackgroundTurns.end_relays` was called, the last
        event is named `reconnect`. Otherwise, the bytes are the same as from `EventStream.relay`.

        Closing the iterator has no effect on the turn.

        Args:
            after: The number of the event after which the relay begins, as an int or a string, such
                as the value of `Last-Event-ID`. By default, the relay begins with the first event.
                Only flux0's own format has numbers: do not pass another `format` with `after`.
            heartbeat_ms: Milliseconds without an event after which a heartbeat is yielded. The
                heartbeat keeps proxies from closing the connection. None means no heartbeats.
            format: The relay format. By default, the format of the flux0 server.

        Raises:
            InvalidArgument: `after` is not the number of an event, or was passed with a format
                whose events have no numbers.
        """
        return Relay(*self._pieces(after, heartbeat_ms, format))

    def relay_async(
        self,
        *,
        after: int | str | None = None,
        heartbeat_ms: int | None = 15_000,
        format: RelayFormat = FLUX0,
    ) -> AsyncIterator[bytes]:
        """The async version of `relay`."""
        return AsyncRelay(*self._pieces(after, heartbeat_ms, format))

    def _pieces(
        self, after: int | str | None, heartbeat_ms: int | None, format: RelayFormat
    ) -> tuple[Pieces, float | None]:
        heartbeat = arguments.optional_seconds("heartbeat_ms", heartbeat_ms)
        number = _number(after)
        if number and not isinstance(format, Flux0Format):
            problem = "must be None: only flux0's own format numbers its events"
            raise InvalidArgument("after", problem)
        encoder = checked_format(format).encoder()
        return self._relays.pieces(LogReader(self._log, number), encoder), heartbeat

    def wait(self) -> Reply:
        """Wait until the turn has ended, and return the agent's reply.

        Raises:
            AgentError: The agent reported an error.
            TurnStopped: The turn was stopped.
            ReaderLost: The process, or the event loop, that read the turn has ended.
            TurnTooLarge: Events were dropped before this call could read them (`max_turn_bytes`).
            ClientClosed: The client or the turn's stream was closed.
            StreamError: The stream of the turn failed.
            DecodeError: An event is not valid JSON or has the wrong shape.
            TurnStoreError: Another process reads the turn, and the store cannot be used. The turn
                continues.
        """
        reply = _ReplyBuilder(self._log)
        # `reply` encodes each event as empty bytes. The relay skips empty bytes, so the first call
        # of `next` reads the relay up to the turn's end.
        next(Relay(turn_pieces(LogReader(self._log), reply), None), None)
        return reply.reply()

    async def wait_async(self) -> Reply:
        """The async version of `wait`."""
        reply = _ReplyBuilder(self._log)
        await anext(AsyncRelay(turn_pieces(LogReader(self._log), reply), None), None)
        return reply.reply()


class _ReplyBuilder(RelayEncoder):
    def __init__(self, log: TurnLog) -> None:
        self._log = log
        self._accumulator = MessageAccumulator()
        self._correlation_id: str | None = None
        self._event_count = 0

    def event(self, event: StreamEvent) -> bytes:
        self._event_count += 1
        self._correlation_id = getattr(event, "correlation_id", self._correlation_id)
        if isinstance(event, StatusEvent) and event.status == SessionStatus.ERROR:
            raise self._with_turn(AgentError(event.data.data))
        self._accumulator.feed(event)
        return b""

    def error(self, error: Flux0Error, number: int | None = None) -> bytes:  # noqa: ARG002 - a parameter of each encoder
        # The error must not be in a local variable: the error's traceback refers to the frame of
        # this method, and the variable refers to the error. Such a reference cycle stays in memory.
        raise self._with_turn(fresh(error))

    def _with_turn(self, error: E) -> E:
        if isinstance(error, StreamError) and not error.event_count:
            error.correlation_id = self._correlation_id
            error.event_count = self._event_count
            error.messages = self._accumulator.messages
            error.sent = "yes" if self._event_count else "maybe"
        return error

    def reply(self) -> Reply:
        messages, end = self._accumulator.finish(), self._log.end
        return Reply(messages, joined_tool_calls(messages), end is not None and end.finished)


def _number(after: int | str | None) -> int:
    if after is None or after == "":
        return 0
    if isinstance(after, str) and after.isascii() and after.isdigit() and len(after) <= _MAX_DIGITS:
        return int(after)
    if isinstance(after, int) and not isinstance(after, bool) and after >= 0:
        return after
    raise InvalidArgument("after", f"must be the number of an event, not {after!r:.100}")


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
