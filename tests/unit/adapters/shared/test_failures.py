"""The messages of transport errors do not depend on how a library nests its errors."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Any

import pytest
from attrs import evolve

from flux0 import ConnectError, ConnectionInterrupted, ProtocolError, TLSError, TransportError
from flux0.adapters.shared.failures import (
    failure,
    login_rejected_by_proxy,
    proxy_unreachable,
    refused_by_proxy,
)
from flux0.domain.errors import (
    ConnectTimeout,
    PoolTimeout,
    ReadTimeout,
    TransportTimeout,
    WriteTimeout,
)
from flux0.ports import Timeout


def tls_error(reason: Any, message: str = "x") -> ssl.SSLError:
    error = ssl.SSLError(1, message)
    error.reason = reason
    return error


TLS_VERSION = tls_error("WRONG_VERSION_NUMBER")
HANDSHAKE = tls_error("SSLV3_ALERT_HANDSHAKE_FAILURE")
UNTRUSTED = ssl.SSLCertVerificationError(1, "x")
UNTRUSTED.verify_message = "self-signed certificate."
TLS_CLOSED = ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "EOF occurred in violation of protocol")
NO_HOST = OSError(errno.EHOSTUNREACH, "x")
NO_NAME = socket.gaierror(socket.EAI_AGAIN, "Try again")
RESET = ConnectionResetError(errno.ECONNRESET, "x")


class MessageError(Exception):
    """Like aiohttp's errors, `str` also returns header fields."""

    message = "bad\n status line"


BEFORE, WITHIN = "before the response", "within the body"

CASES: list[tuple[type[TransportError], Exception, str]] = [
    (ConnectError, ConnectionRefusedError(errno.ECONNREFUSED, "x"), "connection refused"),
    (ConnectError, NO_HOST, "no route to host"),
    (ConnectError, UnicodeError("label too long"), "the host name is not valid"),
    (ConnectError, OSError("of a proxy,\n indeed"), "of a proxy, indeed"),
    (ConnectError, EOFError(), "the server closed the connection before it was established"),
    (ConnectError, NO_NAME, "the host name cannot be resolved: try again"),
    (
        TLSError,
        TLS_VERSION,
        "TLS failed: the server or the proxy replied without TLS; use http:// in its URL",
    ),
    (TLSError, HANDSHAKE, "TLS failed: sslv3 alert handshake failure"),
    (TLSError, tls_error(None, "No cipher"), "TLS failed: no cipher"),
    (TLSError, UNTRUSTED, "the server's certificate is not trusted: self-signed certificate"),
    (TLSError, TLS_CLOSED, "the server closed the connection before it was established"),
    (ProtocolError, ValueError("a\n  b"), "the response is not valid HTTP: a b"),
    (
        ProtocolError,
        MessageError("cookie: secret"),
        "the response is not valid HTTP: bad status line",
    ),
    (ConnectionInterrupted, EOFError(), f"the connection was closed {BEFORE}"),
    (
        ConnectionInterrupted,
        BrokenPipeError(errno.EPIPE, "x"),
        f"the connection was closed {BEFORE}",
    ),
    (ConnectionInterrupted, TLS_CLOSED, f"the connection was closed {WITHIN}"),
    (ConnectionInterrupted, RESET, f"the connection was reset {WITHIN}"),
    (ConnectionInterrupted, NO_HOST, f"the connection failed {WITHIN}: no route to host"),
    (
        ConnectionInterrupted,
        TLS_VERSION,
        f"the connection failed {WITHIN}: TLS failed: wrong version number",
    ),
]


@pytest.mark.parametrize(("kind", "error", "message"), CASES)
@pytest.mark.parametrize("wrapped", ["not", "cause", "argument", "reason", "socket_err", "group"])
def test_message_describes_the_innermost_error(
    kind: type[TransportError], error: Exception, message: str, wrapped: str
) -> None:
    outer: Exception = RuntimeError("at http://ada:secret@host/")
    if wrapped == "not":
        outer = error
    elif wrapped == "cause":
        outer.__cause__ = error
    elif wrapped == "argument":
        outer.args = ("secret", error)
    else:
        name, value = {
            "reason": ("reason", error),
            "socket_err": ("socket_err", error),
            "group": ("exceptions", (error, ValueError("another"))),
        }[wrapped]
        setattr(outer, name, value)
    made = failure(kind, outer, Timeout(), head_received=WITHIN in message)
    assert type(made) is kind
    assert made.problem == message


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (ConnectTimeout, "connect"),
        (PoolTimeout, "pool"),
        (ReadTimeout, "read"),
        (WriteTimeout, "write"),
    ],
)
def test_timeout_error_names_its_limit(kind: type[TransportTimeout], name: str) -> None:
    error = failure(kind, TimeoutError("x"), evolve(Timeout(9, 9, 9, 9), **{name: 1.5}))
    assert type(error) is kind
    assert f" within 1.5 s ({name} timeout" in error.problem


def test_error_that_was_raised_from_itself_is_described() -> None:
    error = ConnectionRefusedError(errno.ECONNREFUSED, "x")
    error.__cause__ = error
    assert failure(ConnectError, error, Timeout()).problem == "connection refused"


@pytest.mark.parametrize(
    "proxy", ["http://ada:s%40cret@127.0.0.1:3128", "127.0.0.1:3128", "socks5h://127.0.0.1:3128/"]
)
def test_unreachable_proxy_is_named_without_its_credentials(proxy: str) -> None:
    refused = failure(ConnectError, ConnectionRefusedError(errno.ECONNREFUSED, ""), Timeout())
    error = proxy_unreachable(refused, proxy)
    assert type(error) is ConnectError
    assert error.problem == "cannot connect to the proxy 127.0.0.1:3128: connection refused"


@pytest.mark.parametrize(
    ("status", "permanent"),
    [("407 Proxy Authentication Required", True), ("503 Service Unavailable", False)],
)
def test_proxy_that_needs_a_login_is_permanently_unusable(status: str, *, permanent: bool) -> None:
    error = refused_by_proxy(status)
    assert str(error) == f"the proxy refused the connection: {status}"
    assert error.permanent is permanent


def test_rejected_login_of_a_proxy_says_where_to_set_it() -> None:
    error = login_rejected_by_proxy()
    assert "set user and password in the proxy's URL" in error.problem
    assert error.permanent
