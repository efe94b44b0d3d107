"""The connections of sync clients, over sockets that flux0 opens.

The backend of httpcore has three problems: it applies the connect timeout to each address of a host
separately, its attempts to connect cannot be interrupted, and it does not receive a response while
it sends a request. Therefore flux0 has its own backend.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from math import inf
from typing import Any, Final, TypeVar

from flux0.adapters.httpx.connections import Backend, HttpxConnection
from flux0.adapters.httpx.exchange import current_exchange
from flux0.adapters.shared.chunks import Chunks
from flux0.adapters.shared.connecting import MIN_SECONDS, Connector
from flux0.adapters.shared.exchange import shut_down
from flux0.adapters.shared.limits import READ_BYTES
from flux0.adapters.shared.sending import WOULD_BLOCK, send_all, wait
from flux0.ports import Interrupt
from flux0.runtime.processes import RUNNING

T = TypeVar("T")

_NO_DELAY: Final = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class SyncConnection(HttpxConnection):
    def __init__(self, sock: Any, backend: Backend, connect_by: float | None = None) -> None:
        super().__init__(backend, connect_by)
        self._sock = sock  # `_sock` is a socket or, for TLS inside TLS, a `_NestedTLS`.
        self._process = RUNNING.id

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        received = self._pop_received()
        if received is None:
            received = self._on_received(self._receive(max_bytes, self._read_limit(timeout)))
        return received

    def _receive(self, max_bytes: int, timeout: float | None) -> bytes:
        httpcore, sock = self._backend.httpcore_module, self._sock
        # No `_translated_errors`: entering a context manager takes as long as `recv` itself.
        try:
            # Call `settimeout` only if the timeout has changed: each call is a system call.
            if sock.gettimeout() != timeout:
                sock.settimeout(timeout)
            data: bytes = sock.recv(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout(error) from error
        except OSError as error:
            raise httpcore.ReadError(error) from error
        return data

    def content_reader(self) -> Callable[[float | None], bytes] | None:
        chunks = self._start_content()
        return None if chunks is None else partial(self._read_content, chunks)

    def _read_content(self, chunks: Chunks, timeout: float | None) -> bytes:
        content = self._decode_early(chunks)
        if content is None:
            expiry = inf if timeout is None else time.monotonic() + timeout
            content = self._decode(chunks, self._receive(READ_BYTES, timeout))
            while content is None:
                left = None if timeout is None else self._seconds_until(expiry)
                content = self._decode(chunks, self._receive(READ_BYTES, left))
        return content

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        data, limit, sock = self._next_to_send(buffer), self._connect_limit(timeout), self._sock
        httpcore = self._backend.httpcore_module
        with _translated_errors(httpcore.WriteTimeout, httpcore.WriteError):
            if isinstance(sock, _NestedTLS):
                sock.settimeout(limit)
                sock.send_all(data)
            else:
                send_all(sock, data, limit, self._read_early)

    def _read_early(self) -> bool:
        if self._early_data is None:
            try:
                self._early_data = self._sock.recv(READ_BYTES)
            # `recv` raises an error of `WOULD_BLOCK` if the socket has received only TLS messages
            # without content. The response has not begun yet.
            except WOULD_BLOCK:
                return False
            self._raise_if_rejected()
        return True

    def close(self) -> None:
        # Do not shut the socket down in a forked child, because this also ends the connection of
        # the parent process.
        if RUNNING.id == self._process:
            shut_down(self._get_info("socket"))
        self._sock.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> SyncConnection:
        try:
            self._sock.settimeout(self._connect_limit(timeout))
            with _connect_errors(self._backend.httpcore_module):
                self._sock = self._wrap(ssl_context, server_hostname)
                if exchange := current_exchange.get()():
                    exchange.bind_socket(self._get_info("socket"))
                self._sock.do_handshake()
        except BaseException:
            self.close()
            raise
        return SyncConnection(self._sock, self._backend, self._connect_by)

    def _wrap(self, context: ssl.SSLContext, host: str | None) -> Any:
        if isinstance(self._sock, ssl.SSLSocket):
            return _NestedTLS(context, self._sock, host)
        return context.wrap_socket(self._sock, server_hostname=host, do_handshake_on_connect=False)

    def _get_info(self, info: str) -> Any:
        sock = self._sock
        raw, tls = (sock.sock, sock.tls) if isinstance(sock, _NestedTLS) else (sock, sock)
        if info == "socket":
            return raw
        if info == "ssl_object":
            return tls if isinstance(tls, (ssl.SSLSocket, ssl.SSLObject)) else None
        addresses = {"client_addr": raw.getsockname, "server_addr": raw.getpeername}
        return addresses[info]() if info in addresses else None

    def _is_readable(self) -> bool:
        # For TLS inside TLS, the buffer `incoming` can contain received bytes. `recv` returns these
        # bytes even if the socket has no new bytes.
        has_unread = isinstance(self._sock, _NestedTLS) and self._sock.incoming.pending
        return bool(has_unread) or wait(self._get_info("socket"), 0, read=True)[0]


class _NestedTLS:
    """TLS to a server through a TLS connection to a proxy. It has the methods of a socket."""

    def __init__(self, context: ssl.SSLContext, sock: ssl.SSLSocket, host: str | None) -> None:
        self.sock = sock
        self.incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self._outgoing, server_hostname=host)
        self.gettimeout, self.settimeout, self.close = sock.gettimeout, sock.settimeout, sock.close

    def do_handshake(self) -> None:
        self._perform(self.tls.do_handshake)

    def recv(self, size: int) -> bytes:
        return self._perform(partial(self.tls.read, size))

    def send_all(self, data: bytes) -> None:
        unsent = memoryview(data)
        while unsent:
            unsent = unsent[self._perform(partial(self.tls.write, unsent)) :]

    def _perform(self, operation: Callable[[], T]) -> T:
        """Call `operation` until it succeeds. Send and receive the bytes that TLS needs.

        The socket's timeout limits all reads together: a handshake needs several reads, and a TLS
        record may arrive in several parts.
        """
        timeout = self.sock.gettimeout()
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                result = operation()
            except ssl.SSLWantReadError:
                self.sock.sendall(self._outgoing.read())
                data = self.sock.recv(READ_BYTES)
                self.incoming.write(data) if data else self.incoming.write_eof()
                left = None if end is None else max(end - time.monotonic(), MIN_SECONDS)
                self.sock.settimeout(left)
            else:
                self.sock.sendall(self._outgoing.read())
                return result


class SyncBackend(Backend):
    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, **options: Any
    ) -> SyncConnection:
        connect_by = None if timeout is None else time.monotonic() + timeout
        exchange, source = current_exchange.get()(), options.get("local_address")
        interrupt = Interrupt() if exchange is None else exchange.interrupt
        socket_options = (*(options.get("socket_options") or ()), _NO_DELAY)
        address = None if source is None else (source, 0)
        connector = Connector(timeout, interrupt, socket_options, address)
        with _connect_errors(self.httpcore_module):
            sock = connector.connect(host, port)
        return SyncConnection(sock, self, connect_by)

    def connect_unix_socket(self, **options: Any) -> SyncConnection:
        stream = self.backend.connect_unix_socket(**options)
        return SyncConnection(stream.get_extra_info("socket"), self)


@contextmanager
def _translated_errors(timeout_error: Any, other_error: Any) -> Generator[None, None, None]:
    try:
        yield
    except TimeoutError as error:
        raise timeout_error(error) from error
    except (OSError, UnicodeError) as error:  # UnicodeError: the host name is not valid.
        raise other_error(error) from error


def _connect_errors(httpcore_module: Any) -> AbstractContextManager[None]:
    return _translated_errors(httpcore_module.ConnectTimeout, httpcore_module.ConnectError)
