"""Background turns in several web workers that share a Redis: uvicorn, and gunicorn with threads.

The clocks of the workers differ by a day.
"""

# redis has incomplete types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.programs import REDIS, needs
from support.redis_server import RedisServer, redis_server
from support.server import Flux0Server
from support.web_workers import Kind, Server, Site, events_of, fake_server, site

pytestmark = needs(REDIS)

# An outage of Redis must be shorter, also on a busy machine.
LONG_LEASE = 15.0
SHORT_LEASE = 4.0
TIMEOUT = 30.0


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(scope="module", params=["uvicorn-fake", "uvicorn-server", "gunicorn-server"])
def shared(request: pytest.FixtureRequest, redis: RedisServer) -> Iterator[Site]:
    """Workers with a fake on a port, or with the real server."""
    kind, _, name = request.param.partition("-")
    with ExitStack() as stack:
        server: Server = (
            stack.enter_context(fake_server())
            if name == "fake"
            else request.getfixturevalue("server")
        )
        count = 3 if kind == "uvicorn" else 2
        yield stack.enter_context(site(kind, server, redis, count, LONG_LEASE))


def send(
    worker: httpx.Client, session_id: str, *script: dict[str, Any]
) -> AbstractContextManager[httpx.Response]:
    return worker.stream("POST", f"/{session_id}", content=json.dumps(script))


def join(
    worker: httpx.Client, session_id: str, after: int | None = None
) -> AbstractContextManager[httpx.Response]:
    headers = {} if after is None else {"last-event-id": str(after)}
    return worker.stream("GET", f"/{session_id}", headers=headers)


def relayed(worker: httpx.Client, session_id: str, after: int | None = None) -> list[bytes]:
    with join(worker, session_id, after) as response:
        return list(events_of(response))


def read_until(relay: Iterator[bytes], text: bytes) -> list[bytes]:
    """Read events until an event contains the text."""
    read = [next(relay)]
    while text not in read[-1]:
        read.append(next(relay))
    return read


def test_turn_continues_without_its_browser_and_every_worker_relays_the_same_bytes(
    shared: Site, fresh_name: str
) -> None:
    session_id = shared.new_session()
    first, *others = shared.workers
    script = [{"text": f"Part {number} é", "pieces": 3} for number in range(4)]
    with send(first, session_id, *script, {"wait": fresh_name}, {"text": "End"}) as response:
        seen = list(islice(events_of(response), 5))
    # The browser has disconnected, and joins the running turn in another worker.
    with join(others[-1], session_id) as response:
        reloaded = events_of(response)
        assert list(islice(reloaded, 5)) == seen
        shared.server.release(fresh_name)
        whole = [*seen, *reloaded]

    for worker in shared.workers:
        assert relayed(worker, session_id) == whole
        assert relayed(worker, session_id, after=5) == whole[5:]
    assert b"error" not in b"".join(whole)
    assert [event.split(b"id: ")[1].split(b"\n")[0] for event in whole] == [
        str(number).encode() for number in range(1, len(whole) + 1)
    ]
    texts = [f"Part {number} é" for number in range(4)]
    assert shared.stored_texts(session_id) == [*texts, "End"]


def test_turn_is_stopped_in_another_worker(shared: Site, fresh_name: str) -> None:
    session_id = shared.new_session()
    first, *others = shared.workers
    with (
        send(first, session_id, {"text": "One"}, {"wait": fresh_name}) as response,
        join(others[-1], session_id) as joined,
    ):
        relays = events_of(response), events_of(joined)
        first_begin, other_begin = (read_until(relay, b'"One"') for relay in relays)
        assert first_begin == other_begin
        assert others[0].delete(f"/{session_id}").status_code == 204
        first_rest, other_rest = map(list, relays)
    assert first_rest == other_rest
    assert first_rest[-1].startswith(b"event: error\n")
    assert b'"TurnStopped"' in first_rest[-1]
    shared.server.wait_cancelled(fresh_name)


# A fake on a port has threads: it may read the second message before the first stream's end.
@pytest.mark.parametrize(
    "shared", ["uvicorn-server", "gunicorn-server"], indirect=True, scope="module"
)
def test_second_message_in_another_worker_stops_the_first_turn(
    shared: Site, fresh_name: str
) -> None:
    session_id = shared.new_session()
    first, *others = shared.workers
    with send(first, session_id, {"text": "One"}, {"wait": fresh_name}) as response:
        relay = events_of(response)
        next(relay)
        refused = others[0].post(f"/{session_id}?refuse", content="[]")
        assert refused.status_code == 409
        with send(others[0], session_id, {"text": "Two", "pieces": 3}) as second:
            answered = list(events_of(second))
        assert b'"TurnStopped"' in list(relay)[-1]
    assert b"error" not in b"".join(answered)
    for worker in shared.workers:
        assert relayed(worker, session_id) == answered
    assert shared.stored_texts(session_id)[-1:] == ["Two"]


def test_turn_continues_while_redis_is_restarted(shared: Site, fresh_name: str) -> None:
    session_id = shared.new_session()
    first, *others = shared.workers
    with (
        send(first, session_id, {"text": "One"}, {"wait": fresh_name}, {"text": "Two"}) as response,
        join(others[0], session_id) as joined,
    ):
        relays = events_of(response), events_of(joined)
        begin = [next(relay) for relay in relays]
        shared.redis.stop()
        shared.server.release(fresh_name)
        whole = [begin[0], *relays[0]]  # The relay in the worker of the turn needs no Redis.
        shared.redis.start()
        assert [begin[1], *relays[1]] == whole
    assert b"error" not in b"".join(whole)
    assert shared.stored_texts(session_id) == ["One", "Two"]


@pytest.mark.parametrize("kind", ["uvicorn", "gunicorn"])
def test_relays_in_other_workers_report_a_killed_worker(
    kind: Kind, server: Flux0Server, tmp_path: Path, fresh_name: str
) -> None:
    with (
        redis_server(tmp_path) as redis,
        site(kind, server, redis, 2, SHORT_LEASE) as running,
    ):
        session_id = running.new_session()
        first, other = running.workers
        with join(other, session_id) as response:
            assert response.status_code == 204
        with (
            send(first, session_id, {"text": "One"}, {"wait": fresh_name}) as response,
            join(other, session_id) as joined,
        ):
            reloaded = events_of(joined)
            begin = read_until(events_of(response), b'"One"')
            assert read_until(reloaded, b'"One"') == begin
            os.kill(int(response.headers["worker-pid"]), signal.SIGKILL)
            assert b'"ReaderLost"' in list(reloaded)[-1]
        with send(other, session_id, {"text": "Two"}) as response:
            assert b'"Two"' in b"".join(events_of(response))


@pytest.mark.parametrize("kind", ["uvicorn", "gunicorn"])
def test_worker_reads_its_turns_to_their_end_before_it_exits(
    kind: Kind, redis: RedisServer, fresh_name: str
) -> None:
    with fake_server() as server, site(kind, server, redis, 1, LONG_LEASE) as running:
        session_id = running.new_session()
        script = {"text": "One"}, {"wait": fresh_name}, {"text": "Two"}
        with send(running.workers[0], session_id, *script) as response:
            read_until(events_of(response), b'"One"')
        (process,) = running.processes
        process.begin_exit()
        assert not process.exits_within(1.0)
        server.release(fresh_name)
        assert process.exits_within(TIMEOUT)
        assert running.stored_texts(session_id) == ["One", "Two"]
