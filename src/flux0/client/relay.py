"""Forwards a turn to a browser, as server-sent events in the format of the flux0 server.

If no event is received for a while, a comment is sent. It keeps proxies from closing the
connection, and its failure shows that the browser has disconnected. So a separate thread or task
reads the stream, while the web server waits for the next event or comment.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from queue import Empty, Queue
from threading import Thread
from typing import Final

from flux0.domain import arguments
from flux0.domain.errors import Flux0Error
from flux0.domain.stream_events import StreamEvent
from flux0.runtime.event_loop import start_task

HEARTBEAT: Final = b": still here\n\n"
_QUEUE_SIZE: Final = 64  # The events that are read before the browser has received them.


def relay(
    stream: Iterable[StreamEvent], close: Callable[[], object], heartbeat: float | None
) -> Iterator[bytes]:
    """Yield the events of `stream`, and a comment after each `heartbeat` seconds without events.

    A `Flux0Error` becomes the last event. Other exceptions are raised.
    """
    pieces: Queue[bytes | Exception | None] = Queue(_QUEUE_SIZE)

    def read() -> None:
        end: Exception | None = None
        try:
            for event in stream:
                pieces.put(event.to_sse())
        except Flux0Error as error:
            pieces.put(error_event(error))
        except Exception as error:  # noqa: BLE001 - raised below, in the thread of the web server
            end = error
        pieces.put(end)

    reader = Thread(target=read, name="flux0-relay", daemon=True)
    reader.start()
    try:
        while True:
            try:
                piece = pieces.get(timeout=heartbeat)
            except Empty:
                piece = HEARTBEAT
            if isinstance(piece, Exception):
                raise piece
            if piece is None:
                return
            yield piece
    finally:
        close()
        while reader.is_alive():  # The reader may be waiting until the queue has space.
            with suppress(Empty):
                pieces.get(timeout=0.1)


async def relay_async(
    stream: AsyncIterable[StreamEvent],
    close: Callable[[], Awaitable[object]],
    heartbeat: float | None,
) -> AsyncIterator[bytes]:
    """The async version of `relay`."""
    import anyio  # noqa: PLC0415 - slow to import; comes with httpx

    sender, receiver = anyio.create_memory_object_stream[bytes | Exception](_QUEUE_SIZE)

    async def read() -> None:
        async with sender:
            try:
                async for event in stream:
                    await sender.send(event.to_sse())
            except Flux0Error as error:
                await sender.send(error_event(error))
            except Exception as error:  # noqa: BLE001 - raised below, in the task of the web server
                await sender.send(error)
            finally:
                await close()

    # A task group cannot be used: the web server may close this generator in another task.
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


def heartbeat_seconds(heartbeat_ms: int | None) -> float | None:
    """Return the argument `heartbeat_ms` in seconds; None means no comments."""
    return None if heartbeat_ms is None else arguments.seconds("heartbeat_ms", heartbeat_ms)


def error_event(error: Flux0Error) -> bytes:
    """Return an event named `error`, with the class and the message of the error as JSON."""
    import json  # noqa: PLC0415 - errors are rare

    data = json.dumps({"type": type(error).__name__, "message": error.problem})
    return f"event: error\ndata: {data}\n\n".encode()
