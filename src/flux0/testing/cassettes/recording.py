"""The recording transport: it sends requests over another transport and records the exchanges."""

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
    to_content,
)
from flux0.testing.fake.calls import is_json

_DIGITS = 6  # Times are rounded to microseconds.


class RecordingTransport:
    """Sends requests over another transport, and records each exchange in a cassette.

    It supports sync calls, async calls, or both, like the other transport. The cassette contains no
    values of header fields that may be credentials, and no host, user name or password of a URL.
    Everything else is recorded unchanged, except for the strings that `scrub` replaces.

    If the cassette exists, the new one is written to `NAME.new`. `close` replaces the old cassette,
    unless there was a transport error or a 5xx response.

    Args:
        transport: The transport that sends the requests, such as an `HttpxTransport`. It is closed
            with this transport.
        path: The path of the cassette. Missing folders are created.
        scrub: Called with each string in a body or a query; returns the string to record instead.
    """

    def __init__(
        self,
        transport: Transport | AsyncTransport,
        path: str | PathLike[str],
        *,
        scrub: Scrub | None = None,
    ) -> None:
        self.transport: Any = transport.for_client() if isinstance(transport, Shared) else transport
        inner = self.transport
        self.serves_sync: bool = getattr(inner, "serves_sync", hasattr(inner, "send"))
        self.serves_async: bool = getattr(inner, "serves_async", hasattr(inner, "send_async"))
        clock = getattr(transport, "time", None)
        self.time: Time | None = clock if isinstance(clock, Time) else None
        self._clock = time.monotonic if self.time is None else self.time.monotonic
        self._file = CassetteFile(Path(path))
        self._scrub = scrub
        self._lock = RLock()
        self._sent = 0
        self._open: list[_OpenExchange] = []

    def __repr__(self) -> str:
        return f"RecordingTransport({self.transport!r})"

    def send(self, request: Request) -> Response[ByteStream]:
        """Send `request` over the other transport and record the exchange; see `Transport.send`."""
        with self._start(request) as exchange:
            response = self.transport.send(request)
        return exchange.record_response(response, iter)

    def close(self) -> None:
        """Close the other transport, and replace an older cassette with the new one.

        If an exchange failed, keep the older cassette and issue a warning.
        """
        try:
            self.transport.close()
        finally:
            self._finish()

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        """The async version of `send`."""
        with self._start(request) as exchange:
            response = await self.transport.send_async(request)
        return exchange.record_response(response, aiter)

    async def close_async(self) -> None:
        """The async version of `close`."""
        try:
            await self.transport.close_async()
        finally:
            self._finish()

    # --- open exchanges

    def _start(self, request: Request) -> _OpenExchange:
        with self._lock:
            self._sent += 1
            exchange = _OpenExchange(request, self._sent, self._clock, self._end, self._clock())
            self._open.append(exchange)
        return exchange

    def _end(self, exchange: _OpenExchange, how: str) -> None:
        with self._lock:  # Two threads may end it at the same time.
            if exchange in self._open:
                self._open.remove(exchange)
                self._file.append(exchange.finish(how, self._scrub))

    def _finish(self) -> None:
        with self._lock:
            for exchange in tuple(self._open):
                self._end(exchange, CLOSED)
            problem = self._file.finish()
        if problem:
            warnings.warn(problem, stacklevel=3)


@define(eq=False)
class _OpenExchange:
    """An exchange that is being recorded. As a context manager, it ends if its block raises."""

    _request: Request
    _number: int
    _clock: Callable[[], float]
    _end: Callable[[_OpenExchange, str], None]
    _started: float
    _response: RecordedResponse | None = None
    _pieces: list[tuple[float, bytes]] = field(factory=list[tuple[float, bytes]])

    def __enter__(self) -> _OpenExchange:  # noqa: PYI034 - it has no subclass
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, (StopIteration, StopAsyncIteration)):
            self.end(WHOLE)
        elif isinstance(error, TransportError):
            kinds = (kind.__name__ for kind in type(error).__mro__)
            self.end(next(kind for kind in kinds if kind in ERRORS))
        elif error is not None:  # Such as a cancellation.
            self.end(CLOSED)

    def record_response(
        self, response: Response[Any], iterate: Callable[[Any], Any]
    ) -> Response[Any]:
        """Return `response` with a recorded body; `iterate` is `iter` or `aiter`."""
        headers = response.headers.redacted()
        self._response = RecordedResponse(self._elapsed(), response.status_code, headers, ())
        self._started = self._clock()
        return evolve(response, body=_RecordedBody(response.body, iterate(response.body), self))

    def record_piece(self, data: bytes) -> bytes:
        self._pieces.append((self._elapsed(), data))
        return data

    def end(self, how: str) -> None:
        """End the exchange, unless it has ended: closing a finished body changes nothing."""
        self._end(self, how)

    def finish(self, how: str, scrub: Scrub | None) -> RecordedExchange:
        """Return the exchange, and free the recorded pieces."""
        response, pieces, self._pieces = self._response, self._pieces, []
        if response is not None:
            as_json = is_json(response.headers.get("content-type", "")) and how == WHOLE
            response = evolve(response, pieces=recorded_pieces(pieces, scrub, as_json=as_json))
        request = recorded_request(self._request, scrub)
        return RecordedExchange(request, how, self._elapsed(), response, self._number)

    def _elapsed(self) -> float:
        return round(self._clock() - self._started, _DIGITS)


class _RecordedBody:
    """A `ByteStream` or `AsyncByteStream` whose pieces are recorded when they are read."""

    def __init__(self, stream: Any, pieces: Any, exchange: _OpenExchange) -> None:
        self._stream = stream
        self._pieces = pieces
        self._exchange = exchange

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self._exchange:
            return self._exchange.record_piece(next(self._pieces))

    def close(self) -> None:
        with closing(self._stream):
            self._exchange.end(CLOSED)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        with self._exchange:
            return self._exchange.record_piece(await anext(self._pieces))

    async def close_async(self) -> None:
        try:
            self._exchange.end(CLOSED)
        finally:
            await self._stream.close_async()


# Called with each string in a body or a query; returns the string to record instead.
Scrub: TypeAlias = Callable[[str], str]

_DATA = "data: "
# A string of JSON. Before a colon, it is the name of a member.
_STRING = re.compile(r'("(?:[^"\\]|\\.)*")(\s*:)?')
_END_OF_EVENT = b"\n\n"


def recorded_request(request: Request, scrub: Scrub | None) -> RecordedRequest:
    """Return a request as it is recorded. A JSON body may be formatted differently."""
    url = urlsplit(request.url)
    query, body = url.query, request.body
    if scrub is not None:
        pairs = parse_qsl(query, keep_blank_values=True)
        query = urlencode([(name, scrub(value)) for name, value in pairs])
        body = body and _scrubbed(body, scrub)
    content = to_content(body, as_json=True, exact=False) if body else None
    return RecordedRequest(
        request.method, url.path, request.headers.redacted(), query=query, body=content
    )


def recorded_pieces(
    pieces: Iterable[tuple[float, bytes]], scrub: Scrub | None, *, as_json: bool
) -> tuple[Content, ...]:
    """Return the pieces of a body as they are recorded; each piece has the time of its arrival.

    JSON is recorded as one piece. With `scrub`, pieces are joined to complete events, because a
    string to replace may be split between two pieces.
    """
    if as_json or scrub is not None:
        pieces = _joined(pieces, b"" if as_json else _END_OF_EVENT)
    return tuple(
        to_content(
            _scrubbed(data, scrub) if scrub else data,
            as_json=as_json,
            exact=scrub is None,
            after=after,
        )
        for after, data in pieces
    )


def _joined(pieces: Iterable[tuple[float, bytes]], end: bytes) -> Iterator[tuple[float, bytes]]:
    """Join pieces until one ends with `end`. If `end` is empty, join all pieces."""
    joined, after = bytearray(), 0.0
    for after, data in pieces:
        joined += data
        if end and joined.endswith(end):
            yield after, bytes(joined)
            joined.clear()
    if joined:
        yield after, bytes(joined)


def _scrubbed(data: bytes, scrub: Scrub) -> bytes:
    """Scrub each string of a JSON body or of the JSON in event data, and each other line."""
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
    """Scrub each string of JSON, or of a `data:` line with JSON. Return None for other text."""
    try:
        json.loads(text.removeprefix(_DATA))
    except (ValueError, RecursionError):
        return None

    def scrubbed(found: re.Match[str]) -> str:
        return found[0] if found[2] else json.dumps(scrub(json.loads(found[1])))

    return _STRING.sub(scrubbed, text)
