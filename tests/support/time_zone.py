"""Another local time zone, for code that must use UTC or the local time."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def local_time_zone(name: str) -> Generator[None, None, None]:
    """Change the time zone of the process until the end of the `with` block."""
    update: Any = getattr(time, "tzset", int)  # Windows has no `time.tzset`.
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TZ", name)
            update()
            yield
    finally:
        update()
