"""The bodies of a fake's responses, while they are read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from math import inf
from typing import Any, Literal, TypeAlias

from flux0.domain.errors import ConnectionInterrupted, ReadTimeout
from flux0.testing.fake.clock import FakeClock

# How a body comes to be no longer open. Dropped: nobody has closed it, and nobody holds it.
End: TypeAlias = Literal["whole", "closed", "dropped"]


class OpenBody:
    """What a synchronous and an asynchronous body have in common: all but the names.

    Args:
        pieces: the bytes, and moments before which there are none.
        longest_silence: the timeout in seconds of the fake's clock.
        clock: passes while nothing comes.
        lock: is held while something happens on the fake server.
        on_end: is told, once, how the body ended.
    """

    def __init__(
        self,
        pieces: Iterator[bytes | float],
        longest_silence: float | None,
        clock: FakeClock,
        lock: AbstractContextManager[Any],
        on_end: Callable[[End], None],
    ) -> None:
        self._pieces = pieces
        self._longest_silence = longest_silence
        self._clock = clock
        self._lock = lock
        self._on_end = on_end
        self._end: End | None = None

    def read(self) -> bytes | None:
        """Return the next piece, or None at the end.

        Raises:
            ReadTimeout: nothing comes for longer than the timeout. That time has then passed.
            ConnectionInterrupted: the body was closed, or a fault wants it so.
        """
        limit = inf if self._longest_silence is None else self._clock.now() + self._longest_silence
        while True:
            with self._lock:
                outcome = self._next()
            if outcome is None or isinstance(outcome, bytes):
                return outcome
            self._wait(outcome, limit)

    def end(self, how: End) -> None:
        """End the body, unless it has ended."""
        with self._lock:
            if self._end is None:
                self._end = how
                self._on_end(how)

    def _next(self) -> bytes | float | None:
        if self._end == "whole":
            return None
        if self._end is not None:
            raise ConnectionInterrupted("the connection was closed")
        try:
            return next(self._pieces)
        except StopIteration:
            self.end("whole")
            return None
        except BaseException:
            self.end("closed")
            raise

    def _wait(self, moment: float, limit: float) -> None:
        if moment <= limit and moment < inf:
            self._clock.wait_until(moment)
            return
        self.end("closed")
        if limit == inf:
            raise AssertionError("nothing more will come, and this read has no timeout to end it")
        self._clock.move_to(limit)
        raise ReadTimeout(f"nothing came for {self._longest_silence:g} s")


class FakeBody:
    """A `ByteStream` of a fake."""

    def __init__(self, body: OpenBody) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        piece = self._body.read()
        if piece is None:
            raise StopIteration
        return piece

    def close(self) -> None:
        """Leave, whether or not there is more to come."""
        self._body.end("closed")

    def __del__(self) -> None:
        self._body.end("dropped")


class AsyncFakeBody:
    """An `AsyncByteStream` of a fake. It never waits, so it works in any event loop."""

    def __init__(self, body: OpenBody) -> None:
        self._body = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = self._body.read()
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def close_async(self) -> None:
        """Leave, whether or not there is more to come."""
        self._body.end("closed")

    def __del__(self) -> None:
        # Asynchronous code that leaves a loop can do no more than let go of the body.
        self._body.end("closed")
