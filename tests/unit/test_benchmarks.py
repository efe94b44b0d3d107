"""The benchmarks' evaluation and reports, with given measurements. No speed is tested."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

from benchmarks import report
from benchmarks.measuring import QUICK, Case, Sample, measure


def amounts(*values: float) -> Sample:
    remaining: Iterator[float] = iter(values)
    return lambda: next(remaining)


# In the second of five rounds, all amounts are larger, as on a busy machine.
FASTER = Case(
    "parse",
    "a <case>",
    amounts(1.0, 9.0, 1.1, 1.2, 1.0),
    {"slow": amounts(4.0, 9.0, 4.0, 5.0, 5.0), "quick": amounts(3.0, 9.0, 2.0, 3.0, 3.0)},
    "speed",
    target=2.5,
)
DEARER = Case(
    "call",
    "b",
    amounts(4.0, 8.0, 3.0, 3.0, 3.0),
    {"bare": amounts(2.0, 8.0, 2.0, 4.0, 4.0)},
    target=1.5,
)
ALONE = Case("core", "c", amounts(3.0, 4.0, 5.0, 5.0, 5.0), {})


def test_ratio_compares_the_lowest_amounts_with_the_fastest_peer(tmp_path: Path) -> None:
    results = [measure(case, QUICK) for case in (FASTER, DEARER, ALONE)]

    assert [result.ratio for result in results] == [2.0, 1.5, None]
    assert [result.verdict for result in results] == ["missed", "met", ""]
    assert [result.amounts["flux0"] for result in results] == [1.0, 3.0, 3.0]

    report.write(results, tmp_path)
    text = (tmp_path / "benchmarks.txt").read_text("utf-8")
    assert "2.00x as fast (2.5 missed)" in text
    assert "1.50x the cost (1.5 met)" in text
    written = json.loads((tmp_path / "benchmarks.json").read_text("utf-8"))
    assert [row["ratio"] for row in written["results"]] == [2.0, 1.5, None]
    picture = ET.fromstring((tmp_path / "benchmarks.svg").read_text("utf-8"))  # noqa: S314 - ours
    drawn = [element.text or "" for element in picture.iter() if element.tag.endswith("text")]
    assert {"parse: a <case>", "2.00", "call: b", "1.50"} <= set(drawn)
