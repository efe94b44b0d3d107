"""Connections of urllib3 that note what happens, for the transports over urllib3 and requests.

Neither library's errors say whether a request was sent: both wrap what breaks in the same classes.
So their pools are given connections that note it where it happens.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from contextvars import ContextVar
from functools import cache
from queue import Empty, Full, LifoQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast, final

import urllib3
import urllib3.connection

from flux0.adapters.shared.exchange import Exchange
from flux0.adapters.shared.limits import MAX_IDLE_SECONDS
from flux0.adapters.shared.misplaced import refuse_misplaced
from flux0.adapters.urllib3.http_response import TrackedResponse
from flux0.domain.errors import InvalidArgument, MissingDependency

if TYPE_CHECKING:
    from urllib3.connection import HTTPConnection
else:
    # A recorder such as vcrpy puts one of its own there for as long as it records.
    HTTPConnection: Final = next(
        each
        for each in urllib3.connection.HTTPConnection.__mro__
        if each.__module__ == "urllib3.connection"
    )


@final
class Urllib3Exchange(Exchange):
    """The state of one request, which the connections record while its `with` block runs.

    `failure` is the exception that the last attempt to connect raised, or None.
    """

    def __enter__(self) -> Urllib3Exchange:
        self._token = _EXCHANGE.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _EXCHANGE.reset(self._token)
        self.clear_interrupt()


_EXCHANGE: ContextVar[Urllib3Exchange | None] = ContextVar("flux0_exchange", default=None)


class TrackedConnection(HTTPConnection):
    """Mixed into a pool's own class of connections.

    Attributes:
        answer: the last answer that began to come over it.
    """

    answer: TrackedResponse | None = None
    timeout: float | None
    _sock: Any = None
    _wire: Any = None

    @property
    def sock(self) -> Any:
        """The socket, or the TLS within TLS that stands for one."""
        return self._sock

    @sock.setter
    def sock(self, sock: Any) -> None:
        self._sock = sock
        if isinstance(sock, socket.socket):
            self._wire = sock
            if exchange := _EXCHANGE.get():
                exchange.shut_down_on_interrupt(sock)

    @property
    def is_connected(self) -> bool:
        """Whether it may be used again, which a pool asks before it does so."""
        rested = 0.0 if self.answer is None else monotonic() - self.answer.ended
        return rested < MAX_IDLE_SECONDS and super().is_connected

    def connect(self) -> None:
        """Connect, with the tunnel of a proxy and TLS."""
        try:
            super().connect()
        except BaseException as error:
            if exchange := _EXCHANGE.get():
                exchange.failure = error
            raise

    def request(self, *args: Any, **options: Any) -> None:
        """Send a request, over a connection that is made by then."""
        if exchange := _EXCHANGE.get():
            if self.is_closed:
                self.connect()
            exchange.sent = True
            exchange.shut_down_on_interrupt(self._wire)
            self.timeout = exchange.timeout.write  # urllib3 writes with that for connecting.
        super().request(*args, **options)

    def response_class(self, sock: Any, *args: Any, **options: Any) -> TrackedResponse:  # type: ignore[override]
        """Return what http.client reads an answer by."""
        self.answer = TrackedResponse(self._wire, sock, *args, **options)
        return self.answer

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override] # as urllib3's own
        """Wait for the head of the answer."""
        response = super().getresponse()
        if exchange := _EXCHANGE.get():
            exchange.clear_interrupt()
        return response


def watch(pool: Any) -> None:
    """Have `pool` make connections that note what happens, and drop its idle ones that do not.

    Where the connections are made or used in another way than urllib3's, such as by a recorder,
    nothing is noted: then nobody knows whether a request was sent.
    """
    kind: Any = pool.ConnectionCls
    if issubclass(kind, TrackedConnection):
        if _is_urllib3s(cast("Any", type(pool)).ConnectionCls):
            return
        del pool.ConnectionCls  # A recorder has come since.
    elif _is_urllib3s(kind):
        pool.ConnectionCls = _tracked(kind)
        if pool.pool is not None:
            _drop_resting(pool.pool)


def _is_urllib3s(kind: Any) -> bool:
    own = HTTPConnection
    return (
        issubclass(kind, own)
        and kind.request is own.request
        and kind.getresponse is own.getresponse
    )


@cache
def _tracked(kind: Any) -> type[Any]:
    return type("TrackedConnection", (TrackedConnection, kind), {})


def _drop_resting(resting: LifoQueue[Any]) -> None:
    taken = 0
    with suppress(Empty):
        while True:
            if connection := resting.get_nowait():
                connection.close()
            taken += 1
    with suppress(Full):  # Of a pool that does not block, another thread may have filled the place.
        for _ in range(taken):
            resting.put_nowait(None)


def require(argument: str, value: object, kind: type[Any]) -> None:
    """Raise if a transport cannot work: over `value`, or over what is installed as urllib3."""
    if not any(each.__module__ == "http.client" for each in HTTPConnection.__mro__):
        raise MissingDependency(
            "urllib3-future has taken the place of urllib3, and does not tell what was sent: "
            "install urllib3 again, or use HttpxTransport"
        )
    refuse_misplaced(argument, value, kind.__module__.partition(".")[0])
    if value is not None and not isinstance(value, kind):
        given = f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}"
        raise InvalidArgument(argument, f"must be a {kind.__name__}, not a {given}")
