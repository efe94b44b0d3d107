"""A turn's events as users iterate over them, sync and async.

Both streams pump a `Turn`. Inside a `with` block the block owns the connection, and iteration may
be left and taken up again; without one, leaving a loop early releases the connection at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar, final

from flux0.domain.errors import ClientClosed, TransportError
from flux0.domain.headers import Headers
from flux0.domain.stream_events import StreamEvent
from flux0.ports import AsyncByteStream, ByteStream, Response
from flux0.usecases.turn import Turn

Body = TypeVar("Body")


class _Stream(Generic[Body]):
    """What both streams know about their turn.

    Attributes:
        headers: the header fields of the server's answer.
        raw_response: the HTTP library's own response.
    """

    def __init__(self, response: Response[Body], turn: Turn) -> None:
        self.headers: Headers = response.headers
        self.raw_response: Any = response.raw_response
        self._body = response.body
        self._turn = turn
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

    def _enter(self) -> None:
        self._is_over()
        self._entered = True

    def _is_over(self) -> bool:
        """Whether nothing more can be pulled; raises if that is for a bad reason."""
        if self._turn.failure is not None:
            raise self._turn.failure
        if self._finished:
            return True
        if self._closed:
            raise ClientClosed("the stream was closed before its end")
        return False

    def _take(self, data: bytes | None) -> bool:
        """Take the next piece of the body, or its end; say whether it was the last."""
        if data is None:
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
class EventStream(_Stream[ByteStream]):
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

    def __init__(self, response: Response[ByteStream], turn: Turn) -> None:
        super().__init__(response, turn)
        self._pieces = iter(response.body)

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
        try:
            while True:
                # The batch is shared: another loop goes on where this one was left.
                yield from self._batch
                if not self._advance():
                    return
        finally:
            if not self._entered:
                self.close()

    def __next__(self) -> StreamEvent:
        while True:
            for event in self._batch:
                return event
            if not self._advance():
                raise StopIteration

    def close(self) -> None:
        """Release the connection; harmless when repeated."""
        self._closed = True
        self._body.close()

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
class AsyncEventStream(_Stream[AsyncByteStream]):
    """An `EventStream` for asynchronous code, with the same behaviour and errors."""

    def __init__(self, response: Response[AsyncByteStream], turn: Turn) -> None:
        super().__init__(response, turn)
        self._pieces = aiter(response.body)

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
        return self if self._entered else _Loop(self)

    async def __anext__(self) -> StreamEvent:
        while True:
            for event in self._batch:
                return event
            if not await self._advance():
                raise StopAsyncIteration

    async def close_async(self) -> None:
        """Release the connection; harmless when repeated."""
        self._closed = True
        await self._body.close_async()

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
        if not self._finished:
            self._closed = True
            self._pieces = self._body = _Abandoned()


class _Loop:
    """One `async for` over a stream that no `async with` owns: leaving it leaves the stream."""

    def __init__(self, stream: AsyncEventStream) -> None:
        self._stream = stream

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        return self

    def __anext__(self) -> Coroutine[Any, Any, StreamEvent]:
        return self._stream.__anext__()

    def __del__(self) -> None:
        self._stream.close_soon()


class _Abandoned:
    """The body of a stream that was left."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        raise StopAsyncIteration

    async def close_async(self) -> None:
        """Nothing is left to release."""
