"""Fixtures: the fake of a test file on a real socket, and the environment of its processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import pytest

from flux0.testing import FakeTransport
from support.fake_over_http import FakeOverHTTP


@pytest.fixture
def server(fake: FakeTransport) -> Iterator[FakeOverHTTP]:
    """The fake, served on a real socket."""
    with FakeOverHTTP(fake) as running:
        yield running


@pytest.fixture
def environment(server: FakeOverHTTP) -> Mapping[str, str]:
    """The environment variables of a process that uses `server`."""
    prefixes = ("PATH", "HOME", "PYTHONPATH", "COVERAGE_")
    kept = {name: value for name, value in os.environ.items() if name.startswith(prefixes)}
    return {**kept, "FLUX0_SERVER_URL": server.url}
