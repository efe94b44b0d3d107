"""Forwards a turn to a browser.

If no event is received for a while, a heartbeat is sent, which keeps proxies from closing the
connection. If sending the heartbeat fails, the web server knows that the browser has disconnected.
A separate thread or task reads the stream, so that heartbeats can be sent while it waits.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Final

from flux0.domain.errors import Flux0Error
from flux0.domain.stream_events import StreamEvent
from flux0.relay_format import RelayEncoder, RelayFormat
from flux0.runtime.event_loop import start_task
from flux0.runtime.processes import start_thread

_QUEUE_SIZE: Final = 64  # The number of events that may wait for the web server.
# Permits for the thread that reads the stream.
_ADD: Final = True
_STOP: Final = False


def relay(
    start: Callable[[], Iterator[StreamEvent]],
    close: Callable[[], object],
    is_read: Callable[[], bool],
    heartbeat: float | None,
    format: RelayFormat,
) -> Iterator[bytes]:
    """Return an iterator over encoded events, with a heartbeat after seconds without an event.

    If reading raises a `Flux0Error`, the last piece describes the error. Other exceptions are
    re-raised. Closing the iterator closes the stream, and does not wait for the reading thread. If
    another reader uses the stream, the iterator yields an error, and the stream stays open.

    Args:
        start: Becomes the reader of the stream, and returns its events.
        close: Closes the stream.
        is_read: Returns whether the stream has a reader.
        heartbeat: The time without events after which a heartbeat is yielded; None for no
            heartbeats.
        format: Encodes the events.
    """
    try:
        yield b""  # For `started` or `started_async`.
        encoder = format.encoder()
    except BaseException:
        if not is_read():
            close()
        raise
    try:
        events = start()
    except Flux0Error as error:
        yield encoder.start() + encoder.error(error)
        return
    # The garbage collector may close this generator in any thread, even inside a call of a queue.
    # The methods of `SimpleQueue` are reentrant, so this is safe.
    pieces: SimpleQueue[bytes | BaseException | None] = SimpleQueue()
    # Limits the number of waiting events: `read` waits for a permit before it adds an event.
    permits: SimpleQueue[bool] = SimpleQueue()
    for _ in range(_QUEUE_SIZE):
        permits.put(_ADD)

    def read() -> None:
        end: BaseException | None = None
        try:
            for piece in filter(None, _encoded(encoder, events)):
                if not permits.get():
                    return
                pieces.put(piece)
        except BaseException as error:  # noqa: BLE001 - raised below, in the thread of the web server
            end = error
        pieces.put(end)

    try:
        try:
            start_thread(read, "flux0-relay")
        except Flux0Error as error:
            yield encoder.start() + encoder.error(error)
            return
        while True:
            try:
                piece = pieces.get(timeout=heartbeat)
                permits.put(_ADD)
            except Empty:
                piece = encoder.heartbeat()
            if isinstance(piece, BaseException):
                raise piece
            if piece is None:
                return
            yield piece
    finally:
        permits.put(_STOP)
        close()


def _encoded(encoder: RelayEncoder, events: Iterable[StreamEvent]) -> Iterator[bytes]:
    try:
        yield encoder.start()
        yield from map(encoder.event, events)
        yield encoder.end()
    except Flux0Error as error:
        yield encoder.error(error)


async def relay_async(
    start: Callable[[], AsyncIterator[StreamEvent]],
    close: Callable[[], Awaitable[object]],
    close_soon: Callable[[], object],
    is_read: Callable[[], bool],
    heartbeat: float | None,
    format: RelayFormat,
) -> AsyncGenerator[bytes, None]:
    """The async version of `relay`."""
    try:
        yield b""  # For `started` or `started_async`.
        encoder = format.encoder()
    except BaseException:
        if not is_read():
            close_soon()
        raise
    import anyio  # noqa: PLC0415 - slow to import; httpx requires it

    try:
        events = start()
    except Flux0Error as error:
        yield encoder.start() + encoder.error(error)
        return
    is_started = False
    sender, receiver = anyio.create_memory_object_stream[bytes | Exception](_QUEUE_SIZE)

    async def send(piece: bytes) -> None:
        if piece:
            await sender.send(piece)

    async def read() -> None:
        nonlocal is_started
        is_started = True
        async with sender:
            try:
                await _encode_async(encoder, events, send)
            except Exception as error:  # noqa: BLE001 - raised below, in the task of the web server
                await sender.send(error)
            finally:
                await close()

    # Use no task group: a task group must be closed by the task that opened it, but the web server
    # may close this generator in another task.
    cancel = start_task(read)
    try:
        while True:
            piece: bytes | Exception | None = None
            try:
                with anyio.move_on_after(heartbeat):
                    piece = await receiver.receive()
            except anyio.EndOfStream:
                return
            if isinstance(piece, Exception):
                raise piece
            yield encoder.heartbeat() if piece is None else piece
    finally:
        cancel()
        receiver.close()
        if not is_started:  # asyncio does not start a task that was cancelled before its start.
            sender.close()
            close_soon()


async def _encode_async(
    encoder: RelayEncoder,
    events: AsyncIterator[StreamEvent],
    send: Callable[[bytes], Awaitable[None]],
) -> None:
    try:
        await send(encoder.start())
        async for event in events:
            await send(encoder.event(event))
        await send(encoder.end())
    except Flux0Error as error:
        await send(encoder.error(error))
