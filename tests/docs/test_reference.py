"""The reference has every public name."""

from __future__ import annotations

import re
from pathlib import Path

import flux0
import flux0.models

ROOT = Path(__file__).parents[2]


def test_the_reference_has_every_public_name() -> None:
    page = (ROOT / "docs" / "reference" / "client.md").read_text("utf-8")
    shown = set(re.findall(r"^::: [\w.]+\.(\w+)$", page, re.MULTILINE))
    apart = {"models", "__version__", *dir(flux0.models)}
    assert set(flux0.__all__) - apart <= shown
