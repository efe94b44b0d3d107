"""The bodies of responses, and what errors mean, for the transports over urllib3 and requests."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPException, IncompleteRead
from io import BytesIO
from typing import Any, Final

from attrs import evolve
from urllib3 import BaseHTTPResponse, exceptions

from flux0.adapters.shared.bodies import SyncPulledBody, shut_down
from flux0.adapters.shared.failures import chain, failure, refused_by_proxy
from flux0.adapters.urllib3.connection import TrackedConnection, Urllib3Exchange
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

_LARGEST_PIECE: Final = 64 * 1024
_LARGEST_BLOCK: Final = 64 * 1024


def in_blocks(body: bytes | None) -> bytes | BytesIO | None:
    """Return a request's body as it is to be written: a large one in blocks, each in its time."""
    return body if body is None or len(body) <= _LARGEST_BLOCK else BytesIO(body)


class Urllib3Body(SyncPulledBody):
    """The reading of one response.

    Over a connection that does not note, such as a recorder's, the library reads as it does: its
    timeout stays that for the head, and closing wakes nobody.

    Args:
        response: its content not loaded.
        retain: is given the content once it was read whole.
    """

    def __init__(
        self,
        response: Any,
        timeout: Timeout,
        retain: Callable[[bytes], object] | None = None,
    ) -> None:
        # A recorder's response is none of urllib3's, and was decompressed when it was recorded.
        ours = isinstance(response, BaseHTTPResponse)
        super().__init__(response.headers.get("content-encoding", "") if ours else "")
        connection = getattr(response, "connection", None)
        answer = connection.answer if isinstance(connection, TrackedConnection) else None
        self._received = _read_by_library(response) if answer is None else answer.pieces()
        self._wire = None if answer is None else answer.wire
        self._response = response
        self._timeout = timeout
        self._retain = retain
        if retain is not None:
            self.retained: list[bytes] | None = []

    def set_timeout(self, read_timeout: float | None) -> None:
        """Limit the wait for each piece to `read_timeout` seconds."""
        if self._wire is not None:
            self._wire.settimeout(read_timeout)
            self._timeout = evolve(self._timeout, read=read_timeout)

    def _receive(self) -> bytes | None:
        return next(self._received, None)

    def _finish(self) -> None:
        self._response.release_conn()
        if self._retain is not None:
            self._retain(b"".join(self.retained or ()))

    def _shut_down(self) -> None:
        shut_down(self._wire)

    def _release(self) -> None:
        with suppress(OSError, exceptions.HTTPError):
            self._response.close()
            self._response.release_conn()

    def _translated(self, error: BaseException) -> TransportError | None:
        known = isinstance(error, (HTTPException, OSError, exceptions.HTTPError))
        if not known:
            return None
        kind = _sent_kind(chain(error)[-1])
        return failure(kind, error, self._timeout, head_received=True)


def _read_by_library(response: Any) -> Iterator[bytes]:
    if response.closed:  # By a hook of the user's.
        raise IncompleteRead(b"")
    options = {"decode_content": False} if isinstance(response, BaseHTTPResponse) else {}
    while piece := response.read1(_LARGEST_PIECE, **options):
        yield piece


def translated(error: BaseException, exchange: Urllib3Exchange) -> TransportError:
    """Return what a failure to send a request, or to get the head of its answer, means.

    `error` is the library's, or wraps one.
    """
    errors = chain(error)

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(each, kinds) for each in errors)

    kind = _sent_kind(errors[-1])
    said, mark = str(errors[-1]), "Tunnel connection failed: "
    if has(exceptions.ProxyError) and said.startswith(mark):
        return refused_by_proxy(said.removeprefix(mark))
    # urllib3 raises the two before a request has any connection.
    waited = has(exceptions.EmptyPoolError, exceptions.ClosedPoolError)
    if not exchange.sent and (waited or exchange.failure is not None):
        kind = ConnectError
        if has(exceptions.EmptyPoolError):
            kind = PoolTimeout
        elif has(TimeoutError):
            kind = ConnectTimeout
        elif has(exceptions.SSLError) and not has(*_CUT):
            kind = TLSError
    elif has(TimeoutError) and not has(exceptions.ReadTimeoutError):
        kind = WriteTimeout
    return failure(kind, error, exchange.timeout)


# The other side ends the connection while TLS is agreed on: it refuses nothing.
_CUT = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError)


def _sent_kind(error: BaseException) -> type[TransportError]:
    if isinstance(error, TimeoutError):
        return ReadTimeout
    return ConnectionInterrupted if isinstance(error, (OSError, IncompleteRead)) else ProtocolError
