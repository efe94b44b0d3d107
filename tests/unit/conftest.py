"""Fixtures for unit tests, and the test modules that need another Python version or system."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

import pytest

collect_ignore: list[str] = []
if sys.version_info < (3, 11):  # httpx2 needs Python 3.11.
    collect_ignore.append("adapters/httpx/test_httpx2_transport.py")
if not hasattr(os, "fork"):
    collect_ignore.append("runtime/test_fork.py")


def pytest_report_collectionfinish() -> list[str]:
    """Report the ignored test modules."""
    return [f"not collected on this Python or system: {name}" for name in collect_ignore]


@pytest.fixture(scope="module", autouse=True)
def collected_garbage() -> Iterator[None]:
    """Collect garbage after each module, so that a warning about garbage names its module.

    Collections ignore the objects that exist before the module. So they are fast.
    """
    gc.freeze()
    yield
    gc.collect()


@pytest.fixture
def little_garbage() -> None:
    """Make garbage collection fast: it ignores all objects that exist before the test."""
    gc.freeze()


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the environment's proxy settings, which can differ on each machine."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
