"""Handing a turn on to a browser, as server-sent events in the server's own form.

A comment in silences keeps proxies from closing the connection, and notices a browser that left.
Something else than the web server's own wait has to read for that: a thread, or a task.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from queue import Empty, Queue
from threading import Thread
from typing import TYPE_CHECKING, Final

from flux0.adapters.support.event_loop import start
from flux0.domain import arguments
from flux0.domain.errors import Flux0Error

if TYPE_CHECKING:
    from flux0.client.streams import AsyncEventStream, EventStream

HEARTBEAT: Final = b": still here\n\n"
_AHEAD: Final = 64  # Events that are read before the browser takes them.


def relay(stream: EventStream, heartbeat: float | None) -> Iterator[bytes]:
    """Yield the events of `stream`, and a comment whenever none came for `heartbeat` seconds."""
    pieces: Queue[bytes | None] = Queue(_AHEAD)

    def read() -> None:
        try:
            for event in stream:
                pieces.put(event.to_sse())
        except Flux0Error as error:
            pieces.put(error_event(error))
        finally:
            pieces.put(None)

    reader = Thread(target=read, name="flux0-relay", daemon=True)
    reader.start()
    try:
        while True:
            try:
                piece = pieces.get(timeout=heartbeat)
            except Empty:
                piece = HEARTBEAT
            if piece is None:
                return
            yield piece
    finally:
        stream.close()
        while reader.is_alive():  # It may wait for room, and ends once it has some.
            try:
                pieces.get(timeout=0.1)
            except Empty:
                continue


async def relay_async(stream: AsyncEventStream, heartbeat: float | None) -> AsyncIterator[bytes]:
    """Yield the events of `stream`, and a comment whenever none came for `heartbeat` seconds."""
    from anyio import EndOfStream, create_memory_object_stream, move_on_after  # noqa: PLC0415 - slow

    put, take = create_memory_object_stream[bytes](_AHEAD)

    async def read() -> None:
        async with put:
            try:
                async for event in stream:
                    await put.send(event.to_sse())
            except Flux0Error as error:
                await put.send(error_event(error))

    # Not a task group: a web server may close this generator from another task than it iterates in.
    cancel = start(read)
    try:
        while True:
            piece = HEARTBEAT
            try:
                with move_on_after(heartbeat):
                    piece = await take.receive()
            except EndOfStream:
                return
            yield piece
    finally:
        cancel()
        take.close()
        stream.close_soon()


def heartbeat_seconds(heartbeat_ms: int | None) -> float | None:
    """Return the time between comments in seconds, or None for no comments."""
    return None if heartbeat_ms is None else arguments.seconds("heartbeat_ms", heartbeat_ms)


def error_event(error: Flux0Error) -> bytes:
    """Return an error as an event named `error`, with its class and its words as JSON."""
    import json  # noqa: PLC0415 - errors are rare

    data = json.dumps({"type": type(error).__name__, "message": error.problem})
    return f"event: error\ndata: {data}\n\n".encode()
