"""A transport over sockets and h11, which implements HTTP/1.1 without I/O."""

from __future__ import annotations

import socket
import ssl
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from threading import Lock
from time import monotonic
from urllib.parse import SplitResult, urlsplit
from weakref import WeakSet, finalize

import h11

from flux0.domain.headers import Headers
from flux0.domain.http import is_framed
from flux0.models import (
    ConnectError,
    ConnectionInterrupted,
    ConnectTimeout,
    ProtocolError,
    ReadTimeout,
    TLSError,
    TransportError,
    WriteTimeout,
)
from flux0.ports import Request, Response

PIECE_BYTES = 65536
MAX_HEAD_BYTES = 65536  # Also limits the trailers and each chunk header.
MAX_INTERIM_RESPONSES = 20
MAX_IDLE_SECONDS = 4.0

# For each phase: library exceptions, and their flux0 errors. The first match is used.
Errors = tuple[tuple[type[Exception], type[TransportError]], ...]
CONNECTING: Errors = (
    (TimeoutError, ConnectTimeout),
    (ssl.SSLError, TLSError),
    (OSError, ConnectError),
    (UnicodeError, ConnectError),  # The host name is not a valid name.
)
WRITING: Errors = (
    (TimeoutError, WriteTimeout),
    (OSError, ConnectionInterrupted),
)
READING: Errors = (
    (TimeoutError, ReadTimeout),
    (OSError, ConnectionInterrupted),
    (EOFError, ConnectionInterrupted),
    (h11.RemoteProtocolError, ProtocolError),
    (zlib.error, ProtocolError),
)


@contextmanager
def translated(errors: Errors) -> Generator[None, None, None]:
    """Raise flux0 errors instead of the libraries' exceptions."""
    try:
        yield
    except tuple(raised for raised, _ in errors) as error:
        error_class = next(each for raised, each in errors if isinstance(error, raised))
        raise error_class(str(error) or repr(error)) from error


class H11Transport:
    """Sends requests over sockets, and reuses connections."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._context = context or ssl.create_default_context()
        self._lock = Lock()
        self._idle: dict[tuple[str, str], list[Connection]] = {}
        self._bodies: WeakSet[Body] = WeakSet()

    def send(self, request: Request) -> Response[Body]:
        url = urlsplit(request.url)
        connection = self._pop_idle(url)
        if connection is None:
            with translated(CONNECTING):
                connection = Connection(url, request.timeout.connect, self._context)
        try:
            request.interrupt.on_fire(connection.shut_down)
            with translated(WRITING):
                connection.write(url, request)
            with translated(READING):
                head = connection.read_head(request.timeout.read)
        except BaseException:
            connection.close()
            raise
        finally:
            request.interrupt.clear()
        pairs = ((name.decode(), value.decode("latin-1")) for name, value in head.headers)
        headers = Headers(tuple(pairs))
        body = Body(self, connection, headers.get("content-encoding", "identity").lower())
        with self._lock:
            self._bodies.add(body)
        return Response(head.status_code, headers, body, head, not is_framed(headers))

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, {}
            bodies = tuple(self._bodies)
        for body in bodies:
            body.close()
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def release(self, connection: Connection) -> None:
        if connection.prepare_reuse():
            with self._lock:
                self._idle.setdefault(connection.origin, []).append(connection)
        else:
            connection.close()

    def _pop_idle(self, url: SplitResult) -> Connection | None:
        while True:
            with self._lock:
                connections = self._idle.get((url.scheme, url.netloc))
                if not connections:
                    return None
                connection = connections.pop()
            if connection.is_usable():
                return connection
            connection.close()


class Connection:
    """A socket and its HTTP state."""

    def __init__(
        self, url: SplitResult, timeout: float | None, context: ssl.SSLContext
    ) -> None:
        self.origin = (url.scheme, url.netloc)
        secure = url.scheme == "https"
        address = (url.hostname or "", url.port or (443 if secure else 80))
        self.socket = socket.create_connection(address, timeout)
        try:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if secure:
                self.socket = context.wrap_socket(
                    self.socket, server_hostname=url.hostname
                )
        except BaseException:
            self.socket.close()
            raise
        self.timeout: float | None = None  # Limits the next read.
        self._state = h11.Connection(h11.CLIENT, MAX_HEAD_BYTES)
        self._idle_since = 0.0

    def write(self, url: SplitResult, request: Request) -> None:
        defaults = Headers((("host", url.netloc), ("accept-encoding", "gzip")))
        fields = defaults.merge(request.headers).pairs
        if request.body is not None:
            fields = (*fields, ("content-length", str(len(request.body))))
        head = h11.Request(
            method=request.method,
            target=f"{url.path or '/'}?{url.query}" if url.query else url.path or "/",
            headers=[(name.encode(), value.encode("latin-1")) for name, value in fields],
        )
        events = (head, h11.Data(request.body or b""), h11.EndOfMessage())
        self.socket.settimeout(request.timeout.write)
        self.socket.sendall(b"".join(self._state.send(event) or b"" for event in events))

    def read_head(self, timeout: float | None) -> h11.Response:
        self.timeout = timeout
        for _ in range(MAX_INTERIM_RESPONSES):
            event = self._read_event()
            if isinstance(event, h11.Response):
                return event
        raise h11.RemoteProtocolError(
            f"more than {MAX_INTERIM_RESPONSES} interim responses"
        )

    def read_body(self) -> Iterator[bytes]:
        while isinstance(event := self._read_event(), h11.Data):
            yield bytes(event.data)

    def _read_event(self) -> object:
        """Return the next event. All socket reads share the timeout."""
        ended = False
        end = None if self.timeout is None else monotonic() + self.timeout
        try:
            while (event := self._state.next_event()) is h11.NEED_DATA:
                left = None if end is None else end - monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError("no content received within the timeout")
                self.socket.settimeout(left)
                data = self.socket.recv(PIECE_BYTES)
                ended = not data
                self._state.receive_data(data)
        except h11.RemoteProtocolError as error:
            if ended:
                raise EOFError(str(error)) from error
            raise
        return event

    def prepare_reuse(self) -> bool:
        """Return whether the connection can be reused; if so, prepare it."""
        finished = set(self._state.states.values()) == {h11.DONE}
        if not finished or self._state.trailing_data != (b"", False):
            return False
        self._state.start_next_cycle()
        self._idle_since = monotonic()
        return True

    def is_usable(self) -> bool:
        """Return whether the idle connection is open, recent and fully read."""
        if monotonic() - self._idle_since > MAX_IDLE_SECONDS:
            return False
        self.socket.settimeout(0)
        try:
            self.socket.recv(1)  # Surplus data, or b"" if the server has closed it.
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            pass
        return False

    def shut_down(self) -> None:
        """End a read or write in another thread."""
        # SSLSocket.shutdown would remove the TLS layer.
        with suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)

    def close(self) -> None:
        self.shut_down()
        self.socket.close()


class Body:
    """The body of a response, read from its connection."""

    def __init__(
        self, transport: H11Transport, connection: Connection, coding: str
    ) -> None:
        self._transport = transport
        self._connection = connection
        self._pieces = decoded(connection.read_body(), coding)
        self._closed = False
        # The finalizer must not take a lock: the garbage collector may run at any time,
        # even while the same thread holds that lock.
        self._finalizer = finalize(self, connection.close)

    def read(self, timeout: float | None) -> bytes | None:
        self._connection.timeout = timeout
        try:
            with translated(READING):
                self._check_open()
                piece = next(self._pieces, None)
                self._check_open()  # Another thread may have closed the body.
        except TransportError:
            self.close()
            raise
        if piece is None and self._finalizer.detach():
            self._transport.release(self._connection)
        return piece

    def _check_open(self) -> None:
        if self._closed:
            raise EOFError("the body was closed before its end")

    def close(self) -> None:
        self._closed = True
        self._finalizer()


def decoded(pieces: Iterator[bytes], coding: str) -> Iterator[bytes]:
    if coding == "identity":
        yield from pieces
    elif coding in ("gzip", "x-gzip"):
        yield from decompressed(pieces)
    else:
        raise h11.RemoteProtocolError(f"unsupported content-encoding: {coding!r}")


def decompressed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress gzip data, in pieces of at most `PIECE_BYTES` bytes."""
    member = zlib.decompressobj(wbits=31)
    started = False
    for arrived in pieces:
        data = arrived
        started = unfinished = True
        while unfinished:
            if member.eof:  # A gzip body may have several members.
                member = zlib.decompressobj(wbits=31)
            piece = member.decompress(data, PIECE_BYTES)
            yield piece  # Even if it is empty: the timeout limits one socket read.
            data = member.unused_data or member.unconsumed_tail
            unfinished = bool(data) or (len(piece) == PIECE_BYTES and not member.eof)
    if started and not member.eof:
        raise EOFError("the body ended before its compressed data was complete")
