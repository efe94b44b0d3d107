"""Checks of the built documentation: the reference contains every public name.

Usage: `pytest .ci/check_site.py`, after `mkdocs build`. `tox run -e docs` runs both.
"""

from __future__ import annotations

import html
import json
import re
from importlib import import_module
from pathlib import Path

import pytest

SITE = Path(__file__).parents[1] / "site"
REFERENCE = "".join(
    (page / "index.html").read_text("utf-8") for page in sorted((SITE / "reference").iterdir())
)
ANCHORS = set(re.findall(r'id="([\w.]+)"', REFERENCE))
MODULES = ("flux0", "flux0.testing", "flux0.models", "flux0.ports", "flux0.flows")
NAMES = [
    (module, name)
    for module in MODULES
    for name in import_module(module).__all__
    if name not in ("models", "__version__")
]


def anchor_of(name: str) -> str | None:
    """Return the anchor of a public name, in whichever module the reference shows it."""
    return next((each for each in sorted(ANCHORS) if each.endswith(f".{name}")), None)


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_reference_has_an_anchor_for_each_public_name(module: str, name: str) -> None:
    assert anchor_of(name), f"{module}.{name} has no heading in the reference"


def test_search_finds_each_public_name() -> None:
    index = json.loads((SITE / "search" / "search_index.json").read_text("utf-8"))
    words = " ".join(f"{entry['title']} {entry['text']}" for entry in index["docs"])
    missing = [name for _, name in NAMES if name not in words]
    assert missing == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Flux0", "stream_idle_timeout_ms"),
        ("Say", "text"),
        ("ToolCall", "tool_call_id"),
        ("RetryConfig", "max_attempts"),
        ("EventStream", "StreamInterrupted"),
    ],
)
def test_reference_shows_parameters_and_errors(name: str, text: str) -> None:
    anchor = anchor_of(name)
    assert anchor is not None
    section = REFERENCE.partition(f'id="{anchor}"')[2]
    assert text in html.unescape(section[:60_000])


def test_no_page_loads_anything_from_another_host() -> None:
    pattern = re.compile(r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))"')
    for page in SITE.rglob("*.html"):
        text = page.read_text("utf-8")
        assert pattern.findall(text) == [], page
        # The script of the theme loads the numbers of this repository from api.github.com.
        assert 'data-md-component="source"' not in text, page
