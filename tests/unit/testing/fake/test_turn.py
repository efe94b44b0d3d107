"""The effects of a fake agent's steps on the stream, the store and the clock."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import AsyncIterator, Iterator
from itertools import chain, count, islice, repeat
from math import inf
from typing import Any

import anyio
import anyio.from_thread
import pytest

from flux0 import Flux0, StreamIdleTimeout
from flux0.domain.errors import ReadTimeout
from flux0.models import (
    APIError,
)
from flux0.ports import AsyncByteStream
from flux0.testing import (
    AgentStep,
    ClockStandsStill,
    Delay,
    Fail,
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
from support.cost import calls_made
from support.fakes import ask, begin, kinds, message_to, new_session, post, turn
from support.in_memory import in_both_loops
from support.transports import Mode

START = 1767225600.0


# --- simple steps


def failing(_: UserMessage) -> Iterator[AgentStep]:
    yield Say("Hello")
    raise LookupError("a bug")


def failing_at_once(_: UserMessage) -> str:
    raise LookupError("a bug")


def yielding_an_int(_: UserMessage) -> list[int]:
    return [5]


BUGS: list[tuple[Any, int, Exception]] = [
    (failing, 1, LookupError("a bug")),
    (failing_at_once, 0, LookupError("a bug")),
    (yielding_an_int, 0, TypeError("an agent must yield strings or steps of flux0.testing, not 5")),
]


@pytest.mark.parametrize(("agent", "pieces", "error"), BUGS)
def test_exception_of_an_agent_is_raised_by_the_stream(
    agent: Any, pieces: int, error: Exception
) -> None:
    fake, _, body = begin(agent)
    for _ in range(pieces):
        next(body)
    with pytest.raises(type(error), match=str(error)):
        next(body)
    fake.assert_no_open_streams()


# --- closing streams early


class CancelRecorder:
    """An agent that records the messages of its cancelled turns."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []

    def __call__(self, message: UserMessage) -> Iterator[AgentStep]:
        try:
            yield Report("processing")
            yield Pause(1)
            yield Report("typing")
            yield Pause(1)
            yield Say("Hello")
        except GeneratorExit:
            self.cancelled.append(message.content)
            raise


def test_closing_a_stream_cancels_its_turn() -> None:
    agent = CancelRecorder()
    fake, session_id, body = begin(agent)
    next(body)
    assert agent.cancelled == []
    for _ in range(2):
        body.close()
        assert agent.cancelled == ["Hi"]
    fake.clock.advance(10)
    assert kinds(fake, session_id) == ["message", "processing"]
    fake.assert_no_open_streams()


@pytest.mark.parametrize("pause", [[], [Pause(0)]])
def test_turn_without_pauses_is_stored_although_its_stream_is_closed(
    pause: list[AgentStep],
) -> None:
    fake, session_id, body = begin([Say("Hello", pieces=5), *pause, Say("Bye")])
    next(body)
    body.close()
    assert kinds(fake, session_id) == ["message"] * 3


def test_unread_turn_is_stored_when_the_clock_moves() -> None:
    fake, session_id, body = begin([Say("1"), Pause(1), Say("2"), Pause(1), Say("3")])
    seen = [len(kinds(fake, session_id))]
    for seconds in (0.5, 0.5, 5):
        fake.clock.advance(seconds)
        seen.append(len(kinds(fake, session_id)))
    assert seen == [2, 2, 3, 4]
    assert len(list(body)) == 3


def test_completed_unread_turn_stays_readable_and_closing_it_cancels_nothing() -> None:
    fake, session_id, first = begin("Hello")
    second = post(fake, session_id)
    fake.script([Say("One"), Pause(1), Say("Two")])
    third = post(fake, session_id)
    first.close()
    assert [len(list(body)) for body in (third, second)] == [2, 1]


def test_turns_of_several_sessions_continue_in_order_of_time() -> None:
    fake = FakeTransport(lambda message: [Pause(float(message.content)), Say(message.content)])
    pauses = ["3", "1", "2", "2.000"]
    sessions = {seconds: new_session(fake) for seconds in pauses}
    bodies = [post(fake, session_id, seconds) for seconds, session_id in sessions.items()]
    fake.clock.advance(10)
    moments: list[str] = []
    for session_id in sessions.values():
        events = ask(fake, "GET", f"/api/sessions/{session_id}/events").json["data"]
        moments.append(events[-1]["created_at"].removeprefix("2026-01-01T00:00:0"))
    assert moments == ["3Z", "1Z", "2Z", "2.000001Z"]
    assert [len(list(body)) for body in bodies] == [1, 1, 1, 1]


def test_agent_continues_after_it_has_completed_its_turn() -> None:
    done: list[str] = []

    def agent(_: UserMessage) -> Iterator[AgentStep]:
        yield Say("Hello")
        yield Report("completed")
        yield Say("unheard")
        yield Pause(1)
        done.append("paused")
        yield Report("typing")

    fake, session_id, body = begin(agent)
    assert len(list(body)) == 1
    assert done == []
    fake.clock.advance(1)
    assert done == ["paused"]
    assert kinds(fake, session_id) == ["message", "message"]


def test_second_turn_cancels_the_first() -> None:
    agent = CancelRecorder()
    fake, session_id, first = begin(agent)
    next(first)
    fake.clock.advance(1)
    second = post(fake, session_id, "second")
    assert agent.cancelled == ["Hi"]
    assert len(list(second)) == 3
    assert b"typing" in next(first)  # The agent sent this event before it was cancelled.
    with pytest.raises(ReadTimeout):
        next(first)


def test_second_message_is_stored_before_the_first_turn_is_cancelled() -> None:
    stored: list[list[str]] = []

    def reply(message: UserMessage) -> Iterator[AgentStep]:
        try:
            yield Gate()
        finally:
            stored.append([event.text for event in message.stored()])

    fake = FakeTransport(reply)
    session_id = new_session(fake)
    responses = [fake.send(message_to(session_id, text)) for text in ("first", "second")]
    assert len(responses) == 2  # An unreferenced response would cancel its turn.
    assert stored == [["first", "second"]]


def test_closing_the_first_of_two_streams_cancels_the_second_turn() -> None:
    agent = CancelRecorder()
    fake, session_id, first = begin(agent)
    second = post(fake, session_id, "second")
    next(second)
    first.close()
    assert agent.cancelled == ["Hi", "second"]
    with pytest.raises(ReadTimeout):
        next(second)


def test_agent_can_close_its_own_stream() -> None:
    bodies: list[Any] = []

    def agent(_: UserMessage) -> Iterator[AgentStep]:
        yield Report("processing")
        yield Pause(1)
        bodies[0].close()
        yield Report("typing")

    fake, session_id, first = begin(agent)
    bodies += first, post(fake, session_id)
    next(bodies[1])
    with pytest.raises(ReadTimeout):
        next(bodies[1])
    assert kinds(fake, session_id) == ["message", "processing"] * 2


# --- time


def times(fake: FakeTransport, session_id: str) -> list[str]:
    """Return the minutes and seconds at which the agent's events were stored."""
    events = ask(fake, "GET", f"/api/sessions/{session_id}/events?source=ai_agent").json["data"]
    return [event["created_at"][14:19] for event in events]


@pytest.mark.parametrize("call_is_delayed", [False, True])
def test_pause_after_a_gate_begins_when_the_gate_opens(*, call_is_delayed: bool) -> None:
    gate = Gate()
    fake, session_id, body = begin([gate, Report("typing"), Pause(5), Say("Hello")])
    if call_is_delayed:
        fake.inject(Delay(10))
        ask(fake, "GET", "/api/agents")
    else:
        fake.clock.advance(10)
    gate.open()
    assert times(fake, session_id) == ["00:10"]
    fake.clock.advance(10)
    assert times(fake, session_id) == ["00:10", "00:15"]
    assert b'"timestamp": 1767225615.0' in list(body)[1]


@in_both_loops
async def test_async_agent_that_awaits_and_pauses_has_the_times_of_the_clock(mode: Mode) -> None:
    event = anyio.Event()

    async def agent(_: UserMessage) -> AsyncIterator[AgentStep]:
        await event.wait()
        for text in ("One", "Two"):
            yield Pause(5)
            yield Say(text)

    fake = FakeTransport(agent)
    async with Flux0(transport=fake) as flux0:
        conversation = await flux0.conversation_async(agent=fake.agent_id)
        stream: Any = await conversation.send("Hi")
        await anyio.wait_all_tasks_blocked()
        fake.clock.advance(10)
        event.set()
        await anyio.wait_all_tasks_blocked()
        assert kinds(fake, "s000000001") == ["message"]
        fake.clock.advance(100)
        assert [event.timestamp async for event in stream] == [START + 15, START + 20]
        events = await flux0.sessions.list_events_async(session_id="s000000001", source="ai_agent")
    assert [event.created_at.second for event in events] == [15, 20]


def test_pause_after_the_agent_itself_has_moved_the_clock() -> None:
    def agent(_: UserMessage) -> Iterator[AgentStep]:
        fake.clock.advance(10)
        yield Report("typing")
        yield Pause(5)
        yield Say("Hello")

    fake = FakeTransport(agent)
    session_id = new_session(fake)
    list(post(fake, session_id))
    assert times(fake, session_id) == ["00:10", "00:15"]


def test_agent_without_an_end_waits_for_its_reader() -> None:
    produced = count()
    fake, _, body = begin(lambda _: (Report(f"status {number}") for number in produced))
    fake.clock.advance(1)
    assert next(produced) == 10_000
    assert len(list(islice(body, 10_001))) == 10_001
    assert next(produced) == 20_001
    body.close()
    fake.assert_no_open_streams()


@pytest.mark.parametrize("step", [Say("unheard"), Pause(0), Report("ready", event_id="e1")])
def test_agent_without_an_end_that_sends_no_event_fails(step: AgentStep) -> None:
    begun: list[AgentStep] = [Say("Hi"), Report("completed")]
    fake, session_id, body = begin(lambda _: chain(begun, repeat(step)))
    with pytest.raises(RuntimeError, match="ran 10,000 steps in a row that sent no event"):
        list(body)
    assert kinds(fake, session_id) == ["message", "message"]


@pytest.mark.parametrize("step", [Report("typing"), Pause(1), Gate()])
def test_an_event_or_a_wait_ends_a_row_of_steps_that_send_no_event(step: AgentStep) -> None:
    silent = [Pause(0)] * 9_999
    _, _, body = begin([*silent, step, *silent, Say("Hello")])
    if isinstance(step, Gate):
        step.open()
    assert b"Hello" in list(body)[-1]


def test_pause_after_ten_thousand_unread_events_takes_its_time() -> None:
    steps: list[AgentStep] = [*repeat(Report("typing"), 10_000), Pause(5), Report("processing")]
    fake, session_id, body = begin(steps)
    assert len(list(body)) == 10_001
    assert times(fake, session_id)[-2:] == ["00:00", "00:05"]


def test_pause_longer_than_the_idle_timeout_expires_it() -> None:
    fake = FakeTransport([Report("typing"), Pause(20), Pause(11), Say("Hello")])
    with Flux0(transport=fake, stream_idle_timeout_ms=30_000) as flux0:
        stream = flux0.conversation(agent=fake.agent_id).send("Hi")
        next(stream)
        with pytest.raises(StreamIdleTimeout):
            next(stream)
    assert fake.clock.now() == START + 30
    fake.assert_no_open_streams()


def test_fall_silent_expires_the_idle_timeout_without_a_real_wait() -> None:
    fake, session_id, body = begin([Say("Hello"), FallSilent(), Say("Never")])
    next(body)
    with pytest.raises(ReadTimeout, match="600 s"):
        next(body)
    assert fake.clock.now() == START + 600
    endless = fake.send(message_to(session_id)).body
    endless.read(None)
    with pytest.raises(AssertionError, match="it has no read timeout"):
        endless.read(None)


def test_agent_does_not_wait_for_the_reader() -> None:
    steps: list[AgentStep] = [Report("typing"), Pause(5), Report("processing"), Pause(5), Say("x")]
    fake, _, body = begin(steps)
    next(body)
    fake.clock.advance(7)
    next(body)
    assert fake.clock.now() == START + 7
    assert b'"timestamp": 1767225610.0' in next(body)
    assert fake.clock.now() == START + 10


def test_clock_that_only_advance_moves_rejects_waits() -> None:
    clock = FakeClock(moves_by_itself=False)
    steps: list[AgentStep] = [Report("typing"), Pause(5), Say("Hello"), FallSilent()]
    _, _, body = begin(steps, clock=clock)
    next(body)
    with pytest.raises(ClockStandsStill, match=r"waiting for another 5 s.*advance\(5\)"):
        next(body)
    clock.advance(5)
    assert b"Hello" in next(body)
    # The agent sends no more events. The wait for the read timeout always moves the clock.
    with pytest.raises(ReadTimeout):
        next(body)


@in_both_loops
async def test_async_read_on_a_clock_that_only_advance_moves_does_not_wait(mode: Mode) -> None:
    fake = FakeTransport([Pause(5), Say("Hello")], clock=FakeClock(moves_by_itself=False))
    body = (await fake.send_async(message_to(new_session(fake)))).body
    with pytest.raises(ClockStandsStill):
        await body.read_async(60)
    fake.clock.advance(5)
    assert b"Hello" in (await body.read_async(60) or b"")
    await body.close_async()


def test_sleep_of_the_clock_is_called_for_each_wait() -> None:
    slept: list[float] = []
    clock = FakeClock(0, sleep=slept.append)
    turn(FakeTransport([Pause(2), Say("ab", 2, pause=0.5)], clock=clock))
    assert (slept, clock.now()) == ([2, 0.5], 2.5)
    clock.wait(Wait(1))  # The clock never moves backward.
    assert clock.now() == 2.5


@in_both_loops
async def test_delayed_call_can_be_cancelled(mode: Mode) -> None:
    scope, released = anyio.CancelScope(), threading.Event()

    def sleep(_: float) -> None:
        anyio.from_thread.run_sync(scope.cancel)
        released.wait(10)

    fake = FakeTransport(FallSilent(), clock=FakeClock(sleep=sleep))
    fake.inject(Delay(1), operation="sessions.create_event")
    turn = message_to(new_session(fake))
    with scope:
        await fake.send_async(turn)
    released.set()
    assert scope.cancelled_caught
    assert fake.calls[-1].response is None
    fake.assert_no_open_streams()


def test_clock_that_follows_another_clock_is_never_earlier() -> None:
    slept: list[float] = []
    times = [START + 5]
    clock = FakeClock(sleep=slept.append, follow=lambda: times[-1])
    assert clock.now() == clock.monotonic() == clock.utc_now().timestamp() == START + 5
    clock.wait(Wait(START + 4))
    times.append(START + 7)
    turn(FakeTransport([Pause(2), Say("ab")], clock=clock))
    clock.advance(1)
    assert (slept, clock.now()) == ([2], START + 10)
    times.append(START + 6)
    assert clock.now() == START + 10
    times.append(START + 60)
    assert clock.now() == START + 60
    clock.advance(1)
    assert clock.now() == START + 61


# --- cost


def test_cost_of_a_turn_is_linear_in_its_events() -> None:
    def cost(events: int) -> int:
        fake = FakeTransport([Say("x" * events, pieces=events)])
        session_id = new_session(fake)
        pieces: list[bytes] = []
        calls = calls_made(lambda: pieces.extend(post(fake, session_id)))
        assert len(pieces) == events
        return calls

    assert cost(2_000) < 2.1 * cost(1_000)


def test_errors_from_a_fake_have_no_raw_response() -> None:
    with Flux0(transport=FakeTransport()) as flux0, pytest.raises(APIError) as caught:
        flux0.agents.retrieve(agent_id="0123456789")
    assert caught.value.raw_response is None
    assert json.loads(caught.value.body)["detail"].endswith("not found")


def test_waiting_agent_may_be_garbage_collected_before_its_stream() -> None:
    """The garbage collector closes the oldest objects first, here the agent's coroutine."""
    ended: list[str] = []

    def agent(_: UserMessage) -> Iterator[AgentStep]:
        try:
            yield Gate()
        finally:
            ended.append("agent")

    cycle: list[Any] = [begin(agent)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert ended == ["agent"]


@pytest.mark.parametrize(
    "script",
    [
        [Say("Hello"), Report("completed")],
        [Say("I am"), Fail("lost"), Pause(1), Say("here")],
        [Say("Hello"), FallSilent(), Say("never")],
        failing_at_once,
    ],
)
def test_script_is_used_up_at_its_end_a_failure_or_fall_silent(script: Any) -> None:
    fake = FakeTransport()
    fake.script(script)
    post(fake, new_session(fake)).close()
    fake.assert_all_used()


def test_read_without_a_limit_waits_until_a_test_moves_the_clock() -> None:
    fake = FakeTransport([Pause(5), Say("Hi")], clock=FakeClock(moves_by_itself=False))

    async def read(body: AsyncByteStream) -> None:
        pieces.append(await body.read_async(inf))

    async def main() -> None:
        body = (await fake.send_async(message_to(new_session(fake)))).body
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read, body)
            await anyio.wait_all_tasks_blocked()
            assert pieces == []
            fake.clock.advance(5)
        await body.close_async()

    pieces: list[bytes | None] = []
    anyio.run(main)
    assert b"Hi" in (pieces[0] or b"")
