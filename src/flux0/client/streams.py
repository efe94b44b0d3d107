"""The sync and the async stream of a turn's events.

Both streams read the response body and feed its pieces to a `Turn`. If the stream is used in a
`with` block, the connection stays open until the block ends. Without such a block, leaving a `for`
loop early closes the connection.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, final

from attrs import define

from flux0.client.options import CallOptions, show_options
from flux0.client.stream_state import CLOSED_EARLY, StreamState
from flux0.domain import arguments
from flux0.domain.errors import Flux0Error, StreamInUse, TransportError
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.stored_models import Events
from flux0.domain.stream_events import StreamEvent
from flux0.ports import AsyncByteStream, ByteStream
from flux0.runtime.event_loop import Loop, running_loop

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")

# The argument `blocking` of `Lock.acquire`. Passing it by name doubles the time of the call.
_NO_WAIT: Final = False


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

    def _bind(self, body: ByteStream) -> None:
        self._read = body.read
        self._close_body = body.close

    def __enter__(self) -> EventStream:
        self._enter()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After a GeneratorExit, the garbage collector may be closing a generator that contains
        # the `with` block. Then observers must be called later, because they may wait for locks.
        self._report_later = kind is GeneratorExit
        self.close()

    def __iter__(self) -> Iterator[StreamEvent]:
        fold = self._fold
        is_reader = True
        try:
            while True:
                # All `for` loops share `_batch`, so the next loop continues after this event.
                for event in self._batch:
                    fold(event)
                    yield event
                if not self._advance():
                    return
        except StreamInUse:
            is_reader = False
            raise
        except GeneratorExit:
            # The garbage collector may be closing this generator. Then observers must be called
            # later, because they may wait for locks.
            self._report_later = not self._entered
            raise
        finally:
            # Inside a `with` block, the stream stays open until the end of the block.
            if is_reader and not self._entered:
                self.close()

    def __next__(self) -> StreamEvent:
        while True:
            for event in self._batch:
                self._fold(event)
                return event
            if not self._advance():
                raise StopIteration

    def text(self) -> Iterator[str]:
        """Iterate over the agent's answer, piece by piece, without the agent's reasoning.

        This iterator uses only events that were not read yet; `answer` has the whole text so far.
        Between two messages, `answer` has a line break, but this iterator yields nothing.

        Raises `AgentError` as soon as the agent reports an error; later events can still be read.
        Also raises the errors of iterating over the events.
        """
        for _ in self:
            self._raise_agent_error()
            if self._text:
                yield self._text

    def final_messages(self) -> tuple[TurnMessage, ...]:
        """Read the stream to its end, and return the messages and tool results of the turn.

        The messages have the form in which the server stores them. The stream does not show which
        messages the server has stored: call `stored_events` to get the stored events. If the end is
        unconfirmed, the messages may be incomplete: check `finished`.

        Raises the errors of `text` and `confirm`.
        """
        self._raise_agent_error()
        for _ in self:
            self._raise_agent_error()
        self.confirm()
        return self._accumulator.finish()

    def confirm(self) -> None:
        """Check the end of a stream that was read to its end.

        If the end is confirmed, this method does nothing. If the end is unconfirmed, this method
        compares the messages of the stream with the stored events of the turn. The comparison finds
        a truncated turn if the server has not stored the last message. It cannot prove that the
        turn is complete: if the server was killed between two messages, all received messages are
        stored. Therefore, the end stays unconfirmed, and the client logs a warning that names the
        proxy settings to change. The warning is logged once for each client.

        Raises:
            StreamInterrupted: The server has not stored all messages of the stream, or the stored
                events could not be listed.
            Flux0Error: The stream has not been read to its end.
        """
        if self._needs_check():
            try:
                self._compare_with_stored(self.stored_events())
            except Flux0Error as error:
                self._turn.mark_interrupted(
                    f"the stream ended, but the stored events could not be listed: {error}"
                )
            self._raise_failure()

    def relay(self, *, heartbeat_ms: int | None = 15_000) -> Iterator[bytes]:
        """Iterate over the encoded server-sent events of the turn, to forward them to a browser.

        The events have the format of the flux0 server. If the stream fails, the last event is named
        `error`, and its data is JSON with the `type` and the `message` of the error. Closing the
        iterator closes the stream, which cancels the agent.

        Args:
            heartbeat_ms: Milliseconds without an event after which a comment is yielded. The
                comment keeps proxies from closing the connection. None means no comments.
        """
        from flux0.client.relay import relay  # noqa: PLC0415 - rarely needed

        # Pass `_release` instead of `close`: the garbage collector may close the iterator, and
        # `close` calls the observers, which may wait for locks. The reading thread calls the
        # observers later.
        return relay(self, self._release, arguments.optional_seconds("heartbeat_ms", heartbeat_ms))

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
        self._release(reason)
        self._report_end()

    def _release(self, reason: str = CLOSED_EARLY) -> None:
        self.mark_closed(reason)
        self._close_body()
        self._released = True

    def _advance(self) -> bool:
        """Read the next piece of the body. Return False if the turn has already ended."""
        if not self._reader_lock.acquire(_NO_WAIT):
            raise self._turn.attach_request(StreamInUse())
        try:
            if self._closed or self._ended or self._turn.failure is not None:
                self._raise_failure()
                return False
            began = self._clock()
            piece = self._read(self._turn.timeout)
            last = self._feed_turn(piece, began)
        except TransportError as error:
            self._on_transport_error(error)
            last = True
        except BaseException:
            self.close()
            raise
        finally:
            self._reader_lock.release()
        if last:
            self.close()
        return True


@final
@show_options
class AsyncEventStream(StreamState):
    """The async version of `EventStream`, with the same behaviour and the same errors.

    Use the stream in `async with`, and iterate with `async for`. Only one task can read at a time.
    """

    def _bind(self, body: AsyncByteStream) -> None:
        self._read = body.read_async
        self._close_body: Callable[[], Awaitable[None]] = body.close_async
        self.loop: Loop = running_loop()
        self.thread: int = get_ident()

    async def __aenter__(self) -> AsyncEventStream:
        self._enter()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close_async()

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        if self._entered:
            return self
        return _ClosingIterator(self.__anext__, self._close_unless_entered, self._reader_lock)

    async def __anext__(self) -> StreamEvent:
        while True:
            for event in self._batch:
                self._fold(event)
                return event
            if not await self._advance():
                raise StopAsyncIteration

    def text(self) -> AsyncIterator[str]:
        """The async version of `EventStream.text`."""
        return _ClosingIterator(self._next_text, self._close_unless_entered, self._reader_lock)

    async def final_messages(self) -> tuple[TurnMessage, ...]:
        """The async version of `EventStream.final_messages`."""
        self._raise_agent_error()
        async for _ in self:
            self._raise_agent_error()
        await self.confirm()
        return self._accumulator.finish()

    async def confirm(self) -> None:
        """The async version of `EventStream.confirm`."""
        if self._needs_check():
            try:
                self._compare_with_stored(await self.stored_events())
            except Flux0Error as error:
                self._turn.mark_interrupted(
                    f"the stream ended, but the stored events could not be listed: {error}"
                )
            self._raise_failure()

    def relay(self, *, heartbeat_ms: int | None = 15_000) -> AsyncIterator[bytes]:
        """The async version of `EventStream.relay`."""
        from flux0.client.relay import relay_async  # noqa: PLC0415 - rarely used

        return relay_async(
            self, self.close_async, arguments.optional_seconds("heartbeat_ms", heartbeat_ms)
        )

    async def stored_events(self, **options: Unpack[CallOptions]) -> Events:
        """The async version of `EventStream.stored_events`."""
        events: Events = await self._stored(**options)
        return events

    async def close_async(self, reason: str = CLOSED_EARLY) -> None:
        """The async version of `EventStream.close`."""
        self.mark_closed(reason)
        await self._close_body()
        self._released = True
        self._report_end()

    async def _next_text(self) -> str:
        while True:
            await self.__anext__()
            self._raise_agent_error()
            if self._text:
                return self._text

    async def _advance(self) -> bool:
        """Read the next piece of the body. Return False if the turn has already ended."""
        if not self._reader_lock.acquire(_NO_WAIT):
            raise self._turn.attach_request(StreamInUse())
        try:
            if self._closed or self._ended or self._turn.failure is not None:
                self._raise_failure()
                return False
            began = self._clock()
            piece = await self._read(self._turn.timeout)
            last = self._feed_turn(piece, began)
        except TransportError as error:
            self._on_transport_error(error)
            last = True
        except BaseException:
            await self.close_async()
            raise
        finally:
            self._reader_lock.release()
        if last:
            await self.close_async()
        return True

    def close_soon(self, reason: str = CLOSED_EARLY) -> None:
        """Close the stream without awaiting. The event loop releases the connection soon.

        Use this method in code that cannot await, such as a callback.

        Args:
            reason: The message of the `ClientClosed` that a reader of the stream gets.
        """
        if not self._released:
            self.mark_closed(reason)
            self._released = True
            # Delete the only references to the body, so that its finalizer releases the connection.
            del self._read
            self._close_body = _close_nothing
            # The garbage collector may be calling this method, so observers must be called later.
            self._report_later = True
            self._report_end()

    def _close_unless_entered(self) -> None:
        if not self._entered:
            self.close_soon()


@define(eq=False, repr=False)
class _ClosingIterator(Generic[T]):
    """The iterator of one `async for` loop. Its finalizer closes the stream.

    If the iterator raised `StreamInUse`, the stream stays open for its other reader.
    """

    _advance: Callable[[], Coroutine[Any, Any, T]]
    _close: Callable[[], None]
    _reader_lock: Lock
    _in_use: bool = False

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    def __anext__(self) -> Coroutine[Any, Any, T]:
        self._in_use = self._reader_lock.locked()
        return self._advance()

    def __del__(self) -> None:
        if not self._in_use:
            self._close()


async def _close_nothing() -> None:
    """Do nothing. After `close_soon`, this function replaces `close_async` of the body."""
