"""Runs a function in a forked child process; the transports and a turn for tests of forks."""

from __future__ import annotations

import gc
import os
import signal
import traceback
from collections.abc import Callable

import coverage
import pytest

from flux0.testing.contract.responses import WaitForRelease, http_response
from support.in_memory import SSE, chunk, status
from support.transports import SYNC_WAYS, TRANSPORTS

_TIMEOUT_SECONDS = 20

# httpx2 shares this code with httpx.
WAYS = tuple(way for way in SYNC_WAYS if way.transport != "httpx2")
NAMES = tuple(TRANSPORTS[way.transport][0] for way in WAYS)
over_every_transport = pytest.mark.parametrize("way", WAYS, ids=str)

TURN = http_response(
    status("typing"),
    WaitForRelease(),
    chunk("a"),
    chunk("b"),
    headers=SSE.items(),
    framing="chunked",
)


def in_child(act: Callable[[], object]) -> None:
    """Call `act` in a forked child; fail if it raises or hangs."""
    child = os.fork()
    if child == 0:
        _run_and_exit(act)
    _, result = os.waitpid(child, 0)
    assert result == 0, "the child failed, or was ended because it hung"


def _run_and_exit(act: Callable[[], object]) -> None:
    code = 1
    try:
        signal.alarm(_TIMEOUT_SECONDS)
        act()
        gc.collect()
        code = 0
    except BaseException:  # noqa: BLE001 - the child must not continue with the parent's tests
        traceback.print_exc()
    finally:
        save_coverage()
        os._exit(code)


def save_coverage() -> None:
    """Save the coverage of this process, if it is measured."""
    measured = coverage.Coverage.current()
    if measured is not None:
        measured.save()
