"""Calls import no modules and leave no threads, so that the process can fork at any time."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import WaitForRelease, http_response
from support.forking import TURN, over_every_transport
from support.garbage_collection import needs_gil
from support.in_memory import JSON, SSE, chunk
from support.secured import Secured
from support.sending import AGENTS
from support.socks_proxy import SocksProxy
from support.transports import TRANSPORTS, Way

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

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


@needs_gil  # Without the GIL, finalizers of urllib3 print errors at exit.
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
