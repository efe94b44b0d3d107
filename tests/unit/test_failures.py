"""What failures are called, whatever a library wraps them in."""

from __future__ import annotations

import errno
import socket
import ssl

import pytest

from flux0 import ConnectError, ConnectionInterrupted, ProtocolError, TLSError, TransportError
from flux0.adapters.support.failures import failure

TLS_VERSION = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")
TLS_VERSION.reason = "WRONG_VERSION_NUMBER"


@pytest.mark.parametrize(
    ("kind", "error", "answered", "words"),
    [
        (
            ConnectError,
            ConnectionRefusedError(errno.ECONNREFUSED, "x"),
            False,
            "connection refused",
        ),
        (ConnectError, OSError(errno.EHOSTUNREACH, "x"), False, "no route to host"),
        (ConnectError, UnicodeError("label too long"), False, "the host's name is not valid"),
        (ConnectError, OSError("of a proxy,\n indeed"), False, "of a proxy, indeed"),
        (ConnectError, EOFError(), False, "the connection ended while it was made"),
        (
            ConnectError,
            socket.gaierror(socket.EAI_AGAIN, "Try again"),
            False,
            "the host's name cannot be looked up: try again",
        ),
        (TLSError, TLS_VERSION, False, "TLS failed: wrong version number"),
        (ProtocolError, ValueError("a\n  b"), False, "the answer is not valid HTTP: a b"),
        (ConnectionInterrupted, EOFError(), False, "the connection ended before the answer"),
        (
            ConnectionInterrupted,
            BrokenPipeError(errno.EPIPE, "x"),
            False,
            "the connection ended before the answer",
        ),
        (
            ConnectionInterrupted,
            ConnectionResetError(errno.ECONNRESET, "x"),
            True,
            "the connection was reset within the body",
        ),
        (
            ConnectionInterrupted,
            OSError(errno.EHOSTUNREACH, "x"),
            True,
            "the connection failed within the body: no route to host",
        ),
        (
            ConnectionInterrupted,
            TLS_VERSION,
            True,
            "the connection failed within the body: TLS failed: wrong version number",
        ),
    ],
)
@pytest.mark.parametrize("wrapped", ["not", "cause", "argument", "reason", "group"])
def test_the_innermost_error_says_it(
    kind: type[TransportError], error: Exception, answered: bool, words: str, wrapped: str
) -> None:
    outer = RuntimeError("at http://ada:secret@host/")
    match wrapped:
        case "not":
            outer = error  # type: ignore[assignment]
        case "cause":
            outer.__cause__ = error
        case "argument":
            outer.args = ("secret", error)
        case "reason":
            outer.reason = error  # type: ignore[attr-defined]
        case _:
            outer.exceptions = (error, ValueError("another"))  # type: ignore[attr-defined]
    made = failure(kind, outer, answered=answered)
    assert type(made) is kind
    assert made.problem == words
