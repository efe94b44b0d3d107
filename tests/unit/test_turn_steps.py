"""The steps of unusual turns: replaced text, several messages at once, any form of tool calls."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from attrs import evolve, frozen
from hypothesis import given, strategies as st

from flux0.adapters.ui import AgUiFormat, AiSdkFormat
from flux0.domain.errors import StreamInterrupted
from flux0.domain.stream_events import JSONPatchOperation, StreamEvent, UnknownEvent
from flux0.relay_format import HEARTBEAT
from flux0.turn_steps import Step, StepEncoder, TurnSteps, json_event
from support.cost import steps_taken
from support.in_memory import CORRELATION_ID
from support.ui import (
    args,
    call,
    chunk,
    objects_of,
    pieces_of,
    replaced,
    result,
    status_event,
    text,
)


@frozen
class Bell:
    """A class of events without a status, as a later version of flux0 may have."""

    event: ClassVar[str] = "bell"


def steps_of(*events: StreamEvent) -> list[Any]:
    """Return the type and the most important value of each step, without the start and the end."""
    members = ("delta", "inputTextDelta", "input", "output", "data")
    return [
        (step["type"], next((step[member] for member in members if member in step), None))
        for step in objects_of(AiSdkFormat(), *events)[1:-2]
    ]


def test_events_of_further_classes_have_no_steps() -> None:
    bell = cast("StreamEvent", Bell())
    assert steps_of(text("Hi"), bell, text("!")) == steps_of(text("Hi"), text("!"))


def test_text_that_is_replaced_by_a_longer_text_is_continued() -> None:
    assert steps_of(replaced("Sun"), replaced("Sunny")) == [
        ("text-start", None),
        ("text-delta", "Sun"),
        ("text-delta", "ny"),
        ("text-end", None),
    ]


def test_item_that_is_replaced_by_a_longer_text_is_continued() -> None:
    patch = JSONPatchOperation("replace", "/0", "It is sunny")
    longer = evolve(text(""), patches=(patch,))
    assert steps_of(text("It "), longer, text("!")) == steps_of(
        text("It "), text("is sunny"), text("!")
    )


def test_text_that_is_replaced_by_another_text_stays_before_the_new_text() -> None:
    events = objects_of(AiSdkFormat(), replaced("Rain"), replaced("Sun"), text("Bye", "m2"))
    assert [(each.get("id"), each.get("delta")) for each in events[1:-2]] == [
        ("m-1", None),
        ("m-1", "Rain"),
        ("m-1", None),
        ("m-2", None),
        ("m-2", "Sun"),
        ("m-2", None),
        ("m2-3", None),
        ("m2-3", "Bye"),
        ("m2-3", None),
    ]


def test_replaced_text_of_a_message_that_is_continued_is_sent_once() -> None:
    events = text("Rain"), replaced(["Sun"]), text("Bye", "m2"), evolve(text(""), patches=())
    assert [value for kind, value in steps_of(*events) if kind == "text-delta"] == [
        "Rain",
        "Sun",
        "Bye",
    ]


def test_text_that_is_replaced_in_its_first_chunk_is_sent_once() -> None:
    first = evolve(text("Rain"), patches=(*text("Rain").patches, *replaced(["Sun"]).patches))
    assert steps_of(first, text("ny")) == steps_of(text("Sun"), text("ny"))


def test_text_of_several_operations_is_appended_to_the_text_before() -> None:
    several = evolve(text("b"), patches=(*text("b").patches, *text("c").patches))
    assert steps_of(text("a"), several) == [
        ("text-start", None),
        ("text-delta", "a"),
        ("text-delta", "bc"),
        ("text-end", None),
    ]


def test_messages_at_the_same_time_have_several_texts() -> None:
    pieces = [text("A1", "a"), text("B1", "b"), text("A2", "a"), text("B2", "b")]
    events = objects_of(AiSdkFormat(), *pieces)
    deltas = [(each["id"], each["delta"]) for each in events[:-1] if "delta" in each]
    assert deltas == [("a-1", "A1"), ("b-2", "B1"), ("a-3", "A2"), ("b-2", "B2")]
    ended = {each["id"] for each in events[:-1] if each["type"] == "text-end"}
    assert ended == {"a-1", "b-2", "a-3"}


def test_message_without_the_name_of_the_agent_is_left_out() -> None:
    """The server does not store it."""
    unnamed = evolve(text("a"), metadata={})
    calling = evolve(call({}), metadata={})
    assert steps_of(unnamed, calling, replaced({"tool_calls": []})) == []


def test_call_in_one_piece_is_complete_at_once() -> None:
    assert steps_of(call({"a": 1}), call({}, "c2", 1)) == [
        ("tool-input-start", None),
        ("tool-input-delta", '{"a":1}'),
        ("tool-input-available", {"a": 1}),
        ("tool-input-start", None),
        ("tool-input-delta", "{}"),
        ("tool-input-available", {}),
    ]


def test_arguments_in_the_chunk_of_another_call_are_not_lost() -> None:
    first, second = call([]), call([], "c2", 1)
    both = evolve(first, patches=(*args('"a": 1}').patches, *second.patches))
    assert steps_of(first, args("{"), both, args("late"), args("{}", 1)) == [
        ("tool-input-start", None),
        ("tool-input-delta", "{"),
        ("tool-input-delta", '"a": 1}'),
        ("tool-input-available", {"a": 1}),
        ("tool-input-start", None),
        ("tool-input-delta", "{}"),
        ("tool-input-available", {}),
    ]


def test_call_with_incomplete_arguments_does_not_change_the_other_calls() -> None:
    calls = evolve(call([]), patches=(*call([]).patches, *call([], "c2", 1).patches))
    assert steps_of(calls, args('{"a": 1}'), args("{", 1))[4:] == [
        ("tool-input-available", {"a": 1}),
        ("tool-input-error", None),
    ]


def test_arguments_in_the_chunk_of_their_call_are_not_lost() -> None:
    first = evolve(call([]), patches=(*call([]).patches, *args("{").patches))
    assert steps_of(first, args("}"), args(5), args("{", 7)) == [
        ("tool-input-start", None),
        ("tool-input-delta", "{"),
        ("tool-input-delta", "}"),
        ("tool-input-error", None),
    ]


def test_result_without_a_call_invents_the_call() -> None:
    assert steps_of(result("Sunny")) == [
        ("tool-input-start", None),
        ("tool-input-delta", "{}"),
        ("tool-input-available", {}),
        ("tool-output-available", "Sunny"),
    ]


def test_results_of_several_calls_are_sent_once() -> None:
    assert steps_of(call({}), call({}, "d", 1), result(1), result(2, "d"), text("Bye"))[6:8] == [
        ("tool-output-available", 1),
        ("tool-output-available", 2),
    ]


def test_result_completes_a_call_whose_arguments_are_invalid() -> None:
    assert steps_of(call([]), args("{"), result(1))[2:] == [
        ("tool-input-available", {}),
        ("tool-output-available", 1),
    ]


def test_call_with_the_id_of_another_call_is_not_started_again() -> None:
    types = [kind for kind, _ in steps_of(call({}), call({}, event_id="again"))]
    assert types == ["tool-input-start", "tool-input-delta", "tool-input-available"]


def test_call_that_is_complete_gets_no_more_arguments() -> None:
    streamed = {"type": "tool_call", "tool_call_id": "c", "tool_name": "weather", "args": ["{"]}
    late = chunk("/tool_calls", [streamed], event_id="late")
    assert steps_of(result(1), late) == steps_of(result(1))


def test_empty_text_and_arguments_are_left_out() -> None:
    assert steps_of(text("a"), replaced([]), text("")) == steps_of(text("a"))
    assert steps_of(call([]), args("")) == steps_of(call([]))


def test_part_of_an_unknown_type_is_left_out() -> None:
    part: Any = {"type": "new", "tool_call_id": "c", "tool_name": "n", "args": {}}
    assert steps_of(chunk("/tool_calls", [part])) == []


def test_json_content_is_sent_again_only_if_it_has_changed() -> None:
    def contents(*events: StreamEvent) -> list[Any]:
        return [value for kind, value in steps_of(*events) if kind == "data-content"]

    rows, note = chunk("/rows", [1]), text("Hi", "other")
    assert steps_of(rows, note)[0] == ("data-content", {"rows": [1]})
    assert contents(rows, note) == contents(replaced({"rows": [1]})) == [{"rows": [1]}]
    assert contents(rows, note, chunk("/rows/-", 2)) == [{"rows": [1]}, {"rows": [1, 2]}]


def test_json_reasoning_is_json_content() -> None:
    assert steps_of(chunk("/plan", [1], kind="reasoning")) == [("data-content", {"plan": [1]})]


def test_operation_that_cannot_be_applied_is_left_out() -> None:
    wrong = evolve(text("a"), patches=(JSONPatchOperation("remove", "/7"),))
    assert steps_of(text("a"), wrong) == steps_of(text("a"))


def test_cost_is_linear_in_the_events() -> None:
    def cost(count: int) -> int:
        events = [
            *(text(".", "r", kind="reasoning") for _ in range(count)),
            call([]),
            *(args(" ") for _ in range(count)),
            *(chunk("/rows/-", 1, event_id="json") for _ in range(count)),
            *(text(".", str(number)) for number in range(count)),
            *(call({}, str(number), number, "many") for number in range(count)),
            *(result(number, str(number), "results") for number in range(count)),
        ]
        return steps_taken(lambda: pieces_of(AiSdkFormat(), events))

    assert cost(200) < 2.1 * cost(100)


def test_steps_of_a_turn_are_typed_values() -> None:
    steps = TurnSteps()
    events: list[StreamEvent] = [
        status_event("typing", {"a": 1}),
        text("Hi"),
        call([]),
        args('{"a": 1}'),
        result(2),
    ]
    each = [step for event in events for step in steps.event(event)]
    assert [*each, *steps.end(), *steps.end()] == [
        Step("status", name="typing", value={"a": 1}),
        Step("turn-start", CORRELATION_ID),
        Step("text-start", "m-1"),
        Step("text-delta", "m-1", text="Hi"),
        Step("text-end", "m-1"),
        Step("message-end", "m"),
        Step("call-start", "c", "weather"),
        Step("call-delta", "c", "weather", '{"a": 1}'),
        Step("call-end", "c", "weather", value={"a": 1}),
        Step("message-end", "calls"),
        Step("call-result", "c", "weather", value=2),
        Step("message-end", "results"),
        Step("turn-end"),
    ]


def test_ids_and_names_of_tools_become_strings() -> None:
    """Agents may send any JSON as an id or a name."""
    item: Any = {"type": "tool_call", "tool_call_id": 7, "tool_name": 8, "args": {}}
    _, started, *_ = TurnSteps().event(chunk("/tool_calls", [item]))
    assert started == Step("call-start", "7", "8")


def test_message_without_content_does_not_start_the_turn() -> None:
    steps = TurnSteps()
    assert list(steps.event(evolve(text("a"), metadata={}))) == []
    assert list(steps.end()) == [Step("message-end", "m"), Step("turn-end")]


def test_message_that_continues_after_the_next_message_ends_twice() -> None:
    steps = TurnSteps()
    events = [text("a"), text("b", "other"), text("c")]
    each = [step for event in events for step in steps.event(event)]
    ends = [
        (step.type, step.id)
        for step in (*each, *steps.end())
        if step.type in {"text-end", "message-end"}
    ]
    assert ends == [
        ("text-end", "m-1"),
        ("message-end", "m"),
        ("text-end", "m-3"),
        ("message-end", "m"),
        ("text-end", "other-2"),
        ("message-end", "other"),
    ]


def test_encoder_calls_the_function_for_each_step() -> None:
    def encode(step: Step) -> bytes:
        return f"{step.type}{step.name + step.text if step.error else ''}\n".encode()

    encoder = StepEncoder(encode, error_text=lambda _: "Sorry", heartbeat=b"...\n")
    assert encoder.start() + encoder.heartbeat() == b"relay-start\n...\n"
    assert encoder.event(text("Hi")) == b"turn-start\ntext-start\ntext-delta\n"
    assert (
        encoder.error(StreamInterrupted("gone"))
        == b"text-end\nmessage-end\nerrorStreamInterruptedSorry\n"
    )
    assert encoder.end() == b""
    assert StepEncoder(encode).heartbeat() == HEARTBEAT


def test_json_event_is_compact_and_has_no_nan() -> None:
    assert json_event({"a": [1, float("nan")]}) == b'data: {"a":[1,null]}\n\n'


# Events in any order, for the properties below. Some of them are malformed.
IDS = ("a", "b", "calls")
CALL_IDS = ("c", "d")
ITEM = {"type": "tool_call", "tool_call_id": "c", "tool_name": "n", "args": ["{"]}
VALUES: list[Any] = ["x", "new", [], {}]
PIECES: list[Any] = ["{", "}", "1", "", 5]
EVENTS: list[StreamEvent] = [
    *(text(value, each) for each in IDS for value in ("x", "")),
    *(text("y", each, kind="reasoning") for each in IDS),
    *(evolve(replaced(value), event_id=each) for each in IDS for value in VALUES),
    *(evolve(replaced({"tool_calls": [ITEM]}), event_id=each) for each in IDS),
    *(call([], each, index) for each in CALL_IDS for index in (0, 1)),
    *(call({"a": 1}, each, index) for each in CALL_IDS for index in (0, 1)),
    *(args(value, index) for index in (0, 1) for value in PIECES),
    *(result(1, each, event_id) for each in CALL_IDS for event_id in ("r", "s", "calls")),
    *(chunk("/rows/0", 1, event_id=each) for each in IDS),
    evolve(text("unnamed", "u"), metadata={}),
    status_event("typing"),
    status_event("error"),
    UnknownEvent("note", ""),
]
TURNS = st.lists(st.sampled_from(EVENTS), max_size=12)


@given(TURNS, st.none() | st.just(StreamInterrupted("gone")))
def test_ai_sdk_accepts_the_chunks_of_any_turn(
    events: list[StreamEvent], error: StreamInterrupted | None
) -> None:
    *chunks, end, done = objects_of(AiSdkFormat(), *events, error=error)
    started, is_open = set[tuple[str, str]](), set[tuple[str, str]]()
    for each in chunks:
        kind, _, step = each["type"].rpartition("-")
        item = kind, each.get("toolCallId", each.get("id"))
        if each["type"] in {"start", "data-content", "data-status"}:
            continue
        if step == "start":
            assert item not in started
            started.add(item)
            is_open.add(item)
        elif step == "delta":
            assert item in is_open
            assert each.get("delta") or each.get("inputTextDelta")
        elif kind == "tool-output":
            assert ("tool-input", item[1]) in started - is_open
        else:
            is_open.remove(item)
    assert not is_open
    has_failed = error is not None or status_event("error") in events
    assert (end["type"], done) == ("error" if has_failed else "finish", "[DONE]")


@given(TURNS, st.none() | st.just(StreamInterrupted("gone")))
def test_ag_ui_accepts_the_events_of_any_turn(
    turn: list[StreamEvent], error: StreamInterrupted | None
) -> None:
    first, *events, last = objects_of(AgUiFormat("thread", "run"), *turn, error=error)
    started, is_open = set[tuple[str, str]](), set[tuple[str, str]]()
    for each in events:
        kind, _, step = each["type"].rpartition("_")
        item = kind, each["toolCallId"] if kind == "TOOL_CALL" else each.get("messageId", "")
        if step == "START":
            assert item not in started
            started.add(item)
            is_open.add(item)
        elif step in {"CONTENT", "ARGS"}:
            assert item in is_open
            assert each["delta"]
        elif step == "END":
            is_open.remove(item)
        elif step == "RESULT":
            assert item in started - is_open
        else:
            assert each["type"] in {"CUSTOM", "ACTIVITY_SNAPSHOT"}
    assert not is_open
    has_failed = error is not None or status_event("error") in turn
    ends = (first["type"], last["type"])
    assert ends == ("RUN_STARTED", "RUN_ERROR" if has_failed else "RUN_FINISHED")
