"""The effects of a fake agent's steps on the stream, the store and the clock."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterator
from itertools import chain, count, islice, repeat
from pathlib import Path
from typing import Any

import pytest

from flux0 import Flux0, StreamIdleTimeout, to_dict
from flux0.cli.demo_agent import demo_transport
from flux0.domain.errors import ReadTimeout
from flux0.models import (
    APIError,
    ChunkEvent,
    ContentPart,
    MessageData,
    ReasoningPart,
    StatusEvent,
    ToolCallPart,
    ToolData,
)
from flux0.testing import (
    AgentStep,
    CallTool,
    ClockStandsStill,
    Delay,
    Fail,
    FakeClock,
    FakeTransport,
    FallSilent,
    Gate,
    GiveResult,
    LangChain,
    Pause,
    Reason,
    Report,
    Say,
    SendChunk,
    UserMessage,
)
from flux0.testing.fake.clock import Wait
from support.cost import calls_made
from support.fakes import ask, begin, kinds, message_to, new_session, post, turn

DATA = Path(__file__).parents[3] / "data"
START = 1767225600.0


def add(path: str, value: Any) -> dict[str, Any]:
    return {"op": "add", "path": path, "value": value}


# --- simple steps


def test_streamed_bytes_are_the_same_as_from_the_server() -> None:
    _, _, body = begin([Report("typing", {"x": "é"}, event_id="e1"), Say("é")])
    assert list(body) == [
        b"event: status\nid: e1\ndata: "
        b'{"id": "e1", "source": "ai_agent", "type": "status", '
        b'"correlation_id": "RID(r000000001)::t000000001", '
        b'"data": {"type": "status", "status": "typing", "data": {"x": "\\u00e9"}}, '
        b'"metadata": null}\n\n',
        b"event: chunk\ndata: "
        b'{"correlation_id": "RID(r000000001)::t000000001", "event_id": "m000000001", "seq": 0, '
        b'"patches": [{"op": "add", "path": "/-", "value": "\\u00e9"}], '
        b'"metadata": {"agent_id": "a000000001", "agent_name": "Fake"}, '
        b'"timestamp": 1767225600.0}\n\n',
    ]


@pytest.mark.parametrize(("step", "part"), [(Say, ContentPart), (Reason, ReasoningPart)])
def test_say_and_reason_with_pieces_and_pauses(step: Any, part: Any) -> None:
    fake = FakeTransport([step("Hello there", pieces=3, pause=2), Report("typing")])
    events, (message, status) = turn(fake)
    chunks = [event for event in events if isinstance(event, ChunkEvent)]
    assert [chunk.patches[0].value for chunk in chunks] == ["Hel", "lo t", "here"]
    assert [chunk.seq for chunk in chunks] == [0, 1, 2]
    assert [chunk.timestamp for chunk in chunks] == [START, START + 2, START + 4]
    assert isinstance(message.data, MessageData)
    assert message.data.parts == (part("Hello there"),)
    assert message.correlation_id == chunks[0].correlation_id
    assert (status.created_at - message.created_at).total_seconds() == 1e-6
    assert fake.clock.now() == START + 4


def test_tool_call_and_result() -> None:
    call = CallTool("get_weather", {"location": "San Francisco"}, id="c1")
    events, (asked, given) = turn(FakeTransport([call, GiveResult(call, {"celsius": 16})]))
    assert len(events) == 4  # The arguments are sent in two pieces.
    assert isinstance(asked.data, MessageData)
    assert asked.data.parts == (ToolCallPart("c1", "get_weather", call.args),)
    assert isinstance(given.data, ToolData)
    (used,) = given.data.tool_calls
    assert (used.tool_call_id, used.tool_name, used.args) == ("c1", call.name, call.args)
    assert used.result is not None
    assert (used.result.data, used.result.control.mode) == ({"celsius": 16}, "auto")
    assert used.error is None


def test_each_tool_call_has_its_own_id() -> None:
    one, other = CallTool("get_weather", {"at": "SF"}), CallTool("get_weather", {"at": "SF"})
    given = CallTool("get_time", id="mine")
    fake = FakeTransport([one, other, given, GiveResult(other, 2), GiveResult(one, 1), one])
    with Flux0(transport=fake) as flux0:
        with flux0.conversation(agent=fake.agent_id).send("Hi") as stream:
            list(stream)
        calls = [
            (call.tool_call_id, call.result and call.result.data) for call in stream.tool_calls
        ]
    assert calls == [("call-1", 1), ("call-2", 2), ("mine", None), ("call-3", None)]
    _, (unasked,) = turn(FakeTransport([GiveResult(CallTool("get_time"), 12)]))
    assert isinstance(unasked.data, ToolData)
    assert unasked.data.tool_calls[0].tool_call_id == "call-1"


def test_langchain_step_equals_the_recorded_adapter() -> None:
    recorded = json.loads((DATA / "langchain_turn.json").read_text("utf-8"))
    one, other = CallTool("search", {"q": "SF"}), CallTool("search", {"q": "LA"})
    steps: list[AgentStep] = [
        LangChain(one, other),
        LangChain(GiveResult(one, "foggy")),
        LangChain(Say("It is ", pause=1), Say("foggy. Bye", pieces=2, pause=1)),
    ]
    runs = {f"00000000-0000-4000-8000-{number:012}": f"run-{number}" for number in (1, 2, 3)}
    seen: list[Any] = []
    events, stored = turn(FakeTransport(steps))
    for event in map(to_dict, events):
        if "patches" in event:
            seen.append(["chunk", runs[event["event_id"]], event["seq"], event["patches"]])
        else:
            seen.append(["status", runs[event["id"]], event["data"]])
    shown = [row for row in recorded if row[0] in {"chunk", "status"}]
    assert [row[:3] for row in seen] == [row[:3] for row in shown]
    for row, expected in zip(seen[:-3], shown[:-3], strict=True):
        assert row == expected
    assert [event.type for event in stored if event.type != "status"] == [
        row[0] for row in recorded if row[0] in {"message", "tool"}
    ]
    texts: list[Any] = [row[3][0]["value"] for row in seen[-3:]]
    assert "".join(texts) == "It is foggy. Bye"


def test_statuses_are_streamed_and_stored() -> None:
    events, stored = turn(FakeTransport([Report("typing", [1], acknowledged_offset=3), Fail("x")]))
    said = [event.data for event in events if isinstance(event, StatusEvent)]
    assert [event.data for event in stored] == said
    assert [(data.status, data.data) for data in said] == [("typing", [1]), ("error", "x")]


def test_fields_of_the_user_message() -> None:
    seen: list[UserMessage] = []

    def agent(message: UserMessage) -> str:
        seen.append(message)
        return message.content.upper()

    fake = FakeTransport(agent, agent_name="Echo", agent_types=["echo"])
    (event,), (stored,) = turn(fake, "hi")
    (message,) = seen
    assert isinstance(stored.data, MessageData)
    assert stored.data.parts == (ContentPart("HI"),)
    assert (message.agent_id, message.agent_name) == (fake.agent_id, "Echo")
    assert (message.agent_type, message.user_id) == ("echo", "u000000001")
    assert isinstance(event, ChunkEvent)
    assert (message.session_id, message.correlation_id) == ("s000000001", event.correlation_id)


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


@pytest.mark.parametrize(
    "make",
    [
        lambda: Say(""),
        lambda: Reason(""),
        lambda: Say("abc", pieces=4),
        lambda: Reason("abc", pieces=0),
        lambda: Say("abc", pause=-1),
        lambda: Pause(-1),
        lambda: FakeTransport(""),
        lambda: SendChunk("e1", [{"op": "add", "value": 1}]),
        lambda: SendChunk("e1", [{"path": "/-", "value": 1}]),
        lambda: SendChunk("e1", [{"op": "add", "path": "/-"}]),
    ],
)
def test_invalid_steps_raise(make: Any) -> None:
    with pytest.raises(ValueError, match=r"text|pieces|pause|seconds|patches"):
        make()


# --- stored events


READY = Report("ready", event_id="e1")


def raw(*patches: dict[str, Any], seq: int = 0, **metadata: Any) -> SendChunk:
    return SendChunk("e1", patches, seq, metadata)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([raw(add("/-", "x"))], []),
        ([READY, raw(add("/-", "x")), READY, READY], [ContentPart("x")]),
        ([raw(add("/-", "x")), READY, raw(add("/-", "y")), READY], [*map(ContentPart, "xy")]),
        ([raw(add("/a", 1), seq=5), READY], []),
        (
            [raw(add("/a", 1)), raw(add("/b", 2), seq=2), raw(add("/c", 3), seq=1), READY],
            [ContentPart({"a": 1, "c": 3})],
        ),
        ([raw(add("/a", [])), raw(add("/a/-", 1), seq=7), raw(add("/b", 2), seq=8), READY],
         [ContentPart({"a": [1], "b": 2})]),
        ([raw(add("/a", [])), raw(add("/a/-", 1), add("/b", 2), seq=7), READY],
         [ContentPart({"a": [1], "b": 2})]),
        ([SendChunk("", [add("/-", "x")]), Report("ready")], []),
        ([raw(add("/a", 1), seq=5, kind="reasoning"), raw(add("/a", 2)), READY],
         [ReasoningPart({"a": 2})]),
        ([raw(add("/-", "x"), {"op": "remove", "path": "/9"}), raw(add("/-", "y")), READY],
         [ContentPart("xy")]),
        ([raw(add("/a", 1), {"op": "move", "path": "/b", "from": "/a"}), READY],
         [ContentPart({"b": 1})]),
        ([raw(add("/-", "x"), agent_name=None), READY], []),
    ],
)  # fmt: skip
def test_chunks_become_messages(steps: list[AgentStep], expected: list[Any]) -> None:
    _, stored = turn(FakeTransport(steps))
    said = [event.data for event in stored if isinstance(event.data, MessageData)]
    assert [part for data in said for part in data.parts] == expected


def test_inapplicable_chunks_are_not_streamed() -> None:
    steps = [raw(add("/-", "x"), {"op": "remove", "path": "/9"}), raw(add("/a", 1), seq=9)]
    assert turn(FakeTransport(steps))[0] == []


def test_chunk_metadata_are_merged_with_the_agents() -> None:
    steps: list[AgentStep] = [raw(add("/-", "x"), mood="good", agent_id=None), READY]
    (event,), (stored,) = turn(FakeTransport(steps))
    assert isinstance(event, ChunkEvent)
    assert event.metadata == {"agent_name": "Fake", "mood": "good"}
    assert stored.metadata == {"mood": "good"}


def test_status_with_a_lone_surrogate_in_its_id_ends_the_stream() -> None:
    fake, session_id, body = begin([Report("typing", event_id="\ud800"), Report("processing")])
    assert list(body) == []
    assert kinds(fake, session_id) == ["message", "typing"]
    fake.assert_nothing_unexpected()


def test_numbers_are_formatted_as_by_the_server() -> None:
    numbers = [1.5e-7, -1.25e-5, 1e-5, 1e-10, 1e16, "1e-07", math.nan]
    fake, session_id, body = begin([Report("typing", numbers)])
    assert b"NaN" in b"".join(body)
    listed = ask(fake, "GET", f"/api/sessions/{session_id}/events").body
    assert b'[1.5e-7,-0.0000125,0.00001,1e-10,1e+16,"1e-07",null]' in listed


TOOL_CALL: dict[str, Any] = {
    "type": "tool_call",
    "tool_call_id": "c1",
    "tool_name": "n",
    "args": {},
}
TOOL_RESULT: dict[str, Any] = {**TOOL_CALL, "data": {"result": 1}}


@pytest.mark.parametrize(
    "steps",
    [
        [Report("bogus")],
        [Say("\ud800")],
        [raw(add("/tool_calls", [{**TOOL_CALL, "type": "x"}])), READY],
        [raw(add("/tool_calls", [{**TOOL_CALL, "tool_name": None}])), READY],
        [raw(add("/tool_call_results", [{**TOOL_RESULT, "tool_call_id": 5}])), READY],
        [raw(add("/tool_call_results", [{**TOOL_RESULT, "args": []}])), READY],
    ],
)
def test_one_invalid_event_makes_listing_return_500(steps: list[AgentStep]) -> None:
    fake, session_id, body = begin(steps)
    list(body)
    response = ask(fake, "GET", f"/api/sessions/{session_id}/events")
    assert (response.status_code, response.body) == (500, b"Internal Server Error")
    assert ask(fake, "GET", f"/api/sessions/{session_id}/events?source=user").status_code == 200


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
    sessions = {seconds: new_session(fake) for seconds in "312"}
    bodies = [post(fake, session_id, seconds) for seconds, session_id in sessions.items()]
    fake.clock.advance(10)
    for seconds, session_id in sessions.items():
        events = ask(fake, "GET", f"/api/sessions/{session_id}/events").json["data"]
        assert events[-1]["created_at"] == f"2026-01-01T00:00:0{seconds}Z"
    assert [len(list(body)) for body in bodies] == [1, 1, 1]


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
    """Return the minutes and seconds at which the events of the agent were stored."""
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
    body: Generator[bytes, None, None]  # Unlike an iterator, a body has `close`.
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
    endless = iter(fake.send(message_to(session_id, idle=None)).body)
    next(endless)
    with pytest.raises(AssertionError, match="the request has no read timeout"):
        next(endless)


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


def test_sleep_of_the_clock_is_called_for_each_wait() -> None:
    slept: list[float] = []
    clock = FakeClock(0, sleep=slept.append)
    turn(FakeTransport([Pause(2), Say("ab", 2, pause=0.5)], clock=clock))
    assert (slept, clock.now()) == ([2, 0.5], 2.5)
    clock.wait(Wait(1))  # The clock never moves backward.
    assert clock.now() == 2.5


# --- the demo


@pytest.mark.parametrize(
    ("question", "place"),
    [
        ("What's the weather in New York?", "New York"),
        ("Is it warm in Rome today?", "Rome"),
        ("Is it windy in Saint-Étienne?", "Saint-Étienne"),
        ("Hello", "San Francisco"),
    ],
)
def test_demo_agent_calls_the_weather_tool(question: str, place: str) -> None:
    slept: list[float] = []
    fake = demo_transport(FakeClock(1_000_000_000, sleep=slept.append))
    with Flux0(transport=fake) as flux0:
        stream = flux0.conversation(agent=fake.agent_id).send(question)
        pieces = list(stream.text())
        (call,) = stream.tool_calls
        said = [type(message.data) for message in stream.messages]
    assert call.args == {"location": place}
    assert len(pieces) > 10
    assert f"in {place}" in "".join(pieces)
    assert said == [MessageData, MessageData, ToolData, MessageData]
    assert 1 < sum(slept) < 5


# --- cost


@pytest.mark.once
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
