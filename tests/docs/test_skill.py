"""The skill for coding assistants, which is installed with the package."""

from __future__ import annotations

import re
from importlib.resources import files

SKILL = files("flux0") / ".agents/skills/flux0/SKILL.md"


def test_skill_has_the_fields_that_assistants_require() -> None:
    text = SKILL.read_text("utf-8")
    fields = re.fullmatch(r"---\nname: (\S+)\ndescription: ([^\n]+)\n---\n\n# .*", text, re.DOTALL)
    assert fields is not None
    assert fields[1] == "flux0", "the name of the folder"
    assert len(fields[2]) <= 1024
    assert ": " not in fields[2], "the value is YAML without quotes"
    assert 100 <= text.count("\n") <= 150
