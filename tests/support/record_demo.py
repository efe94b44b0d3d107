"""Record `flux0 demo` in a real terminal, as the picture of the README: docs/images/demo.svg.

Run it where the extra `cli` is installed: `python tests/support/record_demo.py`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).parents[2] / "docs/images/demo.svg"
WIDTH = 80

if __name__ == "__main__":
    # It runs its command in a terminal, whose size is in the environment.
    command = ["script", "-qec", f"{sys.executable} -m flux0 demo", "/dev/null"]
    terminal = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(WIDTH), "LINES": "24"}
    output = subprocess.run(command, env=terminal, capture_output=True, text=True, check=True)
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True)
    console.print("$ flux0-client demo", style="bold")
    console.print(Text.from_ansi(output.stdout))
    picture = console.export_svg(title="flux0", unique_id="flux0")
    # Without what would be loaded from elsewhere.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    PICTURE.write_text(picture, "utf-8")
