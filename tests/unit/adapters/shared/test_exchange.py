"""Shutting down connections, and duplicating their sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from types import FrameType
from typing import Any

import pytest

from flux0.adapters.shared import exchange
from flux0.adapters.shared.exchange import duplicate, shut_down


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


class _Interruption(BaseException):
    pass


def _lowest_free_descriptor() -> int:
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(descriptor)
    return descriptor


@pytest.mark.parametrize("wakes", [True, False])
def test_shut_down_closes_a_socket_on_windows_if_a_thread_may_wait_in_recv(
    wakes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_MUST_CLOSE", True)
    near, far = socket.socketpair()
    with near, far, near.makefile("rb"):
        shut_down(near, wakes=wakes)
        assert far.recv(1) == b""
        assert (near.fileno() == -1) is wakes


def test_shut_down_closes_a_socket_on_windows_that_is_not_connected_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchange, "_MUST_CLOSE", True)
    with socket.socket() as connecting:
        shut_down(connecting)
        assert connecting.fileno() == -1


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_interrupted_duplicate_leaves_no_file_descriptor_open() -> None:
    ours, theirs = socket.socketpair()
    duplicate(ours).close()
    before = _lowest_free_descriptor()
    this_code = test_interrupted_duplicate_leaves_no_file_descriptor_open.__code__
    left = uninterrupted = 0
    ended = False

    def interrupt(frame: FrameType, *_: Any) -> None:
        nonlocal left
        if frame.f_code is not this_code:
            left -= 1
            if left < 0:
                raise _Interruption

    with ours, theirs:
        while not ended:
            left = uninterrupted
            try:
                sys.setprofile(interrupt)
                duplicate(ours)
                ended = True
            except _Interruption:
                uninterrupted += 1
            finally:
                sys.setprofile(None)
            assert _lowest_free_descriptor() == before
    assert uninterrupted > 5
