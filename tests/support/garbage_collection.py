"""Switches the garbage collector off."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


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
