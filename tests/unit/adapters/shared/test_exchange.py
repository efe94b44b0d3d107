"""Shutting down a connection for which the event loop returns no real socket."""

from __future__ import annotations

import asyncio
import socket

import pytest

from flux0.adapters.shared.exchange import shut_down


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_shut_down_ends_the_connection_of_an_event_loop(loop: str) -> None:
    module = asyncio if loop == "asyncio" else pytest.importorskip("uvloop")

    async def read_until_shut_down() -> bytes:
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_connection(sock=ours)
            shut_down(writer.get_extra_info("socket"))
            received = await reader.read()
            writer.close()
            shut_down(writer.get_extra_info("socket"))
        return received

    running = module.new_event_loop()
    try:
        assert running.run_until_complete(read_until_shut_down()) == b""
    finally:
        running.close()
