"""The code of docs/transports.md: the example of a transport, and its contract tests."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "transports.md"
_SAMPLES: list[str] = re.findall(
    r"^```py(?:thon)?\n((?:\"\"\"A transport over|import ssl\n).*?)^```$",
    PAGE.read_text("utf-8"),
    re.DOTALL | re.MULTILINE,
)
TRANSPORT, CONTRACT = _SAMPLES
