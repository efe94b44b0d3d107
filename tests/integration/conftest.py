"""Fixtures: the real server, and clients with each transport in each mode."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from typing import Any, cast
from uuid import uuid4

import pytest

from flux0 import Flux0
from support.modes import MakeClient, in_mode, run
from support.ports import reserved_port
from support.relay import Relay
from support.server import Flux0Server
from support.transports import LIBRARIES, Way

_VARIABLE = "FLUX0_TEST_SERVER_PYTHON"
_TIMEOUT_MS = 20_000


@pytest.fixture(scope="session")
def server_python() -> str:
    """The Python with flux0-server. If it is missing, these tests fail; they are never skipped."""
    python = os.environ.get(_VARIABLE)
    if not python:
        pytest.fail(
            f"The integration tests need a real flux0 server. Create a Python 3.13 environment with"
            f" `pip install --pre flux0-server`, and set {_VARIABLE} to the path of its python."
            f" To run only the unit tests: pytest tests/unit",
            pytrace=False,
        )
    return python


@pytest.fixture(scope="session")
def server(server_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flux0Server]:
    """The server that all tests share. It contains the agents and sessions of all of them."""
    with Flux0Server(server_python, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def relay(server: Flux0Server) -> Iterator[Relay]:
    """Another server address, with a count of its connections."""
    with Relay(server.port) as running:
        yield running


@pytest.fixture(params=[*LIBRARIES, Way("httpx", "trio")], ids=str)
def way(request: pytest.FixtureRequest) -> Way:
    """The transport and the mode of this test; see ways.py."""
    return cast("Way", request.param)


@pytest.fixture
def make_client(server: Flux0Server, way: Way) -> MakeClient:
    """Creates clients with the test's transport and mode, and with timeouts."""

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
    """The URL of a port without a server, so that each request fails."""
    return f"http://127.0.0.1:{reserved_port()}"


@pytest.fixture
def fresh_name() -> str:
    """A unique name for a wait or an event. The server mixes up events with the same id."""
    return uuid4().hex


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an async test in the mode of its way."""
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(test).parameters}
    run(cast("Way", pyfuncitem.funcargs["way"]).mode, lambda: test(**arguments))
    return True
