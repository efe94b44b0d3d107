"""Sync calls that an exception interrupts at any instruction, as an exception of a signal handler.

This test interrupts some random places. `tests/slow/test_interrupted_anywhere.py` interrupts all.
"""

# ruff: noqa: S311 - the random numbers are not secrets

from __future__ import annotations

import random

import pytest

from support.interruption_runs import SCENARIOS, needs_monitoring, run_module
from support.transports import SYNC_WAYS, Way

SECONDS = "3"


@needs_monitoring
@pytest.mark.slow
@pytest.mark.parametrize("way", SYNC_WAYS, ids=str)
def test_exception_at_any_instruction_ends_only_its_call(way: Way) -> None:
    seed = random.randrange(10**6)
    scenario = random.Random(seed).choice(SCENARIOS)
    options = ("--seconds", SECONDS, "--seed", f"{seed}")

    found = run_module("interrupted_anywhere", way.transport, scenario, "BaseException", *options)

    assert found["reached"] > 0
    assert found["problems"] == {}, f"{way.transport} {scenario} --seed {seed}"
