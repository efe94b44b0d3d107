"""Measures flux0 and its peers alternately, and compares their lowest amounts.

The machine may be shared, and the frequency of its CPU may change. Therefore CPU time is measured
instead of wall-clock time, in many short rounds, and the result compares the lowest amounts: other
work of the machine only makes an amount larger.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from functools import partial
from time import process_time
from typing import Literal, TypeAlias

from attrs import Factory, frozen

# Measures one library once, and returns the amount in the case's unit.
Sample: TypeAlias = Callable[[], float]


@frozen
class Cpu:
    """Measures the CPU time of `work`, in microseconds per item, of which it processes `count`.

    After one call that is not measured, the work is repeated for about `seconds`.
    """

    work: Callable[[], object]
    seconds: float
    count: int = 1
    _repeats: list[int] = Factory(list[int])

    def __call__(self) -> float:
        if not self._repeats:
            self.work()
            self._repeats.append(max(1, int(self.seconds / max(self._measure(1), 1e-7))))
        (repeats,) = self._repeats
        return self._measure(repeats) / repeats / self.count * 1e6

    def _measure(self, repeats: int) -> float:
        work = self.work
        collect_garbage()
        start = process_time()
        for _ in range(repeats):
            work()
        return process_time() - start


@frozen
class Effort:
    """How many measurements there are, and their length."""

    rounds: int
    slow_rounds: int  # For cases that take seconds.
    seconds: float  # CPU time of one sample, in seconds.
    max_peer_seconds: float  # A peer that needs more CPU time for one run is left out.

    def cpu(self, count: int, work: Callable[..., object], *arguments: object) -> Cpu:
        """Return a sample of work that processes `count` items."""
        return Cpu(partial(work, *arguments), self.seconds, count)


QUICK = Effort(rounds=5, slow_rounds=1, seconds=0.006, max_peer_seconds=0.1)
FULL = Effort(rounds=21, slow_rounds=3, seconds=0.01, max_peer_seconds=0.5)


@frozen
class Case:
    """One comparison of flux0 with its peers.

    The ratio of the kind `speed` says how many times as fast flux0 is as the fastest peer. The
    ratio of the kind `cost` is the cost of flux0, divided by the cost of the first peer. `target`
    is the lowest allowed speed, or the highest allowed cost.
    """

    scenario: str
    name: str
    ours: Sample
    peers: Mapping[str, Sample]
    kind: Literal["speed", "cost"] = "cost"
    target: float | None = None
    unit: str = "µs"
    note: str = ""
    slow: bool = False


@frozen
class Result:
    """The result of a case: the lowest amount of each library, and the ratio of flux0."""

    case: Case
    amounts: Mapping[str, float]
    ratio: float | None

    @property
    def verdict(self) -> str:
        """The words "met" or "missed", or an empty string if there is no target."""
        target = self.case.target
        if target is None or self.ratio is None:
            return ""
        met = self.ratio >= target if self.case.kind == "speed" else self.ratio <= target
        return "met" if met else "missed"


def collect_garbage() -> None:
    """Collect garbage, and exclude the objects of other cases from further collections."""
    gc.collect()
    gc.freeze()


def measure(case: Case, effort: Effort) -> Result:
    """Measure flux0 and its peers alternately, and return the result."""
    samples = {"flux0": case.ours, **case.peers}
    rounds = [
        {name: sample() for name, sample in samples.items()}
        for _ in range(effort.slow_rounds if case.slow else effort.rounds)
    ]
    amounts = {name: min(each[name] for each in rounds) for name in samples}
    ratios = [amounts["flux0"] / amounts[name] for name in case.peers]
    if not ratios:
        return Result(case, amounts, None)
    return Result(case, amounts, ratios[0] if case.kind == "cost" else 1 / max(ratios))
