"""Runs a Redis server on a free port of 127.0.0.1."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager

from attrs import define, field
from redis import Redis
from redis.exceptions import ConnectionError as NotConnected

_TIMEOUT_SECONDS = 20.0
PROGRAM = "redis-server"


def is_installed() -> bool:
    """Return whether `redis-server` is installed."""
    return shutil.which(PROGRAM) is not None


@define
class RedisServer:
    """A Redis server without persistence: it starts with no data."""

    port: int
    options: tuple[str, ...] = ()
    _process: subprocess.Popen[bytes] | None = field(init=False, default=None)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> Redis:
        return Redis.from_url(self.url)  # pyright: ignore[reportUnknownMemberType] - of redis

    def start(self) -> None:
        files = ["--save", "", "--appendonly", "no", "--dir", "/tmp"]  # noqa: S108 - writes nothing
        address = ["--bind", "127.0.0.1", "--port", str(self.port)]
        self._process = subprocess.Popen(
            [PROGRAM, *address, *files, *self.options], stdout=subprocess.DEVNULL
        )
        self._wait_until_ready()

    def stop(self) -> None:
        """End the server. Its data is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Stop the server. It responds to nothing, and its connections stay open."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue after `pause`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + _TIMEOUT_SECONDS
        with self.client() as client:
            while True:
                try:
                    client.ping()  # pyright: ignore[reportUnknownMemberType] - of redis
                except NotConnected:
                    assert self._process is not None
                    assert self._process.poll() is None, "redis-server has ended"
                    assert time.monotonic() < end, "redis-server does not respond"
                    time.sleep(0.01)  # No event reports that the server is ready.
                else:
                    return


@contextmanager
def redis_server(*options: str) -> Generator[RedisServer, None, None]:
    """Run a Redis server on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        server = RedisServer(free.getsockname()[1], options)
    server.start()
    try:
        yield server
    finally:
        server.stop()
