"""A fake on a port of 127.0.0.1, for programs that know nothing but an address."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import inf
from socket import MSG_PEEK, SHUT_RDWR, socket
from threading import Thread
from typing import Any
from urllib.parse import urljoin
from weakref import WeakSet

from flux0.domain.errors import TransportError
from flux0.domain.headers import Headers
from flux0.ports import Request, Timeout
from flux0.testing.fake.body import SharedTransport

_POLL_SECONDS = 0.05  # After so long at most, an end is seen.


@contextmanager
def serve(fake: SharedTransport, port: int) -> Generator[str, None, None]:
    """Serve a fake within a block, each connection in a thread; see `FakeTransport.serve`."""
    with _Server(fake, port) as server:
        thread = Thread(target=server.serve_forever, args=(_POLL_SECONDS,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            for connection in tuple(server.connections):
                with suppress(OSError):
                    connection.shutdown(SHUT_RDWR)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, fake: SharedTransport, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.fake = fake
        self.connections: WeakSet[socket] = WeakSet()

    def get_request(self) -> tuple[socket, Any]:
        """Accept a connection, and take note of it."""
        accepted = super().get_request()
        self.connections.add(accepted[0])
        return accepted


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection as a fake does.

    An event is sent when the agent says it. A client that goes away cancels the agent at once, and
    a turn that falls silent is silent until then.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]
    connection: socket

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def handle_any(self) -> None:
        """Answer one request."""
        if "transfer-encoding" in self.headers:
            self.send_error(HTTPStatus.LENGTH_REQUIRED)  # This closes the connection.
            return
        size = int(self.headers.get("content-length") or 0)
        request = Request(
            self.command,
            urljoin(f"http://{self.headers.get('host', 'fake')}", self.path),
            Headers(tuple(self.headers.items())),
            self.rfile.read(size) or None,
            stream=True,
            timeout=Timeout(read=None, idle=inf),
        )
        try:
            head = self.server.fake.send(request)
        except (TransportError, AssertionError):  # A fault that leaves no answer.
            self.close_connection = True
            return
        body = head.body
        chunked = "transfer-encoding" in head.headers and self.request_version != "HTTP/1.0"
        self.send_response_only(head.status_code)
        for name, value in head.headers.pairs:
            if name != "transfer-encoding" or chunked:
                self.send_header(name, value)
        self.close_connection |= "content-length" not in head.headers and not chunked
        leaving = Thread(target=self._close_when_left, args=(body.close,), daemon=True)
        leaving.start()
        try:
            self.end_headers()
            for piece in body:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            if chunked:
                self.wfile.write(b"0\r\n\r\n")
        except Exception as error:  # noqa: BLE001 - see below
            self.close_connection = True
            if not isinstance(error, (TransportError, OSError)):
                leaving.join()  # A bug of the agent, of which the server tells nobody.
        finally:
            body.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = handle_any  # noqa: N815

    def _close_when_left(self, close: Callable[[], None]) -> None:
        with suppress(OSError):
            if self.connection.recv(1, MSG_PEEK):
                return  # The next request.
        close()
