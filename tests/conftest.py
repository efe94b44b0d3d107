"""Settings, options and fixtures of all tests."""

from __future__ import annotations

import os
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from typing import cast

import pytest
from hypothesis import HealthCheck, settings

from support.secured import Secured

# Time limits would fail on a busy machine. CI uses the same examples in every run.
settings.register_profile(
    "flux0",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "flux0"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thin",
        type=int,
        default=1,
        metavar="N",
        help="run one in N parameter sets of each test; the selection depends on the Python",
    )
    parser.addoption(
        "--half",
        action="store_true",
        help="run half of the test functions; odd Python versions run the other half",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Select test functions (`--half`) and their parameter sets (`--thin`), and sort the tests.

    A function that several test classes inherit is one function here, so that each Python version
    runs it with other transports.
    """
    minor = sys.version_info.minor
    families: defaultdict[tuple[object, int], list[pytest.Item]] = defaultdict(list)
    for item in items:
        assert isinstance(item, pytest.Function)
        thin = 1 if _is_example(item) else cast("int", config.getoption("--thin"))
        for marker in item.iter_markers("thin"):
            thin = max(thin, marker.args[0])
        families[getattr(item.obj, "__func__", item.obj), thin].append(item)
    for family in families.values():
        family.sort(key=lambda item: item.nodeid)
    kept: set[pytest.Item] = set()
    ordered = sorted(families.items(), key=lambda entry: entry[1][0].nodeid)
    for number, ((_, thin), family) in enumerate(ordered):
        step = min(thin, len(family))
        if not config.getoption("--half") or _is_example(family[0]) or (number + minor) % 2:
            kept.update(family[minor % step :: step])
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    # Tests of `IdleContract` wait in the background while other tests of their class run, so they
    # finish last.
    scopes = [list(group) for _, group in groupby(filter(kept.__contains__, items), _scope)]
    for scope in scopes:
        scope.sort(key=_waits_idle)
    # Slow scopes start first. Otherwise, one process could still run them when all others are done.
    scopes.sort(key=_takes_long, reverse=True)
    items[:] = [item for scope in scopes for item in scope]


def _is_example(item: pytest.Item) -> bool:
    """Whether this is a test of the examples. One Python runs all of these tests."""
    return item.path.parent.name == "examples"


def _scope(item: pytest.Item) -> str:
    """Return the id of the class or module of a test. All its tests run in one process."""
    assert item.parent is not None
    return item.parent.nodeid


def _takes_long(scope: list[pytest.Item]) -> tuple[bool, bool]:
    return any(item.get_closest_marker("slow") for item in scope), any(map(_waits_idle, scope))


def _waits_idle(item: pytest.Item) -> bool:
    assert isinstance(item, pytest.Function)
    return str(item.obj.__qualname__).startswith("IdleContract.")


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Enable Ctrl-C here and in child processes. A shell disables it for background jobs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Test certificates. Their authority is the only trusted one, since loading all is slow."""
    secured = Secured(tmp_path_factory.mktemp("tls"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", secured.ca_file)
        yield secured
