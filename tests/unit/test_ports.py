"""The values and the default methods of the interfaces between the core and its adapters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from flux0.domain.headers import Headers
from flux0.ports import Interrupt, Request
from support.driving import Time


def test_interrupt_fired_before_on_fire_calls_the_function_at_once() -> None:
    calls: list[str] = []
    interrupt = Interrupt()
    assert not interrupt.fired

    interrupt.fire()
    interrupt.on_fire(lambda: calls.append("late"))
    interrupt.clear()
    interrupt.fire()

    assert calls == ["late"]
    assert interrupt.fired


def test_interrupt_calls_only_the_function_that_was_set_last_and_not_cleared() -> None:
    calls: list[str] = []
    interrupt = Interrupt()

    for name in ("first", "second"):
        interrupt.on_fire(partial(calls.append, name))
    interrupt.fire()
    assert calls == ["second"]
    interrupt.clear()
    interrupt.fire()

    assert calls == ["second"]


def test_fire_during_another_call_of_the_interrupt_does_not_wait() -> None:
    """A signal handler can call `fire` at any place."""
    fired: list[bool] = []
    interrupt = Interrupt()

    def wake() -> None:
        interrupt.fire()
        fired.append(interrupt.fired)

    interrupt.on_fire(wake)
    interrupt.fire()

    assert fired == [True]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("status", "is_success"), [(199, False), (200, True), (299, True), (300, False), (500, False)]
)
def test_body_is_streamed_if_the_request_asks_for_it_and_succeeds(
    status: int, is_success: bool, stream: bool
) -> None:
    request = Request("POST", "http://h", Headers(), stream=stream)
    assert request.is_streaming(status) is (stream and is_success)


def test_simulated_clock_sleeps_instead_of_waiting_and_its_alarm_never_goes_off() -> None:
    time = Time()
    before, act = time.now, fail("the alarm went off")
    cancel = time.alarm(before, act)
    time.sleep_or_wake(3.0, fail("the clock waited in real time"))
    assert time.now == before + 3.0
    cancel()


def fail(problem: str) -> Callable[..., object]:
    def raise_error(*_: object) -> object:
        raise AssertionError(problem)

    return raise_error
