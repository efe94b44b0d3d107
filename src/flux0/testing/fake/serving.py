"""A fake on a port of 127.0.0.1, for programs that know nothing but an address."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import MSG_PEEK, SHUT_RDWR, socket
from threading import Thread
from typing import Any
from urllib.parse import urljoin

from attrs import evolve

from flux0.domain.errors import TransportError
from flux0.domain.headers import Headers
from flux0.ports import Request, Timeout
from flux0.testing.fake.body import FakeBody, SharedTransport
from flux0.testing.fake.clock import perform

_POLL_SECONDS = 0.05  # After so long at most, an end is seen.


@contextmanager
def serve(fake: SharedTransport, port: int = 0) -> Generator[str, None, None]:
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
        self.connections: set[socket] = set()


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection as a fake does.

    An event is sent when the agent says it. A client that goes away cancels the agent at once, and
    a turn that falls silent is silent until then.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]
    connection: socket

    def setup(self) -> None:
        """Take note of the connection."""
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        """Forget the connection."""
        self.server.connections.discard(self.connection)
        with suppress(OSError):  # The client has gone.
            super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def handle_any(self) -> None:
        """Answer one request."""
        if "transfer-encoding" in self.headers:
            self.send_error(HTTPStatus.LENGTH_REQUIRED)  # This closes the connection.
            return
        size = int(self.headers.get("content-length") or 0)
        url = urljoin(f"http://{self.headers.get('host', 'fake')}", self.path)
        headers = Headers(tuple(self.headers.items()))
        request = Request(self.command, url, headers, self.rfile.read(size) or None, stream=True)
        request = evolve(request, timeout=Timeout(read=None, idle=None))
        fake = self.server.fake
        try:
            head = perform(fake.answer(request, patient=True), fake.clock)
        except (TransportError, AssertionError):  # A fault that leaves no answer.
            self.close_connection = True
            return
        chunked = "transfer-encoding" in head.headers and self.request_version != "HTTP/1.0"
        self.send_response_only(head.status_code)
        for name, value in head.headers.pairs:
            if name != "transfer-encoding" or chunked:
                self.send_header(name, value)
        self.close_connection |= "content-length" not in head.headers and not chunked
        body = FakeBody(head.body, "closed")
        leaving = Thread(target=self._close_when_left, args=(body,), daemon=True)
        leaving.start()
        try:
            self.end_headers()
            for piece in body:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            if chunked:
                self.wfile.write(b"0\r\n\r\n")
        except (TransportError, OSError):
            self.close_connection = True
        except Exception:  # noqa: BLE001 - a bug of the agent, of which the server tells nobody
            leaving.join()
            self.close_connection = True
        finally:
            body.close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):  # Whatever the method, such as do_POST.
            return self.handle_any
        raise AttributeError(name)

    def _close_when_left(self, body: FakeBody) -> None:
        with suppress(OSError):
            if self.connection.recv(1, MSG_PEEK):
                return  # The next request.
        body.close()
