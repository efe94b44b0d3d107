"""A `FakeTransport` behind a real socket, for processes that know nothing but an address."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from flux0.testing import FakeTransport
from flux0.testing.fake.clock import Wait

if TYPE_CHECKING:
    from typing_extensions import Self


class FakeOverHTTP(ExitStack):
    """A context manager: serves a fake on a free port of 127.0.0.1.

    Attributes:
        url: where it is served.
        left: can be waited for until no stream of the fake is open.
    """

    def __init__(self, fake: FakeTransport) -> None:
        super().__init__()
        self._fake = fake
        self.left = _Left(fake)
        self.url = ""

    def __enter__(self) -> Self:
        self.url = self.enter_context(self._fake.serve())
        return self


class _Left(threading.Event):
    def __init__(self, fake: FakeTransport) -> None:
        super().__init__()
        self._fake = fake

    def wait(self, timeout: float | None = None) -> bool:
        seen = self._fake.clock.changes
        try:
            self._fake.assert_no_open_streams()
        except AssertionError:
            try:
                self._fake.clock.wait(Wait(seen=seen, patience=timeout))
            except AssertionError:
                return False
            return self.wait(timeout)
        return True
