"""What all tests share: the same surroundings wherever they run, and how many of them run."""

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

# How fast a busy machine is says nothing about the code. CI draws the same examples every time.
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
        help="run one in N of the parameter sets of each test; which ones differs by Python",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep one in N of the parameter sets of each function, and at least one of each.

    A function that several suites inherit counts once, so that the Pythons share its transports.
    """
    families: defaultdict[object, list[pytest.Item]] = defaultdict(list)
    for item in items:
        assert isinstance(item, pytest.Function)
        families[getattr(item.obj, "__func__", item.obj)].append(item)
    kept: set[pytest.Item] = set()
    for family in families.values():
        step = min(cast("int", config.getoption("--thin")), len(family))
        family.sort(key=lambda item: item.nodeid)
        kept.update(family[sys.version_info.minor % step :: step])
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    # What waits while the other tests of its class run comes last, when it has little left to wait.
    modules = [list(those) for _, those in groupby(filter(kept.__contains__, items), _scope)]
    for module in modules:
        module.sort(key=_waits_idle)
    # What takes longest starts first, so that no process is left with it in the end.
    modules.sort(key=_takes_long, reverse=True)
    items[:] = [item for module in modules for item in module]


def _scope(item: pytest.Item) -> str:
    """Return what one process runs as a whole: a class, or the functions of a module."""
    assert item.parent is not None
    return item.parent.nodeid


def _takes_long(scope: list[pytest.Item]) -> tuple[bool, bool]:
    return any(item.get_closest_marker("slow") for item in scope), any(map(_waits_idle, scope))


def _waits_idle(item: pytest.Item) -> bool:
    assert isinstance(item, pytest.Function)
    return str(item.obj.__qualname__).startswith("IdleContract.")


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Let Ctrl-C work here and in child processes: it is ignored in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Certificates by the one authority that clients trust by default: to load all takes long."""
    secured = Secured(tmp_path_factory.mktemp("tls"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", secured.ca_file)
        yield secured
