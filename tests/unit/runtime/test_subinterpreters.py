"""Deadlines and background turns in a subinterpreter, which has no daemon threads."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import pytest

SETUP = f"import sys; sys.path[:] = {sys.path!r}\n"
BACKGROUND_TURN = """
from flux0 import BackgroundTurns, Flux0
from flux0.testing import FakeTransport

fake = FakeTransport("Hello")
with Flux0(transport=fake) as client:
    turn = BackgroundTurns().start(client.conversation(agent=fake.agent_id), "Hi")
    assert turn.wait().text == "Hello"
"""
DEADLINE = """
import socket
from flux0 import Flux0
from flux0.domain.errors import TransportTimeout

with socket.create_server(("127.0.0.1", 0)) as server:
    url = f"http://127.0.0.1:{server.getsockname()[1]}"
    with Flux0(server_url=url) as client:
        try:
            client.agents.list(timeout_ms=50)
        except TransportTimeout as error:
            assert "timeout_ms" in str(error) or "0.05" in str(error), error
        else:
            raise AssertionError
"""
ALARM = """
from threading import Event
from time import monotonic
from flux0.runtime.time import SystemTime

reached = Event()
SystemTime().alarm(monotonic() + 0.01, reached.set)
cancel = SystemTime().alarm(monotonic() + 3000, reached.set)
assert reached.wait(20)
cancel()
"""


@pytest.mark.skipif(sys.version_info < (3, 13), reason="Python has no module _interpreters")
# `destroy` must not wait for the expiry of ended turns, which is 30 s later.
@pytest.mark.timeout(25)
@pytest.mark.parametrize("program", [ALARM, BACKGROUND_TURN, DEADLINE])
def test_threads_of_flux0_run_in_a_subinterpreter(program: str) -> None:
    interpreters: Any = import_module("_interpreters")
    interpreter = interpreters.create()
    try:
        assert interpreters.exec(interpreter, SETUP + program) is None
    finally:
        interpreters.destroy(interpreter)
