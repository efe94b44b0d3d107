"""Connections that detect surplus bytes and record how far an exchange has progressed.

The network streams of httpcore cannot do this. Therefore `AsyncConnection` (`async_streams.py`)
wraps a network stream, and `SyncConnection` (`sockets.py`) replaces it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from time import monotonic
from typing import Any, Final

from attrs import define, frozen

from flux0.adapters.httpx.exchange import current_exchange
from flux0.adapters.shared.chunks import Chunks
from flux0.adapters.shared.connecting import MIN_SECONDS
from flux0.adapters.shared.limits import MAX_OVERHEAD_BYTES
from flux0.adapters.shared.sending import REJECTION
from flux0.domain.http import START_BYTES, version_problem

# The pattern `_HEAD` matches the valid head of a response that can have a body (RFC 9110, section
# 6.4.1).
_HEAD: Final = re.compile(rb"HTTP/1\.1 (?!204|304)[2-5](?:[^\r\n]*\r\n)+?\r\n")
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*\r\n", re.IGNORECASE)
# A message to a proxy starts with one of these byte strings: the version byte of SOCKS5 or of its
# login protocol, or the method of a CONNECT request.
_TO_PROXY: Final = (b"\x05", b"\x01", b"CONNECT ")


@frozen
class Backend:
    """Opens the connections of a pool.

    Attributes:
        backend: The network backend of httpcore, which this object wraps or replaces.
        httpcore_module: The module `httpcore` or `httpcore2`.
        is_plain: True if the pool belongs to a transport class of httpx itself. A user's subclass
            may wrap the streams of responses.
    """

    backend: Any
    httpcore_module: Any
    is_plain: bool

    def sleep(self, seconds: float) -> Any:
        """Sleep before httpcore connects again. For an async client, return a coroutine."""
        return self.backend.sleep(seconds)


@frozen
class _Sending:
    """A request is being sent. `head` is the part that is kept until the body is sent, too."""

    head: bytes = b""


@frozen
class _ReadingHead:
    """The response head is being received: its first bytes, and the number of its bytes so far."""

    start: bytes = b""
    size: int = 0


@frozen
class _ChunkedHead:
    """The head of a chunked response was received, and nothing has read the body yet."""


@define
class _ReadingBody:
    """httpcore reads the body, piece by piece.

    Attributes:
        timeout: The longest wait for the current piece, in seconds.
        expiry: The value of `time.monotonic()` when this wait expires; None before the first read.
    """

    timeout: float | None
    expiry: float | None = None


@frozen
class _ReadingContent:
    """flux0 reads the content of a chunked body. httpcore gets only the end of the body."""

    chunks: Chunks


@frozen
class _Ended:
    """The server has closed the connection."""


_Phase = _Sending | _ReadingHead | _ChunkedHead | _ReadingBody | _ReadingContent | _Ended


class HttpxConnection(ABC):
    """A network stream of httpcore that detects surplus bytes after the end of a response.

    httpcore treats surplus bytes as the response to the next request. If a connection of this class
    has surplus bytes, `get_extra_info("is_readable")` is True, and the pool closes the connection.

    To detect surplus bytes, `read` keeps the last received byte until its next call. If the byte
    belongs to the response, httpcore calls `read` again to get it. If there is no such call, the
    byte is surplus. `read` keeps no byte of a proxy's messages.

    If the head of a chunked response arrives in one read, `content_reader` returns a function that
    reads the content of the body without httpcore and its parser h11, which halves the cost of an
    event. httpcore then reads only the last chunk.

    Attributes:
        connecting: True until the first request is sent to the server. Messages to a proxy
            leave it True.
    """

    def __init__(self, backend: Backend, connect_by: float | None) -> None:
        self._backend = backend
        # The connection must be established before `time.monotonic()` reaches `_connect_by`. If
        # `_connect_by` is None, there is no limit.
        self._connect_by = connect_by
        self.connecting: bool = True
        self._phase: _Phase = _ReadingHead()
        # `_early_data` contains bytes that were received before the request was sent completely, or
        # together with the head of a chunked response.
        self._early_data: bytes | None = None
        self._kept_byte = b""

    @property
    def at_eof(self) -> bool:
        """Whether the server has closed the connection."""
        return isinstance(self._phase, _Ended)

    @abstractmethod
    def content_reader(self) -> Any:
        """Return a function that reads the content of a chunked body directly; None if impossible.

        Call it before the body is read. The function has the parameter `timeout`, in seconds, and
        returns the next content, or b"" at the end of the content.
        """

    @abstractmethod
    def _is_readable(self) -> bool: ...

    @abstractmethod
    def _get_info(self, info: str) -> Any: ...

    def get_extra_info(self, info: str) -> Any:
        """Return a property of the connection. `is_readable` is True if it has surplus bytes."""
        if info == "is_readable":
            return bool(self._kept_byte or self._early_data) or self._is_readable()
        return self._get_info(info)

    def _next_to_send(self, buffer: bytes) -> bytes:
        """Return the bytes to send now.

        The head of a request is kept and sent together with the body. If the head is sent first, a
        server may reject the request and close the connection. Then sending the body fails, and the
        response is lost.
        """
        if not isinstance(self._phase, _Sending):
            self.connecting = self.connecting and buffer.startswith(_TO_PROXY)
            exchange = current_exchange.get()()
            # If the user sends a request directly with the httpx client, `exchange` is None.
            if exchange is not None:
                exchange.connection = self
                exchange.bind_socket(self._get_info("socket"))
            self._phase = _Sending()
            if buffer.endswith(b"\r\n\r\n") and b" HTTP/1.1\r\n" in buffer:
                self._phase = _Sending(buffer)
                return b""
        head = self._phase.head
        if head:
            self._phase = _Sending()
            return head + buffer
        return buffer

    def _connect_limit(self, timeout: float | None) -> float | None:
        if not self.connecting or self._connect_by is None:
            return timeout
        return max(self._connect_by - monotonic(), MIN_SECONDS)

    def start_piece(self, timeout: float | None) -> None:
        """Limit the wait for the next piece that httpcore reads of a body to `timeout` seconds.

        The read timeout of httpcore is not suitable: it is the same for all pieces of a body, and
        httpcore may read several times for one piece, each time with the whole timeout.
        """
        self._phase = _ReadingBody(timeout)

    def _read_limit(self, timeout: float | None) -> float | None:
        phase = self._phase
        if not isinstance(phase, _ReadingBody):
            return self._connect_limit(timeout)
        if phase.timeout is None:
            return None
        if phase.expiry is None:
            phase.expiry = monotonic() + phase.timeout
            return phase.timeout
        return self._seconds_until(phase.expiry)

    def _seconds_until(self, expiry: float) -> float:
        remaining = expiry - monotonic()
        if remaining <= 0:
            raise self._backend.httpcore_module.ReadTimeout("no data received")
        return remaining

    def _pop_received(self) -> bytes | None:
        if isinstance(self._phase, (_Sending, _ChunkedHead)):
            self._phase = _ReadingHead()
        if self._kept_byte:
            kept, self._kept_byte = self._kept_byte, b""
            return kept
        data, self._early_data = self._early_data, None
        return None if data is None else self._on_received(data)

    def _on_received(self, data: bytes) -> bytes:
        """Check received data, and return the bytes that `read` returns now.

        Raises:
            RemoteProtocolError: The response is not HTTP, or the head together with the interim
                responses exceeds 256 KiB.
            ConnectError: A proxy closed the connection.
        """
        if not data:
            self._phase = _Ended()
            if self.connecting:
                problem = "the proxy closed the connection"
                raise self._backend.httpcore_module.ConnectError(problem)
        if self.connecting or not data:
            return data
        exchange = current_exchange.get()()
        if exchange is not None and exchange.awaits_head(self):
            self._check_head(data)
            head = _HEAD.match(data)
            if head and self._backend.is_plain and _CHUNKED.search(head[0]):
                self._early_data = data[head.end() :] or None
                self._phase = _ChunkedHead()
                return head[0]
        if len(data) > 1:
            self._kept_byte = data[-1:]
            return data[:-1]
        return data

    def _check_head(self, data: bytes) -> None:
        phase = self._phase if isinstance(self._phase, _ReadingHead) else _ReadingHead()
        start = (phase.start + data[:START_BYTES])[:START_BYTES]
        self._phase = _ReadingHead(start, phase.size + len(data))
        problem = version_problem(start)
        if self._phase.size > MAX_OVERHEAD_BYTES:
            problem = f"the response head is larger than {MAX_OVERHEAD_BYTES} bytes"
        if problem:
            raise self._backend.httpcore_module.RemoteProtocolError(problem)

    def _start_content(self) -> Chunks | None:
        """Return the decoder of the content that flux0 reads; None if httpcore must read it."""
        if not isinstance(self._phase, _ChunkedHead):
            return None
        self._phase = _ReadingContent(chunks := Chunks())
        return chunks

    def _decode_early(self, chunks: Chunks) -> bytes | None:
        """Return content of bytes that were received earlier; None to receive more bytes."""
        if chunks.ended or chunks.failure is not None:
            return self._end_content(chunks)
        early, self._early_data = self._early_data, None
        return None if early is None else self._decode(chunks, early)

    def _decode(self, chunks: Chunks, data: bytes) -> bytes | None:
        """Return the content of `data`: b"" at the end of the content, None to receive more."""
        if not data:
            self._phase = _Ended()
            raise self._backend.httpcore_module.RemoteProtocolError("the body is truncated")
        if content := chunks.feed(data):
            return content
        ended = chunks.ended or chunks.failure is not None
        return self._end_content(chunks) if ended else None

    def _end_content(self, chunks: Chunks) -> bytes:
        if chunks.failure is not None:
            raise self._backend.httpcore_module.RemoteProtocolError(chunks.failure)
        self._early_data = b"0\r\n\r\n" + chunks.surplus
        return b""

    def _is_rejected(self) -> bool:
        return REJECTION.match(self._early_data or b"") is not None

    def _raise_if_rejected(self) -> None:
        if self._is_rejected():
            problem = "the server rejected the incomplete request"
            raise self._backend.httpcore_module.WriteError(problem)
