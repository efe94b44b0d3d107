"""Faults: values that describe failures between a client and a fake server."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from http.client import responses
from itertools import cycle
from math import inf
from typing import Any, TypeAlias

from attrs import evolve, field, frozen

from flux0.domain import arguments
from flux0.domain.errors import (
    ConnectError,
    ConnectionInterrupted,
    ConnectTimeout,
    InvalidArgument,
    PoolTimeout,
    TLSError,
    TransportError,
)
from flux0.domain.headers import Headers
from flux0.domain.timeouts import timed_out
from flux0.ports import Response, Timeout
from flux0.testing.fake.calls import ReceivedCall, complete_response, internal_server_error
from flux0.testing.fake.clock import Wait
from flux0.testing.fake.steps import check_interval, checked_by
from flux0.testing.fake.turn import FakeTurn

_LARGEST_STATUS = 999


def _check_count(name: str, value: object) -> None:
    if value is not None:
        arguments.integer(name, value, smallest=0)


def _check_status(name: str, value: object) -> None:
    if arguments.integer(name, value, smallest=200) > _LARGEST_STATUS:
        raise InvalidArgument(name, f"must be from 200 to {_LARGEST_STATUS}, not {value}")


def _check_error(name: str, value: object) -> None:
    if not (isinstance(value, type) and issubclass(value, ConnectError)):
        raise InvalidArgument(name, f"must be ConnectError or a subclass of it, not {value!r}")


@frozen
class Respond:
    """A response from a proxy in front of the server. The call does not reach the fake server.

    Attributes:
        status_code: the response's HTTP status, from 200 to 999.
        detail: the member `detail` in the JSON body. The default is the phrase for the
            status, such as "Service Unavailable", or "Status 524" if the status has no phrase.
            Status 500 has a plain-text body by default, as on the real server.
        retry_after: the value for the header `retry-after`: seconds, or an HTTP date.
        headers: more header fields; they replace default fields with the same name.
        body: the whole body in bytes, instead of the JSON with `detail`.
    """

    status_code: int = field(validator=checked_by(_check_status))
    detail: Any = None
    retry_after: float | str | None = None
    headers: Mapping[str, str] = field(
        factory=dict[str, str], validator=checked_by(arguments.parameters)
    )
    body: bytes | None = None

    def response(self) -> Response[bytes]:
        """Return the response that the client receives."""
        if self.body is not None:
            plain = complete_response(self.status_code, "text/html", self.body)
        elif self.detail is None and self.status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
            plain = internal_server_error()
        else:
            phrase = responses.get(self.status_code, f"Status {self.status_code}")
            detail = phrase if self.detail is None else self.detail
            body = json.dumps({"detail": detail}).encode()
            plain = complete_response(self.status_code, "application/json", body)
        own = dict(self.headers)
        if self.retry_after is not None:
            own["retry-after"] = str(self.retry_after)
        return evolve(plain, headers=plain.headers.merge(Headers(tuple(own.items()))))


@frozen
class Refuse:
    """The connection cannot be established. Nothing is sent, so the client may retry.

    Attributes:
        raises: the error's class, such as `ConnectTimeout` or `TLSError`.
    """

    raises: type[ConnectError] = field(default=ConnectError, validator=checked_by(_check_error))

    def error(self, timeout: Timeout) -> TransportError:
        """Return the error that the call raises, with the message of a real transport."""
        if self.raises is ConnectTimeout:
            return timed_out(ConnectTimeout, timeout.connect)
        if self.raises is PoolTimeout:
            return timed_out(PoolTimeout, timeout.pool)
        if self.raises is TLSError:
            return TLSError("the server's certificate is not trusted: self-signed certificate")
        return self.raises("connection refused")


@frozen
class Drop:
    """The server closes the connection before it sends a response.

    Attributes:
        after_acting: whether the server acts on the request, such as storing a message, before it
            closes the connection.
    """

    after_acting: bool = field(default=False, validator=checked_by(arguments.instance, bool))


@frozen
class Delay:
    """The server acts on the request at once, but sends the response `seconds` later.

    The call raises `ReadTimeout` if its read timeout expires first.

    Attributes:
        seconds: the delay in seconds, on the fake's simulated clock.
    """

    seconds: float = field(validator=check_interval)


@frozen
class _Cutoff:
    after_events: int | None = field(default=None, validator=checked_by(_check_count))
    after_bytes: int | None = field(default=None, validator=checked_by(_check_count))

    def __attrs_post_init__(self) -> None:
        if None not in (self.after_events, self.after_bytes):
            raise InvalidArgument("after_bytes", "cannot be combined with after_events")


@frozen
class Stall(_Cutoff):
    """The server stops sending data. A client timeout expires on the simulated clock.

    Pass at most one argument. Without arguments, the server ignores the request and sends no
    response.

    Attributes:
        after_events: the number of events in the body before the stall.
        after_bytes: the number of bytes in the body before the stall.
    """


@frozen
class Truncate(_Cutoff):
    """The connection is closed within the body, by default before its first byte.

    Attributes:
        after_events: the number of events in the body before its end.
        after_bytes: the number of bytes in the body before its end.
        clean: whether the body ends without a transport error, as if it were complete.
    """

    clean: bool = False


def _positive(sizes: int | Iterable[int]) -> tuple[int, ...]:
    several = tuple(sizes) if isinstance(sizes, Iterable) else (sizes,)
    return tuple(arguments.integer("sizes", size, smallest=1) for size in several or (0,))


@frozen
class Split:
    """The client receives the body in pieces with the given sizes.

    A piece can contain several events. Before the agent waits, the bytes that are left are sent as
    a smaller piece.

    Attributes:
        sizes: the number of bytes in each piece, or several numbers that are used in rotation.
    """

    sizes: tuple[int, ...] = field(converter=_positive)


Pieces: TypeAlias = Iterator[bytes | Wait]
Fault: TypeAlias = Respond | Refuse | Drop | Delay | Stall | Truncate | Split
"""A failure between a client and a fake server."""


def with_faults(
    pieces: Pieces, faults: Iterable[Fault], call: ReceivedCall, turn: FakeTurn | None
) -> Pieces:
    """Return the pieces of a body, and the waits between them, with `faults` applied.

    If a `Stall` or `Truncate` ends the stream of `turn` early, `FakeTransport.assert_all_used`
    treats the agent's remaining steps as used.
    """
    for fault in sorted(faults, key=lambda fault: isinstance(fault, Split)):
        if isinstance(fault, Split):
            pieces = _split(pieces, fault.sizes)
        elif isinstance(fault, (Stall, Truncate)):
            pieces = _cut_off(pieces, fault, call, turn)
    return pieces


def _cut_off(
    pieces: Pieces, fault: Stall | Truncate, call: ReceivedCall, turn: FakeTurn | None
) -> Pieces:
    counts_bytes = fault.after_events is None
    limit = (fault.after_bytes if counts_bytes else fault.after_events) or 0
    left = limit
    while left:
        piece = next(pieces, None)
        if piece is None:
            unit = "bytes" if counts_bytes else "events"
            reason = f"the response body of {call} has only {limit - left} {unit}"
            raise AssertionError(f"{fault} was not applied: {reason}")
        if isinstance(piece, bytes):
            piece = piece[:left] if counts_bytes else piece
            left -= len(piece) if counts_bytes else 1
        yield piece
    if turn is not None:
        turn.mark_used_up()
    if isinstance(fault, Stall):
        while True:
            yield Wait(inf)
    if not fault.clean:
        raise ConnectionInterrupted("the connection was closed within the body")


def _split(pieces: Pieces, sizes: tuple[int, ...]) -> Pieces:
    wanted = cycle(sizes)
    size = next(wanted)
    held = bytearray()
    try:
        for piece in pieces:
            waits = isinstance(piece, Wait)
            if isinstance(piece, bytes):
                held += piece
            # Before a wait, yield all buffered bytes, because the next bytes arrive after the wait.
            while len(held) >= size or (held and waits):
                yield bytes(held[:size])
                del held[:size]
                size = next(wanted)
            if waits:
                yield piece
    except ConnectionInterrupted:
        if held:
            yield bytes(held)
        raise
    if held:
        yield bytes(held)
