"""A server of canned answers, in a process of its own so that its work is not counted."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache

from benchmarks import data

_HEAD = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ndate: Wed, 25 Nov 2026 13:31:36 GMT\r\n"
_LIST = data.listing(10, data.AGENT)
_AGENTS = _HEAD + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(_LIST),
    _LIST,
)
_STREAM = (
    _HEAD + b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
EVENT_BYTES = 300


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._held = b""
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._held += data
        head, ended, body = self._held.partition(b"\r\n\r\n")
        if not ended:
            return
        _, given, fields = head.lower().partition(b"content-length:")
        if given and len(body) < int(fields.split(b"\r\n")[0]):
            return
        self._held = b""
        path = head.split(b" ")[1].decode()
        if path == "/api/agents":
            self._transport.write(_AGENTS)
        else:
            count, _, pause = path.split("/")[3].partition("-")
            asyncio.get_running_loop().create_task(self._stream(int(count), float(pause)))

    async def _stream(self, count: int, pause: float) -> None:
        pieces = _turn(count)
        if pause:
            for piece in pieces:
                self._transport.write(piece)
                await asyncio.sleep(pause)
        else:
            self._transport.write(b"".join(pieces))


@cache
def _turn(count: int) -> list[bytes]:
    """Return the answer of a turn, each event a chunk of HTTP; one of no events never ends."""
    events = data.turn(EVENT_BYTES, count or 1)
    chunks = [b"%x\r\n%b\r\n" % (len(event), event) for event in events]
    return [_STREAM, *chunks, *([b"0\r\n\r\n"] if count else [])]


def session_id(count: int, pause: float = 0.0) -> str:
    """Return the session whose turns have `count` events, with `pause` seconds between them."""
    return f"{count}-{pause}"


@contextmanager
def serving() -> Generator[str, None, None]:
    """Run the server; gives its URL."""
    command = [sys.executable, "-m", "benchmarks.server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Connection, "127.0.0.1", backlog=2000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(_serve())
