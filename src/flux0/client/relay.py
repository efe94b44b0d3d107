"""Handing a turn on to a browser, as server-sent events in the server's own form.

A comment in silences keeps proxies from closing the connection, and notices a browser that left.
Something else than the web server's own wait has to read for that: a thread, or a task.
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
_AHEAD: Final = 64  # Events that are read before the browser takes them.


def relay(
    stream: Iterable[StreamEvent], close: Callable[[], object], heartbeat: float | None
) -> Iterator[bytes]:
    """Yield the events of `stream`, and a comment whenever none came for `heartbeat` seconds."""
    pieces: Queue[bytes | Exception | None] = Queue(_AHEAD)

    def read() -> None:
        end: Exception | None = None
        try:
            for event in stream:
                pieces.put(event.to_sse())
        except Flux0Error as error:
            pieces.put(error_event(error))
        except Exception as error:  # noqa: BLE001 - raised where the page is served
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
        while reader.is_alive():  # It may wait for room, and ends once it has some.
            with suppress(Empty):
                pieces.get(timeout=0.1)


async def relay_async(
    stream: AsyncIterable[StreamEvent],
    close: Callable[[], Awaitable[object]],
    heartbeat: float | None,
) -> AsyncIterator[bytes]:
    """Yield the events of `stream`, and a comment whenever none came for `heartbeat` seconds."""
    import anyio  # noqa: PLC0415 - slow to import; comes with httpx

    put, take = anyio.create_memory_object_stream[bytes | Exception](_AHEAD)

    async def read() -> None:
        async with put:
            try:
                async for event in stream:
                    await put.send(event.to_sse())
            except Flux0Error as error:
                await put.send(error_event(error))
            except Exception as error:  # noqa: BLE001 - raised where the page is served
                await put.send(error)
            finally:
                await close()

    # Not a task group: a web server may close this generator from another task than it iterates in.
    cancel = start_task(read)
    try:
        while True:
            piece: bytes | Exception = HEARTBEAT
            try:
                with anyio.move_on_after(heartbeat):
                    piece = await take.receive()
            except anyio.EndOfStream:
                return
            if isinstance(piece, Exception):
                raise piece
            yield piece
    finally:
        cancel()
        take.close()


def heartbeat_seconds(heartbeat_ms: int | None) -> float | None:
    """Return the time between comments in seconds, or None for no comments."""
    return None if heartbeat_ms is None else arguments.seconds("heartbeat_ms", heartbeat_ms)


def error_event(error: Flux0Error) -> bytes:
    """Return an error as an event named `error`, with its class and its words as JSON."""
    import json  # noqa: PLC0415 - errors are rare

    data = json.dumps({"type": type(error).__name__, "message": error.problem})
    return f"event: error\ndata: {data}\n\n".encode()
