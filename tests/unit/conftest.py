"""What the unit tests need of the Python that runs them."""

from __future__ import annotations

import sys

# httpx2 needs Python 3.11.
collect_ignore = [] if sys.version_info >= (3, 11) else ["test_httpx2_transport.py"]


def pytest_report_collectionfinish() -> list[str]:
    """Say what is left out, so that nobody takes it for tested."""
    return [f"left out on this Python: {name}" for name in collect_ignore]
