"""The command `python -m benchmarks`, which `tox run -e bench` runs."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import alternatives, decoding, exchanges, lockstep, processes, relays, report
from benchmarks.measuring import FULL, QUICK, Case, Effort, Result, measure

_SCENARIOS: dict[str, Callable[[Effort], Iterator[Case]]] = {
    "parse": decoding.parse,
    "typed": decoding.typed,
    "accumulate": decoding.accumulate,
    "look": decoding.look,
    "lists": decoding.lists,
    "stream": exchanges.streams,
    "lockstep": lockstep.lockstep,
    "burst": exchanges.bursts,
    "alternatives": alternatives.alternatives,
    "relay": relays.relays,
    "web": relays.web,
    "paced": relays.paced,
    "call": exchanges.calls,
    "first": exchanges.first_calls,
    "core": exchanges.core,
    "client": processes.clients,
    "import": processes.imports,
    "memory": processes.memory,
    "kept": processes.kept,
    "many": processes.many,
}


def main() -> None:
    """Measure the selected scenarios, print each result, and write all results to files."""
    descriptions = [textwrap.fill(f"{name}: {make.__doc__}") for name, make in _SCENARIOS.items()]
    parser = argparse.ArgumentParser(
        "benchmarks",
        description="Compare flux0 with other libraries, with the same bytes in one run."
        " A ratio compares the lowest CPU times of all rounds.",
        epilog="\n".join(["scenarios:", *descriptions]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="run fewer and shorter rounds: about two minutes")
    add(
        "--only",
        action="append",
        choices=_SCENARIOS,
        help="run only this scenario; may be repeated",
    )
    add("--output", type=Path, help="write the results to this folder, as text, JSON and SVG")
    options = parser.parse_args()

    effort: Effort = QUICK if options.quick else FULL
    names = options.only or list(_SCENARIOS)
    results: list[Result] = []
    for number, name in enumerate(names, 1):
        print(f"[{number}/{len(names)}] {name} ...", file=sys.stderr, flush=True)
        for case in _SCENARIOS[name](effort):
            results.append(measure(case, effort))
            print(report.line(results[-1]), flush=True)
    if options.output is not None:
        report.write(results, options.output)
        print(f"written to {options.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
