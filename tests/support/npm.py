"""Packages of npm, in a folder of a test."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def is_npm_installed() -> bool:
    """Return whether npm is installed."""
    return shutil.which("npm") is not None


def npm_install(*packages: str, folder: Path) -> None:
    """Install packages in a folder, from the npm registry."""
    npm = shutil.which("npm")
    assert npm is not None
    options = ("--silent", "--no-audit", "--no-fund")
    subprocess.run([npm, "install", *options, *packages], cwd=folder, check=True, timeout=100)
