"""Building messages from a stream: recorded turns, each rule, limits, and cost."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import attrs
import pytest

from flux0 import models, to_dict
from flux0.domain.enums import EventSource, EventType, SessionStatus
from flux0.domain.messages.accumulator import MessageAccumulator
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.messages.tool_calls import TimedToolCall, timed_tool_calls
from flux0.domain.stream_events import ChunkEvent, JSONPatchOperation, StatusEvent, UnknownEvent
from support.cost import steps_taken
from support.in_memory import new_turn

AGENT = {"agent_id": "a1", "agent_name": "Drizzle"}
PARTICIPANT = models.Participant(id="a1", name="Drizzle")
CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[3] / "data" / "accumulator_cases.json").read_text("utf-8")
)


def add(path: str, value: Any) -> JSONPatchOperation:
    return JSONPatchOperation("add", path, value)


def replace(path: str, value: Any) -> JSONPatchOperation:
    return JSONPatchOperation("replace", path, value)


def chunk(*patches: JSONPatchOperation, event_id: str = "e1", **metadata: Any) -> ChunkEvent:
    return ChunkEvent("turn", event_id, 0, patches, {**AGENT, **metadata})


def after(*chunks: ChunkEvent) -> MessageAccumulator:
    accumulator = MessageAccumulator()
    for event in chunks:
        accumulator.feed(event)
    return accumulator


def message(*parts: Any, **metadata: Any) -> TurnMessage:
    return TurnMessage(
        "e1",
        "turn",
        EventType.MESSAGE,
        models.MessageData(parts, participant=PARTICIPANT),
        metadata,
    )


def test_message_returns_one_message_as_the_server_stores_it() -> None:
    calling = {"type": "tool_call", "tool_call_id": "c", "tool_name": "n", "args": ["{"]}
    accumulator = after(
        chunk(add("/-", "Hi")), chunk(add("/tool_calls", [calling]), event_id="calls")
    )
    assert accumulator.message("e1") == message(models.ContentPart("Hi"))
    assert accumulator.message("calls") is None
    assert accumulator.message("calls", partial=True) == accumulator.messages[1]
    assert accumulator.message("unknown") is None


# --- recorded turns


def compared(event: dict[str, Any]) -> str:
    """Return the members that stored and rebuilt events share, as JSON text.

    In JSON text, 1, 1.0 and true differ; in Python, they are equal.
    """
    shared = {key: event[key] for key in ("type", "data", "metadata", "correlation_id")}
    return json.dumps(shared, sort_keys=True)


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case["name"]) for case in CASES if case["client_derivable"]]
)
def test_recorded_turn_gives_the_events_that_the_server_stored(case: dict[str, Any]) -> None:
    accumulator = MessageAccumulator()
    for event, _ in new_turn().feed(case["wire"].encode())[0]:
        accumulator.feed(event)
    rebuilt = [compared(to_dict(event)) for event in accumulator.finish()]
    expected = [
        compared(event)
        for event in case["persisted"]
        if event["source"] == "ai_agent" and event["type"] != "status"
    ]
    if not case["order_derivable"]:
        rebuilt.sort()
        expected.sort()
    assert rebuilt == expected
    assert accumulator.problems == ()


# --- the server's rules


@pytest.mark.parametrize(
    ("root", "part"),
    [
        ("text", models.ContentPart("text")),
        (["a", "b"], models.ContentPart("ab")),
        ([""], models.ContentPart("")),
        (["a", 1], models.ContentPart(["a", 1])),
        ([["a"]], models.ContentPart([["a"]])),
        ({"a": [None]}, models.ContentPart({"a": [None]})),
        ([float("nan"), {"a": float("-inf")}], models.ContentPart([None, {"a": None}])),
        ("", None),
        ([], None),
        ({}, None),
        (0, None),
        (5, None),
        (True, None),
    ],
)
def test_document_becomes_one_part_or_no_message(
    root: Any, part: models.ContentPart | None
) -> None:
    accumulator = after(chunk(add("", root)))
    expected = () if part is None else (message(part),)
    assert accumulator.finish() == accumulator.messages == expected


def test_first_chunk_determines_participant_kind_and_metadata() -> None:
    accumulator = after(
        chunk(add("/-", "a"), kind="reasoning", node="n", odd=[float("nan")]),
        chunk(add("/-", "b"), kind="other", agent_name="Sunny", late=True),
    )
    assert accumulator.finish() == (message(models.ReasoningPart("ab"), node="n", odd=[None]),)


@pytest.mark.parametrize(
    ("metadata", "participant"),
    [
        ({"agent_name": "N"}, models.Participant(id="", name="N")),
        ({"agent_id": None, "agent_name": True}, models.Participant(id="None", name="True")),
        ({"agent_id": "a1"}, None),
    ],
)
def test_message_without_agent_name_is_not_stored(
    metadata: dict[str, Any], participant: models.Participant | None
) -> None:
    accumulator = after(ChunkEvent("turn", "e1", 0, (add("/-", "a"),), metadata))
    expected = [models.MessageData((models.ContentPart("a"),), participant=participant)]
    assert [event.data for event in accumulator.finish()] == (expected if participant else [])
    assert accumulator.finish() == accumulator.messages


def tool_call(**fields: Any) -> dict[str, Any]:
    return {"type": "tool_call", "tool_call_id": "c1", "tool_name": "search", "args": {}, **fields}


def test_incomplete_arguments_of_a_tool_call_are_text() -> None:
    accumulator = after(chunk(add("/tool_calls/0", tool_call(args=[]))))
    seen: list[Any] = []
    for piece in ('{"days"', ": [1, ", "NaN]}"):
        accumulator.feed(chunk(add("/tool_calls/0/args/-", piece)))
        (event,) = accumulator.messages
        assert isinstance(event.data, models.MessageData)
        (part,) = event.data.parts
        assert isinstance(part, models.ToolCallPart)
        seen.append(part.args)
    assert seen == ['{"days"', '{"days": [1, ', {"days": [1, None]}]
    call = models.ToolCallPart("c1", "search", {"days": [1, None]})
    assert accumulator.finish() == (attrs.evolve(message(call), metadata=None),)


def test_tool_results_become_a_tool_event() -> None:
    fields = {"tool_call_id": "c1", "tool_name": "search", "args": {"q": 1}, "error": "bad"}
    results = [
        {**fields, "data": {"result": [float("inf")]}},
        {**fields, "tool_call_id": "c2", "data": "text"},
    ]
    (event,) = after(chunk(add("/tool_call_results", results), kind="other", node="n")).finish()
    first, second = (
        models.ToolCall(
            call, "search", {"q": 1}, models.ToolResult(data, {}, models.ControlOptions("auto"))
        )
        for call, data in (("c1", [None]), ("c2", None))
    )
    assert event == TurnMessage("e1", "turn", EventType.TOOL, models.ToolData((first, second)))


def test_empty_results_are_a_tool_event_but_empty_calls_are_not_stored() -> None:
    (event,) = after(chunk(add("/tool_call_results", []))).finish()
    assert event.data == models.ToolData(())
    assert after(chunk(add("/tool_calls", []))).finish() == ()


@pytest.mark.parametrize(
    "root",
    [
        {"tool_calls": None},
        {"tool_calls": 1},
        {"tool_calls": ["text"]},
        {"tool_calls": "text"},
        {"tool_calls": {"a": {}}},
        {"tool_calls": [{"type": "tool_call"}]},
        {"tool_calls": [tool_call(args="{}")]},
        {"tool_calls": [tool_call(args=[1])]},
        {"tool_calls": [tool_call(args=["[" * 200_000])]},
        {"tool_calls": [tool_call(args=['{"a":'])]},
        {"tool_calls": [tool_call(), tool_call(args=None)]},
        {"tool_call_results": [tool_call()]},
        {"tool_call_results": [tool_call(data={})]},
        {"tool_call_results": None},
    ],
)
def test_document_that_the_server_cannot_convert_is_not_stored(root: Any) -> None:
    assert after(chunk(add("", root))).finish() == ()


# --- the times of tool calls


def timed(*messages: tuple[str, float | None], **fields: Any) -> TimedToolCall:
    """Return the tool call of a turn with these messages, each with the time of its first chunk."""
    result = tool_call(**fields, data={"result": 1})
    items = {"tool_calls": tool_call(**fields), "tool_call_results": result}
    names = [str(number) for number in range(len(messages))]
    accumulator = after(
        *(
            chunk(add(f"/{key}", [items[key]]), event_id=name)
            for name, (key, _) in zip(names, messages, strict=True)
        )
    )
    times = {name: time for name, (_, time) in zip(names, messages, strict=True)}
    return timed_tool_calls(accumulator.finish(), times)[0]


def test_tool_call_takes_the_time_from_its_first_message_to_its_first_result() -> None:
    call = timed(
        ("tool_calls", 10.0),
        ("tool_calls", 11.0),
        ("tool_call_results", 12.5),
        ("tool_call_results", 20.0),
    )
    assert (call.started_at, call.seconds) == (10.0, 2.5)


def test_result_before_its_call_takes_no_time() -> None:
    """The clock of the server may have been set back."""
    assert timed(("tool_calls", 10.0), ("tool_call_results", 9.0)).seconds == 0.0
    assert timed(("tool_calls", 10.0), ("tool_call_results", None)).seconds is None


def test_tool_call_whose_id_is_a_list_has_no_result() -> None:
    odd: Any = ["c1"]
    call = timed(("tool_calls", 10.0), ("tool_call_results", 12.5), tool_call_id=odd)
    assert (call.call.tool_call_id, call.call.result, call.started_at) == (odd, None, 10.0)


# --- several messages, and incomplete messages


def test_messages_are_in_the_order_of_their_first_chunks() -> None:
    accumulator = after(
        chunk(add("/-", "A"), event_id="a"),
        chunk(add("/-", ""), event_id="empty"),
        chunk(add("/-", "B"), event_id="b"),
        chunk(add("/-", "A"), event_id="a"),
        chunk(replace("", []), event_id="empty"),
    )
    assert [(event.event_id, event.text) for event in accumulator.messages] == [
        ("a", "AA"),
        ("b", "B"),
    ]
    assert accumulator.finish() == accumulator.messages


def test_status_and_unknown_events_add_no_message() -> None:
    accumulator = MessageAccumulator()
    status = StatusEvent("", "turn", EventSource.AI_AGENT, models.StatusData(SessionStatus.TYPING))
    assert accumulator.feed(status) == accumulator.feed(UnknownEvent("new", "{}")) == ""
    assert accumulator.finish() == accumulator.messages == ()


def test_later_events_do_not_change_returned_messages() -> None:
    result = tool_call(args=[[1]], data={"result": {"a": []}})
    program = [
        chunk(add("/-", "a")),
        chunk(add("/-", {"list": [1]})),
        chunk(add("/1/list/-", 2)),
        chunk(replace("", {"tool_calls": [tool_call(args={"a": [1]}, tool_name=["odd"])]})),
        chunk(add("/tool_calls/0/args/a/-", 2), add("/tool_calls/0/tool_name/-", 2)),
        chunk(replace("", {"tool_call_results": [result]})),
        chunk(add("/tool_call_results/0/data/result/a/-", 2)),
        chunk(replace("", ["x"])),
        chunk(add("/-", "y")),
    ]
    before = repr(program)
    accumulator = MessageAccumulator()
    seen: list[tuple[Any, str]] = []
    for event in program:
        accumulator.feed(event)
        results = (accumulator.messages, accumulator.finish())
        seen += [(returned, repr(returned)) for returned in results]
    assert len({text for _, text in seen}) == len(program)
    assert [repr(returned) for returned, _ in seen] == [text for _, text in seen]
    assert repr(program) == before


def test_unchanged_message_is_not_built_again() -> None:
    accumulator = after(chunk(add("/-", {"a": 1})), chunk(add("/-", "B"), event_id="b"))
    first, second = accumulator.messages
    accumulator.feed(chunk(add("/-", "C"), event_id="b"))
    still, changed = accumulator.messages
    assert still is first
    assert changed != second


# --- the appended text


@pytest.mark.parametrize(
    ("operations", "texts"),
    [
        ([add("/-", "a"), add("/-", "b")], ["a", "b"]),
        ([add("/0", "a"), add("/1", "b"), add("/0", "c")], ["a", "b", ""]),
        (
            [add("", "a"), replace("", "ab"), replace("", "xyz"), add("", "xyz!")],
            ["a", "b", "", "!"],
        ),
        ([add("", ["a", "b"]), add("/-", "c"), replace("", "abcd")], ["ab", "c", "d"]),
        ([add("", []), add("/-", 1), add("/-", "a"), replace("", "ab")], ["", "", "a", "b"]),
        ([add("/a", "a"), add("/0", "b"), replace("", "c")], ["", "", "c"]),
        ([add("/-", "a"), replace("/0", "ab"), add("/-", "c")], ["a", "b", "c"]),
        ([add("/-", "a"), replace("/0", "xyz"), replace("/0", "xyz!")], ["a", "", "!"]),
        ([add("", ["a", "b"]), replace("/1", "bc"), replace("/0", "ax")], ["ab", "c", ""]),
        ([add("", ["a", 1]), replace("/1", "b"), replace("/1", 2)], ["a", "", ""]),
        ([add("/-2", "a"), replace("/-2", "ab")], ["", ""]),
        ([add("", 5), replace("/-2", "a")], ["", ""]),
        ([add("", "ab"), replace("/-2", "a")], ["ab", ""]),
        ([add("/tool_calls/0", tool_call(args=[])), add("/tool_calls/0/args/-", "{")], ["", ""]),
        ([add("/-", "a"), JSONPatchOperation("copy", "/-", from_="/0")], ["a", ""]),
        ([add("/-", "a"), JSONPatchOperation("move", "", from_="/0")], ["a", ""]),
    ],
)
def test_feed_returns_the_appended_text(
    operations: list[JSONPatchOperation], texts: list[str]
) -> None:
    accumulator = MessageAccumulator()
    assert [accumulator.feed(chunk(operation)) for operation in operations] == texts
    reasoning = MessageAccumulator()
    for operation in operations:
        assert reasoning.feed(chunk(operation, kind="reasoning")) == ""
    assert MessageAccumulator().feed(chunk(*operations)) == "".join(texts)


# --- operations that cannot be applied


@pytest.mark.parametrize(
    ("failing", "applied"),
    [
        (replace("/5", "x"), "b"),
        # If one operation is invalid, the whole chunk is ignored.
        (JSONPatchOperation("append", "/5", "x"), ""),
    ],
)
def test_failed_operation_is_recorded_and_later_chunks_apply(
    failing: JSONPatchOperation, applied: str
) -> None:
    accumulator = after(chunk(add("/-", "a")))
    event = attrs.evolve(chunk(add("/-", "b"), failing, add("/-", "never")), seq=7)
    assert accumulator.feed(event) == applied
    assert accumulator.feed(chunk(add("/-", "c"))) == "c"
    (problem,) = accumulator.problems
    assert (problem.event_id, problem.seq, problem.index) == ("e1", 7, 1)
    assert problem.operation is failing
    assert problem.reason
    assert accumulator.finish() == (message(models.ContentPart(f"a{applied}c")),)


# --- limits


def copy(path: str, source: str) -> JSONPatchOperation:
    return JSONPatchOperation("copy", path, from_=source)


HOSTILE = {
    "doubling": [add("", {"a": 1}), *(copy(f"/k{n}", "") for n in range(40))],
    "doubling a list": [add("", ["x" * 1000]), *[copy("/-", "")] * 40],
    "doubling texts": [*[add("/-", "x" * 1000)] * 10, *[copy("/-", "")] * 40],
    "large indexes": [add("/" + "/".join(["9999"] * 20) + "/a", 1)] * 30,
    "large indexes again": [add("/9999/a", 1), replace("", [])] * 100,
    "texts": [add("/-", "x" * 10_000)] * 200,
    "keys": [add(f"/{'k' * 10_000}{n}", "") for n in range(200)],
}


@pytest.mark.parametrize("operations", HOSTILE.values(), ids=HOSTILE)
def test_memory_for_the_messages_of_a_stream_is_limited(
    operations: list[JSONPatchOperation],
) -> None:
    accumulator = MessageAccumulator(max_turn_bytes=1_000_000)
    tracemalloc.start()
    try:
        for operation in operations:
            accumulator.feed(chunk(operation))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000
    assert "1,000,000 bytes" in accumulator.problems[0].reason
    assert len(accumulator.finish()) <= 1


def test_many_messages_and_recorded_problems_are_limited() -> None:
    accumulator = MessageAccumulator(max_turn_bytes=100_000)
    for n in range(1000):
        accumulator.feed(chunk(add("/-", "x"), event_id=f"{n}"))
    assert 100 < len(accumulator.finish()) < 500
    assert accumulator.feed(chunk(event_id="another")) == ""
    for _ in range(1000):
        accumulator.feed(chunk(replace("/5", "x" * 1000)))
    assert 50 < len(accumulator.problems) < 1000


def test_problem_of_too_large_metadata_has_the_first_operation() -> None:
    accumulator = MessageAccumulator(max_turn_bytes=1000)
    event = chunk(add("/-", "a"), add("/-", "b"), details="x" * 2000)
    assert accumulator.feed(event) == ""
    (problem,) = accumulator.problems
    assert (problem.index, problem.operation) == (0, event.patches[0])


def test_replaced_and_removed_values_free_their_memory() -> None:
    accumulator = MessageAccumulator(max_turn_bytes=10_000)
    text = ""
    for n in range(100):
        text = str(n) * 2000
        accumulator.feed(chunk(replace("", text)))
        accumulator.feed(chunk(replace("", [text]), add("/-", text)))
        accumulator.feed(chunk(JSONPatchOperation("remove", "/0")))
    assert accumulator.finish() == (message(models.ContentPart(text)),)
    for _ in range(100):
        accumulator.feed(chunk(replace("", []), add("/-", "x" * 1000), add("/-", "y" * 1000)))
    assert accumulator.problems == ()


def test_messages_can_be_read_between_changes_without_using_up_the_memory_limit() -> None:
    accumulator = MessageAccumulator(max_turn_bytes=1000)
    for text in "abc" * 10:
        accumulator.feed(chunk(replace("", ["x", "y"]), replace("/0", text)))
        assert [each.text for each in accumulator.messages] == [f"{text}y"]
    assert accumulator.problems == ()


def test_too_large_replacement_changes_nothing() -> None:
    accumulator = MessageAccumulator(max_turn_bytes=10_000)
    accumulator.feed(chunk(add("/-", "a")))
    accumulator.feed(chunk(replace("", "x" * 20_000), add("/-", "b")))
    assert accumulator.feed(chunk(add("/-", "c"))) == "c"
    assert len(accumulator.problems) == 1
    assert accumulator.finish() == (message(models.ContentPart("ac")),)
    accumulator.feed(chunk(add("/-", "d" * 5_000)))
    # This operation exceeds the budget: the failed operation has not changed the budget.
    accumulator.feed(chunk(add("/-", "e" * 5_000)))
    assert accumulator.finish() == (message(models.ContentPart("ac" + "d" * 5_000)),)


def test_too_deeply_nested_arguments_stay_text() -> None:
    for depth, stored in ((200, 1), (201, 0)):
        deep = "[" * depth + "]" * depth
        accumulator = after(chunk(add("/tool_calls", [tool_call(args=[deep])])))
        (call,) = accumulator.messages[0].tool_calls
        assert isinstance(call.args, str) is (not stored)
        assert str(call.args) == deep
        assert len(accumulator.finish()) == stored


def test_text_counts_as_values_when_other_operations_follow() -> None:
    built = MessageAccumulator(max_turn_bytes=3000)
    for text in "x" * 50:
        built.feed(chunk(add("/-", text)))
    built.feed(chunk(add("/0", {"a": 1})))
    (problem,) = built.problems
    assert "need more than 3,000 bytes" in problem.reason
    assert [each.text for each in built.messages] == ["x" * 50]


def test_message_of_an_agent_with_an_empty_name_is_stored() -> None:
    for fields, stored in (({"agent_name": ""}, True), ({"agent_name": None}, True)):
        first = attrs.evolve(chunk(add("/-", "a")), metadata=fields)
        assert bool(after(first).messages) is stored
    assert after(attrs.evolve(first, metadata={"agent_id": "a"})).messages == ()


def test_too_deeply_nested_document_is_rejected() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    accumulator = after(chunk(add("/-", "a")), chunk(add("/-", deep)), chunk(add("/a" * 99_999, 1)))
    assert ["200 levels" in problem.reason for problem in accumulator.problems] == [True, True]
    assert accumulator.finish() == (message(models.ContentPart("a")),)


# --- memory of long answers


@pytest.mark.parametrize("read_every", [None, 1, 1000])
def test_long_answer_needs_little_more_memory_than_its_text(read_every: int | None) -> None:
    accumulator, pieces = MessageAccumulator(), 20_000
    tracemalloc.start()
    try:
        for n in range(pieces):
            accumulator.feed(chunk(add("/-", f"{n:06d} ")))
            if read_every and n % read_every == 0:
                _ = accumulator.messages
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 7 * pieces * (1.7 if read_every is None else 4)


def test_other_operations_apply_to_a_long_text() -> None:
    accumulator = after(*(chunk(add("/-", f"{n} ")) for n in range(3000)))
    before = accumulator.messages
    accumulator.feed(chunk(replace("/1500", "X "), add("/-", "end")))
    expected = " ".join("X" if n == 1500 else str(n) for n in range(3000)) + " end"
    assert accumulator.messages == accumulator.finish() == (message(models.ContentPart(expected)),)
    assert before[0].text == " ".join(map(str, range(3000))) + " "
    accumulator.feed(chunk(add("/-", "!"), add("/3002", {"a": 1}), add("/-", "?")))
    assert "'!', {'a': 1}, '?']" in repr(accumulator.finish())


# --- cost


HEADER = chunk(add("/tool_calls/0", tool_call(args=[])))
TEXT = chunk(add("/-", "word "))


@pytest.mark.parametrize(
    ("start", "event", "reads_messages"),
    [
        pytest.param(TEXT, TEXT, True, id="text"),
        pytest.param(chunk(replace("", ["word "])), TEXT, True, id="text after a list"),
        pytest.param(TEXT, chunk(add("/-", {"a": 1})), False, id="items"),
        pytest.param(TEXT, chunk(add("/0", "word ")), False, id="inserted"),
        pytest.param(TEXT, chunk(replace("/0", "word ")), False, id="replaced"),
        pytest.param(TEXT, chunk(replace("/0/a", "word ")), False, id="failing"),
        pytest.param(TEXT, chunk(JSONPatchOperation("move", "/-", from_="/0")), False, id="moved"),
        pytest.param(HEADER, chunk(add("/tool_calls/0/args/-", "1")), False, id="arguments"),
        pytest.param(HEADER, chunk(add("/tool_calls/0/args/x/y", "1")), False, id="dropped"),
    ],
)
def test_cost_of_a_chunk_does_not_depend_on_the_message_length(
    start: ChunkEvent, event: ChunkEvent, reads_messages: bool
) -> None:
    def run(count: int) -> int:
        accumulator = after(start)

        def feed() -> None:
            for _ in range(count):
                accumulator.feed(event)
                if reads_messages:
                    _ = accumulator.messages

        return steps_taken(feed)

    assert run(400) < 2.1 * run(200)
