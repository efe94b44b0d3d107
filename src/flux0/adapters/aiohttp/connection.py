"""A subclass of aiohttp's connections, with the limits and checks that aiohttp lacks."""

from __future__ import annotations

import asyncio
import select
from math import inf
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

from flux0.adapters.shared.limits import MAX_OVERHEAD_BYTES
from flux0.domain.http import framing_problem


class WriteTimeoutError(aiohttp.SocketTimeoutError):
    """The server accepted no bytes of the request within the write timeout."""


class TrackedConnection(ResponseHandler):
    """A connection of aiohttp that limits each wait and the overhead, and reports each failure.

    Existing objects of aiohttp get this class by assignment to `__class__`. This does not call
    `__init__`, so the attributes have defaults.
    """

    # When the wait expires, as a time of the event loop. None if no task waits.
    deadline: float | None = None
    _limit: float | None = None
    _write_limit: float | None = None
    _wait_timer: asyncio.TimerHandle | None = None
    _content: aiohttp.StreamReader | None = None  # None until the response head is received.
    _content_bytes = _overhead = _unsent = 0
    _head_start = b""
    _poll: Any = None

    def is_stale(self) -> bool:
        """Return whether the idle connection was closed, or has received surplus bytes."""
        transport = self.transport
        if transport is None or transport.is_closing() or self.should_close:
            return True
        # Windows has no poll. Its event loop reads surplus bytes, which `data_received` detects.
        if self._poll is None and hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(transport.get_extra_info("socket"), select.POLLIN)
        return self._poll is not None and bool(self._poll.poll(0))

    def await_head(self, limit: float | None, write_limit: float | None) -> None:
        """Start to wait for a response head: at most `limit` seconds until the next bytes arrive.

        While the request is being sent, `write_limit` applies instead.
        """
        self._content, self._head_start, self._write_limit = None, b"", write_limit
        self._content_bytes = self._overhead = self._unsent = 0
        if write_limit is not None and (limit is None or write_limit < limit):
            # When the write timeout expires, `_on_timer` checks the number of unsent bytes.
            self.start_wait(write_limit)
            self.deadline = inf if limit is None else self._loop.time() + limit
            self._limit = limit
        else:
            self.start_wait(limit)

    def start_wait(self, limit: float | None) -> None:
        """Start to wait for data, at most `limit` seconds.

        To save time, a pending timer that fires earlier is kept. When it fires, it is set again.
        """
        self._limit, self.deadline = limit, None
        if limit is not None:
            self.deadline = self._loop.time() + limit
            if self._wait_timer is not None and self._wait_timer.when() > self.deadline:
                self._wait_timer.cancel()
                self._wait_timer = None
            if self._wait_timer is None:
                self._wait_timer = self._loop.call_at(self.deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._wait_timer = None
        if self.deadline is None:
            return
        now, transport = self._loop.time(), self.transport
        unsent = 0 if transport is None else transport.get_write_buffer_size()
        read_end = inf if self._limit is None else now + self._limit
        write_end = inf if self._write_limit is None else now + self._write_limit
        if unsent != self._unsent:  # Bytes were sent, or this is the first check.
            self._unsent, self.deadline = unsent, write_end if unsent else read_end
        if self.deadline <= now:
            kind = WriteTimeoutError if unsent else aiohttp.SocketTimeoutError
            self.set_exception(kind("no data sent" if unsent else "no data received"))
        # The request may be complete before `deadline`. Then the read timeout applies. If the event
        # loop is busy, sending may begin after this check.
        elif (moment := min(self.deadline, read_end, write_end)) < inf:
            self._wait_timer = self._loop.call_at(moment, self._on_timer)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes, and limit the overhead."""
        content, start = self._content, 0
        if content is None:
            self._head_start = (self._head_start + data)[:16]
        elif data and content.is_eof():
            self.force_close()  # `data` contains surplus bytes.
        # If the bytes after a head are invalid, aiohttp discards the head, too. So pass the head to
        # the parser separately.
        while self._content is None and (end := data.find(b"\n\r\n", start)) >= 0:
            super().data_received(data[start : end + 3])
            start = end + 3
        super().data_received(data[start:])
        content = self._content
        if content is not None and content.total_bytes != self._content_bytes:
            self._content_bytes, self._overhead, self.deadline = content.total_bytes, 0, None
            return
        if content is None and self.deadline is not None:
            self.start_wait(self._limit)
        self._overhead += len(data)
        if self._overhead > MAX_OVERHEAD_BYTES:
            self.abort()  # `abort` removes any exception, so it precedes `set_exception`.
            part = "head" if content is None else "framing"
            problem = f"the {part} is larger than {MAX_OVERHEAD_BYTES} bytes"
            self.set_exception(HttpProcessingError(message=problem))

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Record that the response head was received. Reject an ambiguous framing."""
        message, content = data
        if self._content is None and (message.code >= 200 or message.code == 101):  # noqa: PLR2004
            codings = message.headers.getall("Transfer-Encoding", ())
            if codings and (problem := framing_problem(None, ", ".join(codings))):
                self.set_exception(HttpProcessingError(message=problem))
                return
            self._content, self.deadline = content, None
        super().feed_data(data, size)

    def set_exception(self, exc: BaseException, exc_cause: Any = None) -> None:
        """Report a failure to the exchange and to the reader of the body."""
        cause: Any = exc_cause or exc.__cause__
        is_http = b"HTTP/".startswith(self._head_start[:5])
        if isinstance(exc, (aiohttp.ServerDisconnectedError, HttpProcessingError)) and not is_http:
            exc = HttpProcessingError(message=f"it starts with {self._head_start!r}")
            cause = None
        super().set_exception(exc, cause)
        content = self._content
        if content is not None and not content.is_eof() and content.exception() is None:
            content.set_exception(exc)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Report a reset to the reader.

        aiohttp would treat a reset as the end of a close-delimited body.
        """
        if self._wait_timer is not None:
            self._wait_timer.cancel()  # The timer refers to the connection and keeps it alive.
        if exc is not None and not self.is_eof():
            self.set_exception(exc)
        if self.transport is not None:
            self.transport.abort()  # On Python 3.10, TLS transports warn if they are not closed.
        content = self._content
        reported = None if content is None else content.exception()
        super().connection_lost(exc)
        if content is not None and reported is not None:
            # `super().connection_lost` replaces the exception of invalid trailers. Restore it.
            content.set_exception(reported)

    def close(self) -> None:
        """Close the connection without waiting for the server to read data or to end TLS."""
        self.set_exception(aiohttp.ClientConnectionError("the connection was closed"))
        self.abort()
