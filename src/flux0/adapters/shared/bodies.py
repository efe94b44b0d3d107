"""Response bodies for all adapters. A body reads from the `Source` that its adapter implements."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from enum import Enum, auto
from typing import Any, ClassVar, Final, Protocol
from weakref import finalize, ref

from flux0.adapters.shared.decompression import decoder_for
from flux0.domain.errors import ConnectionInterrupted, Flux0Error, TransportError, mark_user_error
from flux0.domain.locks import Busy, TryLock
from flux0.runtime.event_loop import Loop, is_current, running_loop
from flux0.runtime.processes import RUNNING, run_in_new_thread

_HAS_READER: Final = "another thread or task is reading this body"
_CLOSED_MEANWHILE: Final = "the body was closed while it was read"


class _AnySource(Protocol):
    @property
    def coding(self) -> str: ...

    def translate_error(self, error: BaseException, timeout: float | None) -> TransportError | None:
        """Return the flux0 error for an error that the HTTP library raised; None for other errors.

        `timeout` is the argument of the read that raised the error, for the message of a timeout
        error.
        """
        ...


class Source(_AnySource, Protocol):
    """Receives one response body over an HTTP library."""

    def receive(self, timeout: float | None) -> bytes | None:
        """Wait for the next bytes and return them; return None at the body's end."""
        ...

    def finish(self) -> None:
        """Release the connection after the body was read to its end."""

    def shut_down(self) -> None:
        """Shut the connection down and wake the thread that reads from it.

        Implementations must not acquire a lock and must not raise an exception.
        """

    def release(self) -> None:
        """Release the connection.

        Implementations may acquire the locks of a connection pool, but must not raise an exception.
        """


class AsyncSource(_AnySource, Protocol):
    """The async version of `Source`.

    Attributes:
        close_at_exit: Whether `close_from_finalizer` is called for an open body when the
            interpreter exits.
    """

    close_at_exit: ClassVar[bool]

    async def receive(self, timeout: float | None) -> bytes | None: ...

    async def finish(self) -> None: ...

    async def close(self) -> None:
        """Release the connection, even if the caller is cancelled. Further calls do nothing."""

    def close_from_finalizer(self, loop: Loop) -> None:
        """Release the connection of an unreferenced body, in its event loop.

        If the loop cannot run before the caller returns, shut the connection down at once.
        """


class State(Enum):
    """The state of a body. One assignment moves a body from `OPEN` to another state.

    Attributes:
        OPEN: More bytes can be read.
        FINISHED: The body was read to its end. Its connection can serve the next request.
        CLOSED: The connection was shut down before the end. A reader may still be waiting.
        FAILED: The reader has failed, and releases the connection.
    """

    OPEN = auto()
    FINISHED = auto()
    CLOSED = auto()
    FAILED = auto()


class _BodyState:
    def __init__(self, coding: str) -> None:
        self._decoder = decoder_for(coding)
        self._decoded: Iterator[bytes] = iter(())
        self._reading = TryLock()
        self.state: State = State.OPEN

    def _check_open(self) -> None:
        if self.state in (State.CLOSED, State.FAILED):
            raise ConnectionInterrupted("the body was closed before its end")

    def _decode(self, data: bytes | None) -> bytes | None:
        """Return the first decoded piece of `data`, or b"" if more data is needed.

        If `data` is None (the end of the body), return None, or raise an error if the body is
        truncated.
        """
        decoder = self._decoder
        if data is not None:
            if decoder is None:
                return data  # An empty piece; `_read_piece` returns the others itself.
            self._decoded = decoder.feed(data)
            return next(self._decoded, b"")
        # If another thread or task has closed the body meanwhile, the HTTP library can report the
        # end of the body although the body is incomplete.
        if self.state is State.CLOSED:
            raise EOFError
        if decoder is not None:
            decoder.end()
        return None


def _translate(
    error: BaseException, source: _AnySource, state: State, timeout: float | None
) -> TransportError | None:
    """Return the flux0 error for an error of a read; None for an exception of the user.

    `state` is the state of the body when the error was raised. If the connection was shut down, the
    HTTP library also raises errors such as `ValueError`.
    """
    translated = source.translate_error(error, timeout)
    is_built_in = isinstance(error, Exception) and type(error).__module__ == "builtins"
    if state is State.CLOSED and (translated is not None or is_built_in):
        return ConnectionInterrupted(_CLOSED_MEANWHILE)
    return translated


class AsyncBody(_BodyState):
    def __init__(self, source: AsyncSource) -> None:
        super().__init__(source.coding)
        self._source = source
        self._body_loop = running_loop()
        # Use a finalizer instead of __del__. If the body is in a reference cycle, the garbage
        # collector can close the HTTP library's generators before it calls __del__, and the
        # connection stays open.
        self._finalizer = finalize(self, _close_source, source, self._body_loop, RUNNING.id)
        self._finalizer.atexit = source.close_at_exit

    async def read_async(self, timeout: float | None) -> bytes | None:
        if self.state is not State.OPEN:
            self._check_open()
        try:
            with self._reading:
                return await self._read_piece(timeout)
        except Busy:
            raise Flux0Error(_HAS_READER) from None

    async def _read_piece(self, timeout: float | None) -> bytes | None:
        try:
            piece = next(self._decoded, None)
            if piece is None and self.state is not State.FINISHED:
                try:
                    data = await self._source.receive(timeout)
                except Flux0Error as error:
                    mark_user_error(error, sent=True)
                    raise
                piece = data if data and self._decoder is None else self._decode(data)
                if piece is None:
                    self.state = State.FINISHED
                    self._finalizer.detach()
                    await self._source.finish()
        except BaseException as error:
            before, self.state = self.state, State.FAILED
            translated = _translate(error, self._source, before, timeout)
            await self._close_source()
            if translated is not None:
                raise translated from error
            raise
        finally:
            # Break a reference cycle: the traceback of the raised error refers to this frame, and
            # the variable `translated` of this frame refers to the error.
            translated = None
        return piece

    async def close_async(self) -> None:
        if self.state is State.OPEN:
            self.state: State = State.CLOSED
        await self._close_source()

    async def _close_source(self) -> None:
        if is_current(self._body_loop):
            self._finalizer.detach()
            await self._source.close()
        else:
            self._finalizer()


def _close_source(source: AsyncSource, loop: Loop, process: int) -> None:
    # In a forked child, do not close `source`, because the parent process still uses the
    # connection.
    if RUNNING.id == process:
        source.close_from_finalizer(loop)


class SyncBodyState(_BodyState):
    """The state of a `SyncBody`. Other threads and the garbage collector may close it."""

    # The garbage collector must never free the bodies in `_never_collected`, because freeing a body
    # acquires locks of the connection pool. In a forked child, and while the interpreter exits, a
    # thread that no longer runs can hold such a lock forever. The set is a class attribute, because
    # the interpreter clears module globals while it exits.
    _never_collected: ClassVar[set[SyncBodyState]] = set()

    def __init__(self, source: Source) -> None:
        super().__init__(source.coding)
        self._source = source
        self._process = RUNNING.id
        # Hold `_ending` while the state changes to `FINISHED`, and while the connection is shut
        # down. After a body has finished, its connection must not be shut down.
        self._ending = TryLock()

    def read(self, timeout: float | None) -> bytes | None:
        if RUNNING.id != self._process:
            raise ConnectionInterrupted("a forked child cannot read a body of its parent process")
        if self.state is not State.OPEN:
            self._check_open()
        try:
            with self._reading:
                return self._read_piece(timeout)
        except Busy:
            raise Flux0Error(_HAS_READER) from None
        finally:
            # While this thread was reading, `close` in another thread could not release the
            # connection. Release the connection now.
            if self.state is State.CLOSED:
                self.close()

    def _read_piece(self, timeout: float | None) -> bytes | None:
        try:
            piece = next(self._decoded, None)
            if piece is None and self.state is not State.FINISHED:
                try:
                    data = self._source.receive(timeout)
                except Flux0Error as error:
                    mark_user_error(error, sent=True)
                    raise
                piece = data if data and self._decoder is None else self._decode(data)
                if piece is None:
                    self._finish()
        except BaseException as error:
            before = self.state
            translated = _translate(error, self._source, before, timeout)
            # A finished body may have returned its connection to the pool: `release` knows whether
            # it has, and the connection must not be shut down.
            if before is not State.FINISHED:
                self._source.shut_down()
            self._source.release()
            self.state = State.FAILED
            if translated is not None:
                raise translated from error
            raise
        finally:
            # Break a reference cycle: the traceback of the raised error refers to this frame, and
            # the variable `translated` of this frame refers to the error.
            translated = None
        return piece

    def _finish(self) -> None:
        try:
            with self._ending:
                if self.state is State.OPEN:
                    self.state = State.FINISHED
        except Busy:  # Another thread is closing the body.
            raise ConnectionInterrupted(_CLOSED_MEANWHILE) from None
        if self.state is not State.FINISHED:
            raise ConnectionInterrupted(_CLOSED_MEANWHILE)
        self._source.finish()

    def close(self) -> None:
        """Release the connection without waiting for a lock.

        A signal handler or the garbage collector may call this method in a thread that holds a lock
        of this object or the connection pool. Therefore a new thread releases the connection,
        because this may need the pool's lock.
        """
        if RUNNING.id != self._process:
            self._never_collected.add(self)
            return
        # If `_ending` is held, the body has just ended, or another thread is closing the body.
        with suppress(Busy):
            with self._ending:
                if self.state in (State.FINISHED, State.FAILED):
                    return
                self.state: State = State.CLOSED
                self._source.shut_down()
            # If another thread reads the body, `shut_down` wakes that thread, and the thread
            # releases the connection in `read`.
            self._reading.take()
            if not run_in_new_thread(self._source.release):
                self._never_collected.add(self)


class SyncBody:
    # The values of `_open` are weak references that close the body when it is freed. If a signal
    # handler interrupts the closing, the reference in the key, whose callback is a function of C
    # and is called last, still frees the source with its connection.
    # A weak reference is used instead of __del__: before __del__, the garbage collector can close
    # the HTTP library's generators, and closing a generator acquires locks of the connection pool.
    # The dict is a class attribute, because the interpreter clears module globals while it exits.
    _open: ClassVar[dict[Any, ref[Any] | None]] = {}

    def __init__(self, source: Source) -> None:
        state = self._state = SyncBodyState(source)
        # Both references are added in one call of a function of C: an exception of a signal handler
        # before it leaves no reference whose callback fails.
        # At exit, Python without the GIL clears the module (`State`) before it frees the body.
        close = ref(self, lambda _: state.close() if globals()["State"] else None)
        self._open.setdefault(ref(self, self._open.__delitem__), close)
        self._key = ref(self)

    def read(self, timeout: float | None) -> bytes | None:
        try:
            piece = self._state.read(timeout)
        except BaseException:
            if self._state.state is not State.OPEN:
                self._detach()
            raise
        if piece is None:
            self._detach()
        return piece

    def close(self) -> None:
        """Release the connection. If a thread is waiting for bytes of the body, its wait fails."""
        self._state.close()
        self._detach()

    def _detach(self) -> None:
        # No Python code runs when a closed body is freed: an exception of a signal handler would be
        # lost there.
        self._open[self._key] = None


class OpenBodies:
    """The open sync bodies of one transport. Closing the transport closes these bodies."""

    def __init__(self) -> None:
        # Weak references to open bodies. The set needs no lock, because single operations of a set
        # are atomic. Another thread can hold a reference from a copy of the set, so `discard`
        # accepts a reference that was removed.
        self._references: set[ref[SyncBody]] = set()

    def add(self, body: SyncBody) -> None:
        self._references.add(ref(body, self._references.discard))

    def close(self) -> None:
        bodies = [reference() for reference in self._references.copy()]
        for body in filter(None, bodies):
            body.close()
