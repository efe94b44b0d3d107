"""A transport that sends over another one, and records each exchange in a cassette."""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import closing
from os import PathLike
from pathlib import Path
from threading import RLock
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, urlencode, urlsplit

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
    Content,
    RecordedExchange,
    RecordedRequest,
    RecordedResponse,
    kept,
)
from flux0.testing.fake.calls import is_json

_DIGITS = 6  # Of a second: a microsecond is less than what any exchange takes.


class RecordingTransport:
    """Sends requests over another transport, and records each exchange in a cassette.

    It serves synchronous code, asynchronous code, or both, as the other does. A cassette holds no
    value of a header field that may be a credential, and no host, user name or password of a URL;
    all else is kept as it is, but for what `scrub` leaves out.

    A cassette that exists is kept while the new one is written to `NAME.new`. Closing the transport
    puts that in its place, unless a transport or a server has failed.

    Args:
        transport: what sends the requests, such as an `HttpxTransport`. Closing closes it.
        path: the cassette. Folders that are missing are made.
        scrub: is given each text in a body or a query, and returns what is recorded in its place.
    """

    def __init__(
        self,
        transport: Transport | AsyncTransport,
        path: str | PathLike[str],
        *,
        scrub: Scrub | None = None,
    ) -> None:
        self.transport: Any = transport.for_client() if isinstance(transport, Shared) else transport
        own = self.transport
        self.serves_sync: bool = getattr(own, "serves_sync", hasattr(own, "send"))
        self.serves_async: bool = getattr(own, "serves_async", hasattr(own, "send_async"))
        given = getattr(transport, "time", None)
        self.time: Time | None = given if isinstance(given, Time) else None
        self._clock = time.monotonic if self.time is None else self.time.monotonic
        self._file = CassetteFile(Path(path))
        self._scrub = scrub
        self._lock = RLock()
        self._sent = 0
        self._open: list[_Tape] = []

    def __repr__(self) -> str:
        return f"RecordingTransport({self.transport!r})"

    def send(self, request: Request) -> Response[ByteStream]:
        """Send `request` over the other transport; see `Transport.send`."""
        with self._begin(request) as tape:
            response = self.transport.send(request)
        return tape.answer(response, iter)

    def close(self) -> None:
        """Close the other transport, and have the new cassette take the place of an older one."""
        try:
            self.transport.close()
        finally:
            self._finish()

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        """Send `request` over the other transport; see `AsyncTransport.send_async`."""
        with self._begin(request) as tape:
            response = await self.transport.send_async(request)
        return tape.answer(response, aiter)

    async def close_async(self) -> None:
        """Close the other transport, and have the new cassette take the place of an older one."""
        try:
            await self.transport.close_async()
        finally:
            self._finish()

    # --- within

    def _begin(self, request: Request) -> _Tape:
        with self._lock:
            self._sent += 1
            tape = _Tape(request, self._sent, self._clock, self._end, self._clock())
            self._open.append(tape)
        return tape

    def _end(self, tape: _Tape, how: str) -> None:
        with self._lock:  # Two threads may end it at once.
            if tape in self._open:
                self._open.remove(tape)
                self._file.append(tape.finish(how, self._scrub))

    def _finish(self) -> None:
        with self._lock:
            for tape in tuple(self._open):
                self._end(tape, CLOSED)
            problem = self._file.finish()
        if problem:
            warnings.warn(problem, stacklevel=3)


@define(eq=False)
class _Tape:
    """One exchange while it goes on; as a context manager, it ends by what is raised in it."""

    _request: Request
    _number: int
    _clock: Callable[[], float]
    _end: Callable[[_Tape, str], None]
    _began: float
    _response: RecordedResponse | None = None
    _pieces: list[tuple[float, bytes]] = field(factory=list[tuple[float, bytes]])

    def __enter__(self) -> _Tape:  # noqa: PYI034 - it has no subclass
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, (StopIteration, StopAsyncIteration)):
            self.end(WHOLE)
        elif isinstance(error, TransportError):
            kinds = (kind.__name__ for kind in type(error).__mro__)
            self.end(next(kind for kind in kinds if kind in ERRORS))
        elif error is not None:  # Not a transport's own, such as a cancellation.
            self.end(CLOSED)

    def answer(self, response: Response[Any], begin: Callable[[Any], Any]) -> Response[Any]:
        """Return `response` with a body that is recorded; `begin` returns its iterator."""
        headers = response.headers.redacted()
        self._response = RecordedResponse(self._elapsed(), response.status_code, headers, ())
        self._began = self._clock()
        return evolve(response, body=_TapedBody(response.body, begin(response.body), self))

    def add(self, data: bytes) -> bytes:
        self._pieces.append((self._elapsed(), data))
        return data

    def end(self, how: str) -> None:
        """End, unless this has ended: closing a body that was read whole does not leave it."""
        self._end(self, how)

    def finish(self, how: str, scrub: Scrub | None) -> RecordedExchange:
        """Return what has come of the request, and forget it."""
        response, pieces, self._pieces = self._response, self._pieces, []
        if response is not None:
            as_json = is_json(response.headers.get("content-type", "")) and how == WHOLE
            response = evolve(response, pieces=recorded_pieces(pieces, scrub, as_json=as_json))
        request = recorded_request(self._request, scrub)
        return RecordedExchange(request, how, self._elapsed(), response, self._number)

    def _elapsed(self) -> float:
        return round(self._clock() - self._began, _DIGITS)


class _TapedBody:
    """A `ByteStream` or an `AsyncByteStream` that is recorded while it is read."""

    def __init__(self, stream: Any, pieces: Any, tape: _Tape) -> None:
        self._stream = stream
        self._pieces = pieces
        self._tape = tape

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self._tape:
            return self._tape.add(next(self._pieces))

    def close(self) -> None:
        with closing(self._stream):
            self._tape.end(CLOSED)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        with self._tape:
            return self._tape.add(await anext(self._pieces))

    async def close_async(self) -> None:
        try:
            self._tape.end(CLOSED)
        finally:
            await self._stream.close_async()


# Is given each text of a body and of a query, and returns what is kept of it.
Scrub: TypeAlias = Callable[[str], str]

_DATA = "data: "
_TEXT = re.compile(r'("(?:[^"\\]|\\.)*")(\s*:)?')  # In JSON; before a colon it is a name.
_END_OF_EVENT = b"\n\n"


def recorded_request(request: Request, scrub: Scrub | None) -> RecordedRequest:
    """Return what is kept of a request. Its body's JSON is compared, so its spelling may change."""
    url = urlsplit(request.url)
    query, body = url.query, request.body
    if scrub is not None:
        pairs = parse_qsl(query, keep_blank_values=True)
        query = urlencode([(name, scrub(value)) for name, value in pairs])
        body = body and _scrubbed(body, scrub)
    content = kept(body, as_json=True, exact=False) if body else None
    return RecordedRequest(
        request.method, url.path, request.headers.redacted(), query=query, body=content
    )


def recorded_pieces(
    pieces: Iterable[tuple[float, bytes]], scrub: Scrub | None, *, as_json: bool
) -> tuple[Content, ...]:
    """Return what is kept of the pieces of a body, each with the time when it came.

    JSON is kept in one piece. If something is to be left out, events are kept whole, since a piece
    may end in the middle of it.
    """
    if as_json or scrub is not None:
        pieces = _joined(pieces, b"" if as_json else _END_OF_EVENT)
    return tuple(
        kept(
            _scrubbed(data, scrub) if scrub else data,
            as_json=as_json,
            exact=scrub is None,
            after=after,
        )
        for after, data in pieces
    )


def _joined(pieces: Iterable[tuple[float, bytes]], end: bytes) -> Iterator[tuple[float, bytes]]:
    """Join pieces until one ends with `end`; without one, join all of them."""
    held, after = bytearray(), 0.0
    for after, data in pieces:
        held += data
        if end and held.endswith(end):
            yield after, bytes(held)
            held.clear()
    if held:
        yield after, bytes(held)


def _scrubbed(data: bytes, scrub: Scrub) -> bytes:
    """Return a body with each text in it scrubbed: in JSON, in the data of events, or each line."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return data
    scrubbed = _scrubbed_json(text, scrub)
    if scrubbed is None:
        scrubbed = "\n".join(
            (line.startswith(_DATA) and _scrubbed_json(line, scrub)) or scrub(line)
            for line in text.split("\n")
        )
    return scrubbed.encode()


def _scrubbed_json(text: str, scrub: Scrub) -> str | None:
    """Return JSON, maybe that of an event, with each text scrubbed; None of what is no JSON."""
    try:
        json.loads(text.removeprefix(_DATA))
    except (ValueError, RecursionError):
        return None

    def scrubbed(found: re.Match[str]) -> str:
        return found[0] if found[2] else json.dumps(scrub(json.loads(found[1])))

    return _TEXT.sub(scrubbed, text)
