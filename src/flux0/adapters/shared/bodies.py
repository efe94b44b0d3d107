"""Base classes for response bodies that the caller pulls piece by piece."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from threading import Lock, RLock
from typing import Any, ClassVar, Final
from weakref import WeakSet, finalize

from flux0.adapters.shared.decompression import decoder_for
from flux0.domain.errors import (
    ConnectionInterrupted,
    Flux0Error,
    TransportError,
    mark_user_error,
)
from flux0.runtime.processes import OwnerProcess, run_in_new_thread

# The argument `blocking` of `Lock.acquire`. Passing it by name doubles the time of the call.
_NO_WAIT: Final = False


class PulledBody(ABC):
    """A response body that is received and decompressed when the caller pulls the next piece.

    Attributes:
        finished: Whether the body was read to its end.
        closed: Whether the body was closed, or reading the body has failed.
        retained: The decoded pieces so far, if the user may read the body again; otherwise None.
    """

    _end_lock: AbstractContextManager[Any] = nullcontext()  # Only sync bodies need a lock.

    def __init__(self, coding: str) -> None:
        self.finished: bool = False
        self.closed: bool = False
        self.retained: list[bytes] | None = None
        self._decoder = decoder_for(coding)
        self._decoded: Iterator[bytes] = iter(())
        self._read_lock = Lock()

    @abstractmethod
    def _translate_error(
        self, error: BaseException, timeout: float | None, /
    ) -> TransportError | None:
        """Return the flux0 error for an error of the HTTP library; None for other errors.

        `timeout` is the timeout of the read that raised the error.
        """

    def _start_reading(self) -> None:
        """Acquire the read lock, or raise if the body is closed or has another reader."""
        if self.closed and not self.finished:
            raise ConnectionInterrupted("the body was closed before its end")
        if not self._read_lock.acquire(_NO_WAIT):
            raise Flux0Error("another thread or task is reading this body")

    def _mark_closed(self) -> bool:
        """Mark the body as closed; return True if it was already closed."""
        closed, self.closed = self.closed, True
        return closed

    def _next_decoded(self) -> bytes | None:
        """Return the next decoded piece of the last received bytes; None if no piece is left."""
        piece = next(self._decoded, None)
        if piece is not None and self.retained is not None:
            self.retained.append(piece)
        return piece

    def _decode(self, data: bytes | None) -> bytes | None:
        """Return the first decoded piece of `data`, or b"" if more data is needed.

        If `data` is None, the body has ended. Then set `finished`, and return None.
        """
        if data is None:
            if self.closed:  # The HTTP library may report a false end of the body.
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

    def _error_to_raise(
        self, error: BaseException, timeout: float | None, *, closed: bool
    ) -> TransportError | None:
        """Return the error to raise in place of `error`; None to raise `error` itself.

        `closed` is True if the body was already closed when the error was raised.
        """
        if closed and isinstance(error, Exception):
            return ConnectionInterrupted("the body was closed while it was read")
        return self._translate_error(error, timeout)


class AsyncPulledBody(PulledBody):
    """A `PulledBody` for async code."""

    @abstractmethod
    async def _receive(self, timeout: float | None, /) -> bytes | None:
        """Wait for the next bytes and return them; return None at the end of the body."""

    @abstractmethod
    async def _on_finished(self) -> None:
        """Release the connection after the body was read to its end."""

    @abstractmethod
    async def _on_failure(self, error: BaseException, /) -> None:
        """Release the connection after `error` was raised."""

    async def read_async(self, timeout: float | None) -> bytes | None:
        """Return the next decoded piece, or None at the end; see `AsyncByteStream.read_async`."""
        self._start_reading()
        try:
            piece = None if self._decoder is None else self._next_decoded()
            if piece is None and not self.finished:
                try:
                    data = await self._receive(timeout)
                except Flux0Error as error:
                    mark_user_error(error, sent=True)
                    raise
                piece = self._decode(data)
                if piece is None:
                    await self._on_finished()
        except BaseException as error:
            closed = self._mark_closed()
            await self._on_failure(error)
            translated = self._error_to_raise(error, timeout, closed=closed)
            if translated is None:
                raise
            raise translated from error
        finally:
            self._read_lock.release()
        return piece


class SyncPulledBody(PulledBody):
    """A `PulledBody` for sync code. Other threads and the garbage collector may close it."""

    # Bodies that must never be freed. Freeing a body would acquire locks of the connection pool. In
    # a forked child, and while the interpreter exits, such a lock may belong to a thread that no
    # longer runs, so the lock is never released. The set is not a module global, because the
    # interpreter clears module globals while it exits.
    _never_collected: ClassVar[set[SyncPulledBody]] = set()

    def __init__(self, coding: str) -> None:
        super().__init__(coding)
        self._owner = OwnerProcess()
        self._released = False
        # The connection of a finished body may serve the next request, so it must not be shut down.
        # Therefore this lock is held while `finished` is set, and while the connection is shut
        # down. The lock is reentrant, because the garbage collector may call `close` in the thread
        # that holds the lock.
        self._end_lock = RLock()

    @abstractmethod
    def _receive(self, timeout: float | None, /) -> bytes | None:
        """Wait for the next bytes and return them; return None at the end of the body."""

    @abstractmethod
    def _on_finished(self) -> None:
        """Release the connection after the body was read to its end."""

    @abstractmethod
    def _shut_down(self) -> None:
        """Shut the connection down and wake the thread that reads from it.

        Implementations must not acquire a lock and must not raise an exception.
        """

    @abstractmethod
    def _release(self) -> None:
        """Release the connection.

        Implementations may acquire locks of the connection pool, but must not raise an exception.
        """

    def read(self, timeout: float | None) -> bytes | None:
        """Return the next decoded piece, or None at the end of the body; see `ByteStream.read`."""
        self._owner.check()
        self._start_reading()
        try:
            piece = None if self._decoder is None else self._next_decoded()
            if piece is None and not self.finished:
                try:
                    data = self._receive(timeout)
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
            translated = self._error_to_raise(error, timeout, closed=closed)
            if translated is None:
                raise
            raise translated from error
        finally:
            self._read_lock.release()
            # Another thread may have called `close` while this thread held the read lock.
            if self.closed:
                self.close()
        return piece

    def close(self) -> None:
        """Release the connection without waiting for a lock of the connection pool.

        The garbage collector may call this method in a thread that holds a lock of the pool.
        Therefore a new thread does the work that may acquire such a lock.
        """
        if self._owner.is_inherited():
            self._never_collected.add(self)
            return
        self._mark_closed()
        with self._end_lock:
            if self.finished or self._released:
                return
            self._shut_down()
        # If another thread reads the body, the shutdown wakes that thread, and `read` releases the
        # connection.
        if self._read_lock.acquire(blocking=False) and not run_in_new_thread(self._release):
            self._never_collected.add(self)


class SyncBody:
    """The `ByteStream` over a `SyncPulledBody`. Its finalizer closes the pulled body."""

    def __init__(self, body: SyncPulledBody) -> None:
        self._body = body
        # Use a finalizer, not __del__. Before __del__, the garbage collector may close the
        # generators of the body, which acquires locks of the connection pool.
        finalize(self, body.close).atexit = False

    def read(self, timeout: float | None) -> bytes | None:
        """Return the next piece, or None at the end of the body; see `ByteStream.read`."""
        return self._body.read(timeout)

    def close(self) -> None:
        """Release the connection. If a thread waits for the next piece, its wait fails."""
        self._body.close()


class OpenBodies:
    """The open sync bodies of one transport. Closing the transport closes these bodies."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._bodies: WeakSet[SyncBody] = WeakSet()

    def add(self, body: SyncBody) -> None:
        """Track `body` until the garbage collector frees it."""
        with self._lock:
            self._bodies.add(body)

    def close(self) -> None:
        """Close all tracked bodies."""
        with self._lock:
            bodies = tuple(self._bodies)
        for body in bodies:
            body.close()
