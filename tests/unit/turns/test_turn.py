"""The state machine of a turn: bytes, the end and errors in; events and a failure out."""

from __future__ import annotations

import pytest

from flux0.domain import errors
from flux0.domain.stream_events import ChunkEvent
from flux0.turns.turn import Received, Turn
from support.in_memory import CORRELATION_ID, chunk, frame, new_turn, status

UNKNOWN = frame("weather", {"sun": True})


def values(events: Received) -> list[object]:
    """Return the values that the chunk events append."""
    return [event.patches[0].value for event, _ in events if isinstance(event, ChunkEvent)]


def turn_after(data: bytes) -> Turn:
    turn = new_turn(idle=600)
    turn.feed(data)
    return turn


@pytest.mark.parametrize("rest", [b"event: chunk\n", b"data: {}\n", b"x", chunk("b")[:-1]])
def test_end_in_the_middle_of_an_event_is_an_interruption(rest: bytes) -> None:
    failure = turn_after(chunk("a") + rest).on_end()

    assert isinstance(failure, errors.StreamInterrupted)
    assert "ended in the middle of an event" in str(failure)
    assert (failure.correlation_id, failure.event_count) == (CORRELATION_ID, 1)
    assert turn_after(chunk("a") + b": bye\n").on_end() is None, "a comment is not an event"


def test_first_event_with_an_id_sets_the_correlation_id() -> None:
    turn = new_turn()

    turn.feed(UNKNOWN)
    assert turn.correlation_id is None
    turn.feed(UNKNOWN + chunk("a", correlation_id="first") + chunk("b", correlation_id="other"))
    turn.feed(chunk("c", correlation_id="third"))

    assert turn.correlation_id == "first"


@pytest.mark.parametrize("next_data", [None, b"x"])
def test_too_large_event_is_a_failure_after_earlier_events_are_returned(
    next_data: bytes | None,
) -> None:
    turn = new_turn(max_event_bytes=1000)

    events, failure = turn.feed(chunk("a") + chunk("b") + b"data: " + b"x" * 2000)
    assert values(events) == ["a", "b"], "the earlier events are returned"
    assert failure is None
    failure = turn.on_end() if next_data is None else turn.feed(next_data)[1]

    assert isinstance(failure, errors.EventTooLarge)
    assert (failure.limit, failure.correlation_id, failure.event_count) == (1000, CORRELATION_ID, 2)
    assert "1,000 bytes" in str(failure)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (errors.ReadTimeout, errors.StreamIdleTimeout),
        (errors.ConnectionInterrupted, errors.StreamInterrupted),
        (errors.ProtocolError, errors.StreamInterrupted),
        (errors.ConnectTimeout, errors.StreamInterrupted),
    ],
)
def test_transport_error_becomes_idle_timeout_or_interruption(
    kind: type[errors.TransportError], expected: type[errors.StreamError]
) -> None:
    turn = turn_after(chunk("a") + chunk("b"))
    error = kind("reset by peer")

    failure = turn.on_transport_error(error)

    assert isinstance(failure, expected)
    assert failure.__cause__ is error
    error.__cause__ = OSError("of the HTTP library")
    assert turn.on_transport_error(error).__cause__ is error.__cause__
    assert (failure.correlation_id, failure.event_count) == (CORRELATION_ID, 2)
    problem = "the stream was interrupted: reset by peer"
    if expected is errors.StreamIdleTimeout:
        problem = (
            "no event for 600 s (idle timeout; set stream_idle_timeout_ms); "
            "the agent may have crashed, or another client may use the session"
        )
    assert failure.problem == f"{problem} (after 2 events of turn {CORRELATION_ID})"


def test_timeout_of_a_read_is_the_rest_of_the_idle_timeout() -> None:
    """The waits for comments and for parts of an event are subtracted."""
    turn = new_turn(idle=5)
    assert turn.timeout == 5
    event = chunk("a")

    for piece, waited, left in (
        (b": keep-alive\n\n", 3.0, 2.0),
        (event[:5], 1.5, 0.5),
        (event[5:] + event[:5], 0.25, 5.0),
        (b"", 1.0, 4.0),
    ):
        _, failure = turn.feed(piece, waited)
        assert failure is None
        assert turn.timeout == left


def test_comments_do_not_reset_the_idle_timeout() -> None:
    turn = new_turn(idle=5)

    assert turn.feed(b": keep-alive\n", 3.0) == ([], None)
    assert len(turn.feed(chunk("a"), 3.0)[0]) == 1
    assert turn.feed(b": keep-alive\n", 2.5)[1] is None
    _, failure = turn.feed(b": keep-alive\n", 2.5)

    assert isinstance(failure, errors.StreamIdleTimeout)
    assert f"(after 1 event of turn {CORRELATION_ID})" in str(failure)


def test_relayed_turn_ends_5_s_after_an_error_of_the_agent() -> None:
    for idle, left in ((600, 5.0), (2, 2.0)):
        turn = new_turn(idle=idle)
        turn.mark_relayed()
        turn.feed(chunk("a"))
        assert turn.timeout == idle
        _, failure = turn.feed(status("error", "no model") + chunk("b"))
        assert (failure, turn.timeout) == (None, left)
        turn.feed(b": keep-alive\n", left - 1)
        turn.feed(chunk("c"))  # The agent continues.
        assert turn.timeout == left
        _, failure = turn.feed(b": keep-alive\n", left)
        for each in (failure, turn.on_transport_error(errors.ReadTimeout("no data"))):
            assert isinstance(each, errors.AgentError)
            assert (each.data, each.correlation_id, each.event_count) == (
                "no model",
                CORRELATION_ID,
                4,
            )


def test_error_of_the_agent_before_a_relay_begins_ends_the_turn_after_5_s() -> None:
    turn = new_turn(idle=600)
    turn.feed(status("error"))
    assert turn.timeout == 600
    turn.mark_relayed()
    assert turn.timeout == 5


@pytest.mark.parametrize(
    ("data", "sent", "number"),
    [
        (b"", "maybe", "0 events"),
        (b": comment\n\n", "maybe", "0 events"),
        (UNKNOWN, "yes", "1 event"),
        (UNKNOWN * 2, "yes", "2 events"),
    ],
)
def test_failure_of_a_turn_was_sent_if_there_was_an_event(
    data: bytes, sent: errors.Sent, number: str
) -> None:
    failure = turn_after(data).on_transport_error(errors.ConnectionInterrupted("reset"))

    assert failure.sent == sent
    assert failure.problem.endswith(f"(after {number})")
    assert (failure.operation, failure.method) == ("sessions.create_event", "POST")


@pytest.mark.parametrize(("data", "sent"), [(b"", "maybe"), (chunk("a"), "yes")])
def test_invalid_event_has_the_facts_of_the_request_and_of_the_events_before_it(
    data: bytes, sent: errors.Sent
) -> None:
    turn = new_turn()
    _, failure = turn.feed(data + b"event: chunk\ndata: {no JSON}\n\n")

    assert isinstance(failure, errors.DecodeError)
    assert failure.sent == sent
    assert (failure.operation, failure.method) == ("sessions.create_event", "POST")
    assert turn.correlation_id == (CORRELATION_ID if data else None)
