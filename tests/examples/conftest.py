"""Fixtures: Chromium, and `examples/web` with a fake server that the tests control."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flux0.testing import FakeTransport
from support.browser import Browser, Page
from support.fake_over_http import FakeOverHTTP
from support.web_example import web_example


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(scope="session")
def server() -> Iterator[FakeOverHTTP]:
    with FakeOverHTTP(FakeTransport()) as server:
        yield server


@pytest.fixture
def fake(server: FakeOverHTTP) -> FakeTransport:
    """The application's server, without sessions and scripts."""
    server.fake.reset()
    return server.fake


@pytest.fixture(scope="session")
def url(server: FakeOverHTTP) -> Iterator[str]:
    """The application's URL."""
    with web_example(server.url) as url:
        yield url


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The application's page, in a new browser context."""
    with browser.page() as page:
        page.open(url)
        yield page
