"""Creates transport errors. As far as possible, the messages do not depend on the HTTP library."""

from __future__ import annotations

import os
import socket
import ssl
from errno import ECONNABORTED, ECONNREFUSED, ECONNRESET, EPIPE
from typing import Final

from flux0.domain.errors import (
    ConnectError,
    ConnectionInterrupted,
    ProtocolError,
    TransportError,
    TransportTimeout,
)
from flux0.domain.timeouts import timed_out
from flux0.ports import Timeout

_CLOSED: Final = "the server closed the connection before it was established"
_TLS_CLOSED: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError)


def failure(
    kind: type[TransportError],
    error: BaseException,
    timeout: Timeout,
    *,
    head_received: bool = False,
) -> TransportError:
    if issubclass(kind, TransportTimeout):
        # The name of the timeout is a part of the error class's name: "connect" for
        # `ConnectTimeout`.
        name = kind.__name__.removesuffix("Timeout").lower()
        return timed_out(kind, getattr(timeout, name, None))
    return kind(_describe(kind, causes(error), head_received=head_received))


def refused_by_proxy(status: str) -> ConnectError:
    problem = f"the proxy refused the connection: {status}"
    needs_login = status.startswith("407")  # Status 407 means that the proxy needs a login.
    return unusable_proxy(problem) if needs_login else ConnectError(problem)


def login_rejected_by_proxy() -> ConnectError:
    return unusable_proxy("the proxy rejected the login: set user and password in the proxy's URL")


def unusable_proxy(problem: str) -> ConnectError:
    """Return the error for a proxy that cannot be used. A call with this error is not retried."""
    error = ConnectError(problem)
    error.permanent = True
    return error


def proxy_unreachable(error: TransportError, proxy: str) -> TransportError:
    """Return an error whose message names the unreachable proxy, without credentials.

    Args:
        error: The error that was raised when the library tried to connect to the proxy.
        proxy: The proxy's URL, or its host and port.
    """
    address = proxy.rpartition("://")[2].rpartition("@")[2].rstrip("/")
    return type(error)(f"cannot connect to the proxy {address}: {error.problem}")


def causes(error: BaseException | None) -> tuple[BaseException, ...]:
    """Return `error` and the errors that are nested in it, from the outermost to the innermost."""
    found: list[BaseException] = []
    # After `raise error from error`, an error is nested in itself.
    while error is not None and not any(error is each for each in found):
        found.append(error)
        inner = (
            getattr(error, "reason", None),
            # PySocks stores the error of the socket in the attribute `socket_err`.
            getattr(error, "socket_err", None),
            *reversed(error.args),
            *getattr(error, "exceptions", ()),
            error.__cause__,
        )
        error = next((each for each in inner if isinstance(each, BaseException)), None)
    return tuple(found)


def _describe(
    kind: type[TransportError], errors: tuple[BaseException, ...], *, head_received: bool
) -> str:
    # Skip an OSError without an errno: it is an error of an HTTP library that derives from OSError,
    # and does not give the cause.
    known = (each for each in reversed(errors) if isinstance(each, OSError) and each.errno)
    found, message = next(known, None), _message(errors[-1])
    if kind is ProtocolError:
        return f"the response is not valid HTTP: {message}"
    if kind is ConnectionInterrupted:
        return _interrupted(found, "within the body" if head_received else "before the response")
    if isinstance(errors[-1], UnicodeError):
        return "the host name is not valid"
    return _unconnected(found) if found else message or _CLOSED


def _unconnected(error: OSError) -> str:
    if isinstance(error, _TLS_CLOSED):
        return _CLOSED
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not trusted: {error.verify_message.rstrip('.')}"
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return "TLS failed: the server or the proxy replied without TLS; use http:// in its URL"
    if isinstance(error, socket.gaierror):
        return f"the host name cannot be resolved: {_system(error)}"
    return _system(error)


def _interrupted(error: OSError | None, where: str) -> str:
    if error is None or error.errno == EPIPE or isinstance(error, _TLS_CLOSED):
        return f"the connection was closed {where}"
    if error.errno in (ECONNABORTED, ECONNRESET):
        return f"the connection was reset {where}"
    return f"the connection failed {where}: {_system(error)}"


def _system(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {(error.reason or str(error)).lower().replace('_', ' ')}"
    if error.errno == ECONNREFUSED:
        return "connection refused"
    # asyncio replaces the message of an OSError with its own text. Therefore, get the system's
    # message for the error number.
    name = isinstance(error, socket.gaierror)
    message = str(error.strerror if name else system_message(error.errno or 0))
    return f"{message[:1].lower()}{message[1:]}"


def system_message(number: int) -> str:
    # On Windows, `os.strerror` does not know the error numbers of sockets, but `errorTab` does.
    table: dict[int, str] = getattr(socket, "errorTab", {})
    return table.get(number) or os.strerror(number)


def _message(error: BaseException) -> str:
    # Prefer the attribute `message`, because the str() of aiohttp's errors also contains header
    # fields, which can contain credentials.
    message: object = getattr(error, "message", None)
    return " ".join((message if isinstance(message, str) else str(error)).split())
