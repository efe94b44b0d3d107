"""Bodies and errors of transports over `urllib3` and `requests`."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator
from contextlib import suppress
from http.client import HTTPException, IncompleteRead
from io import BytesIO
from traceback import walk_tb
from typing import Any, Final

from urllib3 import BaseHTTPResponse, HTTPResponse, exceptions

from flux0.adapters.shared.exchange import shut_down
from flux0.adapters.shared.failures import (
    causes,
    failure,
    login_rejected_by_proxy,
    proxy_unreachable,
    refused_by_proxy,
)
from flux0.adapters.shared.limits import LARGE_REQUEST_BYTES, READ_BYTES
from flux0.adapters.urllib3.connection import Urllib3Connection, Urllib3Exchange
from flux0.domain.errors import (
    ConnectError,
    ConnectionInterrupted,
    ConnectTimeout,
    PoolTimeout,
    ProtocolError,
    ReadTimeout,
    TLSError,
    TransportError,
    WriteTimeout,
)
from flux0.ports import Timeout


def request_body(body: bytes | None) -> bytes | BytesIO | None:
    """Return a request body for urllib3: as bytes or, if the body is large, as a file.

    urllib3 sends a file in blocks. Then the write timeout limits each block, not the whole body.
    """
    return body if body is None or len(body) <= LARGE_REQUEST_BYTES else BytesIO(body)


class Urllib3Source:
    """Receives one response body over urllib3, for a `SyncBody`.

    If the connection is not tracked (see `track`), the HTTP library itself reads the body. Then the
    request's read timeout limits each read, and `close` does not wake a thread that waits for data.

    Args:
        response: A response of urllib3, or a similar object. Its body must not be loaded yet.
        read_timeout: The request's read timeout.
    """

    def __init__(self, response: Any, read_timeout: float | None) -> None:
        # A recorder such as vcrpy returns responses of its own classes. The body of such a response
        # is already decoded.
        encoded = isinstance(response, BaseHTTPResponse)
        self.coding: str = response.headers.get("content-encoding", "") if encoded else ""
        connection = getattr(response, "connection", None)
        tracked = connection.last_response if isinstance(connection, Urllib3Connection) else None
        self._received = _read_by_library(response) if tracked is None else tracked.pieces()
        self._raw_socket = None if tracked is None else tracked.raw_socket
        self._response = response
        self._read_timeout = read_timeout

    def receive(self, timeout: float | None) -> bytes | None:
        # The socket's timeout limits the whole wait for the next piece of the body, because a piece
        # needs at most one `recv`.
        raw_socket = self._raw_socket
        if raw_socket is not None and raw_socket.gettimeout() != timeout:
            raw_socket.settimeout(timeout)
        return next(self._received, None)

    def finish(self) -> None:
        self._response.release_conn()
        _remove_finalizer(self._response)

    def shut_down(self) -> None:
        shut_down(self._raw_socket)

    def release(self) -> None:
        with suppress(OSError, exceptions.HTTPError):
            self._response.close()
            self._response.release_conn()
        _remove_finalizer(self._response)

    def translate_error(self, error: BaseException, timeout: float | None) -> TransportError | None:
        if not isinstance(error, (HTTPException, OSError, exceptions.HTTPError)):
            return None
        kind = _kind_after_sending(causes(error)[-1])
        limit = self._read_timeout if self._raw_socket is None else timeout
        return failure(kind, error, Timeout(read=limit), head_received=True)


class _ReleasedResponse(HTTPResponse):
    """A response that does nothing when it is freed, because its connection was released.

    The finalizer of `HTTPResponse` reads the property `closed`, which is a function of Python.
    Python ignores an exception that a signal handler raises in a finalizer.
    """

    # `bool` is a function of C, which signal handlers cannot interrupt.
    __del__: Any = staticmethod(bool)


def _remove_finalizer(response: Any) -> None:
    if type(response) is HTTPResponse:
        response.__class__ = _ReleasedResponse


def _read_by_library(response: Any) -> Iterator[bytes]:
    # If the user's hook has closed the response, `read1` returns no bytes, as at the end of a body,
    # although the body is incomplete.
    if response.closed:
        raise IncompleteRead(b"")
    options = {"decode_content": False} if isinstance(response, BaseHTTPResponse) else {}
    while piece := response.read1(READ_BYTES, **options):
        yield piece


def translate_error(error: BaseException, exchange: Urllib3Exchange) -> TransportError:
    errors = causes(error)
    _clear_frames(errors)

    def wraps(*kinds: type[BaseException]) -> bool:
        return any(isinstance(each, kinds) for each in errors)

    message = str(errors[-1])
    if wraps(exceptions.ProxyError) and message.startswith(_TUNNEL_FAILED):
        return refused_by_proxy(message.removeprefix(_TUNNEL_FAILED))
    failed_proxy = exchange.failed_proxy
    for each in errors:
        # Compare the names of the error classes: PySocks is optional, so its classes cannot always
        # be imported.
        match f"{type(each).__module__}.{type(each).__name__}":
            case "socks.SOCKS5AuthError":
                return login_rejected_by_proxy()
            case "socks.SOCKS4Error" | "socks.SOCKS5Error":
                # An error message of PySocks is a code and a reason, such as "0x05: Connection
                # refused". The text after the colon is the reason.
                return refused_by_proxy(str(each).partition(": ")[2].lower())
            case "socks.ProxyConnectionError":
                # The error message of PySocks contains the proxy's address, for example "Error
                # connecting to SOCKS5 proxy 127.0.0.1:1080: ...".
                failed_proxy = str(each).partition(" proxy ")[2].partition(": ")[0]
            case _:
                pass
    kind = _kind_after_sending(errors[-1])
    # If urllib3 raises `EmptyPoolError` or `ClosedPoolError`, the request got no connection from
    # the pool, and was not sent.
    without_connection = wraps(exceptions.EmptyPoolError, exceptions.ClosedPoolError)
    if not exchange.sent and (without_connection or exchange.failure is not None):
        kind = ConnectError
        if wraps(exceptions.EmptyPoolError):
            kind = PoolTimeout
        elif wraps(TimeoutError):
            kind = ConnectTimeout
        elif wraps(exceptions.SSLError) and not wraps(*_CLOSED_IN_HANDSHAKE):
            kind = TLSError
    elif wraps(TimeoutError) and not wraps(exceptions.ReadTimeoutError):
        kind = WriteTimeout
    translated = failure(kind, error, exchange.timeout)
    return translated if failed_proxy is None else proxy_unreachable(translated, failed_proxy)


def _clear_frames(errors: Iterable[BaseException]) -> None:
    """Break the reference cycles of urllib3, whose local variables refer to the raised error.

    The tracebacks keep their lines.
    """
    for error in errors:
        for frame, _ in walk_tb(error.__traceback__):
            if frame.f_globals.get("__name__", "").startswith("urllib3."):
                frame.clear()


_TUNNEL_FAILED: Final = "Tunnel connection failed: "
# Python raises an error of `_CLOSED_IN_HANDSHAKE` if the server closes the connection during the
# TLS handshake. If TLS itself fails, for example because of an untrusted certificate, Python raises
# another error.
_CLOSED_IN_HANDSHAKE: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError)


def _kind_after_sending(error: BaseException) -> type[TransportError]:
    if isinstance(error, TimeoutError):
        return ReadTimeout
    return ConnectionInterrupted if isinstance(error, (OSError, IncompleteRead)) else ProtocolError
