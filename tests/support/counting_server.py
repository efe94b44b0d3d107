"""A server that knows its open connections and open turns, and can hold a response."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Any

from flux0.testing.contract.responses import http_response, to_bytes
from support.in_memory import JSON, SESSION, SSE, chunk

if TYPE_CHECKING:
    from typing_extensions import Self

AGENT = {
    "id": "agent12345",
    "name": "Drizzle",
    "type": "fake",
    "created_at": "2026-01-01T00:00:00Z",
}
TEXTS = ("a", "b", "c")
# A turn of a session whose id starts so sends its first chunk, and stays open until the client
# disconnects.
OPEN_SESSION = "open"
# A call with this header waits for `CountingServer.release`.
HOLD = "x-hold"


class CountingServer:
    """Responds to `agents.list`, `sessions.create` and messages, in one thread.

    Attributes:
        url: The server's URL.
        connections: The open connections.
        turns: The connections with an open turn.
        holds: Set while a response is held.
    """

    def __init__(self) -> None:
        self.connections: set[_Connection] = set()
        self.turns: set[_Connection] = set()
        self.held: list[tuple[_Connection, bytes]] = []
        self.holds = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        serve = self._loop.create_server(lambda: _Connection(self), "127.0.0.1", 0)
        self._server = self._loop.run_until_complete(serve)
        port = self._server.sockets[0].getsockname()[1]
        self.url: str = f"http://127.0.0.1:{port}"
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        for connection in tuple(self.connections):
            connection.transport.close()
        self._server.close()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def release(self) -> None:
        """Send the held responses."""
        self._loop.call_soon_threadsafe(self._release)

    def _release(self) -> None:
        for connection, response in self.held:
            connection.transport.write(response)
        self.held.clear()
        self.holds.clear()


_AGENTS = to_bytes(http_response(json.dumps({"data": [AGENT]}).encode(), headers=JSON.items()))
_SESSION = to_bytes(
    http_response(json.dumps(SESSION).encode(), status="201 Created", headers=JSON.items())
)
_TURN = to_bytes(http_response(*map(chunk, TEXTS), headers=SSE.items(), framing="chunked"))
_OPEN = to_bytes(http_response(chunk("a"), headers=SSE.items(), framing="chunked"))
_OPEN_TURN = _OPEN.removesuffix(b"0\r\n\r\n")  # without the last chunk


class _Connection(asyncio.Protocol):
    def __init__(self, server: CountingServer) -> None:
        self._server = server
        self._received = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._server.turns.discard(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        fields = head.lower()
        length = int((fields.partition(b"content-length: ")[2].split(b"\r\n")[0]) or 0)
        if separator and len(body) >= length:
            self._received = b""
            self._respond(fields)

    def _respond(self, head: bytes) -> None:
        server, line = self._server, head.split(b"\r\n")[0]
        if f"/sessions/{OPEN_SESSION}".encode() in line and b"/stream" in line:
            server.turns.add(self)
            self.transport.write(_OPEN_TURN)
            return
        response = _TURN if b"/stream" in line else _SESSION if b"/sessions" in line else _AGENTS
        if f"\r\n{HOLD}:".encode() in head:
            server.held.append((self, response))
            server.holds.set()
        else:
            self.transport.write(response)
