"""Many threads share a client over each transport, Redis, alarms and the first imports.

Run it with a free-threaded build of Python, too.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any, cast

import anyio
import pytest

import flux0
from flux0 import BackgroundTurns, Flux0, RedisTurnStore
from flux0.observers import Call, CallEnd, Observer, TurnEnd
from flux0.runtime.time import SystemTime
from flux0.testing import FakeTransport, Say
from support.counting_server import OPEN_SESSION, TEXTS, CountingServer
from support.many_threads import THREADS, frequent_switches, in_each_thread, in_threads
from support.programs import REDIS, needs
from support.redis_server import redis_server, wait_until
from support.streams import value_of
from support.transports import ASYNC_WAYS, SYNC_WAYS, Way

__all__ = ["frequent_switches"]

ROUNDS = 20
WORDS = [f"{number} " for number in range(60)]


class Ends(Observer):
    """Counts the ends of calls and turns."""

    def __init__(self) -> None:
        self.calls: list[str | None] = []
        self.turns: list[str | None] = []

    def on_call_end(self, call: Call, end: CallEnd) -> None:
        self.calls.append(call.operation)

    def on_turn_end(self, call: Call, turn: TurnEnd) -> None:
        self.turns.append(turn.session_id)

    def check(self) -> None:
        """Check that each call and each turn of all threads was reported once."""
        turns = THREADS * ROUNDS * 3
        assert Counter(self.calls) == {
            "agents.list": THREADS * ROUNDS,
            "sessions.create_event": turns,
        }
        sessions = [f"s{number}" for number in range(THREADS)] * 2
        sessions += [f"{OPEN_SESSION}{number}" for number in range(THREADS)]
        assert Counter(self.turns) == Counter(sessions * ROUNDS)


def create_client(server: CountingServer, way: Way, ends: Ends) -> Flux0:
    retries = flux0.RetryConfig("none")
    transport = way.make_transport()
    return Flux0(server.url, transport=transport, retry_config=retries, observers=[ends])


@pytest.mark.parametrize("way", SYNC_WAYS, ids=str)
def test_threads_share_a_client(way: Way) -> None:
    ends = Ends()

    def use(number: int) -> None:
        for _ in range(ROUNDS):
            assert len(client.agents.list(timeout_ms=60_000)) == 1
            stream = client.sessions.create_event(session_id=f"s{number}", content="Hi")
            assert tuple(value_of(event) for event in stream) == TEXTS
            stream = client.sessions.create_event(session_id=f"s{number}", content="Hi")
            assert b"".join(stream.relay()).count(b"event: chunk") == len(TEXTS)
            open_session = f"{OPEN_SESSION}{number}"
            with client.sessions.create_event(session_id=open_session, content="Hi") as stream:
                assert value_of(next(stream)) == "a"

    with CountingServer() as server:
        with create_client(server, way, ends) as client:
            in_threads(*[lambda n=number: use(n) for number in range(THREADS)])
            wait_until(lambda: not server.turns)
        gc.collect()
        wait_until(lambda: not server.connections)
    ends.check()


@pytest.mark.parametrize("way", ASYNC_WAYS, ids=str)
def test_event_loops_in_threads_share_a_client(way: Way) -> None:
    ends = Ends()

    async def use(number: int) -> None:
        for _ in range(ROUNDS):
            assert len(await client.agents.list_async(timeout_ms=60_000)) == 1
            send = client.sessions.create_event_async
            stream = await send(session_id=f"s{number}", content="Hi")
            assert tuple([value_of(event) async for event in stream]) == TEXTS
            stream = await send(session_id=f"s{number}", content="Hi")
            pieces = [piece async for piece in stream.relay()]
            assert b"".join(pieces).count(b"event: chunk") == len(TEXTS)
            open_session = f"{OPEN_SESSION}{number}"
            async with await send(session_id=open_session, content="Hi") as stream:
                assert value_of(await anext(stream)) == "a"

    with CountingServer() as server:
        with create_client(server, way, ends) as client:
            run: Any = anyio.run
            in_threads(
                *[lambda n=number: run(use, n, backend=way.mode) for number in range(THREADS)]
            )
            wait_until(lambda: not server.turns)
        gc.collect()
        wait_until(lambda: not server.connections)
    ends.check()


@needs(REDIS)
def test_each_reader_of_two_processes_gets_all_events_over_redis(tmp_path: Path) -> None:
    fake = FakeTransport([Say(word) for word in WORDS])
    with (
        redis_server(tmp_path) as server,
        closing(RedisTurnStore.from_url(server.url)) as own,
        closing(RedisTurnStore.from_url(server.url)) as other,
        Flux0(transport=fake) as client,
    ):
        here, there = BackgroundTurns(store=own), BackgroundTurns(store=other)
        for _ in range(ROUNDS):
            conversation = client.conversation(agent=fake.agent_id)
            turn = here.start(conversation, "Hi")

            def read(turns: BackgroundTurns) -> bytes:
                found = turns.join(conversation.session_id)  # noqa: B023 - called in this round
                assert found is not None
                return b"".join(found.relay(heartbeat_ms=None))

            relays = in_threads(*[lambda: read(here), lambda: read(there)] * (THREADS // 2))
            assert len(set(relays)) == 1
            assert turn.wait().text == "\n".join(WORDS)


def test_each_alarm_is_called_once_unless_it_was_cancelled() -> None:
    system = SystemTime()

    def set_alarms() -> tuple[list[str], list[str]]:
        called: list[str] = []
        cancelled: list[str] = []
        for number in range(ROUNDS * 10):
            alarm = str(number)
            moment = monotonic() + number % 7 / 1000
            cancel = system.alarm(moment, partial(called.append, alarm))
            if number % 3 == 0 and cancel() is not None:
                cancelled.append(alarm)
        ended = Event()
        system.alarm(monotonic() + 0.05, ended.set)
        assert ended.wait(60)
        return called, cancelled

    for called, cancelled in in_each_thread(set_alarms):
        # The thread of the alarms calls them in the order of their moments, after `ended` at last.
        assert sorted(called + cancelled, key=int) == [str(each) for each in range(ROUNDS * 10)]


FIRST_USE = """
import random, sys
from threading import Barrier, Thread

sys.setswitchinterval(1e-6)
server_url, transport, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
import flux0

names = [*flux0.__all__]
barrier, objects, errors = Barrier(threads), [], []

def use():
    mine = names.copy()
    random.Random().shuffle(mine)
    try:
        barrier.wait()
        with flux0.Flux0(server_url, transport=getattr(flux0, transport)()) as client:
            assert client.agents.list()[0].name == "Drizzle"
            stream = client.sessions.create_event(session_id=f"s{id(mine)}", content="Hi")
            assert stream.answer == "" and len(list(stream)) == 3
        found = {name: getattr(flux0, name) for name in mine}
        objects.append({name: id(found[name]) for name in names})
    except BaseException as error:
        errors.append(repr(error))

all_threads = [Thread(target=use) for _ in range(threads)]
[each.start() for each in all_threads]
[each.join() for each in all_threads]
assert not errors, errors
assert all(each == objects[0] for each in objects)
"""


@pytest.mark.parametrize("way", SYNC_WAYS, ids=str)
def test_threads_make_the_first_call_of_a_process(way: Way) -> None:
    kind = type(cast("Any", way.make_transport())).__name__
    with CountingServer() as server:
        command = [sys.executable, "-c", FIRST_USE, server.url, kind, str(THREADS)]
        for _ in range(5):
            done = subprocess.run(command, capture_output=True, timeout=120, check=False)
            assert done.returncode == 0, done.stderr.decode()
