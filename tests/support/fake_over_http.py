"""A `FakeTransport` behind a real socket, for processes that know nothing but an address."""

from __future__ import annotations

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from flux0.domain.errors import ConnectionInterrupted, ReadTimeout
from flux0.domain.headers import Headers
from flux0.ports import ByteStream, Request, Timeout
from flux0.testing import FakeTransport

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

# After so much of the fake's time, of which none is real, an agent that is silent stays silent.
_SILENCE_SECONDS = 1.0

_FRAMING = {"content-length", "transfer-encoding"}


class FakeOverHTTP:
    """A context manager: serves a fake on a free port of 127.0.0.1.

    A turn that falls silent is silent on the connection too, until the client leaves it. One that
    is cut off ends without the last HTTP chunk.

    Attributes:
        url: where it is served.
        left: is set once a client has left a turn that was silent.
    """

    def __init__(self, fake: FakeTransport) -> None:
        self.left = threading.Event()
        left = self.left

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer()

            def do_POST(self) -> None:
                self._answer()

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                response = fake.send(
                    Request(
                        self.command,
                        f"http://fake{self.path}",
                        Headers(tuple(self.headers.items())),
                        body or None,
                        stream=True,
                        timeout=Timeout(idle=_SILENCE_SECONDS),
                    )
                )
                self.send_response(response.status_code)
                for name, value in response.headers.pairs:
                    if name not in _FRAMING:
                        self.send_header(name, value)
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                self._stream(response.body)

            def _stream(self, body: ByteStream) -> None:
                try:
                    for piece in body:
                        self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                except ReadTimeout:
                    with contextlib.suppress(ConnectionError):
                        self.connection.recv(1)  # The client says nothing more until it leaves.
                    left.set()
                    self.close_connection = True
                except ConnectionInterrupted:
                    self.close_connection = True
                else:
                    self.wfile.write(b"0\r\n\r\n")

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
