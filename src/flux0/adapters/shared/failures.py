"""What a library's failure is called: in plain words, alike over every library."""

from __future__ import annotations

import os
import socket
import ssl
from errno import ECONNABORTED, ECONNREFUSED, ECONNRESET, EPIPE
from typing import Final

from flux0.domain.errors import (
    ConnectError,
    ConnectionInterrupted,
    ConnectTimeout,
    PoolTimeout,
    ProtocolError,
    ReadTimeout,
    TransportError,
    TransportTimeout,
    WriteTimeout,
)

_TOO_LONG: Final[dict[type[TransportError], str]] = {
    ConnectTimeout: "no connection was made in time",
    PoolTimeout: "no connection of the pool became free in time",
    ReadTimeout: "nothing came for too long",
    WriteTimeout: "the server did not take the request in time",
    TransportTimeout: "it took too long",
}

_ENDED: Final = "the connection ended while it was made"
_TLS_ENDS: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError)


def failure(
    kind: type[TransportError], error: BaseException, *, answered: bool = False
) -> TransportError:
    """Return the error of ours for one of a library's.

    `answered` is whether the head of the answer was in.
    """
    return kind(_TOO_LONG.get(kind) or _in_words(kind, chain(error), answered=answered))


def refused_by_proxy(answer: str) -> ConnectError:
    """Return the error for a proxy that answered so when it was asked for a tunnel."""
    return ConnectError(f"the proxy refuses the connection: {answer}")


def chain(error: BaseException | None) -> tuple[BaseException, ...]:
    """Return an error and what it wraps, in whichever way, down to the innermost."""
    if error is None:
        return ()
    inner = (
        getattr(error, "reason", None),
        *reversed(error.args),
        *getattr(error, "exceptions", ()),
        error.__cause__,
    )
    return (error, *chain(next((each for each in inner if isinstance(each, BaseException)), None)))


def _in_words(
    kind: type[TransportError], errors: tuple[BaseException, ...], *, answered: bool
) -> str:
    # Those of libraries that are an OSError have no number.
    known = (each for each in reversed(errors) if isinstance(each, OSError) and each.errno)
    found, told = next(known, None), _told(errors[-1])
    if kind is ProtocolError:
        return f"the answer is not valid HTTP: {told}"
    if kind is ConnectionInterrupted:
        return _broken_off(found, "within the body" if answered else "before the answer")
    if isinstance(errors[-1], UnicodeError):
        return "the host's name is not valid"
    return _unconnected(found) if found else told or _ENDED


def _unconnected(error: OSError) -> str:
    if isinstance(error, _TLS_ENDS):
        return _ENDED
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not trusted: {error.verify_message.rstrip('.')}"
    if isinstance(error, socket.gaierror):
        return f"the host's name cannot be looked up: {_system(error)}"
    return _system(error)


def _broken_off(error: OSError | None, where: str) -> str:
    if error is None or error.errno == EPIPE or isinstance(error, _TLS_ENDS):
        return f"the connection ended {where}"
    if error.errno in (ECONNABORTED, ECONNRESET):
        return f"the connection was reset {where}"
    return f"the connection failed {where}: {_system(error)}"


def _system(error: OSError) -> str:
    """Return what the operating system, or its TLS, says."""
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {(error.reason or str(error)).lower().replace('_', ' ')}"
    if error.errno == ECONNREFUSED:
        return "connection refused"
    # asyncio has other words than the system.
    name = isinstance(error, socket.gaierror)
    said = str(error.strerror if name else os.strerror(error.errno or 0))
    return f"{said[:1].lower()}{said[1:]}"


def _told(error: BaseException) -> str:
    """Return what a library says, on one line."""
    message: object = getattr(error, "message", None)  # Of aiohttp, whose text has more.
    return " ".join((message if isinstance(message, str) else str(error)).split())
