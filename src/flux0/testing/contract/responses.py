"""Scripts for a `ByteServer`: steps such as `Write`, and functions that build HTTP responses."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterable, Iterator
from typing import Literal, TypeAlias, get_args

from attrs import frozen

Framing: TypeAlias = Literal["chunked", "content-length", "close-delimited"]
FRAMINGS: tuple[Framing, ...] = get_args(Framing)


@frozen
class Write:
    """Write bytes to the connection.

    Attributes:
        data: the bytes to send.
        below_tls: whether to write the bytes unencrypted into a TLS connection.
    """

    data: bytes
    below_tls: bool = False


@frozen
class WaitForRelease:
    """Send nothing until `ByteServer.release` is called or the client closes the connection."""


@frozen
class Sleep:
    """Send nothing for some time, or until the client closes the connection.

    Attributes:
        seconds: the wait's duration in seconds.
    """

    seconds: float


@frozen
class Receive:
    """Wait until the client has sent the first bytes of another request."""


@frozen
class Signal:
    """Set an event, so that a test can wait until the server has reached this step.

    Attributes:
        event: the event to set.
    """

    event: threading.Event


@frozen
class Disconnect:
    """Close the connection for writing (FIN). The client can still read all sent bytes."""


@frozen
class Reset:
    """Reset the connection (RST)."""


ServerStep: TypeAlias = Write | WaitForRelease | Sleep | Receive | Signal | Disconnect | Reset
"""A step of a `ByteServer`."""
ServerSteps: TypeAlias = tuple[ServerStep, ...]
Piece: TypeAlias = bytes | WaitForRelease | Sleep


def http_response(
    *pieces: Piece,
    status: str = "200 OK",
    headers: Iterable[tuple[str, str]] = (),
    framing: Framing = "content-length",
    gzip: bool = False,
) -> ServerSteps:
    """Return the steps of an HTTP/1.1 response: a `Write` of its head and a `Write` of each piece.

    Args:
        pieces: The body's pieces. A `WaitForRelease` or `Sleep` delays the next piece.
        status: The status code and the reason phrase.
        headers: Further header fields. Fields such as `content-length` are added automatically.
        framing: The way in which the body's end is marked, such as "chunked".
        gzip: Whether to compress the body. The client can decompress each piece when it arrives.
    """
    parts = list(_gzipped(pieces) if gzip else pieces)
    fields = [*headers, *[("Content-Encoding", "gzip")] * gzip]
    end: ServerSteps = ()
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
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return Write(f"HTTP/1.1 {status}\r\n{lines}\r\n".encode("latin-1"))


def to_bytes(steps: ServerSteps) -> bytes:
    return b"".join(step.data for step in steps if isinstance(step, Write))


def size(steps: ServerSteps) -> int:
    return len(to_bytes(steps))


def byte_by_byte(steps: ServerSteps) -> ServerSteps:
    """Return `steps` with one `Write` for each byte."""
    return tuple(
        each
        for step in steps
        for each in ([Write(bytes((b,))) for b in step.data] if isinstance(step, Write) else [step])
    )


def truncated(steps: ServerSteps, size: int) -> ServerSteps:
    """Return steps that write the first `size` bytes of `steps` and close the connection."""
    return (Write(to_bytes(steps)[:size]), Disconnect())


def _gzipped(pieces: Iterable[Piece]) -> Iterator[Piece]:
    compressor = zlib.compressobj(wbits=31)
    for piece in pieces:
        if isinstance(piece, bytes):
            yield compressor.compress(piece) + compressor.flush(zlib.Z_SYNC_FLUSH)
        else:
            yield piece
    yield compressor.flush()
