"""A pytest plugin with fixtures for a fake server, its client, and cassettes.

The fixtures import flux0 when they are used, so other test runs do not load it. The plugin is a
separate package, because importing a submodule of flux0 would import flux0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from flux0 import Flux0
    from flux0.testing import FakeTransport, RecordingTransport, ReplayTransport

_PASSED = pytest.StashKey[bool]()
_MARKERS = {
    "flux0_fake(used=True, expected=True, streams=True)": "checks of flux0_fake after the test",
    "flux0_cassette(path=None, **options)": "path and options of flux0_cassette",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that sets the mode of cassettes."""
    parser.getgroup("flux0").addoption(
        "--flux0-cassettes",
        choices=("once", "none", "all"),
        help="record cassettes if they are missing (once), never (none), or always (all)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers."""
    for name, description in _MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {description}")


@pytest.hookimpl(hookwrapper=True)  # Old versions of pytest do not support `wrapper`.
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Any, None]:
    """Record whether the test itself has passed."""
    outcome = yield
    if call.when == "call":
        item.stash[_PASSED] = outcome.get_result().passed


def _passed(request: pytest.FixtureRequest) -> bool:
    node: pytest.Item = request.node
    return node.stash.get(_PASSED, False)


def _options(request: pytest.FixtureRequest, marker: str) -> dict[str, Any]:
    found = request.node.get_closest_marker(marker)
    return (
        {} if found is None else {**dict(zip(("path",), found.args, strict=False)), **found.kwargs}
    )


@pytest.fixture
def flux0_fake(request: pytest.FixtureRequest) -> Iterator[FakeTransport]:
    """A `FakeTransport` for the test.

    After a test that passed, the fixture raises an error:

    - if a script, a fault or an expected call was not used up (`used`),
    - if a call was not expected or an agent raised an exception, and the code under test caught
      the error (`expected`),
    - if a stream is still open (`streams`).

    The marker `flux0_fake` switches checks off:
    `@pytest.mark.flux0_fake(used=False, expected=False, streams=False)`.
    """
    from flux0.testing import FakeTransport  # noqa: PLC0415 - see the module docstring

    fake = FakeTransport()
    yield fake
    checks = {
        "used": fake.assert_all_used,
        "expected": fake.assert_nothing_unexpected,
        "streams": fake.assert_no_open_streams,
    }
    enabled = _options(request, "flux0_fake")
    for name, check in checks.items():
        if _passed(request) and enabled.get(name, True):
            check()


@pytest.fixture
def flux0_client(flux0_fake: FakeTransport) -> Iterator[Flux0]:
    """A `Flux0` client of `flux0_fake`, for sync and async calls."""
    from flux0 import Flux0  # noqa: PLC0415 - see the module docstring

    with Flux0(transport=flux0_fake) as client:
        yield client


@pytest.fixture
def flux0_cassette_transport() -> Callable[[], Any] | None:
    """A function that returns the transport for recording; None means `HttpxTransport`.

    Override this fixture to record over another transport.
    """
    return None


@pytest.fixture
def flux0_cassette(
    request: pytest.FixtureRequest, flux0_cassette_transport: Callable[[], Any] | None
) -> Iterator[RecordingTransport | ReplayTransport]:
    """A transport that replays or records the cassette of the test; see `flux0.testing.cassette`.

    The cassette is the file `cassettes/MODULE/TEST.json` in the folder of the test. The marker
    `flux0_cassette` sets another path, relative to that folder. A recording is kept if the test
    passes. When replaying, the fixture raises an error if an exchange of the cassette was not
    used.
    """
    from flux0.testing import RecordingTransport, ReplayTransport, cassette  # noqa: PLC0415

    mode = request.config.getoption("--flux0-cassettes")
    options: dict[str, Any] = {"mode": mode, **_options(request, "flux0_cassette")}
    name = re.sub(r"[^\w.\[\]-]", "_", request.node.name)
    relative = options.pop("path", f"cassettes/{request.path.stem}/{name}.json")
    path: Path = request.path.parent / relative
    transport = cassette(path, flux0_cassette_transport, **options)
    if isinstance(transport, ReplayTransport):
        yield transport
        if _passed(request):
            transport.assert_all_used()
        return
    new_path = path.with_name(f"{path.name}.new")
    new_path.unlink(missing_ok=True)
    yield RecordingTransport(transport.transport, new_path, scrub=options.get("scrub"))
    if _passed(request) and new_path.exists():
        new_path.replace(path)
    new_path.unlink(missing_ok=True)
