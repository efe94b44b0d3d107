"""The pytest plugin, and the samples of docs/testing.md."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from textwrap import dedent
from types import ModuleType

import anyio
import pytest
from sybil import Document
from sybil.parsers.markdown import PythonCodeBlockParser

import flux0
import flux0_pytest
from flux0.cli.demo_agent import demo_transport
from flux0.testing import FakeTransport
from support.fake_over_http import FakeOverHTTP

pytest_plugins = ["pytester"]

PAGE = Path(__file__).parents[3] / "docs" / "testing.md"


@pytest.fixture(autouse=True)
def load_only_this_plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Load only this plugin, by its module name instead of its entry point."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "flux0_pytest")
    # After each run, `pytester` unloads the modules that the run imported. If another module refers
    # to them, later tests use two copies of them. So import all modules before.
    anyio.run(anyio.sleep, 0)
    for module in walk_packages(flux0.__path__, "flux0."):
        if module.name not in ("flux0.__main__", "flux0.cli.mcp_server"):
            import_module(module.name)
    before = unloaded_modules()
    yield
    assert unloaded_modules() == before


def unloaded_modules() -> list[str]:
    """Return the modules that modules of flux0 and its dependencies refer to, but are unloaded."""
    users = ("flux0", "anyio", "attrs", "cattrs", "h11", "httpcore", "httpx")
    return [
        f"{user}: {used.__name__}"
        for user, module in tuple(sys.modules.items())
        if user.partition(".")[0] in users
        for used in vars(module).values()
        if isinstance(used, ModuleType) and sys.modules.get(used.__name__) is not used
    ]


def test_each_test_gets_a_fake_and_a_client(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_agents(flux0_client, flux0_fake):
            (agent,) = flux0_client.agents.list()
            assert agent.id == flux0_fake.agent_id
            assert len(flux0_fake.calls) == 1

        def test_each_test_has_its_own(flux0_client, flux0_fake):
            assert flux0_fake.calls == ()
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=2)


# A marker argument, code that fails its check, and the failure's message.
FAILURES = [
    ("streams", "next(say(client, fake))", "responses left open:"),
    ("streams", "KEPT.append(say(client, fake))", "responses left open:"),
    ("used", "fake.script('never')", "script 1: no turn has used it"),
    ("used", "fake.inject(Refuse(), operation='agents.list')", "fault not applied: Refuse*"),
    ("used", "fake.expect('sessions.list')", "expected but not called: sessions.list()"),
    (
        "expected",
        "fake.expect('agents.list'); client.agents.list(); swallow(client.agents.list)",
        "unexpected: agents.list()",
    ),
    (
        "expected",
        "fake.script(lambda _: [1]); swallow(lambda: list(say(client, fake)))",
        "an agent raised TypeError(*",
    ),
]

FAILING_TESTS = """
    import pytest
    from flux0.testing import Refuse

    KEPT = []

    def say(client, fake):
        return client.conversation(agent=fake.agent_id).send("Hi")

    def swallow(call):
        with pytest.raises((AssertionError, TypeError)):
            call()

    def act(client, fake):
        {body}

    def test_strict(flux0_client, flux0_fake):
        act(flux0_client, flux0_fake)

    @pytest.mark.flux0_fake({marker}=False)
    def test_lenient(flux0_client, flux0_fake):
        act(flux0_client, flux0_fake)

    def test_that_fails(flux0_client, flux0_fake):
        act(flux0_client, flux0_fake)
        assert False
"""


def test_fixture_fails_the_test_if_a_check_fails(pytester: pytest.Pytester) -> None:
    for number, (marker, body, _) in enumerate(FAILURES):
        source = FAILING_TESTS.format(marker=marker, body=body)
        pytester.makepyfile(**{f"test_{number}": source})
    result = pytester.runpytest_inprocess("--strict-markers")
    # Each file has three tests: the first has an error after it, and the last fails.
    result.stdout.fnmatch_lines([f"test_{number}.py .E.F *" for number in range(len(FAILURES))])
    result.stdout.fnmatch_lines([f"*{message}" for _, _, message in FAILURES])


OWN_FAKE = """
    import pytest
    from flux0.testing import FakeTransport

    @pytest.fixture
    def flux0_fake({argument}):
        return {fake}

    def test_unused_script(flux0_client, flux0_fake):
        flux0_fake.script("never")

    @pytest.mark.flux0_fake(used=False)
    def test_lenient(flux0_client, flux0_fake):
        flux0_fake.script("never")
        assert flux0_client.agents.list()[0].type == {type_!r}
"""


@pytest.mark.parametrize(
    ("argument", "fake", "type_"),
    [("", "FakeTransport(agent_types=['own'])", "own"), ("flux0_fake", "flux0_fake", "fake")],
)
def test_own_fixture_with_the_name_flux0_fake_is_checked(
    pytester: pytest.Pytester, argument: str, fake: str, type_: str
) -> None:
    pytester.makepyfile(OWN_FAKE.format(argument=argument, fake=fake, type_=type_))
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(
        [
            "E   AssertionError: some scripts, faults or expected calls were not used:",
            "*script 1: no turn has used it",
            "*to switch this check off: @pytest.mark.flux0_fake(used=False)",
        ],
        consecutive=True,
    )


WIDE_FAKE = """
    import pytest
    from flux0 import Flux0
    from flux0.testing import FakeTransport, Say, Gate

    @pytest.fixture(scope={scope!r})
    def flux0_fake():
        return FakeTransport([Say("One"), Gate(), Say("Two")])

    class TestIt:
        def test_unused_script(self, flux0_fake):
            flux0_fake.script("never", "never")

        {marker}
        def test_open_stream(self, flux0_fake):
            self.flux0 = Flux0(transport=flux0_fake)
            next(self.flux0.conversation(agent=flux0_fake.agent_id).send("Hi"))

        def test_swallowed_exception(self, request):
            flux0_fake = request.getfixturevalue("flux0_fake")
            {failure}
            flux0_fake.expect("agents.list")
            with Flux0(transport=flux0_fake) as flux0, pytest.raises(AssertionError):
                flux0.sessions.list()
"""


@pytest.mark.parametrize("scope", ["class", "module", "package", "session"])
def test_fake_of_a_wide_scope_is_checked_after_its_last_test(
    pytester: pytest.Pytester, scope: str
) -> None:
    problems = [
        "E   AssertionError: unexpected calls or errors:",
        "*unexpected: sessions.list()",
        "*@pytest.mark.flux0_fake(expected=False)",
        "*script 2: no turn has used it",
        "*expected but not called: agents.list()",
        "*@pytest.mark.flux0_fake(used=False)",
        "*responses left open:",
        "*sessions.create_event(*",
        "*@pytest.mark.flux0_fake(streams=False)",
    ]

    def run(marker: str = "", failure: str = "") -> pytest.RunResult:
        pytester.makepyfile(WIDE_FAKE.format(scope=scope, marker=marker, failure=failure))
        return pytester.runpytest_inprocess("-p", "no:randomly")

    result = run()
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(problems)
    result = run(marker="@pytest.mark.flux0_fake(used=False, expected=False)")
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["E   AssertionError: responses left open:"])
    result.stdout.no_fnmatch_line("*script 2*")
    run(failure="assert False").assert_outcomes(passed=2, failed=1)


FAKE_OF_A_MODULE = """
    import pytest
    from flux0.testing import FakeTransport

    @pytest.fixture(scope="module")
    def flux0_fake():
        return FakeTransport()

    def test_unused_script(flux0_fake):
        flux0_fake.script("never")

    {marker}
    def test_other({arguments}):
        {body}
"""


@pytest.mark.parametrize(
    ("outcome", "marker", "body"),
    [
        ("skipped", "", "pytest.skip()"),
        ("xfailed", "", "pytest.xfail()"),
        ("xfailed", "@pytest.mark.xfail", "assert False"),
        ("xpassed", "@pytest.mark.xfail", "pass"),
    ],
)
def test_only_a_skipped_or_xfailed_test_with_the_fake_switches_checks_off(
    pytester: pytest.Pytester, outcome: str, marker: str, body: str
) -> None:
    def run(arguments: str) -> pytest.RunResult:
        source = FAKE_OF_A_MODULE.format(marker=marker, body=body, arguments=arguments)
        pytester.makepyfile(source)
        return pytester.runpytest_inprocess("-p", "no:randomly")

    run("").assert_outcomes(**{"passed": 1, outcome: 1}, errors=1)
    errors = int(outcome == "xpassed")
    run("flux0_fake").assert_outcomes(**{"passed": 1, outcome: 1}, errors=errors)


@pytest.mark.parametrize("arguments", ["", "flux0_fake"])
@pytest.mark.parametrize(
    "marker", ["skip", "xfail(run=False)", "xfail(strict=True)", "usefixtures('missing')"]
)
def test_checks_if_a_test_is_not_run_or_fails_because_it_passes(
    pytester: pytest.Pytester, arguments: str, marker: str
) -> None:
    marker = f"@pytest.mark.{marker}"
    pytester.makepyfile(FAKE_OF_A_MODULE.format(marker=marker, body="pass", arguments=arguments))
    outcomes = pytester.runpytest_inprocess("-p", "no:randomly").parseoutcomes()
    assert outcomes.get("errors", 0) == int("strict=True" not in marker)


def test_own_fixture_that_is_not_a_fake_transport_is_not_checked(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def flux0_fake():
            return None

        def test_it(flux0_fake):
            pass

        class TestWithoutFake:
            @pytest.fixture
            def flux0_fake(self):
                raise ValueError

            def test_it(self, flux0_fake):
                pass
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=1, errors=1)


WRONG_MARKERS = {
    "flux0_fake(stream=False)": "flux0_fake has no argument 'stream': use used=, expected=",
    "flux0_fake(False)": "the marker flux0_fake has no argument False: use used=, expected=",
    "flux0_cassette('a', 'b')": "flux0_cassette has no argument 'b': use path=, mode=, match",
    "flux0_cassette(matchin='loose')": "flux0_cassette has no argument 'matchin': use path=",
    "flux0_real(True)": "the marker flux0_real has no argument True: use no arguments",
}


def test_unknown_arguments_of_markers_are_rejected(pytester: pytest.Pytester) -> None:
    tests = (
        f"@pytest.mark.{marker}\ndef test_{number}(): pass\n"
        for number, marker in enumerate(WRONG_MARKERS)
    )
    pytester.makepyfile("\n".join(("import pytest", *tests)))
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(errors=len(WRONG_MARKERS))
    result.stdout.fnmatch_lines([f"*{problem}*" for problem in WRONG_MARKERS.values()])


CLIENTS_AT_IMPORT = """
    import httpx
    from flux0 import AiohttpTransport, Flux0, HttpxTransport, RequestsTransport

    url = {url!r}
    clients = [
        Flux0(url),
        Flux0(url).with_options(timeout_ms=60_000),
        Flux0(url, transport=HttpxTransport()),
        Flux0(url, client=httpx.Client(), async_client=httpx.AsyncClient()),
        Flux0(url, transport=RequestsTransport()),
        Flux0(url, async_transport=AiohttpTransport()),
    ]
"""
FORBIDDEN_CALLS = """
    import asyncio
    from functools import lru_cache
    import pytest
    from conftest import clients, url
    from flux0 import Flux0
    from flux0.testing import FakeTransport, RecordingTransport

    @lru_cache
    def client():
        return Flux0(url)

    @pytest.mark.flux0_real
    class TestReal:
        def test_with_marker(self):
            assert client().agents.first().name == clients[0].agents.first().name == "Fake"

    @pytest.mark.parametrize("client", [client(), *clients])
    def test_calls(client):
        if client is not clients[-1]:
            with pytest.raises(AssertionError, match="agents.create must not be sent to a server"):
                client.agents.create(name="a", type_="fake")
        asyncio.run(client.agents.list_async())

    def test_fakes(flux0_client, tmp_path):
        assert len(flux0_client.agents.list()) == 1
        with FakeTransport().installed(), Flux0() as new:
            assert len(clients[0].agents.list()) == len(new.agents.list()) == 1
        with Flux0(transport=RecordingTransport(FakeTransport(), tmp_path / "c.json")) as recorded:
            recorded.agents.list()
"""


def test_ini_option_forbids_real_transports(pytester: pytest.Pytester) -> None:
    fake = FakeTransport()
    with fake.serve() as url:
        pytester.makeconftest(CLIENTS_AT_IMPORT.format(url=url))
        pytester.makepyfile(FORBIDDEN_CALLS)
        pytester.makeini("[pytest]\nflux0_forbid_real = true")
        result = pytester.runpytest_inprocess("--strict-markers", "-p", "no:randomly")
        result.assert_outcomes(passed=2, failed=7)
        shown = (
            f"E  *AssertionError: agents.list must not be sent to a server (GET {url}/api/agents), "
            "because the ini option flux0_forbid_real is set*@pytest.mark.flux0_real*"
        )
        result.stdout.fnmatch_lines([shown] * 7)
        assert [call.operation for call in fake.calls] == ["agents.list"] * 2
        pytester.makeini("[pytest]")
        result = pytester.runpytest_inprocess("-k", "test_with_marker or test_fakes")
        result.assert_outcomes(passed=2, deselected=7)


CALL_IN_CHILDREN = """
    import os
    import subprocess
    import sys
    from multiprocessing import get_all_start_methods, get_context
    import pytest
    from child import list_agents

    def outputs(methods):
        command = [sys.executable, "child.py"]
        yield subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
        for method in methods:
            context = get_context(method)
            queue = context.SimpleQueue()
            process = context.Process(target=list_agents, args=(queue.put,))
            process.start()
            yield queue.get()
            process.join()

    def test_children():
        for output in outputs(get_all_start_methods()):
            assert "agents.list must not be sent to a server" in output
            assert "FLUX0_FORBID_REAL is set" in output or "flux0_forbid_real is set" in output

    @pytest.mark.flux0_real
    def test_children_with_marker():
        # A fork server keeps the environment of the test that has started it.
        assert {output.strip() for output in outputs(["spawn"])} == {"1 agent"}
"""
CHILD = """
    from flux0 import Flux0

    def list_agents(put):
        try:
            put(f"{{len(Flux0({url!r}).agents.list())}} agent")
        except AssertionError as error:
            put(str(error))

    if __name__ == "__main__":
        list_agents(print)
"""


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_ini_option_forbids_real_transports_in_child_processes(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLUX0_FORBID_REAL", "before")
    fake = FakeTransport()
    with fake.serve() as url:
        pytester.makepyfile(CALL_IN_CHILDREN, child=CHILD.format(url=url))
        pytester.makeini("[pytest]\nflux0_forbid_real = true")
        result = pytester.runpytest_inprocess("--strict-markers", "-p", "no:randomly")
    result.assert_outcomes(passed=2)
    assert len(fake.calls) == 2
    assert os.environ["FLUX0_FORBID_REAL"] == "before"


def test_plugin_alone_does_not_import_flux0(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(flux0_pytest.__file__).parents[1]))
    pytester.makepyfile(
        """
        import sys

        def test_nothing():
            loaded = {name.partition(".")[0] for name in sys.modules}
            assert "flux0_pytest" in loaded
            assert not loaded & {"flux0", "attr", "attrs", "anyio", "httpx", "cattrs"}
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


CASSETTE_TEST = """
    import pytest
    from flux0 import Flux0

    @pytest.fixture
    def flux0_cassette_transport():
        from flux0.testing import FakeTransport
        return lambda: FakeTransport("From a server")

    @pytest.mark.flux0_cassette({options})
    def test_it(flux0_cassette):
        with Flux0(transport=flux0_cassette) as flux0:
            conversation = flux0.conversation(agent=flux0.agents.list()[0])
            assert "".join(conversation.send("Hi").text()) == "From a server"
        assert {passes}
"""


def test_cassette_is_recorded_once_and_then_replayed(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    path = pytester.path / "cassettes" / "test_cassette" / "test_it.json"

    def run(*arguments: str, passes: object = True, **outcomes: int) -> None:
        pytester.makepyfile(test_cassette=CASSETTE_TEST.format(options="", passes=passes))
        pytester.runpytest_inprocess("--strict-markers", *arguments).assert_outcomes(**outcomes)

    run("--flux0-cassettes=none", errors=1)
    pytester.makepyfile(test_cassette="def test_it(flux0_cassette): pass")
    pytester.runpytest_inprocess("--flux0-cassettes=all").assert_outcomes(passed=1)
    run(passes=False, failed=1)
    assert not path.exists()
    run(passed=1)
    recorded = path.read_bytes()
    run(passed=1)
    run(passes=False, failed=1)
    run("--flux0-cassettes=all", passes=False, failed=1)
    assert path.read_bytes() == recorded
    monkeypatch.setenv("CI", "true")
    run(passed=1)
    run("--flux0-cassettes=all", passed=1)
    assert list(path.parent.iterdir()) == [path]


COLLIDING_TESTS = """
    import pytest
    from flux0 import Flux0

    @pytest.fixture
    def flux0_cassette_transport():
        from flux0.testing import FakeTransport
        return FakeTransport

    class TestA:
        title = "a"

        @pytest.mark.parametrize("question", ["How?", "How!", pytest.param("x", id="x" * 300)])
        def test_it(self, flux0_cassette, question):
            with Flux0(transport=flux0_cassette) as flux0:
                flux0.sessions.create(
                    agent_id=flux0.agents.first().id, title=self.title + question[:9]
                )

    class TestB(TestA):
        title = "b"

        class TestA(TestA):
            title = "nested"
"""


def test_each_test_has_its_own_cassette(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    pytester.makepyfile(test_cassette=COLLIDING_TESTS)
    for mode in ("once", "none"):
        result = pytester.runpytest_inprocess(f"--flux0-cassettes={mode}")
        result.assert_outcomes(passed=9)
    files = sorted(file.name for file in (pytester.path / "cassettes" / "test_cassette").iterdir())
    assert len(files) == 9
    assert files[0].startswith("TestA.test_it[How_]-")


def test_tests_with_similar_names_have_their_own_cassettes(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    pytester.makepyfile(
        test_cassette="""
        import pytest
        from flux0 import Flux0

        @pytest.fixture
        def flux0_cassette_transport():
            from flux0.testing import FakeTransport
            return FakeTransport

        @pytest.mark.parametrize("title", ["a_b", "a:b", "a/b", "A_b"])
        def test_odd(flux0_cassette, title):
            with Flux0(transport=flux0_cassette) as flux0:
                flux0.sessions.create(agent_id=flux0.agents.first().id, title=title)
        """
    )
    pytester.runpytest_inprocess("test_cassette.py::test_odd[a_b]").assert_outcomes(passed=1)
    for mode in ("once", "none"):
        result = pytester.runpytest_inprocess(f"--flux0-cassettes={mode}")
        result.assert_outcomes(passed=4)
    files = (pytester.path / "cassettes" / "test_cassette").iterdir()
    assert len({file.name.lower() for file in files}) == 4


def test_mismatch_fits_on_a_screen_and_names_the_option(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    for content in ("before", "after"):
        test = CASSETTE_TEST.format(options="", passes=True)
        prompt = f"'lorem ipsum ' * 40_000 + '{content}'"
        pytester.makepyfile(test_cassette=test.replace('send("Hi")', f"send({prompt})"))
        result = pytester.runpytest_inprocess("-p", "no:warnings")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["E*record it again: run this test with `pytest --flux0-cassettes=*"]
    )
    failure = result.stdout.str().partition("= FAILURES =")[2]
    assert len(failure) < 3000
    assert "flux0/client" not in failure.replace("\\", "/")
    full = pytester.runpytest_inprocess("--full-trace").stdout.str()
    assert "flux0/client" in full.replace("\\", "/")


def test_missing_cassette_names_the_option(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_cassette=CASSETTE_TEST.format(options="mode='none'", passes=True))
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["E*test_it.json does not exist: to record it, run this test with `pytest --flux0-cass*"]
    )


def test_cassette_of_a_fixture_without_the_plugin_survives_a_failed_test(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_PLUGINS")
    path = pytester.path / "c.json"
    for passes, outcome in ((True, "passed"), (False, "failed"), (True, "passed")):
        pytester.makepyfile(
            test_it=f"""
            import pytest
            from flux0 import Flux0
            from flux0.testing import FakeTransport, cassette

            @pytest.fixture
            def client():
                with Flux0(transport=cassette({str(path)!r}, FakeTransport, mode="all")) as client:
                    yield client

            def test_it(client):
                client.agents.list()
                assert {passes}
                client.agents.list()
            """
        )
        result = pytester.runpytest_inprocess("-W", "default")
        result.assert_outcomes(**{outcome: 1}, warnings=int(not passes))
        assert path.read_text("utf-8").count('"request"') == 2


def test_command_line_overrides_the_mode_of_a_marker(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_cassette=CASSETTE_TEST.format(options="mode='none'", passes=True))
    for mode, outcome in ((None, "errors"), ("all", "passed"), (None, "passed")):
        options = [] if mode is None else [f"--flux0-cassettes={mode}"]
        pytester.runpytest_inprocess(*options).assert_outcomes(**{outcome: 1})


SHARED_CASSETTE = (
    CASSETTE_TEST
    + """
    @pytest.mark.flux0_cassette("shared.json", mode={mode!r})
    @pytest.mark.parametrize("number", [1, 2])
    def test_other(flux0_cassette, number):
        with Flux0(transport=flux0_cassette) as flux0:
            flux0.agents.list()
            flux0.sessions.create(agent_id=flux0.agents.first().id, title=str(number))
"""
)


@pytest.mark.parametrize("mode", ["once", "all"])
def test_cassette_of_another_test_in_this_run_is_an_error(
    pytester: pytest.Pytester, mode: str
) -> None:
    source = SHARED_CASSETTE.format(options="'shared.json'", passes=True, mode=mode)
    pytester.makepyfile(test_shared=source)
    run = partial(pytester.runpytest_inprocess, "-p", "no:randomly", f"--flux0-cassettes={mode}")
    result = run()
    result.assert_outcomes(passed=1, errors=2)
    problem = "shared.json was recorded by test_shared.py::test_it in this run: give each test its"
    result.stdout.fnmatch_lines([f"E  *{problem}*"] * 2)
    run("-k", "test_it").assert_outcomes(passed=1, deselected=2)


@pytest.mark.parametrize("other", ["../one.json", "./x/../../one.json", "../ONE.json"])
def test_two_spellings_of_one_path_are_the_same_cassette(
    pytester: pytest.Pytester, other: str
) -> None:
    for number, path in ((1, "../one.json"), (2, other)):
        source = CASSETTE_TEST.format(options=repr(path), passes=True)
        test = pytester.mkdir(f"tests_{number}") / f"test_{number}.py"
        test.write_text(dedent(source), "utf-8")
    result = pytester.runpytest_inprocess("-p", "no:randomly", "--flux0-cassettes=once")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["E  *was recorded by tests_1/test_1.py::test_it in this run:*"])


def test_classes_whose_names_differ_in_case_need_their_own_paths(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        class TestA:
            def test_it(self, flux0_cassette):
                pass

        class Testa(TestA):
            pass
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:randomly", "--flux0-cassettes=once")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["E  *::TestA::test_it in this run: give each test its own path*"])


def test_tests_can_append_to_one_cassette(pytester: pytest.Pytester) -> None:
    source = SHARED_CASSETTE.format(options="'shared.json'", passes=True, mode="new_episodes")
    pytester.makepyfile(test_shared=source)
    for _ in range(2):
        result = pytester.runpytest_inprocess("--flux0-cassettes=new_episodes")
        result.assert_outcomes(passed=3)


def test_cassette_marker_sets_path_and_options_and_unused_exchanges_fail(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    options = "'weather.json', mode='once', scrub=lambda text: text.replace('Hi', '***')"
    pytester.makepyfile(test_cassette=CASSETTE_TEST.format(options=options, passes=True))
    for _ in range(2):
        pytester.runpytest_inprocess().assert_outcomes(passed=1)
    assert '"content": "***"' in (pytester.path / "weather.json").read_text("utf-8")
    pytester.makepyfile(
        test_cassette="""
        import pytest

        @pytest.mark.flux0_cassette("weather.json")
        def test_it(flux0_cassette):
            pass

        @pytest.mark.flux0_cassette("weather.json")
        def test_skipped(flux0_cassette):
            pytest.skip()
        """
    )
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=1, skipped=1, errors=1)
    result.stdout.fnmatch_lines(["*exchange 1, agents.list()"])


def test_samples_of_the_testing_page_pass(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = list(Document.parse(str(PAGE), PythonCodeBlockParser()).examples())
    pytester.makepyfile(
        **{f"test_{number}": str(example.parsed) for number, example in enumerate(examples)}
    )
    with FakeOverHTTP(demo_transport()) as server:  # One sample records a cassette.
        monkeypatch.setenv("FLUX0_SERVER_URL", server.url)
        # Starlette recommends httpx2, which needs Python 3.11.
        options = "-p", "pytest_httpserver.pytest_plugin", "-W", "ignore:Using `httpx` with"
        result = pytester.runpytest_inprocess(*options)
    result.assert_outcomes(passed=15)  # Samples without tests run when they are imported.
