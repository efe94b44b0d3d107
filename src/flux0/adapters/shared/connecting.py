"""Opens TCP connections for sync code. One timeout limits all addresses of a host together."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from errno import ECONNABORTED, EINPROGRESS, EWOULDBLOCK
from functools import partial
from time import monotonic
from typing import Any, Final

from attrs import frozen

from flux0.adapters.shared.exchange import shut_down
from flux0.adapters.shared.failures import system_message
from flux0.adapters.shared.sending import wait
from flux0.domain.errors import Flux0Error
from flux0.ports import Interrupt

# On macOS and Windows, `shutdown` does not end the wait of a socket that still connects. There,
# `Connector` looks after this number of seconds whether `Interrupt.fire` was called.
_SECONDS_BETWEEN_LOOKS: Final = None if sys.platform == "linux" else 0.1
MIN_SECONDS: Final = 0.001  # The shortest timeout in seconds: with 0, a socket does not block.


def refuse_without_sockets(library: str) -> None:
    """Raise `Flux0Error` in Pyodide, the Python of a web browser, which has no TCP sockets."""
    if sys.platform == "emscripten":
        raise Flux0Error(
            f"Python in a web browser (Pyodide) has no sockets, so {library} cannot connect: use"
            " a transport of your own that calls fetch, with the async methods, or FakeTransport"
        )


@frozen
class Connector:
    """Opens one TCP connection.

    Attributes:
        timeout: the limit of `connect` in seconds, including the name resolution, or None.
        interrupt: the object whose method `fire` ends the attempt to connect.
        options: the arguments of `setsockopt` for each socket option to set.
        source_address: the local host and port to connect from; None lets the system choose.
    """

    timeout: float | None
    interrupt: Interrupt
    options: Iterable[tuple[Any, ...]] = ()
    source_address: tuple[str, int] | None = None

    def connect(self, host: str, port: int) -> socket.socket:
        """Return a socket that is connected to `host`.

        The host's addresses are tried one after another, until a server accepts the connection.
        Each attempt may use an equal share of the remaining time, so that one unreachable address
        does not use up the timeout. The socket is returned with the remaining
        time as its timeout, for a TLS handshake or a proxy tunnel.

        Raises:
            Flux0Error: Python runs in a web browser.
            OSError: The last address failed: a `TimeoutError` if the timeout expired, or a
                `socket.gaierror` if the host is unknown.
            UnicodeError: The host name is not valid.
        """
        refuse_without_sockets("a sync call")
        end = None if self.timeout is None else monotonic() + self.timeout
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        failures: list[OSError] = []
        try:
            for tried, (*kind, _, address) in enumerate(addresses):
                share = None
                if end is not None:
                    share = max(end - monotonic(), MIN_SECONDS) / (len(addresses) - tried)
                try:
                    with ExitStack() as on_failure:
                        sock = on_failure.enter_context(self._make_socket(*kind))
                        for option in self.options:
                            sock.setsockopt(*option)
                        if self.source_address is not None:
                            sock.bind(self.source_address)
                        self._connect(sock, address, share)
                        on_failure.pop_all()
                except OSError as error:
                    failures.append(error)
                    if self.interrupt.fired:
                        break
                else:
                    sock.settimeout(None if end is None else max(end - monotonic(), MIN_SECONDS))
                    return sock
            raise failures[-1]
        finally:
            # Break a reference cycle: the tracebacks of the errors in `failures` refer to
            # `failures`.
            failures.clear()

    def _make_socket(self, *kind: Any) -> socket.socket:
        return socket.socket(*kind)

    def _connect(self, sock: socket.socket, address: Any, timeout: float | None, /) -> None:
        # `Interrupt.fire` can only shut down a socket that has begun to connect. Therefore, begin
        # to connect without blocking, register the socket with the interrupt, and then wait.
        sock.setblocking(False)  # noqa: FBT003 - a positional-only parameter
        status = sock.connect_ex(address)
        self.interrupt.on_fire(partial(shut_down, sock, wakes=False))
        if status in (EINPROGRESS, EWOULDBLOCK):
            self._wait(sock, timeout)
            status = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        # On Linux, SO_ERROR is 0 if `Interrupt.fire` has shut the socket down. The socket is not
        # connected, so set an error number.
        if self.interrupt.fired:
            status = ECONNABORTED
        if status:
            raise OSError(status, system_message(status))

    def _wait(self, sock: socket.socket, timeout: float | None) -> None:
        end = None if timeout is None else monotonic() + timeout
        while True:
            left = None if end is None else max(end - monotonic(), 0)
            limits = [limit for limit in (left, _SECONDS_BETWEEN_LOOKS) if limit is not None]
            if wait(sock, min(limits, default=None), write=True) != (False, False):
                return
            if self.interrupt.fired:
                return
            if left is not None and left <= min(limits):
                raise TimeoutError
