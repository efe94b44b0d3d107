"""A process in which gevent has replaced sockets, locks, queues and threads."""

from __future__ import annotations

import subprocess
import sys

import pytest

from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import WaitForRelease, http_response
from support.in_memory import SSE, chunk
from support.transports import SYNC_WAYS, TRANSPORTS

OPEN_TURN = http_response(chunk("a"), WaitForRelease(), headers=SSE.items(), framing="chunked")
SCRIPT = """
from gevent import monkey, spawn
monkey.patch_all()

import sys, threading
import requests, urllib3
import flux0

url, name = sys.argv[1:]
transport = getattr(flux0, name, None) or {
    "session": lambda: flux0.RequestsTransport(requests.Session()),
    "manager": lambda: flux0.Urllib3Transport(urllib3.PoolManager(maxsize=5, block=True)),
}[name]
client = flux0.Flux0(url, transport=transport())
all_have_begun = threading.Barrier(5)


def begin(number):
    return client.sessions.create_event(session_id=f"session{number}", content="Hi")


def run_turn(number):
    with begin(number) as stream:
        next(stream)
        all_have_begun.wait()
    pieces = begin(number).relay()
    next(pieces)
    all_have_begun.wait()
    client.close()
    return list(pieces)[-1]


greenlets = [spawn(run_turn, number) for number in range(5)]
for greenlet in greenlets:
    greenlet.join()
    print(b"ClientClosed" in greenlet.value)
"""


@pytest.mark.parametrize(
    "transport", ["session", "manager", *(TRANSPORTS[way.transport][0] for way in SYNC_WAYS)]
)
def test_turns_run_at_the_same_time_and_closing_the_client_ends_them(transport: str) -> None:
    with ByteServer(OPEN_TURN) as server:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, server.url, transport],
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.stdout, done.stderr) == ("True\n" * 5, "")
