"""Reads the log of a turn, in threads and in tasks of any event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import suppress
from math import inf
from threading import TIMEOUT_MAX
from time import monotonic
from typing import Final, TypeAlias

from flux0.adapters.json import JsonCodec
from flux0.adapters.sse import SSEParser
from flux0.domain.background_errors import RelayEnded
from flux0.domain.errors import Flux0Error, StreamInUse
from flux0.domain.locks import Busy, TryLock
from flux0.relay_format import AGENT_ERROR, Flux0Format, RelayEncoder
from flux0.runtime.event_loop import is_current, load_anyio
from flux0.runtime.turn_log import TurnLog
from flux0.runtime.waker import AsyncWaker, Waker

_OWN_LOOP: Final = (
    "this call would block the event loop that reads the background turn: use the _async method"
)
_RELAYS_ENDED: Final = "the application is being restarted: connect again to continue the turn"


class LogReader:
    """Reads the events in a turn's log, in their order.

    Args:
        log: The turn's log.
        after: The number of the event before the first event to read.

    Attributes:
        log: The turn's log.
        position: The number of the last event that was read.
        error: The error that ended reading; None before the end, or after an end without an error.
    """

    def __init__(self, log: TurnLog, after: int = 0) -> None:
        self.log: TurnLog = log
        self.position: int = after
        self.error: Flux0Error | None = None
        self._waker = Waker()
        self._async_waker: AsyncWaker | None = None
        self._is_closed = False

    def read(self) -> Sequence[bytes] | None:
        """Return the next events: none if no event follows yet, None at the end of the reading."""
        if self._is_closed:
            self.error = RelayEnded(_RELAYS_ENDED)
            return None
        try:
            events = self.log.read_or_end(self.position)
        except Flux0Error as error:
            self.error = error.with_traceback(None)
            return None
        if events is not None:
            self.position += len(events)
        elif (end := self.log.end) is not None:
            # An error that ends the turn has the event number after the last event. A browser that
            # sends this number as Last-Event-ID has already received the error.
            is_read = end.has_numbered_error and self.position > self.log.last
            self.error = None if is_read else end.error
        return events

    def wait(self, seconds: float | None) -> bool:
        """Wait until the log has new events or has ended; return False after `seconds`.

        Rarely, this method returns True before the log has new events. Raises a `Flux0Error` if the
        caller runs in the event loop that reads the turn, because the wait blocks this loop.
        """
        if self.log.loop is not None:
            check_loop(self.log)
        cancel = self.log.on_change(self._waker.wake)
        try:
            # `close` sets `_is_closed` and then wakes `_waker`, so `wait` ends at once.
            return self.log.has_more(self.position) or self._waker.wait(seconds)
        finally:
            cancel()

    async def wait_async(self, seconds: float | None) -> bool:
        waker = self._async_waker
        if waker is None or not is_current(waker.loop):
            waker = self._async_waker = AsyncWaker()

        def wake() -> None:
            # If the log has ended, the caller of `wake` can be a signal handler or a finalizer, in
            # which only `waker.wake` is safe. Otherwise, the caller is the thread or task that adds
            # events, for which `wake_from_task` is faster.
            waker.wake() if self.log.is_ended else waker.wake_from_task()

        ends = inf if seconds is None else monotonic() + seconds
        while True:
            cancel = self.log.on_change(wake)
            try:
                left = ends - monotonic()
                if self._has_more() or left <= 0:
                    return self._has_more()
                # The wake for an earlier event can end this wait too early. Then wait again.
                await waker.wait(None if seconds is None else left)
            finally:
                cancel()

    def close(self) -> None:
        """End the reading: the next `read` returns None, and sets `error` to a `RelayEnded`.

        Safe in any thread and in signal handlers.
        """
        self._is_closed = True
        self._waker.wake()
        if self._async_waker is not None:
            self._async_waker.wake()

    def _has_more(self) -> bool:
        return self._is_closed or self.log.has_more(self.position)


def check_loop(log: TurnLog) -> None:
    """Raise a `Flux0Error` if the caller runs in the event loop that reads the turn."""
    if is_current(log.loop):
        raise Flux0Error(_OWN_LOOP)


def wait_for_end(log: TurnLog, seconds: float) -> bool:
    ends = monotonic() + seconds
    while not log.is_ended and (left := ends - monotonic()) > 0:
        LogReader(log, log.last).wait(min(left, TIMEOUT_MAX))
    return log.is_ended


async def wait_for_end_async(log: TurnLog, seconds: float) -> bool:
    with load_anyio().move_on_after(seconds):
        while not log.is_ended:
            await LogReader(log, log.last).wait_async(None)
    return log.is_ended


# `Pieces` is a generator that yields the encoded bytes of a relay. If the log has no new event, the
# generator yields its `LogReader`, with which the relay waits. After the wait, the relay sends True
# to the generator if the log has changed, or False if a heartbeat is due. The relay skips empty
# bytes.
Pieces: TypeAlias = "Generator[bytes | LogReader, bool | None, None]"


class _Steps:
    """Runs the generator of a relay. Its methods are safe in all threads.

    If two threads run a generator at the same time, Python raises ValueError or, without the GIL,
    crashes. Therefore, only one thread at a time runs the generator. While the relay's reader waits
    for events, another thread can close the generator.

    Attributes:
        reading: A lock that the thread or task in `next` or `anext` holds.
    """

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self.reading: TryLock = TryLock()
        self._running = TryLock()
        self._is_closed = False

    def next(self, more: bool | None) -> bytes | LogReader:
        """Run the generator up to its next `yield`. Raises StopIteration at the generator's end."""
        is_running = False
        try:
            with self._running:
                is_running = True
                return self._pieces.send(more)
        except Busy:
            if is_running:  # The encoder has raised the exception.
                raise
            raise StopIteration from None  # Another thread is closing the generator.
        finally:
            if self._is_closed:
                self.close()

    def close(self) -> None:
        self._is_closed = True
        # If another thread is running the generator, that thread closes the generator afterwards.
        with suppress(Busy), self._running:
            self._pieces.close()


class Relay(Iterator[bytes]):
    """An iterator that yields the encoded bytes of a turn, and waits for new events.

    Args:
        pieces: The generator that encodes the events. `Relay.close` closes the generator.
        heartbeat: The seconds without an event after which a heartbeat is yielded; None for no
            heartbeats.
    """

    def __init__(self, pieces: Pieces, heartbeat: float | None) -> None:
        self._steps = _Steps(pieces)
        self._heartbeat = heartbeat

    def __next__(self) -> bytes:
        """Return the next bytes. Raises `StreamInUse` if another thread waits for them."""
        steps, piece = self._steps, None
        try:
            with steps.reading:
                piece = steps.next(None)
                while not piece or isinstance(piece, LogReader):
                    more = isinstance(piece, LogReader) and piece.wait(self._heartbeat)
                    piece = steps.next(more)
                return piece
        except BaseException as error:
            if piece is None and type(error) is Busy:
                raise StreamInUse from None
            steps.close()
            raise

    def close(self) -> None:
        self._steps.close()


class AsyncRelay(AsyncIterator[bytes]):
    """The async version of `Relay`.

    This class is not an async generator, because an event loop warns about async generators that
    were not closed. The garbage collector can free an `AsyncRelay` in any thread.
    """

    def __init__(self, pieces: Pieces, heartbeat: float | None) -> None:
        self._steps = _Steps(pieces)
        self._heartbeat = heartbeat

    async def __anext__(self) -> bytes:
        steps, piece = self._steps, None
        try:
            with steps.reading:
                piece = steps.next(None)
                while not piece or isinstance(piece, LogReader):
                    more = isinstance(piece, LogReader) and await piece.wait_async(self._heartbeat)
                    piece = steps.next(more)
                return piece
        except StopIteration:
            raise StopAsyncIteration from None
        except BaseException as error:
            if piece is None and type(error) is Busy:
                raise StreamInUse from None
            steps.close()
            raise

    async def aclose(self) -> None:
        self._steps.close()


def event_pieces(
    reader: LogReader, encoder: RelayEncoder, encode: Callable[[Sequence[bytes]], bytes]
) -> Pieces:
    """Yield the bytes of each list of events that is read, and a heartbeat if no event arrives."""
    while (events := reader.read()) is not None:
        if events or not (yield reader):
            yield encode(events) if events else encoder.heartbeat()


def turn_pieces(reader: LogReader, encoder: RelayEncoder) -> Pieces:
    """Yield the encoded bytes of a background turn, for one relay.

    If the turn has failed, the last bytes describe the error. Closing or deleting the generator has
    no effect on the turn.
    """
    # The parser has no size limit, because the turn's stream has checked the size of each event.
    parse, decode = SSEParser(max_event_bytes=None).feed, JsonCodec().decode_event

    def encode(events: Sequence[bytes]) -> bytes:
        data = b"".join(events)
        # The log of a turn contains events in flux0's own format. If the relay has the same format,
        # only an agent's error must be decoded and replaced.
        if isinstance(encoder, Flux0Format):
            if AGENT_ERROR not in data:
                return data
            return b"".join(encoder.shown(decode(each)).to_sse(each.id) for each in parse(data))
        return b"".join(map(encoder.event, map(decode, parse(data))))

    yield encoder.start()
    yield from event_pieces(reader, encoder, encode)
    if reader.error is None:
        yield encoder.end()
    else:
        # Only an error that ends the turn has an event number. After an error such as `RelayEnded`,
        # the turn continues, and the turn's next event has the next number.
        end = reader.log.end
        is_end = end and end.has_numbered_error and reader.error is end.error
        yield encoder.error(reader.error, reader.position + 1 if is_end else None)


class OpenRelays:
    """The open relays of the background turns in one process. The methods acquire no lock."""

    def __init__(self) -> None:
        self._readers: dict[LogReader, None] = {}
        self.are_ended: bool = False

    def __len__(self) -> int:
        return len(self._readers)

    def pieces(self, reader: LogReader, encoder: RelayEncoder) -> Pieces:
        """Yield the encoded bytes of a relay, which is open until this generator has ended."""
        self._readers[reader] = None
        try:
            # `OpenRelays.end` in another thread sets `are_ended` before it closes all readers.
            # `reader` was added before this check, so either `end` or this check closes `reader`.
            if self.are_ended:
                reader.close()
            yield from turn_pieces(reader, encoder)
        finally:
            del self._readers[reader]
            reader.close()  # Wakes another thread that waits in `next` of the closed relay.

    def end(self) -> None:
        self.are_ended = True
        for reader in self._readers.copy():
            reader.close()
