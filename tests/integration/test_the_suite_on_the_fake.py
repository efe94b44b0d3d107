"""The integration tests once more, with the fake in place of the real server.

Left out are those that do something to a server's process or its connections.
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
_OF_A_PROCESS = frozenset({"fresh_name", "relay"})
_TIMEOUT_MS = 20_000


def _tests(suite: ModuleType) -> dict[str, Any]:
    return {
        f"{name}_as_in_{suite.__name__.rpartition('.')[2]}": test
        for name, test in vars(suite).items()
        if name.startswith("test_") and _OF_A_PROCESS.isdisjoint(inspect.signature(test).parameters)
    }


for _suite in _SUITES:
    globals().update(_tests(_suite))


@frozen
class FakeServer:
    """What the tests know of a server that they only talk to."""

    url: str
    agent_id: str


@pytest.fixture(scope="module")
def fake() -> FakeTransport:
    """The one server that all these tests share."""
    return scripted_fake("scripted-1")


@pytest.fixture(scope="module")
def server(fake: FakeTransport) -> FakeServer:
    """Where the fake seems to be."""
    return FakeServer("http://fake", fake.agent_id)


@pytest.fixture(params=[Way("fake", mode) for mode in SYNC + ASYNC], ids=str)
def way(request: pytest.FixtureRequest) -> Any:
    """The kind of code that this test runs with."""
    return request.param


@pytest.fixture
def make_client(server: FakeServer, fake: FakeTransport, way: Way) -> MakeClient:
    """Makes clients of the fake."""

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
    """A new session with the fake's agent."""
    with Flux0(transport=fake) as flux0:
        return flux0.sessions.create(agent_id=fake.agent_id).id
