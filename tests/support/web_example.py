"""Runs the applications in `examples` in child processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from support.redis_server import redis_server
from support.relay import Relay

_WEB = Path(__file__).parents[2] / "examples/web/app.py"


@contextmanager
def web_example(
    server_url: str | None, redis_url: str | None = None, program: Path = _WEB
) -> Generator[str, None, None]:
    """Run the application on a free port, and yield its URL. Without a server, it uses a fake."""
    with web_example_process(server_url, redis_url, program) as (url, _):
        yield url


@contextmanager
def restarted_example(
    server_url: str, folder: Path, program: Path = _WEB
) -> Generator[tuple[str, Callable[[], object]], None, None]:
    """Run the application in two processes that share a Redis, behind one address.

    Yields the URL, and a function that sends later connections to the second process, and SIGTERM
    to the first process.
    """
    with (
        redis_server(folder) as redis,
        web_example_process(server_url, redis.url, program) as (url, process),
    ):
        with (
            web_example(server_url, redis.url, program) as other,
            Relay(urlsplit(url).port or 0) as proxy,
        ):

            def restart() -> None:
                proxy.forward_to(urlsplit(other).port or 0)
                process.terminate()

            yield proxy.url, restart
        assert process.wait(20) == -signal.SIGTERM


@contextmanager
def web_example_process(
    server_url: str | None, redis_url: str | None = None, program: Path = _WEB
) -> Generator[tuple[str, subprocess.Popen[str]], None, None]:
    """Run the application, and yield its URL and its process."""
    environment = {**os.environ, "PORT": "0"}
    for name, url in (("FLUX0_SERVER_URL", server_url), ("FLUX0_REDIS_URL", redis_url)):
        environment.pop(name, None)
        if url is not None:
            environment[name] = url
    process = subprocess.Popen(
        [sys.executable, program.name],
        cwd=program.parent,
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
            if match := re.search(r"running on (http://\S+)", line):
                yield match[1], process
                break
        else:
            raise AssertionError(log)
    finally:
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=20)
        assert "Traceback" not in rest, rest
