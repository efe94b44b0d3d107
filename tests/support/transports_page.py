"""The code in `examples/transport`, and its contract tests on the page docs/transports.md."""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path(__file__).parents[2]
EXAMPLE = _ROOT / "examples/transport/h11_transport.py"
PAGE = _ROOT / "docs/transports.md"
TRANSPORT = EXAMPLE.read_text("utf-8")
(CONTRACT,) = re.findall(
    r"^```py\n(import ssl\n.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE
)
