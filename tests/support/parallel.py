"""Makes runs with several workers of pytest-xdist faster.

Each worker imports all test modules. The first import of a module rewrites its assertions, which
takes most of the time, and stores the result in a file for later imports. All workers collect the
modules in the same order, so they would rewrite the same module at the same time. For this reason,
each worker first imports a part of the modules.

The modules with slow tests run first, in the order of the seed. If a long module started last, one
worker would run its tests while all other workers are idle.
"""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import import_module
from itertools import chain
from pathlib import Path

import pytest

from support.slow_tests import file_of, listed

TESTS = Path(__file__).parents[1]
_WORKER = "PYTEST_XDIST_WORKER"


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Import the part of this worker. The collection imports the other modules."""
    if not (worker := os.environ.get(_WORKER)):
        return
    folders = [session.config.rootpath / argument for argument in session.config.args]
    names = sorted(chain.from_iterable(map(_modules_in, folders)))
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    for name in names[int(worker.removeprefix("gw")) :: workers]:
        # The collection reports the error, or ignores the module.
        with suppress(Exception, pytest.skip.Exception):
            import_module(name)


@pytest.hookimpl(trylast=True)  # after pytest-randomly
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the modules with listed slow tests to the beginning."""
    if _WORKER in os.environ:
        slow = set(map(file_of, listed()))
        items.sort(key=lambda item: file_of(item.nodeid) not in slow)


def _modules_in(folder: Path) -> list[str]:
    return [
        ".".join(file.relative_to(TESTS).with_suffix("").parts)
        for file in folder.rglob("test_*.py")
        if file.is_relative_to(TESTS)
    ]
