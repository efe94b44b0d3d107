"""Reads the log of a background turn, in threads and in tasks of any event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from threading import TIMEOUT_MAX
from time import monotonic
from typing import Final

from flux0.adapters.json import JsonCodec
from flux0.adapters.sse import SSEParser
from flux0.domain.errors import Flux0Error
from flux0.domain.stream_events import StreamEvent
from flux0.relay_format import FLUX0, RelayEncoder, RelayFormat
from flux0.runtime.event_loop import call_soon, is_current, load_anyio, running_loop
from flux0.runtime.turn_log import TurnLog
from flux0.runtime.waker import Waker

_FOREVER: Final = -1.0
_OWN_LOOP: Final = (
    "this call would block the event loop that reads the background turn: use the _async method"
)


class LogDecoder:
    """Decodes the events of a log."""

    def __init__(self) -> None:
        # The stream has already checked the size of each event.
        self._parser = SSEParser(max_event_bytes=None)
        self._codec = JsonCodec()

    def decode(self, events: Iterable[bytes]) -> Iterator[StreamEvent]:
        """Yield the decoded events."""
        return map(self._codec.decode_event, chain.from_iterable(map(self._parser.feed, events)))


class LogReader:
    """A position in the log of a turn.

    Args:
        log: The log of the turn.
        after: The number of the event before the first event to read.

    Attributes:
        log: The log of the turn.
        position: The number of the last event that was read.
        error: The error that ended reading; None before the end, or after an end without an error.
    """

    def __init__(self, log: TurnLog, after: int = 0) -> None:
        self.log: TurnLog = log
        self.position: int = after
        self.error: Flux0Error | None = None
        self._waker = Waker()

    def read(self) -> Sequence[bytes] | None:
        """Return the next events. They are empty if there is none yet, and None at the end."""
        end = self.log.end  # Get the end first: after the end, no event is added.
        try:
            events = self.log.read(self.position)
        except Flux0Error as error:
            self.error = error.with_traceback(None)
            return None
        if not events and end is not None:
            # The error has the number after the last event. If `position` is larger, the error was
            # read before.
            is_read = end.has_numbered_error and self.position > self.log.last
            self.error = None if is_read else end.error
            return None
        self.position += len(events)
        return events

    def wait(self, seconds: float | None) -> bool:
        """Wait until `read` returns events or the end; return False after `seconds`.

        Rarely, it returns True too early. Raises a `Flux0Error` if the wait would block the event
        loop that reads the turn.
        """
        check_loop(self.log)
        cancel = self.log.on_change(self._waker.wake)
        try:
            return self.log.has_more(self.position) or self._waker.wait(
                _FOREVER if seconds is None else seconds
            )
        finally:
            cancel()

    async def wait_async(self, seconds: float | None) -> bool:
        """The async version of `wait`."""
        anyio = load_anyio()
        changed = anyio.Event()
        cancel = self.log.on_change(partial(call_soon, running_loop(), changed.set))
        try:
            if not self.log.has_more(self.position):
                with anyio.move_on_after(seconds):
                    await changed.wait()
            return self.log.has_more(self.position)
        finally:
            cancel()


def check_loop(log: TurnLog) -> None:
    """Raise a `Flux0Error` if the caller runs in the event loop that reads the turn."""
    if log.loop is not None and is_current(log.loop):
        raise Flux0Error(_OWN_LOOP)


def wait_for_end(log: TurnLog, seconds: float) -> bool:
    """Wait until the turn has ended; return False if it is running after `seconds`."""
    ends = monotonic() + seconds
    while not log.is_ended and (left := ends - monotonic()) > 0:
        LogReader(log, log.last).wait(min(left, TIMEOUT_MAX))
    return log.is_ended


async def wait_for_end_async(log: TurnLog, seconds: float) -> bool:
    """The async version of `wait_for_end`."""
    with load_anyio().move_on_after(seconds):
        while not log.is_ended:
            await LogReader(log, log.last).wait_async(None)
    return log.is_ended


def relay_log(
    log: TurnLog, after: int, heartbeat: float | None, format: RelayFormat = FLUX0
) -> Iterator[bytes]:
    """Yield the encoded events of a turn, and a heartbeat after `heartbeat` seconds without events.

    If the turn has failed, the last piece describes the error. Closing the iterator, or deleting
    it, has no effect on the turn.
    """
    reader, encoder = LogReader(log, after), format.encoder()
    for piece in _pieces(reader, encoder):
        if piece is not None:
            yield piece
        elif not reader.wait(heartbeat):
            yield encoder.heartbeat()


class AsyncLogRelay(AsyncIterator[bytes]):
    """The async version of `relay_log`.

    It is not an async generator, because an event loop warns about async generators that were not
    closed. An `AsyncLogRelay` has nothing to close.
    """

    def __init__(
        self, log: TurnLog, after: int, heartbeat: float | None, format: RelayFormat = FLUX0
    ) -> None:
        self._reader = LogReader(log, after)
        self._encoder = format.encoder()
        self._heartbeat = heartbeat
        self._pieces: Iterator[bytes | None] = _pieces(self._reader, self._encoder)

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            if piece is not None:
                return piece
            if not await self._reader.wait_async(self._heartbeat):
                return self._encoder.heartbeat()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the iteration, as the same method of an async generator."""
        self._pieces = iter(())


def _pieces(reader: LogReader, encoder: RelayEncoder) -> Iterator[bytes | None]:
    """Yield the pieces of a relay; None if the caller must wait until the log has more events."""
    decoder = None if encoder is FLUX0 else LogDecoder()
    yield from filter(None, (encoder.start(),))
    while (events := reader.read()) is not None:
        if not events:
            yield None
        elif decoder is None:  # The events of the log have flux0's own format.
            yield from events
        else:
            yield from filter(None, map(encoder.event, decoder.decode(events)))
    if reader.error is None:
        last = encoder.end()
    else:
        # If the error did not end the turn, its number would be the number of another event.
        end = reader.log.end
        is_end = end and end.has_numbered_error and reader.position == reader.log.last
        last = encoder.error(reader.error, reader.position + 1 if is_end else None)
    yield from filter(None, (last,))
