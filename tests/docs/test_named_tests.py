"""Each test that a page names is there, in the file that the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("tests/unit", "src/flux0/testing")


def named(page: str) -> list[tuple[str, str]]:
    """Return each test of a page, and the last file that was named before it, or "*.py"."""
    found: list[tuple[str, str]] = []
    for line in (ROOT / page).read_text("utf-8").splitlines():
        file = "*.py"
        for name in re.findall(r"`((?:contract/)?\w+\.py|test_\w+)`", line):
            if name.endswith(".py"):
                file = name
            else:
                found.append((file, name))
    return found


RELIABILITY = named("docs/reliability.md")
OTHERS = {
    ("*.py", name) for page in ("docs/architecture.md", "SECURITY.md") for _, name in named(page)
}


def test_tests_are_named() -> None:
    assert len(RELIABILITY) > 40
    assert len(OTHERS) > 20


@pytest.mark.parametrize(("file", "name"), [*RELIABILITY, *sorted(OTHERS)])
def test_the_test_is_there(file: str, name: str) -> None:
    texts = [path.read_text("utf-8") for folder in FOLDERS for path in (ROOT / folder).rglob(file)]

    assert any(re.search(rf"def {name}\(", text) for text in texts), f"{file} has no {name}"
