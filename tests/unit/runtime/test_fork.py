"""A client that was used before `os.fork` works in the child and in the parent.

The child never uses the parent's connections.
"""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from attrs import define

from flux0 import EventStream, Flux0, HttpxTransport
from flux0.domain.errors import StreamInterrupted, StreamInUse
from flux0.testing.contract.byte_server import DEFAULT_TIMEOUT, ByteServer
from flux0.testing.contract.harness import get
from flux0.testing.contract.responses import ServerSteps
from support.forking import NAMES, TURN, in_child, over_every_transport
from support.secured import Secured
from support.sending import AGENTS, OK, fetch_sync
from support.transports import Way

pytestmark = pytest.mark.usefixtures("little_garbage")


@pytest.fixture(autouse=True)
def long_idle_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises the idle time for reuse, because a fork may take more than 4 s on a slow machine."""
    for module in ("httpx.clients", "urllib3.connection"):
        monkeypatch.setattr(f"flux0.adapters.{module}.MAX_IDLE_SECONDS", 60.0)


@define
class Parent:
    """A process with an unfinished stream and a pooled connection."""

    server: ByteServer
    flux0: Flux0
    stream: EventStream

    def check_connections_work(self) -> None:
        """Check that the pooled connection is reused, and that the stream continues."""
        before = self.server.connections
        assert list(self.flux0.agents.list()) == []
        assert self.server.connections == before
        self.server.release()
        assert len(list(self.stream)) == 2
        assert self.stream.finished


@contextmanager
def parent(
    way: Way, *then: ServerSteps, tls: ssl.SSLContext | None = None
) -> Generator[Parent, None, None]:
    with (
        ByteServer(TURN, AGENTS, *then, AGENTS, tls=tls) as server,
        Flux0(server.url, transport=way.make_transport()) as flux0,
    ):
        stream = begin(flux0)
        next(stream)
        flux0.agents.list()
        assert server.connections == 2
        yield Parent(server, flux0, stream)


def begin(flux0: Flux0) -> EventStream:
    return flux0.sessions.create_event(session_id="s", content="Hi")


@over_every_transport
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
def test_child_and_grandchild_open_their_own_connections(
    way: Way, secured: Secured, monkeypatch: pytest.MonkeyPatch, *, secure: bool
) -> None:
    """If the child sent the closing message of TLS, the parent's connection would be closed."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", secured.ca_file)
    with parent(way, tls=secured.server if secure else None) as here:

        def use_and_close() -> None:
            here.flux0.agents.list()
            in_child(here.flux0.agents.list)
            here.flux0.agents.list()
            here.stream.close()
            here.flux0.close()

        in_child(use_and_close)
        assert here.server.connections == 4
        kept = [here.flux0, here.stream]
        in_child(kept.clear)
        here.check_connections_work()


@over_every_transport
def test_child_cannot_read_the_inherited_stream_but_can_open_another(way: Way) -> None:
    """Before the child sends a message, it closes the session's inherited stream."""
    with parent(way, TURN, TURN) as here:

        def read_and_begin() -> None:
            with pytest.raises(StreamInterrupted, match="forked"):
                next(here.stream)
            begin(here.flux0).close()

        in_child(read_and_begin)
        in_child(lambda: begin(here.flux0).close())
        here.check_connections_work()


@over_every_transport
def test_child_works_if_it_was_forked_while_a_thread_read_the_stream(way: Way) -> None:
    """In the child, the locks that the thread holds are never released."""
    with ThreadPoolExecutor(1) as threads, parent(way) as here:
        thread = threads.submit(threading.get_ident).result()
        reader = threads.submit(list, here.stream)
        # Wait until the thread waits for data from the socket.
        while _function(thread) not in ("readinto", "_read", "_receive"):
            os.sched_yield()

        def use_and_close() -> None:
            here.flux0.agents.list()
            # In the child, the stream is still marked as being read by the parent's thread.
            with pytest.raises(StreamInUse):
                next(here.stream)
            here.stream.close()
            here.flux0.close()

        in_child(use_and_close)
        here.server.release()
        assert len(reader.result()) == 2


def test_child_that_closes_a_client_of_the_user_keeps_the_connections_of_the_parent() -> None:
    with ByteServer(OK) as server, httpx.Client() as client:
        transport = HttpxTransport(client)
        assert fetch_sync(transport, get(server.url)) == b"ok"
        in_child(client.close)
        assert fetch_sync(transport, get(server.url)) == b"ok"
        assert server.connections == 1


def _function(thread: int) -> str:
    """Return the name of a thread's running function."""
    frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage] - documented, for debugging
    return frames[thread].f_code.co_name


def test_fork_waits_until_a_client_is_created(monkeypatch: pytest.MonkeyPatch) -> None:
    """While certificates are read, OpenSSL holds a lock, which a child would inherit as locked."""
    started, created = threading.Event(), threading.Event()

    class Slow(httpx.HTTPTransport):
        def __init__(self, **options: Any) -> None:
            started.set()
            created.wait(0.2)  # A fork that does not wait would happen in this time.
            created.set()
            super().__init__(**options)

    def check_client_was_created() -> None:
        assert created.is_set()

    monkeypatch.setattr(httpx, "HTTPTransport", Slow)
    with ByteServer(AGENTS) as server, Flux0(server.url) as flux0, ThreadPoolExecutor(1) as threads:
        call = threads.submit(flux0.agents.list)
        started.wait()
        in_child(check_client_was_created)
        assert list(call.result()) == []


SCRIPT = """
import os, sys
import flux0
from flux0.adapters.httpx import clients as httpx_clients
from flux0.adapters.urllib3 import connection

httpx_clients.MAX_IDLE_SECONDS = connection.MAX_IDLE_SECONDS = 60.0
url, *transports = sys.argv[1:]
clients = [flux0.Flux0(url, transport=getattr(flux0, name)()) for name in transports]
streams = [client.sessions.create_event(session_id="s", content="Hi") for client in clients]
for client, stream in zip(clients, streams):
    next(stream)
    client.agents.list()
child = os.fork()
if child == 0:
    for client in clients:
        client.agents.list()
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
for client in clients:
    client.agents.list()
print("the child has exited", flush=True)
print(*[len(list(stream)) for stream in streams])
"""


def test_child_exits_normally() -> None:
    with ByteServer(*[TURN] * len(NAMES), AGENTS) as server:
        with subprocess.Popen(
            [sys.executable, "-c", SCRIPT, server.url, *NAMES],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as script:
            assert script.stdout is not None
            first_line = script.stdout.readline()
            server.release()
            rest, errors = script.communicate(timeout=DEFAULT_TIMEOUT)

        assert errors == ""
        assert (first_line, rest) == ("the child has exited\n", "2 2 2\n")
        assert server.connections == 3 * len(NAMES)
        server.wait_until_closed()
