"""The bodies of a fake's responses, while they are read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from math import inf
from typing import Any, Literal, TypeAlias, final
from weakref import WeakSet

from attrs import define, evolve, field

from flux0.domain.errors import ConnectionInterrupted, ReadTimeout
from flux0.domain.timeouts import timed_out
from flux0.ports import AsyncByteStream, ByteStream, Request, Response, Shared
from flux0.runtime.event_loop import Loop, running_loop, sleep
from flux0.testing.fake.clock import FakeClock, Wait, Waits, perform, perform_async

# How a body comes to be no longer open. Lost: its client was closed, or nobody holds it any more.
BodyEnd: TypeAlias = Literal["whole", "closed", "lost"]


@define(eq=False)
class FakeBody:
    """A `ByteStream` and an `AsyncByteStream` of a fake; reading the latter has a checkpoint."""

    _pieces: Iterator[bytes | Wait]
    # The timeout in seconds of the fake's clock. Without one, a read to which nothing will come
    # raises AssertionError; with an infinite one, it waits in real time.
    _longest_silence: float | None
    _clock: FakeClock
    _lock: AbstractContextManager[Any]
    _on_end: Callable[[Iterator[bytes | Wait], BodyEnd], None]  # Is told once how it ended.
    # How it ends if nobody holds it any more: asynchronous code that leaves a loop only lets go.
    let_go: BodyEnd = field(default="lost", init=False)
    _end: BodyEnd | None = field(default=None, init=False)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        piece = perform(self._read(), self._clock)
        if piece is None:
            raise StopIteration
        return piece

    def close(self) -> None:
        """Leave, whether or not there is more to come."""
        self.end("closed")

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await sleep(0)
        piece = await perform_async(self._read(), self._clock)
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def close_async(self) -> None:
        """Leave, whether or not there is more to come."""
        self.end("closed")

    def __del__(self) -> None:
        self.end(self.let_go)

    def _read(self) -> Waits[bytes | None]:
        """Return the next piece, or None at the end. When a timeout is raised, it has passed."""
        clock, silence = self._clock, self._longest_silence
        limit = inf if silence is None else clock.now() + silence
        while True:
            seen = clock.changes
            with self._lock:
                outcome = self._next()
            if not isinstance(outcome, Wait):
                return outcome
            if clock.now() >= limit:
                self.end("closed")
                raise timed_out(ReadTimeout, silence)
            moment = inf if outcome.moment is None else outcome.moment
            in_real_time = silence == inf and not (clock.moves_by_itself and moment < inf)
            if outcome.moment is None or in_real_time:
                yield evolve(outcome, moment=None, seen=seen)
            elif min(moment, limit) < inf:
                yield outcome if moment <= limit else Wait(limit, timeout=True)
            else:
                self.end("closed")
                raise AssertionError("nothing more will come, and no timeout ends this read")

    def end(self, how: BodyEnd) -> None:
        """End the body, unless it has ended, and wake whoever reads it."""
        with self._lock:
            if self._end is not None:
                return
            self._end = how
            self._on_end(self._pieces, how)
        self._clock.tell()

    def _next(self) -> bytes | Wait | None:
        if self._end is None:
            try:
                if (outcome := next(self._pieces, None)) is not None:
                    return outcome
            except BaseException:
                self.end("closed")
                raise
            self.end("whole")
        if self._end != "whole":
            raise ConnectionInterrupted("the connection was closed")
        return None


class SharedTransport(Shared):
    """What the transports of a fake have in common: both kinds of code, and many clients."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock: FakeClock = clock
        self.time: FakeClock = clock  # That clients go by.
        self._bodies: WeakSet[FakeBody] = WeakSet()

    @abstractmethod
    def answer(self, request: Request, loop: Loop | None) -> Waits[Response[FakeBody]]:
        """Return the answer to `request`; `loop` is the event loop of asynchronous code."""

    def send(self, request: Request) -> Response[ByteStream]:
        """Answer `request`; see `Transport.send`."""
        return perform(self.answer(request, None), self.clock)

    def close(self) -> None:
        """Do nothing: as a server would, this goes on when a client is closed."""

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        """Answer `request`; see `AsyncTransport.send_async`."""
        await sleep(0)
        answer = await perform_async(self.answer(request, running_loop()), self.clock)
        answer.body.let_go = "closed"
        return answer

    async def close_async(self) -> None:
        """Do what `close` does."""
        self.close()

    def for_client(self) -> ClientTransport:
        """Return this transport for one client."""
        return ClientTransport(self)


@final
class ClientTransport(SharedTransport):
    """A shared transport as one client has it: closing it cuts off the streams of that client."""

    def __init__(self, shared: SharedTransport) -> None:
        super().__init__(shared.clock)
        self._shared = shared

    def __repr__(self) -> str:
        return repr(self._shared)

    def answer(self, request: Request, loop: Loop | None) -> Waits[Response[FakeBody]]:
        """Return the answer of the shared transport."""
        answer = yield from self._shared.answer(request, loop)
        self._bodies.add(answer.body)
        return answer

    def close(self) -> None:
        """Cut off what this client has left open."""
        for body in tuple(self._bodies):
            body.end("lost")
