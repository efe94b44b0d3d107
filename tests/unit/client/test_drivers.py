"""The sync and the async driver: effects, failures, closed bodies and deadlines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any, cast

import anyio
import pytest
from attrs import define, evolve, field

from flux0.client.drivers import AsyncDriver, Driver
from flux0.domain.errors import (
    ClientClosed,
    ConnectError,
    ConnectionInterrupted,
    InvalidArgument,
    PoolTimeout,
    ReadTimeout,
    ResponseTooLarge,
)
from flux0.domain.headers import Headers
from flux0.domain.timeouts import Deadline
from flux0.flows import Await, CallRequest, Flow, ReadBody, Send, Sleep, send_once
from flux0.ports import Request, Response, Timeout
from support import driving
from support.driving import LoopTime, Slow, Time, after
from support.in_memory import (
    Hang,
    Script,
    in_both_loops,
    in_every_mode,
    in_simulated_time,
    response_from,
    script,
    scripted_response,
    tape,
)
from support.modes import run
from support.transports import ASYNC, SYNC, Mode

REQUEST = CallRequest("GET", "http://127.0.0.1:8080/api/agents", Headers())


class Clock(Time):
    """A clock that returns the given times one after another, and then repeats the last time."""

    def __init__(self, times: Iterable[float]) -> None:
        super().__init__()
        self._times = list(times)

    def monotonic(self) -> float:
        return self._times.pop(0) if len(self._times) > 1 else self._times[0]


async def drive(
    mode: Mode,
    flow: Flow[Any],
    transport: Script,
    *,
    times: Iterable[float] = (0.0,),
    deadline: Deadline | None = None,
) -> Any:
    """Drive a flow to its end with a `Clock`."""
    return await driving.drive(mode, flow, transport, Clock(times), deadline)


@in_every_mode
async def test_driver_performs_effects_and_sends_their_outcomes(mode: Mode) -> None:
    first, second = tape(b"one ", b"two"), tape(b"three")
    transport = script(response_from(first), response_from(second))
    clock = Clock([0.0])

    def flow() -> Flow[tuple[object, ...]]:
        response: Response[Any] = yield Send(REQUEST)
        body = yield ReadBody(REQUEST, response, 7)
        nothing = yield Sleep(0.25)
        response = yield Send(REQUEST)
        return body, nothing, (yield ReadBody(REQUEST, response, 5))

    result = await driving.drive(mode, flow(), transport, clock)

    assert result == (b"one two", None, b"three")
    assert transport.requests == [REQUEST, REQUEST]
    assert clock.waits == [0.25]
    assert first.releases
    assert second.releases


@pytest.mark.parametrize("failure", [ConnectError("refused"), KeyboardInterrupt()])
@pytest.mark.parametrize("mode", SYNC + ASYNC)
def test_flow_can_yield_effects_while_it_handles_a_failure(
    mode: Mode, failure: BaseException
) -> None:
    held = tape(b"x")
    transport = script(response_from(held), failure)

    def flow() -> Flow[None]:
        response: Response[Any] = yield Send(REQUEST)
        try:
            yield Send(REQUEST)
        finally:
            yield ReadBody(REQUEST, response, 100)
            assert held.releases

    with pytest.raises(type(failure)):
        run(mode, lambda: drive(mode, flow(), transport))

    assert held.releases


def hang_and_cancel(scope: anyio.CancelScope) -> Callable[[], Hang]:
    """Return a step of a body that cancels its reader, and would otherwise block forever."""

    def step() -> Hang:
        scope.cancel()
        return Hang()

    return step


@in_every_mode
async def test_body_at_size_limit_is_read_and_larger_body_raises(mode: Mode) -> None:
    def flow() -> Flow[object]:
        response: Response[Any] = yield Send(REQUEST)
        return (yield ReadBody(REQUEST, response, 4))

    assert await drive(mode, flow(), script(scripted_response(b"ab", b"cd"))) == b"abcd"
    assert await drive(mode, flow(), script(scripted_response())) == b""

    large = tape(b"ab", b"cde", b"never read")
    with pytest.raises(ResponseTooLarge) as caught:
        await drive(mode, flow(), script(response_from(large)))
    assert caught.value.limit == 4
    assert large.reads == 2
    assert large.releases


@in_every_mode
async def test_body_without_a_method_to_read_it_is_a_type_error(mode: Mode) -> None:
    transport = script(Response(200, Headers(), iter((b"a piece",))))
    method = "read" if mode == "sync" else "read_async"

    with pytest.raises(TypeError, match=rf"returned the body <.+> without {method}\(timeout\)"):
        await drive(mode, send_once(REQUEST), transport)


async def number(value: int) -> int:
    await anyio.lowlevel.checkpoint()
    return value


class Later:
    """An awaitable object that is not a coroutine."""

    def __await__(self) -> Generator[Any, None, int]:
        return number(2).__await__()


@in_every_mode
async def test_async_driver_awaits_and_sync_driver_rejects_awaitables(mode: Mode) -> None:
    def flow() -> Flow[list[object]]:
        results: list[object] = []
        for awaitable in (number(1), Later()):
            try:
                results.append((yield Await(awaitable, "middleware")))
            except InvalidArgument as error:
                results.append(str(error))
        return results

    problem = "middleware is async: call the _async method"
    expected = [problem] * 2 if mode == "sync" else [1, 2]
    assert await drive(mode, flow(), script()) == expected


@in_every_mode
async def test_flow_that_yields_no_effect_is_a_type_error_with_the_fix(mode: Mode) -> None:
    def flow() -> Flow[None]:
        yield cast("Any", 7)

    with pytest.raises(TypeError, match=r"must yield an effect .*, not 7: .* use `yield from`"):
        await drive(mode, flow(), script())


# --- closing


async def run_flow(driver: Driver | AsyncDriver, flow: Flow[Any]) -> Any:
    return await driver.run(flow) if isinstance(driver, AsyncDriver) else driver.run(flow)


@in_every_mode
async def test_request_is_not_sent_after_the_client_was_closed(mode: Mode) -> None:
    class AtOnce(Script):
        async def send_async(self, request: Request) -> Response[Any]:
            return self.send(request)

    transport = AtOnce([])
    driver = (Driver if mode == "sync" else AsyncDriver)(transport, Time())

    def flow() -> Flow[object]:
        driver.calls.close()
        return (yield Send(REQUEST))

    with pytest.raises(ClientClosed):
        await run_flow(driver, flow())
    assert transport.requests == []


def test_closing_the_client_ends_a_sync_sleep() -> None:
    class Closing(Time):
        def sleep_or_wake(self, seconds: float, wait: Callable[[float], object]) -> None:
            driver.calls.close()
            assert wait(seconds), "the sleep was not ended"

    def flow() -> Flow[None]:
        yield Sleep(1.0)
        raise AssertionError("the sleep has raised no error")

    driver = Driver(script(), Closing())
    with pytest.raises(ClientClosed):
        driver.run(flow())


# --- deadlines


def fetch(request: CallRequest) -> Flow[object]:
    """Send a request and read its response."""
    response: Response[Any] = yield Send(request)
    return (yield ReadBody(request, response, 100))


@in_every_mode
async def test_timeouts_are_limited_to_the_time_until_the_deadline(mode: Mode) -> None:
    given = Timeout(connect=1, read=60, write=None, pool=None)
    flow, deadline = fetch(evolve(REQUEST, timeout=given)), Deadline(105.0, 5.0)
    transport = script(scripted_response(b"x"))

    assert await drive(mode, flow, transport, times=[100.0], deadline=deadline) == b"x"

    (sent,) = transport.requests
    assert sent.timeout == Timeout(connect=1, read=5, write=5, pool=5)


@in_every_mode
async def test_request_is_not_sent_after_the_deadline(mode: Mode) -> None:
    transport = script()

    with pytest.raises(ReadTimeout, match=r"took longer than 5 s \(timeout_ms\)") as caught:
        await drive(mode, fetch(REQUEST), transport, times=[5.0], deadline=Deadline(5.0, 5.0))

    assert transport.requests == []
    assert caught.value.sent == "no"


@in_every_mode
async def test_read_timeout_of_a_body_before_the_deadline_is_raised(mode: Mode) -> None:
    transport = script(scripted_response(b"half", ReadTimeout("no data")))

    with pytest.raises(ReadTimeout, match="no data"):
        await drive(mode, fetch(REQUEST), transport, deadline=Deadline(5.0, 5.0))


@pytest.mark.parametrize("reads", [True, False])
def test_response_after_the_deadline_is_closed(reads: bool) -> None:
    late = tape(b"x")
    response = response_from(late)  # A body that is referenced is not closed by its finalizer.
    driver = Driver(script(response), Clock([0.0, 6.0]))
    flow: Flow[object] = fetch(REQUEST) if reads else send_once(REQUEST)

    with pytest.raises(ReadTimeout, match="timeout_ms") as caught:
        driver.run(flow, Deadline(5.0, 5.0))

    assert caught.value.sent == "maybe"
    assert late.reads == 0
    assert late.releases
    assert response.body is not None


def test_closing_the_client_interrupts_the_wait_for_a_response() -> None:
    fired: list[bool] = []

    class Waiting(Script):
        def send(self, request: Request) -> Response[Any]:
            driver.calls.close()
            fired.append(request.interrupt.fired)
            raise ConnectionInterrupted("the socket was shut down")

    driver = Driver(Waiting([]), Time())
    with pytest.raises(ClientClosed):
        driver.run(send_once(REQUEST))
    assert fired == [True]


@in_simulated_time
async def test_async_read_is_cancelled_at_the_deadline(mode: Mode) -> None:
    hanging, time = tape(b"a", Hang()), LoopTime()
    begin = time.monotonic()
    deadline = Deadline(begin + 5, 30.0)  # The call has waited for 25 s before it is driven.

    with pytest.raises(ReadTimeout, match="timeout_ms"):
        await AsyncDriver(script(response_from(hanging)), time).run(fetch(REQUEST), deadline)

    assert 5 <= time.monotonic() - begin < 6
    assert hanging.releases


@in_both_loops
async def test_cancelled_read_closes_the_body_and_raises_no_timeout(mode: Mode) -> None:
    for deadline in (None, Deadline(5.0, 5.0)):
        scope = anyio.CancelScope()
        hanging = tape(hang_and_cancel(scope))
        transport = script(response_from(hanging))

        with scope:
            await drive(mode, fetch(REQUEST), transport, deadline=deadline)

        assert scope.cancelled_caught
        assert hanging.releases


@in_every_mode
async def test_slow_body_is_closed_at_the_deadline(mode: Mode) -> None:
    """The body arrives in small pieces, or its end arrives long after its last byte."""
    time = Time()
    slow = tape(*(after(time, 1.0, b"x") for _ in range(9)))
    late_end = tape(b"whole", after(time, 3.0, None))

    for recorded in (slow, late_end):
        deadline = Deadline(time.now + 2.5, 2.5)
        with pytest.raises(ReadTimeout, match="timeout_ms"):
            await driving.drive(
                mode, fetch(REQUEST), script(response_from(recorded)), time, deadline
            )
        assert recorded.releases

    assert slow.reads == 3


@in_every_mode
async def test_each_read_of_a_body_is_limited_to_the_time_until_the_deadline(mode: Mode) -> None:
    time = Time()
    recorded = tape(*(after(time, 1.0, b"x") for _ in range(2)))
    request, deadline = evolve(REQUEST, timeout=Timeout(read=2)), Deadline(time.now + 2.5, 2.5)

    body = await driving.drive(
        mode, fetch(request), script(response_from(recorded)), time, deadline
    )

    assert body == b"xx"
    assert recorded.timeouts == [2.0, 1.5, 0.5]


@in_every_mode
async def test_read_that_ends_at_the_deadline_raises_the_error_of_the_deadline(mode: Mode) -> None:
    time = Time()

    def expire() -> bytes:
        time.now += 2.0
        raise ReadTimeout("no data received within 2 s") from OSError("timed out")

    for limit, message in (
        (2.0, "the call took longer than 2 s"),
        (2.5, "no data received"),
        (None, "no data received"),
    ):
        transport = script(scripted_response(expire))
        deadline = None if limit is None else Deadline(time.now + limit, limit)
        with pytest.raises(ReadTimeout, match=message) as caught:
            await driving.drive(mode, fetch(REQUEST), transport, time, deadline)
        assert isinstance(caught.value.__cause__, OSError)


@in_every_mode
async def test_sleep_ends_at_the_deadline(mode: Mode) -> None:
    def flow() -> Flow[None]:
        yield Sleep(3.0)
        with pytest.raises(ReadTimeout, match="timeout_ms"):
            yield Sleep(3.0)

    time = Time()
    await driving.drive(mode, flow(), script(), time, Deadline(time.now + 5, 5))

    # The async sleep is cancelled at the deadline, which this clock does not show.
    assert time.waits == ([3.0, 2.0] if mode == "sync" else [3.0, 3.0])


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
        driving.drive_sync(
            fetch(REQUEST), Interruptible([], time=time), time, Deadline(time.now + 0.3, 0.3)
        )

    assert isinstance(caught.value.__cause__, OSError)


def test_timeout_error_of_transport_is_kept_after_the_deadline() -> None:
    time = Time()
    transport = Slow([PoolTimeout("no connection became free")], time=time, seconds=3.0)

    with pytest.raises(PoolTimeout):
        driving.drive_sync(fetch(REQUEST), transport, time, Deadline(time.now + 1, 1))


def test_sync_wait_for_body_ends_at_timeout_ms() -> None:
    time = Alarm()
    transport = script(Response(200, Headers(), ClosableBody(time)))
    with pytest.raises(ReadTimeout, match="timeout_ms"):
        driving.drive_sync(fetch(REQUEST), transport, time, Deadline(time.now + 0.3, 0.3))


# --- many calls


class CountingTransport:
    """An async transport that records the requests in each iteration of its event loop."""

    def __init__(self) -> None:
        self.turns: list[list[str]] = [[]]

    async def send_async(self, request: Request) -> Response[Any]:
        self.turns[-1].append(request.url)
        return response_from(tape())

    async def close_async(self) -> None:
        pass

    async def count_turns(self) -> None:
        while True:
            self.turns.append([])
            await asyncio.sleep(0)


def send(number: int) -> Flow[Response[Any]]:
    response: Response[Any] = yield Send(evolve(REQUEST, url=str(number)))
    return response


def test_calls_of_many_tasks_start_in_groups_and_in_order() -> None:
    """Otherwise, thousands of tasks that start together would block the event loop."""

    async def run_calls() -> None:
        counting = asyncio.create_task(transport.count_turns())
        await asyncio.gather(*(driver.run(send(number)) for number in range(500)))
        counting.cancel()

    transport = CountingTransport()
    driver = AsyncDriver(transport, Time())
    asyncio.run(run_calls())

    assert max(map(len, transport.turns)) == 50
    assert [url for turn in transport.turns for url in turn] == list(map(str, range(500)))


def test_call_does_not_wait_for_cancelled_calls_before_it() -> None:
    async def run_calls() -> None:
        tasks = [asyncio.create_task(driver.run(send(number))) for number in range(1000)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        counting = asyncio.create_task(transport.count_turns())
        await driver.run(send(1000))
        counting.cancel()

    transport = CountingTransport()
    driver = AsyncDriver(transport, Time())
    asyncio.run(run_calls())

    assert transport.turns[-1] == ["1000"]
    assert len(transport.turns) <= 3
