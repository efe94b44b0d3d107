"""A child works if it was forked while another thread held a lock of the client."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import http_response
from support.forking import over_every_transport
from support.in_memory import SSE, chunk
from support.transports import TRANSPORTS, Way

AT_LOCKS = Path(__file__).parents[2] / "support/at_locks.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@over_every_transport
def test_child_works_if_it_was_forked_while_a_call_held_a_lock(way: Way) -> None:
    """The lock is never released in the child."""
    turn = http_response(chunk("a"), headers=SSE.items(), framing="chunked")
    name, _ = TRANSPORTS[way.transport]
    with ByteServer(turn) as server:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(AT_LOCKS), "fork", server.url, name],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.stderr == ""
    assert int(done.stdout) > 0
