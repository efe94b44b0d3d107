"""The pytest plugin, and the samples of docs/testing.md."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from types import ModuleType

import anyio
import pytest
from sybil import Document
from sybil.parsers.markdown import PythonCodeBlockParser

import flux0
import flux0_pytest
from flux0.testing import FakeTransport

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
    from flux0.testing import FakeTransport

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

    def test_fakes(flux0_client):
        assert len(flux0_client.agents.list()) == 1
        with FakeTransport().installed(), Flux0() as new:
            assert len(clients[0].agents.list()) == len(new.agents.list()) == 1
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
        # In this process, an earlier test may have started the fork server.
        result = pytester.runpytest_subprocess("--strict-markers", "-p", "no:randomly")
        result.assert_outcomes(passed=2)
        assert len(fake.calls) == 2
        pytester.runpytest_inprocess("-k", "with_marker").assert_outcomes(passed=1, deselected=1)
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


def test_samples_of_the_testing_page_pass(pytester: pytest.Pytester) -> None:
    examples = list(Document.parse(str(PAGE), PythonCodeBlockParser()).examples())
    pytester.makepyfile(
        **{f"test_{number}": str(example.parsed) for number, example in enumerate(examples)}
    )
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=8)  # Samples without tests run when they are imported.
