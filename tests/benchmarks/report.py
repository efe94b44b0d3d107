"""Writes the results as text, as JSON, and as a picture."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from html import escape
from importlib.metadata import distributions
from pathlib import Path

from attrs import asdict

from benchmarks.measuring import Result

_LIBRARIES = (
    *("anthropic", "openai", "httpx-sse", "sseclient-py", "pydantic", "msgspec"),
    *("httpx", "httpx2", "requests", "urllib3", "aiohttp", "attrs", "cattrs"),
)
_ROW, _LEFT, _WIDTH = 18, 330, 760  # Pixels.
_MAX_RATIO = 4.0  # The ratio at the right edge.
_PICTURE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">
<title>Ratios of flux0 to its peers, {python}</title>
<style>
svg {{ background: #fff }} text {{ font: 12px sans-serif; fill: #222 }} .h {{ font-weight: bold }}
.speed {{ fill: #3f7fbf }} .cost {{ fill: #c08a3e }}
.target {{ stroke: #b22 }} .one {{ stroke: #999 }}
@media (prefers-color-scheme: dark) {{
svg {{ background: #1e2129 }} text {{ fill: #ddd }} .target {{ stroke: #f77 }}
}}
</style>
<text class="h" x="10" y="18">Blue: speed relative to the fastest peer. \
Brown: cost relative to the first peer. Red: target.</text>
{bars}
</svg>
"""


def line(result: Result) -> str:
    """Return one result as a line of text."""
    case, amounts = result.case, {**result.amounts}
    ours = f"{_shown(amounts.pop('flux0'))} {case.unit}"
    peers = ", ".join(f"{name} {_shown(amount)}" for name, amount in amounts.items())
    columns = [f"{case.scenario:<10} {case.name:<36} {_ratio(result):<26} {ours}"]
    columns += [f"({peers})"] * bool(peers) + [case.note] * bool(case.note)
    return " ".join(columns)


def write(results: Sequence[Result], folder: Path) -> None:
    """Write the three files, with the versions of Python and the libraries, to a folder."""
    installed = {each.name: each.version for each in distributions()}
    environment = {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        **{name: installed[name] for name in _LIBRARIES if name in installed},
    }
    text = [", ".join(f"{name}: {value}" for name, value in environment.items()), ""]
    rows = [
        {
            **asdict(
                result.case, filter=lambda field, _: field.name not in {"ours", "peers", "slow"}
            ),
            "amounts": result.amounts,
            "ratio": result.ratio,
            "verdict": result.verdict,
        }
        for result in results
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for kind, content in (
        ("txt", "\n".join([*text, *map(line, results), ""])),
        ("json", json.dumps({"environment": environment, "results": rows}, indent=1) + "\n"),
        ("svg", _picture(results, environment["python"])),
    ):
        (folder / f"benchmarks.{kind}").write_text(content, "utf-8")


def _picture(results: Sequence[Result], python: str) -> str:
    """Return an SVG with a bar for each ratio that has a target."""
    rows = [result for result in results if result.verdict]
    height = (len(rows) + 3) * _ROW
    bars = [part for row, result in enumerate(rows, 2) for part in _bar(result, row * _ROW)]
    bars.append(_rule(1.0, "one", 2 * _ROW - 4, height - _ROW))
    return _PICTURE.format(width=_WIDTH, height=height, python=escape(python), bars="\n".join(bars))


def _bar(result: Result, top: int) -> list[str]:
    ratio, case = result.ratio or 0.0, result.case
    y, size = top + _ROW - 6, f'width="{_x(ratio) - _LEFT:.0f}" height="{_ROW - 4}"'
    return [
        f'<text x="10" y="{y}">{escape(f"{case.scenario}: {case.name}")}</text>',
        f'<rect class="{case.kind}" x="{_LEFT}" y="{top}" {size}/>',
        f'<text x="{_x(ratio) + 6:.0f}" y="{y}">{ratio:.2f}</text>',
        _rule(case.target or 0.0, "target", top - 1, top + _ROW - 3),
    ]


def _rule(ratio: float, kind: str, top: int, bottom: int) -> str:
    x = f"{_x(ratio):.0f}"
    return f'<line class="{kind}" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>'


def _x(ratio: float) -> float:
    return _LEFT + min(ratio, _MAX_RATIO) / _MAX_RATIO * (_WIDTH - _LEFT - 50)


def _ratio(result: Result) -> str:
    if result.ratio is None:
        return "no peer installed"
    times = f"{result.ratio:.2f}x {'as fast' if result.case.kind == 'speed' else 'the cost'}"
    return f"{times} ({result.case.target:g} {result.verdict})" if result.verdict else times


def _shown(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"
