"""Restarts of web servers, with the commands and the samples of `docs/how-to/web.md`.

In each restart, one turn ends while it is drained, and one turn is longer than all limits.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Final

import httpx
import pytest
from attrs import define, frozen

from flux0 import Flux0
from support.ports import reserved_port
from support.samples import ROOT, USECHAT, code_of
from support.web_workers import FakeServer, fake_server

WEB: Final = "docs/how-to/web.md"
TIMEOUT: Final = 25.0
SERVERS: Final = ("uvicorn", "gunicorn with UvicornWorker", "gunicorn with threads", "hypercorn")
# The limits of the page in seconds, and of this test.
LIMITS: Final = {
    "drain_seconds=30": "drain_seconds=4",
    '"timeout_graceful_shutdown": 20': '"timeout_graceful_shutdown": 1',
    "--timeout-graceful-shutdown 20": "--timeout-graceful-shutdown 1",
    "--graceful-timeout 60": "--graceful-timeout 9",
    "graceful_timeout = 60": "graceful_timeout = 9",
}
MAX_REQUESTS: Final = "--max-requests 4"


def with_limits(text: str) -> str:
    for limit, shorter in LIMITS.items():
        text = text.replace(limit, shorter)
    return text


def command_of(name: str, port: int, options: str) -> str:
    """Return the command in the row of the page's table, with further options."""
    (command,) = re.findall(rf"^\| {name} \| `(.+?)` \|", (ROOT / WEB).read_text("utf-8"), re.M)
    command = f"{with_limits(command)} --bind 127.0.0.1:{port} {options}"
    if name == "uvicorn":
        command = command.replace("--bind 127.0.0.1:", "--port ")
    if name == "uvicorn" and options:  # One worker gets all requests, and is not replaced.
        command = command.replace("--workers 2", "").replace("--max", "--limit-max")
    if name.startswith("gunicorn"):  # By default, its socket is in the home directory.
        command += " --no-control-socket"
    return command


def end_relays_on_sigterm() -> str:
    """Return the code of the function that the page names."""
    code = (USECHAT / "main.py").read_text("utf-8")
    (function,) = re.findall(r"^def end_relays_on_sigterm\(.*?(?=^\S)", code, re.DOTALL | re.M)
    return str(function)


def write_application(name: str, folder: Path) -> None:
    """Write the samples of the page, and the application `app:app`."""
    is_wsgi = name == "gunicorn with threads"
    if is_wsgi:
        app = "from support.deployed_app import wsgi as app, turns"
    else:
        (application,) = (code for code in code_of(WEB, "python") if "app = FastAPI(" in code)
        start = "\n        yield {"
        assert start in application
        application = application.replace(start, f"\n        end_relays_on_sigterm(turns){start}")
        app = with_limits(
            f"import signal, threading\nfrom types import FrameType\n{application}"
            f"{end_relays_on_sigterm()}from support.deployed_app import add_routes\nadd_routes(app)"
        )
    (folder / "app.py").write_text(app, "utf-8")
    for code in code_of(WEB, "py"):
        match = re.match(r"# (.+\.py)\n", code)
        # gunicorn reads gunicorn.conf.py also without an option.
        if match and (is_wsgi or match[1] != "gunicorn.conf.py"):
            (folder / match[1]).write_text(with_limits(code), "utf-8")


@frozen
class Relay:
    """One relay that a thread reads."""

    session_id: str
    gate: str
    process: str
    _reading: Future[bytes]

    def rest(self) -> bytes:
        return self._reading.result(TIMEOUT)


def is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    return True


@define
class Site:
    """A web server that runs an application."""

    name: str
    server: FakeServer
    browser: httpx.Client
    process: subprocess.Popen[bytes]
    log: Path
    threads: ThreadPoolExecutor
    number: int = 0

    def worker(self) -> str:
        """Return the id of the process that responds to a request; empty if none responds."""
        try:
            return self.browser.get("/").text
        except httpx.TransportError:
            return ""

    def workers(self) -> set[str]:
        """Return the ids of the processes that have started, from the log of uvicorn."""
        return set(re.findall(r"Started server process \[(\d+)\]", self.log.read_text()))

    def wait_for_worker(self, old: set[str]) -> None:
        """Wait until the processes `old` have exited, and another process responds.

        An old worker accepts requests until it has exited, and ends their relays at once.
        """
        while any(map(is_running, old)) or not self.worker():
            assert self.process.poll() is None, self.log.read_text()
            Event().wait(0.05)

    def relay(self) -> Relay:
        """Start a turn that waits at a gate, and return its relay after its first event."""
        self.number += 1
        gate = f"gate {self.number}"
        with Flux0(self.server.url) as client:
            session_id = client.sessions.create(agent_id=self.server.agent_id).id
        script = json.dumps([{"text": "One"}, {"wait": gate}, {"text": "Two"}])
        begun = Future[str]()

        def read() -> bytes:
            data = b""
            with self.browser.stream("POST", f"/{session_id}", content=script) as response:
                try:
                    for piece in response.iter_raw():
                        data += piece
                        if b"One" in data and not begun.done():
                            begun.set_result(response.headers["process"])
                except httpx.TransportError:
                    return data
            return data

        reading = self.threads.submit(read)
        return Relay(session_id, gate, begun.result(TIMEOUT), reading)

    def stored_texts(self, relay: Relay) -> list[str]:
        with Flux0(self.server.url) as client:
            events = client.sessions.list_events(session_id=relay.session_id, source="ai_agent")
            return [event.text for event in events if event.text]

    def endings(self) -> list[str]:
        """Return how the turns have ended, from the log."""
        return re.findall(r"turn ended: ending=(\w+)", self.log.read_text())

    def signal(self, number: signal.Signals) -> None:
        if self.name == "hypercorn" and number == signal.SIGTERM:
            os.killpg(self.process.pid, number)  # It does not forward SIGTERM to its workers.
        else:
            self.process.send_signal(number)


@contextmanager
def site(name: str, folder: Path, options: str = "") -> Generator[Site, None, None]:
    """Run the command of a server, with further options."""
    write_application(name, folder)
    port = reserved_port()
    paths = [str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), *paths])
    log = folder / "log"
    with fake_server() as server, log.open("wb") as output, ThreadPoolExecutor() as threads:
        environment["FLUX0_SERVER_URL"] = server.url
        process = subprocess.Popen(
            [sys.executable, "-m", *command_of(name, port, options).split()],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        no_pool = httpx.Limits(max_keepalive_connections=0)
        browser = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT, limits=no_pool)
        running = Site(name, server, browser, process, log, threads)
        try:
            running.wait_for_worker(set())
            yield running
        except BaseException:
            print(log.read_text())
            raise
        else:
            problems = "WORKER TIMEOUT", "SIGKILL", "SIGABRT"
            assert not any(problem in log.read_text() for problem in problems), log.read_text()
        finally:
            for number in range(1, running.number + 1):
                server.release(f"gate {number}")
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.parametrize("name", SERVERS)
def test_signals_end_relays_and_drain_turns(name: str, tmp_path: Path) -> None:
    with site(name, tmp_path) as running:
        restart(running, signal.SIGHUP)
        restart(running, signal.SIGTERM)


@pytest.mark.parametrize("name", SERVERS)
def test_turns_are_drained_before_a_worker_exits_after_max_requests(
    name: str, tmp_path: Path
) -> None:
    with site(name, tmp_path, MAX_REQUESTS) as running:
        restart(running, None)


def restart(running: Site, number: signal.Signals | None) -> None:
    ended = len(running.endings())
    short, long = running.relay(), running.relay()
    old = {short.process, long.process, *running.workers()}
    if number is not None:
        running.signal(number)
    # Only SIGTERM ends the relays of hypercorn.
    waits = running.name == "hypercorn" and number != signal.SIGTERM
    if number is not None and not waits:
        assert b"event: reconnect\nretry: 1000\n" in short.rest()
        running.server.release(short.gate)  # uvicorn restarts its workers one after another.
        assert b"event: reconnect\nretry: 1000\n" in long.rest()
    running.server.release(short.gate)
    if waits:
        running.server.release(long.gate)
        assert all(b"Two" in relay.rest() for relay in (short, long))
    if number is None:
        while running.worker() == long.process:
            pass
    while len(running.endings()) < ended + 2:
        Event().wait(0.05)
    assert set(running.endings()[ended:]) == {"confirmed", "confirmed" if waits else "closed"}
    assert running.stored_texts(short) == ["One", "Two"]
    assert running.stored_texts(long) == (["One", "Two"] if waits else ["One"])
    if number == signal.SIGTERM:
        assert running.process.wait(TIMEOUT) in {0, -signal.SIGTERM}
    elif number == signal.SIGHUP:
        running.wait_for_worker(old)
