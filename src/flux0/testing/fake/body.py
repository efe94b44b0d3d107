"""In-memory transports: their base class, and their response bodies."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager
from functools import partial
from math import inf
from typing import Any, Literal, TypeAlias, final

from attrs import define, evolve, field, frozen

from flux0.domain.errors import ConnectionInterrupted, ReadTimeout
from flux0.domain.timeouts import timed_out
from flux0.ports import AsyncByteStream, Request, Response, Shared
from flux0.runtime.event_loop import call_soon, running_loop, sleep, start_task
from flux0.runtime.weak_values import WeakObjects
from flux0.testing.fake.clock import FakeClock, Wait, Waits, perform, perform_async

# How a response body ended. A body is "unclosed" if it was neither closed nor read to its end when
# the client was closed, or when the garbage collector freed the body.
BodyEnd: TypeAlias = Literal["finished", "closed", "unclosed"]


@define(eq=False)
class FakeBody:
    """A response body of an in-memory transport. Sync and async code can read it.

    Each async read is a checkpoint: the event loop can run other tasks, and cancel the reader.
    """

    _pieces: Iterator[bytes | Wait]
    _clock: FakeClock
    _lock: AbstractContextManager[Any]
    # `_on_end` is called once, when the body ends, and returns whether the server closes the
    # connection.
    _on_end: Callable[[Iterator[bytes | Wait], BodyEnd], bool]
    # `end_if_unread` is recorded if the garbage collector frees a body that was not read
    # completely. For async code, the value is "closed": if code leaves an `async for` loop early,
    # Python does not close the iterator, so a missing call of `close_async` is not an error.
    end_if_unread: BodyEnd = field(default="unclosed", init=False)
    closes_connection: bool = field(default=False, init=False)
    _end: BodyEnd | None = field(default=None, init=False)

    def read(self, timeout: float | None) -> bytes | None:
        """Return the next bytes; None at the end. `timeout` expires on the fake's simulated clock.

        If `timeout` is None, raise AssertionError when no more data can arrive.
        """
        return perform(self._read(timeout), self._clock)

    def close(self) -> None:
        self.mark_ended("closed")

    async def read_async(self, timeout: float | None) -> bytes | None:
        """The async version of `read`. If `timeout` is infinite, the read waits in real time."""
        await sleep(0)
        return await perform_async(self._read(timeout), self._clock, in_real_time=timeout == inf)

    async def close_async(self) -> None:
        self.mark_ended("closed")

    def __del__(self) -> None:
        # If a signal handler has interrupted `__init__`, the last attribute is missing.
        if hasattr(self, "_end"):
            self.mark_ended(self.end_if_unread)

    def _read(self, timeout: float | None) -> Waits[bytes | None]:
        clock = self._clock
        limit = inf if timeout is None else clock.now() + timeout
        while True:
            seen = clock.changes
            with self._lock:
                outcome = self._next()
            if not isinstance(outcome, Wait):
                return outcome
            if clock.now() >= limit:
                self.mark_ended("closed")
                raise timed_out(ReadTimeout, timeout)
            if outcome.moment is None:
                yield evolve(outcome, seen=seen)
            else:
                yield outcome if outcome.moment <= limit else Wait(limit, is_timeout=True)

    def mark_ended(self, how: BodyEnd) -> None:
        with self._lock:
            if self._end is not None:
                return
            self._end = how
            self.closes_connection = self._on_end(self._pieces, how)
        self._clock.notify()

    def _next(self) -> bytes | Wait | None:
        if self._end is None:
            try:
                if (outcome := next(self._pieces, None)) is not None:
                    return outcome
            except BaseException:
                self.mark_ended("closed")
                raise
            self.mark_ended("finished")
        if self._end != "finished":
            raise ConnectionInterrupted("the body was closed before its end")
        return None


Run: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


@frozen
class Starter:
    """Runs the agents of one request.

    Attributes:
        start_task: a function that starts an async agent in a task, and returns a function that
            cancels the task from any thread. It is None if no event loop is running.
        call: a function that calls its argument, for example in a thread. The argument is a
            function that starts an agent, or runs a sync agent until the agent waits.
    """

    start_task: Callable[[Run], Callable[[], object]] | None = None
    call: Callable[[Callable[[], None]], None] = lambda act: act()


def _start_task(run: Run) -> Callable[[], object]:
    return partial(call_soon, running_loop(), start_task(run))


class SharedTransport(Shared):
    """The base class of in-memory transports. Many clients can share one transport."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock: FakeClock = clock
        # The class `Flux0` reads the time from its transport's `time`.
        self.time: FakeClock = clock
        self._bodies: WeakObjects[FakeBody] = WeakObjects()

    @abstractmethod
    def respond(self, request: Request, starter: Starter) -> Waits[Response[FakeBody]]:
        """Return the response to `request`. `starter` runs the agent that replies."""

    def send(self, request: Request) -> Response[FakeBody]:
        """Return the response to `request`, with a body that is not read yet."""
        return perform(self.respond(request, Starter()), self.clock)

    def close(self) -> None:
        """Do nothing, because other clients may still use the transport."""

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        """The async version of `send`."""
        await sleep(0)
        response = await perform_async(self.respond(request, Starter(_start_task)), self.clock)
        response.body.end_if_unread = "closed"
        return response

    async def close_async(self) -> None:
        """The async version of `close`."""
        self.close()

    def for_client(self) -> ClientTransport:
        return ClientTransport(self)


@final
class ClientTransport(SharedTransport):
    """A view of a shared transport for one client. `close` interrupts the client's streams."""

    def __init__(self, shared: SharedTransport) -> None:
        super().__init__(shared.clock)
        self._shared = shared

    def __repr__(self) -> str:
        return repr(self._shared)

    def respond(self, request: Request, starter: Starter) -> Waits[Response[FakeBody]]:
        response = yield from self._shared.respond(request, starter)
        self._bodies.add(response.body)
        return response

    def close(self) -> None:
        for body in self._bodies.values():
            body.mark_ended("unclosed")
