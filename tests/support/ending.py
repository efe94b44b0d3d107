"""A limit for operations that must end soon, such as closing a client."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from time import monotonic

# Closing takes some milliseconds. If it waits for a timeout by mistake, it takes 10 s or more.
_MAX_SECONDS = 5.0


@contextmanager
def ends_soon(max_seconds: float = _MAX_SECONDS) -> Generator[None, None, None]:
    """Fail if the `with` block takes more than this number of seconds."""
    start = monotonic()
    yield
    assert monotonic() - start < max_seconds, "the block waits for a timeout"
