"""Runs Redis servers on free ports of 127.0.0.1."""

# redis has incomplete types.
# pyright: reportOptionalSubscript=false, reportUnknownLambdaType=false, reportUnknownMemberType=false

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from attrs import define, field
from redis import Redis
from redis.exceptions import ConnectionError as NotConnected

# To test another version or Valkey, set the variable to its program.
PROGRAM: Final = os.environ.get("FLUX0_TEST_REDIS_SERVER", "redis-server")
NOT_INSTALLED: Final = f"{PROGRAM} is not installed: background turns in Redis are not tested"
_TIMEOUT_SECONDS: Final = 20.0
_SLOTS: Final = 16384


def is_installed() -> bool:
    """Return whether the program is installed."""
    return shutil.which(PROGRAM) is not None


@define
class RedisServer:
    """A Redis server without persistence: it starts with no data."""

    port: int
    folder: Path
    options: tuple[str, ...]
    _process: subprocess.Popen[bytes] | None = field(init=False, default=None)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> Redis:
        return Redis.from_url(self.url)

    def start(self) -> None:
        address = ("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder))
        files = ("--save", "", "--appendonly", "no")
        command = (PROGRAM, *address, *files, *self.options)
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        with self.client() as client:
            wait_until(lambda: self._is_ready(client))

    def stop(self) -> None:
        """End the server. Its data is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Pause the server: it responds to nothing, but its connections stay open."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue after `pause`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _is_ready(self, client: Redis) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"{PROGRAM} has ended"
        try:
            return bool(client.ping())
        except NotConnected:
            return False


@contextmanager
def redis_server(folder: Path, *options: str) -> Generator[RedisServer, None, None]:
    """Run a Redis server on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        server = RedisServer(free.getsockname()[1], folder, options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def redis_cluster(folder: Path) -> Generator[RedisServer, None, None]:
    """Run a cluster of three Redis servers; yield one of them."""
    with ExitStack() as stack:
        servers: list[RedisServer] = []
        for number in range(3):
            with socket.create_server(("127.0.0.1", 0)) as free:
                bus = str(free.getsockname()[1])
            files = ("--cluster-enabled", "yes", "--cluster-config-file", f"{number}.conf")
            running = redis_server(folder, *files, "--cluster-port", bus)
            servers.append(stack.enter_context(running))
            with servers[0].client() as first, servers[-1].client() as client:
                begin, end = (_SLOTS * each // 3 for each in (number, number + 1))
                client.execute_command("CLUSTER ADDSLOTSRANGE", begin, end - 1)
                first.execute_command("CLUSTER MEET", "127.0.0.1", servers[-1].port, bus)
        for server in servers:
            with server.client() as client:
                wait_until(lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        yield servers[0]


def wait_until(condition: Callable[[], bool]) -> None:
    """Call `condition` until it returns True. Use it only if no event reports the change."""
    end = time.monotonic() + _TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.01)
