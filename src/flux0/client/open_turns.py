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
from weakref import WeakValueDictionary

from flux0.client.open_calls import CLIENT_CLOSED, OpenCalls
from flux0.client.session_queue import (
    Sender,
    SessionKey,
    SessionQueue,
    SessionQueues,
    TaskSender,
)
from flux0.client.streams import AsyncEventStream, EventStream
from flux0.domain.errors import Flux0Error, TransportTimeout
from flux0.domain.timeouts import Deadline, duration
from flux0.runtime.event_loop import has_ended, load_anyio, running_loop, schedule_close
from flux0.runtime.waker import Waker

# If a call has no `timeout_ms`, its message waits at most this many seconds for each earlier
# message in the queue.
_MAX_QUEUE_SECONDS: Final = 60.0
# The longest time in seconds that a message waits until another event loop has closed the open
# stream of the session.
_MAX_CLOSE_SECONDS: Final = 10.0
# Seconds between two checks whether the other event loop has ended. An event loop does not notify
# other threads when it ends.
_CHECK_SECONDS: Final = 0.05

_ANOTHER_MESSAGE: Final = (
    "the stream was closed by another message on its session: a session has one turn at a time"
)


# The longest time to wait, in seconds, and the error to raise if the wait takes longer.
_Limit: TypeAlias = tuple[float, TransportTimeout]


class OpenTurns:
    """The latest stream of each session. An unreferenced stream is removed.

    Threads, tasks and event loops may send messages on one session at the same time. A message
    waits only for messages of its own session.

    Args:
        calls: The open calls of the client.
        clock: The clock of deadlines.
    """

    def __init__(self, calls: OpenCalls, clock: Callable[[], float]) -> None:
        self._calls = calls
        self._clock = clock
        self._queues = SessionQueues()
        self._streams: WeakValueDictionary[SessionKey, EventStream | AsyncEventStream]
        self._streams = WeakValueDictionary()

    @contextmanager
    def exclusive(
        self, session: SessionKey, deadline: Deadline | None
    ) -> Generator[None, None, None]:
        """Return a context manager. In its block, this client sends no other message on `session`.

        Entering the block waits for earlier messages, and closes the open stream of the session.

        Args:
            session: The URL of the server and the id of the session.
            deadline: The deadline of the call; None if it has no `timeout_ms`.

        Raises:
            TransportTimeout: The wait took too long. The message was not sent.
            ClientClosed: The client was closed during the wait.
            Flux0Error: An async task of this thread is sending a message on the session, or is
                reading the open stream of the session. The task cannot continue while this call
                blocks the thread.
        """
        now, queue, sender = self._clock(), self._queues.of(session), Waker()
        ahead = queue.join(sender)
        try:
            if ahead:
                self._wait(queue, sender, ahead, _queue_limit(len(ahead), deadline, now))
            if (stream := self._streams.get(session)) is not None and stream.is_open:
                self._close(stream, _close_limit(deadline, now))
            yield
        finally:
            queue.leave(sender)

    @asynccontextmanager
    async def exclusive_async(
        self, session: SessionKey, deadline: Deadline | None
    ) -> AsyncGenerator[None, None]:
        """The async version of `exclusive`."""
        now, queue, sender = self._clock(), self._queues.of(session), TaskSender()
        ahead = queue.join(sender)
        try:
            if ahead:
                await self._wait_async(queue, sender, _queue_limit(len(ahead), deadline, now))
            if (stream := self._streams.get(session)) is not None and stream.is_open:
                await self._close_async(stream, _close_limit(deadline, now))
            yield
        finally:
            queue.leave(sender)

    def add(self, session: SessionKey, stream: EventStream | AsyncEventStream) -> None:
        """Record `stream` as the open stream of `session`."""
        self._streams[session] = stream

    def mark_closed(self) -> None:
        """Mark all open streams as closed, so that their readers raise `ClientClosed`."""
        for stream in self._open():
            stream.mark_closed(CLIENT_CLOSED)

    def close(self) -> None:
        """Close all open streams. The event loop of each async stream closes the stream later."""
        for stream in self._open():
            if isinstance(stream, EventStream):
                stream.close(CLIENT_CLOSED)
            elif not schedule_close(stream.loop, partial(stream.close_async, CLIENT_CLOSED)):
                stream.close_soon(CLIENT_CLOSED)

    def _open(self) -> tuple[EventStream | AsyncEventStream, ...]:
        return tuple(stream for stream in self._streams.values() if stream.is_open)

    def _wait(
        self, queue: SessionQueue, sender: Waker, ahead: tuple[Sender, ...], limit: _Limit
    ) -> None:
        if any(isinstance(other, TaskSender) and other.thread == get_ident() for other in ahead):
            raise Flux0Error(
                "an async call of this thread is sending on the same session, and cannot continue "
                "while a sync call blocks the thread: use the _async method"
            )
        seconds, error = limit
        with self._calls.wake_on_close(sender.wake):
            sender.wait(seconds)
        self._calls.check()
        if not queue.is_first(sender):
            raise error

    async def _wait_async(self, queue: SessionQueue, sender: TaskSender, limit: _Limit) -> None:
        seconds, error = limit
        with load_anyio().move_on_after(seconds), self._calls.wake_on_close(sender.wake):
            await sender.wait()
        self._calls.check()
        if not queue.is_first(sender):
            raise error

    def _close(self, stream: EventStream | AsyncEventStream, limit: _Limit) -> None:
        if isinstance(stream, EventStream):
            stream.close(_ANOTHER_MESSAGE)
        elif stream.thread == get_ident():
            if stream.is_being_read:
                raise Flux0Error(
                    "an async task of this thread is reading the open stream of the session, and "
                    "cannot continue while a sync call blocks the thread: use the _async method"
                )
            stream.close_soon(_ANOTHER_MESSAGE)
        else:
            self._close_in_its_loop(stream, limit)

    async def _close_async(self, stream: EventStream | AsyncEventStream, limit: _Limit) -> None:
        if isinstance(stream, EventStream):
            stream.close(_ANOTHER_MESSAGE)
        elif stream.loop is running_loop():
            await stream.close_async(_ANOTHER_MESSAGE)
        else:
            from flux0.runtime.threads import run_in_thread  # noqa: PLC0415 - loads anyio

            await run_in_thread(partial(self._close_in_its_loop, stream, limit))

    def _close_in_its_loop(self, stream: AsyncEventStream, limit: _Limit) -> None:
        """Start a task that closes `stream` in its event loop, and wait for the task."""
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
        with self._calls.wake_on_close(waker.wake):
            while not (waker.wait(_CHECK_SECONDS) or has_ended(stream.loop)):
                if monotonic() > ends:
                    raise error
        self._calls.check()
        # If the event loop ended before it closed the stream, close the stream here.
        stream.close_soon(_ANOTHER_MESSAGE)


def _queue_limit(ahead: int, deadline: Deadline | None, now: float) -> _Limit:
    if deadline is not None:
        return max(deadline.left(now), 0), deadline.exceeded("no")
    seconds = _MAX_QUEUE_SECONDS * ahead
    return seconds, _not_sent(
        f"earlier messages on the session were still being sent after {duration(seconds)} "
        f"(set timeout_ms for another limit)"
    )


def _close_limit(deadline: Deadline | None, now: float) -> _Limit:
    seconds = _MAX_CLOSE_SECONDS
    if deadline is not None:
        seconds = min(max(deadline.left(now), 0), seconds)
    return seconds, _not_sent(
        f"the event loop that opened the last stream of the session did not close the stream "
        f"within {duration(seconds)}; the loop is blocked or stopped"
    )


def _not_sent(reason: str) -> TransportTimeout:
    error = TransportTimeout(f"the message was not sent: {reason}")
    error.sent = "no"
    return error
