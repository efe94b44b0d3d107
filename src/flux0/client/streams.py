"""The sync and the async stream of a turn's events.

Both streams read the response body and feed its pieces to a `Turn`. If the stream is used in a
`with` block, the connection stays open until the block ends. Without such a block, leaving a `for`
loop early closes the connection.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, final

from flux0.client.life_cycle import Step
from flux0.client.options import CallOptions, show_options
from flux0.client.stream_state import CLOSED_EARLY, READABLE, Reader, StreamState
from flux0.domain import arguments
from flux0.domain.errors import AgentError, Flux0Error, StreamInUse, TransportError
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.stored_models import Events
from flux0.domain.stream_events import StatusEvent, StreamEvent
from flux0.ports import AsyncByteStream, ByteStream
from flux0.runtime.event_loop import Loop, running_loop, running_task

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

    _running = staticmethod(get_ident)

    def _bind(self, body: ByteStream) -> None:
        self._read = body.read
        self._close_body = body.close

    def __enter__(self) -> EventStream:
        self._enter()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After a GeneratorExit, the garbage collector may be closing a generator that contains
        # the `with` block.
        self._close(later=kind is GeneratorExit)

    def __iter__(self) -> Iterator[StreamEvent]:
        return self._iterate()

    def _iterate(self, reader: Reader | None = None, *, is_text: bool = False) -> Iterator[Any]:
        """Yield the events that were not read yet, or their text.

        `reader` is None if the caller has no reader.
        """
        content, later = self._content, False
        take, fold = content.take, content.fold
        if is_text:
            try:
                yield ""
            except GeneratorExit:
                if self._is_left():
                    self._close(later=True)
                raise
        reader = reader or self._claim(self._running())
        try:
            while True:
                # All loops share `unread`, so the next loop continues after the last event.
                if is_text:
                    for event in content.unread:
                        take(event)
                        fold()
                        if content.agent_error is not None:
                            self._raise_agent_error()
                        if content.text:
                            yield content.text
                else:
                    for event in content.unread:
                        take(event)
                        yield event
                if not self._advance(False):
                    return
        except GeneratorExit:
            later = True  # The garbage collector may be closing this generator.
            raise
        finally:
            del reader  # A traceback may keep this frame.
            if self._is_left():
                self._close(later=later)

    def __next__(self) -> StreamEvent:
        self._check_reader()
        while True:
            for event in self._content.unread:
                self._content.take(event)
                return event
            if not self._advance(True):
                raise StopIteration

    def text(self) -> Iterator[str]:
        """Iterate over the agent's answer, piece by piece, without the agent's reasoning.

        This iterator uses only events that were not read yet; `answer` has the whole text so far.
        Between two messages, `answer` has a line break, but this iterator yields nothing.

        Raises `AgentError` as soon as the agent reports an error; later events can still be read.
        Also raises the errors of iterating over the events.
        """
        texts = self._iterate(is_text=True)
        next(texts)  # Otherwise, closing the iterator before the first text would do nothing.
        return texts

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
                self._not_comparable(error)
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

        return relay(
            lambda: self._iterate(self._claim(object())),  # The reading thread is the owner.
            # The garbage collector may close the iterator.
            partial(self._close, later=True),
            self._is_read,
            arguments.optional_seconds("heartbeat_ms", heartbeat_ms),
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

    def _drop_body(self) -> None:
        self._pieces = iter(())
        self._close_body = _do_nothing

    def _advance(self, alone: bool) -> bool:
        """Receive the next events. Return False if the turn has already ended.

        `alone` is True for a call of `next`.
        """
        if not self._reading.acquire(_NO_WAIT):
            raise self._in_use()
        try:
            if alone and self._has_unread():
                return True
            if self._life.current.state not in READABLE:
                self._raise_failure()
                return False
            began = self._clock()
            try:
                last = self._feed_turn(self._read(self._turn.timeout), began)
            except TransportError as error:
                last = self._on_transport_error(error)
            if last is not None:
                self._close_body()
                self._finish(last)
        except StreamInUse:
            raise
        except BaseException:
            self.close()
            raise
        finally:
            self._reading.release()
        return True


@final
@show_options
class AsyncEventStream(StreamState):
    """The async version of `EventStream`, with the same behaviour and the same errors.

    Use the stream in `async with`, and iterate with `async for`. Only one task can read at a time.
    """

    _running = staticmethod(running_task)

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
        return _Loop(self._next, self._leave)

    def __anext__(self) -> Coroutine[Any, Any, StreamEvent]:
        return self._next(None)

    def text(self) -> AsyncIterator[str]:
        """The async version of `EventStream.text`."""
        return _Loop(self._next_text, self._leave, is_pending=True)

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
            try:
                self._compare_with_stored(await self.stored_events())
            except Flux0Error as error:
                self._not_comparable(error)
            self._raise_failure()

    def relay(self, *, heartbeat_ms: int | None = 15_000) -> AsyncIterator[bytes]:
        """The async version of `EventStream.relay`."""
        from flux0.client.relay import relay_async  # noqa: PLC0415 - rarely used

        return relay_async(
            lambda: _Loop(self._next, self._leave, self._claim(object())),
            self.close_async,
            self.close_soon,
            self._is_read,
            arguments.optional_seconds("heartbeat_ms", heartbeat_ms),
        )

    async def stored_events(self, **options: Unpack[CallOptions]) -> Events:
        """The async version of `EventStream.stored_events`."""
        events: Events = await self._stored(**options)
        return events

    async def close_async(self, reason: str = CLOSED_EARLY) -> None:
        """The async version of `EventStream.close`."""
        self.mark_closed(reason)
        await self._close_body()
        self._mark_released()
        self._report_end()

    def close_soon(self, reason: str = CLOSED_EARLY) -> None:
        """Close the stream without awaiting. The event loop releases the connection soon.

        Use this method in code that cannot await, such as a callback.

        Args:
            reason: The message of the `ClientClosed` that a reader of the stream gets.
        """
        if self.is_open:
            self._close_from_finalizer(reason)

    def _drop_body(self) -> None:
        self._pieces = _EmptyBody()
        self._close_body = _close_nothing

    def _leave(self) -> None:
        if self._is_left():
            self.close_soon()

    async def _next(self, loop: _Loop[Any] | None) -> StreamEvent:
        """Return the next event for `loop`, or for a call of `anext` if `loop` is None."""
        if loop is None:
            self._check_reader()
        elif loop.reader is None:
            loop.is_pending = False
            loop.reader = self._claim(self._running())
        try:
            while True:
                for event in self._content.unread:
                    self._content.take(event)
                    return event
                if not await self._advance(loop is None):
                    raise StopAsyncIteration
        except StreamInUse:  # Another task uses the same loop.
            raise
        except BaseException:
            if loop is not None:
                loop.end()
            raise

    async def _next_text(self, loop: _Loop[str]) -> str:
        while True:
            await self._next(loop)
            try:
                text = self._last_text()
            except AgentError:
                loop.end()
                raise
            if text:
                return text

    async def _advance(self, alone: bool) -> bool:
        """The async version of `EventStream._advance`."""
        if not self._reading.acquire(_NO_WAIT):
            raise self._in_use()
        try:
            if alone and self._has_unread():
                return True
            if self._life.current.state not in READABLE:
                self._raise_failure()
                return False
            began = self._clock()
            try:
                last = self._feed_turn(await self._read(self._turn.timeout), began)
            except TransportError as error:
                last = self._on_transport_error(error)
            if last is not None:
                await self._close_body()
                self._finish(last)
        except StreamInUse:
            raise
        except BaseException:
            await self.close_async()
            raise
        finally:
            self._reading.release()
        return True


class _Loop(Generic[T]):
    """The iterator of one `async for` loop. When it is unreferenced, the loop has ended.

    Args:
        step: Returns the next value.
        leave: Closes the stream if no other loop reads it, except in a `with` block.
        reader: The reader of the loop; None before the first step and after the end.
        is_pending: Whether to call `leave` even if the loop never starts.
    """

    def __init__(
        self,
        step: Callable[[_Loop[T]], Coroutine[Any, Any, T]],
        leave: Callable[[], None],
        reader: Reader | None = None,
        *,
        is_pending: bool = False,
    ) -> None:
        self._step = step
        self._leave = leave
        self.reader: Reader | None = reader
        self.is_pending: bool = is_pending

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    def __anext__(self) -> Coroutine[Any, Any, T]:
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


class _EmptyBody:
    """The pieces of a body that was dropped."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        raise StopAsyncIteration


def _do_nothing() -> None:
    """Do nothing. This function replaces `close` of a body that was dropped."""


async def _close_nothing() -> None:
    """The async version of `_do_nothing`."""
