"""Steps of a fake agent: their events, their checks, and the types of replies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest

from flux0 import Flux0
from flux0.models import (
    ChunkEvent,
    ContentPart,
    InvalidArgument,
    MessageData,
    ReasoningPart,
    ToolCallPart,
    ToolData,
)
from flux0.testing import (
    AgentReply,
    AgentStep,
    CallTool,
    FakeTransport,
    Gate,
    GiveResult,
    LangChain,
    Pause,
    Reason,
    Report,
    Respond,
    Say,
    SendChunk,
    UserMessage,
)
from support.fakes import begin, kinds, new_session, post, turn

START = 1767225600.0


def text_of(events: list[Any]) -> str:
    return "".join(event.patches[0].value for event in events if event.event == "chunk")


DATA = Path(__file__).parents[3] / "data"


@pytest.mark.parametrize(("step", "part"), [(Say, ContentPart), (Reason, ReasoningPart)])
def test_say_and_reason_stream_pieces_with_pauses(step: Any, part: Any) -> None:
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


def test_tool_call_and_result_are_stored() -> None:
    call = CallTool("get_weather", {"location": "Málaga"}, id="c1")
    events, (asked, given) = turn(FakeTransport([call, GiveResult(call, {"celsius": 16})]))
    assert len(events) == 4  # The arguments are sent in two pieces.
    arguments: list[Any] = [event for event in events[1:3] if isinstance(event, ChunkEvent)]
    assert "".join(event.patches[0].value for event in arguments) == '{"location": "M\\u00e1laga"}'
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
    """The members have the same order, too."""
    recorded = json.loads((DATA / "langchain_turn.json").read_text("utf-8"))
    one, other = CallTool("search", {"q": "SF"}), CallTool("search", {"q": "LA"})
    steps: list[AgentStep] = [
        LangChain(one, other),
        LangChain(GiveResult(one, "foggy")),
        LangChain(Say("It is "), Say("foggy. Bye", pieces=2, pause=1)),
    ]
    streamed: list[str] = []
    fake, session_id, body = begin(steps)
    for piece in body:
        event = json.loads(piece.rpartition(b"data: ")[2])
        is_chunk = "seq" in event
        run = str(UUID(event["event_id" if is_chunk else "id"]))[-1]
        rest = [event["seq"], event["patches"]] if is_chunk else [event["data"]]
        streamed.append(json.dumps(["chunk" if is_chunk else "status", f"run-{run}", *rest]))
    shown = [row for row in recorded if row[0] in {"chunk", "status"}]
    assert streamed == [json.dumps(row) for row in shown]
    stored = [kind for kind in kinds(fake, session_id) if kind in {"message", "tool"}]
    assert stored == ["message", *(row[0] for row in recorded if row[0] in {"message", "tool"})]


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
        lambda: SendChunk("e1", [{"op": "test", "path": "/-"}]),
        lambda: Say(cast("str", 5)),
        lambda: Reason("abc", pieces=cast("int", "2")),
        lambda: Pause(cast("float", "1")),
        lambda: CallTool(cast("str", 5)),
        lambda: CallTool("weather", cast("dict[str, str]", 5)),
        lambda: GiveResult(cast("CallTool", "weather")),
    ],
)
def test_invalid_steps_raise(make: Any) -> None:
    with pytest.raises(
        InvalidArgument, match=r"^(text|pieces|pause|seconds|patches|name|args|call) "
    ):
        make()


@pytest.mark.parametrize("reply", [None, 5, [5], [Say("One"), None], Say, Respond(503)])
def test_invalid_replies_raise_at_once(reply: Any) -> None:
    problem = "reply is not valid: an agent must yield strings or steps of flux0.testing, not "
    with pytest.raises(InvalidArgument, match=problem):
        FakeTransport().script(reply)
    with pytest.raises(InvalidArgument, match=problem):
        FakeTransport(reply)


@pytest.mark.parametrize("is_open", [False, True])
def test_gate_says_whether_an_agent_has_reached_it(is_open: bool) -> None:
    gate = Gate()
    if is_open:
        gate.open()
    assert not gate.reached
    begin([gate])[2].close()
    assert gate.reached


def test_several_agents_may_wait_at_one_gate() -> None:
    gate = Gate()
    fake = FakeTransport([gate, Say("Hello")])
    bodies = [post(fake, new_session(fake)) for _ in range(2)]
    gate.open()
    assert [len(list(body)) for body in bodies] == [1, 1]


@pytest.mark.parametrize("wait", [Pause(5), Gate()])
def test_gate_that_is_opened_again_does_not_end_a_later_wait(wait: AgentStep) -> None:
    gate = Gate()
    fake, session_id, body = begin([gate, Report("typing"), wait, Report("processing")])
    for _ in range(2):
        gate.open()
    assert b"typing" in next(body)
    assert kinds(fake, session_id) == ["message", "typing"]


REPLIES: list[tuple[AgentReply, str]] = [
    (lambda message: message.content.upper(), "HI"),
    (lambda _: Say("One"), "One"),
    (lambda _: ["One ", "two"], "One two"),
    (lambda _: None, ""),
    (["One ", Pause(1), "two"], "One two"),
    (Say("One"), "One"),
    ([], ""),
]


@pytest.mark.parametrize(("reply", "text"), REPLIES)
def test_agent_may_reply_with_each_type(reply: AgentReply, text: str) -> None:
    assert text_of(turn(FakeTransport(reply))[0]) == text


def test_history_does_not_grow_with_later_turns() -> None:
    messages: list[UserMessage] = []
    fake, session_id, _ = begin(messages.append)
    post(fake, session_id)
    assert [len(message.history) for message in messages] == [0, 1]


def test_history_has_the_earlier_messages() -> None:
    def agent(message: UserMessage) -> str:
        ask_for_text: list[Any] = [event.data for event in message.history]
        return f"You have ask_for_text {[data.parts[0].content for data in ask_for_text]}"

    fake = FakeTransport(agent)
    with Flux0(transport=fake) as flux0:
        conversation = flux0.conversation(agent=fake.agent_id)
        for content, answer in (
            ("One", "You have ask_for_text []"),
            ("Two", "You have ask_for_text ['One', 'You have ask_for_text []']"),
        ):
            assert "".join(conversation.send(content).text()) == answer


def test_agent_gets_the_user_message_with_its_ids() -> None:
    seen: list[UserMessage] = []

    def agent(message: UserMessage) -> str:
        seen.append(message)
        return message.content.upper()

    fake = FakeTransport(agent, agent_name="First", agent_types=["first", "echo"])
    with Flux0(transport=fake) as flux0:
        echo = flux0.agents.create(name="Echo", type_="echo")
        session = flux0.sessions.create(agent_id=echo.id)
        (event,) = flux0.sessions.create_event(session_id=session.id, content="hi")
        _, stored = flux0.sessions.list_events(session_id=session.id)
    (message,) = seen
    assert isinstance(stored.data, MessageData)
    assert stored.data.parts == (ContentPart("HI"),)
    assert (message.agent_id, message.agent_name) == (echo.id, "Echo")
    assert (message.agent_type, message.user_id) == ("echo", "u000000001")
    assert isinstance(event, ChunkEvent)
    assert (message.session_id, message.correlation_id) == ("s000000001", event.correlation_id)
