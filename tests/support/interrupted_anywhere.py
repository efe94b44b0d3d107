"""A sweep that raises an exception at each place of a sync call, once at each place.

    python -m support.interrupted_anywhere <transport> <scenario> <kind> [options]

An exception of a signal handler can arrive where Python looks for signals: at the start of a
function, after a call of a function of C, and at a jump back. A first run of the scenario records
these places. Then the scenario runs once for each place, and `sys.monitoring` raises an exception
there. Before that, another thread starts a call over the same client, and its response is held, so
this call uses a connection of the pool at the moment of the interruption.

Between the entry of a `with` statement with a lock of C and its block, Python does not look for
signals, nor between the end of the block and the release of the lock. The event `LINE` has places
there (the line of the `with` statement again), which no signal can reach. Therefore this module
does not use `LINE`.

It prints one JSON object: the number of places, and the problems that were found. It prints each
place to stderr. If a call hangs, it prints the stacks of all threads, and exits.
"""

# ruff: noqa: S311 - the random numbers are not secrets

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from attrs import define, field

import flux0
from support.counting_server import HOLD, OPEN_SESSION, TEXTS, CountingServer
from support.transports import make_transport

_SUPPORT = os.fspath(Path(__file__).parent)
# A call of a machine with many processes takes some milliseconds. A call that takes longer hangs.
_LIMIT_MS = 15_000
_SECONDS_TO_SETTLE = 10.0
# The call of the other thread cannot start while the interrupted thread holds a lock.
_SECONDS_TO_START = 0.1


class Interruption(BaseException):
    """An exception such as KeyboardInterrupt."""


class SoftTimeLimit(Exception):
    """An exception such as SoftTimeLimitExceeded."""


KINDS = {"BaseException": Interruption, "Exception": SoftTimeLimit}

Place: TypeAlias = tuple[Any, int, str]


class Places:
    """Records or interrupts the places that this thread reaches."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._act: Callable[[Place], object] | None = None
        monitoring: Any = vars(sys)["monitoring"]  # new in Python 3.12
        self._monitoring = monitoring
        self._tool = monitoring.DEBUGGER_ID
        events = monitoring.events
        monitoring.use_tool_id(self._tool, "flux0")
        for name in ("PY_START", "PY_RESUME", "C_RETURN"):
            monitoring.register_callback(self._tool, getattr(events, name), self._callback(name))
        monitoring.register_callback(self._tool, events.JUMP, self._on_jump)
        self._events = events.PY_START | events.PY_RESUME | events.CALL | events.JUMP

    def _callback(self, name: str) -> Callable[..., None]:
        def on_event(code: Any, offset: int, *_: object) -> None:
            if self._act is not None:
                self._reach(code, offset, name)

        return on_event

    def _on_jump(self, code: Any, offset: int, target: int) -> None:
        if self._act is not None and target < offset:
            self._reach(code, offset, "JUMP")

    def _reach(self, code: Any, offset: int, event: str) -> None:
        act = self._act
        if act is None or threading.get_ident() != self._thread:
            return
        if not code.co_filename.startswith(_SUPPORT):
            act((code, offset, event))

    def run(self, scenario: Callable[[], object], act: Callable[[Place], object]) -> None:
        """Run a scenario, and call `act` for each place that it reaches."""
        self._monitoring.set_events(self._tool, self._events)
        self._act = act
        try:
            scenario()
        finally:
            self._act = None
            self._monitoring.set_events(self._tool, 0)

    def record(self, scenario: Callable[[], object]) -> list[Place]:
        found: dict[Place, None] = {}
        self.run(scenario, lambda place: found.setdefault(place, None))
        return list(found)

    def interrupt(
        self, scenario: Callable[[], object], target: Place, act: Callable[[], object]
    ) -> None:
        """Run a scenario, and call `act` when it reaches `target` for the first time."""

        def at_place(place: Place) -> None:
            if place == target:
                self._act = None
                act()

        self.run(scenario, at_place)


class OtherThread:
    """Makes a call over the same client while another thread is interrupted."""

    def __init__(self, server: CountingServer) -> None:
        self._server = server
        self._start = threading.Semaphore(0)
        self._ended = threading.Event()
        self._outcome: list[object] = []
        self.client: Any = None
        threading.Thread(target=self._run, daemon=True).start()

    def start(self) -> None:
        self._ended.clear()
        self._outcome.clear()
        self._start.release()
        self._server.holds.wait(_SECONDS_TO_START)

    def _run(self) -> None:
        while True:
            self._start.acquire()
            try:
                agents = self.client.agents.list(http_headers={HOLD: "1"}, timeout_ms=_LIMIT_MS)
                self._outcome.append(len(agents))
                del agents
            except BaseException as error:  # noqa: BLE001 - reported
                self._outcome.append(repr(error))
            self._ended.set()

    def finish(self) -> str:
        """Wait for the end of the call. Return its problem, or an empty string."""
        while not self._ended.wait(0.001):
            self._server.release()
        outcome = self._outcome.pop()
        return "" if outcome == 1 else f"another thread: {outcome}"


@define
class Sweep:
    """One scenario over one transport."""

    transport: str
    scenario: str
    kind: type[BaseException]
    server: CountingServer
    other: OtherThread
    places: Places = field(factory=Places)
    lost: list[object] = field(factory=list[object])
    client: Any = None
    stream: Any = None
    baseline: int = 0
    threads: int = 0

    def new_client(self) -> None:
        if self.client is not None:
            self.client.close()
        retries = flux0.RetryConfig("none")
        self.client = self.other.client = flux0.Flux0(
            self.server.url, transport=make_transport(self.transport), retry_config=retries
        )
        self.client.agents.list()
        # Open a second connection, which the other thread uses.
        with self.client.sessions.create_event(session_id=OPEN_SESSION, content="Hi"):
            self.client.agents.list()
        for scenario in (self.call, self.turn):
            scenario()

    def call(self) -> None:
        assert len(self.client.agents.list()) == 1

    def connect(self) -> None:
        """Make a call with a new client, which opens a connection."""
        client = flux0.Flux0(self.server.url, transport=make_transport(self.transport))
        client.agents.list(retries=flux0.RetryConfig("none"))
        client.close()

    def limited(self) -> None:
        assert len(self.client.agents.list(timeout_ms=_LIMIT_MS)) == 1

    def turn(self) -> None:
        stream = self.client.sessions.create_event(session_id="s", content="Hi")
        assert len(list(stream)) == len(TEXTS)

    def leave(self) -> None:
        with self.client.sessions.create_event(session_id=OPEN_SESSION, content="Hi") as stream:
            next(stream)

    def keep(self) -> None:
        """Refer to the stream after an interruption."""
        self.stream = self.client.sessions.create_event(session_id=OPEN_SESSION, content="Hi")
        next(self.stream)
        self.stream.close()

    def drop(self) -> None:
        stream = self.client.sessions.create_event(session_id=OPEN_SESSION, content="Hi")
        next(stream)

    def end(self) -> None:
        with self.client.sessions.create_event(session_id="s", content="Hi") as stream:
            assert stream.final_messages()

    def relay(self) -> None:
        stream = self.client.sessions.create_event(session_id="s", content="Hi")
        data = b"".join(stream.relay())
        assert data.count(b"event: chunk") == len(TEXTS)

    def close(self) -> None:
        self.client.close()

    def background(self) -> None:
        turns = flux0.BackgroundTurns()
        conversation = self.client.conversation(session="s")
        turn = turns.start(conversation, "Hi")
        data = b"".join(turn.relay())
        assert data.count(b"event: chunk") == len(TEXTS)
        turns.close()

    def next_calls(self) -> None:
        """Make a call and two turns on the sessions of the scenarios."""
        sessions, options = self.client.sessions, {"timeout_ms": _LIMIT_MS}
        assert len(self.client.agents.list(**options)) == 1
        assert len(list(sessions.create_event(session_id="s", content="Hi", **options))) == 3
        with sessions.create_event(session_id=OPEN_SESSION, content="Hi", **options) as stream:
            next(stream)

    def problems_at(self, place: Place) -> list[str] | None:
        """Interrupt the scenario at a place. Return the problems; None if it was not reached."""
        errors = [self.kind("interrupted")]
        problems: list[str] = []
        was_reached = False
        where: list[str] = []

        def act() -> None:
            nonlocal was_reached
            was_reached = True
            frames = traceback.extract_stack(limit=12)[:-2]
            where[:] = [" < ".join(f"{each.name}:{each.lineno}" for each in reversed(frames))]
            if self.scenario != "close":
                self.other.start()
            raise errors[0]

        try:
            self.places.interrupt(getattr(self, self.scenario), place, act)
        except BaseException as raised:  # noqa: BLE001 - compared
            if raised is not errors[0]:
                problems.append(f"raised {raised!r}")
            raised.__traceback__ = None
        else:
            # Python prints an exception in a finalizer, and continues. Finalizers close a stream
            # that is neither closed nor read to its end, and release an unreferenced client.
            # urllib3 closes its pools in finalizers.
            in_finalizers = self.scenario in ("drop", "connect") or (
                self.scenario == "close" and self.transport in ("requests", "urllib3")
            )
            if was_reached and not (self.lost and in_finalizers):
                problems.append("lost in a finalizer" if self.lost else "lost")
        if problems and "lost" in problems[0]:
            problems.append(where[0])
        self.lost.clear()
        errors.pop().__traceback__ = None
        if not was_reached:
            return problems or None
        if self.stream is not None:
            if self.stream.is_being_read:
                problems.append("the stream is still being read")
            self.stream.close()
            self.stream = None
        if self.scenario == "close":
            self.client.close()
        else:
            try:
                self.next_calls()
            except BaseException as raised:  # noqa: BLE001 - reported
                problems.append(f"next call: {raised!r}")
            if problem := self.other.finish():
                problems.append(problem)
        return problems + self._leaks()

    def _leaks(self) -> list[str]:
        if self.scenario == "close":
            return self._more_than(0)
        found = self._more_than(2)
        # The turn of `next_calls` has closed its connection. If two are open nevertheless, the
        # other thread has opened one, or one has leaked. Close the client to see which.
        if len(self.server.connections) - self.baseline > 1 and not found:
            self.client.close()
            found = self._more_than(0)
            if not found:
                self.new_client()
        return found

    def _more_than(self, allowed: int) -> list[str]:
        """Wait until at most `allowed` connections are open, without a turn or a new thread."""
        gc.collect()
        ends = time.monotonic() + _SECONDS_TO_SETTLE
        while True:
            connections = len(self.server.connections) - self.baseline
            turns, threads = len(self.server.turns), running_threads() - self.threads
            if connections <= allowed and not turns and threads <= 0:
                return []
            if time.monotonic() > ends:
                return [f"leaked: {connections} connections, {turns} turns, {threads} threads"]
            time.sleep(0.001)

    def reset(self) -> None:
        """Replace the client after a problem."""
        self.client.close()
        self.client = self.other.client = None
        gc.collect()
        time.sleep(0.05)
        self.baseline, self.threads = len(self.server.connections), running_threads()
        self.server.turns.clear()
        self.new_client()


def running_threads() -> int:
    """Return the number of threads. The thread of alarms ends some seconds after its last alarm."""
    return sum(each.name != "flux0-alarms" for each in threading.enumerate())


def name_of(place: Place) -> str:
    code, offset, event = place
    lines = [line for start, end, line in code.co_lines() if start <= offset < end]
    file = "/".join(Path(code.co_filename).parts[-3:])
    return f"{file}:{lines[0] if lines else 0} {code.co_qualname} {event}@{offset}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("transport")
    parser.add_argument("scenario")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    with CountingServer() as server:
        sweep = Sweep(
            options.transport, options.scenario, KINDS[options.kind], server, OtherThread(server)
        )
        print(json.dumps(run(sweep, options)))
        sys.stdout.flush()
        os._exit(0)


def run(sweep: Sweep, options: argparse.Namespace) -> dict[str, Any]:
    sys.unraisablehook = lambda unraisable: sweep.lost.append(unraisable.exc_value)
    is_close = options.scenario == "close"
    scenario = getattr(sweep, options.scenario)
    sweep.new_client()
    for _ in range(3):
        scenario()
        if is_close:
            sweep.new_client()
    gc.collect()
    gc.freeze()
    # The garbage collector does not free a frozen client, such as its pools that are in cycles.
    sweep.new_client()
    sweep.threads = running_threads()
    places = sweep.places.record(scenario)
    if is_close:
        sweep.new_client()
    elif len(sweep.places.record(scenario)) > len(places):
        places = sweep.places.record(scenario)
    if options.seed is not None:
        random.Random(options.seed).shuffle(places)
    ends = time.monotonic() + options.seconds
    reached, problems = 0, dict[str, list[str]]()
    for number, place in enumerate(places):
        if number < options.skip or options.only not in name_of(place):
            continue
        if time.monotonic() > ends:
            break
        faulthandler.dump_traceback_later(_LIMIT_MS / 1000 * 2, exit=True)
        # If the interpreter crashes or hangs, this line is the last one.
        print(f"{number} {name_of(place)}", file=sys.stderr)
        found = sweep.problems_at(place)
        faulthandler.cancel_dump_traceback_later()
        reached += found is not None
        if found:
            problems[name_of(place)] = found
        if found or is_close:
            sweep.reset()
    return {"places": len(places), "reached": reached, "problems": problems}


if __name__ == "__main__":
    main()
