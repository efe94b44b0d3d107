"""Record `flux0 demo` in a real terminal, as the picture of the README: docs/images/demo.svg.

Run it where the extra `cli` is installed: `python tests/support/record_demo.py`.
"""

from __future__ import annotations

import os
import pty
import re
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).parents[2] / "docs/images/demo.svg"
WIDTH = 80


def recorded(command: list[str]) -> str:
    """Return what a command writes to a terminal."""
    os.environ.update(TERM="xterm-256color", COLUMNS=str(WIDTH), LINES="24")
    written = bytearray()

    def keep(terminal: int) -> bytes:
        data = os.read(terminal, 4096)
        written.extend(data)
        return data

    pty.spawn(command, keep)
    return written.decode().replace("\r\n", "\n")


def drawn(output: str) -> str:
    """Return a picture that loads nothing from elsewhere."""
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True)
    console.print("$ flux0-client demo", style="bold")
    console.print(Text.from_ansi(output))
    picture = console.export_svg(title="flux0", unique_id="flux0")
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)


if __name__ == "__main__":
    PICTURE.write_text(drawn(recorded([sys.executable, "-m", "flux0", "demo"])), "utf-8")
