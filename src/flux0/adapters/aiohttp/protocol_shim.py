"""What goes over one connection of aiohttp: the request's body, and the bytes that answer it."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import HttpProcessingError

from flux0.adapters.shared.limits import MAX_OVERHEAD_BYTES
from flux0.domain.errors import WriteTimeout
from flux0.domain.timeouts import timed_out

if TYPE_CHECKING:
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.http import StreamWriter

# Up to this size a body fits into the buffer of a connection, so that writing it never waits.
_SMALL_BODY_BYTES: Final = 32 * 1024
_WRITE_BYTES: Final = 64 * 1024
NEVER: Final = 1e9  # seconds
_HEAD_END: Final = b"\r\n\r\n"


class ProtocolShim:
    """Stands between a connection and aiohttp: the one's protocol and the other's transport.

    Attributes:
        failure: what aiohttp says of the connection's end, or of an answer that is not HTTP.
    """

    def __init__(self, transport: asyncio.Transport, handler: ResponseHandler) -> None:
        self._transport = transport
        self._handler = handler
        self._recoding = False  # Whether what aiohttp writes next begins with a head.
        self._head: bytes | None = None  # The beginning of a head that is awaited.
        self._content: aiohttp.StreamReader | None = None
        self._seen = self._overhead = 0
        self._closed = self._ended = False
        # What else asyncio tells is aiohttp's alone.
        self.eof_received: Callable[[], None] = handler.eof_received
        self.pause_writing: Callable[[], None] = handler.pause_writing
        self.resume_writing: Callable[[], None] = handler.resume_writing
        self.failure: BaseException | None = None

    @classmethod
    def of(cls, transport: asyncio.Transport) -> ProtocolShim:
        """Return the one of a connection, which aiohttp has opened."""
        protocol: object = transport.get_protocol()
        if isinstance(protocol, cls):
            return protocol
        handler = cast("ResponseHandler", protocol)
        wire = cls(transport, handler)
        transport.set_protocol(cast("asyncio.Protocol", wire))
        handler.connection_made(cast("asyncio.Transport", wire))
        return wire

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_fit(self) -> bool:
        """Return whether the connection is open, with no byte on it that was not asked for."""
        closing = self._transport.is_closing()
        return not (closing or self._handler.should_close or _is_readable(self._transport))

    def begin(self) -> None:
        """Take note that a request goes out, and that the head of an answer is awaited."""
        self._recoding, self._head, self._content, self._overhead = True, b"", None, 0

    def watch(self, content: aiohttp.StreamReader) -> None:
        """Tell the reader of this content of every failure."""
        self._content = content
        self._seen = self._overhead = 0
        if self._ended:
            self._end()

    def shut_down(self) -> None:
        """Close the connection where its event loop has ended, which would close it otherwise."""
        with suppress(OSError):
            self._transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    # --- for aiohttp

    def write(self, data: bytes) -> None:
        """Write `data`; a head in Latin-1, as other libraries do, and not in UTF-8."""
        if self._recoding:
            self._recoding = False
            end = data.find(_HEAD_END)
            with suppress(UnicodeError):
                data = data[:end].decode().encode("latin-1") + data[end:]
        self._transport.write(data)

    def writelines(self, pieces: Iterable[bytes]) -> None:
        """Write all `pieces`."""
        self.write(b"".join(pieces))

    def close(self) -> None:
        """Close the connection, without waiting for a server that does not read the rest."""
        if self._closed:  # With TLS, asyncio then fails to tell how much is left to write.
            return
        self._closed = True
        if self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._transport.close()

    # --- for asyncio

    def data_received(self, data: bytes) -> None:
        """Hand over what came: a head apart from its body, which may break what came at once."""
        while self._head is not None and data:
            seen = len(self._head)
            self._head += data
            found = self._head.find(_HEAD_END, max(0, seen - 3))
            end = found + len(_HEAD_END) - seen if found >= 0 else len(data)
            self._take(data[:end])
            data = data[end:]
            if found >= 0:
                interim = self._head[9:10] == b"1" and self._head[9:12] != b"101"
                self._head = b"" if interim else None
        if data:
            self._take(data)

    def _take(self, data: bytes) -> None:
        self._handler.data_received(data)
        content = self._content
        if content is not None and content.is_eof():  # What comes now is another's.
            self._content = content = None
        if content is not None and content.total_bytes != self._seen:
            self._seen, self._overhead = content.total_bytes, 0
        elif content is not None or self._head is not None:
            self._overhead += len(data)
            if self._overhead > MAX_OVERHEAD_BYTES:
                what = "head" if content is None else "framing"
                problem = f"the answer's {what} takes more than {MAX_OVERHEAD_BYTES} bytes"
                self._handler.set_exception(HttpProcessingError(code=400, message=problem))
                self._transport.abort()
        if isinstance(self._handler.exception(), HttpProcessingError):
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end of the connection."""
        self._handler.connection_lost(exc)
        self._end()

    def _end(self) -> None:
        """Take note that no more content comes, and tell its reader, as aiohttp does not always."""
        self._ended = True
        if self.failure is None:
            self.failure = self._handler.exception()
        content = self._content
        if content is not None and not content.is_eof() and content.exception() is None:
            closed = aiohttp.ClientConnectionError("the connection was closed")
            content.set_exception(self.failure or closed)


def _is_readable(transport: asyncio.Transport) -> bool:
    """Return whether bytes have come, or the end, which the event loop has not looked at yet."""
    ready: list[tuple[int, int]] = []
    with suppress(AttributeError):  # On Windows there is no poll, and the loop is always reading.
        poll = select.poll()
        poll.register(transport.get_extra_info("socket"), select.POLLIN)
        ready = poll.poll(0)
    return bool(ready)


class RequestBody(aiohttp.Payload):
    """A request's body, maybe empty: aiohttp asks for it just before it writes the first byte.

    Attributes:
        reused: whether the connection is one from the pool.
        begun: whether any byte may have been sent.
        unfit: whether the connection is none to send anything over.
        failure: what ended the writing.
        wire: the connection that it went out over.
    """

    def __init__(self, body: bytes, silence: float | None) -> None:
        super().__init__(body)
        self._body = body
        self._silence = silence
        self.reused: bool = False
        self.begun: bool = False
        self.unfit: bool = False
        self.failure: Exception | None = None
        self.wire: ProtocolShim | None = None

    @property
    def size(self) -> int:
        """The number of bytes."""
        return len(self._body)

    @property
    def autoclose(self) -> bool:
        """Whether nothing needs to be closed, where a middleware replaces it."""
        return True

    def read(self) -> bytes:
        """Return the bytes, for a recorder such as vcrpy, which takes this for a file."""
        return self._body

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the body as text, for a middleware that signs it."""
        return self._body.decode(encoding, errors)

    def prepare(self) -> None:
        """Get ready to be sent, for the first time or once more."""
        self.reused = self.begun = self.unfit = False
        self.failure = self.wire = None

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write the body, and with it the head; raises `WriteTimeout`."""
        transport = cast("StreamWriter", writer).transport  # None if the connection is lost.
        self.unfit = self.reused and (transport is None or not ProtocolShim.of(transport).is_fit())
        if transport is None or self.unfit:
            raise aiohttp.ClientConnectionError("the connection has come to its end")
        self.begun = True
        self.wire = ProtocolShim.of(transport)
        self.wire.begin()
        try:
            await self._write(writer)
        except BaseException as error:
            if isinstance(error, Exception):
                self.failure = self.failure or error
            transport.abort()  # Closing would wait until the server has taken what is written.
            raise

    async def _write(self, writer: AbstractStreamWriter) -> None:
        if len(self._body) <= _SMALL_BODY_BYTES:
            if self._body:
                await writer.write(self._body)
            return
        for start in range(0, len(self._body), _WRITE_BYTES):
            await self._in_time(writer.write(self._body[start : start + _WRITE_BYTES]))
        await self._in_time(writer.drain())

    async def _in_time(self, writing: Awaitable[None]) -> None:
        silence = NEVER if self._silence is None else self._silence
        timer = asyncio.get_running_loop().call_later(silence, self._expire)
        try:
            await writing
        finally:
            timer.cancel()

    def _expire(self) -> None:
        self.failure = timed_out(WriteTimeout, self._silence)
        cast("ProtocolShim", self.wire).abort()
