"""Record `flux0-client demo` in a real terminal for the README, as docs/images/demo.svg.

Usage, with the extra `cli`: `python tests/support/record_demo.py`.
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
    # `script` runs the command in a terminal. The environment sets its size.
    command = ["script", "-qec", f"{sys.executable} -m flux0 demo", "/dev/null"]
    terminal = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(WIDTH), "LINES": "24"}
    output = subprocess.run(command, env=terminal, capture_output=True, text=True, check=True)
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True)
    console.print("$ flux0-client demo", style="bold")
    console.print(Text.from_ansi(output.stdout))
    picture = console.export_svg(title="flux0", unique_id="flux0")
    # Remove the fonts, which a browser would load from another server.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    PICTURE.write_text(picture, "utf-8")
