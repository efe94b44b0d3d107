"""The sync and the async stream of a turn's events.

Both streams read the response body and feed its pieces to a `Turn`. If the stream is used in a
`with` block, the connection stays open until the block ends. Without such a block, leaving a `for`
loop early closes the connection.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, final

from flux0.domain import arguments
from flux0.domain.errors import StreamInUse, TransportError
from flux0.domain.locks import Busy
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.stored_models import Events
from flux0.domain.stream_events import StatusEvent, StreamEvent
from flux0.ports import AsyncByteStream, ByteStream
from flux0.relay_format import FLUX0, RelayFormat, checked_format
from flux0.runtime.event_loop import (
    Loop,
    is_stopped,
    run_without_loop,
    running_loop,
    running_task,
    schedule_close,
)
from flux0.turns.reader import AsyncLoop, Reader, SyncLoop
from flux0.turns.stream_state import CLOSED_EARLY, StreamState
from flux0.usecases.options import CallOptions, show_options

if TYPE_CHECKING:
    from typing_extensions import Unpack


@final
@show_options
class EventStream(StreamState):
    """The events of one turn: an iterator that yields each event as soon as its bytes arrive.

        with client.conversation(agent=agent).send("Hello") as stream:
            for event in stream:  # StatusEvent, ChunkEvent or UnknownEvent
                print(event)
        print(stream.messages)

    Iteration, `text` and `final_messages` share one position in the stream: each continues after
    the last event that was read. Only one thread can read at a time.

    In a `with` block, you can leave a `for` loop and continue with another loop; the stream is
    closed at the end of the block. Without a `with` block, leaving a loop closes the stream.

    Closing a stream before its end cancels the agent, and the server does not store the message in
    progress. Read to the end if the whole turn must be stored.

    Raises while iterating:
        StreamInterrupted: The connection failed or the body ended before the turn was complete.
        StreamIdleTimeout: No event was received within the idle timeout, by default 600 s.
        EventTooLarge: An event is larger than `max_event_bytes` of the client.
        DecodeError: An event is not valid JSON or has the wrong shape.
        ClientClosed: The stream was closed before its end.
    """

    _running = staticmethod(get_ident)

    def _bind(self, body: ByteStream) -> None:
        self._read = body.read
        self._close_body = body.close

    def __enter__(self) -> EventStream:
        self._enter()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # A GeneratorExit means that the user's generator around this `with` block is being closed,
        # perhaps by the garbage collector. Then an observer, which can wait for a lock, must wait.
        self._close(later=kind is GeneratorExit)

    def __iter__(self) -> Iterator[StreamEvent]:
        content = self._content
        return SyncLoop(self._next, self._leave, content.take_next, events=content)

    def _values(self, take: Callable[[], Any], reader: Reader | None = None) -> Iterator[Any]:
        return SyncLoop(self._next, self._leave, take, reader=reader)

    def __next__(self) -> StreamEvent:
        # This is the usual case. `_next` does the same, but it takes more time.
        if not self._role.readers and (unread := self._content.unread):
            try:
                return unread.pop()[0]
            except IndexError:  # pragma: no cover - another thread has taken the last event
                pass
        event: StreamEvent = self._next(None)
        return event

    def text(self) -> Iterator[str]:
        """Iterate over the agent's answer, piece by piece, without the agent's reasoning.

        This iterator uses only events that were not read yet; `answer` has the whole text so far.
        Between two messages, `answer` has a line break, but this iterator yields nothing.
        If the agent replaces text, use `answer`: this iterator yields only added text.

        Raises `AgentError` as soon as the agent reports an error; later events can still be read.
        Also raises the errors of iterating over the events.
        """
        return SyncLoop(self._next, self._leave, self._take_text, is_pending=True)

    def final_messages(self) -> tuple[TurnMessage, ...]:
        """Read the stream to its end, and return the messages and tool results of the turn.

        The messages have the form in which the server stores them. The stream does not show which
        messages the server has stored: call `stored_events` to get the stored events. If the end is
        unconfirmed, the messages may be incomplete: check `finished`.

        Raises the errors of `text` and `confirm`.
        """
        self._raise_agent_error()
        for event in self:
            if type(event) is StatusEvent:
                self._raise_agent_error()
        self.confirm()
        return self._content.finish()

    def confirm(self) -> None:
        """Check that the server has stored the messages of a stream that was read to its end.

        If the end is confirmed (see `ending`), this method does nothing. If the end is unconfirmed,
        this method compares the stream's messages with the turn's stored events. The comparison
        finds a truncated turn if the server has not stored the last message. It cannot prove that
        the turn is complete: if the server was killed between two messages, all received messages
        are stored. Therefore, the end stays unconfirmed, and the client logs a warning that names
        the proxy settings to change. The warning is logged once for each client.

        Raises:
            StreamInterrupted: The server has not stored all messages of the stream, or the stored
                events could not be listed.
            Flux0Error: The stream has not been read to its end.
        """
        if self._needs_check():
            with self._checking():
                self._compare_with_stored(self.stored_events())

    def relay(
        self, *, heartbeat_ms: int | None = 15_000, format: RelayFormat = FLUX0
    ) -> Iterator[bytes]:
        """Iterate over the encoded server-sent events of the turn, to forward them to a browser.

        By default, the events have the format of the flux0 server. One piece may contain several
        events that were received together. If the stream fails, the last event is named `error`,
        and its data is JSON with the `type` and `message` of the error. Closing the iterator closes
        the stream, which cancels the agent. The stream is not read while more than 64 KiB wait for
        the web server.

        Args:
            heartbeat_ms: Milliseconds without an event after which a heartbeat is yielded. The
                heartbeat keeps proxies from closing the connection. None means no heartbeats.
            format: The relay format, such as `AiSdkFormat()` of `flux0.adapters.ui`.
        """
        from flux0.turns.relay import relay  # noqa: PLC0415 - rarely needed

        self.mark_relayed()
        return relay(
            lambda: self.received(self._role.claim(object())),
            partial(self._leave, later=True),
            partial(self._close, later=True),
            arguments.optional_seconds("heartbeat_ms", heartbeat_ms),
            checked_format(format),
        )

    def stored_events(self, **options: Unpack[CallOptions]) -> Events:
        """Request the events of this turn that the server has stored so far.

        You can call this method while the stream is being read. The options are the same as for
        `client.sessions.list_events`.

        Raises:
            Flux0Error: No event has been received yet, so the turn has no `correlation_id`.
        """
        events: Events = self._stored(**options)
        return events

    def close(self, reason: str = CLOSED_EARLY) -> None:
        """Close the stream and release its connection. Does nothing if the stream is closed.

        Args:
            reason: The message of the `ClientClosed` that a reader of the stream gets.
        """
        self._close(reason)

    def _close(self, reason: str = CLOSED_EARLY, *, later: bool = False) -> None:
        self.mark_closed(reason)
        self._close_body()
        self._mark_released()
        self._report_end(later=later)

    def _leave(self, *, later: bool) -> None:
        if self._is_left():
            self._close(later=later)

    def _next(self, loop: SyncLoop | None) -> Any:
        content = self._content
        if loop is not None and loop.reader is not None:
            take = loop.take
        else:
            take = self._role.begin(loop, content.take_next)
        try:
            while True:
                if content.unread and (value := take()):
                    return value
                if not self._advance():
                    raise StopIteration  # noqa: TRY301 - the except clause ends the loop
        except BaseException as error:
            # A StreamInUse does not end the loop, because another thread continues this loop.
            if loop is not None and not isinstance(error, StreamInUse):
                loop.end()
            raise

    def _advance(self) -> bool:
        try:
            with self._lock:
                # If another loop or thread has received events, the caller takes them first.
                return bool(self._content.unread) or self._read_events()
        except Busy:
            raise self._role.in_use() from None

    def _read_events(self) -> bool:
        try:
            if not (self._life.is_readable or self._is_readable()):
                return False
            try:
                last = self._feed_turn(self._clock(), self._read(self._turn.timeout))
            except TransportError as error:
                last = self._on_transport_error(error)
            if last is not None:
                self._close_body()
                self._life.move(last)
                self._report_end()
        except BaseException:
            self.close()
            raise
        return True


@final
@show_options
class AsyncEventStream(StreamState):
    """The async version of `EventStream`, with the same behaviour and the same errors.

    Use the stream in `async with`, and iterate with `async for`. Only one task can read at a time.
    """

    _running = staticmethod(running_task)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.loop: Loop = running_loop()
        self.thread: int = get_ident()

    def _bind(self, body: AsyncByteStream) -> None:
        self._read = body.read_async
        self._close_body = body.close_async

    async def __aenter__(self) -> AsyncEventStream:
        self._enter()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close_async()

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        return self._values(self._content.take_next)

    def _values(self, take: Callable[[], Any], reader: Reader | None = None) -> AsyncIterator[Any]:
        return AsyncLoop(self._next, self._leave, take, reader=reader)

    def __anext__(self) -> Coroutine[Any, Any, StreamEvent]:
        return self._next(None)

    def text(self) -> AsyncIterator[str]:
        """The async version of `EventStream.text`."""
        return AsyncLoop(self._next, self._leave, self._take_text, is_pending=True)

    async def final_messages(self) -> tuple[TurnMessage, ...]:
        """The async version of `EventStream.final_messages`."""
        self._raise_agent_error()
        async for event in self:
            if type(event) is StatusEvent:
                self._raise_agent_error()
        await self.confirm()
        return self._content.finish()

    async def confirm(self) -> None:
        """The async version of `EventStream.confirm`."""
        if self._needs_check():
            with self._checking():
                self._compare_with_stored(await self.stored_events())

    def relay(
        self, *, heartbeat_ms: int | None = 15_000, format: RelayFormat = FLUX0
    ) -> AsyncIterator[bytes]:
        """The async version of `EventStream.relay`."""
        from flux0.turns.relay import relay_async  # noqa: PLC0415 - rarely used

        self.mark_relayed()
        return relay_async(
            lambda: self.received(self._role.claim(object())),
            self._leave,
            self.close_async,
            self.close_soon,
            arguments.optional_seconds("heartbeat_ms", heartbeat_ms),
            checked_format(format),
        )

    async def stored_events(self, **options: Unpack[CallOptions]) -> Events:
        """The async version of `EventStream.stored_events`."""
        events: Events = await self._stored(**options)
        return events

    async def close_async(self, reason: str = CLOSED_EARLY) -> None:
        """The async version of `EventStream.close`."""
        self.mark_closed(reason)
        try:
            await self._close_body()
        finally:  # If the task is cancelled, `_close_body` still releases the connection.
            self._mark_released()
            self._report_end()

    def close_soon(self, reason: str = CLOSED_EARLY) -> None:
        """Close the stream without awaiting. The event loop releases the connection soon.

        Use this method in code that cannot await, such as a callback.

        Args:
            reason: The message of the `ClientClosed` that a reader of the stream gets.
        """
        if self.is_open:
            close = self._close_body
            self._close_from_finalizer(reason)
            # A waiting reader of the stream refers to the response body, so the body's finalizer
            # does not run. In this case, close the body here.
            if self.is_being_read and (
                is_stopped(self.loop) or not schedule_close(self.loop, close)
            ):
                run_without_loop(close())

    def _leave(self, *, later: bool = False) -> None:  # noqa: ARG002 - a report is always later
        if self._is_left():
            self.close_soon()

    async def _next(self, loop: AsyncLoop | None) -> Any:
        content = self._content
        if loop is not None and loop.reader is not None:
            take = loop.take
        else:
            take = self._role.begin(loop, content.take_next)
        try:
            while True:
                if content.unread and (value := take()):
                    return value
                if not await self._advance():
                    raise StopAsyncIteration  # noqa: TRY301 - the except clause ends the loop
        except BaseException as error:
            # A StreamInUse does not end the `async for` loop, because another task uses this loop.
            if loop is not None and not isinstance(error, StreamInUse):
                loop.end()
            raise

    async def _advance(self) -> bool:
        try:
            with self._lock:
                return await self._read_events()
        except Busy:
            raise self._role.in_use() from None

    async def _read_events(self) -> bool:
        try:
            if not (self._life.is_readable or self._is_readable()):
                return False
            try:
                last = self._feed_turn(self._clock(), await self._read(self._turn.timeout))
            except TransportError as error:
                last = self._on_transport_error(error)
            if last is not None:
                try:
                    await self._close_body()
                finally:  # The turn has ended, even if the task is cancelled in `_close_body`.
                    self._life.move(last)
                    self._report_end()
        except BaseException:
            await self.close_async()
            raise
        return True
