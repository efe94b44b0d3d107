"""The contract's long waits. Here, the waits of all transports run at the same time."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, ClassVar

import pytest

from flux0.testing.contract.base import THREADS
from flux0.testing.contract.harness import Harness
from flux0.testing.contract.waiting import IdleContract
from support.transports import WAYS

# The first test waits for all others, and the order is random.
pytestmark = pytest.mark.slow

# httpx2 has the same adapter as httpx. Async calls over requests and urllib3 use the sync code.
TESTED = {
    str(way): way
    for way in WAYS
    if way.transport != "httpx2"
    and (way.mode == "sync" or way.transport not in ("requests", "urllib3"))
}


class TestLongWaits(IdleContract):
    backends: ClassVar[tuple[str, ...]] = tuple(TESTED)

    def make_transport(self) -> None:
        """Return None: the transport depends on the backend."""

    def make_harness(self, transport: Any, backend: str, ending: ExitStack) -> Harness:
        way = TESTED[backend]
        mode = THREADS if way.mode == "sync" else way.mode
        return super().make_harness(way.make_transport(), mode, ending)
