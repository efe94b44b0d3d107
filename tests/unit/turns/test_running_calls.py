"""Running calls: closing the client cancels them, and their errors say whether they were sent."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest
from attrs import evolve

from flux0.domain.errors import (
    ClientClosed,
    ConnectError,
    ConnectionInterrupted,
    Flux0Error,
    PoolTimeout,
    ReadTimeout,
    Sent,
)
from flux0.domain.headers import Headers
from flux0.domain.timeouts import Deadline
from flux0.flows import CallRequest, Send
from flux0.turns.running_calls import CLIENT_CLOSED, RunningCalls
from support.driving import Time
from support.in_memory import scripted_response

SEND = Send(CallRequest("POST", "http://h/api/sessions", Headers(), operation="sessions.create"))


@pytest.mark.parametrize(
    ("attempts", "sent"),
    [
        ((), "no"),
        ((ConnectError("refused"),), "no"),
        ((400,), "no"),
        ((200,), "maybe"),
        ((503,), "maybe"),
        ((ConnectionInterrupted("reset"), 400), "maybe"),
        ((503, ConnectError("refused")), "maybe"),
        ((429, ConnectError("refused")), "no"),
    ],
    ids=str,
)
def test_error_says_whether_any_attempt_may_have_been_accepted(
    attempts: tuple[int | Flux0Error, ...], sent: Sent
) -> None:
    raised = Flux0Error("the call failed")
    with suppress(Flux0Error), RunningCalls().start() as call:
        for attempt in attempts:
            if isinstance(attempt, int):
                call.succeeded(SEND, scripted_response(status=attempt))
            else:
                assert call.failed(SEND, attempt) is attempt
        raise raised
    assert raised.sent == sent


def test_error_of_a_cancelled_task_says_whether_its_request_was_sent() -> None:
    with RunningCalls().start(Deadline(5.0, 5.0)) as call:
        assert call.ended().sent == "no"
        for attempt in (2, 3):
            call.succeeded(Send(evolve(SEND.request, attempt=attempt)), scripted_response())
        error = call.ended()
    assert (error.sent, error.attempts, error.operation) == ("maybe", 3, "sessions.create")


def test_end_of_a_call_cancels_its_alarm() -> None:
    class Alarms(Time):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[float] = []

        def alarm(self, moment: float, act: Callable[[], object]) -> Callable[[], object]:
            self.open.append(moment)
            return lambda: self.open.remove(moment)

    time = Alarms()
    with RunningCalls().start(Deadline(5.0, 5.0)) as call:
        call.cancel_at(5.0, time)
        assert time.open == [5.0]
    assert time.open == []


def test_call_that_is_woken_by_close_knows_that_the_client_is_closed() -> None:
    calls, seen = RunningCalls(), list[bool]()
    with calls.start(wake=lambda: seen.append(calls.closed)):
        calls.close()
    assert seen == [True]


def test_call_that_is_woken_knows_that_it_was_cancelled() -> None:
    woken: list[bool] = []
    with RunningCalls().start(Deadline(5.0, 5.0)) as call:

        def wake() -> None:
            with pytest.raises(ReadTimeout):
                call.check()
            woken.append(True)

        call.on_cancel(wake)
        call.cancel()
    assert woken == [True]


def test_closing_wakes_each_call_although_a_woken_call_ends_at_once() -> None:
    calls, woken = RunningCalls(), list[int]()

    def end(number: int) -> None:
        woken.append(number)
        del running[number]

    running = {number: calls.start(wake=partial(end, number)) for number in range(3)}
    for number in range(3):
        running[number].__enter__()
    calls.close()
    assert sorted(woken) == [0, 1, 2]


def test_ended_calls_are_removed() -> None:
    """A client can be used for millions of calls."""
    calls = RunningCalls()
    for _ in range(3):
        with calls.start():
            assert len(vars(calls)["_calls"].get()) == 1
    assert not vars(calls)["_calls"].get()


def test_closing_wakes_each_running_call_and_refuses_later_calls() -> None:
    calls, woken = RunningCalls(), list[int]()
    with (
        calls.start(Deadline(5.0, 5.0)) as first,
        calls.start(wake=lambda: woken.append(2)) as second,
    ):
        first.on_cancel(lambda: woken.append(1))
        with calls.start(wake=lambda: woken.append(3)):
            pass
        calls.close()
        assert sorted(woken) == [1, 2]
        for call in (first, second):
            for check in (call.check, partial(call.on_cancel, woken.clear)):
                with pytest.raises(ClientClosed):
                    check()
    with pytest.raises(ClientClosed):
        calls.check()
    with pytest.raises(ClientClosed), calls.start():
        pass


def test_failure_of_a_cancelled_call_says_why_it_was_cancelled() -> None:
    deadline = Deadline(moment=1.0, limit=0.5)
    reset = ConnectionInterrupted("the socket was shut down")
    with RunningCalls().start(deadline) as call:
        assert call.failed(SEND, reset) is reset
        call.cancel()
        late = call.failed(SEND, reset)
        assert isinstance(late, ReadTimeout)
        assert (str(late), late.__cause__) == (str(deadline.exceeded()), reset)
        # The error of a timeout names the operation that took too long.
        timeout = PoolTimeout("no connection of the pool became free")
        assert call.failed(SEND, timeout) is timeout
        assert call.ended().sent == "maybe"


@pytest.mark.parametrize("cause", [None, OSError("reset")], ids=str)
@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        (ConnectError, "no"),
        (ConnectionInterrupted, "maybe"),
        (PoolTimeout, "no"),
        (ClientClosed, "maybe"),
    ],
)
def test_failure_after_closing_the_client_says_whether_the_request_was_sent(
    kind: type[Flux0Error], sent: Sent, cause: OSError | None
) -> None:
    calls, failure = RunningCalls(), kind("the socket was shut down")
    failure.__cause__, failure.sent = cause, sent
    with calls.start() as call:
        calls.close()
        error = call.failed(SEND, failure)
    assert isinstance(error, ClientClosed)
    assert error.problem == CLIENT_CLOSED
    expected = sent, cause or failure, sent
    assert (error.sent, error.__cause__, call.ended().sent) == expected


def test_exception_of_user_code_is_kept_after_closing_the_client() -> None:
    calls, bug = RunningCalls(), ZeroDivisionError("a bug")
    with calls.start() as call:
        calls.close()
        assert call.failed(SEND, bug) is bug
        assert call.ended().sent == "maybe"
