"""Prints the file in which test runs count the tests that they skipped, and removes it.

`tox run` calls this after all test runs, so that the last lines name the missing programs.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(file: Path) -> None:
    if file.exists():
        print(file.read_text("utf-8"), end="")
        file.unlink()
    else:
        print("All programs are installed: no test was skipped because of a missing program.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
