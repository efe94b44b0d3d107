"""An HTTP server on 127.0.0.1 for a fake, for programs that need a URL."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from math import inf
from selectors import EVENT_READ, DefaultSelector
from socket import IPPROTO_TCP, MSG_PEEK, SHUT_RDWR, TCP_NODELAY, socket, socketpair
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any
from weakref import WeakSet

import h11

from flux0.domain.errors import TransportError
from flux0.domain.headers import Headers
from flux0.ports import Request, Timeout
from flux0.testing.fake.body import SharedTransport

_BLOCK_BYTES = 65536  # Most requests arrive in one block.
# h11 needs a limit for the size of a request head. The real server has no fixed limit.
_MAX_HEAD_BYTES = 2**20
_HOST = re.compile(r"([\w.~%!$&'()*+,;=-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?", re.ASCII)
# The real server runs on Python 3.13. Older versions of Python have another phrase for 422.
_REASONS = {**{each.value: each.phrase for each in HTTPStatus}, 422: "Unprocessable Content"}


@contextmanager
def serve(
    fake: SharedTransport, port: int, allow_origins: Collection[str]
) -> Generator[str, None, None]:
    """Serve a fake in a `with` block; see `FakeTransport.serve`. Each connection has a thread."""
    stopped, stop = socketpair()
    with stopped, stop, _Server(fake, port, allow_origins) as server:
        thread = Thread(target=server.serve_until, args=(stopped,), daemon=True)
        thread.start()
        try:
            yield f"http://{server.address}"
        finally:
            stop.shutdown(SHUT_RDWR)
            thread.join()
            for connection in tuple(server.connections):
                with suppress(OSError):
                    connection.shutdown(SHUT_RDWR)


class _Server(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024
    timeout = 0  # `handle_request` does not wait.

    def __init__(self, fake: SharedTransport, port: int, allow_origins: Collection[str]) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.address = f"127.0.0.1:{self.server_address[1]}"
        self.fake = fake
        self.allow_origins = allow_origins
        self.connections: WeakSet[socket] = WeakSet()

    def serve_until(self, stopped: socket) -> None:
        """Accept connections until `stopped` is readable."""
        with DefaultSelector() as selector:
            for each in (self, stopped):
                selector.register(each, EVENT_READ)
            while all(key.fileobj is self for key, _ in selector.select()):
                self.handle_request()

    def get_request(self) -> tuple[socket, Any]:
        accepted = super().get_request()
        self.connections.add(accepted[0])
        return accepted


class _Handler(BaseRequestHandler):
    """Serves the requests of one connection from a fake.

    Events are sent as soon as the agent produces them. If the client disconnects, the agent is
    cancelled at once. A turn whose agent sends no more events stays open until the client
    disconnects.
    """

    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]
    request: socket

    def setup(self) -> None:
        """Prepare the connection: TCP_NODELAY sends each event at once."""
        self.request.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD_BYTES)

    def handle(self) -> None:
        """Respond to requests until the connection has to be closed."""
        with suppress(OSError):
            try:
                while (request := self._read_request()) and self._respond(request):
                    self.http.start_next_cycle()
            except h11.RemoteProtocolError:
                fields = ("content-type", "text/plain; charset=utf-8"), ("connection", "close")
                self._send_response(400, fields, [b"Invalid HTTP request received."])

    def _read_request(self) -> Request | None:
        """Return the next request; None if the client has closed the connection."""
        head, body = self._receive(), bytearray()
        if self.http.they_are_waiting_for_100_continue:
            self._send(h11.InformationalResponse(status_code=100, headers=[], reason="Continue"))
        while isinstance(event := self._receive(), h11.Data):
            body += event.data
        if not isinstance(head, h11.Request) or event is None or self._is_closed_by_client():
            return None
        headers = Headers(
            tuple((key.decode(), value.decode("latin-1")) for key, value in head.headers)
        )
        scheme, host = headers.get("x-forwarded-proto"), headers.get("host", "")
        scheme = scheme if scheme in {"https", "ws", "wss"} else "http"
        host = host if _HOST.fullmatch(host) else self.server.address
        target = head.target.decode().replace("#", "%23")
        if not target.startswith("/"):  # An absolute URL, for example, must match no route.
            target = f"//{target}"
        return Request(
            head.method.decode(),
            f"{scheme}://{host}{target}",
            headers,
            bytes(body) or None,
            stream=True,
            timeout=Timeout(read=None),
        )

    def _receive(self) -> object:
        """Wait for the next h11 event; None if the client has closed the connection."""
        while (event := self.http.next_event()) is h11.NEED_DATA:
            if not (data := self.request.recv(_BLOCK_BYTES)):
                return None
            self.http.receive_data(data)
        return event

    def _respond(self, request: Request) -> bool:
        """Send the response to `request`, and return whether the connection can be reused."""
        cors = _cors_fields(request.headers, self.server.allow_origins)
        if cors and request.method == "OPTIONS":
            self._send_response(204, cors)
            return self.http.our_state is h11.DONE
        try:
            response = self.server.fake.send(request)
        except (TransportError, AssertionError):  # No response: close the connection.
            return False
        body = response.body
        watcher = Thread(target=self._close_on_disconnect, args=(body.close,), daemon=True)
        watcher.start()
        try:
            fields = (*response.headers.pairs, *cors)
            self._send_response(response.status_code, fields, iter(partial(body.read, inf), None))
        except Exception as error:  # noqa: BLE001 - agents can raise any exception
            # h11 raises LocalProtocolError if a fault has made the response invalid.
            if not isinstance(error, (TransportError, OSError, h11.LocalProtocolError)):
                # The agent raised an exception. Like the real server, send no more data, but keep
                # the connection open.
                watcher.join()
            return False
        finally:
            body.close()
        return self.http.our_state is h11.DONE and not body.closes_connection

    def _send_response(
        self, status: int, fields: Iterable[tuple[str, str]], body: Iterable[bytes] = ()
    ) -> None:
        headers = [(name.encode(), value.encode("latin-1")) for name, value in fields]
        reason = _REASONS.get(status, "")
        self._send(h11.Response(status_code=status, headers=headers, reason=reason))
        for piece in body:
            self._send(h11.Data(data=piece))
        self._send(h11.EndOfMessage())

    def _send(self, event: h11.Event) -> None:
        if data := self.http.send(event):
            self.request.sendall(data)

    def _is_closed_by_client(self) -> bool:
        # The real server ignores a request whose client has already closed the connection.
        self.request.settimeout(0)
        try:
            return not self.request.recv(1, MSG_PEEK)
        except BlockingIOError:
            return False
        finally:
            self.request.settimeout(None)

    def _close_on_disconnect(self, close: Callable[[], None]) -> None:
        with suppress(OSError):
            if self.request.recv(1, MSG_PEEK):
                return  # The client sent its next request, so it is still connected.
        close()


def _cors_fields(headers: Headers, origins: Collection[str]) -> tuple[tuple[str, str], ...]:
    """Return the fields that let a browser use the response; none if the origin is not allowed."""
    origin = headers.get("origin")
    if origin is None or not {origin, "*"} & set(origins):
        return ()
    requested = (
        (f"access-control-allow-{plural}", headers.get(f"access-control-request-{name}"))
        for plural, name in (("methods", "method"), ("headers", "headers"))
    )
    return (
        ("access-control-allow-origin", origin),
        ("access-control-allow-credentials", "true"),
        ("vary", "origin"),
        *((name, value) for name, value in requested if value is not None),
    )
