"""The README tells how to run all the tests, and CI does just that."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_ci_runs_the_test_command_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    (command,) = re.findall(r"^```console\n(.*\btox run)\n```$", readme, re.MULTILINE)
    assert f"    {command}\n" in (ROOT / ".ci" / "run").read_text("utf-8")
