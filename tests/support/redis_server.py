"""Runs Redis servers on free ports of 127.0.0.1."""

# redis has incomplete types.
# pyright: reportOptionalSubscript=false, reportUnknownLambdaType=false, reportUnknownMemberType=false

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from attrs import define, field
from redis import Redis
from redis.exceptions import ConnectionError as NotConnected
from redis.sentinel import Sentinel

from support.ports import reserved_port
from support.programs import REDIS, REDIS_WITH_TLS, find, skip_without
from support.secured import NO_TRUSTME

_TIMEOUT_SECONDS: Final = 20.0
_SLOTS: Final = 16384


@define
class RedisServer:
    """A Redis server without persistence: it starts with no data."""

    port: int
    folder: Path
    options: tuple[str, ...]
    program: str
    _process: subprocess.Popen[bytes] | None = field(init=False, default=None)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> Redis:
        return Redis.from_url(self.url)

    def start(self) -> None:
        address = ("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder))
        files = ("--save", "", "--appendonly", "no")
        command = (self.program, *self.options, *address, *files)
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

    def check_expiry(self) -> None:
        """Check that each key expires, sooner or later. Does nothing if the server was stopped."""
        if self._process is not None:
            with self.client() as client:
                databases: dict[str, Any] = client.info("keyspace")
            for each in databases.values():
                assert each["keys"] == each["expires"], "keys do not expire"

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _is_ready(self, client: Redis) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"{self.program} has ended"
        try:
            return bool(client.ping())
        except NotConnected:
            return False


@contextmanager
def redis_server(
    folder: Path, *options: str, program: str = REDIS
) -> Generator[RedisServer, None, None]:
    """Run a Redis server on a free port. At the end, each key must expire."""
    path = find(program)
    assert path is not None, f"{program} is not installed"
    server = RedisServer(reserved_port(), folder, options, path)
    server.start()
    try:
        yield server
        server.check_expiry()
    finally:
        server.stop()


@contextmanager
def redis_with_tls(folder: Path) -> Generator[Redis, None, None]:
    """Run a Redis server with TLS; yield a client that checks its certificate."""
    skip_without(REDIS_WITH_TLS)
    trustme: Any = pytest.importorskip("trustme", reason=NO_TRUSTME)
    authority, names = trustme.CA(), ("ca.pem", "cert.pem", "key.pem")
    authority_file, certificate_file, key_file = (folder / name for name in names)
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(authority_file))
    certificate.cert_chain_pems[0].write_to_path(str(certificate_file))
    certificate.private_key_pem.write_to_path(str(key_file))
    port = reserved_port()
    files = ("--tls-cert-file", str(certificate_file), "--tls-key-file", str(key_file))
    options = ("--tls-port", str(port), *files, "--tls-auth-clients", "no")
    with (
        redis_server(folder, *options, program=REDIS_WITH_TLS),
        Redis(port=port, host="127.0.0.1", ssl=True, ssl_ca_certs=str(authority_file)) as client,
    ):
        yield client


@contextmanager
def redis_with_sentinel(folder: Path) -> Generator[Redis, None, None]:
    """Run a Redis server and its Sentinel; yield a client that asks the Sentinel for the server."""
    with redis_server(folder) as server:
        configuration = folder / "sentinel.conf"
        configuration.write_text(f"sentinel monitor main 127.0.0.1 {server.port} 1\n", "utf-8")
        with redis_server(folder, str(configuration), "--sentinel") as running:
            kind: Any = Sentinel  # It has no types.
            sentinel = kind([("127.0.0.1", running.port)])
            with sentinel.sentinels[0], sentinel.master_for("main") as client:
                yield client


@contextmanager
def redis_cluster(folder: Path, *options: str) -> Generator[list[RedisServer], None, None]:
    """Run a cluster of three Redis servers."""
    with ExitStack() as stack:
        servers: list[RedisServer] = []
        for number in range(3):
            bus = str(reserved_port())
            files = ("--cluster-enabled", "yes", "--cluster-config-file", f"{number}.conf")
            running = redis_server(folder, *files, *options, "--cluster-port", bus)
            servers.append(stack.enter_context(running))
            with servers[0].client() as first, servers[-1].client() as client:
                begin, end = (_SLOTS * each // 3 for each in (number, number + 1))
                client.execute_command("CLUSTER ADDSLOTSRANGE", begin, end - 1)
                first.execute_command("CLUSTER MEET", "127.0.0.1", servers[-1].port, bus)
        for server in servers:
            with server.client() as client:
                wait_until(lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        yield servers


def wait_until(condition: Callable[[], bool]) -> None:
    """Call `condition` until it returns True. Use it only if no event reports the change."""
    end = time.monotonic() + _TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.01)
