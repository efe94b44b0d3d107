"""The mark `slow`: `tests/support/slow_tests.py`, and its list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import dedent

import pytest

from support import slow_tests
from support.slow_tests import COMPLETE, LIMIT, RENEW, UNKNOWN, WORST, Time

pytest_plugins = ["pytester"]


def test_each_listed_function_exists(request: pytest.FixtureRequest) -> None:
    unknown = request.config.stash[UNKNOWN]
    assert not unknown, f"functions in the list do not exist; renew the list: {RENEW}"


@pytest.mark.parametrize(
    ("name", "is_unknown"),
    [
        ("tests/unit/test_slow_tests.py::test_a", False),
        ("tests/unit/test_slow_tests.py::test_b", False),
        ("tests/unit/test_slow_tests.py::test_renamed", True),
        ("tests/unit/test_removed.py::test_a", True),
        # The file exists, but is not collected on each Python or without some programs.
        ("tests/unit/conftest.py::test_a", False),
    ],
)
def test_listed_name_without_a_function_is_unknown(name: str, is_unknown: bool) -> None:
    file = "tests/unit/test_slow_tests.py"
    assert slow_tests.unknown([name], [f"{file}::test_a", f"{file}::test_b[1-x[2]]"]) == (
        [name] if is_unknown else []
    )


def a_run(times: Mapping[str, Time], *, quick_seconds: float, busy: int = 1) -> Mapping[str, Time]:
    """Return `times`, and a complete run of quick cases, on a machine with `busy` programs."""
    each = quick_seconds / COMPLETE
    quick = {f"quick[{number}]": Time(each * busy, each) for number in range(COMPLETE)}
    typical = {f"typical[{number}]": Time(0.1 * busy, 0.1) for number in range(10)}
    return {**quick, **typical, **times}


@pytest.mark.parametrize(
    ("time", "quick_seconds", "busy", "is_too_slow"),
    [
        (Time(wall=5, cpu=0), 100, 1, True),
        (Time(wall=5, cpu=5), 100, 1, True),
        (Time(wall=2, cpu=2), 100, 1, False),
        (Time(wall=5, cpu=5, slow=True), 100, 1, False),
        # The case waits for other programs.
        (Time(wall=8, cpu=2), 100, 4, False),
        # The machine or the Python is slower, so all tests take longer.
        (Time(wall=5, cpu=5), 300, 1, False),
        (Time(wall=15, cpu=15), 300, 1, True),
        # The machine is fast: no limit is below the limit of the list.
        (Time(wall=LIMIT * WORST, cpu=0), 1, 1, False),
    ],
)
def test_case_with_a_large_part_of_the_time_is_too_slow(
    time: Time, quick_seconds: float, busy: int, is_too_slow: bool
) -> None:
    messages = slow_tests.too_slow(
        a_run({"a.py::test_a[1]": time}, quick_seconds=quick_seconds, busy=busy)
    )
    assert [message.partition(": ")[0] for message in messages] == (
        ["a.py::test_a[1]"] if is_too_slow else []
    )


def test_run_of_some_tests_is_not_checked() -> None:
    assert slow_tests.too_slow({"test_a": Time(wall=60, cpu=60)}) == []


@pytest.mark.parametrize(
    ("cases", "was_listed", "is_listed"),
    [
        ([LIMIT * 1.1], False, True),
        ([LIMIT * 0.9], False, False),
        ([LIMIT * 0.9], True, True),
        ([LIMIT * 0.4], True, False),
        ([LIMIT * 1.5, LIMIT * 0.4], False, False),
        ([LIMIT * 2, LIMIT * 0.4], False, True),
        ([LIMIT * WORST * 1.1, *[0.0] * 20], False, True),
    ],
)
def test_function_is_listed_if_its_cases_are_slow(
    cases: list[float], was_listed: bool, is_listed: bool
) -> None:
    name = "tests/unit/test_slow_tests.py::test_a"
    times = {f"{name}[{number}]": Time(each, 0, was_listed) for number, each in enumerate(cases)}
    assert slow_tests.renewed([name] if was_listed else [], times) == ([name] if is_listed else [])


class Clock:
    """The only time that passes in a run of `FILE`."""

    seconds = 0.0
    is_cpu_time = False
    unknown: Sequence[str] | None = None

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.unknown = session.config.stash[UNKNOWN]

    def now(self) -> Time:
        return Time(self.seconds, self.seconds if self.is_cpu_time else 0)

    @pytest.fixture(scope="session")
    def clock(self) -> Clock:
        return self


FILE = """
    import pytest

    @pytest.fixture(scope="session", autouse=True)
    def of_the_session(clock):
        clock.seconds += 9

    @pytest.fixture(scope="module", autouse=True)
    def of_all(clock):
        yield
        clock.seconds += 9

    @pytest.fixture(scope="module")
    def of_two(clock):
        clock.seconds += 2

    @pytest.fixture
    def stopped(clock):
        yield
        clock.seconds += 1

    def test_quick(): ...
    def test_call(clock): clock.seconds += 1
    def test_teardown(stopped): ...
    @pytest.mark.parametrize("case", [1, 2])
    def test_shared(of_two, case): ...
    @pytest.mark.slow
    def test_marked(clock): clock.seconds += 1
    def test_failed(clock):
        clock.seconds += 1
        assert False
    @pytest.mark.skip
    def test_skipped(): ...
"""


class Run:
    def __init__(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        self._pytester = pytester
        self._monkeypatch = monkeypatch
        self.list = pytester.path / "slow_tests.txt"
        self.list.touch()
        self.unknown: Sequence[str] | None = None

    def __call__(self, *options: str, is_cpu_time: bool = False) -> pytest.RunResult:
        clock = Clock()
        clock.is_cpu_time = is_cpu_time
        self._monkeypatch.setattr(Time, "now", clock.now)
        result = self._pytester.runpytest_inprocess(
            "-p", "support.slow_tests", *options, plugins=[clock]
        )
        self.unknown = clock.unknown
        return result


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setattr(slow_tests, "ROOT", pytester.path)
    monkeypatch.setattr(slow_tests, "LIST", pytester.path / "slow_tests.txt")
    monkeypatch.setattr(slow_tests, "FOLDERS", ("test_file.py",))
    monkeypatch.setattr(slow_tests, "COMPLETE", 2)
    pytester.makeini("[pytest]\nmarkers = slow")
    (pytester.path / "test_file.py").write_text(dedent(FILE), "utf-8")
    return Run(pytester, monkeypatch)


def names(*functions: str) -> str:
    return "".join(f"test_file.py::test_{function}\n" for function in functions)


def test_renewed_list_names_the_slow_functions_that_passed(run: Run) -> None:
    run.list.write_text(names("quick", "removed", "skipped"), "utf-8")
    result = run("--renew-slow-tests")
    assert run.list.read_text("utf-8") == names("call", "shared", "skipped", "teardown")
    result.stdout.fnmatch_lines(["slow_tests.txt: 4 functions"])
    run("-m", "not slow").assert_outcomes(passed=1, failed=1, deselected=6)


@pytest.mark.parametrize("is_cpu_time", [True, False])
def test_complete_run_names_a_slow_test_that_is_not_listed_and_fails_because_of_cpu_time(
    run: Run, is_cpu_time: bool
) -> None:
    run.list.write_text(names("shared", "teardown"), "utf-8")
    result = run("-k", "not failed", is_cpu_time=is_cpu_time)
    assert result.ret == (pytest.ExitCode.TESTS_FAILED if is_cpu_time else pytest.ExitCode.OK)
    result.assert_outcomes(passed=6, skipped=1, deselected=1)
    result.stdout.fnmatch_lines(
        [
            "test_file.py::test_call: 1.0 s, 100.0 % of all tests that are not slow",
            f"Make them faster, or mark them: {RENEW}",
        ]
    )
    run.list.write_text(names("call", "shared", "teardown"), "utf-8")
    result = run("-k", "not failed", is_cpu_time=is_cpu_time)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.no_fnmatch_line("*slow tests*")


@pytest.mark.parametrize("option", ["-m", "-k"])
def test_list_is_not_renewed_from_selected_tests(run: Run, option: str) -> None:
    result = run("--renew-slow-tests", option, "not slow")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--renew-slow-tests needs all tests: omit -m and -k"])


@pytest.mark.parametrize(
    ("arguments", "unknown"),
    [
        (["-k", "quick"], ["test_file.py::test_removed"]),
        (["test_file.py"], ["test_file.py::test_removed"]),
        (["test_file.py::test_quick"], []),
    ],
)
def test_list_is_compared_with_complete_files(
    run: Run, arguments: list[str], unknown: Sequence[str]
) -> None:
    run.list.write_text(names("call", "removed"), "utf-8")
    run("--collect-only", *arguments)
    assert run.unknown == unknown
