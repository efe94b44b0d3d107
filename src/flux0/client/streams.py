"""A turn's events as users iterate over them, sync and async.

Both streams pump a `Turn`. Inside a `with` block the block owns the connection, and iteration may
be left and taken up again; without one, leaving a loop early releases the connection at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar, final

from flux0.domain.enums import SessionStatus
from flux0.domain.errors import AgentError, ClientClosed, Flux0Error, StreamError, TransportError
from flux0.domain.headers import Headers
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.messages.tool_calls import joined_tool_calls
from flux0.domain.messages.transcript import Transcript
from flux0.domain.models import Events, ToolCall
from flux0.domain.stream_events import StreamEvent
from flux0.ports import AsyncByteStream, ByteStream, Response
from flux0.usecases.turn import Turn

T = TypeVar("T")


class _Stream:
    """What both streams know about their turn.

    Attributes:
        headers: the header fields of the server's answer.
        raw_response: the HTTP library's own response.
    """

    def __init__(
        self, response: Response[Any], turn: Turn, list_stored: Callable[[str], Any]
    ) -> None:
        self.headers: Headers = response.headers
        self.raw_response: Any = response.raw_response
        self._turn = turn
        self._list_stored = list_stored
        self._transcript = Transcript()
        self._batch: Iterator[StreamEvent] = iter(())
        self._entered = False
        self._closed = False
        self._finished = False

    @property
    def correlation_id(self) -> str | None:
        """The id that all events of this turn share; None until the first event that has one."""
        return self._turn.correlation_id

    @property
    def event_count(self) -> int:
        """How many events have arrived so far."""
        return self._turn.event_count

    @property
    def finished(self) -> bool:
        """Whether the stream was read to its end, and the end was a whole one."""
        return self._finished

    @property
    def messages(self) -> tuple[TurnMessage, ...]:
        """The turn's messages as they stand after the last event that was handed out.

        A tool call shows up while its arguments are on their way, as text.
        """
        return self._transcript.messages

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tools that the agent has asked for so far, each with its result once there is one."""
        return joined_tool_calls(self.messages)

    @property
    def status(self) -> SessionStatus | str | None:
        """The last status that was handed out; None before the first."""
        return self._transcript.status

    @property
    def error(self) -> AgentError | None:
        """What the agent reported to have gone wrong, not raised; None if it reported nothing."""
        event = self._transcript.error
        if event is None:
            return None
        error = AgentError(
            event.data.data, correlation_id=self.correlation_id, event_count=self.event_count
        )
        error.offer(self.messages, self._stored)
        return error

    def _raise_error(self) -> None:
        if (error := self.error) is not None:
            raise error

    def _stored(self) -> Any:
        if self.correlation_id is None:
            raise Flux0Error("no event has named the turn yet, so its events cannot be listed")
        return self._list_stored(self.correlation_id)

    def _enter(self) -> None:
        self._is_over()
        self._entered = True

    def _is_over(self) -> bool:
        """Whether nothing more can be pulled; raises if that is for a bad reason."""
        failure = self._turn.failure
        if failure is not None:
            if isinstance(failure, StreamError):
                failure.offer(self.messages, self._stored)
            raise failure
        if self._finished:
            return True
        if self._closed:
            raise ClientClosed("the stream was closed before its end")
        return False

    def _take(self, data: bytes | None) -> bool:
        """Take the next piece of the body, or its end; say whether it was the last."""
        if data is None:
            if self._closed:  # Which a body may take for its end.
                raise ClientClosed("the stream was closed while it was read")
            self._turn.end()
            self._finished = self._turn.failure is None
        else:
            self._batch = iter(self._turn.feed(data))
        return self._finished or self._turn.failure is not None

    def _fail(self, error: TransportError) -> None:
        if self._closed:  # By another thread or task, which is what made the transport fail.
            raise ClientClosed("the stream was closed while it was read") from error
        self._turn.fail(error)


@final
class EventStream(_Stream):
    """The events of one turn, each handed out when its bytes arrive.

    Leaving it early closes the connection, and that cancels the agent: what it was saying is not
    stored. Read to the end to have the whole turn stored.

    Raises, while it is iterated over:
        StreamInterrupted: the stream ended before the turn did.
        StreamIdleTimeout: nothing came for the idle timeout.
        EventTooLarge: one event is larger than the limit.
        DecodeError: an event is not what the server promises.
        ClientClosed: the stream was closed before its end.
    """

    def __init__(
        self, response: Response[ByteStream], turn: Turn, list_stored: Callable[[str], Events]
    ) -> None:
        super().__init__(response, turn, list_stored)
        self._pieces = iter(response.body)
        self._close_body = response.body.close

    def __enter__(self) -> EventStream:
        self._enter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[StreamEvent]:
        take = self._transcript.take
        try:
            while True:
                # The batch is shared: another loop goes on where this one was left.
                for event in self._batch:
                    take(event)
                    yield event
                if not self._advance():
                    return
        finally:
            if not self._entered:
                self.close()

    def __next__(self) -> StreamEvent:
        while True:
            for event in self._batch:
                self._transcript.take(event)
                return event
            if not self._advance():
                raise StopIteration

    def text(self) -> Iterator[str]:
        """Iterate over the text of the answer as it grows, without the agent's reasoning.

        Raises `AgentError` as soon as the agent reports an error, besides what iterating over the
        events raises.
        """
        for _ in self:
            self._raise_error()
            if self._transcript.text:
                yield self._transcript.text

    def final_messages(self) -> tuple[TurnMessage, ...]:
        """Read to the end and return the messages and tool results that the server stores.

        The server decides what it stores when the agent calls a message ready, which no stream
        tells; `stored_events` asks it. Raises as `text` does.
        """
        self._raise_error()
        for _ in self:
            self._raise_error()
        return self._transcript.finish()

    def stored_events(self) -> Events:
        """Return the events of this turn that the server has stored by now."""
        events: Events = self._stored()
        return events

    def close(self) -> None:
        """Release the connection; harmless when repeated."""
        self._closed = True
        self._close_body()

    def _advance(self) -> bool:
        """Pull the next piece of the body; say whether there was one to pull."""
        if self._is_over():
            return False
        try:
            last = self._take(next(self._pieces, None))
        except TransportError as error:
            self._fail(error)
            last = True
        except BaseException:
            self.close()
            raise
        if last:
            self.close()
        return True


@final
class AsyncEventStream(_Stream):
    """An `EventStream` for asynchronous code, with the same behaviour and errors."""

    def __init__(
        self,
        response: Response[AsyncByteStream],
        turn: Turn,
        list_stored: Callable[[str], Awaitable[Events]],
    ) -> None:
        super().__init__(response, turn, list_stored)
        self._pieces = aiter(response.body)
        self._close_body: Callable[[], Awaitable[None]] = response.body.close_async

    async def __aenter__(self) -> AsyncEventStream:
        self._enter()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close_async()

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        return self if self._entered else _Loop(self.__anext__, self._leave)

    async def __anext__(self) -> StreamEvent:
        while True:
            for event in self._batch:
                self._transcript.take(event)
                return event
            if not await self._advance():
                raise StopAsyncIteration

    def text(self) -> AsyncIterator[str]:
        """Do as `EventStream.text` does."""
        return _Loop(self._next_text, self._leave)

    async def final_messages(self) -> tuple[TurnMessage, ...]:
        """Do as `EventStream.final_messages` does."""
        self._raise_error()
        async for _ in self:
            self._raise_error()
        return self._transcript.finish()

    async def stored_events(self) -> Events:
        """Return the events of this turn that the server has stored by now."""
        events: Events = await self._stored()
        return events

    async def close_async(self) -> None:
        """Release the connection; harmless when repeated."""
        self._closed = True
        await self._close_body()

    async def _next_text(self) -> str:
        while True:
            await self.__anext__()
            self._raise_error()
            if self._transcript.text:
                return self._transcript.text

    async def _advance(self) -> bool:
        """Pull the next piece of the body; say whether there was one to pull."""
        if self._is_over():
            return False
        try:
            last = self._take(await anext(self._pieces, None))
        except TransportError as error:
            self._fail(error)
            last = True
        except BaseException:
            await self.close_async()
            raise
        if last:
            await self.close_async()
        return True

    def close_soon(self) -> None:
        """Have the event loop release the connection, from code that cannot await."""
        if not self._closed:
            self._closed = True
            del self._pieces  # Its body releases the connection when nobody holds it any more.
            self._close_body = _nothing

    def _leave(self) -> None:
        if not self._entered:
            self.close_soon()


class _Loop(Generic[T]):
    """One `async for` over a stream; leaving it leaves the stream, unless a block owns that."""

    def __init__(
        self, advance: Callable[[], Coroutine[Any, Any, T]], leave: Callable[[], None]
    ) -> None:
        self._advance = advance
        self._leave = leave

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    def __anext__(self) -> Coroutine[Any, Any, T]:
        return self._advance()

    def __del__(self) -> None:
        self._leave()


async def _nothing() -> None:
    """Close what was let go of already."""
