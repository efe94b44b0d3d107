"""A program that closes nothing.

    python -m support.forgetful <transport> <server url> <agent id> <sync|asyncio|trio|loops>...

It leaves clients and streams behind, some of them to the garbage collector and some until the
interpreter ends, and says nothing. What it says in spite of that is for the tests to see.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from collections.abc import Callable

import trio

from flux0 import Flux0
from support.transports import TRANSPORTS, make_transport

_CONTENT = json.dumps([{"text": "Hi"}, {"text": "there"}, {"hang": True}])
_LEFT_BEHIND: list[object] = []


def use(flux0: Flux0, agent_id: str) -> None:
    """Leave behind a stream that was left by `break`, one read by half, and one not read at all."""
    for keep in (_LEFT_BEHIND.append, id):
        for reads in range(3):
            session = flux0.sessions.create(agent_id=agent_id)
            stream = flux0.sessions.create_event(session_id=session.id, content=_CONTENT)
            if reads == 2:
                for _ in stream:
                    break
            elif reads == 1:
                next(stream)
            keep(stream)


async def use_async(flux0: Flux0, agent_id: str) -> None:
    """Do as `use` does."""
    for keep in (_LEFT_BEHIND.append, id):
        for reads in range(3):
            session = await flux0.sessions.create_async(agent_id=agent_id)
            stream = await flux0.sessions.create_event_async(
                session_id=session.id, content=_CONTENT
            )
            if reads == 2:
                async for _ in stream:
                    break
            elif reads == 1:
                await anext(stream)
            keep(stream)


def main() -> None:
    """Do what the arguments say."""
    transport, url, agent_id, *what = sys.argv[1:]
    _, modes = TRANSPORTS[transport]

    def make_client() -> Flux0:
        return Flux0(url, transport=make_transport(transport))

    def in_loop(mode: str, make: Callable[[], Flux0]) -> None:
        async def in_this_loop() -> None:
            if mode == "asyncio":
                # In development mode it complains when a busy machine is slow to import.
                asyncio.get_running_loop().slow_callback_duration = 60
            await use_async(make(), agent_id)

        if mode == "asyncio":
            asyncio.run(in_this_loop())
        elif mode == "trio":
            trio.run(in_this_loop)

    def leave_behind(kind: str) -> None:
        if kind == "sync":
            use(make_client(), agent_id)
        elif kind == "loops":
            shared = make_client()
            for mode in modes:
                for _ in range(2):
                    in_loop(mode, lambda: shared)
        else:
            in_loop(kind, make_client)

    for each in what:
        leave_behind(each)
        gc.collect()


if __name__ == "__main__":
    main()
