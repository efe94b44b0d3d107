"""Reading of responses, and what errors mean, for the transports over urllib3 and over requests."""

from __future__ import annotations

import ssl
from _thread import start_new_thread
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPException, IncompleteRead
from io import BytesIO
from threading import Lock, RLock
from typing import Any, Final
from weakref import finalize

from urllib3 import BaseHTTPResponse, exceptions

from flux0.adapters.support.decompression import Decoder, decoder_for
from flux0.adapters.support.http_answer import shut_down
from flux0.adapters.support.processes import Home
from flux0.adapters.support.urllib3_connection import Exchange, NotingConnection
from flux0.domain.errors import (
    ConnectError,
    ConnectionInterrupted,
    ConnectTimeout,
    Flux0Error,
    PoolTimeout,
    ProtocolError,
    ReadTimeout,
    TLSError,
    TransportError,
    WriteTimeout,
)

ACCEPT_ENCODING: Final = {"Accept-Encoding": "gzip, deflate"}  # What is undone here, and no more.

_LARGEST_PIECE: Final = 64 * 1024
_LARGEST_BLOCK: Final = 64 * 1024


def in_blocks(body: bytes | None) -> bytes | BytesIO | None:
    """Return a request's body as it is to be written: a large one in blocks, each in its time."""
    return body if body is None or len(body) <= _LARGEST_BLOCK else BytesIO(body)


class ResponseBody:
    """The body of a response, as `ByteStream` says."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        # Not __del__, which comes too late for a socket that is garbage together with this.
        finalize(self, reading.abandon).atexit = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        piece = self._reading.next()
        if piece is None:
            raise StopIteration
        return piece

    def close(self) -> None:
        """Release the connection; whoever waits for the next piece is woken and raises."""
        self._reading.close()


class Reading:
    """The reading of one response, which another thread or a garbage collector may end.

    Over a connection that does not note, such as a recorder's, the library reads as it does: its
    timeout stays that for the head, and closing wakes nobody.

    Args:
        response: its content not loaded.
        under_way: has all readings of a transport that are not over yet.
        retain: is given the content once it was read whole.
    """

    def __init__(
        self,
        response: Any,
        under_way: set[Reading],
        retain: Callable[[bytes], object] | None = None,
    ) -> None:
        connection = getattr(response, "connection", None)
        answer = connection.answer if isinstance(connection, NotingConnection) else None
        received = _read_by_library(response) if answer is None else answer.pieces()
        # A recorder's response is none of urllib3's, and was decompressed when it was recorded.
        ours = isinstance(response, BaseHTTPResponse)
        decoder = decoder_for(response.headers.get("content-encoding", "") if ours else "")
        self._pieces = received if decoder is None else _decoded(received, decoder)
        self._wire = None if answer is None else answer.wire
        self._response = response
        self._under_way = under_way
        self._retain = retain
        self._content: list[bytes] = []
        self._busy = Lock()
        # Reentrant: a collector may run anywhere, even where this same reading is being closed.
        self._giving_back = RLock()
        self._home = Home()
        self._closed = False
        self._ended = False
        under_way.add(self)

    def set_timeout(self, silence: float | None) -> None:
        """Have no piece waited for longer than `silence`, in seconds."""
        if self._wire is not None:
            self._wire.settimeout(silence)

    def next(self) -> bytes | None:
        """Return the next piece, decompressed, or None at the end."""
        self._home.check()
        if not self._busy.acquire(blocking=False):
            raise Flux0Error("another thread is reading this body")
        try:
            piece = None if self._closed else next(self._pieces, None)
            if piece is not None:
                if self._retain is not None:
                    self._content.append(piece)
            elif not self._ended:
                self._end()
        except BaseException as error:  # An interrupt leaves the framing unknown.
            closed = self._closed
            self._shut_down()
            self._release()
            if not isinstance(error, (HTTPException, OSError, exceptions.HTTPError)):
                raise
            if closed:
                raise ConnectionInterrupted("the body was closed while it was read") from error
            raise _broken_off(error) from error
        finally:
            self._busy.release()
        return piece

    def close(self) -> None:
        """See `ResponseBody.close`."""
        if self._home.is_left():
            return
        self._shut_down()
        # A reader that is at work is woken by that and releases it; do not wait for it.
        if self._busy.acquire(blocking=False):
            try:
                self._release()
            finally:
                self._busy.release()

    def abandon(self) -> None:
        """Close the connection, and leave its place in the pool to a thread that holds no lock.

        A collector comes here, in any thread, which may be in the midst of the pool's own lock.
        """
        if self in self._under_way and not self._home.is_left():
            self._shut_down()
            with suppress(RuntimeError):  # The interpreter is ending.
                start_new_thread(self.close, ())

    def _end(self) -> None:
        """Return the connection to its pool: the body was read whole."""
        if self._closed:
            raise ConnectionInterrupted("the body was closed before its end")
        with self._giving_back:
            self._wire = None
        self._ended = True
        self._response.release_conn()
        self._under_way.discard(self)
        if self._retain is not None:
            self._retain(b"".join(self._content))

    def _release(self) -> None:
        with suppress(OSError, exceptions.HTTPError):
            self._response.close()
            self._response.release_conn()
        self._under_way.discard(self)

    def _shut_down(self) -> None:
        self._closed = True
        with self._giving_back:
            if self._wire is not None:
                shut_down(self._wire)


def _decoded(received: Iterator[bytes], decoder: Decoder) -> Iterator[bytes]:
    for data in received:
        yield from decoder.feed(data)
    decoder.end()


def _read_by_library(response: Any) -> Iterator[bytes]:
    if response.closed:  # By a hook of the user's.
        raise IncompleteRead(b"")
    options = {"decode_content": False} if isinstance(response, BaseHTTPResponse) else {}
    while piece := response.read1(_LARGEST_PIECE, **options):
        yield piece


def _broken_off(error: BaseException) -> TransportError:
    """Return what a failure to read a body means."""
    innermost = _chain(error)[-1]
    if isinstance(innermost, TimeoutError):
        return ReadTimeout("nothing came for too long")
    if isinstance(innermost, IncompleteRead):
        return ConnectionInterrupted("the connection ended within the body")
    return _sent_kind(innermost)(_text(innermost))


def translated(error: BaseException, exchange: Exchange) -> TransportError:
    """Return what a failure to send a request, or to get the head of its answer, means.

    `error` is the library's, or wraps one. The message is that of the innermost error: those
    around it quote the URL, which may hold a credential.
    """
    errors = _chain(error)

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(each, kinds) for each in errors)

    kind = _sent_kind(errors[-1])
    # urllib3 raises the two before a request has any connection.
    waited = has(exceptions.EmptyPoolError, exceptions.ClosedPoolError)
    if not exchange.sent and (waited or exchange.unconnected is not None):
        kind = ConnectError
        if has(exceptions.EmptyPoolError):
            kind = PoolTimeout
        elif has(TimeoutError):
            kind = ConnectTimeout
        elif has(exceptions.SSLError) and not has(*_CUT):
            kind = TLSError
    elif has(TimeoutError) and not has(exceptions.ReadTimeoutError):
        kind = WriteTimeout
    return kind(_text(errors[-1]))


# The other side ends the connection while TLS is agreed on: it refuses nothing.
_CUT = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError)


def _sent_kind(error: BaseException) -> type[TransportError]:
    if isinstance(error, TimeoutError):
        return ReadTimeout
    return ConnectionInterrupted if isinstance(error, (OSError, IncompleteRead)) else ProtocolError


def _chain(error: BaseException | None) -> tuple[BaseException, ...]:
    """Return an error and what it wraps, in whichever way, down to the innermost."""
    if error is None:
        return ()
    inner = (getattr(error, "reason", None), *reversed(error.args), error.__cause__)
    return (error, *_chain(next((each for each in inner if isinstance(each, BaseException)), None)))


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
