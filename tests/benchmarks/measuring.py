"""Measuring: contestants take turns, and what counts is the ratio within a turn.

The machine may be shared and its clock may change. So CPU time is measured and no duration, and the
ratio is the median of those of all turns.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from time import process_time
from typing import Literal, TypeAlias

from attrs import Factory, frozen

# Measures one contestant once, and returns the amount in the case's unit.
Sample: TypeAlias = Callable[[], float]


@frozen
class Cpu:
    """Measures the CPU time of `work`, in microseconds for each of the `count` things that it does.

    The work is done as often as `seconds` last, the first time apart.
    """

    work: Callable[[], object]
    seconds: float
    count: int = 1
    _repeats: list[int] = Factory(list[int])

    def __call__(self) -> float:
        if not self._repeats:
            self.work()
            self._repeats.append(max(1, int(self.seconds / max(self._took(1), 1e-7))))
        (repeats,) = self._repeats
        return self._took(repeats) / repeats / self.count * 1e6

    def _took(self, repeats: int) -> float:
        work = self.work
        gc.collect()
        gc.freeze()  # What other cases have made is not traversed in this one's time.
        began = process_time()
        for _ in range(repeats):
            work()
        return process_time() - began


@frozen
class Effort:
    """How thoroughly to measure."""

    turns: int
    slow_turns: int  # for what takes seconds
    seconds: float  # of CPU time for one sample of a quick thing
    patience: float  # seconds that a peer may take for one run

    def cpu(self, count: int, work: Callable[..., object], *arguments: object) -> Cpu:
        """Return a sample of work that does `count` things."""
        return Cpu(partial(work, *arguments), self.seconds, count)


QUICK = Effort(turns=3, slow_turns=1, seconds=0.01, patience=0.1)
FULL = Effort(turns=7, slow_turns=3, seconds=0.03, patience=0.5)


@frozen
class Case:
    """One comparison.

    `speed` is how many times as fast as the fastest peer ours is; `cost` is how many times the
    first peer ours takes. `target` is the least speed, or the highest cost.
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
    """What came of a case: the least amount of each contestant, and the ratio of ours."""

    case: Case
    amounts: Mapping[str, float]
    ratio: float | None

    @property
    def verdict(self) -> str:
        """Whether the target is met; empty if there is none."""
        target = self.case.target
        if target is None or self.ratio is None:
            return ""
        met = self.ratio >= target if self.case.kind == "speed" else self.ratio <= target
        return "met" if met else "missed"


def measured(case: Case, effort: Effort) -> Result:
    """Return the result of a case, whose contestants take turns."""
    samples = {"flux0": case.ours, **case.peers}
    turns = [
        {name: sample() for name, sample in samples.items()}
        for _ in range(effort.slow_turns if case.slow else effort.turns)
    ]
    amounts = {name: min(turn[name] for turn in turns) for name in samples}
    medians = [median(turn["flux0"] / turn[name] for turn in turns) for name in case.peers]
    if not medians:
        return Result(case, amounts, None)
    return Result(case, amounts, medians[0] if case.kind == "cost" else 1 / max(medians))
