"""The connections of sync clients, over sockets that flux0 opens.

The backend of httpcore has a connect timeout for each address, and its attempts to connect cannot
be interrupted. While it sends a request, it does not notice a response.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from attrs import frozen

from flux0.adapters.httpx.connections import READ_BYTES, TrackedConnection, current_exchange
from flux0.adapters.httpx.exchange import HttpxExchange
from flux0.adapters.shared.connecting import Connector
from flux0.adapters.shared.exchange import shut_down
from flux0.ports import Interrupt
from flux0.runtime.processes import OwnerProcess

_NO_DELAY: Final = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
_WOULD_BLOCK: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class SyncConnection(TrackedConnection):
    """A `TrackedConnection` for sync code, over a socket."""

    def __init__(self, sock: Any, httpcore_module: Any, connect_by: float | None = None) -> None:
        super().__init__(httpcore_module, connect_by)
        self._sock = sock  # A socket, or `_NestedTLS`.
        self._owner = OwnerProcess()

    def _bind(self, exchange: HttpxExchange) -> None:
        super()._bind(exchange)
        exchange.bind_socket(self._get_info("socket"))

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return the next received bytes, at most `max_bytes`."""
        received = self._pop_received()
        if received is not None:
            return received
        limit = self._read_limit(timeout)
        try:
            self._sock.settimeout(limit)
            data = self._sock.recv(max_bytes)
        except TimeoutError as error:
            raise self._httpcore_module.ReadTimeout(error) from error
        except OSError as error:
            raise self._httpcore_module.ReadError(error) from error
        return self._on_received(data)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send `buffer`. Stop if the server rejects the request meanwhile."""
        unsent = memoryview(self._next_to_send(buffer))
        limit = self._connect_limit(timeout)
        try:
            while unsent:
                unsent = unsent[self._send(unsent, limit) :]
        except TimeoutError as error:
            raise self._httpcore_module.WriteTimeout(error) from error
        except OSError as error:
            raise self._httpcore_module.WriteError(error) from error

    def _send(self, unsent: memoryview, timeout: float | None) -> int:
        """Send some bytes, or wait until more can be sent; return the number of sent bytes."""
        sock = self._sock
        if isinstance(sock, _NestedTLS):
            sock.settimeout(timeout)
            return sock.send(unsent)
        try:
            sock.settimeout(0)
            sent: int = sock.send(unsent)
        except _WOULD_BLOCK:
            read = self._early_data is None
            readable, writable = _wait(sock, timeout, read=read, write=True)
            if not (readable or writable):
                raise TimeoutError("timed out") from None
            if readable and read:
                self._read_early()
            return 0
        return sent

    def _read_early(self) -> None:
        try:
            self._early_data = self._sock.recv(READ_BYTES)
        except _WOULD_BLOCK:  # It was not content, but a message of TLS.
            return
        if self._is_rejected():
            raise self._rejected()

    def close(self) -> None:
        """Close the connection, and wake a thread that reads or writes."""
        if not self._owner.is_inherited():  # A shutdown would end the connection of the parent.
            shut_down(self._get_info("socket"))
        self._sock.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> SyncConnection:
        """Return the connection with TLS."""
        try:
            self._sock.settimeout(self._connect_limit(timeout))
            with _connect_errors(self._httpcore_module):
                self._sock = self._wrap(ssl_context, server_hostname)
                if exchange := current_exchange.get(None):
                    exchange.bind_socket(self._get_info("socket"))
                self._sock.do_handshake()
        except BaseException:
            self.close()
            raise
        return SyncConnection(self._sock, self._httpcore_module, self._connect_by)

    def _wrap(self, context: ssl.SSLContext, host: str | None) -> Any:
        if isinstance(self._sock, ssl.SSLSocket):
            return _NestedTLS(context, self._sock, host)
        return context.wrap_socket(self._sock, server_hostname=host, do_handshake_on_connect=False)

    def _get_info(self, info: str) -> Any:
        sock = self._sock
        raw = sock.sock if isinstance(sock, _NestedTLS) else sock
        if info == "socket":
            return raw
        if info == "ssl_object":
            return sock.tls if sock is not raw else sock if isinstance(raw, ssl.SSLSocket) else None
        addresses = {"client_addr": raw.getsockname, "server_addr": raw.getpeername}
        return addresses[info]() if info in addresses else None

    def _is_readable(self) -> bool:
        sock = self._get_info("socket")
        if sock.fileno() < 0 or (isinstance(sock, ssl.SSLSocket) and sock.pending()):
            return True
        readable, _ = _wait(sock, 0, read=True)
        return readable


class _NestedTLS:
    """TLS over a TLS connection to a proxy, with the methods of a socket."""

    def __init__(self, context: ssl.SSLContext, sock: ssl.SSLSocket, host: str | None) -> None:
        self.sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self.settimeout, self.close = sock.settimeout, sock.close

    def do_handshake(self) -> None:
        self._perform(self.tls.do_handshake)

    def recv(self, size: int) -> bytes:
        data: bytes = self._perform(partial(self.tls.read, size))
        return data

    def send(self, data: memoryview) -> int:
        sent: int = self._perform(partial(self.tls.write, data))
        return sent

    def _perform(self, step: Callable[[], Any]) -> Any:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                self.sock.sendall(self._outgoing.read())
                data = self.sock.recv(READ_BYTES)
                self._incoming.write(data) if data else self._incoming.write_eof()
            else:
                self.sock.sendall(self._outgoing.read())
                return result


@frozen
class SyncBackend:
    """An `httpcore.NetworkBackend` that opens tracked connections."""

    httpcore_module: Any

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> SyncConnection:
        """Return a new connection; see `Connector`."""
        exchange = current_exchange.get(None)
        connector = Connector(
            timeout,
            Interrupt() if exchange is None else exchange.interrupt,
            options=(*(socket_options or ()), _NO_DELAY),
            source_address=None if local_address is None else (local_address, 0),
        )
        return self._open(partial(connector.connect, host, port), timeout)

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> SyncConnection:
        """Return a new connection."""

        def connect() -> socket.socket:
            sock = socket.socket(socket.AF_UNIX)
            try:
                for option in socket_options or ():
                    sock.setsockopt(*option)
                sock.settimeout(timeout)
                sock.connect(path)
            except BaseException:
                sock.close()
                raise
            return sock

        return self._open(connect, timeout)

    def _open(self, connect: Callable[[], socket.socket], timeout: float | None) -> SyncConnection:
        connect_by = None if timeout is None else time.monotonic() + timeout
        with _connect_errors(self.httpcore_module):
            sock = connect()
        return SyncConnection(sock, self.httpcore_module, connect_by)

    def sleep(self, seconds: float) -> None:
        """Wait before the next attempt to connect."""
        time.sleep(seconds)


@contextmanager
def _connect_errors(httpcore_module: Any) -> Generator[None, None, None]:
    """Translate the errors of sockets into errors of httpcore."""
    try:
        yield
    except TimeoutError as error:
        raise httpcore_module.ConnectTimeout(error) from error
    except OSError as error:
        raise httpcore_module.ConnectError(error) from error


def _wait(
    sock: socket.socket, timeout: float | None, *, read: bool = False, write: bool = False
) -> tuple[bool, bool]:
    """Wait until the socket is readable or writable; return whether it is each of the two."""
    if not hasattr(select, "poll"):  # On Windows.
        readable, writable, _ = select.select([sock] * read, [sock] * write, [], timeout)
        return bool(readable), bool(writable)
    poll = select.poll()
    poll.register(sock, (select.POLLIN if read else 0) | (select.POLLOUT if write else 0))
    found = poll.poll(None if timeout is None else timeout * 1000)
    events = found[0][1] if found else 0
    return bool(events & ~select.POLLOUT), bool(events & ~select.POLLIN)
