"""The open turns of a client, at most one per session.

The server runs one turn per session. If a second message is sent during a turn, the first stream
gets no more events, and closing the first stream cancels the second turn (measured with server
0.1.0b4). Therefore, a client sends the messages of a session one after another, and closes the open
stream of the session before it sends the next message.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from threading import get_ident
from time import monotonic
from typing import Final, TypeAlias

from flux0.domain.errors import Flux0Error, ReadTimeout, TransportTimeout
from flux0.domain.timeouts import Deadline, duration
from flux0.runtime.event_loop import (
    has_ended,
    is_stopped,
    running_loop,
    running_task,
    schedule_close,
)
from flux0.runtime.processes import PerProcess
from flux0.runtime.waker import Waker
from flux0.runtime.weak_values import WeakValues
from flux0.turns.running_calls import CLIENT_CLOSED, RunningCalls
from flux0.turns.session_queue import (
    Sender,
    SessionKey,
    SessionQueue,
    SessionQueues,
    TaskSender,
    ThreadSender,
)
from flux0.turns.streams import AsyncEventStream, EventStream

# If a call has no `timeout_ms`, its message waits at most this number of seconds for each earlier
# message in the session's queue.
_MAX_QUEUE_SECONDS: Final = 60.0
# The longest time in seconds that a message waits until another event loop has closed the session's
# open stream.
_MAX_CLOSE_SECONDS: Final = 10.0
# The seconds between two checks whether the event loop that must close a stream has ended. The
# checks are necessary, because an event loop does not notify other threads when it ends.
_CHECK_SECONDS: Final = 0.05
# The seconds between two checks whether the senders ahead have left the queue. The checks are
# necessary, because an exception of a signal handler can interrupt a sender that leaves the queue,
# before it wakes the next sender.
_CHECK_QUEUE_SECONDS: Final = 1.0

_ANOTHER_MESSAGE: Final = (
    "the stream was closed by another message on its session: a session has one turn at a time"
)
_NESTED: Final = (
    "this thread or task is already sending a message on the session: middleware, observers and "
    "hooks of this message cannot send another message on the session"
)
_DEADLOCK: Final = (
    "an async task of this thread is {} the session, and its event loop cannot run until this call "
    "returns: use the _async method in this loop, or run the loop until the task has ended"
)

# `_Limit` is the longest time of a wait in seconds, and the error to raise after this time.
_Limit: TypeAlias = tuple[float, TransportTimeout]


class OpenTurns:
    """The latest stream of each session. An unreferenced stream is removed.

    Each process has its own streams: a forked child ignores the streams of its parent. Threads,
    tasks and event loops may send messages on one session at the same time. A message waits only
    for messages of its own session.

    Args:
        calls: The client's running calls.
        clock: A function that returns the current time, for comparison with deadlines.
    """

    def __init__(self, calls: RunningCalls, clock: Callable[[], float]) -> None:
        self._calls = calls
        self._clock = clock
        self._queues = SessionQueues()
        self._streams = PerProcess(WeakValues[SessionKey, EventStream | AsyncEventStream])

    @contextmanager
    def exclusive(
        self, session: SessionKey, deadline: Deadline | None
    ) -> Generator[None, None, None]:
        """In the `with` block, let this client send no other message on `session`.

        Entering the block waits for earlier messages, and closes the session's open stream.

        Args:
            session: The server's URL and the session's id.
            deadline: The call's deadline; None if it has no `timeout_ms`.

        Raises:
            TransportTimeout: The wait took too long. The message was not sent.
            ClientClosed: The client was closed during the wait.
            Flux0Error: The wait would never end: this call runs inside a call that sends a message
                on the session, or it blocks the event loop of a task that is sending a message on
                the session or reading the session's open stream.
        """
        now, queue, sender = self._clock(), self._queues.of(session), ThreadSender()
        try:
            with sender.active:
                if ahead := queue.join(sender):
                    _reject_deadlock(sender, ahead)
                    self._wait(queue, sender, _queue_limit(len(ahead), deadline, now))
                if (stream := self._streams.get().get(session)) is not None and stream.is_open:
                    self._close(stream, _close_limit(deadline, now))
                yield
        finally:
            queue.leave(sender)

    @asynccontextmanager
    async def exclusive_async(
        self, session: SessionKey, deadline: Deadline | None
    ) -> AsyncGenerator[None, None]:
        now, queue, sender = self._clock(), self._queues.of(session), TaskSender()
        try:
            with sender.active:
                if ahead := queue.join(sender):
                    _reject_deadlock(sender, ahead)
                    await self._wait_async(queue, sender, _queue_limit(len(ahead), deadline, now))
                if (stream := self._streams.get().get(session)) is not None and stream.is_open:
                    await self._close_async(stream, _close_limit(deadline, now))
                yield
        finally:
            queue.leave(sender)

    def add(self, session: SessionKey, stream: EventStream | AsyncEventStream) -> None:
        self._streams.get().set(session, stream)

    def mark_closed(self) -> None:
        """Mark all open streams as closed, so that their readers raise `ClientClosed`."""
        for stream in self._open():
            stream.mark_closed(CLIENT_CLOSED)

    def close(self) -> None:
        """Close all open streams. The event loop of each async stream closes the stream later."""
        for stream in self._open():
            if isinstance(stream, EventStream):
                stream.close(CLIENT_CLOSED)
            elif _is_suspended(stream) or not schedule_close(
                stream.loop, partial(stream.close_async, CLIENT_CLOSED)
            ):
                stream.close_soon(CLIENT_CLOSED)

    def _open(self) -> tuple[EventStream | AsyncEventStream, ...]:
        return tuple(stream for stream in self._streams.get().values() if stream.is_open)

    def _wait(self, queue: SessionQueue, sender: ThreadSender, limit: _Limit) -> None:
        seconds, error = limit
        ends = monotonic() + seconds
        with self._calls.start(wake=sender.wake):
            while not (queue.is_first(sender) or self._calls.closed):
                if (left := ends - monotonic()) <= 0:
                    raise error
                sender.wait(min(left, _CHECK_QUEUE_SECONDS))
        self._calls.check()

    async def _wait_async(self, queue: SessionQueue, sender: TaskSender, limit: _Limit) -> None:
        seconds, error = limit
        with self._calls.start(wake=sender.wake):
            await sender.wait(seconds)
        self._calls.check()
        if not queue.is_first(sender):
            raise error

    def _close(self, stream: EventStream | AsyncEventStream, limit: _Limit) -> None:
        if isinstance(stream, EventStream):
            stream.close(_ANOTHER_MESSAGE)
        elif stream.thread == get_ident():
            if stream.is_being_read:
                raise Flux0Error(_DEADLOCK.format("reading the open stream of"))
            stream.close_soon(_ANOTHER_MESSAGE)
        else:
            self._close_in_its_loop(stream, limit)

    async def _close_async(self, stream: EventStream | AsyncEventStream, limit: _Limit) -> None:
        if isinstance(stream, EventStream) or _is_suspended(stream):
            self._close(stream, limit)
        elif stream.loop is running_loop():
            await stream.close_async(_ANOTHER_MESSAGE)
        else:
            from flux0.runtime.threads import run_in_thread  # noqa: PLC0415 - loads anyio

            await run_in_thread(partial(self._close_in_its_loop, stream, limit))

    def _close_in_its_loop(self, stream: AsyncEventStream, limit: _Limit) -> None:
        waker = Waker()

        async def close() -> None:
            try:
                await stream.close_async(_ANOTHER_MESSAGE)
            finally:
                waker.wake()

        stream.mark_closed(_ANOTHER_MESSAGE)
        schedule_close(stream.loop, close)
        seconds, error = limit
        ends = monotonic() + seconds
        with self._calls.start(wake=waker.wake):
            while not (waker.wait(_CHECK_SECONDS) or has_ended(stream.loop)):
                if monotonic() > ends:
                    raise error
        self._calls.check()
        # If the stream's event loop has ended before it closed the stream, close the stream here.
        stream.close_soon(_ANOTHER_MESSAGE)


def _reject_deadlock(sender: Sender, ahead: tuple[Sender, ...]) -> None:
    for other in ahead:
        if other.thread == sender.thread:
            if isinstance(other, ThreadSender) or other.task is running_task():
                raise Flux0Error(_NESTED)
            if isinstance(sender, ThreadSender) or is_stopped(other.loop):
                raise Flux0Error(_DEADLOCK.format("sending a message on"))


def _is_suspended(stream: AsyncEventStream) -> bool:
    return stream.thread == get_ident() and is_stopped(stream.loop)


def _queue_limit(ahead: int, deadline: Deadline | None, now: float) -> _Limit:
    problem = "earlier messages on the session were still being sent after"
    if deadline is not None:
        left, limit = max(deadline.left(now), 0), duration(deadline.limit)
        return left, _not_sent(f"{problem} {limit} (timeout_ms)", ReadTimeout)
    seconds = _MAX_QUEUE_SECONDS * ahead
    limit = duration(seconds)
    return seconds, _not_sent(f"{problem} {limit} (set timeout_ms for another limit)")


def _close_limit(deadline: Deadline | None, now: float) -> _Limit:
    seconds = _MAX_CLOSE_SECONDS
    if deadline is not None:
        seconds = min(max(deadline.left(now), 0), seconds)
    return seconds, _not_sent(
        f"the event loop that opened the last stream of the session did not close the stream "
        f"within {duration(seconds)}; the loop is blocked or stopped"
    )


def _not_sent(reason: str, kind: type[TransportTimeout] = TransportTimeout) -> TransportTimeout:
    error = kind(f"the message was not sent: {reason}")
    error.sent = "no"
    return error
