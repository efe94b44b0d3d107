"""Forwards a turn to a browser, as server-sent events in the format of the flux0 server.

If no event is received for a while, a comment is sent, which keeps proxies from closing the
connection. If sending the comment fails, the web server knows that the browser has disconnected. A
separate thread or task reads the stream, so that comments can be sent while it waits for events.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Final

from flux0.domain.errors import Flux0Error, StreamInUse
from flux0.domain.stream_events import StreamEvent
from flux0.runtime.event_loop import start_task

# Do not add a blank line: @microsoft/fetch-event-source, which the React hook of the flux0 server
# uses, would report the comment as an empty message.
HEARTBEAT: Final = b": heartbeat\n"
_QUEUE_SIZE: Final = 64  # The number of events that may wait for the web server.
# Permits for the thread that reads the stream.
_ADD: Final = True
_STOP: Final = False


def relay(
    stream: Iterable[StreamEvent], close: Callable[[], object], heartbeat: float | None
) -> Iterator[bytes]:
    """Yield the events of `stream`, and a comment after each `heartbeat` seconds without events.

    If reading raises a `Flux0Error`, the last event describes the error. Other exceptions are
    re-raised. Closing the iterator closes the stream, and does not wait for the reading thread. If
    reading raises `StreamInUse`, the stream stays open for its other reader.
    """
    is_reader = True
    # The garbage collector may close this generator in any thread, even inside a call of a queue.
    # The methods of `SimpleQueue` are reentrant, so this is safe.
    pieces: SimpleQueue[bytes | Exception | None] = SimpleQueue()
    # Limits the number of waiting events: `read` waits for a permit before it adds an event.
    permits: SimpleQueue[bool] = SimpleQueue()
    for _ in range(_QUEUE_SIZE):
        permits.put(_ADD)

    def read() -> None:
        nonlocal is_reader
        end: Exception | None = None
        try:
            for event in stream:
                if not permits.get():
                    return
                pieces.put(event.to_sse())
        except Flux0Error as error:
            is_reader = not isinstance(error, StreamInUse)
            pieces.put(error_event(error))
        except Exception as error:  # noqa: BLE001 - raised below, in the thread of the web server
            end = error
        pieces.put(end)

    Thread(target=read, name="flux0-relay", daemon=True).start()
    try:
        while True:
            try:
                piece = pieces.get(timeout=heartbeat)
                permits.put(_ADD)
            except Empty:
                piece = HEARTBEAT
            if isinstance(piece, Exception):
                raise piece
            if piece is None:
                return
            yield piece
    finally:
        permits.put(_STOP)
        if is_reader:
            close()


async def relay_async(
    stream: AsyncIterable[StreamEvent],
    close: Callable[[], Awaitable[object]],
    heartbeat: float | None,
) -> AsyncIterator[bytes]:
    """The async version of `relay`."""
    import anyio  # noqa: PLC0415 - slow to import; httpx requires it

    sender, receiver = anyio.create_memory_object_stream[bytes | Exception](_QUEUE_SIZE)

    async def read() -> None:
        is_reader = True
        async with sender:
            try:
                async for event in stream:
                    await sender.send(event.to_sse())
            except Flux0Error as error:
                is_reader = not isinstance(error, StreamInUse)
                await sender.send(error_event(error))
            except Exception as error:  # noqa: BLE001 - raised below, in the task of the web server
                await sender.send(error)
            finally:
                if is_reader:
                    await close()

    # Use no task group: a task group must be closed by the task that opened it, but the web server
    # may close this generator in another task.
    cancel = start_task(read)
    try:
        while True:
            piece: bytes | Exception = HEARTBEAT
            try:
                with anyio.move_on_after(heartbeat):
                    piece = await receiver.receive()
            except anyio.EndOfStream:
                return
            if isinstance(piece, Exception):
                raise piece
            yield piece
    finally:
        cancel()
        receiver.close()


def error_event(error: Flux0Error) -> bytes:
    """Return an event named `error`, with the class and the message of the error as JSON."""
    import json  # noqa: PLC0415 - errors are rare

    data = json.dumps({"type": type(error).__name__, "message": error.problem})
    return f"event: error\ndata: {data}\n\n".encode()
