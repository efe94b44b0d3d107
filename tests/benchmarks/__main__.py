"""`python -m benchmarks`, which `tox run -e bench` runs."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import decoding, exchanges, processes, report
from benchmarks.measuring import FULL, QUICK, Case, Effort, Result, measured

_SCENARIOS: dict[str, Callable[[Effort], Iterator[Case]]] = {
    "parse": decoding.parse,
    "typed": decoding.typed,
    "accumulate": decoding.accumulate,
    "look": decoding.look,
    "lists": decoding.lists,
    "stream": exchanges.streams,
    "burst": exchanges.bursts,
    "call": exchanges.calls,
    "core": exchanges.core,
    "client": processes.clients,
    "import": processes.imports,
    "memory": processes.memory,
    "many": processes.many,
}


def main() -> None:
    """Measure what was asked for; print each result as it comes, and write all of them."""
    told = [textwrap.fill(f"{name}: {make.__doc__}") for name, make in _SCENARIOS.items()]
    parser = argparse.ArgumentParser(
        "benchmarks",
        description="Measure flux0 beside its peers: on the same bytes, in the same run, by turns."
        " A ratio is the median over all turns of the ratio of CPU times.",
        epilog="\n".join(["scenarios:", *told]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer turns, and shorter: under two minutes")
    add("--only", action="append", choices=_SCENARIOS, help="a scenario; may be repeated")
    add("--output", type=Path, help="a folder for the results as text, JSON and SVG")
    given = parser.parse_args()

    effort: Effort = QUICK if given.quick else FULL
    wanted = given.only or list(_SCENARIOS)
    results: list[Result] = []
    for number, name in enumerate(wanted, 1):
        print(f"[{number}/{len(wanted)}] {name} ...", file=sys.stderr, flush=True)
        for case in _SCENARIOS[name](effort):
            results.append(measured(case, effort))
            print(report.line(results[-1]), flush=True)
    if given.output is not None:
        report.write(results, given.output)
        print(f"written to {given.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
