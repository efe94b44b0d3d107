"""Forked children and their exit codes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

import pytest

from flux0.testing.contract.forking import child_exit_code, exit_code, start_child

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def kill_itself() -> None:  # pragma: no cover - in the child
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:  # pragma: no cover - in the child
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    while True:
        signal.pause()


@pytest.mark.parametrize(
    ("work", "expected"),
    [(str, 0), (sys.exit, 1), (kill_itself, -signal.SIGKILL), (hang, -signal.SIGALRM)],
    ids=["returns", "raises", "is-killed", "hangs"],
)
def test_exit_code_tells_how_the_child_ended(work: Callable[[], object], expected: int) -> None:
    assert child_exit_code(work, 60.0) == expected


def test_error_of_the_child_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:  # pragma: no cover - in the child
        raise ValueError("the problem in the child")

    assert exit_code(start_child(fail, 60.0)) == 1
    assert "ValueError: the problem in the child" in capfd.readouterr().err
