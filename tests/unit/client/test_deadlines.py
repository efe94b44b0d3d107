"""A call ends by its deadline, including all its layers and attempts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from attrs import define, evolve, field

from flux0 import BackoffStrategy, Flux0, RetryConfig
from flux0.adapters.json import JsonCodec
from flux0.domain.api_errors import ServerError
from flux0.domain.errors import ConnectionInterrupted, PoolTimeout, ReadTimeout
from flux0.domain.headers import Headers
from flux0.domain.timeouts import Deadline
from flux0.flows import Await, CallRequest, Flow, SendFlow, Sleep, chain
from flux0.middleware.responses import ResponsePolicy
from flux0.middleware.retry import Retry, RetryBudget
from flux0.ports import Interrupt, Request, Response, Timeout
from support.driving import Slow, Time, drive, drive_sync
from support.in_memory import (
    Script,
    Step,
    in_every_mode,
    in_simulated_time,
    response_from,
    script,
    scripted_response,
    tape,
)
from support.modes import in_mode
from support.transports import Mode

REQUEST = CallRequest("GET", "http://h/api/agents", Headers())


def fetch(request: CallRequest) -> Flow[Response[Any]]:
    return chain([ResponsePolicy(JsonCodec(), 100)])(request)


def after(time: Time, seconds: float, piece: bytes | None) -> Step:
    """Return a step of a body that yields `piece` after `seconds` on the clock."""

    def wait_and_continue() -> bytes | None:
        time.now += seconds
        return piece

    return wait_and_continue


# --- the timeouts of a transport


@in_every_mode
async def test_timeouts_of_each_attempt_are_limited_to_the_remaining_time(mode: Mode) -> None:
    time = Time()
    transport = Slow(
        [ConnectionInterrupted("reset"), scripted_response(status=503), scripted_response(b"ok")],
        time=time,
        seconds=2.0,
    )
    config = RetryConfig(backoff=BackoffStrategy(initial_interval=1000, exponent=1))
    layers = chain([Retry(RetryBudget(), time, lambda _: None), lambda request, _: fetch(request)])

    deadline = Deadline(time.now + 9, 9)
    request = evolve(REQUEST, retries=config, deadline=deadline)

    response = await drive(mode, layers(request), transport, time, deadline)

    assert response.body == b"ok"
    assert [request.timeout.read for request in transport.requests] == [9.0, 6.0, 3.0]


# --- slow responses


@in_every_mode
async def test_slow_body_is_closed_at_the_deadline(mode: Mode) -> None:
    """The body arrives in small pieces, or its end arrives long after its last byte."""
    time = Time()
    slow = tape(*(after(time, 1.0, b"x") for _ in range(9)))
    late_end = tape(b"whole", after(time, 3.0, None))

    for recorded in (slow, late_end):
        deadline = Deadline(time.now + 2.5, 2.5)
        with pytest.raises(ReadTimeout, match="timeout_ms"):
            await drive(mode, fetch(REQUEST), script(response_from(recorded)), time, deadline)
        assert recorded.releases

    assert slow.reads == 3


@in_every_mode
async def test_each_read_of_a_body_is_limited_to_the_time_until_the_deadline(mode: Mode) -> None:
    time = Time()
    recorded = tape(*(after(time, 1.0, b"x") for _ in range(2)))
    request, deadline = evolve(REQUEST, timeout=Timeout(read=2)), Deadline(time.now + 2.5, 2.5)

    response = await drive(mode, fetch(request), script(response_from(recorded)), time, deadline)

    assert response.body == b"xx"
    assert recorded.timeouts == [2.0, 1.5, 0.5]


@in_every_mode
async def test_read_that_ends_at_the_deadline_raises_the_error_of_the_deadline(mode: Mode) -> None:
    time = Time()

    def expire() -> bytes:
        time.now += 2.0
        raise ReadTimeout("no data received within 2 s") from OSError("timed out")

    for limit, message in ((2.0, "the call took longer than 2 s"), (2.5, "no data received")):
        transport, deadline = script(scripted_response(expire)), Deadline(time.now + limit, limit)
        with pytest.raises(ReadTimeout, match=message) as caught:
            await drive(mode, fetch(REQUEST), transport, time, deadline)
        assert isinstance(caught.value.__cause__, OSError)


@in_every_mode
async def test_error_status_is_raised_if_its_body_exceeds_the_deadline(mode: Mode) -> None:
    time = Time()
    recorded = tape(after(time, 3.0, b'{"detail": "late"}'))
    transport, deadline = script(response_from(recorded, status=503)), Deadline(time.now + 2, 2)

    with pytest.raises(ServerError, match="503: Service Unavailable"):
        await drive(mode, fetch(REQUEST), transport, time, deadline)

    assert recorded.releases


# --- calls of a client


@define
class NoResponse(Script):
    """A transport that records a request and then waits until it is cancelled."""

    cancelled: int = 0

    async def send_async(self, request: Request) -> Response[Any]:
        assert isinstance(request, CallRequest)
        self.requests.append(request)
        try:
            await anyio.sleep_forever()
        finally:
            self.cancelled += 1
        raise AssertionError("sleep_forever returned")


@in_simulated_time
async def test_call_without_response_is_cancelled_at_timeout_ms_and_not_retried(mode: Mode) -> None:
    transport = NoResponse([])

    async with Flux0(transport=transport, timeout_ms=20_000) as flux0:
        with pytest.raises(ReadTimeout, match="timeout_ms") as caught:
            await flux0.agents.list_async()
        with pytest.raises(ReadTimeout, match="timeout_ms"):
            await flux0.sessions.create_event_async(session_id="s", content="Hi", timeout_ms=10_000)

    assert caught.value.attempts == 1
    assert len(transport.requests) == 2
    assert transport.cancelled == 2


@in_simulated_time
async def test_async_token_function_ends_at_timeout_ms(mode: Mode) -> None:
    ended: list[str] = []

    async def token() -> str:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("token")
        return ""

    transport = script()
    async with Flux0(transport=transport, headers={"authorization": token}) as flux0:
        with pytest.raises(ReadTimeout, match="timeout_ms"):
            await flux0.agents.list_async(timeout_ms=10_000)

    assert ended == ["token"]
    assert transport.requests == []


@in_every_mode
async def test_sleep_of_a_middleware_ends_at_timeout_ms(mode: Mode) -> None:
    """The sleep ends even if the middleware catches the error and sleeps a second time."""
    caught: list[Exception] = []

    def sleeping(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        try:
            yield Sleep(3600)
        except ReadTimeout as error:
            caught.append(error)
        yield Sleep(3600)
        return (yield from send(request))

    transport = script()
    flux0 = in_mode(mode, Flux0(transport=transport, middleware=[sleeping]))
    async with flux0:
        with pytest.raises(ReadTimeout, match="timeout_ms"):
            await flux0.agents.list_async(timeout_ms=10)

    # The async call is cancelled, so the middleware catches no ReadTimeout in this mode.
    assert len(caught) == (mode == "sync")
    assert transport.requests == []


@in_simulated_time
async def test_await_of_a_middleware_ends_at_timeout_ms(mode: Mode) -> None:
    def awaiting(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        response = yield from send(request)
        yield Await(anyio.sleep_forever(), "middleware")
        return response

    transport = script(scripted_response(b'{"data": []}'))
    async with Flux0(transport=transport, middleware=[awaiting]) as flux0:
        with pytest.raises(ReadTimeout, match="timeout_ms") as caught:
            await flux0.agents.list_async(timeout_ms=10_000)

    assert (caught.value.operation, caught.value.sent) == ("agents.list", "maybe")


@define
class Alarm(Time):
    """A clock whose alarm goes off while a call waits."""

    act: Callable[[], object] = list

    def alarm(self, moment: float, act: Callable[[], object]) -> Callable[[], object]:
        self.act = act
        return list

    def go_off(self) -> None:
        self.now += 60
        self.act()


@define
class Interruptible(Script):
    """A sync transport that waits for a response head until its request is interrupted."""

    time: Alarm = field(kw_only=True)

    def send(self, request: Request) -> Response[Any]:
        interrupted = threading.Event()
        request.interrupt.on_fire(interrupted.set)
        self.time.go_off()
        assert interrupted.is_set()
        request.interrupt.clear()
        raise ConnectionInterrupted("the socket was shut down") from OSError("bad descriptor")


@define
class ClosableBody:
    """A body that waits for data until it is closed."""

    time: Alarm
    is_closed: bool = False

    def read(self, timeout: float | None) -> bytes:
        self.time.go_off()
        assert self.is_closed
        raise ConnectionInterrupted("the body was closed")

    def close(self) -> None:
        self.is_closed = True


def test_sync_wait_for_response_head_ends_at_timeout_ms() -> None:
    time = Alarm()
    with pytest.raises(ReadTimeout, match="timeout_ms") as caught:
        drive_sync(
            fetch(REQUEST), Interruptible([], time=time), time, Deadline(time.now + 0.3, 0.3)
        )

    assert isinstance(caught.value.__cause__, OSError)


def test_timeout_error_of_transport_is_kept_after_the_deadline() -> None:
    time = Time()
    transport = Slow([PoolTimeout("no connection became free")], time=time, seconds=3.0)

    with pytest.raises(PoolTimeout):
        drive_sync(fetch(REQUEST), transport, time, Deadline(time.now + 1, 1))


def test_sync_wait_for_body_ends_at_timeout_ms() -> None:
    time = Alarm()
    transport = script(Response(200, Headers(), ClosableBody(time)))
    with pytest.raises(ReadTimeout, match="timeout_ms"):
        drive_sync(fetch(REQUEST), transport, time, Deadline(time.now + 0.3, 0.3))


def test_interrupt_fired_before_on_fire_calls_the_function_at_once() -> None:
    calls: list[str] = []
    interrupt = Interrupt()

    interrupt.fire()
    interrupt.on_fire(lambda: calls.append("late"))
    interrupt.clear()
    interrupt.fire()

    assert calls == ["late"]
    assert interrupt.fired
