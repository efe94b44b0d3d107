"""Imports, memory, the creation of clients, and a thousand open streams.

`python -m benchmarks.processes NAME ARGUMENT` runs a measurement that needs its own process.
"""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx

from benchmarks import data
from benchmarks.exchanges import Stub
from benchmarks.measuring import Case, Effort, Sample
from benchmarks.server import open_many_files, serving, session_id
from flux0 import Flux0

_STREAMS = 1000
_WORD = "word 7 "
_LONG_TURN = 1_000_000
_NO_BYTECODE_FILES = "PYTHONDONTWRITEBYTECODE"
_IMPORT = """
import sys, time
known = len(sys.modules)
{}
print({})
"""


def imports(effort: Effort) -> Iterator[Case]:
    """The import of flux0, compared with the import of attrs, on which flux0 depends."""
    for name, measure, unit, target in (
        ("CPU time of Python and the import", "time.process_time() * 1e3", "ms", 1.8),
        ("modules", "len(sys.modules) - known", "modules", 1.8),
    ):
        ours, attrs = (
            _run("-c", _IMPORT.format(code, measure))
            for code in ("from flux0 import Flux0", "import attrs")
        )
        yield Case("import", name, ours, {"attrs": attrs}, target=target, unit=unit)


def clients(effort: Effort) -> Iterator[Case]:
    """The creation of a second client, compared with 100 µs."""
    peers: dict[str, Sample] = {"100 µs": lambda: 100.0}
    peers["httpx.Client()"] = effort.cpu(1, httpx.Client)
    name = "a second Flux0(), compared with 100 µs"
    yield Case("client", name, effort.cpu(1, Flux0), peers, target=1.0)


def memory(effort: Effort) -> Iterator[Case]:
    """The memory of a turn with 1,000,000 events that is only iterated over."""
    name = "1,000,000 events, compared with their text"
    ours = _run("-m", __name__, "turn", str(_LONG_TURN))
    peers = {"text": lambda: len(_WORD) * _LONG_TURN / 1e6}
    yield Case("memory", name, ours, peers, target=1.0, unit="MB", slow=True)


def many(effort: Effort) -> Iterator[Case]:
    """The memory of 1,000 async streams that are open at the same time."""
    with serving() as base:
        ours, bare = (_run("-m", __name__, name, base) for name in ("flux0", "httpx"))
        name, peers = "1,000 open streams", {"httpx": bare}
        yield Case("many", name, ours, peers, target=1.2, unit="MB", slow=True)


def _run(*arguments: str) -> Sample:
    command = (sys.executable, *arguments)
    # Python stores compiled modules, as it does for users.
    environment = {name: value for name, value in os.environ.items() if name != _NO_BYTECODE_FILES}

    def sample() -> float:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return float(done.stdout)

    return sample


# --- in a child process


def _megabytes() -> float:
    """Return the memory of this process, in megabytes."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


def _turn(count: int) -> float:
    """Return the memory that a long turn needs in addition to the memory of a short turn."""
    event = data.turn(0, 1)[0].replace(b"word 0 ", _WORD.encode())
    grown = 0.0
    for events in (10_000, count):
        grown = -_megabytes()
        with Flux0(transport=Stub(event for _ in range(events))) as client:
            stream = client.sessions.create_event(session_id="s", content="Hi")
            for _ in stream:
                pass
            grown += _megabytes()
    return grown


async def _open_streams(base: str, *, ours: bool) -> float:
    """Return the memory of `_STREAMS` open streams, each after its first event."""
    session = session_id(0)
    url = f"{base}/api/sessions/{session}/events/stream"
    limits = httpx.Limits(max_connections=_STREAMS)
    flux0, bare = Flux0(base), httpx.AsyncClient(limits=limits, timeout=60)
    streams: list[Any] = []

    async def open_stream(stack: AsyncExitStack) -> None:
        if ours:
            opening = flux0.sessions.create_event_async(session_id=session, content="Hi")
            pieces: Any = await stack.enter_async_context(opening)
        else:
            response = await stack.enter_async_context(bare.stream("POST", url, content=b"{}"))
            pieces = response.aiter_raw()
        await anext(pieces)
        streams.append(pieces)

    async with AsyncExitStack() as stack:
        await open_stream(stack)
        before = _megabytes()
        await asyncio.gather(*(open_stream(stack) for _ in range(_STREAMS - 1)))
        return _megabytes() - before


if __name__ == "__main__":
    _, measurement, argument = sys.argv
    open_many_files()
    if measurement == "turn":
        print(_turn(int(argument)))
    else:
        print(asyncio.run(_open_streams(argument, ours=measurement == "flux0")))
