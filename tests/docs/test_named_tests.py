"""Each test that a page names exists in the file that the page names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("tests/unit", "src/flux0/testing")


def named(page: str) -> list[tuple[str, str]]:
    """Return each test on a page, with the last file named before it in the line, or "*.py"."""
    found: list[tuple[str, str]] = []
    for line in (ROOT / page).read_text("utf-8").splitlines():
        file = "*.py"
        for name in re.findall(r"`((?:\w+/)?\w+\.py|test_\w+)`", line):
            if name.endswith(".py"):
                file = name
            else:
                found.append((file, name))
    return found


PROMISES = named("docs/promises.md")
OTHERS = {
    ("*.py", name) for page in ("docs/architecture.md", "SECURITY.md") for _, name in named(page)
}


def test_pages_name_tests() -> None:
    assert len(PROMISES) > 40
    assert len(OTHERS) > 20


@pytest.mark.parametrize(("file", "name"), [*PROMISES, *sorted(OTHERS)])
def test_named_test_exists(file: str, name: str) -> None:
    texts = [path.read_text("utf-8") for folder in FOLDERS for path in (ROOT / folder).rglob(file)]

    assert any(re.search(rf"def {name}\(", text) for text in texts), f"{file} has no test {name}"
