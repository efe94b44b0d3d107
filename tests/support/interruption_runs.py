"""Runs `support.interrupted_anywhere` and `support.real_signals` in their own processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCENARIOS = (
    "call",
    "connect",
    "limited",
    "turn",
    "end",
    "leave",
    "keep",
    "drop",
    "relay",
    "background",
    "close",
)

needs_monitoring = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="sys.monitoring is new in Python 3.12"
)
needs_signals = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no signal.setitimer"
)


def run_module(module: str, *arguments: str) -> dict[str, Any]:
    """Run a module of `support`. Return the JSON object that it prints."""
    environment = {name: each for name, each in os.environ.items() if "COVERAGE" not in name}
    done = subprocess.run(
        [sys.executable, "-m", f"support.{module}", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
        env={**environment, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert done.returncode == 0, f"{arguments}: {done.stderr[-6000:]}"
    found: dict[str, Any] = json.loads(done.stdout)
    return found
