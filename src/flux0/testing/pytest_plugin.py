"""A pytest plugin: a fake server, and a client of it, as fixtures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flux0.client.flux0 import Flux0
from flux0.testing.fake.transport import FakeTransport


@pytest.fixture
def flux0_fake() -> Iterator[FakeTransport]:
    """A `FakeTransport`; the test fails in the end if it has left a stream open."""
    fake = FakeTransport()
    yield fake
    fake.assert_no_open_streams()


@pytest.fixture
def flux0_client(flux0_fake: FakeTransport) -> Iterator[Flux0]:
    """A client of `flux0_fake`, for synchronous and asynchronous code."""
    with Flux0(transport=flux0_fake) as client:
        yield client
