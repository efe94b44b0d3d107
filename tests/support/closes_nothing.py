"""A program that closes neither clients nor streams.

    python -m support.closes_nothing TRANSPORT SERVER_URL AGENT_ID MODE...

Each MODE is sync, asyncio or trio; or loops, which uses one client in several event loops. Some
clients and streams become unreferenced, others are referenced until the interpreter exits. The
program prints nothing itself: tests check that Python and the libraries print no warnings.
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
_REFERENCED: list[object] = []


async def leave_streams(flux0: Flux0, agent_id: str) -> None:
    """Start streams that are not read, partly read, or left by `break`, and close none of them."""
    for keep in (_REFERENCED.append, id):
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
    """Run the modes in the command-line arguments."""
    transport, url, agent_id, *modes = sys.argv[1:]

    def make_client() -> Flux0:
        return Flux0(url, transport=make_transport(transport))

    def run_program(mode: Mode, make: Callable[[], Flux0]) -> None:
        async def program() -> None:
            if mode == "asyncio":
                # On a busy machine, imports are slow, and the development mode warns about them.
                asyncio.get_running_loop().slow_callback_duration = 60
            await leave_streams(in_mode(mode, make()), agent_id)

        run(mode, program)

    for each in modes:
        if each == "loops":
            shared = repeat(make_client())
            for mode in TRANSPORTS[transport][1] * 2:
                if mode != "sync":
                    run_program(mode, shared.__next__)
        else:
            run_program(cast("Mode", each), make_client)
        gc.collect()


if __name__ == "__main__":
    main()
