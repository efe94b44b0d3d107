"""Processes that share turns over Redis use them at random during faults. A model checks them.

`FLUX0_TEST_SEED` sets the seed, and `FLUX0_TEST_SECONDS` the duration. The seed is printed.
"""

# redis has incomplete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from attrs import define, field, frozen

from flux0.domain.background_errors import TurnRunning, TurnStoreError
from support.programs import REDIS, needs
from support.redis_server import RedisServer, redis_server, wait_until
from support.stalling import Stalling
from support.turn_processes import Observation, TurnProcess, Turns, turn_bytes

pytestmark = needs(REDIS)

LEASE = 2.0
SESSIONS = ("a", "b", "c")
PROCESSES = 3
SECONDS = float(os.environ.get("FLUX0_TEST_SECONDS", "180"))
# After two leases without a fault, no relay waits for a turn that has ended. A busy machine may
# need one second more.
LIMIT = 2 * LEASE + 1
MAX_GROWTH_BYTES = 32 * 2**20
# The errors that may end a relay although its turn was not stopped.
ENDS = {"", "running", "TurnStopped", "ReaderLost", "TurnStoreError"}


@frozen
class Step:
    """One line of the history."""

    moment: float
    actor: str
    text: str

    def __str__(self) -> str:
        return f"{self.moment:8.3f} {self.actor:10} {self.text}"


@define
class Started:
    """A turn that a process starts.

    Attributes:
        is_claimed: Whether the process has received the reply to the claim. Another process can
            stop the turn before.
        last: The number of its last event, as its process has last reported it.
        asked: When a process first asked to stop or replace the turn. Redis may lose the request.
        ended: When its process reported its end, or was killed.
    """

    session: str
    process: int
    is_claimed: bool = False
    last: int = 0
    asked: float | None = None
    ended: float | None = None

    @property
    def is_over(self) -> bool:
        return self.ended is not None or self.asked is not None


@define
class Model:
    """The turns of all processes, the history, and the violations."""

    turns: dict[str, Started] = field(factory=dict[str, Started])
    history: list[Step] = field(factory=list[Step])
    violations: list[str] = field(factory=list[str])
    last_fault: float = 0.0
    # Only one process at a time claims a session, so that the model knows their order.
    claims: dict[str, threading.Lock] = field(
        factory=lambda: {session: threading.Lock() for session in SESSIONS}
    )
    begin: float = field(factory=time.monotonic)

    def record(self, actor: str, text: str) -> None:
        self.history.append(Step(time.monotonic() - self.begin, actor, text))

    def violate(self, text: str) -> None:
        self.record("VIOLATION", text)
        self.violations.append(text)

    def reached(self) -> None:
        self.last_fault = time.monotonic()

    @property
    def is_quiet(self) -> bool:
        """Whether no fault was active in the last three leases."""
        return time.monotonic() - self.last_fault > 3 * LEASE

    def claimed(self, turn_id: str) -> None:
        turn = self.turns[turn_id]
        others = [each for each in self.claimed_on(turn.session) if not each.is_over]
        if others and self.is_quiet:
            text = f"{len(others)} turns of {turn.session} are running"
            self.violate(f"{turn_id} started while {text}")
        turn.is_claimed = True

    def claimed_on(self, session: str) -> list[Started]:
        turns = tuple(self.turns.values())
        return [each for each in turns if each.session == session and each.is_claimed]

    def refused(self, session: str, asked: float) -> None:
        ends = [turn.ended for turn in self.claimed_on(session)]
        if self.is_quiet and all(end is not None and asked - end > LIMIT for end in ends):
            self.violate(f"a message on {session} was refused, although no turn is running")

    def ask(self, turn_id: str) -> None:
        started = self.turns.get(turn_id)
        if started is not None and started.asked is None:
            started.asked = time.monotonic()

    def end(self, turn_id: str) -> None:
        started = self.turns[turn_id]
        if started.ended is None:
            started.ended = time.monotonic()

    def still_runs(self, turn_id: str) -> None:
        """Check that a process that reports a turn as running was not asked to stop it."""
        asked = self.turns[turn_id].asked
        if asked is not None and self.last_fault < asked - 3 * LEASE and self.is_over(asked):
            self.violate(f"{turn_id} runs, although it was stopped")

    def is_over(self, moment: float) -> bool:
        """Whether more than two leases have passed since a moment, and since the last fault."""
        return time.monotonic() - max(moment, self.last_fault) > LIMIT

    def observed(self, observation: Observation) -> None:
        turn, after, error = observation.turn, observation.after, observation.error
        started = self.turns.get(turn)
        if started is None:
            self.violate(f"the turn {turn} was never started")
            return
        # The process that reads the turn may append events after the last count that it reported.
        count = observation.content.count(b"\n\n")
        if observation.content != turn_bytes(turn, after + count)[len(turn_bytes(turn, after)) :]:
            self.violate(f"the relay of {turn} after {after} is no prefix of the turn")
        if error not in ENDS:
            self.violate(f"the relay of {turn} ended with {error}")
        if error == "" and after + count != started.last:
            self.violate(f"the relay of {turn} is complete, but events are missing")
        if error == "running" and started.ended is not None and self.is_over(started.ended):
            self.violate(f"the relay of {turn} waits, although the turn has ended")
        if error in {"ReaderLost", "TurnStoreError"} and observation.is_numbered:
            self.violate(f"the error {error} of {turn} has a number")


class Worker(threading.Thread):
    """Uses one process at random."""

    def __init__(
        self, number: int, create: Callable[[], TurnProcess], model: Model, seed: int
    ) -> None:
        super().__init__(name=f"process {number}", daemon=True)
        self.number = number
        self._create = create
        self.process = create()
        self.model = model
        self.random = random.Random(seed)  # noqa: S311 - not for secrets
        self.is_stopping = threading.Event()
        self.is_killed = threading.Event()
        self.threads = 0
        self.resident_bytes = 0
        # The last turn of each session, and all turns that the process has not reported as ended.
        self.own: dict[str, str] = {}
        self.running: list[str] = []
        self.count = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        actions = [
            self.start_turn,
            self.append,
            self.append,
            self.finish,
            self.join_turn,
            self.stop,
        ]
        try:
            while not self.is_stopping.is_set():
                if self.is_killed.is_set():
                    self.kill()
                self.random.choice(actions)()
                self.report()
                time.sleep(self.random.random() / 10)
        except BaseException as error:  # noqa: BLE001 - raised by the test
            self.failure = error

    def begin(self) -> None:
        """Wait until the process has started."""
        # No fault is active at the start. Later, Redis may not respond to the first command.
        with suppress(TurnStoreError):
            self.process.call(Turns.find, "unknown")
        self.threads = self.process.call(Turns.threads)
        self.resident_bytes = self.process.call(Turns.resident_bytes)

    def report(self) -> None:
        """Report the turns that have ended to the model."""
        reported, self.running = self.running, self.process.call(Turns.running, self.running)
        for turn in reported:
            if turn in self.running:
                self.model.still_runs(turn)
            else:
                self.model.end(turn)

    def kill(self) -> None:
        """Kill the process, and start another process."""
        self.process.kill()
        for turn in self.running:
            self.model.end(turn)
        self.record(f"killed: {', '.join(self.running)}")
        self.own.clear()
        self.running.clear()
        self.process = self._create()
        self.begin()
        self.is_killed.clear()

    def record(self, text: str) -> None:
        self.model.record(self.name, text)

    def start_turn(self) -> None:
        session, asked = self.random.choice(SESSIONS), time.monotonic()
        self.count += 1
        turn = f"{self.number}-{self.count}"
        self.model.turns[turn] = Started(session, self.number)
        refuse = self.random.random() < 0.7
        try:
            with self.model.claims[session]:
                previous = self.process.call(Turns.claim, session, turn, refuse=refuse)
                if previous is not None:
                    self.process.call(Turns.stop, previous, "replaced")
                    self.model.ask(previous)
                self.model.claimed(turn)
                self.own[session] = turn
                self.running.append(turn)
                self.record(f"start {turn} on {session}: previous {previous}")
        except TurnRunning:
            self.record(f"start {turn} on {session}: refused")
            self.model.refused(session, asked)
        except TurnStoreError as error:
            self.record(f"start {turn} on {session}: {error}")
            self.process.call(Turns.undo, session, turn)

    def append(self) -> None:
        for turn in self.own.values():
            started = self.model.turns[turn]
            # The turn can have ended in its process, because another process has stopped it.
            started.last = self.process.call(Turns.append_some, turn, self.random.randint(1, 5))

    def finish(self) -> None:
        if self.own:
            session = self.random.choice(list(self.own))
            turn = self.own.pop(session)
            self.model.turns[turn].last = self.process.call(Turns.append_some, turn, 0)
            self.process.call(Turns.finish, turn)
            self.record(f"finish {turn}")

    def join_turn(self) -> None:
        session, after = self.random.choice(SESSIONS), self.random.randint(0, 5)
        # A longer relay notices if its copy of the turn never ends.
        seconds = self.random.random() if self.random.random() < 0.9 else 3 * LEASE
        try:
            seen = self.process.call(Turns.observe, session, after, seconds)
        except TurnStoreError as error:
            self.record(f"join {session}: {error}")
            return
        if seen is not None:
            count = seen.content.count(b"\n\n")
            self.record(f"join {session}: {seen.turn} after {seen.after}: {count} {seen.error}")
            self.model.observed(seen)

    def stop(self) -> None:
        session = self.random.choice(SESSIONS)
        try:
            turn = self.process.call(Turns.find, session)
            if turn is not None:
                self.process.call(Turns.stop, turn, "stopped")
                self.model.ask(turn)
                self.record(f"stop {turn} on {session}")
        except TurnStoreError as error:
            self.record(f"stop {session}: {error}")


@define
class Faults:
    """The faults of the table in background-turns.md, in random order."""

    server: RedisServer
    replica: RedisServer
    proxies: list[Stalling]
    workers: list[Worker]
    random: random.Random

    def pick(self) -> tuple[str, Callable[[], None]]:
        name = self.random.choice(
            ["subscription", "commands", "all", "server", "restart", "older", "evict", "type",
             "clock", "freeze", "close", "kill", "demote"]
        )  # fmt: skip
        return name, getattr(self, f"do_{name}")

    def _proxy(self) -> Stalling:
        return self.random.choice(self.proxies)

    def do_subscription(self) -> None:
        self._proxy().stall("subscription")

    def do_commands(self) -> None:
        self._proxy().stall("commands")

    def do_all(self) -> None:
        self._proxy().stall()

    def do_server(self) -> None:
        proxy = self._proxy()
        proxy.stall(new=True)
        time.sleep(self.random.random() * 2 * LEASE)
        proxy.heal()

    def do_restart(self) -> None:
        self.server.stop()
        time.sleep(self.random.random() * LEASE)
        self.server.start()

    def do_older(self) -> None:
        with self.server.client() as client:
            keys = list(client.scan_iter())
            with client.pipeline(transaction=True) as pipeline:
                for key in keys:
                    pipeline.pttl(key)
                    pipeline.dump(key)
                values = pipeline.execute()
            dumps = dict(zip(keys, zip(values[::2], values[1::2], strict=True), strict=True))
            time.sleep(self.random.random() * LEASE)
            # A snapshot is loaded at once: no process sees only some of its keys.
            with client.pipeline(transaction=True) as pipeline:
                pipeline.flushall()
                for key, (left, dump) in dumps.items():
                    if dump is not None and left > 0:
                        pipeline.restore(key, left, dump, replace=True)
                pipeline.execute()

    def do_evict(self) -> None:
        with self.server.client() as client:
            keys = list(client.scan_iter())
            if keys:
                client.delete(self.random.choice(keys))

    def do_type(self) -> None:
        with self.server.client() as client:
            key = f"flux0:{{{self.random.choice(SESSIONS)}}}"
            client.set(key, "another program", px=int(LEASE * 1000))
        time.sleep(LEASE)

    def do_clock(self) -> None:
        with self.server.client() as client:
            for key in client.scan_iter("flux0:process:*"):
                client.pexpire(key, 3_600_000)

    def do_freeze(self) -> None:
        process = self.random.choice(self.workers).process
        process.send_signal(signal.SIGSTOP)
        time.sleep(self.random.random() * 2 * LEASE)
        process.send_signal(signal.SIGCONT)

    def do_close(self) -> None:
        with self.server.client() as client:
            client.client_kill_filter(_type=self.random.choice(["normal", "pubsub"]), skipme=True)

    def do_kill(self) -> None:
        worker = self.random.choice(self.workers)
        worker.is_killed.set()
        while worker.is_killed.is_set() and worker.is_alive():
            time.sleep(0.01)

    def do_demote(self) -> None:
        """Make the replica the master behind the same addresses, and the master its replica."""
        with self.server.client() as old, self.replica.client() as new:
            wait_until(lambda: new.info("replication").get("master_link_status") == "up")
            new.replicaof("NO", "ONE")
            old.replicaof("127.0.0.1", str(self.replica.port))
        self.server, self.replica = self.replica, self.server
        for proxy in self.proxies:
            proxy.port = self.server.port


@contextmanager
def started_workers(
    servers: list[RedisServer], model: Model, chance: random.Random
) -> Generator[Faults, None, None]:
    """Start the processes, each behind its own proxy of the first server."""
    server, replica = servers
    with ExitStack() as stack:
        proxies = [stack.enter_context(Stalling(server.port)) for _ in range(PROCESSES)]
        options = {"lease_seconds": LEASE, "keep_seconds": 60.0}
        workers = [
            Worker(
                number,
                partial(TurnProcess, f"redis://{proxy.address}", "asyncio", options),
                model,
                chance.randrange(10**9),
            )
            for number, proxy in enumerate(proxies)
        ]
        try:
            for worker in workers:
                worker.begin()
            yield Faults(server, replica, proxies, workers, chance)
        except BaseException:
            for worker in workers:
                worker.process.kill()
            raise
        for worker in workers:
            worker.process.close()


@contextmanager
def redis_with_replica(folder: Path) -> Generator[list[RedisServer], None, None]:
    options = "--repl-diskless-sync-delay", "0"
    for name in ("first", "second"):
        (folder / name).mkdir()
    with (
        redis_server(folder / "first", *options) as server,
        redis_server(folder / "second", *options) as replica,
    ):
        with replica.client() as client:
            client.replicaof("127.0.0.1", str(server.port))
        yield [server, replica]


def check_ends(model: Model, workers: list[Worker]) -> None:
    """Check that all processes soon show the same turn, the same events and the same end."""
    begin = time.monotonic()
    for session in SESSIONS:
        while True:
            is_late = model.is_over(begin)
            seen = [each.process.call(Turns.observe, session, 0, 0.1) for each in workers]
            agree = len(set(seen)) == 1 and (seen[0] is None or seen[0].error != "running")
            if agree or is_late:
                break
        for each in seen:
            model.record("at the end", f"{session}: {each and (each.turn, each.error)}")
        if not agree:
            model.violate(f"the processes do not agree about the turn of {session}")


def check_keys(model: Model, server: RedisServer) -> None:
    with server.client() as client:
        for key in client.scan_iter():
            # A key that has just expired has a negative time, too.
            if client.pttl(key) <= 0 and client.exists(key):
                model.violate(f"the key {key!r} does not expire")


def check_resources(model: Model, workers: list[Worker]) -> None:
    """Check that the threads and the memory of all processes return to their sizes at the start."""
    ends = time.monotonic() + 30
    for worker in workers:
        while worker.process.call(Turns.kept_logs) and time.monotonic() < ends:
            time.sleep(0.2)
        if kept := worker.process.call(Turns.kept_logs):
            model.violate(f"{worker.name} has {kept} turns in memory after the end")
        threads = worker.process.call(Turns.threads)
        if threads > worker.threads:
            model.violate(f"{worker.name} has {threads} threads, and had {worker.threads}")
        growth = worker.process.call(Turns.resident_bytes) - worker.resident_bytes
        print(worker.name, "has grown by", growth // 1024, "KiB")
        if growth > MAX_GROWTH_BYTES:
            model.violate(f"the memory of {worker.name} has grown by {growth} bytes")


def check_connections(model: Model, servers: list[RedisServer]) -> None:
    for server in servers:
        with server.client() as client:
            left = [each for each in client.client_list() if each["cmd"] != "client|list"]
        # The master and its replica are connected.
        users = [each for each in left if not {"S", "M"} & set(each["flags"])]
        if users:
            model.violate(f"{len(users)} connections are open after the end: {users}")


@pytest.mark.timeout(SECONDS * 3 + 300)
def test_random_use_and_faults_of_redis_keep_the_promises(tmp_path: Path) -> None:
    seed = int(os.environ.get("FLUX0_TEST_SEED", str(random.SystemRandom().randrange(10**6))))
    print(f"seed: FLUX0_TEST_SEED={seed}")
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    model = Model()
    with redis_with_replica(tmp_path) as servers:
        with started_workers(servers, model, chance) as faults:
            workers = faults.workers
            model.begin = time.monotonic()
            for worker in workers:
                worker.start()
            ends = time.monotonic() + SECONDS
            while time.monotonic() < ends:
                name, act = faults.pick()
                model.reached()
                model.record("fault", name)
                act()
                model.reached()
                # Most pauses are short, and some are long enough for the checks without a fault.
                time.sleep(chance.random() ** 3 * 6 * LEASE)
            for worker in workers:
                worker.is_stopping.set()
            for worker in workers:
                worker.join(120)
                assert not worker.is_alive(), f"{worker.name} hangs (seed {seed})"
                if worker.failure is not None:
                    model.violate(f"{worker.name}: {worker.failure!r}")
            for worker in workers:
                while worker.own:
                    worker.finish()
            check_ends(model, workers)
            check_keys(model, faults.server)
            check_resources(model, workers)
        check_connections(model, servers)
    history = "\n".join(map(str, model.history))
    print(len(model.turns), "turns,", len(model.history), "steps")
    if os.environ.get("FLUX0_TEST_HISTORY"):
        print(history)
    assert not model.violations, f"seed {seed}:\n{history}\n" + "\n".join(model.violations)
