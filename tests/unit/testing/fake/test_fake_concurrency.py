"""A fake in async code and several threads: checkpoints, gates and async agents."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count
from types import FrameType
from typing import Any

import anyio
import pytest
import trio

from flux0 import Flux0, StreamIdleTimeout
from flux0.domain.errors import ConnectionInterrupted, ReadTimeout
from flux0.ports import AsyncByteStream
from flux0.testing import (
    AgentStep,
    Delay,
    FakeClock,
    FakeTransport,
    FallSilent,
    Gate,
    Pause,
    Report,
    Say,
    UserMessage,
)
from flux0.testing.fake.clock import Wait
from support.ending import ends_soon
from support.fakes import ask, begin, kinds, message_to, new_session, post, request, turn
from support.in_memory import in_both_loops, in_every_mode
from support.modes import in_mode
from support.transports import Mode

TOO_LONG = 20.0


def text_of(events: list[Any]) -> str:
    return "".join(event.patches[0].value for event in events if event.event == "chunk")


async def ask_for_text(flux0: Flux0, fake: FakeTransport) -> str:
    async with await start_turn(flux0, fake) as stream:
        return "".join([text async for text in stream.text()])


async def start_turn(flux0: Flux0, fake: FakeTransport) -> Any:
    session = await flux0.sessions.create_async(agent_id=fake.agent_id)
    return await flux0.sessions.create_event_async(session_id=session.id, content="Hi")


# --- checkpoints


@in_both_loops
async def test_cancelled_scope_stops_reading_at_the_next_event(mode: Mode) -> None:
    fake = FakeTransport([Say("x" * 1000, pieces=1000)])
    count = 0
    async with Flux0(transport=fake) as flux0:
        stream = await start_turn(flux0, fake)
        with anyio.CancelScope() as scope:
            async for _ in stream:
                count += 1
                if count == 3:
                    scope.cancel()
    assert (count, scope.cancelled_caught) == (3, True)
    fake.assert_no_open_streams()


@in_both_loops
async def test_expired_scope_sends_nothing(mode: Mode) -> None:
    fake = FakeTransport()
    async with Flux0(transport=fake) as flux0:
        with anyio.move_on_after(0) as scope:
            await flux0.agents.list_async()
    assert scope.cancelled_caught
    assert fake.calls == ()


@in_both_loops
async def test_reading_tasks_are_interleaved(mode: Mode) -> None:
    fake = FakeTransport([Say("abc", pieces=3)])
    order: list[str] = []

    async def read(name: str) -> None:
        async for _ in await start_turn(flux0, fake):
            order.append(name)  # noqa: PERF401 - the order of the events matters

    async with Flux0(transport=fake) as flux0, anyio.create_task_group() as tasks:
        for name in "xyz":
            tasks.start_soon(read, name)
    assert sorted(order) == sorted("xyz" * 3)
    assert order != sorted(order)
    assert order != sorted(order, reverse=True)


@in_both_loops
async def test_real_pause_does_not_block_other_tasks(mode: Mode) -> None:
    slept, released = threading.Event(), threading.Event()

    def sleep(_: float) -> None:
        slept.set()
        assert released.wait(10)

    fake = FakeTransport([Pause(1), Say("Hello")], clock=FakeClock(sleep=sleep))

    async def release() -> None:
        await anyio.to_thread.run_sync(slept.wait)
        released.set()

    async with Flux0(transport=fake) as flux0, anyio.create_task_group() as tasks:
        tasks.start_soon(release)
        assert await ask_for_text(flux0, fake) == "Hello"


@in_both_loops
async def test_real_pause_can_be_cancelled(mode: Mode) -> None:
    released = threading.Event()
    clock = FakeClock(sleep=lambda _: released.wait(10))
    fake = FakeTransport([Report("typing"), Pause(1), Say("Hello")], clock=clock)
    async with Flux0(transport=fake) as flux0:
        with ends_soon(), anyio.move_on_after(0.05) as scope:
            await ask_for_text(flux0, fake)
    released.set()
    assert scope.cancelled_caught
    fake.assert_no_open_streams()


# --- gates


@contextmanager
def in_thread(work: Callable[[], object]) -> Generator[threading.Thread, None, None]:
    """Call `work` in a thread during the block, and wait for the thread at the end."""
    thread = threading.Thread(target=work)
    thread.start()
    yield thread
    thread.join(10)
    assert not thread.is_alive()


def test_closed_gate_blocks_only_its_agent() -> None:
    gate = Gate()
    fake, session_id, body = begin([Report("typing"), gate, Say("Hello")])
    assert gate.reached
    fake.clock.advance(30)
    assert kinds(fake, session_id) == ["message", "typing"]
    gate.open()
    assert kinds(fake, session_id) == ["message", "typing", "message"]
    assert len(list(body)) == 2
    assert text_of(turn(fake)[0]) == "Hello"  # An opened gate stays open.


def test_another_thread_can_open_a_gate() -> None:
    gate, arrived = Gate(), threading.Event()
    fake, _, body = begin([Report("typing"), gate, Say("Hello")])
    pieces: list[bytes] = []

    def read() -> None:
        for piece in body:
            pieces.append(piece)
            arrived.set()

    with in_thread(read):
        assert arrived.wait(10)
        assert ask(fake, "GET", "/api/agents").status_code == 200
        gate.open()
    assert len(pieces) == 2


@in_both_loops
async def test_another_task_can_open_a_gate(mode: Mode) -> None:
    gate = Gate()
    fake = FakeTransport([Report("typing"), gate, Say("Hello")])
    answers: list[str] = []

    async def read() -> None:
        answers.append(await ask_for_text(flux0, fake))

    async with Flux0(transport=fake) as flux0, anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        assert gate.reached
        assert answers == []
        gate.open()
    assert answers == ["Hello"]


@in_every_mode
async def test_unopened_gate_raises_after_its_timeout(mode: Mode) -> None:
    fake = FakeTransport([Gate(timeout=0.05)])
    async with (
        in_mode(mode, Flux0(transport=fake)) as flux0,
        await start_turn(flux0, fake) as stream,
    ):
        with pytest.raises(AssertionError, match=r"a Gate that was not opened within 0\.05 s"):
            await anext(stream)


def test_clock_moved_during_a_gate_expires_the_read_timeout() -> None:
    fake = FakeTransport([Gate()])
    body = fake.send(message_to(new_session(fake))).body
    failures: list[BaseException] = []

    def read() -> None:
        try:
            body.read(30)
        except ReadTimeout as error:
            failures.append(error)

    with in_thread(read) as reader:
        while reader.is_alive():
            fake.clock.advance(31)
            reader.join(0.01)
    assert len(failures) == 1


def test_closing_a_stream_at_a_gate_cancels_the_turn() -> None:
    gate = Gate()
    fake, session_id, body = begin([gate, Say("Hello")])
    body.close()
    gate.open()
    assert kinds(fake, session_id) == ["message"]


@in_both_loops
async def test_waiting_read_ends_with_its_agent_or_its_body(mode: Mode) -> None:
    outcomes: list[object] = []

    async def agent(message: UserMessage) -> None:
        await event.wait()
        if message.content == "failed":
            raise LookupError

    async def read(body: AsyncByteStream) -> None:
        try:
            outcomes.append(await body.read_async(None))
        except (ConnectionInterrupted, LookupError) as error:
            outcomes.append(type(error))

    for content in ("closed", "failed", "ended"):
        event, fake = anyio.Event(), FakeTransport(agent)
        body = (await fake.send_async(message_to(new_session(fake), content))).body
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read, body)
            await anyio.wait_all_tasks_blocked()
            if content == "closed":
                await body.close_async()
            else:
                event.set()
    assert outcomes == [ConnectionInterrupted, LookupError, None]


def test_blocking_agent_does_not_block_other_sessions() -> None:
    begun, released = threading.Event(), threading.Event()

    def agent(message: UserMessage) -> Iterator[AgentStep]:
        yield Report("typing")
        if message.content == "first":
            begun.set()
            assert released.wait(10)
        yield Say(message.content)

    fake = FakeTransport(agent)
    session_ids = [new_session(fake) for _ in range(2)]
    bodies: list[Any] = []

    def send() -> None:
        bodies.append(post(fake, session_ids[0], "first"))

    with in_thread(send):
        assert begun.wait(10)
        assert kinds(fake, session_ids[0]) == ["message", "typing"]
        assert len(list(post(fake, session_ids[1], "second"))) == 2
        released.set()
    assert len(list(bodies[0])) == 2


def test_turn_is_cancelled_while_another_thread_runs_its_agent() -> None:
    begun, released = threading.Event(), threading.Event()
    cancelled: list[str] = []

    def agent(message: UserMessage) -> Iterator[AgentStep]:
        if message.content == "first":
            begun.set()
            assert released.wait(10)
        try:
            yield Say(message.content)
        except GeneratorExit:
            cancelled.append(message.content)
            raise

    fake = FakeTransport(agent)
    session_id = new_session(fake)
    bodies: list[Any] = []
    with in_thread(lambda: bodies.append(post(fake, session_id, "first"))):
        assert begun.wait(10)
        assert len(list(post(fake, session_id, "second"))) == 1
        released.set()
    assert cancelled == ["first"]
    with pytest.raises(ReadTimeout):
        next(bodies[0])


def steps_of_a_turn_that_is_cancelled_before_its_agent_starts() -> list[str]:
    steps: list[str] = []

    def run(message: UserMessage) -> Iterator[AgentStep]:
        steps.append(message.content)
        yield Say(message.content)

    def agent(message: UserMessage) -> Any:
        if message.content == "first":
            assert len(list(post(fake, session_id, "second"))) == 1  # Cancels the first turn.
        return run(message)

    fake = FakeTransport(agent)
    session_id = new_session(fake)
    post(fake, session_id, "first")
    return steps


def test_turn_that_is_cancelled_before_its_agent_starts_runs_no_step() -> None:
    assert steps_of_a_turn_that_is_cancelled_before_its_agent_starts() == ["second"]
    gc.collect()  # Frees the fake. A coroutine that was not closed would issue a warning.


# --- kinds of agents


async def generating(message: UserMessage) -> AsyncIterator[str | AgentStep]:
    yield f"You ask_for_text {message.content}"
    await anyio.sleep(0)
    yield Pause(5)
    yield " and I answer"


async def returning(message: UserMessage) -> list[str]:
    await anyio.sleep(0)
    return [f"You ask_for_text {message.content}", " and I answer"]


@in_both_loops
async def test_async_agents_may_return_or_yield(mode: Mode) -> None:
    fake = FakeTransport(generating)
    fake.script(returning, generating)
    async with Flux0(transport=fake) as flux0:
        for _ in range(3):
            assert await ask_for_text(flux0, fake) == "You ask_for_text Hi and I answer"
    fake.assert_all_used()


@in_both_loops
async def test_async_agent_can_await_events_and_gates(mode: Mode) -> None:
    event, gate = anyio.Event(), Gate()
    ends: list[str] = []

    async def agent(message: UserMessage) -> AsyncIterator[AgentStep]:
        try:
            yield Report("typing")
            await event.wait()
            yield gate
            yield Say("Hello")
            yield FallSilent()
        finally:
            ends.append(message.content)

    fake = FakeTransport(agent)
    async with Flux0(transport=fake, stream_idle_timeout_ms=30_000) as flux0:
        stream = await start_turn(flux0, fake)
        await anext(stream)
        event.set()
        gate.open()
        await anext(stream)
        with pytest.raises(StreamIdleTimeout):
            await anext(stream)
        await anyio.wait_all_tasks_blocked()
    assert ends == ["Hi"]
    assert kinds(fake, "s000000001") == ["message", "typing", "message"]


@in_both_loops
async def test_async_agent_starts_before_the_delay_of_the_response(mode: Mode) -> None:
    async def agent(_: UserMessage) -> AsyncIterator[AgentStep]:
        yield Report("typing")
        yield Pause(5)
        yield Report("processing")

    fake = FakeTransport(agent)
    fake.inject(Delay(10), operation="sessions.create_event")
    async with Flux0(transport=fake) as flux0:
        stream = await start_turn(flux0, fake)
        assert len([event async for event in stream]) == 2
        events = await flux0.sessions.list_events_async(session_id="s000000001", source="ai_agent")
    assert [event.created_at.second for event in events] == [0, 5]


@in_both_loops
async def test_async_agent_without_an_end_waits_for_its_reader(mode: Mode) -> None:
    produced = count()

    async def agent(_: UserMessage) -> AsyncIterator[AgentStep]:
        for number in produced:
            yield Report(f"status {number}")

    fake = FakeTransport(agent)
    body = (await fake.send_async(message_to(new_session(fake)))).body
    await anyio.wait_all_tasks_blocked()
    assert next(produced) == 10_000
    for _ in range(10_001):
        await body.read_async(None)
    await anyio.wait_all_tasks_blocked()
    assert next(produced) == 20_001
    await body.close_async()


@in_both_loops
async def test_async_agent_is_cancelled_with_its_stream(mode: Mode) -> None:
    ends: list[str] = []

    async def agent(message: UserMessage) -> AsyncIterator[AgentStep]:
        try:
            yield Report("typing")
            await anyio.sleep_forever()
        finally:
            ends.append(message.content)

    fake = FakeTransport(agent)
    async with Flux0(transport=fake) as flux0:
        async for _ in await start_turn(flux0, fake):
            break
        await anyio.wait_all_tasks_blocked()
        assert ends == ["Hi"]
        # An agent is also cancelled if its stream is closed before its first step.
        await (await fake.send_async(message_to("s000000001", "2"))).body.close_async()
        await anyio.wait_all_tasks_blocked()
    assert kinds(fake, "s000000001") == ["message", "typing", "message"]


@in_both_loops
async def test_async_agent_is_cancelled_if_its_turn_was_cancelled_before_it_starts(
    mode: Mode,
) -> None:
    ends: list[str] = []

    async def run(message: UserMessage) -> AsyncIterator[AgentStep]:
        try:
            await anyio.sleep_forever()
            yield Say(message.content)
        finally:
            ends.append(message.content)

    def agent(message: UserMessage) -> Any:
        if message.content == "second":
            return "Hello"
        assert len(list(post(fake, session_id, "second"))) == 1  # Cancels the first turn.
        return run(message)

    fake = FakeTransport(agent)
    session_id = new_session(fake)
    body = (await fake.send_async(message_to(session_id, "first"))).body
    await anyio.wait_all_tasks_blocked()
    assert ends == ["first"]
    assert kinds(fake, session_id) == ["message", "message", "message"]
    await body.close_async()


@in_both_loops
async def test_exception_of_an_async_agent_is_raised_by_the_stream(mode: Mode) -> None:
    async def agent(_: UserMessage) -> AsyncIterator[AgentStep]:
        yield Report("typing")
        raise LookupError("a bug")

    fake = FakeTransport("Hello")
    fake.script(agent)
    async with Flux0(transport=fake) as flux0:
        with pytest.raises(LookupError, match="a bug"):
            await ask_for_text(flux0, fake)
    fake.assert_all_used()
    with pytest.raises(AssertionError, match=r"an agent raised LookupError\('a bug'\)"):
        fake.assert_nothing_unexpected()


@in_both_loops
async def test_async_agent_can_close_its_own_stream(mode: Mode) -> None:
    done: list[str] = []
    streams: list[Any] = []
    opened = anyio.Event()

    async def agent(_: UserMessage) -> AsyncIterator[AgentStep]:
        yield Report("typing")
        await opened.wait()
        await streams[0].close_async()
        yield Say("Never")
        done.append("on")

    fake = FakeTransport(agent)
    async with Flux0(transport=fake) as flux0:
        streams.append(await start_turn(flux0, fake))
        opened.set()
        await anyio.wait_all_tasks_blocked()
    assert (done, kinds(fake, "s000000001")) == ([], ["message", "typing"])


@in_both_loops
async def test_agent_can_be_any_async_iterable(mode: Mode) -> None:
    class Countdown:
        def __init__(self, _: UserMessage) -> None:
            self.left = 3

        def __aiter__(self) -> Countdown:
            return self

        async def __anext__(self) -> str:
            self.left -= 1
            if self.left < 0:
                raise StopAsyncIteration
            return str(self.left)

    fake = FakeTransport(Countdown)
    async with Flux0(transport=fake) as flux0:
        assert await ask_for_text(flux0, fake) == "210"


@in_both_loops
async def test_wait_returns_at_once_after_an_earlier_change(mode: Mode) -> None:
    clock = FakeClock()
    seen = clock.changes
    clock.notify()
    await clock.wait_async(Wait(seen=seen))
    clock.wait(Wait(seen=seen))


def test_sync_call_can_run_an_async_agent_that_awaits_nothing() -> None:
    async def agent(message: UserMessage) -> AsyncIterator[str]:
        yield "You ask_for_text "
        yield message.content

    async def answer(message: UserMessage) -> str:
        return message.content

    fake = FakeTransport(agent)
    fake.script(answer)
    assert [text_of(turn(fake)[0]) for _ in range(2)] == ["Hi", "You ask_for_text Hi"]


class Later:
    def __await__(self) -> Generator[None, None, None]:
        yield


@pytest.mark.parametrize(
    ("wait", "message"),
    [
        (Later, "use async methods of the client"),
        (partial(asyncio.sleep, 0), "use async methods of the client"),
        (partial(asyncio.sleep, 1), "no running event loop"),
        (partial(anyio.sleep, 1), "async"),
        (partial(trio.sleep, 1), "async"),
    ],
)
def test_sync_call_with_an_agent_that_awaits_raises(wait: Any, message: str) -> None:
    async def agent(_: UserMessage) -> AsyncIterator[AgentStep]:
        await wait()
        yield Say("Never")

    _, _, body = begin(agent)
    with pytest.raises((RuntimeError, TypeError), match=message):
        next(body)


def raise_a_bug() -> None:
    raise RuntimeError("a bug")


@pytest.mark.parametrize(
    ("fail", "error"),
    [(raise_a_bug, RuntimeError), (lambda: asyncio.Queue[int]().get_nowait(), asyncio.QueueEmpty)],
)
def test_exception_of_an_async_agent_is_raised_in_a_sync_call(
    fail: Any, error: type[Exception]
) -> None:
    async def agent(_: UserMessage) -> AsyncIterator[AgentStep]:
        yield Report("typing")
        fail()

    with pytest.raises(error):
        list(begin(agent)[2])


def interrupting(_: UserMessage) -> Iterator[str]:
    yield "Hello"
    raise KeyboardInterrupt


def interrupting_at_once(_: UserMessage) -> str:
    raise KeyboardInterrupt


@pytest.mark.parametrize("agent", [interrupting, interrupting_at_once])
def test_keyboard_interrupt_of_an_agent_propagates(agent: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        begin(agent)


# --- several threads


def calling(function: str, act: Callable[[], object]) -> Callable[..., None]:
    """Return a profile function that calls `act` before a function with this name runs."""

    def on_event(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == function:
            act()

    return on_event


@pytest.mark.parametrize("look", [FakeTransport.assert_no_open_streams, FakeTransport.reset])
def test_call_that_another_thread_starts_does_not_disturb_assertions_and_reset(
    look: Callable[[FakeTransport], None],
) -> None:
    fake, listing = FakeTransport(), request("GET", "/api/agents")
    is_ready, continues, has_returned = (threading.Event() for _ in range(3))

    def wait() -> None:
        is_ready.set()
        assert continues.wait(TOO_LONG)

    def call() -> Any:
        sys.setprofile(calling("with_faults", wait))  # the last step before the response is open
        try:
            return fake.send(listing)
        finally:
            sys.setprofile(None)
            has_returned.set()

    def let_continue() -> None:
        continues.set()
        has_returned.wait(0.1)  # The lock of the fake makes the call wait.

    before = [fake.send(listing) for _ in range(2)]
    with ThreadPoolExecutor(1) as thread:
        later = thread.submit(call)
        assert is_ready.wait(TOO_LONG)
        name = "mark_ended" if look is FakeTransport.reset else "__str__"
        sys.setprofile(calling(name, let_continue))
        try:
            look(fake)
        except AssertionError as error:
            assert str(error).count("agents.list") == len(before)  # noqa: PT017 - only of one method
        finally:
            sys.setprofile(None)
            assert continues.is_set()
        response = later.result(TOO_LONG)
    with pytest.raises(AssertionError, match=r"responses left open"):
        fake.assert_no_open_streams()
    for each in (*before, response):
        each.body.close()
    fake.assert_no_open_streams()
