"""`BackgroundTurn`: its reply, its arguments, and its repr."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from flux0 import BackgroundTurn, InvalidArgument
from flux0.domain.background_errors import TurnStopped, TurnTooLarge
from flux0.domain.errors import AgentError, ClientClosed, StreamInterrupted
from flux0.runtime.turn_log import LogEnd, TurnLog
from flux0.testing import CallTool, FakeTransport, GiveResult, Reason, Say
from flux0.turns.log_relay import OpenRelays
from support.background import background_turn
from support.fakes import turn as fake_turn
from support.in_memory import CORRELATION_ID, chunk, frame, in_every_mode, status
from support.modes import in_mode, run
from support.plain_format import PlainFormat
from support.transports import ASYNC, SYNC, Mode


@in_every_mode
async def test_reply_equals_the_reply_of_a_stream(mode: Mode) -> None:
    tool = CallTool("weather", {"city": "SF"})
    fake = FakeTransport([Reason("Hm"), tool, GiveResult(tool, "é"), Say("Sunny.", pieces=3)])
    events, _ = fake_turn(fake)
    logged = [event.to_sse(str(number)) for number, event in enumerate(events, 1)]
    for finished in (True, False):
        turn = in_mode(mode, background_turn(logged, LogEnd(finished=finished)))
        reply = await turn.wait_async()

        assert reply.text == "Sunny."
        assert [(call.tool_name, call.args) for call in reply.tool_calls] == [
            ("weather", {"city": "SF"})
        ]
        assert len(reply.messages) == 4
        assert reply.finished is finished


@in_every_mode
async def test_agent_error_has_the_messages_before_it(mode: Mode) -> None:
    events = [chunk("a"), status("error", "no model"), chunk("b")]
    turn = in_mode(mode, background_turn(events, LogEnd(finished=True)))
    with pytest.raises(AgentError, match="no model") as caught:
        await turn.wait_async()
    assert (caught.value.data, caught.value.correlation_id) == ("no model", CORRELATION_ID)
    assert [message.text for message in caught.value.messages] == ["a"]


@in_every_mode
async def test_error_without_details_gets_the_details_of_the_turn(mode: Mode) -> None:
    """The error may come from another process, or from code that does not know the stream."""
    events = [status("typing"), chunk("a"), frame("note", {})]
    turn = in_mode(mode, background_turn(events, LogEnd(TurnStopped("the turn was stopped"))))
    for _ in range(2):
        with pytest.raises(TurnStopped) as caught:
            await turn.wait_async()
        assert caught.value.correlation_id == CORRELATION_ID
        assert (caught.value.event_count, caught.value.sent) == (3, "yes")
        assert [message.text for message in caught.value.messages] == ["a"]


def test_error_before_the_first_event_may_have_been_sent() -> None:
    with pytest.raises(TurnStopped) as caught:
        background_turn([], LogEnd(TurnStopped("the turn was stopped"))).wait()
    assert (caught.value.sent, caught.value.correlation_id) == ("maybe", None)


def test_correlation_id_is_the_id_of_the_events_also_after_the_first_event_was_dropped() -> None:
    log = TurnLog("turn", 1_000, lambda _: None)
    turn = BackgroundTurn("session", log, OpenRelays())
    assert turn.correlation_id is None
    log.append(frame("note", {}))
    assert turn.correlation_id is None
    for _ in range(10):
        log.append(chunk("a"))
        assert turn.correlation_id == CORRELATION_ID
    assert log.first > 1


def test_error_with_details_keeps_them() -> None:
    error = StreamInterrupted("gone")
    error.correlation_id, error.event_count = "other", 7
    with pytest.raises(StreamInterrupted, match="gone") as caught:
        background_turn([chunk("a")], LogEnd(error)).wait()
    assert (caught.value.correlation_id, caught.value.event_count) == ("other", 7)


def test_each_reader_raises_its_own_copy_of_the_error() -> None:
    """A traceback would keep the objects of other readers, for as long as the turn is kept."""
    error = ClientClosed("closed")
    error.__cause__ = ZeroDivisionError("a bug")
    error.sent = "yes"
    turn = background_turn([], LogEnd(error))
    for _ in range(2):
        with pytest.raises(ClientClosed, match="closed") as caught:
            turn.wait()
        assert (caught.value.__cause__, caught.value.sent) == (error.__cause__, "yes")
    assert error.__traceback__ is None


def test_reply_of_a_turn_whose_first_events_were_dropped_is_an_error() -> None:
    events = [chunk(str(number)) for number in range(100)]
    turn = background_turn(events, LogEnd(), max_bytes=2000)
    with pytest.raises(TurnTooLarge, match="larger than 2,000 bytes"):
        turn.wait()


@pytest.mark.parametrize(
    "after", [-1, True, 1.0, "x", "-1", "1.0", " 1", "٣", "9" * 19, b"1", "1" * 5000]
)
def test_invalid_number_after_which_to_begin_is_rejected(after: Any) -> None:
    turn = background_turn([chunk("a")], LogEnd())
    for relay in (turn.relay, turn.relay_async):
        with pytest.raises(InvalidArgument, match="after must be the number of an event") as caught:
            relay(after=after)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("after", "first"),
    [(None, 0), ("", 0), (0, 0), ("0", 0), (1, 1), ("1", 1), ("001", 1), (2, 2), ("9" * 18, 2)],
)
@pytest.mark.parametrize("mode", SYNC + ASYNC)
def test_relay_begins_after_the_number(mode: Mode, after: int | str | None, first: int) -> None:
    events = [chunk("a"), chunk("b")]

    async def read() -> None:
        turn = in_mode(mode, background_turn(events, LogEnd()))
        pieces = [piece async for piece in turn.relay_async(after=after)]
        assert pieces == [b"".join(events[first:])][: 2 - first]

    run(mode, read)


@in_every_mode
async def test_relay_ends_with_the_relays_of_its_process(mode: Mode) -> None:
    relays = OpenRelays()
    log = TurnLog("turn-1", 10_000, lambda _: None)
    relays.end()
    turn = in_mode(mode, BackgroundTurn("session-1", log, relays))
    (piece,) = [piece async for piece in turn.relay_async()]
    assert piece.startswith(b"event: reconnect\n")


@pytest.mark.parametrize("heartbeat_ms", [0, -1, True, "1"])
def test_invalid_heartbeat_ms_is_rejected(heartbeat_ms: Any) -> None:
    turn = background_turn([])
    for relay in (turn.relay, turn.relay_async):
        with pytest.raises(InvalidArgument, match="heartbeat_ms"):
            relay(heartbeat_ms=heartbeat_ms)


async def relayed(turn: BackgroundTurn, mode: Mode) -> list[bytes]:
    if mode == "sync":
        return list(turn.relay(format=PlainFormat()))
    return [piece async for piece in turn.relay_async(format=PlainFormat())]


@in_every_mode
async def test_format_encodes_the_turn_from_its_start(mode: Mode) -> None:
    for error, last in ((None, b"end\n"), (TurnStopped("stopped"), b"TurnStopped 4\n")):
        turn = background_turn([status("typing"), frame("note", {}), chunk("a")], LogEnd(error))
        for _ in range(2):
            assert await relayed(turn, mode) == [b"start\n", b"1 typing\n3 a\n", last]


def test_format_encodes_the_heartbeats() -> None:
    pieces = background_turn([frame("note", {})]).relay(heartbeat_ms=1, format=PlainFormat())
    assert [next(pieces), next(pieces)] == [b"start\n", b"alive\n"]


def test_number_after_which_to_begin_is_rejected_for_a_format_without_numbers() -> None:
    turn = background_turn([chunk("a")], LogEnd())
    for relay in (turn.relay, turn.relay_async):
        with pytest.raises(InvalidArgument, match="after must be None: only flux0's own format"):
            relay(after="1", format=PlainFormat())
        relay(after="", format=PlainFormat())


def test_repr_shows_the_state_and_the_session() -> None:
    running = background_turn([chunk("a")])
    ended = background_turn([chunk("a")], LogEnd())
    assert repr(running) == "<BackgroundTurn running, 1 events, session='session-1'>"
    assert repr(ended) == "<BackgroundTurn ended, 1 events, session='session-1'>"
    assert (running.is_running, ended.is_running) == (True, False)


def test_background_turn_cannot_be_pickled() -> None:
    with pytest.raises(
        TypeError, match=r"^BackgroundTurn cannot be pickled or copied, .*pass ids instead"
    ):
        pickle.dumps(background_turn([]))


def test_event_count_includes_an_error_at_the_end() -> None:
    assert background_turn([]).event_count == 0
    assert background_turn([chunk("a")]).event_count == 1
    assert background_turn([chunk("a")], LogEnd()).event_count == 1
    assert background_turn([chunk("a")], LogEnd(ClientClosed("closed"))).event_count == 2
    copy_end = LogEnd(ClientClosed("closed"), is_of_copy=True)
    assert background_turn([chunk("a")], copy_end).event_count == 1


def test_trace_parent_is_none_until_the_turn_has_a_span() -> None:
    log = TurnLog("turn-1", 10_000, lambda _: None)
    turn = BackgroundTurn("session-1", log, OpenRelays())
    assert turn.trace_parent is None
    log.trace_parent = "the span"
    assert turn.trace_parent == "the span"
