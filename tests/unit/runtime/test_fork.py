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
from pathlib import Path
from typing import Any

import httpx
import pytest
from attrs import define

from flux0 import EventStream, Flux0, HttpxTransport
from flux0.domain.errors import StreamInterrupted, StreamInUse
from flux0.testing.contract.byte_server import DEFAULT_TIMEOUT, ByteServer
from flux0.testing.contract.harness import get
from flux0.testing.contract.responses import ServerSteps, WaitForRelease, http_response
from support.forking import in_child
from support.in_memory import JSON, SSE, chunk, status
from support.secured import Secured
from support.sending import AGENTS, OK, fetch_sync
from support.socks_proxy import SocksProxy
from support.transports import SYNC_WAYS, TRANSPORTS, Way

AT_LOCKS = Path(__file__).parents[2] / "support/at_locks.py"

pytestmark = pytest.mark.usefixtures("little_garbage")

# httpx2 shares this code with httpx.
WAYS = tuple(way for way in SYNC_WAYS if way.transport != "httpx2")
NAMES = tuple(TRANSPORTS[way.transport][0] for way in WAYS)
over_every_transport = pytest.mark.parametrize("way", WAYS, ids=str)

TURN = http_response(
    status("typing"),
    WaitForRelease(),
    chunk("a"),
    chunk("b"),
    headers=SSE.items(),
    framing="chunked",
)


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
        while _function(thread) not in ("read", "readinto", "_read"):
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


FINDER = """
import os, sys
from contextlib import suppress
import flux0
from flux0.runtime.processes import fork_lock


class Finder:
    def find_spec(self, name, *_):
        print(name, "while forks wait" if fork_lock._is_owned() else "")


def make_client(url):
    retries = flux0.RetryConfig(backoff=flux0.BackoffStrategy(0, 0))
    client = flux0.Flux0(url, transport=getattr(flux0, sys.argv[1])(), retry_config=retries)
    sys.meta_path.insert(0, Finder())
    return client
"""
SYNC_CALLS = """
def make_calls(url):
    client = make_client(url)
    client.agents.list(extra_query={"new": "1"}, server_url=url.replace("//", "//name:password@"))
    for id_ in range(3):
        with suppress(flux0.Flux0Error):
            client.agents.retrieve(agent_id=f"agent{id_}")

    def begin():
        return client.sessions.create_event(session_id="s", content="Hi")

    with begin() as stream:
        list(stream)
        stream.messages
    b"".join(begin().relay())
    b"".join(begin().relay())
    begin().close()
    client.close()
    del sys.meta_path[0]


plain, tls, proxy = sys.argv[2:]
make_calls(plain)
print("---")
make_calls(tls)
os.environ["ALL_PROXY"] = proxy
make_calls(plain)
"""
ASYNC_CALLS = """
async def make_calls(url):
    client = make_client(url)
    await client.agents.list_async()
    await client.close_async()
    del sys.meta_path[0]


import asyncio
asyncio.run(make_calls(sys.argv[2]))
"""


def imports_of(calls: str, transport: str, *urls: str) -> list[str]:
    """Return the modules that the calls import."""
    done = subprocess.run(
        [sys.executable, "-c", FINDER + calls, TRANSPORTS[transport][0], *urls],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


@over_every_transport
def test_calls_import_no_modules(
    way: Way, secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that is forked during an import would inherit the import lock as locked.

    The first call over TLS or through a SOCKS proxy may import modules, and forks wait meanwhile.
    """
    sse, json = SSE.items(), JSON.items()
    date = [("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")]
    responses = (
        AGENTS,
        http_response(b"busy", headers=date, status="503 Service Unavailable"),
        http_response(b"", status="418 I'm a teapot"),
        http_response(b'{"detail": [{"loc": ["a"], "msg": "b"}]}', headers=json, status="422 No"),
        http_response(b'{"id": 7}', headers=json),
        http_response(chunk("a"), headers=sse, framing="chunked"),
        http_response(chunk("a"), headers=sse, framing="chunked"),
        http_response(b"event: status\ndata: 1\n\n", headers=sse, framing="chunked"),
        http_response(chunk("a"), WaitForRelease(), headers=sse, framing="chunked"),
    )
    with (
        ByteServer(*responses, *responses) as plain,
        ByteServer(*responses, tls=secured.server) as tls,
        SocksProxy() as proxy,
    ):
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", secured.ca_file)
        urls = plain.url, tls.url, f"socks5h://{proxy.address}"
        imports = imports_of(SYNC_CALLS, way.transport, *urls)
        requests = len(plain.requests), len(tls.requests)
    assert requests == (2 * len(responses), len(responses))
    assert imports[0] == "---"
    assert all(line.endswith("while forks wait") for line in imports[1:])


@pytest.mark.parametrize("transport", ["aiohttp", "httpx"])
def test_forks_wait_while_the_first_async_call_imports_modules(transport: str) -> None:
    with ByteServer(AGENTS) as server:
        imports = imports_of(ASYNC_CALLS, transport, server.url)
    assert imports
    assert all(line.endswith("while forks wait") for line in imports)


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


# --- threads


@over_every_transport
def test_calls_without_timeout_ms_leave_no_thread_so_a_fork_emits_no_warning(way: Way) -> None:
    """Before Python 3.15, a warning that is an error is ignored, so count the threads, too."""
    name, _ = TRANSPORTS[way.transport]
    code = (
        "import os, sys, threading, warnings\n"
        f"from flux0 import Flux0, {name}\n"
        f"client = Flux0(sys.argv[1], transport={name}())\n"
        "client.agents.list()\n"
        "stream = client.conversation(session='s').send('Hi')\n"
        "next(stream)\n"
        "assert threading.enumerate() == [threading.main_thread()]\n"
        "if os.path.exists('/proc/self/task'):\n"
        "    assert len(os.listdir('/proc/self/task')) == 1\n"
        "warnings.simplefilter('error', DeprecationWarning)\n"
        "if (child := os.fork()) == 0:\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
    )
    with ByteServer(AGENTS, TURN) as server:
        command = [sys.executable, "-c", code, server.url]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
