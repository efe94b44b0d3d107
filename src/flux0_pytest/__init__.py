"""A pytest plugin: a fake server, a client of it, and cassettes, as fixtures.

It costs a test run that does not use them nothing, since flux0 is imported within the fixtures; and
it is a package of its own, since importing a part of flux0 imports flux0.
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
    "flux0_fake(used=True, expected=True, streams=True)": "what flux0_fake checks in the end",
    "flux0_cassette(path=None, **options)": "the test's cassette; see flux0.testing.cassette",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option by which cassettes are recorded anew."""
    parser.getgroup("flux0").addoption(
        "--flux0-cassettes",
        choices=("once", "none", "all"),
        help="whether cassettes are recorded: if they are missing (once), never, or all of them",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers."""
    for name, what in _MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {what}")


@pytest.hookimpl(hookwrapper=True)  # Which every pytest knows, unlike `wrapper`.
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Any, None]:
    """Take note of whether the test itself has passed."""
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
    """A `FakeTransport`.

    A test that has passed fails in the end if a script, a fault or an expected call was not used
    up; if a call was not expected, or an agent raised an exception, and the code under test has
    swallowed that; or if a stream is still open. The marker `flux0_fake` switches each off:
    `@pytest.mark.flux0_fake(used=False, expected=False, streams=False)`.
    """
    from flux0.testing import FakeTransport  # noqa: PLC0415 - see above

    fake = FakeTransport()
    yield fake
    checks = {
        "used": fake.assert_all_used,
        "expected": fake.assert_nothing_unexpected,
        "streams": fake.assert_no_open_streams,
    }
    wanted = _options(request, "flux0_fake")
    for name, check in checks.items():
        if _passed(request) and wanted.get(name, True):
            check()


@pytest.fixture
def flux0_client(flux0_fake: FakeTransport) -> Iterator[Flux0]:
    """A client of `flux0_fake`, for synchronous and asynchronous code."""
    from flux0 import Flux0  # noqa: PLC0415 - see above

    with Flux0(transport=flux0_fake) as client:
        yield client


@pytest.fixture
def flux0_cassette_transport() -> Callable[[], Any] | None:
    """What returns the transport that cassettes are recorded over; override it for another one."""
    return None


@pytest.fixture
def flux0_cassette(
    request: pytest.FixtureRequest, flux0_cassette_transport: Callable[[], Any] | None
) -> Iterator[RecordingTransport | ReplayTransport]:
    """A transport that replays the cassette of the test, or records it; see `cassette`.

    The cassette is `cassettes/MODULE/TEST.json` next to the test, or the path that the marker
    `flux0_cassette` gives, from there. A recording is kept if the test passes. All that a
    cassette has must be replayed.
    """
    from flux0.testing import RecordingTransport, ReplayTransport, cassette  # noqa: PLC0415

    mode = request.config.getoption("--flux0-cassettes")
    options: dict[str, Any] = {"mode": mode, **_options(request, "flux0_cassette")}
    name = re.sub(r"[^\w.\[\]-]", "_", request.node.name)
    own = options.pop("path", f"cassettes/{request.path.stem}/{name}.json")
    path: Path = request.path.parent / own
    transport = cassette(path, flux0_cassette_transport, **options)
    if isinstance(transport, ReplayTransport):
        yield transport
        if _passed(request):
            transport.assert_all_used()
        return
    beside = path.with_name(f"{path.name}.new")
    beside.unlink(missing_ok=True)
    yield RecordingTransport(transport.transport, beside, scrub=options.get("scrub"))
    if _passed(request) and beside.exists():
        beside.replace(path)
    beside.unlink(missing_ok=True)
