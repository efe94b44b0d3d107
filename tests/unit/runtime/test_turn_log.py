"""The log of a background turn: its numbers, its limit, its end, and its readers."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count
from types import FrameType
from typing import Any

import pytest

from flux0.domain.background_errors import ReaderLost, TurnTooLarge
from flux0.domain.errors import DecodeError, EventTooLarge, Flux0Error, StreamInterrupted
from flux0.runtime.turn_log import LogEnd, TurnLog
from support.forking import in_child


def new_log(max_bytes: int = 100) -> TurnLog:
    return TurnLog("turn-1", max_bytes, lambda _: None)


def event(number: int) -> bytes:
    return f"{number:010d}".encode()


def test_oldest_events_are_dropped_until_half_of_the_limit_is_left() -> None:
    log = new_log(max_bytes=100)
    for number in range(1, 11):
        log.append(event(number))
    assert (log.first, log.last, len(log.read(0))) == (1, 10, 10)

    log.append(event(11))
    assert (log.first, log.last, log.size) == (7, 11, 50)
    assert list(log.read(6)) == [event(number) for number in range(7, 12)]
    with pytest.raises(TurnTooLarge, match=r"larger than 100 bytes \(max_turn_bytes\)") as caught:
        log.read(5)
    assert caught.value.limit == 100


def test_newest_event_is_kept_even_if_it_is_larger_than_the_limit() -> None:
    log = new_log(max_bytes=5)
    for number in (1, 2):
        log.append(event(number))
        assert list(log.read(number - 1)) == [event(number)]
    assert (log.first, log.last) == (2, 2)


def test_events_are_read_until_they_have_64_kib() -> None:
    log = new_log(10**6)
    for _ in range(10):
        log.append(b"x" * 20_000)
    assert [len(log.read(after)) for after in (0, 4, 8, 10)] == [4, 4, 2, 0]


def test_stop_does_nothing_after_the_end() -> None:
    reasons: list[str] = []
    log = TurnLog("turn-1", 100, reasons.append)
    log.finish(LogEnd())
    log.stop("the reason")
    assert reasons == []


def test_copied_events_with_a_gap_replace_older_events() -> None:
    log = new_log()
    log.extend(1, [event(1), event(2)])
    log.extend(3, [event(3)])
    assert (log.first, log.last) == (1, 3)
    log.extend(7, [event(7), event(8)])
    assert log.size == len(event(7)) + len(event(8))
    assert (log.first, log.last) == (7, 8)
    assert list(log.read(6)) == [event(7), event(8)]
    with pytest.raises(TurnTooLarge):
        log.read(3)


def test_a_single_missing_event_is_a_gap() -> None:
    log = new_log()
    log.extend(1, [event(1), event(2)])
    log.extend(4, [event(4)])
    assert (log.first, log.last, list(log.read(3))) == (4, 4, [event(4)])
    with pytest.raises(TurnTooLarge):
        log.read(2)


def test_events_after_the_end_and_a_second_end_are_ignored() -> None:
    log, ends = new_log(), list[str]()
    log.on_end = lambda: ends.append("end")
    log.append(event(1))
    first = LogEnd(finished=True)
    log.finish(first)
    log.append(event(2))
    log.finish(LogEnd(Flux0Error("too late")))

    assert log.end is first
    assert log.last == 1
    assert ends == ["end"]


def test_log_has_more_after_an_event_and_after_its_end() -> None:
    log = new_log()
    assert not log.has_more(0)
    assert log.end is None
    log.append(event(1))
    assert (log.has_more(0), log.has_more(1), log.is_ended) == (True, False, False)
    log.finish(LogEnd())
    assert (log.has_more(1), log.is_ended) == (True, True)


@pytest.mark.parametrize("error", [None, StreamInterrupted("gone")])
@pytest.mark.parametrize("is_of_copy", [True, False])
def test_only_an_error_of_the_turn_itself_has_a_number(
    error: Flux0Error | None, is_of_copy: bool
) -> None:
    end = LogEnd(error, is_of_copy=is_of_copy)
    assert end.has_numbered_error is (error is not None and not is_of_copy)


def test_forked_child_cannot_read_the_log_of_its_parent() -> None:
    log = new_log()
    log.append(event(1))

    def read() -> None:
        with pytest.raises(ReaderLost, match="a forked child cannot read"):
            log.read(0)

    in_child(read)
    assert list(log.read(0)) == [event(1)]


def test_each_change_wakes_each_waiting_reader_once() -> None:
    log, woken = new_log(), list[str]()
    log.on_change(lambda: woken.append("first"))
    cancel = log.on_change(lambda: woken.append("cancelled"))
    cancel()
    cancel()
    log.append(event(1))
    log.append(event(2))
    assert woken == ["first"]

    cancel = log.on_change(lambda: woken.append("second"))
    log.finish(LogEnd())
    cancel()
    assert woken == ["first", "second"]


def test_reader_that_waits_again_while_it_is_woken_is_woken_by_the_next_change() -> None:
    log, woken = new_log(), list[int]()

    def wake() -> None:
        woken.append(log.last)
        log.on_change(wake)

    log.on_change(wake)
    for number in (1, 2, 3):
        log.append(event(number))
    log.finish(LogEnd())
    assert woken == [1, 2, 3, 3]


def acts_at_each_line(act: Callable[[], object], work: Callable[[], object]) -> Iterator[None]:
    """Call `work` again and again; call `act` before its first line, its second line, and so on."""
    step, acted = -1, True
    while acted:
        step += 1
        left, acted = count(-step), False

        def trace(_: FrameType, event: str, __: object) -> Any:
            nonlocal acted
            if event == "line" and next(left) == 0:  # noqa: B023 - it is called in this iteration
                acted = True
                act()
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            work()
        finally:
            sys.settrace(before)
        if acted:
            yield


@pytest.mark.parametrize("waits_first", [True, False])
def test_change_while_a_reader_begins_to_wait_wakes_it_once(waits_first: bool) -> None:
    """Another thread may continue between two lines of a method."""
    logs, woken = [new_log(1000)], list[int]()

    def wait() -> None:
        logs[-1].on_change(lambda: woken.append(logs[-1].last))

    def change() -> None:
        logs[-1].append(event(1))

    logs[-1].on_change(int)
    runs = acts_at_each_line(*((change, wait) if waits_first else (wait, change)))
    for _ in runs:
        change()
        assert len(woken) == 1
        woken.clear()
        logs.append(new_log(1000))
        logs[-1].on_change(int)
    assert len(logs) > 5


def test_event_that_is_added_while_a_reader_begins_to_wait_wakes_it() -> None:
    """Unlike the test before this one, it sets no trace function, which coverage needs itself."""
    log, woken = new_log(), list[int]()

    class Wakers(dict[object, Callable[[], object]]):
        def __setitem__(self, key: object, wake: Callable[[], object]) -> None:
            log.append(event(1))
            super().__setitem__(key, wake)

    log.on_change(int)
    log._wakers = Wakers(log._wakers)  # pyright: ignore[reportPrivateUsage]
    log.on_change(lambda: woken.append(log.last))
    assert woken == [1]
    log.append(event(2))
    assert woken == [1]


def test_threads_that_read_during_writing_lose_and_repeat_nothing() -> None:
    log, number = new_log(max_bytes=10**6), 2000
    results: list[list[bytes]] = []

    def read() -> None:
        events: list[bytes] = []
        while len(events) < number:
            changed = threading.Event()
            cancel = log.on_change(changed.set)
            if not (more := log.read(len(events))):
                assert changed.wait(20)
            cancel()
            events.extend(more)
        results.append(events)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for each in range(1, number + 1):
        log.append(event(each))
    for thread in threads:
        thread.join(20)
    assert results == [[event(each) for each in range(1, number + 1)]] * 4


def interrupted() -> StreamInterrupted:
    error = StreamInterrupted("the connection failed")
    error.correlation_id, error.event_count, error.sent = "RID(1)", 3, "yes"
    error.attach_request("sessions.create_event", "POST", "http://127.0.0.1")
    error.attach_stream((), list)
    return error


@pytest.mark.parametrize(
    "error",
    [
        interrupted(),
        EventTooLarge(7),
        DecodeError("not JSON", field="a", body="b"),
        ReaderLost("gone"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_at_the_end_survives_json(error: Flux0Error) -> None:
    copy: Any = LogEnd.from_json(LogEnd(error).to_json()).error
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    names = set(vars(error)) - {"_list_stored", "messages"}
    assert {name: getattr(copy, name) for name in names} == {
        name: getattr(error, name) for name in names
    }


@pytest.mark.parametrize("finished", [True, False])
def test_end_without_an_error_survives_json(finished: bool) -> None:
    end = LogEnd(finished=finished)
    assert LogEnd.from_json(end.to_json()) == end


@pytest.mark.parametrize("name", ["UserError", "Any", "escaped", "TYPE_CHECKING", "Exception"])
def test_error_of_an_unknown_class_becomes_a_flux0_error(name: str) -> None:
    data = json.loads(LogEnd(Flux0Error("a problem")).to_json())
    data["error"]["type"] = name
    error = LogEnd.from_json(json.dumps(data).encode()).error
    assert type(error) is Flux0Error
    assert error.problem == "a problem"
