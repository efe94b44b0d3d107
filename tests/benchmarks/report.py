"""Results as text, as JSON, and as a picture."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from html import escape
from importlib.metadata import distributions
from pathlib import Path

from benchmarks.measuring import Result

_LIBRARIES = (
    *("anthropic", "openai", "httpx-sse", "sseclient-py", "pydantic"),
    *("httpx", "httpx2", "requests", "urllib3", "aiohttp", "attrs", "cattrs"),
)
_ROW, _LEFT, _WIDTH, _MOST = 18, 330, 760, 4.0  # Pixels, and the ratio at the right edge.
_STYLE = """
svg { background: #fff } text { font: 12px sans-serif; fill: #222 } .h { font-weight: bold }
.speed { fill: #3f7fbf } .cost { fill: #c08a3e } .target { stroke: #b22 } .one { stroke: #999 }
"""


def line(result: Result) -> str:
    """Return one result as a line of text."""
    case = result.case
    peers = ", ".join(
        f"{name} {_shown(amount)}" for name, amount in result.amounts.items() if name != "flux0"
    )
    parts = (
        f"{case.scenario:<10} {case.name:<36}",
        f"{_ratio(result):<26}",
        f"{_shown(result.amounts['flux0'])} {case.unit}",
        f"({peers})" if peers else "",
        case.note,
    )
    return " ".join(part for part in parts if part).rstrip()


def environment() -> dict[str, str]:
    """Return what the results depend on."""
    installed = {each.name: each.version for each in distributions()}
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        **{name: installed[name] for name in _LIBRARIES if name in installed},
    }


def as_json(results: Iterable[Result]) -> str:
    """Return the results, with what they depend on, as JSON."""
    rows = [
        {
            "scenario": result.case.scenario,
            "name": result.case.name,
            "kind": result.case.kind,
            "ratio": result.ratio,
            "target": result.case.target,
            "verdict": result.verdict,
            "unit": result.case.unit,
            "amounts": result.amounts,
            "note": result.case.note,
        }
        for result in results
    ]
    return json.dumps({"environment": environment(), "results": rows}, indent=1)


def as_svg(results: Sequence[Result]) -> str:
    """Return the ratios that have targets, as bars."""
    rows = [result for result in results if result.verdict]
    height = (len(rows) + 3) * _ROW
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}">',
        f"<title>Ratios of flux0 to its peers, {escape(environment()['python'])}</title>",
        f"<style>{_STYLE}</style>",
        f'<text class="h" x="10" y="{_ROW}">Blue: times as fast as the fastest peer. '
        "Brown: times the cost of the bare work. Red: target.</text>",
    ]
    for number, result in enumerate(rows, 2):
        drawn += _bar(result, number * _ROW)
    drawn += [_rule(1.0, "one", 2 * _ROW - 4, height - _ROW), "</svg>"]
    return "\n".join(drawn) + "\n"


def write(results: Sequence[Result], folder: Path) -> None:
    """Write all three into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{name}: {what}" for name, what in environment().items()]
    text = "\n".join((", ".join(lines), "", *map(line, results), ""))
    for name, content in (
        ("benchmarks.txt", text),
        ("benchmarks.json", as_json(results) + "\n"),
        ("benchmarks.svg", as_svg(results)),
    ):
        (folder / name).write_text(content, "utf-8")


def _bar(result: Result, top: int) -> list[str]:
    ratio, case = result.ratio or 0.0, result.case
    y, bottom = top + _ROW - 6, top + _ROW - 3
    drawn = [
        f'<text x="10" y="{y}">{escape(f"{case.scenario}: {case.name}")}</text>',
        f'<rect class="{case.kind}" x="{_LEFT}" y="{top}" width="{_x(ratio) - _LEFT:.0f}"'
        f' height="{_ROW - 4}"/>',
        f'<text x="{_x(ratio) + 6:.0f}" y="{y}">{ratio:.2f}</text>',
    ]
    if case.target is not None:
        drawn.append(_rule(case.target, "target", top - 1, bottom))
    return drawn


def _rule(ratio: float, kind: str, top: int, bottom: int) -> str:
    x = f"{_x(ratio):.0f}"
    return f'<line class="{kind}" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>'


def _x(ratio: float) -> float:
    return _LEFT + min(ratio, _MOST) / _MOST * (_WIDTH - _LEFT - 50)


def _ratio(result: Result) -> str:
    case, ratio = result.case, result.ratio
    if ratio is None:
        return "no peer to compare with"
    times = f"{ratio:.2f}x {'as fast' if case.kind == 'speed' else 'the cost'}"
    if case.target is None:
        return times
    return f"{times} ({case.target:g} {result.verdict})"


def _shown(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"
