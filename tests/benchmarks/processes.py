"""Imports, memory, clients, and a thousand streams at once.

`python -m benchmarks.processes NAME ARGUMENT` measures what needs a process of its own.
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
_COMPILE_ANEW = "PYTHONDONTWRITEBYTECODE"
_IMPORT = """
import sys, time
known = len(sys.modules)
{}
print({})
"""


def imports(effort: Effort) -> Iterator[Case]:
    """Importing the package, against importing attrs, which it needs."""
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
    """Making a client, when there was one before."""
    peers: dict[str, Sample] = {"100 µs": lambda: 100.0}
    peers["httpx.Client()"] = effort.cpu(1, httpx.Client)
    name = "a second Flux0(), against 100 µs"
    yield Case("client", name, effort.cpu(1, Flux0), peers, target=1.0)


def memory(effort: Effort) -> Iterator[Case]:
    """The memory that a turn of 1,000,000 events takes, if it is iterated over and no more."""
    name = "1,000,000 events, against their text"
    ours = _run("-m", __name__, "turn", str(_LONG_TURN))
    peers = {"text": lambda: len(_WORD) * _LONG_TURN / 1e6}
    yield Case("memory", name, ours, peers, target=1.0, unit="MB", slow=True)


def many(effort: Effort) -> Iterator[Case]:
    """The memory of 1,000 asynchronous streams that are open at once."""
    with serving() as base:
        ours, bare = (_run("-m", __name__, name, base) for name in ("flux0", "httpx"))
        name, peers = "1,000 open streams", {"httpx": bare}
        yield Case("many", name, ours, peers, target=1.2, unit="MB", slow=True)


def _run(*arguments: str) -> Sample:
    command = (sys.executable, *arguments)
    # What was compiled once is kept, as it is for users.
    keeping = {name: value for name, value in os.environ.items() if name != _COMPILE_ANEW}

    def sample() -> float:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=keeping)
        return float(done.stdout)

    return sample


# --- in a process of its own


def _megabytes() -> float:
    """Return how much memory this process holds."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


def _turn(count: int) -> float:
    """Return how much more memory a long turn takes than a short one, if it is only iterated."""
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
    """Return how much memory many open streams take, each after its first event."""
    session = session_id(0)
    url = f"{base}/api/sessions/{session}/events/stream"
    limits = httpx.Limits(max_connections=_STREAMS)
    flux0, bare = Flux0(base), httpx.AsyncClient(limits=limits, timeout=60)
    kept: list[Any] = []

    async def begin(stack: AsyncExitStack) -> None:
        if ours:
            opening = flux0.sessions.create_event_async(session_id=session, content="Hi")
            pieces: Any = await stack.enter_async_context(opening)
        else:
            response = await stack.enter_async_context(bare.stream("POST", url, content=b"{}"))
            pieces = response.aiter_raw()
        await anext(pieces)
        kept.append(pieces)

    async with AsyncExitStack() as stack:
        await begin(stack)
        before = _megabytes()
        await asyncio.gather(*(begin(stack) for _ in range(_STREAMS - 1)))
        return _megabytes() - before


if __name__ == "__main__":
    _, what, argument = sys.argv
    open_many_files()
    if what == "turn":
        print(_turn(int(argument)))
    else:
        print(asyncio.run(_open_streams(argument, ours=what == "flux0")))
