"""Settings of gunicorn: a worker waits for its turns before it exits."""

from __future__ import annotations

graceful_timeout = 60
control_socket_disable = True  # By default, the socket is in the home directory.


def worker_exit(_server: object, _worker: object) -> None:
    """Read the running turns to their end; gunicorn calls this function in each worker."""
    from support.turn_worker import DRAIN_SECONDS, turns  # noqa: PLC0415 - not in the main process

    turns.close(drain_seconds=DRAIN_SECONDS)
