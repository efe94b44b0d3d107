"""A transport that writes down what passes through it, for `ReplayTransport` to play again."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from os import PathLike
from pathlib import Path
from threading import Lock
from types import MethodType
from typing import Any, TypeVar, cast

from attrs import define, evolve, field

from flux0.domain.errors import TransportError
from flux0.ports import (
    AsyncByteStream,
    AsyncTransport,
    ByteStream,
    Request,
    Response,
    Time,
    Transport,
)
from flux0.testing.cassettes.cassette import (
    CLOSED,
    ERRORS,
    WHOLE,
    End,
    Exchange,
    Piece,
    RecordedRequest,
    RecordedResponse,
    formatted,
    is_json,
    redacted,
    write_cassette,
)

_DIGITS = 6  # Of a second: a microsecond is less than what any exchange takes.


Method = TypeVar("Method", bound=Callable[..., Any])


class _Available:
    """A method that is there only where the other transport has one of its name."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method

    def __get__(self, recording: RecordingTransport | None, owner: type) -> Any:
        if recording is None:
            return self._method
        # Its AttributeError is the answer to the hasattr by which a client decides.
        getattr(recording.transport, self._method.__name__)
        return MethodType(self._method, recording)


def _if_available(method: Method) -> Method:
    return cast("Method", _Available(method))


class RecordingTransport:
    """Sends requests over another transport, and records each exchange in a cassette.

    It can send what the other can: synchronous requests, asynchronous ones, or both, from any
    number of threads and tasks. A cassette holds no value of a header field that may be a
    credential, and no host, user name or password of a URL; paths, queries and bodies are kept as
    they are.

    The file is written anew, whole or not at all, each time an exchange ends: it never lacks one
    that has ended. That is meant for the hundreds of exchanges of a test, not for a day's traffic.
    What is still open when the transport is closed counts as left there.

    Args:
        transport: what sends the requests, such as an `HttpxTransport`. Closing closes it.
        path: the cassette. A file that is there is replaced; folders that are not there are made.

    Attributes:
        transport: the other transport.
    """

    def __init__(self, transport: Transport | AsyncTransport, path: str | PathLike[str]) -> None:
        self.transport: Any = transport
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        given = getattr(transport, "time", None)
        self._time = given if isinstance(given, Time) else None
        self._clock = time.monotonic if self._time is None else self._time.monotonic
        self._lock = Lock()
        self._tapes: list[_Tape] = []

    @_if_available
    def send(self, request: Request) -> Response[ByteStream]:
        """Send `request` over the other transport; see `Transport.send`."""
        tape = self._begin(request)
        try:
            response: Response[ByteStream] = self.transport.send(request)
        except BaseException as error:
            tape.fail(error)
            raise
        tape.answer(response)
        return evolve(response, body=_Body(response.body, tape))

    def close(self) -> None:
        """Close the other transport, and write what is still open as well."""
        try:
            self.transport.close()
        finally:
            self._write(ended=False)

    @_if_available
    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        """Send `request` over the other transport; see `AsyncTransport.send_async`."""
        tape = self._begin(request)
        try:
            response: Response[AsyncByteStream] = await self.transport.send_async(request)
        except BaseException as error:
            tape.fail(error)
            raise
        tape.answer(response)
        return evolve(response, body=_AsyncBody(response.body, tape))

    async def close_async(self) -> None:
        """Do as `close` does."""
        try:
            await self.transport.close_async()
        finally:
            self._write(ended=False)

    @property
    def time(self) -> Time | None:
        """The time that a client goes by, if that of the other transport is not real."""
        return self._time

    # --- within

    def _begin(self, request: Request) -> _Tape:
        tape = _Tape(RecordedRequest.of(request), self._clock, self._write)
        with self._lock:
            self._tapes.append(tape)
        return tape

    def _write(self, *, ended: bool = True) -> None:
        with self._lock:
            tapes = [tape for tape in self._tapes if tape.has_ended or not ended]
            write_cassette(self._path, [tape.formatted() for tape in tapes])


@define(eq=False)
class _Tape:
    """One exchange while it goes on; `on_end` is called once it has ended."""

    _request: RecordedRequest
    _clock: Callable[[], float]
    _on_end: Callable[[], None]
    _began: float = field(init=False)
    _response: RecordedResponse | None = None
    _pieces: list[Piece] = field(factory=list[Piece])
    _end: End | None = None
    _formatted: bytes | None = None

    def __attrs_post_init__(self) -> None:
        self._began = self._clock()

    @property
    def has_ended(self) -> bool:
        return self._end is not None

    def answer(self, response: Response[Any]) -> None:
        headers = redacted(response.headers)
        self._response = RecordedResponse(self._elapsed(), response.status_code, headers, ())
        self._began = self._clock()

    def add(self, data: bytes) -> None:
        self._pieces.append(Piece(self._elapsed(), data))

    def fail(self, error: BaseException) -> None:
        """End by an error; one that a transport has no business with is a cancellation."""
        if isinstance(error, TransportError):
            kinds = (kind.__name__ for kind in type(error).__mro__)
            self.end(next(kind for kind in kinds if kind in ERRORS))
        else:
            self.end(CLOSED)

    def end(self, how: str) -> None:
        """End, unless this has ended: whoever closes what they have read is not leaving it."""
        if self._end is None:
            self._end = End(how, self._elapsed())
            self._on_end()

    def formatted(self) -> bytes:
        """Return the exchange as the file has it, as far as it has come."""
        if self._formatted is not None:
            return self._formatted
        if self._end is None:
            return formatted(self._exchange(End(CLOSED, self._elapsed())))
        self._formatted = formatted(self._exchange(self._end))
        self._pieces.clear()
        return self._formatted

    def _exchange(self, end: End) -> Exchange:
        response = self._response
        if response is not None:
            pieces = tuple(self._pieces)
            if pieces and end.how == WHOLE and is_json(response.headers):
                # Nobody reads JSON before all of it is there; together it is readable.
                pieces = (Piece(pieces[-1].after, b"".join(piece.data for piece in pieces)),)
            response = evolve(response, pieces=pieces)
        return Exchange(self._request, response, end)

    def _elapsed(self) -> float:
        return round(self._clock() - self._began, _DIGITS)


class _Body:
    """A `ByteStream` that is recorded while it is read."""

    def __init__(self, stream: ByteStream, tape: _Tape) -> None:
        self._stream = stream
        self._pieces = iter(stream)
        self._tape = tape

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            piece = next(self._pieces)
        except StopIteration:
            self._tape.end(WHOLE)
            raise
        except TransportError as error:
            self._tape.fail(error)
            raise
        self._tape.add(piece)
        return piece

    def close(self) -> None:
        try:
            self._tape.end(CLOSED)
        finally:
            self._stream.close()


class _AsyncBody:
    """An `AsyncByteStream` that is recorded while it is read."""

    def __init__(self, stream: AsyncByteStream, tape: _Tape) -> None:
        self._stream = stream
        self._pieces = aiter(stream)
        self._tape = tape

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            piece = await anext(self._pieces)
        except StopAsyncIteration:
            self._tape.end(WHOLE)
            raise
        except TransportError as error:
            self._tape.fail(error)
            raise
        self._tape.add(piece)
        return piece

    async def close_async(self) -> None:
        try:
            self._tape.end(CLOSED)
        finally:
            await self._stream.close_async()
