"""A real flux0 server in a child process, with an agent that tests control."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from support.ports import reserved_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

_SCRIPTED = "scripted_agent"
_START_SECONDS, _STOP_SECONDS, _CANCEL_SECONDS = 60.0, 3.0, 10.0


class Flux0Server:
    """A context manager that runs the server with the scripted agent on a free port.

    At the start, the store contains only that agent.

    Args:
        python: the path of a Python interpreter with flux0-server installed.
        directory: a folder for the server's output and for the files that control its agent. It is
            the server's working directory, so that the server reads no other `flux0.toml` or
            `.env`.
        agent_module: the agent's module. It may be a file in `directory`.
        store: the store's URI, by default in memory. The file store `nanodb://json?dir=...`
            rewrites its file in place: kill the server only while it writes nothing.
    """

    def __init__(
        self,
        python: str,
        directory: Path,
        *,
        agent_module: str = _SCRIPTED,
        store: str = "nanodb://memory",
    ) -> None:
        self._command = [python, "-m", "flux0_server.main"]
        self._directory = directory
        self._agent_module = agent_module
        self._store = store
        self._output = directory / "output.txt"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The server's URL, without a path."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def agent_id(self) -> str:
        """The id of the agent of type `scripted` that exists from the start."""
        return (self._directory / "agent_id").read_text(encoding="utf-8")

    @property
    def output(self) -> str:
        """The text that the server has printed by now."""
        return self._output.read_text(encoding="utf-8", errors="replace")

    def __enter__(self) -> Self:
        self.port = reserved_port()
        self._start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        # The server does not exit while an agent hangs.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        self.kill()

    def release(self, name: str) -> None:
        """End the step `{"wait": name}`, now or as soon as a turn reaches it.

        The name stays released, so use a new name for each turn.
        """
        (self._directory / f"{name}.released").touch()

    def wait_cancelled(self, name: str) -> None:
        """Wait until the server has cancelled a turn at the step `{"wait": name}`."""
        cancelled = self._directory / f"{name}.cancelled"
        self._until(
            cancelled.exists, _CANCEL_SECONDS, f"no turn was cancelled at the step {name!r}"
        )

    def kill(self) -> None:
        """Kill the server process at once."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """Kill the server, and start it on the same port with the same store and a new agent."""
        self.kill()
        (self._directory / "agent_id").unlink()
        self._start()

    def _start(self) -> None:
        excluded = ("COVERAGE_", "FLUX0_", "PYTHON")
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(excluded)},
            "FLUX0_DB_URI": self._store,
            "FLUX0_MODULES": self._agent_module,
            "FLUX0_PORT": str(self.port),
            "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), str(self._directory))),
            "PYTHONUNBUFFERED": "1",
            "SCRIPTED_AGENT_DIR": str(self._directory),
        }
        # Use a file instead of a pipe: if a pipe is not read and is full, the server blocks.
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._until(self._is_up, _START_SECONDS, "the flux0 server did not start")

    def _is_up(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1)
        try:
            connection.request("GET", "/api/agents")
            ids = [agent["id"] for agent in json.load(connection.getresponse())["data"]]
            return self.agent_id in ids if self._agent_module == _SCRIPTED else bool(ids)
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
            return False
        finally:
            connection.close()

    def _until(self, condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self._process is not None
            status = self._process.poll()
            if status is not None:
                otherwise += f": the process ended with status {status}"
            if status is not None or time.monotonic() > deadline:
                output = self.output[-4000:]
                raise RuntimeError(f"{otherwise}:\n{output}")
            # Poll: the server process sends no notification.
            time.sleep(0.02)
