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
from itertools import repeat
from typing import cast

from flux0 import Flux0
from support.modes import in_mode, run
from support.transports import TRANSPORTS, Mode, make_transport

_CONTENT = json.dumps([{"text": "Hi"}, {"text": "there"}, {"hang": True}])
_LEFT_BEHIND: list[object] = []


async def use(flux0: Flux0, agent_id: str) -> None:
    """Leave behind a stream that was left by `break`, one read by half, and one not read at all."""
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

    def make_client() -> Flux0:
        return Flux0(url, transport=make_transport(transport))

    def leave_behind(mode: Mode, make: Callable[[], Flux0]) -> None:
        async def program() -> None:
            if mode == "asyncio":
                # In development mode it complains when a busy machine is slow to import.
                asyncio.get_running_loop().slow_callback_duration = 60
            await use(in_mode(mode, make()), agent_id)

        run(mode, program)

    for each in what:
        if each == "loops":
            shared = repeat(make_client())
            for mode in TRANSPORTS[transport][1] * 2:
                if mode != "sync":
                    leave_behind(mode, shared.__next__)
        else:
            leave_behind(cast("Mode", each), make_client)
        gc.collect()


if __name__ == "__main__":
    main()
