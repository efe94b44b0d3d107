"""Reading of the responses and errors of httpx, and of libraries that are made like it."""

from __future__ import annotations

import socket
import ssl
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from functools import partial
from types import AsyncGeneratorType
from typing import TYPE_CHECKING, Any, cast

from attrs import frozen

from flux0.adapters.support.decompression import KNOWN_CODINGS, decoder_for
from flux0.adapters.support.event_loop import close_soon, running_loop, shielded, unwind
from flux0.adapters.support.processes import Home
from flux0.domain.errors import (
    ConnectError,
    ConnectionInterrupted,
    ConnectTimeout,
    PoolTimeout,
    ProtocolError,
    ReadTimeout,
    TLSError,
    TransportError,
    WriteTimeout,
)
from flux0.ports import Request

if TYPE_CHECKING:
    import httpx

# What h11 and httpcore say when a connection ends where HTTP goes on.
_ENDED_EARLY = ("closed connection", "Server disconnected", "ConnectionTerminated")


@frozen
class Errors:
    """What one library raises, and what it stands for."""

    raised: tuple[type[Exception], ...]
    translations: tuple[tuple[type[Exception], type[TransportError]], ...]

    @classmethod
    def of(cls, library: Any) -> Errors:
        """Return the errors of a module that has the names of httpx."""
        return cls(
            raised=(
                library.HTTPError,
                library.InvalidURL,
                library.StreamError,
                # anyio lets it pass when what comes is not decryptable.
                ssl.SSLError,
                # The standard library cannot encode the name of the host.
                UnicodeError,
            ),
            translations=(
                (library.ConnectTimeout, ConnectTimeout),
                (library.PoolTimeout, PoolTimeout),
                (library.ReadTimeout, ReadTimeout),
                (library.WriteTimeout, WriteTimeout),
                (library.ConnectError, ConnectError),
                (library.ProxyError, ConnectError),
                (library.UnsupportedProtocol, ConnectError),
                (library.InvalidURL, ConnectError),
                (UnicodeError, ConnectError),
                (library.NetworkError, ConnectionInterrupted),
                (ssl.SSLError, ConnectionInterrupted),
            ),
        )

    def translated(self, error: Exception) -> TransportError:
        """Return the error of ours that one of `raised` stands for."""
        pairs = self.translations
        kind = next((to for raised, to in pairs if isinstance(error, raised)), ProtocolError)
        text = str(error) or type(error).__name__
        if kind is ConnectError and _is_tls(error):
            kind = TLSError
        elif kind is ProtocolError and any(words in text for words in _ENDED_EARLY):
            kind = ConnectionInterrupted
        return kind(text)


def _is_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False


class Reading:
    """What is known of a response while its body is read.

    Attributes:
        response: the library's response.
        errors: what it may raise.
        decoder: what its pieces go through, or None.
        raw: whether the library is not to decode them.
        ended: whether the whole body was read.
        closed: whether it was left.
    """

    def __init__(
        self, request: Request, built: httpx.Request, response: httpx.Response, errors: Errors
    ) -> None:
        self.response = response
        self.errors = errors
        self.ended = False
        self.closed = False
        coding = response.headers.get("content-encoding", "")
        # A hook, or a transport of the user's without sockets, has read the body already.
        self.raw = not response.is_stream_consumed and not _is_left_to_library(
            coding, built.headers.get("accept-encoding", "")
        )
        self.decoder = decoder_for(coding) if self.raw else None
        streaming = request.streams(response.status_code)
        self._retained: list[bytes] | None = None if streaming else []
        if streaming and "timeout" in built.extensions:
            # httpcore looks the read timeout up once more when it begins to read the body.
            built.extensions["timeout"]["read"] = request.timeout.idle

    def may_go_on(self) -> bool:
        """Whether there is more to read; raises if the body was left before its end."""
        if self.closed and not self.ended:
            raise ConnectionInterrupted("the body was closed before its end")
        return not self.ended

    def take(self, piece: bytes) -> bytes:
        """Take note of the next piece."""
        if self._retained is not None:
            self._retained.append(piece)
        return piece

    def end(self) -> None:
        """Take note that the response has ended; raises if its body has not."""
        if self.closed:  # Closing it in another thread may have been what ended it.
            raise ConnectionInterrupted("the body was closed while it was read")
        if self.decoder is not None:
            self.decoder.end()
        self.ended = True
        if self._retained is not None:
            # As `Response.read` does, so that users find the body in `raw_response`.
            self.response._content = b"".join(self._retained)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def _is_left_to_library(coding: str, accepted: str) -> bool:
    """Whether a body's coding is one that its library asked for, and that is not known here."""
    # Those it takes without their end for whole ones, and builds all that a piece grows to.
    if coding.strip().lower() in KNOWN_CODINGS:
        return False
    return all(name.strip().lower() in accepted for name in coding.split(","))


class SyncBody:
    """The body of a response, pulled by synchronous code."""

    def __init__(self, reading: Reading, transport: object) -> None:
        response = reading.response
        self._reading = reading
        self._transport = transport  # Its client must outlive the body.
        self._raw = response.iter_raw() if reading.raw else response.iter_bytes()
        self._decoded: Iterator[bytes] = iter(())
        self._busy = threading.Lock()
        self._home = Home()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self._home.check()
        reading = self._reading
        with self._busy:
            try:
                piece = self._pull() if reading.may_go_on() else None
            except BaseException as error:
                reading.closed = True
                _close(reading)
                if isinstance(error, reading.errors.raised):
                    raise reading.errors.translated(error) from error
                raise
        if piece is None:
            raise StopIteration
        return piece

    def _pull(self) -> bytes | None:
        """Return the next piece, or None at the end."""
        reading = self._reading
        while True:
            for piece in self._decoded:
                return reading.take(piece)
            data = next(self._raw, None)
            if data is None:
                reading.end()
                return None
            if reading.decoder is None:
                return reading.take(data)
            self._decoded = reading.decoder.feed(data)

    def close(self) -> None:
        """Release the connection; see `ByteStream.close`."""
        if self._home.is_left():
            return
        reading = self._reading
        reading.closed = True
        if self._busy.acquire(blocking=False):
            try:
                _close(reading)
            finally:
                self._busy.release()
        else:
            # Another thread is reading, and would wait on if its socket were closed under it.
            _shut_down(reading.response)

    def __del__(self) -> None:
        self.close()


def _close(reading: Reading) -> None:
    with suppress(*reading.errors.raised):
        reading.response.close()


def _shut_down(response: httpx.Response) -> None:
    stream = response.extensions.get("network_stream")
    # Other exchanges share a connection of HTTP/2.
    if stream is not None and response.http_version != "HTTP/2":
        with suppress(OSError):
            # Not that of SSLSocket, which would drop the TLS layer under the reader.
            socket.socket.shutdown(stream.get_extra_info("socket"), socket.SHUT_RDWR)


class AsyncBody:
    """The body of a response, pulled by asynchronous code."""

    def __init__(self, reading: Reading, transport: object) -> None:
        response = reading.response
        self._reading = reading
        self._transport = transport
        raw = response.aiter_raw() if reading.raw else response.aiter_bytes()
        self._raw = cast("AsyncGeneratorType[bytes, None]", raw)
        self._decoded: Iterator[bytes] = iter(())
        # Not __del__, which comes too late for a generator that is garbage together with this.
        self._release = partial(_release, response, self._raw, reading.errors.raised)
        self._forgotten = weakref.finalize(self, close_soon, running_loop(), self._release)
        self._forgotten.atexit = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        reading = self._reading
        try:
            piece = await self._pull() if reading.may_go_on() else None
        except BaseException as error:
            reading.closed = True
            if isinstance(error, Exception):
                await self.close_async()
            if isinstance(error, reading.errors.raised):
                raise reading.errors.translated(error) from error
            raise
        if piece is None:
            self._forgotten.detach()
            raise StopAsyncIteration
        return piece

    async def _pull(self) -> bytes | None:
        """Return the next piece, or None at the end."""
        reading = self._reading
        while True:
            for piece in self._decoded:
                return reading.take(piece)
            data = await anext(self._raw, None)
            if data is None:
                reading.end()
                return None
            if reading.decoder is None:
                return reading.take(data)
            self._decoded = reading.decoder.feed(data)

    async def close_async(self) -> None:
        """Release the connection; see `AsyncByteStream.close_async`."""
        reading = self._reading
        reading.closed = True
        self._forgotten.detach()
        if not reading.response.is_closed:
            await shielded(self._release)


async def _release(
    response: httpx.Response,
    raw: AsyncGeneratorType[bytes, None],
    raised: tuple[type[Exception], ...],
) -> None:
    if not raw.ag_running:  # If it is, another task waits, and gets an error from what follows.
        with suppress(*raised):
            await unwind(raw)
    with suppress(*raised):
        await response.aclose()
