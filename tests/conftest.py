"""Settings, options and fixtures of all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, settings

from support.secured import NO_TRUSTME, Secured

pytest_plugins = ["support.programs", "support.slow_tests", "support.parallel"]

# Time limits would fail on a busy machine. CI uses the same examples in every run.
settings.register_profile(
    "flux0",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "flux0"))


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Enable Ctrl-C here and in child processes. A shell disables it for background jobs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def trusted(request: pytest.FixtureRequest) -> None:
    """Trust only the authority of the test certificates, because loading all is slow."""
    if find_spec("trustme") is not None:
        request.getfixturevalue("secured")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need trustme if this Python cannot install it."""
    if find_spec("trustme") is None:
        skip = pytest.mark.skip(reason=NO_TRUSTME)
        for item in items:
            if {"authority", "secured"} & {*getattr(item, "fixturenames", ())}:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Test certificates."""
    secured = Secured(tmp_path_factory.mktemp("tls"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", secured.ca_file)
        yield secured
