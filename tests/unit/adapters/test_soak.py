"""A short soak: see tests/support/soak.py. `tox -e soak` is the long one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.transports import WAYS, Way

pytestmark = pytest.mark.slow
SECONDS = os.environ.get("FLUX0_SOAK_SECONDS", "0.5")
RUNS = [(way, seed) for way in WAYS for seed in (0, 1)]


@pytest.mark.parametrize(("way", "seed"), RUNS, ids=str)
def test_nothing_is_left_behind_and_nothing_is_sent_twice(way: Way, seed: int) -> None:
    arguments = [way.transport, way.mode, SECONDS, f"{seed}"]
    done = subprocess.run(
        [sys.executable, "-m", "support.soak", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found.pop("turns") > 0
    assert found == {}, found
