"""Imports, memory, clients, and a thousand streams at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import httpx

from benchmarks.alone import WORD
from benchmarks.measuring import Case, Cpu, Effort, Sample
from benchmarks.server import serving
from flux0 import Flux0

_LONG_TURN = 1_000_000
_IMPORT = """
import sys, time
known, began = len(sys.modules), time.process_time()
{}
print({})
"""


def imports(effort: Effort) -> Iterator[Case]:
    """Importing the package, against importing attrs, which it needs."""
    for name, measure, unit, target in (
        ("CPU time", "(time.process_time() - began) * 1e6", "µs", 1.8),
        ("modules", "len(sys.modules) - known", "modules", None),
    ):
        ours, attrs = (
            _run("-c", _IMPORT.format(code, measure))
            for code in ("from flux0 import Flux0", "import attrs")
        )
        yield Case("import", name, ours, {"attrs": attrs}, target=target, unit=unit)


def clients(effort: Effort) -> Iterator[Case]:
    """Making a client, when there was one before."""
    yield Case(
        "client",
        "a second Flux0(), against 100 µs",
        Cpu(Flux0, effort.seconds),
        {"100 µs": lambda: 100.0, "httpx.Client()": Cpu(httpx.Client, effort.seconds)},
        target=1.0,
    )


def memory(effort: Effort) -> Iterator[Case]:
    """The memory that a turn of 1,000,000 events takes, if it is iterated over and no more."""
    text = len(WORD) * _LONG_TURN / 1e6
    ours = _run("-m", "benchmarks.alone", "grow", str(_LONG_TURN))
    yield Case(
        "memory",
        "1,000,000 events, against their text",
        ours,
        {"text": lambda: text},
        target=1.0,
        unit="MB",
        slow=True,
    )


def many(effort: Effort) -> Iterator[Case]:
    """The memory of 1,000 asynchronous streams that are open at once."""
    with serving() as base:
        ours, bare = (_run("-m", "benchmarks.alone", name, base) for name in ("ours", "bare"))
        yield Case(
            "many",
            "1,000 open streams",
            ours,
            {"httpx": bare},
            target=1.2,
            unit="MB",
            slow=True,
        )


def _run(*arguments: str) -> Sample:
    command = (sys.executable, *arguments)

    def sample() -> float:
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    return sample
