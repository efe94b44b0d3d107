"""Each promise of SECURITY.md names a test that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = sorted(set(re.findall(r"`(test_\w+)`", (ROOT / "SECURITY.md").read_text("utf-8"))))
TESTS = "".join(
    path.read_text("utf-8")
    for folder in ("tests/unit", "src/flux0/testing/contract")
    for path in sorted((ROOT / folder).glob("*.py"))
)


@pytest.mark.parametrize("name", NAMED)
def test_the_test_is_there(name: str) -> None:
    assert re.search(rf"def {name}\(", TESTS), f"there is no {name}"
