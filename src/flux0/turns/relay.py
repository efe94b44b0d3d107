"""Forwards the stream of a turn to a browser.

If no event is received for a while, a heartbeat is sent, which keeps proxies from closing the
connection. If sending the heartbeat fails, the web server knows that the browser has disconnected.
A separate thread or task reads the stream, so that the relay can send heartbeats meanwhile. This
thread or task adds the encoded events to a log, from which the relay takes them.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Generic, TypeVar, final

from flux0.domain.errors import Flux0Error, drop_tracebacks
from flux0.domain.stream_events import ChunkEvent
from flux0.relay_format import Flux0Format, RelayEncoder, RelayFormat, encoded
from flux0.runtime.event_loop import call_soon, do_nothing, start_task
from flux0.runtime.processes import start_thread
from flux0.runtime.turn_log import READ_BYTES, LogEnd, TurnLog
from flux0.runtime.waker import AsyncWaker, Waker
from flux0.turns.log_relay import AsyncRelay, LogReader, Pieces, Relay, event_pieces
from flux0.turns.turn import Received

W = TypeVar("W", Waker, AsyncWaker)


@final
class _Reading(Generic[W]):
    """Reads a stream for a relay, in a separate thread or task.

    Args:
        encoder: The relay's encoder, which encodes each event.
        waker: Wakes the reading thread or task, which pauses while the log has more than 64 KiB.

    Attributes:
        log: The encoded events. After the log's end, the stream is not read any more.
        reader: The relay's reader for the log.
        errors: A list with the exception that ended the reading. The list is empty if the stream
            was read to its end, or failed with a `Flux0Error`.
    """

    def __init__(self, encoder: RelayEncoder, waker: W) -> None:
        self.log: TurnLog = TurnLog("", sys.maxsize, lambda _: None)
        self.reader: LogReader = LogReader(self.log)
        self.errors: list[BaseException] = []
        self.waker: W = waker
        self.stop: Callable[[], object] = do_nothing
        self._encoder = encoder

    def add(self, events: Received) -> None:
        encoder = self._encoder
        own = ChunkEvent if isinstance(encoder, Flux0Format) else None
        self.log.append(
            *[encoded(*each) if type(each[0]) is own else encoder.event(each[0]) for each in events]
        )

    def must_wait(self) -> bool:
        if self.log.size > READ_BYTES:
            self.log.drop(self.reader.position)
        return self.log.size > READ_BYTES and not self.log.is_ended

    def take(self, events: Sequence[bytes]) -> bytes:
        if self.log.size > READ_BYTES:
            self.waker.wake()
        return b"".join(events)

    def end(self, error: BaseException | None = None) -> None:
        failure = error if isinstance(error, Flux0Error) else None
        if failure is None and error is not None:
            self.errors.append(error)
        # `self.log` stores the error, and a frame in the error's traceback refers to `self.log`.
        # Drop the traceback, because this cycle keeps the log and the error in memory.
        drop_tracebacks(failure)
        self.log.finish(LogEnd(failure))
        self.waker.wake()


def relay(
    read: Callable[[], Iterator[Received]],
    leave: Callable[[], object],
    close: Callable[[], object],
    heartbeat: float | None,
    format: RelayFormat,
) -> Iterator[bytes]:
    """Return an iterator over the encoded events of a stream.

    If reading raises a `Flux0Error`, the last piece describes the error. Other exceptions are
    re-raised. Closing the iterator closes the stream, and does not wait for the reading thread. If
    another reader uses the stream, the iterator yields an error, and the stream stays open.

    Args:
        read: A function that makes the relay the stream's reader, and returns an iterator over the
            events.
        leave: A function that closes the stream if no other code reads it. The garbage collector
            may call this function.
        close: A function that closes the stream. The garbage collector may call this function, in
            any thread.
        heartbeat: The seconds without an event after which a heartbeat is yielded; None for no
            heartbeats.
        format: The format in which to encode the events.
    """

    def start(reading: _Reading[Waker]) -> None:
        batches = read()
        # Record how to stop before the thread starts: an exception of a signal handler may arrive
        # while `start_thread` returns.
        reading.stop = close

        def run() -> None:
            try:
                for events in batches:
                    reading.add(events)
                    while reading.must_wait():
                        reading.waker.wait(None)
            except BaseException as error:  # noqa: BLE001 - raised in the thread of the web server
                reading.end(error)
            reading.end()

        try:
            start_thread(run, "flux0-relay")
        except Flux0Error as error:
            reading.end(error)

    return Relay(_started(_pieces(Waker, start, leave, format)), heartbeat)


def relay_async(
    read: Callable[[], AsyncIterator[Received]],
    leave: Callable[[], object],
    close: Callable[[], Awaitable[object]],
    close_soon: Callable[[], object],
    heartbeat: float | None,
    format: RelayFormat,
) -> AsyncIterator[bytes]:
    def start(reading: _Reading[AsyncWaker]) -> None:
        batches = read()

        async def run() -> None:
            try:
                async for events in batches:
                    reading.add(events)
                    while reading.must_wait():
                        await reading.waker.wait(None)
            except Exception as error:  # noqa: BLE001 - raised in the task of the web server
                reading.end(error)
            finally:
                reading.end()
                # An error of the user's transport must not end the task: trio would end, too.
                with suppress(Exception):
                    await close()

        # The task has no task group: a task group must be closed by the task that opened it, but
        # the web server can close the relay in another task.
        cancel = start_task(run)
        reading.stop = lambda: call_soon(reading.waker.loop, cancel) or close_soon()

    return AsyncRelay(_started(_pieces(AsyncWaker, start, leave, format)), heartbeat)


def _started(pieces: Pieces) -> Pieces:
    """Run a generator up to its first `yield`, so that closing it runs its `finally` blocks."""
    next(pieces)
    return pieces


def _pieces(
    make_waker: Callable[[], W],
    start: Callable[[_Reading[W]], None],
    leave: Callable[[], object],
    format: RelayFormat,
) -> Pieces:
    try:
        # `_started` runs this generator up to the `yield`, so that closing a relay that was never
        # read calls `leave`.
        yield b""
        encoder = format.encoder()
        begin = encoder.start()
    except BaseException:
        leave()
        raise
    reading = _Reading(encoder, make_waker())
    try:
        try:
            start(reading)
        except Flux0Error as error:
            yield begin + encoder.error(error)
            return
        yield begin
        yield from event_pieces(reading.reader, encoder, reading.take)
        if reading.errors:
            raise reading.errors.pop()
        failure = reading.reader.error
        yield encoder.end() if failure is None else encoder.error(failure)
    finally:
        reading.end()
        # Break a reference cycle: `stop` may refer to the task, and the task to `reading`.
        stop, reading.stop = reading.stop, do_nothing
        stop()
