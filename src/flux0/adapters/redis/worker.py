"""The thread that sends all commands of one process to Redis."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import suppress
from functools import cache
from hashlib import sha1
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar, final

from attrs import define, field, frozen

from flux0.adapters.redis.commands import Command, Commands, Times
from flux0.domain.errors import TurnStoreError
from flux0.runtime.turn_log import TurnLog
from flux0.runtime.waker import Waker

T = TypeVar("T")

# Yields commands, and receives their replies.
Steps: TypeAlias = "Generator[Command, Any, T]"

# The longest time in seconds for which a caller waits for Redis.
_MAX_CALL_SECONDS: Final = 10.0
# The shortest time in seconds between two pipelines of repeated jobs. A pipeline for each event
# would cost more than reading the event.
_MIN_INTERVAL: Final = 0.005
_NOW: Final = 0.0


class RedisClient(Protocol):
    """A sync client of Redis, Redis Cluster or Valkey, such as `redis.Redis`."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command, and return its reply."""

    def pipeline(self, transaction: bool = ...) -> Any:
        """Return an object that sends several commands at once."""

    def pubsub(self) -> Any:
        """Return an object that subscribes to channels."""

    def close(self) -> Any:
        """Close all connections."""


class Job(Protocol):
    """Work that sends commands.

    Attributes:
        is_repeated: Whether the job is started often. It is delayed by some milliseconds after
            other jobs, and until the next attempt if Redis cannot be reached.
    """

    is_repeated: bool

    def steps(self) -> Steps[None]:
        """Yield commands, and receive their replies, or a `TurnStoreError`.

        It runs in the thread of the worker, and must not raise.
        """
        ...


class Turn(Job, Protocol):
    def log(self) -> TurnLog | None: ...


@define(eq=False)
class _Call(Generic[T]):
    _steps: Steps[T]
    is_repeated: bool = False
    _done: Waker = field(factory=Waker)
    _results: list[T] = field(factory=list[T])
    _error: Exception | None = None

    def steps(self) -> Steps[None]:
        try:
            self._results.append((yield from self._steps))
        except Exception as error:  # noqa: BLE001 - raised in the thread of the caller
            self._error = error
        self._done.wake()

    def wait(self, seconds: float) -> T:
        if not self._done.wait(seconds):
            raise TurnStoreError(f"Redis did not respond within {seconds:g} s")
        try:
            if self._error is not None:
                raise self._error
        finally:
            self._error = None  # The traceback of the error refers to this object.
        return self._results[0]


def _no_steps() -> Steps[None]:
    yield from ()


class Worker:
    """Runs all jobs in one thread, and sends the commands of all running jobs in one pipeline.

    A single thread needs one connection, and its jobs need no locks.

    Args:
        client: The client of Redis.
        retry_seconds: Seconds between two attempts to reach Redis.
    """

    def __init__(self, client: RedisClient, retry_seconds: float) -> None:
        self._client = client
        self._retry_seconds = retry_seconds
        self._not_before = 0.0
        self._inbox: SimpleQueue[Job] = SimpleQueue()
        self._running: dict[Job, tuple[Steps[None], Command]] = {}
        # When to start each job that is not running.
        self._timers: dict[Job, float] = {}
        self._last_reply = monotonic()
        # Whether the last commands have failed, or wait for their replies.
        self._is_waiting = False
        self._is_stopped = False
        self._is_unused = False

    @property
    def waiting_seconds(self) -> float:
        """The time in seconds since the last reply; 0 if no command waits for a reply."""
        return monotonic() - self._last_reply if self._is_waiting else 0.0

    def submit(self, job: Job) -> None:
        """Start a job soon, unless it is running. Safe in any thread and in finalizers."""
        self._inbox.put(job)

    def call(self, steps: Steps[T], seconds: float | None = None) -> T:
        """Run steps as a job, wait for their end, and return their result.

        Args:
            steps: The steps to run.
            seconds: The longest time in seconds to wait; by default, 10 s.

        Raises:
            TurnStoreError: Redis cannot be used.
        """
        call = _Call(steps)
        self.submit(call)
        return call.wait(_MAX_CALL_SECONDS if seconds is None else seconds)

    def set_timer(self, job: Job, seconds: float) -> None:
        self._timers[job] = monotonic() + seconds

    def retry(self, job: Job) -> None:
        self.set_timer(job, self._retry_seconds)

    def cancel_timer(self, job: Job) -> None:
        self._timers.pop(job, None)

    def stop(self) -> None:
        """End `run` when no job is running. A job calls this method."""
        self._is_stopped = True

    def stop_when_idle(self) -> None:
        """End `run` when no job is running or has a timer. Safe in finalizers."""
        self._is_unused = True
        self.submit(_Call(_no_steps()))  # Wakes the thread.

    def run(self) -> None:
        while self._running or not (self._is_stopped or (self._is_unused and self._is_idle())):
            for job in self._next_jobs():
                self._continue(job, job.steps(), None)
            sent = tuple(self._running.items())
            self._running.clear()
            replies = self._send([command for _, (_, command) in sent])
            for (job, (steps, _)), reply in zip(sent, replies, strict=True):
                self._continue(job, steps, reply)

    def _is_idle(self) -> bool:
        return not self._timers and self._inbox.empty()

    def _next_jobs(self) -> list[Job]:
        """Return the jobs to start. Wait if no job is running.

        A job that is running is not started again, so it must check at its end whether it is done.
        """
        with suppress(Empty):
            if not self._running:
                wait = max(min(self._timers.values()) - monotonic(), 0.0) if self._timers else None
                self._schedule(self._inbox.get(timeout=wait))
            while True:
                self._schedule(self._inbox.get_nowait())
        now = monotonic()
        due = [job for job, moment in self._timers.items() if moment <= now]
        jobs = [job for job in due if job not in self._running]
        for job in jobs:
            del self._timers[job]
        return jobs

    def _schedule(self, job: Job) -> None:
        moment = self._not_before if job.is_repeated else _NOW
        self._timers[job] = min(moment, self._timers.get(job, moment))

    def _send(self, commands: list[Command]) -> Sequence[object]:
        if not commands:
            return ()
        if not self._is_waiting:  # If this process was suspended, Redis may have responded.
            self._last_reply = max(self._last_reply, monotonic() - self._retry_seconds)
        self._is_waiting = True
        replies = self._replies(commands)
        self._is_waiting = all(isinstance(reply, Exception) for reply in replies)
        now = monotonic()
        if not self._is_waiting:
            self._last_reply = now
        self._not_before = now + (self._retry_seconds if self._is_waiting else _MIN_INTERVAL)
        return replies

    def _replies(self, commands: list[Command]) -> list[object]:
        try:
            replies = self._pipeline(commands, is_known=True)
            # Redis may not know a script. Keep the order of all commands.
            failed = (isinstance(reply, Exception) for reply in replies)
            first = next((number for number, fails in enumerate(failed) if fails), None)
            if first is not None:
                replies[first:] = self._pipeline(commands[first:], is_known=False)
        except Exception as error:  # noqa: BLE001 - the client may be of another library
            return [error] * len(commands)  # A variable would put the error in a reference cycle.
        return replies

    def _pipeline(self, commands: list[Command], *, is_known: bool) -> list[object]:
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            name, script, *values = command
            if name != "EVALSHA":
                pipeline.execute_command(*command)
            elif is_known:
                pipeline.execute_command(name, _hash(str(script)), *values)
            else:
                pipeline.execute_command("EVAL", script, *values)
        replies: list[object] = pipeline.execute(raise_on_error=False)
        return replies

    def _continue(self, job: Job, steps: Steps[None], reply: object) -> None:
        try:
            if isinstance(reply, Exception):
                command = steps.throw(_failure(reply))
            else:
                command = steps.send(reply)
        except StopIteration:
            return
        self._running[job] = steps, command


def _failure(error: Exception) -> TurnStoreError:
    """Return a new error for one job: its traceback refers to the job."""
    failure = TurnStoreError(f"Redis cannot be used: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


@cache
def _hash(script: str) -> str:
    return sha1(script.encode(), usedforsecurity=False).hexdigest()


@final
@frozen
class SharedObjects:
    """The objects that all turns of a process share.

    Attributes:
        commands: Creates the commands of this process.
        worker: Sends the commands.
        times: The times of all turns.
        turns: The turns that this process reads or follows, by the keys of the turns.
    """

    commands: Commands
    worker: Worker
    times: Times
    turns: dict[str, Turn] = field(factory=dict[str, "Turn"])
