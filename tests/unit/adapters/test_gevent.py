"""A process in which gevent has replaced sockets, locks, queues and threads."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import WaitForRelease, http_response
from support.in_memory import SSE, chunk
from support.transports import SYNC_WAYS, TRANSPORTS

pytestmark = pytest.mark.skipif(
    find_spec("gevent") is None, reason="gevent (cffi) has no build for this Python"
)

OPEN_TURN = http_response(chunk("a"), WaitForRelease(), headers=SSE.items(), framing="chunked")
SCRIPT = """
from gevent import joinall, monkey, spawn
monkey.patch_all()

import sys, threading
import requests, urllib3
import flux0

url, *names = sys.argv[1:]
transports = {
    "session": lambda: flux0.RequestsTransport(requests.Session()),
    "manager": lambda: flux0.Urllib3Transport(urllib3.PoolManager(maxsize=5, block=True)),
    **{name: getattr(flux0, name) for name in names},
}


def begin(client, number):
    return client.sessions.create_event(session_id=f"session{number}", content="Hi")


def run_turn(client, number, all_have_begun):
    with begin(client, number) as stream:
        next(stream)
        all_have_begun.wait()
    pieces = begin(client, number).relay()
    next(pieces)
    all_have_begun.wait()
    client.close()
    return b"ClientClosed" in list(pieces)[-1]


for name, make_transport in transports.items():
    client = flux0.Flux0(url, transport=make_transport())
    barrier = threading.Barrier(5)
    greenlets = [spawn(run_turn, client, number, barrier) for number in range(5)]
    joinall(greenlets)
    print(name, [greenlet.value for greenlet in greenlets])
"""


def test_turns_run_at_the_same_time_and_closing_the_client_ends_them() -> None:
    names = [TRANSPORTS[way.transport][0] for way in SYNC_WAYS]
    with ByteServer(OPEN_TURN) as server:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, server.url, *names],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.stderr == ""
    expected = [f"{name} {[True] * 5}" for name in ("session", "manager", *names)]
    assert done.stdout.splitlines() == expected
