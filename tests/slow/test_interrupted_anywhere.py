"""Sync calls that are interrupted at each instruction, by real signals, and under gevent."""

from __future__ import annotations

import pytest

from support.interruption_runs import SCENARIOS, needs_monitoring, needs_signals, run_module
from support.transports import SYNC_WAYS, Way

SIGNALS = 3000
KILLS = 1000


@needs_monitoring
@pytest.mark.parametrize("kind", ["BaseException", "Exception"])
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("way", SYNC_WAYS, ids=str)
def test_exception_at_each_instruction_ends_only_its_call(
    way: Way, scenario: str, kind: str
) -> None:
    found = run_module("interrupted_anywhere", way.transport, scenario, kind)
    assert found["reached"] > found["places"] / 2
    assert found["problems"] == {}


@needs_signals
@pytest.mark.parametrize("way", SYNC_WAYS, ids=str)
def test_exceptions_of_a_signal_handler_arrive_and_affect_no_other_thread(way: Way) -> None:
    found = run_module("real_signals", way.transport, "signals", f"{SIGNALS}", "1")
    assert found == {"interrupted": SIGNALS, "problems": []}


@pytest.mark.parametrize("way", SYNC_WAYS, ids=str)
def test_kills_and_timeouts_of_gevent_arrive_and_affect_no_other_greenlet(way: Way) -> None:
    found = run_module("real_signals", way.transport, "gevent", f"{KILLS}", "1")
    assert found == {"interrupted": KILLS, "problems": []}
