"""Web workers with background turns: uvicorn for async code, gunicorn for sync code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, Literal

import httpx
from attrs import define, frozen

from flux0 import Flux0
from flux0.testing import Gate
from support.fake_over_http import FakeOverHTTP
from support.fake_scripts import scripted_fake
from support.redis_server import RedisServer
from support.server import Flux0Server

Kind = Literal["uvicorn", "gunicorn"]

_COMMANDS: Final[dict[Kind, str]] = {
    "uvicorn": "uvicorn support.turn_worker:asgi --port 0 --timeout-graceful-shutdown 1",
    # The master imports the application before it forks, so the worker inherits the objects.
    "gunicorn": "gunicorn support.turn_worker:wsgi --bind 127.0.0.1:0 --threads 8 --preload"
    " --config python:support.gunicorn_settings",
}
_TESTS: Final = Path(__file__).parents[1]
_DAY: Final = 86_400.0
_TIMEOUT: Final = 30.0
_HEARTBEAT: Final = b": heartbeat\n"


@frozen
class WebWorker:
    """A web server with one worker process."""

    url: str
    _process: subprocess.Popen[str]

    def begin_exit(self) -> None:
        """Ask the server to exit, and wait until it has closed its connections."""
        self._process.terminate()
        assert self._process.stderr is not None
        begins = r"Worker exiting|Waiting for application shutdown"
        assert any(re.search(begins, line) for line in self._process.stderr)

    def exits_within(self, seconds: float) -> bool:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


@contextmanager
def web_worker(
    kind: Kind, server_url: str, redis_url: str, *, lease_seconds: float, clock_offset: float
) -> Generator[WebWorker, None, None]:
    """Run one web worker on a free port."""
    environment = {
        **{name: value for name, value in os.environ.items() if "COVERAGE" not in name},
        "PYTHONPATH": str(_TESTS),
        "FLUX0_SERVER_URL": server_url,
        "FLUX0_REDIS_URL": redis_url,
        "LEASE_SECONDS": str(lease_seconds),
        "CLOCK_OFFSET": str(clock_offset),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", *_COMMANDS[kind].split()],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,  # It contains the log of requests.
        text=True,
    )
    assert process.stderr is not None
    log = ""
    try:
        for line in process.stderr:
            log += line
            if match := re.search(r"http://127\.0\.0\.1:\d+", line):
                yield WebWorker(match[0], process)
                break
        else:
            raise AssertionError(log)
    finally:
        process.terminate()
        try:
            _, rest = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert "Traceback" not in rest, rest


@define
class FakeServer:
    """A fake on a port, with the methods of `Flux0Server`."""

    _fake: FakeOverHTTP
    _gates: dict[str, Gate]

    @property
    def url(self) -> str:
        return self._fake.url

    @property
    def agent_id(self) -> str:
        return self._fake.fake.agent_id

    def release(self, name: str) -> None:
        self._gates[name].open()

    def wait_cancelled(self, _: str) -> None:
        assert self._fake.no_open_streams.wait(_TIMEOUT)


@contextmanager
def fake_server(timeout: float = _TIMEOUT) -> Generator[FakeServer, None, None]:
    """Run a fake whose gates open after `release`, and fail after the timeout in seconds."""
    gates = defaultdict[str, Gate](lambda: Gate(timeout=timeout))
    with FakeOverHTTP(scripted_fake("scripted-1", gates)) as fake:
        yield FakeServer(fake, gates)


Server = FakeServer | Flux0Server


@frozen
class Site:
    """The web workers of one site, and the flux0 server and the Redis that they use."""

    kind: Kind
    server: Server
    redis: RedisServer
    workers: list[httpx.Client]
    processes: list[WebWorker]

    def new_session(self) -> str:
        with Flux0(self.server.url) as client:
            return client.sessions.create(agent_id=self.server.agent_id).id

    def stored_texts(self, session_id: str) -> list[str]:
        with Flux0(self.server.url) as client:
            stored = client.sessions.list_events(session_id=session_id, source="ai_agent")
            return [event.text for event in stored if event.text]


@contextmanager
def site(
    kind: Kind, server: Server, redis: RedisServer, count: int, lease_seconds: float
) -> Generator[Site, None, None]:
    with ExitStack() as stack:
        workers: list[httpx.Client] = []
        processes: list[WebWorker] = []
        for number in range(count):
            worker = web_worker(
                kind,
                server.url,
                redis.url,
                lease_seconds=lease_seconds,
                clock_offset=_DAY * (number % 2),
            )
            processes.append(stack.enter_context(worker))
            browser = httpx.Client(base_url=processes[-1].url, timeout=_TIMEOUT)
            workers.append(stack.enter_context(browser))
        yield Site(kind, server, redis, workers, processes)


def events_of(response: httpx.Response) -> Iterator[bytes]:
    """Yield the events of a relay as bytes, without heartbeats."""
    received = b""
    for piece in response.iter_raw():
        *events, received = (received + piece).replace(_HEARTBEAT, b"").split(b"\n\n")
        yield from (event + b"\n\n" for event in events)
    assert received == b""
