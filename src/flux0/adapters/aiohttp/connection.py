"""A subclass of aiohttp's `ResponseHandler`, with the limits and checks that aiohttp lacks."""

from __future__ import annotations

import asyncio
import re
import socket
from contextlib import suppress
from typing import Any, ClassVar, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from attrs import define, evolve, frozen

from flux0.adapters.shared.limits import MAX_OVERHEAD_BYTES
from flux0.adapters.shared.sending import wait
from flux0.domain.http import START_BYTES, framing_problem, version_problem

_HEAD_END: Final = re.compile(rb"\n\r?\n")
_VERSIONS: Final = (aiohttp.HttpVersion10, aiohttp.HttpVersion11)


@frozen
class _Head:
    """The state of a connection that has not received a complete response head."""

    content: ClassVar[None] = None
    # `start` and `end` contain the first and the last received bytes of the response head.
    # `_receive_head` needs both if the head arrives in several parts.
    start: bytes = b""
    end: bytes = b""
    # The number of received bytes, including the heads of interim responses.
    size: int = 0
    # The number of unsent bytes of the request when the timer last expired.
    unsent: int = 0


@define(eq=False)
class _Body:
    """The state of a connection from a complete response head to the next request."""

    content: aiohttp.StreamReader
    # The number of received bytes that are not content, since the last byte of content.
    overhead: int
    # The value of `content.total_bytes` when data was last received.
    content_bytes: int = 0


_NOTHING_RECEIVED: Final = _Head()


class AiohttpConnection(ResponseHandler):
    """A connection of aiohttp that limits each wait and the overhead, and reports each failure.

    The overhead is the received bytes that are not content, such as chunk sizes. flux0 assigns this
    class to the `__class__` of connections that aiohttp has created. Therefore `__init__` is never
    called, and the attributes have their defaults in the class.
    """

    # When the event loop's time reaches `deadline`, the current wait raises a timeout error.
    # `deadline` is None if no task waits.
    deadline: float | None = None
    _limit: float = 0.0  # The longest duration of the current wait, in seconds.
    _wait_timer: asyncio.TimerHandle | None = None
    _state: _Head | _Body = _NOTHING_RECEIVED

    def is_stale(self) -> bool:
        """Return whether the idle connection was closed, or has received surplus bytes."""
        transport = self.transport
        if transport is None or transport.is_closing() or self.should_close:
            return True
        return wait(transport.get_extra_info("socket"), 0, read=True)[0]

    def await_head(self, limit: float | None) -> None:
        """Start to wait for a response head, at most `limit` seconds without progress.

        There is progress when the server receives request data, or sends bytes.
        """
        self._state = _NOTHING_RECEIVED
        self.start_wait(limit)

    def start_wait(self, limit: float | None) -> None:
        """Start to wait for data, at most `limit` seconds.

        If a timer already exists and expires earlier, it is kept, because setting a timer for each
        wait is slow. When it expires, `_on_timer` sets a timer for the remaining time.
        """
        if limit is None:
            return
        self._limit, self.deadline, timer = limit, self._loop.time() + limit, self._wait_timer
        if timer is None or timer.when() > self.deadline:
            if timer is not None:
                timer.cancel()
            self._wait_timer = self._loop.call_at(self.deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._wait_timer = None
        if self.deadline is None:
            return
        now, transport, state = self._loop.time(), self.transport, self._state
        unsent = 0 if transport is None else transport.get_write_buffer_size()
        if isinstance(state, _Head) and unsent != state.unsent:
            # The server has received a further part of the request, so start the wait again.
            self._state, self.deadline = evolve(state, unsent=unsent), now + self._limit
        if self.deadline <= now:
            self.set_exception(aiohttp.SocketTimeoutError("no data received"))
        else:
            self._wait_timer = self._loop.call_at(self.deadline, self._on_timer)

    def data_received(self, data: bytes) -> None:
        state, rest = self._state, data
        if isinstance(state, _Head):
            rest, state = self._receive_head(state, data), self._state
            if isinstance(state, _Head):
                return
        elif data and state.content.is_eof():
            # The response is already complete, so `data` contains surplus bytes. A connection with
            # surplus bytes must not be reused.
            self.force_close()
        if rest or not data:  # `resume_reading` of aiohttp passes no data.
            super().data_received(rest)
        content = state.content
        if content.total_bytes != state.content_bytes:
            state.content_bytes, state.overhead, self.deadline = content.total_bytes, 0, None
        elif data:
            state.overhead += len(data)
            self._limit_overhead("framing", state.overhead)
        if isinstance(content.exception(), aiohttp.ClientPayloadError):
            # The Python parser of aiohttp, which replaces the C parser on some platforms, reports
            # invalid framing in the same way as an interruption, and can leave the connection open.
            self._fail("the chunk framing is invalid or too large")

    def _receive_head(self, head: _Head, data: bytes) -> bytes:
        """Parse the response heads in `data`, and return the bytes after the last head.

        If the bytes after a head are invalid, aiohttp discards the head, too. Therefore the head is
        passed to the parser separately.
        """
        start = head.start
        if len(start) < START_BYTES:
            start = (start + data)[:START_BYTES]
            if problem := version_problem(start):
                self._fail(problem)
                return b""
        before, received, at = len(head.end), head.end + data, 0
        while self._state is head and (end := _HEAD_END.search(received, at)):
            super().data_received(data[max(at - before, 0) : end.end() - before])
            at = end.end()
        rest = data[max(at - before, 0) :]
        if self._state is not head:
            return rest
        super().data_received(rest)
        if self._state is head:
            size = head.size + len(data)
            self._state = _Head(start, received[at:][-2:], size, head.unsent)
            if self.deadline is not None:
                self.start_wait(self._limit)
            self._limit_overhead("head", size)
        return b""

    def _limit_overhead(self, part: str, size: int) -> None:
        if size > MAX_OVERHEAD_BYTES:
            self._fail(f"the {part} is larger than {MAX_OVERHEAD_BYTES} bytes")

    def _fail(self, problem: str) -> None:
        # `abort` removes the connection's stored exception, so call `abort` before `set_exception`.
        self.abort()
        error, content = HttpProcessingError(message=problem), self._state.content
        self.set_exception(error)
        if content is not None and not content.is_eof():
            content.set_exception(error)  # `set_exception` does not replace another exception.

    def feed_data(self, data: Any, size: int = 0) -> None:
        (message, content), state = data, self._state
        if isinstance(state, _Head) and (message.code >= 200 or message.code == 101):  # noqa: PLR2004
            if problem := _problem(message):
                self._fail(problem)
                return
            self._state, self.deadline = _Body(content, state.size), None
        super().feed_data(data, size)

    def set_exception(self, exc: BaseException, exc_cause: Any = None) -> None:
        super().set_exception(exc, exc_cause or exc)
        content = self._state.content
        if content is not None and not content.is_eof() and content.exception() is None:
            content.set_exception(exc)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Report a reset as an error. aiohttp does not, if the body is close-delimited."""
        if self._wait_timer is not None:
            # Cancel the timer, because the timer refers to the closed connection and keeps it in
            # memory.
            self._wait_timer.cancel()
        transport = self.transport
        content = self._state.content
        if exc and transport and not (content or transport.get_extra_info("ssl_object")):
            # If asyncio fails to send a request, asyncio does not read bytes that were already
            # received, such as a response that rejects the request. Therefore, `connection_lost`
            # reads these bytes.
            number = transport.get_extra_info("socket").fileno()
            with suppress(OSError), socket.fromfd(number, -1, -1) as duplicate:
                self.data_received(duplicate.recv(65536))
        if exc is not None and not self.is_eof():
            self.set_exception(exc)
        if transport is not None:
            # If a TLS transport of asyncio is not closed, Python 3.10 emits a ResourceWarning.
            # Therefore, abort the transport.
            transport.abort()
        content = self._state.content
        reported = None if content is None else content.exception()
        super().connection_lost(exc)
        if content is not None and reported is not None:
            # If the body's trailers are invalid, `super().connection_lost` replaces the exception
            # that readers of the body get. Restore the first exception.
            content.set_exception(reported)

    def close(self) -> None:
        """Close the connection without waiting for the server to read data or to end TLS."""
        self.set_exception(aiohttp.ClientConnectionError("the connection was closed"))
        self.abort()


def _problem(message: Any) -> str | None:
    """Return why a response head is invalid, or None. The Python parser accepts more heads."""
    if message.version not in _VERSIONS:
        return f"it starts with 'HTTP/{message.version.major}.{message.version.minor}'"
    lengths = message.headers.getall("Content-Length", ())
    codings = message.headers.getall("Transfer-Encoding", ())
    length = ", ".join(lengths) if lengths else None
    return framing_problem(length, ", ".join(codings) if codings else None)
