"""A client that was used before `os.fork` works in the child, and goes on in the parent.

Nothing that the child does with it reaches the parent's connections.
"""

from __future__ import annotations

import gc
import os
import signal
import ssl
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import coverage
import httpx
import pytest
from attrs import define

from flux0 import EventStream, Flux0
from flux0.client.stream_state import StreamInUse
from flux0.domain.errors import StreamInterrupted
from flux0.testing.contract.byte_server import PATIENCE, ByteServer
from flux0.testing.contract.responses import Answer, Hold, answer
from support.in_memory import JSON, SSE, chunk, status
from support.secured import Secured
from support.sending import AGENTS
from support.transports import BLOCKING, TRANSPORTS, Way

# Python says so of every fork beside threads, and the server of these tests has some.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    pytest.mark.usefixtures("little_garbage"),
]

# What httpx2 does here is what httpx does.
over_every_transport = pytest.mark.parametrize(
    "way", [way for way in BLOCKING if way.transport != "httpx2"], ids=str
)

TURN = answer(
    status("typing"), Hold(), chunk("a"), chunk("b"), headers=SSE.items(), framing="chunked"
)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use connections again that rested: a fork takes more than four seconds on a slow machine."""
    for module in ("httpx.own_clients", "urllib3.connection"):
        monkeypatch.setattr(f"flux0.adapters.{module}.MAX_IDLE_SECONDS", 60.0)


@define
class Parent:
    """A process with a stream under way and a connection in the pool."""

    server: ByteServer
    flux0: Flux0
    stream: EventStream

    def is_undisturbed(self) -> None:
        """Check that the pool's connection is used again, and that the stream goes on."""
        before = self.server.connections
        assert list(self.flux0.agents.list()) == []
        assert self.server.connections == before
        self.server.release()
        assert len(list(self.stream)) == 2
        assert self.stream.finished


@contextmanager
def parent(
    way: Way, *then: Answer, tls: ssl.SSLContext | None = None
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


def in_child(act: Callable[[], object]) -> None:
    """Call `act` in a forked child, and check that it neither raises nor hangs."""
    child = os.fork()
    if child == 0:
        _end_after(act)
    _, result = os.waitpid(child, 0)
    assert result == 0, "the child failed, or was ended because it hung"


def _end_after(act: Callable[[], object]) -> None:
    code = 1
    try:
        signal.alarm(int(PATIENCE))
        act()
        gc.collect()
        code = 0
    except BaseException:  # noqa: BLE001 - nothing may go on as the parent's test
        traceback.print_exc()
    finally:
        measured = coverage.Coverage.current()
        if measured is not None:
            measured.save()
        os._exit(code)


@over_every_transport
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
def test_a_child_has_connections_of_its_own_and_so_has_its_child(
    way: Way, secured: Secured, monkeypatch: pytest.MonkeyPatch, *, secure: bool
) -> None:
    """Closing TLS would say so to the other side, which ends it."""
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
        here.is_undisturbed()


@over_every_transport
def test_a_child_cannot_read_its_parents_stream_and_begins_another(way: Way) -> None:
    """Which closes the one that is open."""
    with parent(way, TURN, TURN) as here:

        def read_and_begin() -> None:
            with pytest.raises(StreamInterrupted, match="forked"):
                next(here.stream)
            begin(here.flux0).close()

        in_child(read_and_begin)
        in_child(lambda: begin(here.flux0).close())
        here.is_undisturbed()


@over_every_transport
def test_a_thread_reads_while_the_process_forks(way: Way) -> None:
    """It holds the locks of the stream, which nobody releases in the child."""
    with ThreadPoolExecutor(1) as threads, parent(way) as here:
        thread = threads.submit(threading.get_ident).result()
        reader = threads.submit(list, here.stream)
        while _function(thread) not in ("read", "readinto"):  # Of a socket.
            os.sched_yield()

        def use_and_close() -> None:
            here.flux0.agents.list()
            with pytest.raises(StreamInUse):  # As far as the child knows.
                next(here.stream)
            here.stream.close()
            here.flux0.close()

        in_child(use_and_close)
        here.server.release()
        assert len(reader.result()) == 2


def _function(thread: int) -> str:
    """Return the name of the function that a thread is in."""
    frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage] - documented, for debugging
    return frames[thread].f_code.co_name


def test_a_fork_waits_for_a_client_that_is_being_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL holds a lock of its own while it reads certificates, and so would the child."""
    begun, made = threading.Event(), threading.Event()

    class Slow(httpx.HTTPTransport):
        def __init__(self, **options: Any) -> None:
            begun.set()
            made.wait(0.2)  # A fork that does not wait comes meanwhile.
            made.set()
            super().__init__(**options)

    def find_it_made() -> None:
        assert made.is_set()

    monkeypatch.setattr(httpx, "HTTPTransport", Slow)
    with ByteServer(AGENTS) as server, Flux0(server.url) as flux0, ThreadPoolExecutor(1) as threads:
        call = threads.submit(flux0.agents.list)
        begun.wait()
        in_child(find_it_made)
        assert list(call.result()) == []


SCRIPT = """
import os, sys
import flux0

client = flux0.Flux0(sys.argv[1], transport=getattr(flux0, sys.argv[2])())
stream = client.sessions.create_event(session_id="s", content="Hi")
next(stream)
client.agents.list()
child = os.fork()
if child == 0:
    client.agents.list()
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
client.agents.list()
print("the child is gone", flush=True)
print(len(list(stream)))
"""


@over_every_transport
def test_a_child_ends_as_any_python_does(way: Way) -> None:
    with ByteServer(TURN, AGENTS) as server:
        with subprocess.Popen(
            [sys.executable, "-c", SCRIPT, server.url, TRANSPORTS[way.transport][0]],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as script:
            assert script.stdout is not None
            said = script.stdout.readline()
            server.release()
            rest, complaints = script.communicate(timeout=PATIENCE)

        assert complaints == ""
        assert (said, rest) == ("the child is gone\n", "2\n")
        assert server.connections == 3
        server.wait_until_gone()


IMPORTS = """
import sys
import flux0

client = flux0.Flux0(sys.argv[1], transport=getattr(flux0, sys.argv[2])())
before = set(sys.modules)
client.agents.list()
try:
    client.agents.list()
except flux0.APIError:
    pass
with client.sessions.create_event(session_id="s", content="Hi") as stream:
    list(stream)
    stream.messages
client.close()
print(sorted(set(sys.modules) - before))
"""


@over_every_transport
def test_a_call_imports_nothing(way: Way) -> None:
    """An import takes a lock, which nobody would release in a child forked at that moment."""
    turn = answer(chunk("a"), headers=SSE.items(), framing="chunked")
    missing = answer(b'{"detail": "no"}', headers=JSON.items(), status="404 Not Found")
    with ByteServer(AGENTS, missing, turn) as server:
        done = subprocess.run(
            [sys.executable, "-c", IMPORTS, server.url, TRANSPORTS[way.transport][0]],
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.stdout, done.stderr) == ("[]\n", "")
