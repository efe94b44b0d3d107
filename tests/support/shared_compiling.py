"""Shares the compiling of test modules among the workers of pytest-xdist.

Each worker imports all test modules. The first import of a module rewrites its assertions, which
takes most of the time, and stores the result in a file for later imports. All workers collect the
modules in the same order, so they would rewrite the same module at the same time. For this reason,
each worker first imports a part of the modules.
"""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import import_module
from itertools import chain
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Import the part of this worker. The collection imports the other modules."""
    if not (worker := os.environ.get("PYTEST_XDIST_WORKER")):
        return
    folders = [session.config.rootpath / argument for argument in session.config.args]
    names = sorted(chain.from_iterable(map(_modules_in, folders)))
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    for name in names[int(worker.removeprefix("gw")) :: workers]:
        # The collection reports the error, or ignores the module.
        with suppress(Exception, pytest.skip.Exception):
            import_module(name)


def _modules_in(folder: Path) -> list[str]:
    return [
        ".".join(file.relative_to(TESTS).with_suffix("").parts)
        for file in folder.rglob("test_*.py")
        if file.is_relative_to(TESTS)
    ]
