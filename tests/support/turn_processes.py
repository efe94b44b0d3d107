"""Processes that share background turns over Redis."""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import resource
import threading
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Semaphore, Thread
from time import monotonic
from typing import Any, Concatenate, ParamSpec, TypeVar, final

import anyio
from attrs import frozen

from flux0 import BackgroundTurns, RedisTurnStore
from flux0.domain.background_errors import TurnStopped
from flux0.runtime.turn_log import LogEnd, TurnLog
from flux0.turns.log_relay import LogReader, wait_for_end
from support.forking import save_coverage
from support.transports import ASYNC, Mode

P = ParamSpec("P")
R = TypeVar("R")

TIMEOUT = 30.0

# One process imports the modules that are slow to import. The tests use its children.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["anyio", "coverage", "redis", "trio"])


def event(turn_id: str, number: int) -> bytes:
    return f"id: {number}\nevent: chunk\ndata: {turn_id}, event {number}\n\n".encode()


def turn_bytes(turn_id: str, count: int) -> bytes:
    """Return the events of a turn, as `Turns.append` adds them."""
    return b"".join(event(turn_id, number) for number in range(1, count + 1))


@frozen
class Observation:
    """The events that a relay has sent after `after`, and the class of the error at its end.

    Attributes:
        error: Empty if the turn was read to its end, and "running" if the relay has not ended.
        is_numbered: Whether the error has the number of an event.
    """

    turn: str
    after: int
    content: bytes
    error: str
    is_numbered: bool


@final
class Turns:
    """The turns of one process."""

    def __init__(self, url: str, backend: Mode, options: dict[str, Any]) -> None:
        self._backend = backend
        self.store: RedisTurnStore = RedisTurnStore.from_url(url, **options)
        self.turns: BackgroundTurns = BackgroundTurns(self.store)
        self.logs: dict[str, TurnLog] = {}
        self.relays: dict[str, tuple[Thread, list[bytes]]] = {}

    def claim(self, session_id: str, turn_id: str, *, refuse: bool = False) -> str | None:
        """Start a turn that this process reads. Return the replaced turn's id."""
        log = TurnLog(turn_id, 10**9, lambda why: log.finish(LogEnd(TurnStopped(why))))
        previous = self.store.claim(session_id, log, refuse=refuse)
        self.logs[turn_id] = log
        if previous is None:
            return None
        self.logs[previous.turn_id] = previous
        return previous.turn_id

    def append(self, turn_id: str, count: int) -> None:
        """Add events to a turn that this process reads."""
        log = self.logs[turn_id]
        for _ in range(count):
            log.append(event(turn_id, log.last + 1))

    def append_to_all(self, turn_ids: list[str], count: int) -> None:
        """Add events to several turns, by turns."""
        for _ in range(count):
            for turn_id in turn_ids:
                self.append(turn_id, 1)

    def append_some(self, turn_id: str, count: int) -> int:
        """Add events to a turn, unless it has ended. Return the number of its events."""
        log = self.logs[turn_id]
        for _ in range(count):
            log.append(event(turn_id, log.last + 1))
        return log.last

    def running(self, turn_ids: list[str]) -> list[str]:
        """Return which of the turns that this process reads are running."""
        return [each for each in turn_ids if not self.logs[each].is_ended]

    def undo(self, session_id: str, turn_id: str) -> None:
        """Undo the claim of a turn whose message was not sent, after `claim` raised an error."""
        log = TurnLog(turn_id, 10**9, lambda _: None)
        log.finish(LogEnd())
        self.store.release(session_id, log, None)

    def finish(self, turn_id: str) -> None:
        self.logs[turn_id].finish(LogEnd(finished=True))

    def stop(self, turn_id: str, reason: str) -> None:
        self.logs[turn_id].stop(reason)

    def wait_for_end(self, turn_id: str) -> str:
        """Return the class and the message of the error that ended a turn."""
        log = self.logs[turn_id]
        assert wait_for_end(log, TIMEOUT), "the turn did not end"
        assert log.end is not None
        return "" if log.end.error is None else f"{type(log.end.error).__name__}: {log.end.error}"

    def find(self, session_id: str) -> str | None:
        """Return the id of a session's turn."""
        log = self.store.find(session_id)
        if log is None:
            return None
        self.logs[log.turn_id] = log
        return log.turn_id

    def relay(self, session_id: str, readers: int, after: int = 0) -> None:
        """Join the turn of a session several times, at the same time, and begin to relay it."""
        joined = Semaphore(0)
        relayed: list[bytes] = []

        async def read() -> None:
            turn = await self.turns.join_async(session_id)
            assert turn is not None
            self.logs[turn.id] = turn._log  # pyright: ignore[reportPrivateUsage]
            joined.release()
            relay = turn.relay_async(heartbeat_ms=None, after=after)
            relayed.append(b"".join([piece async for piece in relay]))

        async def read_all() -> None:
            async with anyio.create_task_group() as tasks:
                for _ in range(readers):
                    tasks.start_soon(read)

        thread = Thread(
            target=anyio.run, args=(read_all,), kwargs={"backend": self._backend}, daemon=True
        )
        thread.start()
        self.relays[session_id] = thread, relayed
        for _ in range(readers):
            assert joined.acquire(timeout=TIMEOUT), "the turn could not be joined"

    def end_relays(self) -> None:
        self.turns.end_relays()

    def wait_for_events(self, turn_id: str, count: int) -> None:
        """Wait until this process has the events of a turn."""
        log = self.logs[turn_id]
        while log.last < count and not log.is_ended:
            assert LogReader(log, log.last).wait(TIMEOUT), "no event was received"
        assert log.last >= count

    def observe(self, session_id: str, after: int, seconds: float) -> Observation | None:
        """Relay a session's turn after an event, until its end, but at most for some seconds."""
        turn = self.turns.join(session_id)
        if turn is None:
            return None
        log = turn._log  # pyright: ignore[reportPrivateUsage]
        ends = monotonic() + seconds
        reader = LogReader(log, min(after, log.last))
        begin, events = reader.position, list[bytes]()
        while (more := reader.read()) is not None and (more or monotonic() < ends):
            events += more
            if not more:
                reader.wait(max(ends - monotonic(), 0))
        if reader.error is None and not log.is_ended:
            error = "running"
        else:
            error = type(reader.error).__name__ if reader.error else ""
        is_numbered = log.end is not None and log.end.has_numbered_error
        return Observation(turn.id, begin, b"".join(events), error, is_numbered)

    def threads(self) -> int:
        """Return the number of threads, without the thread of alarms, which ends at some time."""
        return sum(not each.name.startswith("flux0-alarms") for each in threading.enumerate())

    def resident_bytes(self) -> int:
        """Return the resident memory of this process."""
        pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
        return pages * resource.getpagesize()

    def kept_logs(self) -> int:
        """Return the number of logs in memory after this object has dropped its own references."""
        self.logs.clear()
        gc.collect()
        return sum(type(each) is TurnLog for each in gc.get_objects())

    def relayed(self, session_id: str) -> Counter[bytes]:
        """Wait for the end of all relays, and return how often each content was relayed."""
        thread, relayed = self.relays[session_id]
        thread.join(TIMEOUT)
        assert not thread.is_alive(), "the relays did not end"
        return Counter(relayed)


@final
class TurnProcess:
    """A process with its own store."""

    def __init__(self, url: str, backend: Mode, options: dict[str, Any]) -> None:
        self._connection, other = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_run, args=(other, url, backend, options))
        self._process.start()
        other.close()

    def call(
        self, method: Callable[Concatenate[Turns, P], R], *args: P.args, **options: P.kwargs
    ) -> R:
        """Call a method of `Turns` in the process."""
        self._connection.send((method.__name__, args, options))
        assert self._connection.poll(2 * TIMEOUT), f"{method.__name__} did not return"
        reply: tuple[R, Exception | None] = self._connection.recv()
        result, error = reply
        if error is not None:
            raise error
        return result

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Kill the process, as `kill -9` does."""
        self._process.kill()
        self._process.join()

    def close(self) -> None:
        """Close the store, and end the process."""
        if self._process.is_alive():
            self._connection.send(None)
            self._process.join(TIMEOUT)
            assert self._process.exitcode == 0
        self._connection.close()


@contextmanager
def turn_processes(
    count: int, url: str, **options: Any
) -> Generator[list[TurnProcess], None, None]:
    """Start processes with stores. The first relays turns under asyncio, the second under trio."""
    processes = [TurnProcess(url, ASYNC[number % 2], options) for number in range(count)]
    try:
        yield processes
    except BaseException:
        for process in processes:
            process.kill()
        raise
    for process in processes:
        process.close()


def _run(connection: Connection, url: str, backend: Mode, options: dict[str, Any]) -> None:
    faulthandler.enable()
    turns = Turns(url, backend, options)
    while (request := connection.recv()) is not None:
        name, args, named = request
        try:
            connection.send((getattr(turns, name)(*args, **named), None))
        except Exception as error:  # noqa: BLE001 - raised again in the calling process
            connection.send((None, error))
    turns.store.close()
    save_coverage()  # A child of the fork server exits without it.
