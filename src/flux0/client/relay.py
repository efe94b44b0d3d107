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


def relay(
    stream: Iterable[StreamEvent], close: Callable[[], object], heartbeat: float | None
) -> Iterator[bytes]:
    """Yield the events of `stream`, and a comment after each `heartbeat` seconds without events.

    If reading raises a `Flux0Error`, the last event describes the error. Other exceptions are
    re-raised. Closing the iterator closes the stream, and does not wait for the reading thread. If
    reading raises `StreamInUse`, the stream stays open for its other reader.
    """
    pieces, is_reader = _Pieces(), True

    def read() -> None:
        nonlocal is_reader
        end: Exception | None = None
        try:
            for event in stream:
                if not pieces.put(event.to_sse()):
                    return
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
                piece = pieces.get(heartbeat)
            except Empty:
                piece = HEARTBEAT
            if isinstance(piece, Exception):
                raise piece
            if piece is None:
                return
            yield piece
    finally:
        pieces.close()
        if is_reader:
            close()


class _Pieces:
    """A queue of limited size. The thread that reads the stream calls `put`, the web server `get`.

    The garbage collector may call `close` in any thread, even in a thread that is running `put` or
    `get`. Therefore, the queue uses `SimpleQueue`, whose methods are reentrant.
    """

    def __init__(self) -> None:
        self._pieces: SimpleQueue[bytes | Exception | None] = SimpleQueue()
        # A semaphore: its length is the number of pieces that `put` can add without waiting.
        self._free: SimpleQueue[None] = SimpleQueue()
        self._closed = False
        for _ in range(_QUEUE_SIZE):
            self._free.put(None)

    def put(self, piece: bytes | Exception | None) -> bool:
        """Wait for space and add a piece. Return False if the queue is closed."""
        if not self._closed:
            self._free.get()
        if self._closed:
            return False
        self._pieces.put(piece)
        return True

    def get(self, timeout: float | None) -> bytes | Exception | None:
        """Remove and return the next piece. Raises `Empty` if none arrives in `timeout` seconds."""
        piece = self._pieces.get(timeout=timeout)
        self._free.put(None)
        return piece

    def close(self) -> None:
        """Close the queue, and wake a thread that waits in `put`."""
        self._closed = True
        self._free.put(None)


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
