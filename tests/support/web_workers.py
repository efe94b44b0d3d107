"""Runs web workers with background turns: uvicorn for async code, gunicorn for sync code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import httpx

Kind = Literal["uvicorn", "gunicorn"]

_COMMANDS: Final[dict[Kind, str]] = {
    "uvicorn": "uvicorn support.turn_worker:asgi --port 0 --timeout-graceful-shutdown 1",
    # The master imports the application before it forks, so the worker inherits the objects.
    "gunicorn": "gunicorn support.turn_worker:wsgi --bind 127.0.0.1:0 --threads 8 --preload"
    " --graceful-timeout 1",
}
_TESTS: Final = Path(__file__).parents[1]


@contextmanager
def web_worker(
    kind: Kind, server_url: str, redis_url: str, *, lease_seconds: float, clock_offset: float
) -> Generator[str, None, None]:
    """Run one web worker on a free port, and yield its URL."""
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
                yield match[0]
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


def events_of(response: httpx.Response) -> Iterator[bytes]:
    """Yield the events of a relay as bytes."""
    received = b""
    for piece in response.iter_raw():
        *events, received = (received + piece).split(b"\n\n")
        yield from (event + b"\n\n" for event in events)
    assert received == b""
