"""A pytest plugin with fixtures for a fake server and its client.

A fixture imports flux0 when a test uses the fixture, so other test runs do not load flux0. The
plugin is a separate package, because importing a submodule of flux0 also imports flux0.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flux0 import Flux0
    from flux0.testing import FakeTransport

_PASSED = pytest.StashKey[bool]()
_CHECKED = pytest.StashKey[object]()
_SHARED_PROBLEM = pytest.StashKey[AssertionError]()
# `_MARKERS` maps each pytest marker to the names of its arguments.
_MARKERS = {
    "flux0_fake": ("used", "expected", "streams"),
    "flux0_real": (),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    forbids = "fail each call that flux0 would send to a server, except with the marker flux0_real"
    parser.addini("flux0_forbid_real", forbids, type="bool", default=False)


# Run this hook before pytest loads the conftest modules: a client that a conftest module creates
# must not send requests to a real server.
@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Forbid real transports if the ini option `flux0_forbid_real` is set."""
    if early_config.getini("flux0_forbid_real"):
        from flux0.client.default_transport import real_transports  # noqa: PLC0415

        stack = ExitStack()
        stack.enter_context(real_transports(allowed=False))
        early_config.add_cleanup(stack.close)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, None, None]:
    """Allow real transports in a test with the marker `flux0_real`."""
    if item.get_closest_marker("flux0_real") is None:
        yield
        return
    from flux0.client.default_transport import real_transports  # noqa: PLC0415

    with real_transports(allowed=True):
        yield


def pytest_configure(config: pytest.Config) -> None:
    for name, arguments in _MARKERS.items():
        signature = f"{name}({', '.join(f'{each}=' for each in arguments)})"
        purpose = f"options of the fixture {name}" if arguments else "allow calls to a server"
        config.addinivalue_line("markers", f"{signature}: {purpose}")


# Old versions of pytest support only the argument `hookwrapper`. With the argument `tryfirst`, this
# hook sees the test's report after pytest has applied xfail.
@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Any, None]:
    """Record whether the test has passed, and hide frames of flux0 in tracebacks of assertions."""
    # Before version 7.4, pytest fails with an internal error if a traceback has no visible frames.
    can_hide = call.when == "call" or pytest.version_tuple >= (7, 4)
    if can_hide and call.excinfo is not None and call.excinfo.errisinstance(AssertionError):
        for entry in call.excinfo.traceback:
            if entry.frame.f_globals.get("__name__", "").startswith(("flux0.", "flux0_pytest")):
                entry.frame.f_locals["__tracebackhide__"] = True
    outcome = yield
    report = outcome.get_result()
    # A skipped or xfailed test does not count as passed if it uses a fake, because the test can
    # have stopped before it used the fake completely.
    used_fake = "flux0_fake" in getattr(item, "fixturenames", ())
    if report.failed or (call.when == "call" and (report.passed or used_fake)):
        item.stash[_PASSED] = report.passed
    # Several tests share the fake, which is checked after the last test, and any of these tests can
    # have caused the problem. Report the problem as a failure, even if the last test is marked as
    # xfail.
    if call.excinfo and call.excinfo.value is item.config.stash.get(_SHARED_PROBLEM, None):
        report.outcome = "failed"
        if hasattr(report, "wasxfail"):
            del report.wasxfail


def _passed(*items: pytest.Item) -> bool:
    outcomes = {item.stash.get(_PASSED, None) for item in items}
    return True in outcomes and False not in outcomes


def _options(item: pytest.Item, marker: str) -> dict[str, Any]:
    found = item.get_closest_marker(marker)
    if found is None:
        return {}
    return dict(found.kwargs)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name, known in _MARKERS.items():
        for marker in item.iter_markers(name):
            unknown = [*(set(marker.kwargs) - set(known)), *marker.args]
            if unknown:
                arguments = ", ".join(f"{each}=" for each in known) or "no arguments"
                problem = f"the marker {name} has no argument {unknown[0]!r}: use {arguments}"
                pytest.fail(problem, pytrace=False)


@pytest.hookimpl(hookwrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, None]:
    """Check the fake when `flux0_fake` is torn down, even if a project overrides the fixture."""
    outcome = yield
    if fixturedef.argname == "flux0_fake" and outcome.excinfo is None:
        fixturedef.addfinalizer(lambda: _check(outcome.get_result(), request))


def _check(fake: object, request: pytest.FixtureRequest) -> None:
    from flux0.testing import FakeTransport  # noqa: PLC0415 - see the module docstring

    node: pytest.Item | pytest.Collector = request.node
    if not isinstance(fake, FakeTransport) or node.stash.get(_CHECKED, None) is fake:
        return
    # A fixture that overrides `flux0_fake` can return the same fake. Check each fake only once.
    node.stash[_CHECKED] = fake
    # All tests in `tests` share one fake. Check the fake only if all these tests have passed.
    tests = [item for item in request.session.items if node in item.listchain()]
    if not _passed(*tests):
        return
    checks = {
        "expected": fake.assert_nothing_unexpected,
        "used": fake.assert_all_used,
        "streams": fake.assert_no_open_streams,
    }
    problems: list[str] = []
    for name, check in checks.items():
        if all(_options(test, "flux0_fake").get(name, True) for test in tests):
            try:
                check()
            except AssertionError as error:
                hint = f"to switch this check off: @pytest.mark.flux0_fake({name}=False)"
                problems.append(f"{error}\n{hint}")
    if problems:
        failure = AssertionError("\n\n".join(problems))
        if len(tests) > 1:
            request.config.stash[_SHARED_PROBLEM] = failure
        raise failure


@pytest.fixture
def flux0_fake() -> FakeTransport:
    """A `FakeTransport` for the test.

    After a test that passed, the plugin raises an error:

    - if a call was not expected or an agent raised an exception, and the code under test caught
      the error (`expected`),
    - if a part of a script, a fault or an expected call was not used (`used`),
    - if a stream is still open (`streams`).

    The marker `flux0_fake` switches checks off:
    `@pytest.mark.flux0_fake(used=False, expected=False, streams=False)`.

    If your project overrides this fixture, its fake is checked, too. If your fixture has a wider
    scope, such as module or session, several tests share the fake. Then the checks run once, after
    the last test, if no test of the scope has failed, and no test with the fixture was skipped or
    xfailed while it ran. If one test has a marker that switches a check off, the check is off for
    all tests of the scope.
    """
    from flux0.testing import FakeTransport  # noqa: PLC0415 - see the module docstring

    return FakeTransport()


@pytest.fixture
def flux0_client(flux0_fake: FakeTransport) -> Iterator[Flux0]:
    """A `Flux0` client of `flux0_fake`, for sync and async calls."""
    from flux0 import Flux0  # noqa: PLC0415 - see the module docstring

    with Flux0(transport=flux0_fake) as client:
        yield client
