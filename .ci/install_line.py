"""Writes the requirement of `pip install` on all pages: `python .ci/install_line.py`.

After the first release to PyPI, set `REQUIREMENT` to `flux0-client{extra}` and run this file.
"""

from __future__ import annotations

import re
from pathlib import Path

REQUIREMENT = "flux0-client{extra} @ git+https://github.com/flux0-ai/flux0-client-python"

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Error messages on the pages have single quotes, or a line break before the name.
_LINE = re.compile(
    r"""(?m)^( *\S*pip install (?:\\\n +)?)"?flux0-client(\[\w+\])?(?: @ [^"\n]*)?"?$"""
)


def with_requirement(page: str) -> str:
    """Return the text of a page with the requirement in each line that installs flux0."""
    quote = '"' if " " in REQUIREMENT else ""

    def line(match: re.Match[str]) -> str:
        extra = match[2] or ""
        mark = quote or ('"' if extra else "")
        return f"{match[1]}{mark}{REQUIREMENT.format(extra=extra)}{mark}"

    return _LINE.sub(line, page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(with_requirement(path.read_text("utf-8")), "utf-8")
