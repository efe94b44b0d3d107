"""A transport that sends over another one, and records each exchange in a cassette."""

from __future__ import annotations

import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from os import PathLike
from pathlib import Path
from threading import RLock
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
    Shared,
    Time,
    Transport,
)
from flux0.testing.cassettes.cassette import (
    CLOSED,
    ERRORS,
    WHOLE,
    CassetteFile,
    RecordedEnd,
    RecordedExchange,
    RecordedResponse,
    is_json,
)
from flux0.testing.cassettes.scrubbing import Scrub, recorded_pieces, recorded_request

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
    they are, but for what `scrub` leaves out.

    Each exchange is in the file as soon as it has ended, and the file is whole then. Exchanges that
    are still open when the transport is closed count as left there.

    A cassette that exists is kept while this one is recorded, in a file `NAME.new` next to it.
    Closing the transport puts the new one in its place, unless something has failed: a request
    without a response, a body that broke off, or a status of 500 or more. Delete a cassette before
    to record such failures in its place.

    Args:
        transport: what sends the requests, such as an `HttpxTransport`. Closing closes it.
        path: the cassette. Folders that are missing are made.
        scrub: is given each text in a body or a query, and returns what is recorded in its place.

    Attributes:
        transport: the other transport.
    """

    def __init__(
        self,
        transport: Transport | AsyncTransport,
        path: str | PathLike[str],
        *,
        scrub: Scrub | None = None,
    ) -> None:
        self.transport: Any = transport.for_client() if isinstance(transport, Shared) else transport
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._scrub = scrub
        given = getattr(transport, "time", None)
        self._time = given if isinstance(given, Time) else None
        self._clock = time.monotonic if self._time is None else self._time.monotonic
        self._lock = RLock()
        self._file: CassetteFile | None = None
        self._sent = 0
        self._open: list[_Tape] = []
        self._failed = False

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
        """Close the other transport, and have the new cassette take the place of an older one."""
        try:
            self.transport.close()
        finally:
            self._finish()

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
        """Close the other transport, and have the new cassette take the place of an older one."""
        try:
            await self.transport.close_async()
        finally:
            self._finish()

    @property
    def time(self) -> Time | None:
        """The time that a client goes by, if that of the other transport is not real."""
        return self._time

    # --- within

    def _begin(self, request: Request) -> _Tape:
        with self._lock:
            self._sent += 1
            tape = _Tape(request, self._sent, self._clock, self._lock, self._ended)
            self._open.append(tape)
        return tape

    def _ended(self, tape: _Tape) -> None:
        self._open.remove(tape)
        self._write(tape)

    def _write(self, tape: _Tape) -> None:
        exchange = tape.exchange(self._scrub)
        if self._file is None:
            is_new = not self._path.exists()
            self._file = CassetteFile(self._path if is_new else _beside(self._path))
        self._file.append(exchange)
        self._failed = self._failed or exchange.failed

    def _finish(self) -> None:
        with self._lock:
            for tape in self._open:  # It is written again if it goes on.
                self._write(tape)
            if self._file is None or self._file.path == self._path:
                return
            if not self._failed:
                self._file.move_to(self._path)
                return
        warnings.warn(
            f"{self._path} stays as it was, since something failed while it was recorded anew; see "
            f"{_beside(self._path)}. To record failures, delete {self._path} before.",
            stacklevel=3,
        )


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


@define(eq=False)
class _Tape:
    """One exchange while it goes on; `on_end` is called once it has ended, with the lock held."""

    _request: Request
    _number: int
    _clock: Callable[[], float]
    _lock: RLock
    _on_end: Callable[[_Tape], None]
    _began: float = field(init=False)
    _response: RecordedResponse | None = None
    _pieces: list[tuple[float, bytes]] = field(factory=list[tuple[float, bytes]])
    _end: RecordedEnd | None = None

    def __attrs_post_init__(self) -> None:
        self._began = self._clock()

    def answer(self, response: Response[Any]) -> None:
        headers = response.headers.redacted()
        self._response = RecordedResponse(self._elapsed(), response.status_code, headers, ())
        self._began = self._clock()

    def add(self, data: bytes) -> None:
        self._pieces.append((self._elapsed(), data))

    def fail(self, error: BaseException) -> None:
        """End by an error; one that is not a transport's own is a cancellation."""
        if isinstance(error, TransportError):
            kinds = (kind.__name__ for kind in type(error).__mro__)
            self.end(next(kind for kind in kinds if kind in ERRORS))
        else:
            self.end(CLOSED)

    def end(self, how: str) -> None:
        """End, unless this has ended: closing a body that was read whole does not leave it."""
        with self._lock:  # Two threads may end it at once.
            if self._end is None:
                self._end = RecordedEnd(how, self._elapsed())
                self._on_end(self)
                self._pieces.clear()

    def exchange(self, scrub: Scrub | None) -> RecordedExchange:
        """Return what has come of the request so far."""
        response, end = self._response, self._end or RecordedEnd(CLOSED, self._elapsed())
        if response is not None:
            as_json = is_json(response.headers) and end.how == WHOLE
            pieces = recorded_pieces(self._pieces, scrub, as_json=as_json)
            response = evolve(response, pieces=pieces)
        request = recorded_request(self._request, scrub)
        return RecordedExchange(request, end, response, self._number)

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
