"""A server with prepared responses, in its own process, so that its CPU time is not measured."""

from __future__ import annotations

import asyncio
import re
import resource
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import cache

from benchmarks import data

_HEAD = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ndate: Wed, 25 Nov 2026 13:31:36 GMT\r\n"
_LIST = data.listing(10, data.AGENT)
_AGENTS = _HEAD + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(_LIST),
    _LIST,
)
STREAM_HEAD = (
    _HEAD + b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
EVENT_BYTES = 300


async def _serve_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Respond to the requests of one connection."""
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = re.search(rb"\ncontent-length: *(\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
            path = head.split(b" ")[1].decode()
            if path == "/api/agents":
                writer.write(_AGENTS)
                continue
            count, pause = map(float, path.split("/")[3].split("-"))
            pieces = _turn(int(count))
            for piece in pieces if pause else [b"".join(pieces)]:
                writer.write(piece)
                await asyncio.sleep(pause)


@cache
def _turn(count: int) -> list[bytes]:
    """Return the response of a turn, with one HTTP chunk per event.

    If `count` is 0, the response has one event and no end.
    """
    chunks = [http_chunk(event) for event in data.turn(EVENT_BYTES, count or 1)]
    return [STREAM_HEAD, *chunks, *([http_chunk(b"")] if count else [])]


def http_chunk(content: bytes) -> bytes:
    """Return an HTTP chunk; without content, it is the last chunk of a body."""
    return b"%x\r\n%b\r\n" % (len(content), content)


def session_id(count: int, pause: float = 0.0) -> str:
    """Return the id of a session whose turns have `count` events with pauses of `pause` s."""
    return f"{count}-{pause}"


@contextmanager
def serving() -> Generator[str, None, None]:
    """Run the server, and yield its URL."""
    command = [sys.executable, "-m", "benchmarks.server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def open_many_files() -> None:
    """Raise the limit of open files, and thus of connections, to the system's maximum."""
    _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))


async def _serve() -> None:
    server = await asyncio.start_server(_serve_connection, "127.0.0.1", backlog=2000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    open_many_files()
    asyncio.run(_serve())
