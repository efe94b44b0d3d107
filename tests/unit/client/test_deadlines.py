"""A call ends by its deadline, including all its layers and attempts."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from attrs import define, evolve

from flux0 import BackoffStrategy, Flux0, RetryConfig
from flux0.adapters.json import JsonCodec
from flux0.domain.api_errors import ServerError
from flux0.domain.errors import ConnectionInterrupted, ReadTimeout
from flux0.domain.headers import Headers
from flux0.domain.timeouts import Deadline
from flux0.flows import Await, CallRequest, Flow, SendFlow, Sleep, chain
from flux0.middleware.responses import ResponsePolicy
from flux0.middleware.retry import Retry, RetryBudget
from flux0.ports import Request, Response
from support.driving import Slow, Time, after, drive
from support.in_memory import (
    Script,
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
