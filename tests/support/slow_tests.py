"""The mark `slow`: `pytest -m "not slow"` runs all other tests of `FOLDERS` in about a minute.

`tests/data/slow_tests.txt` lists the slow test functions. After a complete run, pytest names each
function without the mark that takes a large part of the time. The run fails only if this time is
CPU time: a test can wait once, for example if Python handles a signal late. `RENEW` writes the list
again.

A busy machine must not change the result. So waiting times are divided by `_contention`, and the
check compares times of the same run.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Container, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from time import perf_counter
from typing import Any, cast

import pytest
from attrs import evolve, frozen

ROOT = Path(__file__).parents[2]
LIST = ROOT / "tests/data/slow_tests.txt"
FOLDERS = ("tests/unit/", "tests/docs/")
RENEW = "python -m pytest -n auto tests/unit tests/docs --renew-slow-tests"
# A function is slow if its cases take this number of seconds on average, or if the slowest case
# takes `WORST` times this number.
LIMIT = 0.15
WORST = 3
# A complete run names each case without the mark that takes more than this part of the time of all
# cases without the mark. The part of a case of `LIMIT` seconds is a tenth or less.
MAX_PART = 1 / 50
# Runs with fewer cases are not complete: the part of each case is large.
COMPLETE = 5000

UNKNOWN = pytest.StashKey[Sequence[str]]()
_PROPERTY = "time"


@frozen
class Time:
    """Seconds of one test case: wall-clock time, and CPU time of the process and its children."""

    wall: float
    cpu: float
    # The case has the mark, because of the list or of `pytest.mark.slow`.
    slow: bool = False

    @classmethod
    def now(cls) -> Time:
        return cls(perf_counter(), sum(os.times()[:4]))

    def __add__(self, other: Time) -> Time:
        return evolve(self, wall=self.wall + other.wall, cpu=self.cpu + other.cpu)

    def __sub__(self, other: Time) -> Time:
        return evolve(self, wall=self.wall - other.wall, cpu=self.cpu - other.cpu)

    def __truediv__(self, number: int) -> Time:
        return evolve(self, wall=self.wall / number, cpu=self.cpu / number)


def function_of(case: str) -> str:
    """Return the function's name in the list, which names no parameters."""
    return case.partition("[")[0]


def file_of(name: str) -> str:
    return name.partition("::")[0]


def listed() -> Sequence[str]:
    return LIST.read_text("utf-8").splitlines()


def unknown(names: Iterable[str], cases: Iterable[str]) -> Sequence[str]:
    """Return the listed names without a function, if their file was collected or is missing."""
    functions = {function_of(case) for case in cases}
    files = {file_of(function) for function in functions}
    return [
        name
        for name in names
        if name not in functions and (file_of(name) in files or not (ROOT / file_of(name)).exists())
    ]


def seconds(times: Mapping[str, Time]) -> Mapping[str, float]:
    """Return the seconds of each case, as if no other program was running."""
    contention = _contention(times.values())
    return {case: max(time.cpu, time.wall / contention) for case, time in times.items()}


def _contention(times: Iterable[Time]) -> float:
    """Return how much longer than their CPU time typical tests take, or 1 on an idle machine."""
    ratios = [time.wall / time.cpu for time in times if time.cpu > 0.05]
    return max(1.0, median(ratios or [1.0]))


def too_slow(times: Mapping[str, Time]) -> Sequence[str]:
    """Return a message for each case without the mark that takes more than `MAX_PART`."""
    quick = {case: time for case, time in times.items() if not time.slow}
    if len(quick) < COMPLETE:
        return []
    taken = seconds(quick)
    total = sum(taken.values())
    return [
        f"{case}: {each:.1f} s, {100 * each / total:.1f} % of all tests that are not slow"
        for case, each in taken.items()
        if each > max(total * MAX_PART, LIMIT * WORST)
    ]


def renewed(
    names: Iterable[str], times: Mapping[str, Time], not_passed: Container[str] = ()
) -> Sequence[str]:
    """Return the sorted names of the slow functions.

    A listed function stays if it is more than half as slow as `LIMIT`, so that the list is stable,
    or if it did not pass. Functions with `pytest.mark.slow` are not listed.
    """
    before = set(names)
    after = before - set(unknown(before, times))
    functions = defaultdict[str, list[float]](list)
    for case, taken in seconds(times).items():
        function = function_of(case)
        if case not in not_passed and (function in before or not times[case].slow):
            functions[function].append(taken)
    for function, cases in functions.items():
        slowness = max(fmean(cases), max(cases) / WORST)
        if slowness > LIMIT:
            after.add(function)
        elif slowness < LIMIT / 2:
            after.discard(function)
    return sorted(after)


class _Measuring:
    """Measures each case in the process that runs it, and adds the time to the last report.

    The time of a module's fixture is divided by the number of cases that use the fixture, and the
    time of a session's fixture is left out: the random order decides which case waits for it.
    """

    def __init__(self) -> None:
        self._started = self._ended = Time.now()
        self._shares: dict[tuple[str, str], Time] = {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        self._started = Time.now()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        before = Time.now()
        try:
            return (yield)
        finally:
            taken = Time.now() - before
            if fixturedef.scope != "function":
                self._started += taken
            if fixturedef.scope in ("class", "module", "package") and taken.wall > LIMIT:
                node = cast("Any", request).node.nodeid
                name = fixturedef.argname
                users = [each for each in request.session.items if _uses(each, node, name)]
                self._shares[node, name] = taken / max(1, len(users))

    def pytest_fixture_post_finalizer(self, fixturedef: pytest.FixtureDef[object]) -> None:
        if fixturedef.scope == "function":
            self._ended = Time.now()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        if call.when != "teardown":
            self._ended = Time.now()
        elif item.nodeid.startswith(FOLDERS):
            time = self._ended - self._started
            for (node, name), share in self._shares.items():
                if _uses(item, node, name):
                    time += share
            slow = item.get_closest_marker("slow") is not None
            item.user_properties.append((_PROPERTY, (time.wall, time.cpu, slow)))
        return (yield)


def _uses(item: pytest.Item, node: str, fixture: str) -> bool:
    return item.nodeid.startswith(node) and fixture in getattr(item, "fixturenames", ())


class _Checking:
    """Collects the times of all processes, and checks them, or writes the list, after the run."""

    def __init__(self, *, renew: bool) -> None:
        self._renew = renew
        self._times: dict[str, Time] = {}
        self._not_passed: set[str] = set()
        self._messages: Sequence[str] = ()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self._not_passed.add(report.nodeid)
        for name, value in report.user_properties:
            if name == _PROPERTY:
                self._times[report.nodeid] = Time(*cast("tuple[float, float, bool]", value))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._renew:
            names = renewed(listed(), self._times, self._not_passed)
            LIST.write_text("".join(f"{name}\n" for name in names), "utf-8")
            self._messages = [f"{LIST.relative_to(ROOT)}: {len(names)} functions"]
            return
        self._messages = too_slow(self._times)
        if self._messages:
            self._messages = [*self._messages, f"Make them faster, or mark them: {RENEW}"]
            computing = {case: evolve(time, wall=0.0) for case, time in self._times.items()}
            if too_slow(computing) and session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._messages:
            terminalreporter.section("slow tests", red=not self._renew, bold=True)
            for message in self._messages:
                terminalreporter.line(message)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--renew-slow-tests",
        action="store_true",
        help="write tests/data/slow_tests.txt from the times of this run",
    )


def pytest_configure(config: pytest.Config) -> None:
    renew = bool(config.getoption("renew_slow_tests"))
    if renew and (config.option.markexpr or config.option.keyword):
        raise pytest.UsageError("--renew-slow-tests needs all tests: omit -m and -k")
    config.pluginmanager.register(_Measuring())
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Checking(renew=renew))


@pytest.hookimpl(tryfirst=True)  # before `-m` and `-k` remove tests
def pytest_collection_modifyitems(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Mark the listed tests. Store the names without a test, unless only some tests are named."""
    names = listed()
    slow = frozenset(names)
    for item in items:
        if function_of(item.nodeid) in slow:
            item.add_marker("slow")
    some = any("::" in argument for argument in config.args)
    config.stash[UNKNOWN] = [] if some else unknown(names, [item.nodeid for item in items])
