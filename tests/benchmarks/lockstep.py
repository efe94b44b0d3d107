"""Streams in lock-step: an event is sent, and then the CPU time of reading it is measured.

The server runs in this process, and the thread that reads an event has sent it before. So no other
thread runs between two events, and the CPU's caches are warm.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from threading import Thread
from time import thread_time
from typing import BinaryIO

from attrs import frozen

from benchmarks import data
from benchmarks.exchanges import libraries
from benchmarks.measuring import Case, Effort, collect_garbage
from benchmarks.server import EVENT_BYTES, STREAM_HEAD, http_chunk
from flux0 import Flux0

_TARGETS: dict[str, float] = dict.fromkeys(("requests", "urllib3", "aiohttp"), 1.5)


def lockstep(effort: Effort) -> Iterator[Case]:
    """A turn whose events arrive when the reader waits for them: the CPU time of each `next`."""
    events = data.turn(EVENT_BYTES, int(effort.seconds * 20_000))
    with _serving(http_chunk(events[0])) as (url, connections):
        for library in libraries():
            client = Flux0(url, transport=library.transport())
            ours = library.runner(_ours if library.loop is None else _ours_async, client)
            bare = library.runner(library.read, f"{url}/api/sessions/s/events/stream")
            yield Case(
                "lockstep",
                library.name,
                _Lockstep(connections, events, ours),
                {"bare + json.loads": _Lockstep(connections, events, bare, json.loads)},
                target=_TARGETS.get(library.name),
            )


@frozen
class _Lockstep:
    """Measures the CPU time of reading an event, in microseconds.

    `read` reads a turn, and calls `next` on its argument after each event. `decode` is called with
    the JSON of each event.
    """

    connections: SimpleQueue[socket.socket]
    events: list[bytes]
    read: Callable[[Iterator[None]], object]
    decode: Callable[[str], object] | None = None

    def __call__(self) -> float:
        spent = 0.0

        def steps() -> Iterator[None]:
            nonlocal spent
            connection, decode = self.connections.get(), self.decode
            for event, text in zip(self.events, data.texts(self.events), strict=True):
                connection.sendall(http_chunk(event))
                began = thread_time()
                yield  # The reader now reads the event.
                if decode is not None:
                    decode(text)
                spent += thread_time() - began
            connection.sendall(http_chunk(b""))

        collect_garbage()
        self.read(steps())
        return spent / len(self.events) * 1e6


def _ours(client: Flux0, steps: Iterator[None]) -> None:
    for _ in client.sessions.create_event(session_id="s", content="Hi"):
        next(steps, None)


async def _ours_async(client: Flux0, steps: Iterator[None]) -> None:
    async for _ in await client.sessions.create_event_async(session_id="s", content="Hi"):
        next(steps, None)


@contextmanager
def _serving(first: bytes) -> Generator[tuple[str, SimpleQueue[socket.socket]], None, None]:
    """Run a server that responds with the head of a stream and with its first event.

    Yield its URL, and a queue of the connections to which the other events must be sent.
    """
    connections = SimpleQueue[socket.socket]()

    def respond(connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as file, suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while _read_request(file):
                connections.put(connection)
                connection.sendall(STREAM_HEAD + first)

    def accept() -> None:
        with suppress(OSError):  # The listener was closed.
            while True:
                Thread(target=respond, args=listener.accept()[:1], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", connections


def _read_request(file: BinaryIO) -> bool:
    """Read a request; return False if the client has closed the connection."""
    length = 0
    while (line := file.readline()) not in {b"\r\n", b""}:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return bool(line) and len(file.read(length)) == length
