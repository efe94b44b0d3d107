"""A real SOCKS5 proxy for tests (RFC 1928), with or without a login (RFC 1929)."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Final, final

from support.forwarding import ProxyServer, forward

_CONNECT_SECONDS: Final = 10.0
_NO_LOGIN, _LOGIN, _NO_METHOD = 0, 2, 255
_IPV4, _NAME, _IPV6 = 1, 3, 4
_SUCCEEDED, _REFUSED = 0, 5


@final
class SocksProxy:
    """A context manager: a SOCKS5 proxy on a port of 127.0.0.1.

    Args:
        login: the name and the password that clients must send; None for no login.
        responds: whether the proxy responds on the connections that it accepts.
        refuse: respond to each request that the connection was refused.

    Attributes:
        targets: host and port of each connection that clients requested.
        connected: is set when a client has sent its first message.
    """

    def __init__(
        self,
        *,
        login: tuple[str, str] | None = None,
        responds: bool = True,
        refuse: bool = False,
    ) -> None:
        self._login = login
        self._responds = responds
        self._refuse = refuse
        self._open: list[socket.socket] = []
        self._server = ProxyServer(self._serve)
        self.targets: tuple[tuple[str, int], ...] = ()
        self.connected = threading.Event()
        self.accepted = 0

    @property
    def address(self) -> str:
        """The proxy's host and port."""
        return self._server.address

    def __enter__(self) -> SocksProxy:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(self._open)

    def _serve(self, client: socket.socket) -> None:
        self._open.append(client)
        self.accepted += 1
        with contextlib.suppress(OSError, EOFError):
            if not self._responds:
                client.recv(1)
                self.connected.set()
                client.recv(65536)
                while client.recv(65536):
                    pass
                return
            if not self._log_in(client):
                return
            host, port = _read_target(client)
            self.targets += ((host, port),)
            reply = _REFUSED if self._refuse else _SUCCEEDED
            bound = struct.pack("!4sH", socket.inet_aton("127.0.0.1"), 0)
            if self._refuse:
                client.sendall(bytes([5, reply, 0, _IPV4]) + bound)
                return
            with socket.create_connection((host, port), _CONNECT_SECONDS) as server:
                server.settimeout(None)
                self._open.append(server)
                client.sendall(bytes([5, reply, 0, _IPV4]) + bound)
                back = threading.Thread(target=forward, args=(server, client), daemon=True)
                back.start()
                forward(client, server)
                back.join()

    def _log_in(self, client: socket.socket) -> bool:
        _, count = _read(client, 2)
        methods = _read(client, count)
        wanted = _NO_LOGIN if self._login is None else _LOGIN
        if wanted not in methods:
            client.sendall(bytes([5, _NO_METHOD]))
            return False
        client.sendall(bytes([5, wanted]))
        if self._login is None:
            return True
        _, length = _read(client, 2)
        name = _read(client, length).decode()
        password = _read(client, _read(client, 1)[0]).decode()
        correct = (name, password) == self._login
        client.sendall(bytes([1, 0 if correct else 1]))
        return correct


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _read_target(client: socket.socket) -> tuple[str, int]:
    _, _, _, kind = _read(client, 4)
    if kind == _IPV4:
        host = socket.inet_ntop(socket.AF_INET, _read(client, 4))
    elif kind == _IPV6:
        host = socket.inet_ntop(socket.AF_INET6, _read(client, 16))
    else:
        host = _read(client, _read(client, 1)[0]).decode()
    (port,) = struct.unpack("!H", _read(client, 2))
    return host, port
