"""The integration tests, over the fake instead of a real server.

Tests that control the server process or its connections are excluded.
"""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import pytest
from attrs import frozen

from flux0 import Flux0
from flux0.testing import FakeTransport
from integration import test_conversations, test_resources, test_turns
from support.fake_scripts import scripted_fake
from support.modes import MakeClient, in_mode
from support.transports import ASYNC, SYNC, Way

_SUITES = (test_conversations, test_resources, test_turns)
_PROCESS_FIXTURES = frozenset({"fresh_name", "relay"})
_TIMEOUT_MS = 20_000


def _tests(suite: ModuleType) -> dict[str, Any]:
    return {
        f"{name}_from_{suite.__name__.rpartition('.')[2]}": test
        for name, test in vars(suite).items()
        if name.startswith("test_")
        and _PROCESS_FIXTURES.isdisjoint(inspect.signature(test).parameters)
    }


for _suite in _SUITES:
    globals().update(_tests(_suite))


@frozen
class FakeServer:
    """The attributes of `Flux0Server` that the tests use."""

    url: str
    agent_id: str


@pytest.fixture(scope="module")
def fake() -> FakeTransport:
    """The fake that all tests share."""
    return scripted_fake("scripted-1")


@pytest.fixture(scope="module")
def server(fake: FakeTransport) -> FakeServer:
    """The fake's URL and agent, as a server."""
    return FakeServer("http://fake", fake.agent_id)


@pytest.fixture(params=[Way("fake", mode) for mode in SYNC + ASYNC], ids=str)
def way(request: pytest.FixtureRequest) -> Any:
    """The test's mode: sync, or async under asyncio or trio."""
    return request.param


@pytest.fixture
def make_client(server: FakeServer, fake: FakeTransport, way: Way) -> MakeClient:
    """A function that creates clients over the fake."""

    def make(**options: Any) -> Flux0:
        defaults: dict[str, Any] = {
            "server_url": server.url,
            "transport": fake,
            "timeout_ms": _TIMEOUT_MS,
            "stream_idle_timeout_ms": _TIMEOUT_MS,
        }
        return in_mode(way.mode, Flux0(**{**defaults, **options}))

    return make


@pytest.fixture
def session_id(fake: FakeTransport) -> str:
    """The id of a new session with the fake's agent."""
    with Flux0(transport=fake) as flux0:
        return flux0.sessions.create(agent_id=fake.agent_id).id
