"""The recording transport: it sends requests over another transport and records the exchanges."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from os import PathLike
from pathlib import Path
from threading import RLock
from typing import Any
from urllib.parse import urlsplit

from attrs import define, evolve, field

from flux0.domain.errors import TransportError
from flux0.domain.http import is_event_stream
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
from flux0.testing.cassettes.scrubbing import Scrub, checked, scrub_body, scrub_path, scrub_query
from flux0.testing.fake.validation import is_json

_BLANK_LINES = (b"\n\n", b"\r\n\r\n", b"\r\r")
_DIGITS = 6  # Cassettes have times in seconds with six digits after the decimal point.


class RecordingTransport:
    """Sends requests over another transport, and records each exchange in a cassette.

    Sync and async calls are supported if the other transport supports them. The cassette contains
    no values of header fields that may be credentials, and no host, user name or password of a URL.
    The JSON of a request may be formatted in another way, and `scrub` replaces strings. Everything
    else is recorded unchanged.

    If the cassette exists, the recording is written to `NAME.new`, and `close` replaces the old
    cassette. The old cassette is kept if an exception ends the client's `with` block. It is also
    kept if the recording has a transport error, or a status of 400 or more, that the old cassette
    does not contain.

    Args:
        transport: The wrapped transport, which sends the requests, such as an `HttpxTransport`.
            Closing the `RecordingTransport` also closes the wrapped transport.
        path: The cassette's path. Missing folders are created.
        scrub: A function that is called with each string in a path, a query or a body, and returns
            the string to record instead. With `scrub`, the incomplete event at the end of an
            interrupted stream is not recorded.

    Raises:
        CassetteError: `path` is a folder or cannot be written, or another transport is recording to
            the same path.
    """

    def __init__(
        self,
        transport: Transport | AsyncTransport,
        path: str | PathLike[str],
        *,
        scrub: Scrub | None = None,
        keep: Sequence[RecordedExchange] = (),
    ) -> None:
        self.transport: Any = transport.for_client() if isinstance(transport, Shared) else transport
        inner = self.transport
        self.serves_sync: bool = getattr(inner, "serves_sync", hasattr(inner, "send"))
        self.serves_async: bool = getattr(inner, "serves_async", hasattr(inner, "send_async"))
        clock = getattr(transport, "time", None)
        self.time: Time | None = clock if isinstance(clock, Time) else None
        self._clock = time.monotonic if self.time is None else self.time.monotonic
        self._file = CassetteFile(Path(path), keep)
        self._scrub = checked(scrub)
        self._lock = RLock()
        self._sent = max((exchange.number for exchange in keep), default=0)
        # `_error` is the class name of an error that interrupted an exchange, such as
        # KeyboardInterrupt, or empty if there was no such error. Transport errors are recorded in
        # the exchange instead.
        self._error = ""
        self._earlier_errors = _current_errors()
        self._open: list[_OpenExchange] = []

    def __repr__(self) -> str:
        return f"RecordingTransport({self.transport!r})"

    def send(self, request: Request) -> Response[ByteStream]:
        """Send `request` over the wrapped transport, and record the exchange in the cassette."""
        with self._start(request) as exchange:
            response = self.transport.send(request)
        return exchange.record_response(response)

    def close(self) -> None:
        """Close the wrapped transport, and replace the old cassette with the recording.

        If the recording failed, keep the old cassette and issue a warning.
        """
        try:
            self.transport.close()
        finally:
            self._finish()

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        """The async version of `send`."""
        with self._start(request) as exchange:
            response = await self.transport.send_async(request)
        return exchange.record_response(response)

    async def close_async(self) -> None:
        """The async version of `close`."""
        try:
            await self.transport.close_async()
        finally:
            self._finish()

    def defer(self) -> Callable[[bool], None]:
        """Return a function that ends the recording in place of `close`.

        Call the function with True to replace the old cassette by the recording, or with False to
        delete the recording. Before this call, the recording is in a separate file next to the
        cassette, even after `close`.
        """
        return self._file.defer()

    def _start(self, request: Request) -> _OpenExchange:
        with self._lock:
            self._sent += 1
            exchange = _OpenExchange(request, self._sent, self._clock, self._end, self._clock())
            self._open.append(exchange)
        return exchange

    def _end(self, exchange: _OpenExchange, how: str, error: BaseException | None = None) -> None:
        with self._lock:  # If two threads end the exchange at the same time, record only one end.
            # A cancellation is not recorded as an error, because programs cancel calls on purpose.
            if isinstance(error, (Exception, KeyboardInterrupt)):
                self._error = type(error).__name__
            if exchange in self._open:
                self._open.remove(exchange)
                self._file.append(exchange.finish(how, self._scrub))

    def _finish(self) -> None:
        with self._lock:
            for exchange in tuple(self._open):
                self._end(exchange, CLOSED)
            earlier = self._earlier_errors
            new = [error for error in _current_errors() if all(error is not old for old in earlier)]
            problem = self._file.finish(type(new[0]).__name__ if new else self._error)
        error = sys.exc_info()[1]
        if problem and error is None:
            warnings.warn(problem, stacklevel=3)
        elif problem:
            # Add `problem` to `error` as a note instead of a warning, because `python -W error`
            # raises a warning in place of `error`. Python 3.10 has no notes, so `problem` is
            # dropped.
            getattr(error, "add_note", str)(problem)


def _current_errors() -> list[BaseException]:
    # Under pytest, `sys.last_value` is the error of a failed test.
    errors = sys.exc_info()[1], getattr(sys, "last_value", None)
    return [error for error in errors if error is not None]


@define(eq=False)
class _OpenExchange:
    _request: Request
    _number: int
    _clock: Callable[[], float]
    _end: Callable[[_OpenExchange, str, BaseException | None], None]
    _started: float
    _response: RecordedResponse | None = None
    _pieces: list[tuple[float, bytes]] = field(factory=list[tuple[float, bytes]])

    def __enter__(self) -> _OpenExchange:  # noqa: PYI034 - it has no subclass
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, TransportError):
            kinds = (kind.__name__ for kind in type(error).__mro__)
            self.end(next(kind for kind in kinds if kind in ERRORS))
        # If `error` is not a transport error, for example a cancellation, it does not mean that the
        # connection has failed. Therefore, record the end "closed".
        elif error is not None:
            self.end(CLOSED, error)

    def record_response(self, response: Response[Any]) -> Response[Any]:
        headers = response.headers.redacted()
        self._response = RecordedResponse(self._elapsed(), response.status_code, headers, ())
        self._started = self._clock()
        return evolve(response, body=_RecordedBody(response.body, self))

    def record_piece(self, data: bytes | None) -> bytes | None:
        if data is None:
            self.end(WHOLE)
        else:
            self._pieces.append((self._elapsed(), data))
        return data

    def end(self, how: str, error: BaseException | None = None) -> None:
        self._end(self, how, error)

    def finish(self, how: str, scrub: Scrub | None) -> RecordedExchange:
        response, pieces, self._pieces = self._response, self._pieces, []
        if response is not None:
            as_json = is_json(response.headers.get("content-type", "")) and how == WHOLE
            if not as_json and scrub is not None:
                keep_rest = how == WHOLE and not is_event_stream(response.headers)
                pieces = list(_complete_events(pieces, keep_rest=keep_rest))
            response = evolve(response, pieces=recorded_pieces(pieces, scrub, as_json=as_json))
        request = recorded_request(self._request, scrub)
        return RecordedExchange(request, how, self._elapsed(), response, self._number)

    def _elapsed(self) -> float:
        return round(self._clock() - self._started, _DIGITS)


class _RecordedBody:
    def __init__(self, stream: Any, exchange: _OpenExchange) -> None:
        self._stream = stream
        self._exchange = exchange

    def read(self, timeout: float | None) -> bytes | None:
        with self._exchange:
            return self._exchange.record_piece(self._stream.read(timeout))

    def close(self) -> None:
        with closing(self._stream):
            self._exchange.end(CLOSED)

    async def read_async(self, timeout: float | None) -> bytes | None:
        with self._exchange:
            return self._exchange.record_piece(await self._stream.read_async(timeout))

    async def close_async(self) -> None:
        try:
            self._exchange.end(CLOSED)
        finally:
            await self._stream.close_async()


def recorded_request(request: Request, scrub: Scrub | None) -> RecordedRequest:
    """Return a request in the form that a cassette stores. A JSON body may be reformatted."""
    url = urlsplit(request.url)
    path, query, body = url.path, url.query, request.body
    if scrub is not None:
        path, query = scrub_path(path, scrub), scrub_query(query, scrub)
        body = body and scrub_body([body], scrub)[0]
    content = to_content(body, as_json=True, exact=False) if body else None
    headers = request.headers.redacted()
    return RecordedRequest(request.method, path, headers, query=query, body=content)


def recorded_pieces(
    pieces: Sequence[tuple[float, bytes]], scrub: Scrub | None, *, as_json: bool
) -> tuple[Content, ...]:
    if as_json and pieces:
        pieces = [(pieces[-1][0], b"".join(data for _, data in pieces))]
    bodies = [data for _, data in pieces]
    if scrub is not None:
        bodies = scrub_body(bodies, scrub)
    convert = partial(to_content, as_json=as_json, exact=scrub is None)
    recorded = zip(pieces, bodies, strict=True)
    return tuple(convert(data, after=after) for (after, _), data in recorded)


def _complete_events(
    pieces: Iterable[tuple[float, bytes]], *, keep_rest: bool
) -> Iterator[tuple[float, bytes]]:
    """Join the pieces of a stream, so that each joined piece ends with a complete event.

    `scrub` then also finds strings that were split between two pieces. The rest after the last
    complete event may contain a part of a secret. It is dropped, unless `keep_rest` is True.
    """
    joined, after = bytearray(), 0.0
    for after, data in pieces:
        joined += data
        if joined.endswith(_BLANK_LINES):
            yield after, bytes(joined)
            joined.clear()
    if not keep_rest:
        ends = (joined.rfind(end) + len(end) for end in _BLANK_LINES if end in joined)
        del joined[max(ends, default=0) :]
    if joined:
        yield after, bytes(joined)
