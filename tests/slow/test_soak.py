"""A short soak test: see tests/support/soak.py. `tox -e soak` runs a long one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.transports import WAYS, Way

SECONDS = os.environ.get("FLUX0_SOAK_SECONDS", "0.2")
SEEDS = range(int(os.environ.get("FLUX0_SOAK_SEEDS", "1")))
RUNS = [(way, seed) for way in WAYS for seed in SEEDS]


@pytest.mark.parametrize(("way", "seed"), RUNS, ids=str)
def test_random_turns_leak_nothing_and_are_sent_once(way: Way, seed: int) -> None:
    arguments = [way.transport, way.mode, SECONDS, f"{seed}"]
    # Other tests run the same code. With coverage, the turns would be slower.
    environment = {name: each for name, each in os.environ.items() if "COVERAGE" not in name}
    finished = subprocess.run(
        [sys.executable, "-m", "support.soak", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
        env={**environment, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    found = json.loads(finished.stdout)
    assert found.pop("turns") > 0
    assert found == {}, found
