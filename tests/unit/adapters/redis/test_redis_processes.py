"""Background turns in several processes that share a Redis."""

# redis has incomplete types.
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from flux0.domain.background_errors import TurnRunning, TurnStoreError
from support.programs import REDIS, needs
from support.redis_server import RedisServer, redis_server, wait_until
from support.turn_processes import TurnProcess, Turns, turn_bytes, turn_processes

pytestmark = needs(REDIS)

SHORT_LEASE = 1.0
# Tests of outages that are shorter than the lease must not fail on a busy machine.
LONG_LEASE = 8.0
KEEP_SECONDS = 300.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(scope="module")
def started(server: RedisServer) -> Iterator[list[TurnProcess]]:
    with turn_processes(2, server.url, lease_seconds=LONG_LEASE) as processes:
        yield processes


@pytest.fixture
def processes(server: RedisServer, started: list[TurnProcess]) -> list[TurnProcess]:
    """Two processes. Each test needs other ids, because the processes keep their turns."""
    with server.client() as client:
        client.flushall()
    return started


def check_expiry(client: Redis, longest_seconds: float) -> None:
    """Check that each key expires."""
    keys = list(client.scan_iter())
    assert keys
    for key in keys:
        assert 0 < client.pttl(key) <= longest_seconds * 1000, key


def test_turn_is_relayed_byte_for_byte_in_both_processes(processes: list[TurnProcess]) -> None:
    reader, follower = processes
    reader.call(Turns.claim, "relayed session", "relayed turn")
    for process in processes:
        process.call(Turns.relay, "relayed session", 2)
    reader.call(Turns.append, "relayed turn", 1000)
    follower.call(Turns.wait_for_events, "relayed turn", 1000)
    reader.call(Turns.append, "relayed turn", 1)
    reader.call(Turns.finish, "relayed turn")

    for process in processes:
        assert process.call(Turns.relayed, "relayed session") == {
            turn_bytes("relayed turn", 1001): 2
        }
        assert process.call(Turns.find, "relayed session") == "relayed turn"


def test_turn_can_be_stopped_in_another_process(processes: list[TurnProcess]) -> None:
    reader, other = processes
    reader.call(Turns.claim, "stopped session", "stopped turn")
    for process in processes:
        process.call(Turns.relay, "stopped session", 1)
    assert other.call(Turns.find, "stopped session") == "stopped turn"
    other.call(Turns.stop, "stopped turn", "the stop button")

    for process in processes:
        assert process.call(Turns.wait_for_end, "stopped turn") == "TurnStopped: the stop button"
        (content,) = process.call(Turns.relayed, "stopped session")
        assert content.startswith(b"event: error\nid: 1\ndata: ")


def test_second_message_in_another_process_is_refused_or_replaces_the_turn(
    processes: list[TurnProcess],
) -> None:
    reader, other = processes
    reader.call(Turns.claim, "second session", "second turn")
    with pytest.raises(TurnRunning) as raised:
        other.call(Turns.claim, "second session", "second turn 2", refuse=True)
    assert raised.value.sent == "no"
    assert reader.call(Turns.find, "second session") == "second turn"

    assert other.call(Turns.claim, "second session", "second turn 2") == "second turn"
    other.call(Turns.stop, "second turn", "another message")
    assert other.call(Turns.wait_for_end, "second turn") == "TurnStopped: another message"
    assert reader.call(Turns.find, "second session") == "second turn 2"


@pytest.mark.parametrize("ending", [0, 1])
def test_another_process_continues_the_relays_that_end_relays_has_ended(
    server: RedisServer, ending: int
) -> None:
    """The process that ends its relays reads the turn, or follows it."""
    session, turn = f"ending session {ending}", f"ending turn {ending}"
    with turn_processes(2, server.url, lease_seconds=LONG_LEASE) as processes:
        reader, ended, other = processes[0], processes[ending], processes[1 - ending]
        reader.call(Turns.claim, session, turn)
        reader.call(Turns.append, turn, 10)
        ended.call(Turns.relay, session, 1)
        ended.call(Turns.wait_for_events, turn, 10)
        ended.call(Turns.end_relays)
        (content,) = ended.call(Turns.relayed, session)
        begin, _, hint = content.partition(b"event: reconnect\n")
        assert hint.startswith(b"retry: 1000\ndata: ")

        other.call(Turns.relay, session, 1, begin.count(b"\n\n"))
        reader.call(Turns.append, turn, 5)
        reader.call(Turns.finish, turn)
        (rest,) = other.call(Turns.relayed, session)
        assert begin + rest == turn_bytes(turn, 15)
        ended.call(Turns.relay, session, 1)
        (later,) = ended.call(Turns.relayed, session)
        assert later.startswith(b"event: reconnect\n")


def test_relays_report_that_the_reading_process_was_killed(tmp_path: Path) -> None:
    with (
        redis_server(tmp_path) as server,
        turn_processes(2, server.url, lease_seconds=SHORT_LEASE) as (reader, follower),
    ):
        reader.call(Turns.claim, "killed session", "killed turn")
        reader.call(Turns.append, "killed turn", 10)
        follower.call(Turns.relay, "killed session", 3)
        follower.call(Turns.wait_for_events, "killed turn", 10)
        reader.kill()

        ((content, count),) = follower.call(Turns.relayed, "killed session").items()
        assert count == 3
        # The other processes do not know whether the turn continues, so its error has no number.
        error = b"event: error\ndata: "
        assert content.startswith(turn_bytes("killed turn", 10) + error)
        assert b'"ReaderLost"' in content
        assert follower.call(Turns.find, "killed session") == "killed turn"
        assert "ReaderLost" in follower.call(Turns.wait_for_end, "killed turn")
        assert follower.call(Turns.claim, "killed session", "killed turn 2", refuse=True) is None
        with server.client() as client:
            check_expiry(client, KEEP_SECONDS + SHORT_LEASE)


def test_message_after_a_killed_process_waits_until_its_turn_is_lost(tmp_path: Path) -> None:
    with (
        redis_server(tmp_path) as server,
        turn_processes(2, server.url, lease_seconds=SHORT_LEASE) as (reader, other),
    ):
        reader.call(Turns.claim, "lost session", "lost turn")
        with pytest.raises(TurnRunning):
            other.call(Turns.claim, "lost session", "lost turn 2", refuse=True)
        reader.kill()
        assert other.call(Turns.claim, "lost session", "lost turn 2") == "lost turn"
        assert "ReaderLost" in other.call(Turns.wait_for_end, "lost turn")
        assert other.call(Turns.find, "lost session") == "lost turn 2"


def test_running_turn_keeps_its_session_if_redis_loads_an_older_snapshot(tmp_path: Path) -> None:
    with (
        redis_server(tmp_path) as server,
        turn_processes(2, server.url, lease_seconds=LONG_LEASE) as (reader, follower),
    ):
        reader.call(Turns.claim, "snapshot session", "kept turn")
        reader.call(Turns.finish, "kept turn")
        follower.call(Turns.relay, "snapshot session", 1)
        assert follower.call(Turns.relayed, "snapshot session") == {b"": 1}
        with server.client() as client:
            client.save()
        reader.call(Turns.claim, "snapshot session", "running turn")
        reader.call(Turns.append, "running turn", 5)
        follower.call(Turns.relay, "snapshot session", 2)
        follower.call(Turns.wait_for_events, "running turn", 5)
        server.stop()
        server.start()
        reader.call(Turns.append, "running turn", 5)
        follower.call(Turns.wait_for_events, "running turn", 10)
        wait_until(lambda: follower.call(Turns.find, "snapshot session") == "running turn")
        reader.call(Turns.finish, "running turn")
        assert follower.call(Turns.relayed, "snapshot session") == {
            turn_bytes("running turn", 10): 2
        }


def test_relays_continue_after_redis_was_restarted_without_data(
    server: RedisServer, processes: list[TurnProcess]
) -> None:
    reader, follower = processes
    reader.call(Turns.claim, "restarted session", "restarted turn")
    reader.call(Turns.append, "restarted turn", 5)
    for process in processes:
        process.call(Turns.relay, "restarted session", 2)
        process.call(Turns.wait_for_events, "restarted turn", 5)
    server.stop()
    reader.call(Turns.append, "restarted turn", 5)
    # Relays in the reading process do not need Redis.
    reader.call(Turns.wait_for_events, "restarted turn", 10)
    assert reader.call(Turns.find, "restarted session") == "restarted turn"
    server.start()
    follower.call(Turns.wait_for_events, "restarted turn", 10)
    reader.call(Turns.append, "restarted turn", 5)
    reader.call(Turns.finish, "restarted turn")

    for process in processes:
        assert process.call(Turns.relayed, "restarted session") == {
            turn_bytes("restarted turn", 15): 2
        }


def test_relays_continue_after_redis_was_paused(
    server: RedisServer, processes: list[TurnProcess]
) -> None:
    reader, follower = processes
    reader.call(Turns.claim, "paused session", "paused turn")
    for process in processes:
        process.call(Turns.relay, "paused session", 1)
    server.pause()
    reader.call(Turns.append, "paused turn", 5)
    reader.call(Turns.wait_for_events, "paused turn", 5)
    server.resume()
    follower.call(Turns.wait_for_events, "paused turn", 5)
    reader.call(Turns.finish, "paused turn")

    for process in processes:
        assert process.call(Turns.relayed, "paused session") == {turn_bytes("paused turn", 5): 1}


@pytest.mark.parametrize("outage", ["stopped", "paused"])
def test_relays_end_if_redis_is_away_for_longer_than_the_lease_and_the_turn_can_be_joined_again(
    tmp_path: Path, outage: str
) -> None:
    with (
        redis_server(tmp_path) as server,
        turn_processes(2, server.url, lease_seconds=SHORT_LEASE) as (reader, follower),
    ):
        reader.call(Turns.claim, "outage session", "outage turn")
        reader.call(Turns.append, "outage turn", 5)
        follower.call(Turns.relay, "outage session", 2)
        follower.call(Turns.wait_for_events, "outage turn", 5)
        if outage == "stopped":
            server.stop()
        else:
            server.pause()
        ((content, count),) = follower.call(Turns.relayed, "outage session").items()
        assert count == 2
        # The turn continues, so the error must not have the next event's number.
        assert content.startswith(turn_bytes("outage turn", 5) + b"event: error\ndata: ")
        assert b'"TurnStoreError"' in content

        if outage == "stopped":
            with pytest.raises(TurnStoreError):
                follower.call(Turns.find, "outage session")
            with pytest.raises(TurnStoreError) as raised:
                follower.call(Turns.claim, "outage session 2", "outage turn 2")
            assert raised.value.sent == "no"
            server.start()
        else:
            server.resume()
        wait_until(lambda: follower.call(Turns.find, "outage session") == "outage turn")
        follower.call(Turns.relay, "outage session", 2)
        reader.call(Turns.append, "outage turn", 5)
        reader.call(Turns.finish, "outage turn")
        assert follower.call(Turns.relayed, "outage session") == {turn_bytes("outage turn", 10): 2}


def test_lost_connections_lose_no_event_and_no_stop(
    server: RedisServer, processes: list[TurnProcess]
) -> None:
    reader, follower = processes
    reader.call(Turns.claim, "connections session", "connections turn")
    reader.call(Turns.append, "connections turn", 10)
    follower.call(Turns.relay, "connections session", 1)
    follower.call(Turns.wait_for_events, "connections turn", 10)
    with server.client() as client:
        for _ in range(10):
            client.client_kill_filter(_type="normal")
            reader.call(Turns.append, "connections turn", 10)
            client.client_kill_filter(_type="pubsub")
            reader.call(Turns.append, "connections turn", 10)
        follower.call(Turns.wait_for_events, "connections turn", 210)
        client.client_kill_filter(_type="pubsub")
    follower.call(Turns.stop, "connections turn", "the stop button")

    assert reader.call(Turns.wait_for_end, "connections turn") == "TurnStopped: the stop button"
    (content,) = follower.call(Turns.relayed, "connections session")
    assert content.startswith(turn_bytes("connections turn", 210) + b"event: error\n")


def test_hundreds_of_relays_share_two_connections_of_their_process(
    server: RedisServer, processes: list[TurnProcess]
) -> None:
    reader, follower = processes
    reader.call(Turns.claim, "relays session", "relays turn")
    reader.call(Turns.append, "relays turn", 100)
    follower.call(Turns.relay, "relays session", 500)
    follower.call(Turns.wait_for_events, "relays turn", 100)
    reader.call(Turns.append, "relays turn", 100)
    with server.client() as client:
        assert len(client.client_list()) <= 2 * len(processes) + 1
    reader.call(Turns.finish, "relays turn")

    assert follower.call(Turns.relayed, "relays session") == {turn_bytes("relays turn", 200): 500}


def test_hundreds_of_turns_at_once_arrive_complete_and_in_order(
    processes: list[TurnProcess],
) -> None:
    reader, follower = processes
    turns = [f"turn-{number}" for number in range(200)]
    for turn in turns:
        reader.call(Turns.claim, f"session of {turn}", turn)
    reader.call(Turns.append_to_all, turns, 50)
    for turn in turns:
        follower.call(Turns.relay, f"session of {turn}", 1)
    reader.call(Turns.append_to_all, turns, 50)
    for turn in turns:
        reader.call(Turns.finish, turn)

    for turn in turns:
        expected = {turn_bytes(turn, 100): 1}
        assert follower.call(Turns.relayed, f"session of {turn}") == expected


def test_all_keys_expire(tmp_path: Path) -> None:
    options = {"lease_seconds": SHORT_LEASE, "keep_seconds": 2.0}
    with (
        redis_server(tmp_path) as server,
        turn_processes(2, server.url, **options) as (reader, follower),
        server.client() as client,
    ):
        for turn in ("running", "ended", "replaced"):
            reader.call(Turns.claim, f"session of {turn}", turn)
            reader.call(Turns.append, turn, 10)
            follower.call(Turns.find, f"session of {turn}")
            follower.call(Turns.wait_for_events, turn, 10)
        reader.call(Turns.finish, "ended")
        follower.call(Turns.wait_for_end, "ended")
        assert follower.call(Turns.claim, "session of replaced", "expiry turn 2") == "replaced"
        check_expiry(client, 2.0 + SHORT_LEASE)

        reader.kill()
        follower.call(Turns.finish, "expiry turn 2")
        wait_until(lambda: client.dbsize() == 0)
        assert follower.call(Turns.find, "session of ended") is None
