"""The real server and the ways to it; see server.py, scripted_agent.py, transports.py, modes.py."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from typing import Any, cast
from uuid import uuid4

import pytest

from flux0 import Flux0
from support.modes import MakeClient, in_mode, run
from support.relay import Relay
from support.reverse_proxies import is_installed
from support.server import Flux0Server, free_port
from support.transports import WAYS, Way

_MISSING = [program for program in ("nginx", "haproxy") if not is_installed(program)]
collect_ignore = ["test_proxies.py"] if _MISSING else []

_VARIABLE = "FLUX0_TEST_SERVER_PYTHON"
_TIMEOUT_MS = 20_000


def pytest_report_collectionfinish() -> list[str]:
    """Say what is left out, so that nobody takes it for tested."""
    missing = " and ".join(_MISSING)
    return [f"left out without {missing}: {name}" for name in collect_ignore]


@pytest.fixture(scope="session")
def server_python() -> str:
    """The Python that has flux0-server installed. Without one these tests fail; they never skip."""
    python = os.environ.get(_VARIABLE)
    if not python:
        pytest.fail(
            f"The integration tests need a real flux0 server. Make a Python 3.13 environment with"
            f" `pip install --pre flux0-server`, and set {_VARIABLE} to the path of its python."
            f" To run the other tests alone: pytest tests/unit",
            pytrace=False,
        )
    return python


@pytest.fixture(scope="session")
def server(server_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flux0Server]:
    """The one server that all tests share; it gathers the agents and sessions of all of them."""
    with Flux0Server(server_python, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def relay(server: Flux0Server) -> Iterator[Relay]:
    """Another address of the server, which counts the connections that are made to it."""
    with Relay(server.port) as running:
        yield running


@pytest.fixture(params=WAYS, ids=str)
def way(request: pytest.FixtureRequest) -> Way:
    """The transport and the kind of code that this test runs with; see ways.py."""
    return cast("Way", request.param)


@pytest.fixture
def make_client(server: Flux0Server, way: Way) -> MakeClient:
    """Makes clients that go the test's way to the shared server, and never wait for ever."""

    def make(**options: Any) -> Flux0:
        options = {
            "server_url": server.url,
            "transport": way.make_transport(),
            "timeout_ms": _TIMEOUT_MS,
            "stream_idle_timeout_ms": _TIMEOUT_MS,
            **options,
        }
        return in_mode(way.mode, Flux0(**options))

    return make


@pytest.fixture
def session_id(server: Flux0Server) -> str:
    """A new session with the scripted agent."""
    with Flux0(server.url) as flux0:
        return flux0.sessions.create(agent_id=server.agent_id).id


@pytest.fixture
def nowhere() -> str:
    """The address of a server that does not exist, so that sending anything fails."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture
def fresh_name() -> str:
    """A name for a wait or an event that no turn has used; the server mixes up events of one id."""
    return uuid4().hex


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is asynchronous code in the kind of code that its way names."""
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    given = {name: pyfuncitem.funcargs[name] for name in inspect.signature(test).parameters}
    run(cast("Way", pyfuncitem.funcargs["way"]).mode, lambda: test(**given))
    return True
