"""A `FakeTransport` on a real port, with an event for the end of its streams."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from flux0.testing import FakeTransport
from flux0.testing.fake.clock import Wait

if TYPE_CHECKING:
    from typing_extensions import Self


class FakeOverHTTP(ExitStack):
    """A context manager that serves a fake on a free port of 127.0.0.1.

    Attributes:
        fake: the fake.
        url: the fake's URL.
        no_open_streams: `no_open_streams.wait()` returns when no stream of the fake is open.
    """

    def __init__(self, fake: FakeTransport) -> None:
        super().__init__()
        self.fake = fake
        self.no_open_streams = _NoOpenStreams(fake)
        self.url = ""

    def __enter__(self) -> Self:
        self.url = self.enter_context(self.fake.serve())
        return self


class _NoOpenStreams(threading.Event):
    def __init__(self, fake: FakeTransport) -> None:
        super().__init__()
        self._fake = fake

    def wait(self, timeout: float | None = None) -> bool:
        seen = self._fake.clock.changes
        try:
            self._fake.assert_no_open_streams()
        except AssertionError:
            try:
                self._fake.clock.wait(Wait(seen=seen, real_timeout=timeout))
            except AssertionError:
                return False
            return self.wait(timeout)
        return True
