"""Connections that record the progress of a request, for transports over `urllib3` and `requests`.

The exceptions from these libraries do not show whether the request was sent, because the same
classes are raised before and after sending. Therefore a connection records its progress in the
current `Urllib3Exchange`.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from contextvars import ContextVar
from functools import cache, partial
from http.client import HTTPException
from io import BytesIO
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast, final
from weakref import ref

import urllib3
import urllib3.connection
from attrs import field, frozen
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError
from urllib3.util.ssl_match_hostname import CertificateError

from flux0.adapters.shared.connecting import Connector, refuse_without_sockets
from flux0.adapters.shared.exchange import Exchange, duplicate, shut_down
from flux0.adapters.shared.failures import causes
from flux0.adapters.shared.limits import MAX_IDLE_SECONDS
from flux0.adapters.shared.sending import REJECTION, WOULD_BLOCK, send_all
from flux0.adapters.urllib3.http_response import TrackedResponse, raw_socket_of
from flux0.domain.errors import MissingDependency
from flux0.runtime.event_loop import do_nothing

if TYPE_CHECKING:
    from urllib3.connection import HTTPConnection
else:
    # While a recorder such as vcrpy is active, the name urllib3.connection.HTTPConnection refers to
    # the recorder's subclass. The original class is one of the bases of this subclass.
    # In Pyodide, the class is a replacement that has no sockets, and `check_urllib3` rejects it.
    _bases = urllib3.connection.HTTPConnection.__mro__
    _original = (each for each in _bases if each.__module__ == "urllib3.connection")
    HTTPConnection: Final = next(_original, _bases[0])


@final
class Urllib3Exchange(Exchange):
    """The progress of one request. Inside its `with` block, the connection records the progress.

    Attributes:
        sent: True if a part of the request may have been sent.
        failure: The exception from the last failed attempt to connect, or None.
        failed_proxy: The URL of a proxy that could not be reached, or None.
        lease: The place of the exchange in a built-in pool, or None.
    """

    sent: bool = False
    failed_proxy: str | None = None
    lease: Lease | None = None

    def __enter__(self) -> Urllib3Exchange:
        self._token = current_exchange.set(ref(self))
        return self

    def __exit__(self, *_: object) -> None:
        current_exchange.reset(self._token)
        # Break a reference cycle: the traceback of `failure` refers to frames that refer to this
        # object.
        self.failure: BaseException | None = None
        self.interrupt.clear()


@final
class Lease:
    """The place of one exchange in a built-in pool. The exchange or its connection refers to it.

    Without a reference to the lease, the place is free. Therefore, an exception that interrupts the
    exchange at any instruction does not make the pool smaller.
    """


# The value of `current_exchange` is a weak reference. If an exception of a signal handler prevents
# the call of `Urllib3Exchange.__exit__`, the finished exchange does not affect later requests.
current_exchange: Final[ContextVar[Callable[[], Urllib3Exchange | None]]] = ContextVar(
    "current_exchange", default=do_nothing
)
# The classes of the errors that are raised if a connection cannot be established. A signal handler
# may raise an exception of any other class while a call connects.
_CONNECT_ERRORS: Final = (OSError, UnicodeError, HTTPException, HTTPError, CertificateError)


@frozen
class _SocksConnector(Connector):
    """Opens a connection to `target` through a SOCKS proxy.

    urllib3 itself calls `socks.create_connection`, which returns the socket only after the SOCKS
    handshake. This class has the socket before the handshake, so `Interrupt.fire` can shut it down.
    """

    # `proxy` contains the arguments of `socksocket.set_proxy` in PySocks.
    proxy: tuple[Any, ...] = field(kw_only=True)
    target: tuple[str, int] = field(kw_only=True)

    def _make_socket(self, *kind: Any) -> socket.socket:
        import socks  # type: ignore[import-untyped] # noqa: PLC0415 - PySocks is optional

        sock: Any = socks.socksocket(*kind)
        sock.set_proxy(*self.proxy)
        return cast("socket.socket", sock)

    def _connect(self, sock: socket.socket, _: Any, timeout: float | None, /) -> None:
        sock.settimeout(timeout)
        self.interrupt.on_fire(partial(shut_down, sock))
        sock.connect(self.target)


class Urllib3Connection(HTTPConnection):
    """A mixin for the connection class of a pool. It records the progress of each request.

    Attributes:
        last_response: The response to the last request; None if no request was sent yet.
        lease: The place in a built-in pool of the exchange that uses the connection, or None.
        is_returned: Whether a user's pool has the connection again. Then this object is unused.
    """

    last_response: TrackedResponse | None = None
    lease: Lease | None = None
    is_returned: bool = False
    timeout: float | None
    sock: Any
    _duplicate: Any = None
    _body_is_large = False
    # If a response began before its request was sent completely, the response is read from
    # `_early_file`. For all other responses, `_early_file` is None.
    _early_file: Any = None

    @property
    def is_connected(self) -> bool:
        """Whether the connection can be reused; the pool reads this property before a request."""
        response = self.last_response
        idle_seconds = 0.0 if response is None else monotonic() - response.idle_since
        return idle_seconds < MAX_IDLE_SECONDS and super().is_connected

    def detach(self) -> Any:
        """Move the socket to a new connection object, which the pool may keep; None if closed.

        urllib3 still refers to this object when another thread may already use the connection.
        Without a socket, closing this object has no effect.
        """
        if self.is_closed:
            return None
        detached = type(self).__new__(type(self))
        vars(detached).update(vars(self), lease=None)
        self.sock = None
        return detached

    def connect(self) -> None:
        try:
            super().connect()
        except BaseException as error:
            exchange = current_exchange.get()()
            if exchange is not None and isinstance(error, _CONNECT_ERRORS):
                exchange.failure = error
            # Python 3.10 does not close the socket if an exception of a signal handler interrupts
            # the TLS handshake.
            shut_down(self._duplicate)
            raise
        finally:
            if self._duplicate is not None:
                self._duplicate.close()
                self._duplicate = None

    def _new_conn(self) -> Any:
        exchange = current_exchange.get()()
        if exchange is None:
            return super()._new_conn()
        method = cast("Any", super()._new_conn).__func__
        if method is HTTPConnection._new_conn or hasattr(self, "_socks_options"):  # noqa: SLF001
            sock: Any = self._connect(exchange)
        else:  # The user's connection class has its own `_new_conn`.
            sock = super()._new_conn()
        # `Interrupt.fire` cannot shut down `sock` during a TLS handshake, because the handshake
        # detaches `sock`. Therefore, `Interrupt.fire` shuts down a duplicate of `sock`. The user's
        # connection class may return an object that is not a socket, and cannot be duplicated.
        if isinstance(sock, socket.socket):
            self._duplicate = duplicate(sock)
            exchange.shut_down_on_interrupt(self._duplicate)
        return sock

    def _connect(self, exchange: Urllib3Exchange) -> socket.socket:
        timeout, address = exchange.timeout.connect, (self._dns_host.strip("[]"), self.port)
        settings = timeout, exchange.interrupt, self.socket_options or (), self.source_address
        connector = Connector(*settings)
        if options := getattr(self, "_socks_options", None):
            target, address = address, (options["proxy_host"].strip("[]"), options["proxy_port"])
            login = options["rdns"], options["username"], options["password"]
            proxy = options["socks_version"], *address, *login
            connector = _SocksConnector(*settings, proxy=proxy, target=target)
        try:
            sock = connector.connect(*address)
        except OSError as error:  # The errors of PySocks are OSErrors, too.
            exchange.failed_proxy = self.proxy and self.proxy.url
            timed_out = isinstance(causes(error)[-1], TimeoutError)
            kind = ConnectTimeoutError if timed_out else NewConnectionError
            raise kind(self, str(error)) from error
        sys.audit("http.client.connect", self, self.host, self.port)
        return sock

    def request(self, *args: Any, **options: Any) -> None:
        if exchange := current_exchange.get()():
            if self.is_closed:
                self.connect()
            self.lease = exchange.lease
            exchange.sent = True
            exchange.shut_down_on_interrupt(raw_socket_of(self.sock))
            # urllib3 applies `self.timeout` to each wait while it sends the request. The attribute
            # still has the connect timeout, so replace it with the write timeout.
            self.timeout = exchange.timeout.write
            self._early_file, self._body_is_large = None, isinstance(options.get("body"), BytesIO)
        super().request(*args, **options)

    def send(self, data: Any) -> None:
        exchange, sock = current_exchange.get()(), self.sock
        # `send_all` makes the socket non-blocking. For TLS inside TLS, the socket is an
        # `SSLTransport` of urllib3, which cannot be non-blocking.
        if exchange is None or not self._body_is_large or not isinstance(sock, socket.socket):
            super().send(data)
        else:
            send_all(sock, data, exchange.timeout.write, partial(self._read_early, sock))

    def _read_early(self, sock: socket.socket) -> bool:
        if self._early_file is None:
            file = sock.makefile("rb")
            try:
                start = file.peek()
            # `peek` raises an error of `WOULD_BLOCK` if the received TLS messages have no content.
            except WOULD_BLOCK:
                file.close()
                return False
            self._early_file = file
            if REJECTION.match(start):
                # urllib3 catches the BrokenPipeError, and reads the response with which the server
                # rejected the request.
                raise BrokenPipeError("the server rejected the incomplete request")
        return True

    def response_class(self, sock: Any, *args: Any, **options: Any) -> TrackedResponse:  # type: ignore[override]
        """Create the object that reads the response. http.client calls this for each request."""
        self.last_response = TrackedResponse(sock, *args, **options)
        if self._early_file is not None:
            self.last_response.read_early_file(self._early_file)
            self._early_file = None
        return self.last_response

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override] # as urllib3's own
        response = super().getresponse()
        if exchange := current_exchange.get()():
            exchange.interrupt.clear()
        return response


def is_unmodified(connection_class: Any) -> bool:
    """Return False if a recorder of HTTP requests, such as vcrpy, has replaced the class."""
    return (
        issubclass(connection_class, HTTPConnection)
        and connection_class.request is HTTPConnection.request
        and connection_class.getresponse is HTTPConnection.getresponse
    )


@cache
def tracked_class(connection_class: Any) -> type[Any]:
    return type("Urllib3Connection", (Urllib3Connection, connection_class), {})


def check_urllib3() -> None:
    """Raise an error in Pyodide, or if urllib3-future is installed under the name of urllib3."""
    refuse_without_sockets("urllib3")
    if not any(base.__module__ == "http.client" for base in HTTPConnection.__mro__):
        problem = "replaces urllib3, and does not report whether a request was sent"
        advice = "reinstall urllib3, or use HttpxTransport"
        raise MissingDependency(f"urllib3-future {problem}: {advice}")
