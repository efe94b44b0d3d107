"""A real flux0 server in a process of its own, for tests to talk to, release, cut off and kill."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

_SCRIPTED = "scripted_agent"
_START_SECONDS, _STOP_SECONDS, _CANCEL_SECONDS = 60.0, 3.0, 10.0
_PORTS_TO_TRY = 5


def free_port() -> int:
    """Return a port that nobody listens on right now."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


class Flux0Server:
    """A context manager: the server with the scripted agent, on a free port.

    The store is in memory, and holds nothing but that agent, `agent_id`, at the start.

    Args:
        python: the Python that has flux0-server installed.
        directory: a folder for the server's output and the signals to its agent; the server's
            current folder, so that it reads nobody else's `flux0.toml` and `.env`.
        agent_module: the module of the agent, which may lie in `directory`.
    """

    def __init__(self, python: str, directory: Path, *, agent_module: str = _SCRIPTED) -> None:
        self._command = [python, "-m", "flux0_server.main"]
        self._directory = directory
        self._agent_module = agent_module
        self._output = directory / "output.txt"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The server's address, without a path."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def agent_id(self) -> str:
        """The id of an agent of type `scripted` that is there from the start."""
        return (self._directory / "agent_id").read_text(encoding="utf-8")

    def __enter__(self) -> Self:
        for others in reversed(range(_PORTS_TO_TRY)):
            self.port = free_port()
            self._launch()
            try:
                self._until(self._is_up, _START_SECONDS, "the flux0 server did not answer")
            except RuntimeError as error:
                self.kill()
                # Between the choice of a port and its use, somebody else may have taken it.
                if not others or "address already in use" not in str(error):
                    raise
            else:
                break
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):  # It waits for hanging agents forever.
            self._process.wait(_STOP_SECONDS)
        self.kill()

    def release(self, name: str) -> None:
        """Let the step `{"wait": name}` go on, whether a turn has reached it or not.

        A name stays released: take a new one for each turn.
        """
        (self._directory / f"{name}.released").touch()

    def wait_cancelled(self, name: str) -> None:
        """Return once the server has cancelled a turn that was at the step `{"wait": name}`."""
        cancelled = self._directory / f"{name}.cancelled"
        self._until(cancelled.exists, _CANCEL_SECONDS, f"no turn was cancelled while at {name!r}")

    def kill(self) -> None:
        """End the server at once, in the middle of whatever it is doing."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def _launch(self) -> None:
        ours = ("COVERAGE_", "FLUX0_", "PYTHON")
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
            "FLUX0_MODULES": self._agent_module,
            "FLUX0_PORT": str(self.port),
            "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), str(self._directory))),
            "PYTHONUNBUFFERED": "1",
            "SCRIPTED_AGENT_DIR": str(self._directory),
        }
        # A file takes any amount of output; a full pipe that nobody reads would stop the server.
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def _is_up(self) -> bool:
        """Whether this server answers; another one on this port would not know our agent."""
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
                otherwise += f": it ended with status {status}"
            if status is not None or time.monotonic() > deadline:
                output = self._output.read_text(encoding="utf-8", errors="replace")[-4000:]
                raise RuntimeError(f"{otherwise}:\n{output}")
            # There is no event to wait for: the other side is a process of a library we do not own.
            time.sleep(0.02)
