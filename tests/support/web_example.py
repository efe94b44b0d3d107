"""Runs `examples/web/app.py` in a child process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).parents[2]


@contextmanager
def web_example(server_url: str | None, redis_url: str | None = None) -> Generator[str, None, None]:
    """Run the application on a free port, and yield its URL. Without a server, it uses a fake."""
    environment = {**os.environ, "PORT": "0"}
    for name, url in (("FLUX0_SERVER_URL", server_url), ("FLUX0_REDIS_URL", redis_url)):
        environment.pop(name, None)
        if url is not None:
            environment[name] = url
    process = subprocess.Popen(
        [sys.executable, "examples/web/app.py"],
        cwd=_ROOT,
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
                yield match[1]
                break
        else:
            raise AssertionError(log)
    finally:
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=20)
        assert "Traceback" not in rest, rest
