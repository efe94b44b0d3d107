"""What may go wrong between a client and a fake server, as values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from itertools import cycle
from math import inf
from typing import Any, ClassVar, TypeAlias

from attrs import evolve, field, frozen

from flux0.domain.errors import ConnectError, ConnectionInterrupted, InvalidArgument
from flux0.domain.headers import Headers
from flux0.ports import Response
from flux0.testing.fake.calls import server_failure, whole_answer
from flux0.testing.fake.clock import Wait


@frozen
class Respond:
    """The call never reaches the server: something before it answers with a status.

    The body is `{"detail": detail}`, and the detail is the status's name by default; a 500 looks by
    default as the server's own does. `body` replaces all of it. `retry_after` becomes the header
    field of that name: seconds, or a date.
    """

    status_code: int
    detail: Any = None
    retry_after: float | str | None = None
    headers: Mapping[str, str] = field(factory=dict[str, str])
    body: bytes | None = None

    def answer(self) -> Response[bytes]:
        """Return the answer."""
        if self.body is not None:
            plain = whole_answer(self.status_code, "text/html", self.body)
        elif self.detail is None and self.status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
            plain = server_failure()
        else:
            detail = HTTPStatus(self.status_code).phrase if self.detail is None else self.detail
            body = json.dumps({"detail": detail}).encode()
            plain = whole_answer(self.status_code, "application/json", body)
        own = dict(self.headers)
        if self.retry_after is not None:
            own["retry-after"] = str(self.retry_after)
        return evolve(plain, headers=plain.headers.merge(Headers(tuple(own.items()))))


@frozen
class Refuse:
    """No connection comes about; `raises` tells in which way."""

    raises: type[ConnectError] = ConnectError


@frozen
class Drop:
    """The connection breaks off before the answer; with `after_acting`, after the server acted."""

    after_acting: bool = False


@frozen
class Delay:
    """The answer comes `seconds` late on the fake's clock, though the server has acted at once."""

    seconds: float


@frozen
class _Cut:
    needed: ClassVar[int] = 0  # How many of the two have to be given.
    after_events: int | None = None
    after_bytes: int | None = None

    def __attrs_post_init__(self) -> None:
        given = (self.after_events is not None) + (self.after_bytes is not None)
        if not self.needed <= given <= 1:
            raise InvalidArgument("after_bytes", "or after_events is needed, and not both")


@frozen
class Stall(_Cut):
    """Nothing more comes, until the client's timeout has passed on the fake's clock.

    That is after so many events or bytes of the body; by default, before the server does anything.
    """


@frozen
class Truncate(_Cut):
    """The connection breaks off after so many events or bytes; if `clean`, the body just ends."""

    needed: ClassVar[int] = 1
    clean: bool = False


def _positive(sizes: int | Iterable[int]) -> tuple[int, ...]:
    several = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    if not several or min(several) < 1:
        raise InvalidArgument("sizes", f"must be numbers of bytes above 0: {several}")
    return several


@frozen
class Split:
    """The body arrives in pieces of so many bytes; of several sizes, each is taken in turn.

    A size may be larger than an event: a piece then holds several, unless there is a pause.
    """

    sizes: tuple[int, ...] = field(converter=_positive)


Fault: TypeAlias = Respond | Refuse | Drop | Delay | Stall | Truncate | Split


def with_faults(pieces: Iterator[bytes | Wait], faults: Iterable[Fault]) -> Iterator[bytes | Wait]:
    """Return a body's pieces, and the waits before them, with what `faults` do to them."""
    for fault in sorted(faults, key=lambda fault: isinstance(fault, Split)):
        if isinstance(fault, Split):
            pieces = _split(pieces, fault.sizes)
        elif isinstance(fault, (Stall, Truncate)):
            pieces = _cut_off(pieces, fault)
    return pieces


def _cut_off(pieces: Iterator[bytes | Wait], fault: Stall | Truncate) -> Iterator[bytes | Wait]:
    counts_bytes = fault.after_events is None
    left = (fault.after_bytes if counts_bytes else fault.after_events) or 0
    while left:
        piece = next(pieces, None)
        if piece is None:
            raise AssertionError(f"{fault} did not happen: the body was over before")
        if isinstance(piece, bytes):
            piece = piece[:left] if counts_bytes else piece
            left -= len(piece) if counts_bytes else 1
        yield piece
    if isinstance(fault, Stall):
        while True:
            yield Wait(inf)
    if not fault.clean:
        raise ConnectionInterrupted("the connection was closed within the body")


def _split(pieces: Iterator[bytes | Wait], sizes: tuple[int, ...]) -> Iterator[bytes | Wait]:
    wanted = cycle(sizes)
    size = next(wanted)
    held = bytearray()
    try:
        for piece in pieces:
            waits = isinstance(piece, Wait)
            if isinstance(piece, bytes):
                held += piece
            # Before a wait, nothing follows for now that it could wait for.
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
