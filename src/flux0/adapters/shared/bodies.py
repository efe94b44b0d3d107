"""How the body of a response is pulled, for several adapters, by sync and by async code."""

from __future__ import annotations

import socket
import sys
from _thread import start_new_thread
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from threading import Lock, RLock
from typing import Any, TypeVar
from weakref import WeakSet, finalize

from flux0.adapters.shared.decompression import decoder_for
from flux0.domain.errors import ConnectionInterrupted, Flux0Error, TransportError
from flux0.runtime.processes import OwnerProcess

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns that never waits for an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("the coroutine waits for an event loop")


def in_thread(act: Callable[[], object]) -> bool:
    """Call `act` in a thread of its own, where no lock is held; say whether Python still can."""
    with suppress(RuntimeError):
        if not sys.is_finalizing():  # Python 3.10 would crash.
            start_new_thread(act, ())
            return True
    return False


def shut_down(connection: Any) -> None:
    """End a connection, and wake who reads from it; takes no lock, and never raises.

    `connection` is a socket, what an event loop has in place of one, or None.
    """
    with suppress(OSError):
        if isinstance(connection, socket.socket):
            # Not the method of SSLSocket, which would drop the TLS layer under a reader.
            socket.socket.shutdown(connection, socket.SHUT_RDWR)
        elif connection is not None:
            connection.shutdown(socket.SHUT_RDWR)


class PulledBody(ABC):
    """A body that is decompressed as far as its bytes have come.

    Attributes:
        ended: whether the whole body was read.
        closed: whether it was left.
        reading: held by whoever reads.
        ending: held while its connection is given back, or shut down, so that no other answer is.
        retained: the pieces that were read, if they are wanted again.
    """

    def __init__(self, coding: str) -> None:
        self.ended: bool = False
        self.closed: bool = False
        self.reading: Lock = Lock()
        # A collector may close a body anywhere, even where it is being closed.
        self.ending: RLock = RLock()
        self.retained: list[bytes] | None = None
        self._decoder = decoder_for(coding)
        self._pieces: Iterator[bytes] = iter(())

    @abstractmethod
    def _translated(self, error: BaseException) -> TransportError | None:
        """Return the error of ours for one of the library's; None if the user's code raised it."""

    def _begin(self) -> None:
        """Begin to read a piece."""
        if self.closed and not self.ended:
            raise ConnectionInterrupted("the body was closed before its end")
        if not self.reading.acquire(blocking=False):
            raise Flux0Error("another thread or task is reading this body")

    def _leave(self) -> bool:
        """Take note that the body is left; return whether it was before."""
        closed, self.closed = self.closed, True
        return closed

    def _rest(self) -> bytes | None:
        """Return what is left of the data that came last, or None if that is used up."""
        piece = next(self._pieces, None)
        if piece is not None and self.retained is not None:
            self.retained.append(piece)
        return piece

    def _take(self, data: bytes | None) -> bytes | None:
        """Return the first piece of the data that came, or None at the end.

        A piece is empty if what arrived holds no content yet.
        """
        if data is None:
            if self.closed:  # Closing it elsewhere may have been what ended it.
                raise EOFError
            if self._decoder is not None:
                self._decoder.end()
            with self.ending:
                self.ended = True
            return None
        if self._decoder is not None:
            self._pieces = self._decoder.feed(data)
            data = next(self._pieces, b"")
        if self.retained is not None:
            self.retained.append(data)
        return data

    def _meaning(self, error: BaseException, *, closed: bool) -> TransportError | None:
        """Return what to raise for an error, or None if that is itself."""
        if closed and isinstance(error, Exception):  # What was closed elsewhere has failed.
            return ConnectionInterrupted("the body was closed while it was read")
        return self._translated(error)


class AsyncPulledBody(PulledBody):
    """One that asynchronous code reads."""

    @abstractmethod
    async def _receive(self) -> bytes | None:
        """Return what has arrived, after waiting for it if need be, or None at the end."""

    @abstractmethod
    async def _finish(self) -> None:
        """Take note that the whole body was read."""

    @abstractmethod
    async def _give_up(self, error: BaseException, /) -> None:
        """Release the connection."""

    async def pull(self) -> bytes | None:
        """Return the next piece, or None at the end."""
        self._begin()
        try:
            piece = None if self._decoder is None else self._rest()
            if piece is None and not self.ended:
                piece = self._take(await self._receive())
                if piece is None:
                    await self._finish()
        except BaseException as error:
            closed = self._leave()
            await self._give_up(error)
            translated = self._meaning(error, closed=closed)
            if translated is None:
                raise
            raise translated from error
        finally:
            self.reading.release()
        return piece


class SyncPulledBody(PulledBody):
    """One that synchronous code reads, and that another thread or the collector may close."""

    def __init__(self, coding: str) -> None:
        super().__init__(coding)
        self.owner: OwnerProcess = OwnerProcess()
        self._released = False

    @abstractmethod
    def _receive(self) -> bytes | None:
        """Return what has arrived, after waiting for it if need be, or None at the end."""

    @abstractmethod
    def _finish(self) -> None:
        """Take note that the whole body was read."""

    @abstractmethod
    def _shut_down(self) -> None:
        """End the connection, and wake who reads from it; takes no lock, and never raises."""

    @abstractmethod
    def _release(self) -> None:
        """Release the connection, from where no lock is held; never raises."""

    def pull(self) -> bytes | None:
        """Return the next piece, or None at the end."""
        self.owner.check()
        self._begin()
        try:
            piece = None if self._decoder is None else self._rest()
            if piece is None and not self.ended:
                piece = self._take(self._receive())
                if piece is None:
                    self._finish()
        except BaseException as error:
            closed = self._leave()
            self._released = True
            self._shut_down()
            self._release()
            translated = self._meaning(error, closed=closed)
            if translated is None:
                raise
            raise translated from error
        finally:
            self.reading.release()
            if self.closed:  # In another thread, just when nothing was waited for.
                self.close()
        return piece

    def close(self) -> None:
        """Release the connection, without a lock that is not its own.

        The collector may call this anywhere, even while the same thread holds a lock of the pool's.
        So all that may take one is left to another thread.
        """
        if self.owner.is_inherited():
            _keep(self)  # Garbage would be closed, with locks that nobody releases in this process.
            return
        self._leave()
        with self.ending:
            if self.ended or self._released:
                return
            self._shut_down()
        # Who reads already wakes, and releases it.
        if self.reading.acquire(blocking=False) and not in_thread(self._release):
            _keep(self)


def _keep(body: SyncPulledBody) -> None:
    """Keep what is not to be garbage: finalizers are kept, and this class is never garbage."""
    finalize(SyncPulledBody, id, body).atexit = False


class SyncBody:
    """What synchronous code iterates over, as `ByteStream` says; forgotten, it is closed."""

    def __init__(self, body: SyncPulledBody) -> None:
        self._body = body
        # Not __del__: what is garbage together with this would be closed first, with its locks.
        finalize(self, body.close).atexit = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        piece = self._body.pull()
        if piece is None:
            raise StopIteration
        return piece

    def close(self) -> None:
        """Release the connection; whoever waits for the next piece is woken and raises."""
        self._body.close()


class OpenBodies:
    """What is read over a transport, which ends when that is closed."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._known: WeakSet[SyncBody] = WeakSet()

    def add(self, body: SyncBody) -> None:
        """Know of a body for as long as somebody holds it."""
        with self._lock:
            self._known.add(body)

    def close(self) -> None:
        """Close all that are known."""
        with self._lock:
            known = tuple(self._known)
        for body in known:
            body.close()
