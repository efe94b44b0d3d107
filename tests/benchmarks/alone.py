"""What is measured in a process of its own, by `python -m benchmarks.alone NAME ARGUMENT`."""

from __future__ import annotations

import asyncio
import resource
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx

from benchmarks import data
from benchmarks.exchanges import Stub
from benchmarks.server import session_id
from flux0 import Flux0

STREAMS = 1000
WORD = "word 7 "


def megabytes() -> float:
    """Return how much memory this process holds."""
    return (
        int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize() / 1e6
    )


def grow(count: str) -> float:
    """Return how much more memory a long turn takes than a short one, if it is only iterated."""
    event = data.turn(0, 1)[0].replace(b"word 0 ", WORD.encode())
    grown = 0.0
    for events in (10_000, int(count)):
        grown = -megabytes()
        with Flux0(transport=Stub(event for _ in range(events))) as client:
            stream = client.sessions.create_event(session_id="s", content="Hi")
            for _ in stream:
                pass
            grown += megabytes()
    return grown


async def open_streams(base: str, *, ours: bool) -> float:
    """Return how much memory many open streams take, each after its first event."""
    session = session_id(0)
    limits = httpx.Limits(max_connections=STREAMS)
    client: Any = Flux0(base) if ours else httpx.AsyncClient(limits=limits, timeout=60)
    kept: list[Any] = []

    async def begin(stack: AsyncExitStack) -> None:
        if ours:
            pieces = await stack.enter_async_context(
                client.sessions.create_event_async(session_id=session, content="Hi")
            )
        else:
            url = f"{base}/api/sessions/{session}/events/stream"
            response = await stack.enter_async_context(client.stream("POST", url, content=b"{}"))
            pieces = response.aiter_raw()
        await anext(pieces)
        kept.append(pieces)

    async with AsyncExitStack() as stack:
        await begin(stack)
        before = megabytes()
        await asyncio.gather(*(begin(stack) for _ in range(STREAMS - 1)))
        return megabytes() - before


def main(name: str, argument: str) -> None:
    """Measure, and print the amount."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if name == "grow":
        print(grow(argument))
    else:
        print(asyncio.run(open_streams(argument, ours=name == "ours")))


if __name__ == "__main__":
    main(*sys.argv[1:])
