"""The pytest plugin, and the samples of the page on testing, as users run them."""

from __future__ import annotations

from pathlib import Path

import pytest
from sybil import Document
from sybil.parsers.markdown import PythonCodeBlockParser

from flux0.cli.demo_agent import demo_transport
from support.fake_over_http import FakeOverHTTP

pytest_plugins = ["pytester"]

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"


@pytest.fixture(autouse=True)
def only_this_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the plugin by its name, whether or not its entry point is installed."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "flux0.testing.pytest_plugin")


def test_the_fixtures_are_a_fake_and_a_client_of_it(pytester: pytest.Pytester) -> None:
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


def test_a_stream_that_is_left_open_fails_its_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_it(flux0_client, flux0_fake):
            session = flux0_client.sessions.create(agent_id=flux0_fake.agent_id)
            next(flux0_client.sessions.create_event(session_id=session.id, content="Hi"))
        """
    )
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*left open:", "*sessions.create_event(*content='Hi')"])


def test_a_stream_that_somebody_keeps_open_fails_its_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        KEPT = []

        def test_it(flux0_client, flux0_fake):
            session = flux0_client.sessions.create(agent_id=flux0_fake.agent_id)
            KEPT.append(flux0_client.sessions.create_event(session_id=session.id, content="Hi"))
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=1, errors=1)


def test_the_samples_of_the_page_on_testing_pass(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = list(Document.parse(str(PAGE), PythonCodeBlockParser()).examples())
    pytester.makepyfile(
        **{f"test_{number}": str(one.parsed) for number, one in enumerate(examples)}
    )
    with FakeOverHTTP(demo_transport()) as server:  # For the sample that records.
        monkeypatch.setenv("FLUX0_SERVER_URL", server.url)
        result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=4)  # The others assert when they are imported.
