"""Imports, memory, the creation of clients, and thousands of open streams.

`python -m benchmarks.processes NAME ARGUMENT` runs a measurement that needs its own process.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from time import process_time
from typing import Any

import aiohttp
import httpx

from benchmarks import data
from benchmarks.exchanges import Stub
from benchmarks.measuring import Case, Effort, Sample
from benchmarks.server import open_many_files, serving, session_id
from flux0 import AiohttpTransport, BackgroundTurns, Flux0

_STREAMS = 2000
_SESSION = session_id(0)
_WORD = "word 7 "
_LONG_TURN = 1_000_000
_KEPT_TURNS = 1000
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
            _run_sample("-c", _IMPORT.format(code, measure))
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
    ours = _run_sample("-m", __name__, "turn", str(_LONG_TURN))
    peers = {"text": lambda: len(_WORD) * _LONG_TURN / 1e6}
    yield Case("memory", name, ours, peers, target=1.0, unit="MB", slow=True)


def kept(effort: Effort) -> Iterator[Case]:
    """The memory of 1,000 background turns of 20 kB that have ended, compared with their bytes."""
    sizes = [_run("-m", __name__, "kept", str(_KEPT_TURNS))() for _ in range(effort.slow_rounds)]
    memory, text = (min(amounts) for amounts in zip(*sizes, strict=True))
    peers: dict[str, Sample] = {"text": lambda: text}
    name = "1,000 turns of 20 kB, compared with their bytes"
    yield Case("kept", name, lambda: memory, peers, target=1.3, unit="MB", slow=True)


def many(effort: Effort) -> Iterator[Case]:
    """2,000 async streams that are open at the same time: memory, CPU time, and longest stall."""
    with serving() as base:
        commands = {name: _run("-m", __name__, name, base) for name in _OPENERS}
        rounds = [
            {name: run() for name, run in commands.items()} for _ in range(effort.slow_rounds)
        ]

    def sample(name: str, amount: int) -> Sample:
        measured = iter([amounts[name][amount] for amounts in rounds])
        return lambda: next(measured)

    for library, target in (("httpx", 1.2), ("aiohttp", None)):
        for amount, (what, unit) in enumerate((("memory", "MB"), ("CPU time", "s"))):
            ours, bare = sample(f"flux0 over {library}", amount), sample(library, amount)
            name = f"2,000 streams over {library}: {what}"
            yield Case("many", name, ours, {"bare": bare}, target=target, unit=unit, slow=True)
        peers: dict[str, Sample] = {"0.3 s": lambda: 0.3, "bare": sample(library, 2)}
        name = f"2,000 streams over {library}: longest stall"
        limit = None if target is None else 1.0
        ours = sample(f"flux0 over {library}", 2)
        yield Case("many", name, ours, peers, target=limit, unit="s", slow=True)


def _run(*arguments: str) -> Callable[[], list[float]]:
    """Return a function that runs Python, and returns the numbers that it prints."""
    command = (sys.executable, *arguments)
    # Python stores compiled modules, as it does for users.
    environment = {name: value for name, value in os.environ.items() if name != _NO_BYTECODE_FILES}

    def run() -> list[float]:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return [float(number) for number in done.stdout.split()]

    return run


def _run_sample(*arguments: str) -> Sample:
    run = _run(*arguments)
    return lambda: run()[0]


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


def _kept(count: int) -> tuple[float, float]:
    """Return the memory of `count` background turns, and the size of their events."""
    pieces = data.turn(0, 80)  # Each turn has about 20 kB.
    turns, client = BackgroundTurns(), Flux0(transport=Stub(pieces))

    def run(number: int) -> int:
        turn = turns.start(client.conversation(session=f"s{number}"), "Hi")
        return sum(map(len, turn.relay()))

    for number in range(50):
        run(-number)
    gc.collect()
    before = _megabytes()
    size = sum(map(run, range(count)))
    gc.collect()
    return _megabytes() - before, size / 1e6


@asynccontextmanager
async def _flux0_stream(client: Flux0, url: str) -> AsyncGenerator[AsyncIterator[object]]:
    session = url.split("/")[-3]
    async with await client.sessions.create_event_async(session_id=session, content="Hi") as turn:
        yield turn


@asynccontextmanager
async def _httpx_stream(
    client: httpx.AsyncClient, url: str
) -> AsyncGenerator[AsyncIterator[object]]:
    async with client.stream("POST", url, content=b"{}") as response:
        yield response.aiter_raw()


@asynccontextmanager
async def _aiohttp_stream(
    session: aiohttp.ClientSession, url: str
) -> AsyncGenerator[AsyncIterator[object]]:
    async with session.post(url, data=b"{}") as response:
        yield response.content.iter_any()


def _httpx_client(_: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(limits=httpx.Limits(max_connections=_STREAMS), timeout=60)


def _aiohttp_session(_: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=_STREAMS))


# For each contestant, a function that makes a client, and a function that opens a stream.
_OPENERS: dict[str, tuple[Callable[[str], Any], Callable[[Any, str], Any]]] = {
    "flux0 over httpx": (Flux0, _flux0_stream),
    "httpx": (_httpx_client, _httpx_stream),
    "flux0 over aiohttp": (
        lambda base: Flux0(base, transport=AiohttpTransport(_aiohttp_session(base))),
        _flux0_stream,
    ),
    "aiohttp": (_aiohttp_session, _aiohttp_stream),
}


async def _open_streams(contestant: str, base: str) -> tuple[float, float, float]:
    """Open `_STREAMS` streams, and read the first event of each.

    Return their memory in MB, the CPU time in seconds, and the event loop's longest stall in
    seconds.
    """
    make, open_stream = _OPENERS[contestant]
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(make(base))

        async def read_one(number: int) -> None:
            # A client has at most one open stream per session, so each stream has its own session.
            # The server reads `0.0e7`, the pause of a session, as 0.
            url = f"{base}/api/sessions/{_SESSION}e{number}/events/stream"
            opened.append(await stack.enter_async_context(open_stream(client, url)))
            await anext(opened[-1])

        # When the garbage collector frees httpx's iterator, the iterator closes its response.
        opened: list[AsyncIterator[object]] = []
        await read_one(0)
        memory, cpu = _megabytes(), process_time()
        watch = asyncio.create_task(_longest_stall())
        await asyncio.gather(*(read_one(number) for number in range(1, _STREAMS)))
        return _megabytes() - memory, process_time() - cpu, await _stop(watch)


async def _longest_stall() -> float:
    """Measure until this task is cancelled; return the event loop's longest stall.

    A stall is measured as the CPU time between two runs of this task, because other processes
    may also delay the task.
    """
    longest, last = 0.0, process_time()
    with suppress(asyncio.CancelledError):
        while True:
            await asyncio.sleep(0.01)
            now = process_time()
            longest, last = max(longest, now - last), now
    return longest


async def _stop(task: asyncio.Task[float]) -> float:
    task.cancel()
    return await task


if __name__ == "__main__":
    _, measurement, argument = sys.argv
    open_many_files()
    if measurement == "turn":
        print(_turn(int(argument)))
    elif measurement == "kept":
        print(*_kept(int(argument)))
    else:
        print(*asyncio.run(_open_streams(measurement, argument)))
