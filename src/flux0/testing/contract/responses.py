"""What a `ByteServer` does once it has read a request, as values: steps, and HTTP made of them."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterable, Iterator
from typing import Literal, TypeAlias, get_args

from attrs import frozen

Framing: TypeAlias = Literal["chunked", "content-length", "until-close"]
FRAMINGS: tuple[Framing, ...] = get_args(Framing)


@frozen
class Write:
    """Write `data`; `below_tls` as it is, which is noise on a secured connection."""

    data: bytes
    below_tls: bool = False


@frozen
class Hold:
    """Stay silent, the connection open, until the server is released or the client is gone."""


@frozen
class Silence:
    """Stay silent for `seconds`."""

    seconds: float


@frozen
class Receive:
    """Wait for the first byte of the next request, which is then lost."""


@frozen
class Signal:
    """Set `event`, for a test that waits until the server has come this far."""

    event: threading.Event


@frozen
class Disconnect:
    """Write nothing more: the client reads all that was sent, then the end (FIN)."""


@frozen
class Reset:
    """Break the connection off (RST)."""


ServerStep: TypeAlias = Write | Hold | Silence | Receive | Signal | Disconnect | Reset
Answer: TypeAlias = tuple[ServerStep, ...]


def answer(
    *pieces: bytes | Hold | Silence,
    status: str = "200 OK",
    headers: Iterable[tuple[str, str]] = (),
    framing: Framing = "content-length",
    gzip: bool = False,
) -> Answer:
    """Return the steps of an HTTP/1.1 answer, with the head and each piece written on its own.

    With `gzip` every piece is flushed, so that it can be decompressed as soon as it is there.
    """
    parts = list(_gzipped(pieces) if gzip else pieces)
    fields = [*headers, *[("Content-Encoding", "gzip")] * gzip]
    end: Answer = ()
    if framing == "chunked":
        fields.append(("Transfer-Encoding", "chunked"))
        parts = [p if not isinstance(p, bytes) else b"%x\r\n%b\r\n" % (len(p), p) for p in parts]
        end = (Write(b"0\r\n\r\n"),)
    elif framing == "content-length":
        length = sum(len(part) for part in parts if isinstance(part, bytes))
        fields.append(("Content-Length", str(length)))
    else:
        fields.append(("Connection", "close"))
        end = (Disconnect(),)
    body = (Write(part) if isinstance(part, bytes) else part for part in parts)
    return (head(status, fields), *body, *end)


def head(status: str, fields: Iterable[tuple[str, str]] = ()) -> Write:
    """Write a status line and header fields."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return Write(f"HTTP/1.1 {status}\r\n{lines}\r\n".encode("latin-1"))


def written(steps: Answer) -> bytes:
    """Return all that an answer writes."""
    return b"".join(step.data for step in steps if isinstance(step, Write))


def size(steps: Answer) -> int:
    """Return how many bytes an answer has."""
    return len(written(steps))


def byte_by_byte(steps: Answer) -> Answer:
    """Return the same answer with every byte written on its own."""
    return tuple(
        one
        for step in steps
        for one in ([Write(bytes((b,))) for b in step.data] if isinstance(step, Write) else [step])
    )


def cut(steps: Answer, size: int) -> Answer:
    """Return what is left of an answer when its server dies after `size` bytes."""
    return (Write(written(steps)[:size]), Disconnect())


def _gzipped(pieces: Iterable[bytes | Hold | Silence]) -> Iterator[bytes | Hold | Silence]:
    compressor = zlib.compressobj(wbits=31)
    for piece in pieces:
        if isinstance(piece, bytes):
            yield compressor.compress(piece) + compressor.flush(zlib.Z_SYNC_FLUSH)
        else:
            yield piece
    yield compressor.flush()
