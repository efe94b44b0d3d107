"""The real server for the integration tests; see server.py and scripted_agent.py."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest

from integration.server import Flux0Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_VARIABLE = "FLUX0_TEST_SERVER_PYTHON"


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
def own_server(
    server_python: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Flux0Server]]:
    """Starts a server for this test alone, which may then do to it what it likes."""
    with contextlib.ExitStack() as servers:
        yield lambda: servers.enter_context(
            Flux0Server(server_python, tmp_path_factory.mktemp("own_server"))
        )
