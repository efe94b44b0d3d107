"""What the unit tests need of the Python that runs them."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

import pytest

collect_ignore: list[str] = []
if sys.version_info < (3, 11):  # As httpx2 needs.
    collect_ignore.append("adapters/httpx/test_httpx2_transport.py")
if not hasattr(os, "fork"):
    collect_ignore.append("runtime/test_fork.py")


def pytest_report_collectionfinish() -> list[str]:
    """Say what is left out, so that nobody takes it for tested."""
    return [f"left out on this Python: {name}" for name in collect_ignore]


@pytest.fixture
def little_garbage() -> Iterator[None]:
    """Let collecting take no time for what was there before."""
    gc.freeze()
    yield
    gc.unfreeze()
