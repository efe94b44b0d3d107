"""The reports of a turn to its observers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from attrs import define, field

from flux0 import ConnectionInterrupted, EventStream, Flux0, StreamInterrupted
from flux0.domain.headers import Headers
from flux0.domain.stored_models import Participant
from flux0.flows import CallRequest
from flux0.middleware.observing import Observers
from flux0.observers import Call, Observer, TurnEnd
from flux0.turns.turn_report import TurnReport
from support.driving import Time
from support.forking import in_child
from support.in_memory import SSE, chunk, script, scripted_response, status, tape
from support.streams import open_sync, report_to


@define(eq=False)
class Recorder(Observer):
    """Records each report's name. The first event is recorded after `during` returned."""

    during: Callable[[], object] = int
    names: list[str] = field(factory=list[str])

    def on_first_event(self, call: Call, seconds: float) -> None:
        self.during()
        self.names.append("first event")

    def on_turn_end(self, call: Call, turn: TurnEnd) -> None:
        self.names.append("turn end")


def close_in_another_thread(stream: EventStream) -> None:
    with ThreadPoolExecutor(1) as threads:
        threads.submit(stream.close).result(20)


def test_first_event_is_reported_before_the_end() -> None:
    """While an observer gets the first event, another thread closes the stream."""
    recorder = Recorder()
    stream = open_sync(tape(chunk("a")), None, recorder)
    recorder.during = lambda: close_in_another_thread(stream)
    next(stream)

    assert recorder.names == ["first event", "turn end"]


def test_first_event_is_not_reported_after_the_end() -> None:
    """While the first event is received, another thread closes the stream."""

    def piece() -> bytes:
        close_in_another_thread(stream)
        return chunk("a")

    recorder = Recorder()
    stream = open_sync(tape(piece), None, recorder)
    next(stream)

    assert recorder.names == ["turn end"]


def test_end_is_reported_once_with_the_time_of_the_first_end() -> None:
    recorder = Recorder()
    stream = open_sync(tape(chunk("a")), None, recorder)
    list(stream)
    seconds = stream.seconds
    stream.close()

    assert stream.seconds == seconds is not None
    assert recorder.names == ["first event", "turn end"]


def test_times_are_measured_from_the_sending_of_the_message() -> None:
    time = Time()
    observers, request = Observers([], time), CallRequest("POST", "", Headers())
    report = TurnReport(observers, time.monotonic, request, "s", Participant())
    time.now += 2
    report.first_event()
    time.now += 3
    report.mark_ended()
    assert (report.seconds_to_first_event, report.seconds) == (2.0, 5.0)


def test_failed_turn_is_logged_although_no_observer_and_no_logger_needs_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("WARNING", "flux0")
    for error in (ConnectionInterrupted("reset"), None):
        stream = open_sync(tape(*([] if error is None else [error])))
        with suppress(StreamInterrupted):
            list(stream)
    assert [(each.levelname, "StreamInterrupted" in each.message) for each in caplog.records] == [
        ("WARNING", True)
    ]


@pytest.mark.parametrize("observers", [(), (Observer(),)])
@pytest.mark.parametrize("is_relayed", [True, False])
def test_errors_of_a_turn_are_logged_if_it_is_relayed_although_they_are_also_observed(
    is_relayed: bool, observers: tuple[Observer, ...], caplog: pytest.LogCaptureFixture
) -> None:
    reset = ConnectionInterrupted("reset")
    for end in ([], [reset]):
        stream = open_sync(tape(status("error", "no model"), *end), None, *observers)
        if is_relayed:
            stream.mark_relayed()
        with suppress(StreamInterrupted):
            list(stream)
    errors = [each.message for each in caplog.records if each.levelname == "ERROR"]
    texts = ["no model", "no model", "reset"] if is_relayed else []
    assert [text in error for error, text in zip(errors, texts, strict=True)] == [True] * len(texts)
    assert [each.levelname for each in caplog.records].count("WARNING") == (not is_relayed)


def test_end_that_is_reported_later_is_logged_when_the_next_turn_begins(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "flux0")
    responses = [scripted_response(chunk("a"), headers=SSE) for _ in range(2)]
    client = Flux0(transport=script(*responses))
    for _ in client.sessions.create_event(session_id="first", content="Hi"):
        break
    assert caplog.messages == []
    client.sessions.create_event(session_id="second", content="Hi")
    (message,) = caplog.messages
    assert "session=first" in message
    client.close()


def test_unconfirmed_end_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    report = report_to()
    for _ in range(2):
        report.unconfirmed_end()
    (record,) = caplog.records
    assert "is unconfirmed" in record.message


def test_forked_child_does_not_report_the_turn_of_its_parent() -> None:
    recorder = Recorder()
    stream = open_sync(tape(chunk("a")), None, recorder)

    def close() -> None:
        stream.close()
        assert recorder.names == []

    in_child(close)
    stream.close()
    assert recorder.names == ["turn end"]
