"""A turn's events as users iterate over them, sync and async.

Both streams pump a `Turn`. Inside a `with` block the block owns the connection, and iteration may
be left and taken up again; without one, leaving a loop early releases the connection at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from threading import Lock
from typing import Any, Generic, TypeVar, final

from flux0.client.stream_state import LEFT, StreamInUse, StreamState
from flux0.domain.errors import Flux0Error, TransportError
from flux0.domain.messages.accumulator import MessageAccumulator
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.models import Events
from flux0.domain.stream_events import StreamEvent
from flux0.ports import AsyncByteStream, ByteStream, Response
from flux0.usecases.turn import Turn

T = TypeVar("T")


@final
class EventStream(StreamState):
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
        self,
        response: Response[ByteStream],
        turn: Turn,
        accumulator: MessageAccumulator,
        list_stored: Callable[..., Events],
        clock: Callable[[], float],
    ) -> None:
        super().__init__(response, turn, accumulator, list_stored, clock)
        self._pieces = iter(response.body)
        self._close_body = response.body.close

    def __enter__(self) -> EventStream:
        self._enter()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[StreamEvent]:
        fold = self._fold
        own = True
        try:
            while True:
                # The batch is shared: another loop goes on where this one was left.
                for event in self._batch:
                    fold(event)
                    yield event
                if not self._advance():
                    return
        except StreamInUse:
            own = False
            raise
        finally:
            if own and not self._entered:
                self.close()

    def __next__(self) -> StreamEvent:
        while True:
            for event in self._batch:
                self._fold(event)
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
            if self._text:
                yield self._text

    def final_messages(self) -> tuple[TurnMessage, ...]:
        """Read to the end and return the messages and tool results that the server stores.

        The server decides what it stores when the agent calls a message ready, which no stream
        tells; `stored_events` asks it. Raises as `text` does.
        """
        self._raise_error()
        for _ in self:
            self._raise_error()
        self.confirm()
        return self._accumulator.finish()

    def confirm(self) -> None:
        """Make sure that a stream which has ended was whole, and be `finished`.

        Where nothing but the end of the connection ended it, this lists what the server has stored.

        Raises:
            StreamInterrupted: the server has not stored what the stream said.
            Flux0Error: the stream has not ended yet.
        """
        self._check_end()
        if not self._proven:
            try:
                self._compare(self.stored_events())
            except Flux0Error as error:
                self._turn.mark_interrupted(
                    f"the stream ended, and what is stored cannot be listed: {error}"
                )
            self._check()

    def relay(self, *, heartbeat_ms: int | None = 15_000) -> Iterator[bytes]:
        """Iterate over the turn as server-sent events, for a page that a browser shows.

        The events are in the server's own form, as bytes, each as soon as it comes. A comment comes
        in silences of `heartbeat_ms` milliseconds, or never if that is None. An error is a last
        event named `error`, whose data is JSON with `type` and `message`. Leaving the iteration
        closes the stream, which cancels the agent.
        """
        from flux0.client.relay import heartbeat_seconds, relay  # noqa: PLC0415 - few need it

        return relay(self, self.close, heartbeat_seconds(heartbeat_ms))

    def stored_events(self) -> Events:
        """Return the events of this turn that the server has stored by now."""
        events: Events = self._stored()
        return events

    def close(self, reason: str = LEFT) -> None:
        """Release the connection; whoever reads on is told the reason. Harmless when repeated."""
        self._closed = self._closed or reason
        self._close_body()

    def _advance(self) -> bool:
        """Pull the next piece of the body; say whether there was one to pull."""
        if not self._reading.acquire(blocking=False):
            raise StreamInUse
        try:
            self._check()
            if self._ended:
                return False
            began = self._clock()
            piece = next(self._pieces, None)
            last = self._take(piece, self._clock() - began)
        except TransportError as error:
            self._fail(error)
            last = True
        except BaseException:
            self.close()
            raise
        finally:
            self._reading.release()
        if last:
            self.close()
        return True


@final
class AsyncEventStream(StreamState):
    """An `EventStream` for asynchronous code, with the same behaviour and errors."""

    def __init__(
        self,
        response: Response[AsyncByteStream],
        turn: Turn,
        accumulator: MessageAccumulator,
        list_stored: Callable[..., Awaitable[Events]],
        clock: Callable[[], float],
    ) -> None:
        super().__init__(response, turn, accumulator, list_stored, clock)
        self._pieces = aiter(response.body)
        self._close_body: Callable[[], Awaitable[None]] = response.body.close_async

    async def __aenter__(self) -> AsyncEventStream:
        self._enter()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close_async()

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        return self if self._entered else _Loop(self.__anext__, self._leave, self._reading)

    async def __anext__(self) -> StreamEvent:
        while True:
            for event in self._batch:
                self._fold(event)
                return event
            if not await self._advance():
                raise StopAsyncIteration

    def text(self) -> AsyncIterator[str]:
        """Iterate over the text of the answer as it grows, without the agent's reasoning.

        Raises `AgentError` as soon as the agent reports an error, besides what iterating over the
        events raises.
        """
        return _Loop(self._next_text, self._leave, self._reading)

    async def final_messages(self) -> tuple[TurnMessage, ...]:
        """Read to the end and return the messages and tool results that the server stores.

        The server decides what it stores when the agent calls a message ready, which no stream
        tells; `stored_events` asks it. Raises as `text` does.
        """
        self._raise_error()
        async for _ in self:
            self._raise_error()
        await self.confirm()
        return self._accumulator.finish()

    async def confirm(self) -> None:
        """Make sure that a stream which has ended was whole, and be `finished`.

        Where nothing but the end of the connection ended it, this lists what the server has stored.

        Raises:
            StreamInterrupted: the server has not stored what the stream said.
            Flux0Error: the stream has not ended yet.
        """
        self._check_end()
        if not self._proven:
            try:
                self._compare(await self.stored_events())
            except Flux0Error as error:
                self._turn.mark_interrupted(
                    f"the stream ended, and what is stored cannot be listed: {error}"
                )
            self._check()

    def relay(self, *, heartbeat_ms: int | None = 15_000) -> AsyncIterator[bytes]:
        """Iterate over the turn as server-sent events, for a page that a browser shows.

        The events are in the server's own form, as bytes, each as soon as it comes. A comment comes
        in silences of `heartbeat_ms` milliseconds, or never if that is None. An error is a last
        event named `error`, whose data is JSON with `type` and `message`. Leaving the iteration
        closes the stream, which cancels the agent.
        """
        from flux0.client.relay import heartbeat_seconds, relay_async  # noqa: PLC0415 - few do

        return relay_async(self, self.close_async, heartbeat_seconds(heartbeat_ms))

    async def stored_events(self) -> Events:
        """Return the events of this turn that the server has stored by now."""
        events: Events = await self._stored()
        return events

    async def close_async(self, reason: str = LEFT) -> None:
        """Release the connection; whoever reads on is told the reason. Harmless when repeated."""
        self._closed = self._closed or reason
        await self._close_body()

    async def _next_text(self) -> str:
        while True:
            await self.__anext__()
            self._raise_error()
            if self._text:
                return self._text

    async def _advance(self) -> bool:
        """Pull the next piece of the body; say whether there was one to pull."""
        if not self._reading.acquire(blocking=False):
            raise StreamInUse
        try:
            self._check()
            if self._ended:
                return False
            began = self._clock()
            piece = await anext(self._pieces, None)
            last = self._take(piece, self._clock() - began)
        except TransportError as error:
            self._fail(error)
            last = True
        except BaseException:
            await self.close_async()
            raise
        finally:
            self._reading.release()
        if last:
            await self.close_async()
        return True

    def close_soon(self, reason: str = LEFT) -> None:
        """Have the event loop release the connection, from code that cannot await."""
        if not self._closed:
            self._closed = reason
            del self._pieces  # Its body releases the connection when nobody holds it any more.
            self._close_body = _nothing

    def _leave(self) -> None:
        if not self._entered:
            self.close_soon()


class _Loop(Generic[T]):
    """One `async for` over a stream; leaving it leaves the stream, unless a block owns that.

    One that another reader kept from reading is refused, and leaves nothing.
    """

    def __init__(
        self,
        advance: Callable[[], Coroutine[Any, Any, T]],
        leave: Callable[[], None],
        reading: Lock,
    ) -> None:
        self._advance = advance
        self._leave = leave
        self._reading = reading
        self._refused = False

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    def __anext__(self) -> Coroutine[Any, Any, T]:
        self._refused = self._reading.locked()
        return self._advance()

    def __del__(self) -> None:
        if not self._refused:
            self._leave()


async def _nothing() -> None:
    """Close what was let go of already."""


@final
class AsyncOpening:
    """A turn that is about to begin: await it for its stream, or use it in `async with`."""

    _stream: AsyncEventStream  # Once it is entered.

    def __init__(self, opening: Coroutine[Any, Any, AsyncEventStream]) -> None:
        self._opening = opening

    def __repr__(self) -> str:
        return "<a turn that has not begun: await it, or use it in async with>"

    def __await__(self) -> Generator[Any, Any, AsyncEventStream]:
        return self._opening.__await__()

    async def __aenter__(self) -> AsyncEventStream:
        self._stream = await self._opening
        return await self._stream.__aenter__()

    async def __aexit__(self, *_: object) -> None:
        await self._stream.close_async()
