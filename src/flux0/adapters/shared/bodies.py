"""Base classes for response bodies that the caller pulls piece by piece."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from threading import Lock, RLock
from typing import ClassVar
from weakref import WeakSet, finalize

from flux0.adapters.shared.decompression import decoder_for
from flux0.domain.errors import (
    ConnectionInterrupted,
    Flux0Error,
    TransportError,
    mark_user_error,
)
from flux0.runtime.processes import OwnerProcess, run_in_new_thread


class PulledBody(ABC):
    """A response body that is received and decompressed when the caller pulls the next piece.

    Attributes:
        finished: Whether the body was read to its end.
        closed: Whether the body was closed, or reading it has failed.
        retained: The decoded pieces so far, if they are needed again; otherwise None.
    """

    def __init__(self, coding: str) -> None:
        self.finished: bool = False
        self.closed: bool = False
        self.retained: list[bytes] | None = None
        self._decoder = decoder_for(coding)
        self._decoded: Iterator[bytes] = iter(())
        self._read_lock = Lock()
        # A finished body's connection may serve the next request, and must not be shut down. So
        # `finished` is set, and the connection is shut down, under this lock. It is reentrant,
        # because the garbage collector may call `close` while the same thread holds it.
        self._end_lock = RLock()

    @abstractmethod
    def _translate_error(self, error: BaseException) -> TransportError | None:
        """Return the flux0 error for a library's error; None if the user's code raised it."""

    def _start_reading(self) -> None:
        """Acquire the read lock, or raise if the body is closed or has another reader."""
        if self.closed and not self.finished:
            raise ConnectionInterrupted("the body was closed before its end")
        if not self._read_lock.acquire(blocking=False):
            raise Flux0Error("another thread or task is reading this body")

    def _mark_closed(self) -> bool:
        """Mark the body as closed; return whether it was closed before."""
        closed, self.closed = self.closed, True
        return closed

    def _next_decoded(self) -> bytes | None:
        """Return the next piece of the data that was received last; None if no piece is left."""
        piece = next(self._decoded, None)
        if piece is not None and self.retained is not None:
            self.retained.append(piece)
        return piece

    def _decode(self, data: bytes | None) -> bytes | None:
        """Return the first decoded piece of received data, or None at the end of the body.

        The piece is empty if the data does not complete any content yet.
        """
        if data is None:
            if self.closed:  # Another thread closed the body, which may look like its end.
                raise EOFError
            if self._decoder is not None:
                self._decoder.end()
            with self._end_lock:
                self.finished = True
            return None
        if self._decoder is not None:
            self._decoded = self._decoder.feed(data)
            data = next(self._decoded, b"")
        if self.retained is not None:
            self.retained.append(data)
        return data

    def _error_to_raise(self, error: BaseException, *, closed: bool) -> TransportError | None:
        """Return the error to raise in place of `error`; None to raise `error` itself.

        `closed` says whether the body was closed before the error.
        """
        if closed and isinstance(error, Exception):
            return ConnectionInterrupted("the body was closed while it was read")
        return self._translate_error(error)


class AsyncPulledBody(PulledBody):
    """A `PulledBody` for async code."""

    @abstractmethod
    async def _receive(self) -> bytes | None:
        """Return the next bytes, waiting if necessary; None at the end of the body."""

    @abstractmethod
    async def _on_finished(self) -> None:
        """Release the connection after the body was read to its end."""

    @abstractmethod
    async def _on_failure(self, error: BaseException, /) -> None:
        """Release the connection after `error` was raised."""

    async def pull(self) -> bytes | None:
        """Return the next piece, or None at the end."""
        self._start_reading()
        try:
            piece = None if self._decoder is None else self._next_decoded()
            if piece is None and not self.finished:
                try:
                    data = await self._receive()
                except Flux0Error as error:
                    mark_user_error(error, sent=True)
                    raise
                piece = self._decode(data)
                if piece is None:
                    await self._on_finished()
        except BaseException as error:
            closed = self._mark_closed()
            await self._on_failure(error)
            translated = self._error_to_raise(error, closed=closed)
            if translated is None:
                raise
            raise translated from error
        finally:
            self._read_lock.release()
        return piece


class SyncPulledBody(PulledBody):
    """A `PulledBody` for sync code. Other threads and the garbage collector may close it."""

    # References that prevent garbage collection. Collecting a body closes it, with locks of its
    # connection pool. In a forked child, and while the interpreter exits, another thread may have
    # held these locks and no longer runs, so the collection would wait forever. The set is not a
    # module global, because the interpreter clears module globals while it exits.
    _never_collected: ClassVar[set[SyncPulledBody]] = set()

    def __init__(self, coding: str) -> None:
        super().__init__(coding)
        self._owner = OwnerProcess()
        self._released = False

    @abstractmethod
    def _receive(self) -> bytes | None:
        """Return the next bytes, waiting if necessary; None at the end of the body."""

    @abstractmethod
    def _on_finished(self) -> None:
        """Release the connection after the body was read to its end."""

    @abstractmethod
    def _shut_down(self) -> None:
        """Shut the connection down and wake its reader; acquire no lock and never raise."""

    @abstractmethod
    def _release(self) -> None:
        """Release the connection; never raise. It may acquire locks of the connection pool."""

    def pull(self) -> bytes | None:
        """Return the next piece, or None at the end."""
        self._owner.check()
        self._start_reading()
        try:
            piece = None if self._decoder is None else self._next_decoded()
            if piece is None and not self.finished:
                try:
                    data = self._receive()
                except Flux0Error as error:
                    mark_user_error(error, sent=True)
                    raise
                piece = self._decode(data)
                if piece is None:
                    self._on_finished()
        except BaseException as error:
            closed = self._mark_closed()
            self._released = True
            self._shut_down()
            self._release()
            translated = self._error_to_raise(error, closed=closed)
            if translated is None:
                raise
            raise translated from error
        finally:
            self._read_lock.release()
            if self.closed:  # Another thread may have closed the body after the last receive.
                self.close()
        return piece

    def close(self) -> None:
        """Release the connection without waiting for a lock of the connection pool.

        The garbage collector may call this method anywhere, even while the same thread holds a lock
        of the pool. Another thread does the work that may acquire such a lock.
        """
        if self._owner.is_inherited():
            self._never_collected.add(self)
            return
        self._mark_closed()
        with self._end_lock:
            if self.finished or self._released:
                return
            self._shut_down()
        # If the body has a reader, the shutdown wakes the reader, which releases the connection.
        if self._read_lock.acquire(blocking=False) and not run_in_new_thread(self._release):
            self._never_collected.add(self)


class SyncBody:
    """The `ByteStream` over a `SyncPulledBody`. Its finalizer closes the pulled body."""

    def __init__(self, body: SyncPulledBody) -> None:
        self._body = body
        # Not __del__: if the collector finds the body's generators at the same time, it may close
        # them first, with locks of the connection pool.
        finalize(self, body.close).atexit = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        piece = self._body.pull()
        if piece is None:
            raise StopIteration
        return piece

    def close(self) -> None:
        """Release the connection; a thread that waits for the next piece gets an error."""
        self._body.close()


class OpenBodies:
    """The sync bodies of one transport, which are closed together with it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._bodies: WeakSet[SyncBody] = WeakSet()

    def add(self, body: SyncBody) -> None:
        """Track `body` until it is garbage-collected."""
        with self._lock:
            self._bodies.add(body)

    def close(self) -> None:
        """Close all tracked bodies."""
        with self._lock:
            bodies = tuple(self._bodies)
        for body in bodies:
            body.close()
