"""Switches the garbage collector off, and skips tests that need the GIL to free objects at once."""

from __future__ import annotations

import gc
import sysconfig
from collections.abc import Generator
from contextlib import contextmanager

import pytest

# Without the GIL, the thread that created an object frees it, or the garbage collector does.
needs_gil = pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    reason="Python without the GIL frees objects later",
)


@contextmanager
def no_garbage_collection() -> Generator[None, None, None]:
    """Collect the present garbage, and none in the block: an object that ends is in no cycle.

    Finalizers of other tests do not run in the block, either.
    """
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
