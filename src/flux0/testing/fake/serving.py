"""An HTTP server on 127.0.0.1 for a fake, for programs that need a URL."""

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

_POLL_SECONDS = 0.05  # The longest time until `shutdown` takes effect.


@contextmanager
def serve(fake: SharedTransport, port: int) -> Generator[str, None, None]:
    """Serve a fake in a `with` block, each connection in a thread; see `FakeTransport.serve`."""
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
        """Accept a connection and track it."""
        accepted = super().get_request()
        self.connections.add(accepted[0])
        return accepted


class _Handler(BaseHTTPRequestHandler):
    """Serves the requests of one connection from a fake.

    Events are sent as soon as the agent produces them. If the client disconnects, the agent is
    cancelled at once. A turn whose agent sends no more events stays open until then.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]
    connection: socket

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def handle_any(self) -> None:
        """Handle one request."""
        if "transfer-encoding" in self.headers:
            self.send_error(HTTPStatus.LENGTH_REQUIRED)  # This also closes the connection.
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
            response = self.server.fake.send(request)
        except (TransportError, AssertionError):  # A fault instead of a response.
            self.close_connection = True
            return
        body = response.body
        chunked = "transfer-encoding" in response.headers and self.request_version != "HTTP/1.0"
        self.send_response_only(response.status_code)
        for name, value in response.headers.pairs:
            if name != "transfer-encoding" or chunked:
                self.send_header(name, value)
        self.close_connection |= "content-length" not in response.headers and not chunked
        watcher = Thread(target=self._close_on_disconnect, args=(body.close,), daemon=True)
        watcher.start()
        try:
            self.end_headers()
            for piece in body:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            if chunked:
                self.wfile.write(b"0\r\n\r\n")
        except Exception as error:  # noqa: BLE001 - agents can raise any exception
            self.close_connection = True
            if not isinstance(error, (TransportError, OSError)):
                # The agent raised. Like the server, keep the connection open and send no more data.
                watcher.join()
        finally:
            body.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = handle_any  # noqa: N815

    def _close_on_disconnect(self, close: Callable[[], None]) -> None:
        with suppress(OSError):
            if self.connection.recv(1, MSG_PEEK):
                return  # The client has sent its next request.
        close()
