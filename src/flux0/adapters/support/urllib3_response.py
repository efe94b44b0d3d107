"""Reading of urllib3's responses and errors, for the transports over urllib3 and over requests.

A body is read from the buffer below http.client, and its framing undone here (RFC 9112, sections 6
and 7). Of what is above, only `read1` hands over what has arrived without waiting for more. It
costs three times as much for each chunk, and takes a connection that ends within the last chunk
for a whole body.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import BadStatusLine, HTTPException, HTTPResponse, IncompleteRead
from io import BufferedReader
from threading import Lock
from traceback import walk_tb
from typing import Any, Final
from weakref import finalize

from urllib3 import HTTPResponse as Urllib3Response, exceptions

from flux0.adapters.support.decompression import Inflater
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

ACCEPT_ENCODING: Final = "gzip, deflate"  # What is undone here, and no more.

_BLOCK_BYTES: Final = 64 * 1024
_LARGEST_PIECE: Final = 64 * 1024
_LONGEST_LINE: Final = 64 * 1024
_HTTP_1_1: Final = 11


class Blocks:
    """A request's body, to be sent in blocks, each within urllib3's timeout.

    urllib3 writes with the timeout for connecting, and all of a body that is `bytes` within one.
    """

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._body), _BLOCK_BYTES):
            yield self._body[start : start + _BLOCK_BYTES]

    @classmethod
    def of(cls, body: bytes | None) -> bytes | Blocks | None:
        """Return `body` as it is to be sent; a small one needs no blocks."""
        return cls(body) if isinstance(body, bytes) and len(body) > _BLOCK_BYTES else body


class ResponseBody:
    """The body of a response, as `ByteStream` says.

    Args:
        reading: where the pieces come from.
        retain: is given the body once it was read whole, for users to find in `raw_response`.
    """

    def __init__(self, reading: Reading, retain: Callable[[bytes], None] | None) -> None:
        self._reading = reading
        self._pieces = reading.pieces() if retain is None else _retaining(reading, retain)
        # Not __del__, which comes too late for a socket that is garbage together with this.
        finalize(self, reading.close).atexit = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self._reading.home.check()
        for piece in self._pieces:
            return piece
        if self._reading.ended:
            raise StopIteration
        raise ConnectionInterrupted("the body was left before its end")

    def close(self) -> None:
        """Release the connection; whoever waits for the next piece is woken and raises."""
        self._reading.close()


def _retaining(reading: Reading, retain: Callable[[bytes], None]) -> Iterator[bytes]:
    pieces: list[bytes] = []
    for piece in reading.pieces():
        pieces.append(piece)
        yield piece
    retain(b"".join(pieces))


class Reading:
    """The reading of one response, which another thread or a garbage collector may end.

    Args:
        response: its content not loaded.
        under_way: has all readings of a transport that are not over yet.

    Attributes:
        home: the process that may read it.
        ended: whether the body was read whole.
    """

    def __init__(self, response: Urllib3Response, under_way: set[Reading]) -> None:
        self._response = response
        self._under_way = under_way
        self._socket = _socket(response)
        self._busy = Lock()
        self._giving_back = Lock()
        self._closed = False
        self.home = Home()
        self.ended = False
        under_way.add(self)

    def set_timeout(self, silence: float | None) -> None:
        """Have no piece waited for longer than `silence`, in seconds."""
        if self._socket is not None:
            self._socket.settimeout(silence)

    def pieces(self) -> Iterator[bytes]:
        """Yield the pieces, decompressed."""
        try:
            inflater = _inflater(self._response)
            if inflater is None:
                yield from self._received()
            else:
                for data in self._received():
                    yield from inflater.feed(data)
                inflater.end()
        except BaseException:  # An interrupt leaves the framing unknown.
            self.close()
            raise
        self.ended = True

    def close(self) -> None:
        """Close the connection, unless it was given back, and free its place in the pool."""
        if self.home.is_left():
            return
        self._closed = True
        self._shut_down()
        # A reader that is at work is woken by that and comes here itself; do not wait for it.
        if self._busy.acquire(blocking=False):
            try:
                self._release()
            finally:
                self._busy.release()

    def _received(self) -> Iterator[bytes]:
        pieces = _pieces(self._response)
        busy = self._busy
        while True:
            try:
                with busy:
                    piece = b"" if self._closed else next(pieces, b"")
                    if not piece and not self._closed:
                        self._give_back()
            except (HTTPException, OSError) as error:
                raise _broken_off(error) from error
            if self._closed:
                raise ConnectionInterrupted("the body was closed before its end")
            if not piece:
                return
            yield piece

    def _give_back(self) -> None:
        """Return the connection to its pool: the body was read whole."""
        with self._giving_back:
            self._socket = None
        _file(self._response).close()
        self._response.release_conn()
        self._under_way.discard(self)

    def _release(self) -> None:
        with suppress(OSError, exceptions.HTTPError):
            self._response.close()
            self._response.release_conn()
        self._under_way.discard(self)

    def _shut_down(self) -> None:
        with self._giving_back:
            if self._socket is not None:
                # The plain socket's method: that of SSLSocket drops the TLS layer under a reader.
                # TypeError: TLS within TLS is no socket. A reader there waits for its timeout.
                with suppress(OSError, TypeError):
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def _file(response: Urllib3Response) -> Any:
    """Return the response of http.client, or the file that something has put in its place."""
    return response._fp  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


def _socket(response: Urllib3Response) -> socket.socket | None:
    # Not that of `response.connection`, which has none if it will be closed after this answer.
    buffer = getattr(_file(response), "fp", None)
    return getattr(getattr(buffer, "raw", None), "_sock", None)


def _inflater(response: Urllib3Response) -> Inflater | None:
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding in ("identity", ""):
        return None
    if coding in ("gzip", "x-gzip", "deflate"):
        return Inflater()
    raise ProtocolError(f"the body is encoded as {coding!r}, which was not asked for")


def _pieces(response: Urllib3Response) -> Iterator[bytes]:
    """Yield what arrives, when it arrives, up to the end that the framing gives the body."""
    file = _file(response)
    if not isinstance(file, HTTPResponse):
        yield from _until_end(file)
    elif file.isclosed():  # By a hook of the user's.
        raise IncompleteRead(b"")
    elif file.chunked:
        yield from _chunks(file.fp)
    elif file.length is not None:
        yield from _sized(file.fp, file.length)
    elif "transfer-encoding" in response.headers or "content-length" in response.headers:
        raise HTTPException("the framing of the body is unknown")
    elif _is_cut_off(file):
        raise IncompleteRead(b"")
    else:
        yield from _until_end(file.fp)


def _is_cut_off(file: HTTPResponse) -> bool:
    """Whether the connection ended where it should go on after a head without framing.

    http.client takes a head that was cut off for a whole one. Closing without notice is how such
    a body ends in HTTP/1.0 alone.
    """
    announced = "close" in (file.getheader("connection") or "").lower()
    return file.version == _HTTP_1_1 and not announced and not file.fp.peek(1)


def _until_end(file: Any) -> Iterator[bytes]:
    read = getattr(file, "read1", file.read)
    while piece := read(_LARGEST_PIECE):
        yield piece


def _sized(buffer: BufferedReader, size: int) -> Iterator[bytes]:
    while size:
        piece = buffer.read1(min(size, _LARGEST_PIECE))
        if not piece:
            raise IncompleteRead(b"", size)
        size -= len(piece)
        yield piece


def _chunks(buffer: BufferedReader) -> Iterator[bytes]:
    while size := _chunk_size(buffer):
        # As _sized does, but without a generator for each chunk.
        while size:
            piece = buffer.read1(size if size < _LARGEST_PIECE else _LARGEST_PIECE)
            if not piece:
                raise IncompleteRead(b"", size)
            size -= len(piece)
            yield piece
        if _line(buffer).strip():
            raise HTTPException("a chunk is longer than it says")
    while _line(buffer).strip():
        pass  # The fields of the trailer.


def _chunk_size(buffer: BufferedReader) -> int:
    digits = _line(buffer).split(b";", 1)[0].strip()
    if not digits.isalnum():  # int() takes signs and underscores, too.
        raise HTTPException(f"a chunk has the size {digits[:20]!r}")
    try:
        return int(digits, 16)
    except ValueError:
        raise HTTPException(f"a chunk has the size {digits[:20]!r}") from None


def _line(buffer: BufferedReader) -> bytes:
    line = buffer.readline(_LONGEST_LINE)
    if line.endswith(b"\n"):
        return line
    if len(line) < _LONGEST_LINE:
        raise IncompleteRead(line)
    raise HTTPException("a line between chunks is too long")


def _broken_off(error: HTTPException | OSError) -> TransportError:
    """Return what a failure to read a body means."""
    if isinstance(error, TimeoutError):
        return ReadTimeout("nothing came for too long")
    if isinstance(error, IncompleteRead):
        return ConnectionInterrupted("the connection ended within the body")
    kind = ProtocolError if isinstance(error, HTTPException) else ConnectionInterrupted
    return kind(_text(error))


def translated(error: BaseException) -> TransportError:
    """Return what a failure to send a request, or to get the head of its answer, means.

    `error` is urllib3's, or wraps one. The message is that of the innermost error: those around it
    quote the URL, which may hold a credential.
    """
    chain = tuple(_chain(error))
    return _kind(chain)(_text(chain[-1]))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it wraps, in whichever way, down to the innermost."""
    while error is not None:
        yield error
        inner = (getattr(error, "reason", None), *reversed(error.args), error.__cause__)
        error = next((each for each in inner if isinstance(each, BaseException)), None)


def _kind(chain: tuple[BaseException, ...]) -> type[TransportError]:
    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(each, kinds) for each in chain)

    kind: type[TransportError]
    if has(exceptions.EmptyPoolError):
        kind = PoolTimeout
    elif has(*_NOT_CONNECTED) or any(_is_from_connecting(each) for each in chain):
        if has(exceptions.NewConnectionError):  # Which is a ConnectTimeoutError, whatever it says.
            kind = ConnectError
        elif has(exceptions.ConnectTimeoutError, TimeoutError):
            kind = ConnectTimeout
        else:
            kind = TLSError if has(exceptions.SSLError) else ConnectError
    elif has(exceptions.ReadTimeoutError):
        kind = ReadTimeout
    elif has(TimeoutError):
        kind = WriteTimeout
    else:
        kind = ConnectionInterrupted if _ended_early(chain[-1]) else ProtocolError
    return kind


_NOT_CONNECTED = (
    exceptions.ClosedPoolError,
    exceptions.ConnectTimeoutError,
    exceptions.LocationValueError,
    exceptions.ProxyError,
    UnicodeError,  # The standard library cannot encode the host's name.
)


def _is_from_connecting(error: BaseException) -> bool:
    """Whether a connection was still being made, TLS and a proxy's tunnel included.

    urllib3 raises the same errors for a handshake and for an answer.
    """
    return any(
        frame.f_code.co_name == "connect" and frame.f_globals["__name__"] == "urllib3.connection"
        for frame, _ in walk_tb(error.__traceback__)
    )


def _ended_early(error: BaseException) -> bool:
    if isinstance(error, BadStatusLine) and not isinstance(error, ConnectionError):
        line = str(error)
        return "HTTP/".startswith(line[:5]) and not line.endswith("\n")
    return isinstance(error, (OSError, IncompleteRead))


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
