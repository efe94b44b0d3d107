"""The thread that sends all commands of one process to Redis."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from functools import cache
from hashlib import sha1
from itertools import takewhile
from math import inf
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Final, Protocol, TypeAlias, TypeGuard, TypeVar, cast

from flux0.adapters.redis.commands import Command, Settings
from flux0.adapters.redis.outage import AwakeClock, Outage
from flux0.domain.background_errors import TurnStoreError

T = TypeVar("T")

# `Steps` is a generator that yields Redis commands. The worker sends each command to Redis, and
# passes the reply to the generator, or raises a `TurnStoreError` in the generator.
Steps: TypeAlias = "Generator[Command, Any, T]"
# A `Job` is a function that returns a new generator of Redis commands. After an error, the worker
# calls the function again. A bound method is the same job each time it is submitted.
Job: TypeAlias = "Callable[[], Steps[None]]"

CLOSED: Final = "the store of background turns is closed"
# The longest wait of `Worker.call` for a reply of Redis, in seconds.
_MAX_CALL_SECONDS: Final = 10.0
# The shortest time in seconds between two pipelines of commands, if no caller waits for a reply.
# Without this interval, each event is sent in its own pipeline, which takes longer than reading the
# event.
_MIN_INTERVAL: Final = 0.005


class RedisClient(Protocol):
    """A sync client of Redis, Redis Cluster or Valkey, such as `redis.Redis`."""

    def execute_command(self, *args: Any, **options: Any) -> Any: ...

    def pipeline(self, transaction: bool = ...) -> Any: ...

    def pubsub(self) -> Any: ...

    def close(self) -> Any: ...


class Checked(Protocol):
    """The lease of a process, for jobs whose command was rejected."""

    def is_accepted(self) -> Steps[bool]:
        """Return whether Redis accepts other commands of this process."""
        ...


class Worker:
    """Runs all jobs in one thread, and sends the commands of all running jobs in one pipeline.

    A single thread needs one connection, and its jobs need no locks.

    Args:
        client: The client of Redis that sends the commands.
        settings: The names that the process uses in Redis, and the times for all turns.

    Attributes:
        settings: The argument `settings`.
        clock: The clock that measures all outages.
        redis: Since when no command has got a reply.
        failures: How often Redis could not be used. A pipeline of commands counts once.
        is_retired: Whether the thread ends as soon as no job is running or scheduled.
    """

    def __init__(self, client: RedisClient, settings: Settings) -> None:
        self.settings: Settings = settings
        self._client = client
        self._inbox: SimpleQueue[tuple[Job, bool]] = SimpleQueue()
        self._running: dict[Job, tuple[Steps[None], Command]] = {}
        # `_timers` maps each job to the time when the job must start. If the job is running at this
        # time, it starts again after its end.
        self._timers: dict[Job, float] = {}
        self._not_before = 0.0
        self.clock: AwakeClock = AwakeClock(settings.renew)
        self.redis: Outage = Outage(self.clock)
        # `_reported` maps the text of each connection error to the time of its last report.
        self._reported: dict[str, float] = {}
        self.failures: int = 0
        # Up to this time, commands for different nodes of a cluster are in different pipelines.
        self._split_until = 0.0
        # A node that responded to its last commands while another node was lost.
        self._responding: object = None
        self._is_stopped = False
        self.is_retired: bool = False

    @property
    def is_unreachable(self) -> bool:
        """Whether the last commands got no reply. In a cluster, other nodes may still respond."""
        return bool(self.redis.error) and not hasattr(self._client, "get_node_from_key")

    def submit(self, job: Job, *, now: bool = False) -> None:
        """Start a job, or start it again after its end. Safe in any thread and in finalizers.

        If `now` is False, the job may start some milliseconds later, together with other jobs. If
        Redis cannot be reached, the job starts at the next attempt to reach Redis.
        """
        self._inbox.put((job, now))

    def call(self, steps: Steps[T]) -> T:
        """Run steps as a job, wait for their end, and return their result.

        Raises:
            TurnStoreError: Redis cannot be used, it did not respond within 10 s, or the worker was
                stopped.
        """
        results: SimpleQueue[T | Exception] = SimpleQueue()

        def run() -> Steps[None]:
            try:
                results.put((yield from steps))
            except Exception as error:  # noqa: BLE001 - raised in the thread of the caller
                results.put(error)

        self.submit(run, now=True)
        # If the worker's thread ended before the job was submitted, no thread runs the job. Do not
        # wait for the job's result.
        if self._is_stopped:
            raise TurnStoreError(CLOSED)
        try:
            result = results.get(timeout=_MAX_CALL_SECONDS)
        except Empty:
            problem = f"Redis did not respond within {_MAX_CALL_SECONDS:g} s"
            raise TurnStoreError(problem) from None
        if isinstance(result, Exception):
            try:
                raise result
            finally:
                # Delete `result` to break a reference cycle: the traceback of the raised error
                # refers to this frame, and the variable `result` refers to the error.
                del result
        return result

    def set_timer(self, job: Job, seconds: float) -> None:
        """Start the job after `seconds`, or earlier if a thread submits the job."""
        self._schedule(job, monotonic() + seconds)

    def stop(self, *, when_idle: bool = False) -> None:
        """End the worker's thread. It first runs the jobs of all timers, without waiting for them.

        If `when_idle` is True, the thread instead waits until no job is running or scheduled, and
        then ends. Safe in finalizers.
        """
        self._is_stopped, self.is_retired = self._is_stopped or not when_idle, True
        self.submit(_no_steps)  # `_no_steps` only wakes the worker's thread.

    def drop_connections(self) -> None:
        """Close the idle connections of the client, so that the next command opens a new one.

        After a failover, an idle connection can lead to a server that rejects all commands.
        """
        if (pool := getattr(self._client, "connection_pool", None)) is not None:
            with suppress(Exception):  # The client may be of another library.
                pool.disconnect(inuse_connections=False)

    def report(self, outage: Outage, problem: str, error: Exception) -> None:
        """Log a warning about a turn, unless another turn has reported the same lost connection.

        A turn that is not logged for this reason is not logged either if the text of the connection
        error changes later.
        """
        text = self.named(error)
        if _is_of_connection(error.__cause__):
            now, limit = self.clock.now(), 2 * self.settings.lease
            recent = {each: time for each, time in self._reported.items() if now - time < limit}
            self._reported = {**recent, text: now}
            outage.is_covered = outage.is_covered or text in recent
            if outage.is_covered:
                return
        outage.warn(f"{problem}: {text}")

    def named(self, error: Exception) -> str:
        """Return the text of an error, with the address of Redis."""
        text, address = _text(error.__cause__ or error), _address(self._client)
        return text if address in text else f"{address}: {text}"

    def run(self) -> None:
        while not (self._is_stopped or (self.is_retired and self._is_idle())):
            self._read_inbox(self._idle_seconds())
            self._start_jobs(monotonic())
            self._deliver(self._send())
        self._read_inbox(0.0)
        self._start_jobs(inf)
        while self._running:
            self._deliver(self._send())
            # A running job can submit further jobs. For example, the claim of a turn submits a job
            # that publishes the turn's end.
            self._read_inbox(0.0)
            self._start_jobs(monotonic() + _MIN_INTERVAL)

    def _is_idle(self) -> bool:
        return not (self._running or self._timers) and self._inbox.empty()

    def _idle_seconds(self) -> float | None:
        if self._running:
            return 0.0
        moments = self._timers.values()
        return max(min(moments) - monotonic(), 0.0) if moments else None

    def _read_inbox(self, seconds: float | None) -> None:
        with suppress(Empty):
            job, now = self._inbox.get(timeout=seconds)
            while True:
                self._schedule(job, 0.0 if now else self._not_before)
                job, now = self._inbox.get_nowait()

    def _schedule(self, job: Job, moment: float) -> None:
        self._timers[job] = min(moment, self._timers.get(job, moment))

    def _start_jobs(self, now: float) -> None:
        due = [job for job, moment in self._timers.items() if moment <= now]
        for job in due:
            if job not in self._running:
                del self._timers[job]
                self._continue(job, job(), None)

    def _deliver(self, replies: Iterable[object]) -> None:
        sent, self._running = self._running, {}
        for (job, (steps, _)), reply in zip(sent.items(), replies, strict=True):
            self._continue(job, steps, reply)

    def _continue(self, job: Job, steps: Steps[None], reply: object) -> None:
        try:
            if isinstance(reply, Exception):
                self._running[job] = steps, steps.throw(_failure(reply))
            else:
                self._running[job] = steps, steps.send(reply)
        except StopIteration:
            pass
        except Exception:  # noqa: BLE001 - the client may be of another library
            # The worker repeats the failed job after `renew` seconds. If no command gets a reply,
            # most other jobs wait, too. The jobs of `Worker.call` do not fail here: their errors
            # are raised in the calling thread.
            self._timers[job] = moment = monotonic() + self.settings.renew
            if self.redis.error:
                self._not_before = moment

    def _send(self) -> list[object]:
        # No variable of this function refers to a job: frames of the library redis refer to this
        # frame, and can be in reference cycles, which keep the variables of this frame in memory.
        commands = [command for _, command in self._running.values()]
        if not commands:
            return []
        self.redis.expect()
        replies, error = self._replies_of_all(commands)
        if error:
            self.redis.fail(error)
            self.failures += 1
            self.drop_connections()
        else:
            self.redis.respond()
            self._not_before = monotonic() + _MIN_INTERVAL
        return replies

    def _replies_of_all(self, commands: list[Command]) -> tuple[list[object], str]:
        if monotonic() < self._split_until and (nodes := self._by_node(commands)):
            return self._replies_of_nodes(commands, nodes)
        replies, error = self._replies(commands)
        if error and (nodes := self._by_node(commands)):
            return self._replies_of_nodes(commands, nodes)
        return replies, error

    def _replies_of_nodes(
        self, commands: list[Command], nodes: dict[object, list[int]]
    ) -> tuple[list[object], str]:
        """Send the commands for each node of a cluster in their own pipeline.

        One lost node fails a pipeline with commands for several nodes.
        """
        replies: list[object] = [None] * len(commands)
        errors: list[str] = []
        default, self._responding = self._responding, None
        for node, positions in nodes.items():
            # The client asks its default node for the keys of a script, so this node must respond.
            self._use_node(default or node)
            some, error = self._replies([commands[each] for each in positions])
            for position, reply in zip(positions, some, strict=True):
                replies[position] = reply
            if error:
                errors.append(error)
                default = self._responding
            else:
                default = self._responding = node or default
        if errors:
            self._use_node(self._responding)
        return replies, errors[0] if len(errors) == len(nodes) else ""

    def _use_node(self, node: object) -> None:
        """Make a node the default node of the cluster; if `node` is None, another node."""
        with suppress(Exception):  # The client may be of another library.
            cast("Any", self._client).replace_default_node(node)

    def _replies(self, commands: list[Command]) -> tuple[list[object], str]:
        """Return the replies, and the error if no reply arrived."""
        try:
            replies = self._pipeline(commands, is_known=True)
            known = [*takewhile(lambda reply: not _is_of_unknown_script(reply), replies)]
            if unknown := commands[len(known) :]:
                # Send the command with the unknown script and all later commands again, with the
                # text of each script, so that the command order does not change.
                replies = known + self._pipeline(unknown, is_known=False)
        except Exception as error:  # noqa: BLE001 - the client may be of another library
            # Do not store the returned list in a variable: the error's traceback refers to this
            # frame, so a variable of this frame that refers to the error forms a reference cycle.
            self._split_until = monotonic() + 2 * self.settings.lease
            return [error] * len(commands), _text(error)
        # If a node of a cluster is lost, the other nodes may have replied.
        if errors := [_text(each) for each in replies if _is_of_connection(each)]:
            self._split_until = monotonic() + 2 * self.settings.lease
        return replies, errors[0] if len(errors) == len(replies) else ""

    def _by_node(self, commands: list[Command]) -> dict[object, list[int]]:
        """Return the positions of the commands for each node; nothing without a cluster.

        The node None is the last node. It has the commands whose keys have no node.
        """
        if (node_of := getattr(self._client, "get_node_from_key", None)) is None:
            return {}
        nodes: dict[object, list[int]] = {}
        others: list[int] = []
        for position, (name, *arguments) in enumerate(commands):
            # The first key of a script follows the script and the number of keys. Of PUBLISH, the
            # channel is the key: the client also sends a message to one node of the cluster.
            key, node = arguments[2 if name == "EVALSHA" else 0], None
            # If no node has the slot of the key, the lookup fails.
            with suppress(Exception):
                node = node_of(key)
            (others if node is None else nodes.setdefault(node, [])).append(position)
        return {**nodes, None: others} if others else nodes

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


def _no_steps() -> Steps[None]:
    yield from ()


def _failure(error: Exception) -> TurnStoreError:
    # Each job gets its own error, because the traceback of an error keeps its job in memory.
    failure = TurnStoreError(f"Redis cannot be used: {_text(error)}")
    failure.__cause__ = error
    return failure


def _is_of_unknown_script(reply: object) -> bool:
    return isinstance(reply, Exception) and "NoScript" in type(reply).__name__


def _is_of_connection(error: object) -> TypeGuard[Exception]:
    if not isinstance(error, Exception):
        return False
    # The names are the same in the packages redis and valkey, and in Python.
    names = {each.__name__ for each in type(error).__mro__}
    return not names.isdisjoint(("ConnectionError", "TimeoutError"))


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _address(client: object) -> str:
    """Return the address in the settings of a client; empty if a client has several addresses."""
    pool = getattr(client, "connection_pool", None)
    settings: dict[str, object] = getattr(pool, "connection_kwargs", {})
    if "path" in settings:
        return str(settings["path"])
    return f"{settings['host']}:{settings['port']}" if "host" in settings else ""


@cache
def _hash(script: str) -> str:
    return sha1(script.encode(), usedforsecurity=False).hexdigest()
