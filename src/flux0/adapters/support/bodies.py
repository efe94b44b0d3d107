"""The one loop that pulls the body of a response, for several adapters, sync and async.

It is a coroutine. Where nothing in it waits for an event loop, `run` is all that it takes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterator
from threading import Lock
from typing import Any, TypeVar

from flux0.adapters.support.decompression import decoder_for
from flux0.domain.errors import ConnectionInterrupted, Flux0Error, TransportError

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns that never waits for an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("the coroutine waits for an event loop")


class PulledBody(ABC):
    """A body that is decompressed as far as its bytes have come.

    Attributes:
        ended: whether the whole body was read.
        closed: whether it was left.
        reading: held by whoever reads.
    """

    def __init__(self, coding: str) -> None:
        self.ended: bool = False
        self.closed: bool = False
        self.reading: Lock = Lock()
        self._decoder = decoder_for(coding)
        self._pieces: Iterator[bytes] = iter(())

    @abstractmethod
    async def _receive(self) -> bytes | None:
        """Return what has arrived, after waiting for it if need be, or None at the end."""

    @abstractmethod
    async def _finish(self) -> None:
        """Take note that the whole body was read."""

    @abstractmethod
    async def _give_up(self, error: BaseException) -> TransportError | None:
        """Release the connection; return the error of ours for one of the library's."""

    async def pull(self) -> bytes | None:
        """Return the next piece, or None at the end.

        A piece is empty if what arrived holds no content yet.
        """
        if self.closed and not self.ended:
            raise ConnectionInterrupted("the body was closed before its end")
        if not self.reading.acquire(blocking=False):
            raise Flux0Error("another thread or task is reading this body")
        try:
            return None if self.ended else await self._next()
        except BaseException as error:
            closed, self.closed = self.closed, True
            translated = await self._give_up(error)
            if closed and isinstance(error, Exception):  # What was closed elsewhere has failed.
                translated = ConnectionInterrupted("the body was closed while it was read")
            if translated is None:
                raise
            raise translated from error
        finally:
            self.reading.release()

    async def _next(self) -> bytes | None:
        for piece in self._pieces:
            return piece
        data = await self._receive()
        if data is not None:
            if self._decoder is None:
                return data
            self._pieces = self._decoder.feed(data)
            return next(self._pieces, b"")
        if self.closed:  # Closing it elsewhere may have been what ended it.
            raise EOFError
        if self._decoder is not None:
            self._decoder.end()
        self.ended = True
        await self._finish()
        return None
