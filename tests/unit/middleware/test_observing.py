"""Observers: the reports of calls, attempts and turns, and the log line of each turn."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from io import StringIO
from threading import Event
from typing import Any, cast

import anyio
import pytest

from flux0 import (
    AgentError,
    APIError,
    BackgroundTurns,
    BackoffStrategy,
    Flux0,
    Reply,
    ResponseTooLarge,
    RetryConfig,
    StreamIdleTimeout,
    StreamInterrupted,
    TransportError,
)
from flux0.domain.api_errors import ServerError
from flux0.domain.errors import InvalidArgument, PoolTimeout, ReadTimeout
from flux0.flows import CallRequest, Flow, SendFlow
from flux0.observers import AttemptEnd, Call, CallEnd, Observer, TurnEnd
from flux0.ports import Request, Response
from flux0.testing import (
    AgentReply,
    CallTool,
    Delay,
    Fail,
    FakeTransport,
    FallSilent,
    Gate,
    GiveResult,
    Pause,
    Respond,
    Say,
    Truncate,
)
from flux0.usecases.call import ApiCall
from support.driving import LoopTime, Slow, Time
from support.forking import in_child
from support.in_memory import (
    Script,
    close_delimited,
    in_every_mode,
    in_simulated_time,
    script,
    status,
)
from support.modes import in_mode
from support.transports import Mode

AT_ONCE = RetryConfig(backoff=BackoffStrategy(initial_interval=0))
URL = "http://127.0.0.1:8080/api/agents"


class Recorder(Observer):
    """Records all reports, and adds a header field to each attempt."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.calls: list[Call] = []
        self.attempts: list[AttemptEnd] = []
        self.ends: list[CallEnd] = []
        self.first_events: list[float] = []
        self.turns: list[TurnEnd] = []

    def on_call_start(self, call: Call) -> None:
        self.names.append("call start")
        self.calls.append(call)

    def on_attempt_start(self, call: Call, number: int) -> Mapping[str, str] | None:
        assert call is self.calls[-1]
        self.names.append(f"attempt {number} start")
        return {"x-attempt": str(number)}

    def on_attempt_end(self, call: Call, attempt: AttemptEnd) -> None:
        assert call is self.calls[-1]
        self.names.append(f"attempt {attempt.number} end")
        self.attempts.append(attempt)

    def on_call_end(self, call: Call, end: CallEnd) -> None:
        assert call is self.calls[-1]
        self.names.append("call end")
        self.ends.append(end)

    def on_first_event(self, call: Call, seconds: float) -> None:
        assert call is self.calls[-1]
        self.names.append("first event")
        self.first_events.append(seconds)

    def on_turn_end(self, call: Call, turn: TurnEnd) -> None:
        self.names.append("turn end")
        self.turns.append(turn)

    @property
    def turn(self) -> TurnEnd:
        (turn,) = self.turns
        return turn


@asynccontextmanager
async def observed(
    mode: Mode, fake: FakeTransport, *observers: Observer, **options: Any
) -> AsyncGenerator[Flux0, None]:
    """Return a client with these observers."""
    client = Flux0(transport=fake, observers=observers, retry_config=AT_ONCE, **options)
    async with in_mode(mode, client) as flux0:
        yield flux0


@asynccontextmanager
async def turn_of(
    mode: Mode, recorder: Recorder, *replies: AgentReply, fault: Any = None, **options: Any
) -> AsyncGenerator[Any, None]:
    """Return the open stream of a turn, whose reports go to `recorder`."""
    fake = FakeTransport()
    fake.script(*replies)
    async with observed(mode, fake, recorder, **options) as flux0:
        session = await flux0.sessions.create_async(agent_id=fake.agent_id)
        if fault is not None:
            fake.inject(fault)
        recorder.__init__()  # type: ignore[misc]  # Remove the reports of the call above.
        yield await flux0.sessions.create_event_async(session_id=session.id, content="Hello")


# --- calls and attempts


@in_every_mode
async def test_call_with_retry_reports_each_attempt_once(mode: Mode) -> None:
    fake, recorder = FakeTransport(), Recorder()
    fake.inject(Respond(503))
    async with observed(mode, fake, recorder) as flux0:
        await flux0.agents.list_async()

    (call,) = recorder.calls
    assert (call.operation, call.method, call.url) == ("agents.list", "GET", URL)
    assert (call.route, call.session_id, call.starts_turn) == ("/api/agents", None, False)
    assert recorder.names == [
        "call start",
        *("attempt 1 start", "attempt 1 end"),
        *("attempt 2 start", "attempt 2 end"),
        "call end",
    ]
    first, second = recorder.attempts
    assert (first.status_code, type(first.error)) == (503, ServerError)
    assert (second.status_code, second.error) == (200, None)
    assert recorder.ends[0].error is None
    assert [each.headers["x-attempt"] for each in fake.calls] == ["1", "2"]


@in_every_mode
async def test_headers_of_the_call_replace_headers_of_an_observer(mode: Mode) -> None:
    fake = FakeTransport()
    async with observed(mode, fake, Recorder()) as flux0:
        await flux0.agents.list_async()
        await flux0.agents.list_async(http_headers={"X-Attempt": "own"})
    assert [call.headers["x-attempt"] for call in fake.calls] == ["1", "own"]


@in_every_mode
async def test_failed_call_reports_the_error_that_it_raises(mode: Mode) -> None:
    recorder = Recorder()
    async with observed(mode, FakeTransport(), recorder) as flux0:
        with pytest.raises(APIError) as caught:
            await flux0.agents.retrieve_async(agent_id="0123456789")

    assert recorder.ends[0].error is caught.value
    assert recorder.attempts[0].status_code == caught.value.status_code


@in_every_mode
async def test_invalid_body_is_the_error_of_the_call_but_not_of_the_attempt(mode: Mode) -> None:
    fake, recorder = FakeTransport(), Recorder()
    fake.inject(Respond(200, body=b"no JSON"))
    async with observed(mode, fake, recorder) as flux0:
        with pytest.raises(Exception, match="JSON") as caught:
            await flux0.agents.list_async()

    assert recorder.attempts[0].error is None
    assert recorder.ends[0].error is caught.value


@in_every_mode
async def test_seconds_are_measured_on_the_clock_of_the_client(mode: Mode) -> None:
    fake, recorder = FakeTransport(), Recorder()
    fake.inject(Delay(2))
    async with observed(mode, fake, recorder) as flux0:
        await flux0.agents.list_async()

    assert recorder.attempts[0].seconds == 2
    assert recorder.ends[0].seconds == 2


@in_simulated_time
async def test_deadline_of_an_async_call_is_reported_as_timeout(mode: Mode) -> None:
    """The driver cancels the call, but observers see the `ReadTimeout` that the caller gets."""

    class Endless(Script):
        time = LoopTime()

        async def send_async(self, request: Request) -> Any:
            await anyio.sleep_forever()

    recorder = Recorder()
    async with in_mode(mode, Flux0(transport=Endless([]), observers=[recorder])) as flux0:
        with pytest.raises(ReadTimeout):
            await flux0.agents.list_async(timeout_ms=10_000)

    assert type(recorder.attempts[0].error) is ReadTimeout
    assert type(recorder.ends[0].error) is ReadTimeout


@in_every_mode
async def test_error_of_the_transport_after_the_deadline_is_reported_unchanged(mode: Mode) -> None:
    recorder = Recorder()
    transport = Slow([PoolTimeout("no connection became free")], time=Time(), seconds=3.0)
    client = Flux0(
        transport=transport, observers=[recorder], timeout_ms=1000, retry_config=RetryConfig("none")
    )
    async with in_mode(mode, client) as flux0:
        with pytest.raises(PoolTimeout) as caught:
            await flux0.agents.list_async()

    assert recorder.attempts[0].error is recorder.ends[0].error is caught.value


@in_every_mode
async def test_call_that_is_stopped_before_its_deadline_is_not_reported_as_timeout(
    mode: Mode,
) -> None:
    class Stop(BaseException):
        pass

    recorder, transport = Recorder(), script(Stop(), Stop())
    async with in_mode(mode, Flux0(transport=transport, observers=[recorder])) as flux0:
        for timeout_ms in (None, 60_000):
            with pytest.raises(Stop):
                await flux0.agents.list_async(timeout_ms=timeout_ms)

    errors = [end.error for end in recorder.attempts] + [end.error for end in recorder.ends]
    assert [type(error) for error in errors] == [Stop] * 4


@in_every_mode
async def test_calls_of_a_middleware_are_attempts_of_one_call(mode: Mode) -> None:
    def twice(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        yield from send(request)
        return (yield from send(request))

    recorder = Recorder()
    async with observed(mode, FakeTransport(), recorder, middleware=[twice]) as flux0:
        await flux0.agents.list_async()

    assert len(recorder.calls) == len(recorder.ends) == 1
    assert len(recorder.attempts) == 2


@in_every_mode
async def test_request_of_a_middleware_that_belongs_to_no_call_is_not_observed(mode: Mode) -> None:
    def ping(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        yield from send(CallRequest("GET", request.url, request.headers))
        return (yield from send(request))

    class AttemptRecorder(Observer):
        def on_attempt_start(self, call: Call, number: int) -> None:
            calls.append(call)

    calls: list[Call | None] = []
    fake = FakeTransport()
    async with observed(mode, fake, AttemptRecorder(), middleware=[ping]) as flux0:
        await flux0.agents.list_async()

    assert len(fake.calls) == 2
    assert [call and call.operation for call in calls] == ["agents.list"]


@in_every_mode
async def test_call_without_a_response_body_is_observed(mode: Mode) -> None:
    def delete(call: ApiCall) -> Flow[int]:
        request = call.request("agents.delete", "DELETE", "/api/agents")
        return call.perform(request, lambda response: response.status_code)

    fake, recorder = FakeTransport(), Recorder()
    fake.inject(Respond(204))
    async with observed(mode, fake, recorder) as flux0:
        caller: Any = cast("Any", flux0.agents).caller
        if mode == "sync":
            status = caller.run(delete, {})
        else:
            status = await caller.run_async(delete, {})

    assert status == 204
    assert recorder.names == ["call start", "attempt 1 start", "attempt 1 end", "call end"]
    assert recorder.calls[0].operation == "agents.delete"


@in_every_mode
async def test_status_of_a_response_whose_body_cannot_be_read_is_reported(mode: Mode) -> None:
    recorder = Recorder()
    async with observed(mode, FakeTransport(), recorder, max_body_bytes=1) as flux0:
        with pytest.raises(ResponseTooLarge) as caught:
            await flux0.agents.list_async()

    assert recorder.attempts[0].error is caught.value
    assert recorder.attempts[0].status_code == 200


# --- turns


@in_every_mode
async def test_complete_turn_reports_its_facts(mode: Mode) -> None:
    recorder, tool = Recorder(), CallTool("weather", {"city": "Paris"})
    steps: AgentReply = [Pause(3), tool, Pause(2), GiveResult(tool, "rain"), Say("It rains.")]
    async with turn_of(mode, recorder, steps) as stream:
        async for _ in stream:
            pass

    assert recorder.names == [
        *("call start", "attempt 1 start", "attempt 1 end", "call end"),
        *("first event", "turn end"),
    ]
    turn, (call,) = recorder.turn, recorder.calls
    assert call.starts_turn
    assert (call.content, call.session_id) == ("Hello", turn.session_id)
    assert (turn.ending, turn.error, turn.agent_error) == ("confirmed", None, None)
    assert turn.correlation_id == stream.correlation_id
    assert turn.event_count == stream.event_count
    assert turn.messages == stream.messages
    assert turn.session_id == stream.session_id
    assert (turn.agent_id, turn.agent_name) == (stream.agent.id, stream.agent.name)
    assert turn.seconds == stream.seconds == 5
    assert recorder.first_events == [turn.seconds_to_first_event]
    assert turn.seconds_to_first_event == stream.seconds_to_first_event
    (timed,) = turn.tool_calls
    assert (timed.call.tool_name, timed.seconds) == ("weather", 2)


@in_every_mode
async def test_observer_that_changes_a_turn_does_not_change_the_reply(mode: Mode) -> None:
    class Redacts(Recorder):
        def on_turn_end(self, call: Call, turn: TurnEnd) -> None:
            super().on_turn_end(call, turn)
            (timed,) = turn.tool_calls
            cast("Any", timed.call.args).clear()
            cast("Any", timed.call.result).data.clear()

    recorder, tool = Redacts(), CallTool("weather", {"city": "Paris"})
    fake = FakeTransport([tool, GiveResult(tool, {"sky": "clear"}), Say("It is sunny.")])
    async with observed(mode, fake, recorder) as flux0:
        conversation = await flux0.conversation_async(agent=fake.agent_id)
        reply = await conversation.ask("Hello")

    assert recorder.turn.tool_calls[0].call.args == {}
    (call,) = reply.tool_calls
    assert call.args == {"city": "Paris"}
    assert call.result is not None
    assert call.result.data == {"sky": "clear"}


@in_every_mode
async def test_observer_that_changes_an_agent_error_does_not_change_the_users_error(
    mode: Mode,
) -> None:
    class Redacts(Recorder):
        def on_turn_end(self, call: Call, turn: TurnEnd) -> None:
            super().on_turn_end(call, turn)
            assert turn.agent_error is not None
            turn.agent_error.data.clear()

    recorder, fake = Redacts(), FakeTransport([Fail({"detail": "no"})])
    async with observed(mode, fake, recorder) as flux0:
        conversation = await flux0.conversation_async(agent=fake.agent_id)
        with pytest.raises(AgentError) as caught:
            await conversation.ask("Hello")

    assert (recorder.turn.agent_error or caught.value).data == {}
    assert caught.value.data == {"detail": "no"}


@in_every_mode
async def test_interrupted_turn_reports_its_error_once(mode: Mode) -> None:
    recorder = Recorder()
    fault = Truncate(after_events=2)
    async with turn_of(mode, recorder, [Say("Hello there", pieces=4)], fault=fault) as stream:
        with pytest.raises(StreamInterrupted) as caught:
            async for _ in stream:
                pass

    assert (recorder.turn.ending, recorder.turn.error) == ("interrupted", caught.value)
    assert recorder.turn.event_count == 2


@in_every_mode
async def test_silent_turn_reports_an_idle_timeout(mode: Mode) -> None:
    recorder, idle_ms = Recorder(), 5_000
    reply: AgentReply = [Say("Hello"), FallSilent()]
    async with turn_of(mode, recorder, reply, stream_idle_timeout_ms=idle_ms) as stream:
        with suppress(StreamIdleTimeout):
            async for _ in stream:
                pass

    assert recorder.turn.ending == "interrupted"
    assert isinstance(recorder.turn.error, StreamIdleTimeout)
    assert recorder.turn.seconds == 5


@in_every_mode
async def test_stream_that_is_closed_early_reports_no_error(mode: Mode) -> None:
    recorder = Recorder()
    async with turn_of(mode, recorder, "Hello there") as stream, stream:
        async for _ in stream:
            break
        assert recorder.turns == []
        assert stream.seconds is None

    assert (recorder.turn.ending, recorder.turn.error) == ("closed", None)
    assert stream.seconds == 0


@in_every_mode
async def test_error_of_the_agent_is_reported(mode: Mode) -> None:
    recorder = Recorder()
    async with turn_of(mode, recorder, [Say("Oh"), Fail("broken")]) as stream, stream:
        with pytest.raises(AgentError):
            await stream.final_messages()

    assert (recorder.turn.ending, recorder.turn.error) == ("closed", None)
    assert recorder.turn.agent_error is not None
    assert recorder.turn.agent_error.data == "broken"


@in_every_mode
async def test_call_that_opens_no_stream_reports_no_turn(mode: Mode) -> None:
    recorder = Recorder()
    async with observed(mode, FakeTransport(), recorder) as flux0:
        with pytest.raises(APIError):
            await flux0.sessions.create_event_async(session_id="0123456789", content="Hello")

    assert recorder.calls[0].starts_turn
    assert isinstance(recorder.ends[0].error, APIError)
    assert recorder.turns == []


@pytest.mark.usefixtures("little_garbage")
@in_every_mode
async def test_garbage_collected_stream_is_reported_at_the_next_call(mode: Mode) -> None:
    fake, recorder = FakeTransport("Hello"), Recorder()
    async with observed(mode, fake, recorder) as flux0:
        session = await flux0.sessions.create_async(agent_id=fake.agent_id)
        stream: Any = await flux0.sessions.create_event_async(session_id=session.id, content="Hi")
        del stream
        gc.collect()
        assert recorder.turns == []
        await flux0.agents.list_async()
        assert recorder.turn.ending == "closed"

    assert len(recorder.turns) == 1


@pytest.mark.usefixtures("little_garbage")
@pytest.mark.parametrize("ended", ["before the fork", "in the child"])
def test_end_of_a_turn_is_reported_only_in_the_process_that_opened_it(ended: str) -> None:
    fake, recorder = FakeTransport("Hello"), Recorder()
    with Flux0(transport=fake, observers=[recorder]) as flux0:
        conversation = flux0.conversation(agent=fake.agent_id)
        streams = [conversation.send("Hi")]
        if ended == "before the fork":
            streams.clear()

        def end_and_call() -> None:
            if streams:
                streams[0].close()
            flux0.agents.list()
            flux0.close()
            assert recorder.turns == []

        in_child(end_and_call)
        assert recorder.turns == []
        streams.clear()
        flux0.agents.list()
        assert recorder.turn.ending == "closed"

    assert len(recorder.turns) == 1


@pytest.mark.usefixtures("little_garbage")
@in_every_mode
async def test_loop_that_is_left_without_a_with_block_is_reported_when_the_client_closes(
    mode: Mode,
) -> None:
    recorder = Recorder()
    async with turn_of(mode, recorder, "Hello there") as stream:
        async for _ in stream:
            break
        gc.collect()

    assert (recorder.turn.ending, recorder.turn.event_count) == ("closed", stream.event_count)


def test_stream_in_a_closed_generator_is_reported_at_the_next_call() -> None:
    """A web server may drop a generator without closing it. The garbage collector closes it."""

    def pieces() -> Iterator[str]:
        with flux0.conversation(agent=fake.agent_id).send("Hi") as stream:
            yield from stream.text()

    fake, recorder = FakeTransport([Say("Hello there", pieces=5)]), Recorder()
    with Flux0(transport=fake, observers=[recorder]) as flux0:
        generator = pieces()
        next(generator)
        del generator
        assert recorder.turns == []
        flux0.agents.list()
        assert recorder.turn.ending == "closed"


def test_relay_that_is_closed_early_is_reported_by_its_thread() -> None:
    reported = Event()

    class Signal(Recorder):
        def on_turn_end(self, call: Call, turn: TurnEnd) -> None:
            super().on_turn_end(call, turn)
            reported.set()

    fake, recorder = FakeTransport([Say("Hello"), Gate()]), Signal()
    with Flux0(transport=fake, observers=[recorder]) as flux0:
        relay = flux0.conversation(agent=fake.agent_id).send("Hi").relay()
        next(relay)
        del relay
        assert reported.wait(10)

    assert recorder.turn.ending == "closed"


def test_closing_the_client_reports_its_open_turns() -> None:
    fake, recorder = FakeTransport("Hello"), Recorder()
    with Flux0(transport=fake, observers=[recorder]) as flux0:
        stream = flux0.conversation(agent=fake.agent_id).send("Hi")

    assert recorder.turn.ending == "closed"
    assert not stream.is_open


# --- failing observers and invalid arguments


@in_every_mode
async def test_first_exception_of_each_observer_is_logged(mode: Mode) -> None:
    class Broken(Recorder):
        def on_call_start(self, call: Call) -> None:
            raise RuntimeError("a bug")

        def on_attempt_start(self, call: Call, number: int) -> Mapping[str, str]:
            return {"x-broken": "line\nbreak"}

    log, second = StringIO(), Recorder()
    logger, handler = logging.getLogger("flux0"), logging.StreamHandler(log)
    logger.addHandler(handler)
    try:
        async with observed(mode, FakeTransport(), Broken(), Broken(), second) as flux0:
            assert len(await flux0.agents.list_async()) == 1
    finally:
        logger.removeHandler(handler)

    assert log.getvalue().startswith("the observer <")
    assert log.getvalue().count("Traceback") == 2
    assert log.getvalue().endswith("RuntimeError: a bug\n")
    assert second.names[-1] == "call end"


@pytest.mark.parametrize("value", [5, "", "line\nbreak", "\ud800"])
def test_invalid_trace_parent_of_an_observer_is_ignored(value: Any) -> None:
    class Broken(Observer):
        def trace_parent(self, call: Call) -> str | None:
            return value  # type: ignore[no-any-return]

    class Valid(Observer):
        def trace_parent(self, call: Call) -> str | None:
            return "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    fake, turns = FakeTransport("Hi"), BackgroundTurns()
    with Flux0(transport=fake, observers=[Broken(), Valid()]) as flux0:
        turn = turns.start(flux0.conversation(agent=fake.agent_id), "Hello")
        assert turn.wait().text == "Hi"

    assert turn.trace_parent == Valid().trace_parent(Call("", "", "", ""))


@in_every_mode
async def test_exception_of_an_observer_without_a_hash_does_not_affect_the_call(mode: Mode) -> None:
    @dataclass
    class Broken(Observer):
        errors: int = 0

        def on_call_start(self, call: Call) -> None:
            self.errors += 1
            raise RuntimeError("a bug")

    broken = Broken()
    async with observed(mode, FakeTransport(), broken) as flux0:
        assert len(await flux0.agents.list_async()) == 1

    assert broken.errors == 1


@pytest.mark.parametrize(
    ("observers", "problem"),
    [
        (Recorder(), "must be a list of observers: pass \\["),
        (None, "must be a list of observers"),
        ([Recorder], "must be a Observer, not"),
        (["log"], "must be a Observer, not"),
    ],
)
def test_wrong_observers_are_rejected(observers: object, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=f"observers {problem}"):
        Flux0(transport=FakeTransport(), observers=cast("Any", observers))


# --- the log


@pytest.mark.parametrize("observers", [(), (Observer(),)])
def test_each_ended_turn_is_logged(
    caplog: pytest.LogCaptureFixture, observers: tuple[Observer, ...]
) -> None:
    caplog.set_level(logging.INFO, "flux0")
    fake = FakeTransport(agent_name="Drizzle")
    fake.script([Pause(1.5), Say("Hello")], [Fail("secret")])
    with Flux0(transport=fake, observers=observers) as flux0:
        conversation = flux0.conversation(agent=fake.agent_id)
        stream = conversation.send("Hi")
        list(stream)
        with suppress(AgentError):
            conversation.ask("Hi")

    first, second = caplog.messages
    assert first == (
        f"turn ended: ending=confirmed agent=Drizzle session={conversation.session_id} "
        f"turn={stream.correlation_id} events={stream.event_count} "
        f"first_event={stream.seconds_to_first_event:.3f}s total=1.500s"
    )
    assert f"ending=closed error=AgentError agent={fake.agent_id} " in second
    assert "secret" not in second


@pytest.mark.parametrize("in_background", [True, False])
def test_turn_that_an_error_has_ended_is_one_line_with_level_warning_or_error(
    caplog: pytest.LogCaptureFixture, in_background: bool
) -> None:
    fake = FakeTransport(["a", "b"])
    with Flux0(transport=fake) as flux0:
        conversation = flux0.conversation(agent=fake.agent_id)

        def ask() -> Reply:
            if in_background:
                return BackgroundTurns().start(conversation, "Hi").wait()
            return conversation.ask("Hi")

        fake.inject(Truncate(after_events=1))
        with pytest.raises(StreamInterrupted):
            ask()
        ask()
    (record,) = (record for record in caplog.records if record.levelname in ("WARNING", "ERROR"))
    session = f"session={conversation.session_id} turn="
    assert session in record.getMessage()
    error = "error=StreamInterrupted sent=yes agent=Fake"
    expected = (
        "relayed turn failed: " if in_background else f"turn ended: ending=interrupted {error}"
    )
    assert record.getMessage().startswith(expected)


def test_client_warns_once_of_unconfirmed_ends(caplog: pytest.LogCaptureFixture) -> None:
    turns = [close_delimited(status("typing")) for _ in range(3)]
    flux0 = Flux0(transport=script(*turns))
    flux0.sessions.create_event(session_id="s", content="Hi").final_messages()
    for client in (flux0, flux0.with_options(timeout_ms=60_000)):
        client.conversation(session="s").ask("Hi")

    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "proxy_http_version 1.1" in record.message
    assert "docs/proxies.md" in record.message


def test_turns_are_not_described_if_nothing_observes_or_logs_them() -> None:
    fake = FakeTransport("Hello")
    with Flux0(transport=fake) as flux0:
        stream = flux0.conversation(agent=fake.agent_id).send("Hi")
        list(stream)
    assert (stream.seconds, stream.ending) == (0, "confirmed")


def test_retries_are_printed_without_a_handler_for_flux0() -> None:
    """The logging configuration of uvicorn has no handler for other loggers."""
    code = """
from flux0 import Flux0
from flux0.testing import FakeTransport, Respond
fake = FakeTransport()
def retry():
    fake.inject(Respond(503))
    Flux0(transport=fake).agents.list()
retry()
import uvicorn
uvicorn.Config("app")
retry()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    printed = f"GET {URL}: attempt 1 failed (ServerError: "
    assert [line[: len(printed)] for line in done.stderr.splitlines()] == [printed] * 2


def test_attempt_with_a_transport_error_has_no_status_code() -> None:
    recorder = Recorder()
    with (
        Flux0(
            "http://127.0.0.1:1", observers=[recorder], retry_config=RetryConfig("none")
        ) as flux0,
        pytest.raises(TransportError) as caught,
    ):
        flux0.agents.list()
    assert (recorder.attempts[0].status_code, recorder.attempts[0].error) == (None, caught.value)
