"""The codec: invalid JSON, JSON that does not fit the model, and deeply nested JSON."""

from __future__ import annotations

import copy
import json
import math
import pickle
import re
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from types import MappingProxyType
from typing import Any

import attrs
import pytest

from flux0 import RetryConfig, from_dict, to_dict, to_json
from flux0.adapters.json import JsonCodec, codec
from flux0.domain.errors import AgentError, DecodeError, Flux0Error, InvalidArgument
from flux0.domain.extensible import Extensible
from flux0.domain.messages.accumulator import MessageAccumulator
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.messages.json_patch import MAX_DEPTH
from flux0.domain.stored_models import (
    Agent,
    Agents,
    ContentPart,
    ControlOptions,
    Event,
    Events,
    Listing,
    StatusData,
)
from flux0.domain.stream_events import ChunkEvent, StatusEvent, UnknownEvent
from flux0.models import EventSource, HTTPValidationErrorData, SessionStatus, ValidationError
from flux0.ports import ServerSentEvent
from support.time_zone import local_time_zone

CODEC = JsonCodec()


def agent(**changes: Any) -> dict[str, Any]:
    return {"id": "i", "name": "n", "type": "t", "created_at": "2026-11-24T22:38:57Z", **changes}


def without(data: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name != key}


def chunk(**changes: Any) -> dict[str, Any]:
    return {
        "correlation_id": "RID(1)::2",
        "event_id": "r9Sslo7BYr",
        "seq": 0,
        "patches": [{"op": "add", "path": "/-", "value": "Hi"}],
        "metadata": {"agent_id": "a", "agent_name": "Drizzle"},
        "timestamp": 1795559230.7,
        **changes,
    }


def status(**changes: Any) -> dict[str, Any]:
    data = {"type": "status", "status": "processing", "data": {"detail": "x"}}
    sent = {"id": "", "source": "ai_agent", "type": "status", "correlation_id": "RID(1)::2"}
    return {**sent, "data": data, "metadata": None, **changes}


def streamed(name: str, data: object) -> Any:
    return CODEC.decode_event(ServerSentEvent(name, json.dumps(data)))


def event(**changes: Any) -> dict[str, Any]:
    sent = {"id": "i", "correlation_id": "c", "type": "message", "source": "user", "offset": 0}
    rest = {"data": MESSAGE, "deleted": False, "created_at": "2026-11-24T22:38:57Z"}
    return {**sent, **rest, **changes}


# --- bodies

MESSAGE: dict[str, Any] = {"type": "message", "parts": []}
TURN_MESSAGE = {"event_id": "m", "correlation_id": "c", "type": "message", "data": MESSAGE}
CALL: dict[str, Any] = {"tool_call_id": "1", "tool_name": "n", "args": {}}


def results(*calls: dict[str, Any]) -> dict[str, Any]:
    return event(data={"type": "tool_call_result", "tool_calls": [*calls]})


@pytest.mark.parametrize(
    ("model", "data", "field", "problem"),
    [
        (Agents, [], "", "expected a dict, got list"),
        (Agents, None, "", "expected a dict, got None in"),
        (Agents, {}, "data", "is missing"),
        (Agents, {"data": None}, "data", "expected a list, got None"),
        (Agents, {"data": [agent(), 1]}, "data[1]", "expected a dict, got int"),
        (Agents, {"data": [agent(), without(agent(id=1), "name")]}, "data[1].id", "a str, got int"),
        (Agent, agent(name=None), "name", "expected a str, got None"),
        (Agent, agent(description=[]), "description", "expected a str, got list"),
        (Agent, agent(created_at=1.5), "created_at", "expected a date and time, got float"),
        (Agent, agent(created_at="x"), "created_at", "expected a date and time, got 'x'"),
        (Agent, without(agent(), "type"), "type", "is missing"),
        (Event, event(offset=True), "offset", "an int, got bool"),
        (Event, event(deleted=0), "deleted", "a bool, got int"),
        (Event, event(type=1), "type", "a str, got int"),
        (Event, event(source=None), "source", "a str, got None"),
        (Event, event(metadata=[]), "metadata", "a dict, got list"),
        (Event, event(data="text"), "data", "a dict, got str"),
        (Event, event(data={**MESSAGE, "parts": "text"}), "data.parts", "a list, got str"),
        (Event, event(data={**MESSAGE, "parts": ["text"]}), "data.parts[0]", "a dict, got str"),
        (
            Event,
            event(data={**MESSAGE, "parts": [{"type": "content"}]}),
            "data.parts[0].content",
            "is missing",
        ),
        (Event, event(data={**MESSAGE, "tags": ["a", 1]}), "data.tags[1]", "a str, got int"),
        (Event, event(data={**MESSAGE, "tags": {"a": 1}}), "data.tags", "a list, got dict"),
        (Event, event(data={**MESSAGE, "flagged": "no"}), "data.flagged", "a bool, got str"),
        (Event, event(data={**MESSAGE, "participant": "me"}), "data.participant", "got str"),
        (Event, event(data={"type": "status"}), "data.status", "is missing"),
        (Event, event(data={"type": "status", "status": ["x"]}), "data.status", "got list"),
        (Event, results(without(CALL, "args")), "data.tool_calls[0].args", "is missing"),
        (Event, results(CALL, {**CALL, "args": 1}), "data.tool_calls[1].args", "got int"),
        (
            TurnMessage,
            {**TURN_MESSAGE, "type": "new"},
            "type",
            "one of 'message', 'tool', 'status'",
        ),
        (
            TurnMessage,
            {**TURN_MESSAGE, "data": {"type": "status", "status": "ok"}},
            "data",
            "must have the type 'message' or 'tool_call_result'",
        ),
        (
            HTTPValidationErrorData,
            {"detail": [{"loc": ["body", True], "msg": "m", "type": "t"}]},
            "detail[0].loc[1]",
            "expected a str or an int, got bool",
        ),
    ],
)
def test_error_for_a_body_that_does_not_fit_names_the_field(
    model: Any, data: Any, field: str, problem: str
) -> None:
    body = json.dumps(data)

    with pytest.raises(DecodeError, match=re.escape(problem)) as caught:
        CODEC.decode(model, body.encode())

    assert caught.value.field == field
    assert str(caught.value).startswith(field)
    assert caught.value.body == body[:200]


def test_long_value_is_shortened_in_the_error() -> None:
    with pytest.raises(DecodeError) as caught:
        CODEC.from_dict(Agent, agent(created_at="9" * 10_000))

    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b" ", b"<html>", b"{", b'{"a": 1} {}', b"undefined", b'"\xff"', b"9" * 5000),
        *(b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000),
    ],
)
def test_invalid_json_raises_decode_error_with_the_start_of_the_body(body: bytes) -> None:
    for model in (Agents, object):
        with pytest.raises(DecodeError, match="not JSON") as caught:
            CODEC.decode(model, body)

        assert caught.value.body == body[:200].decode("utf-8", "replace")
        assert caught.value.field == ""
        assert caught.value.__cause__ is not None


def test_decoding_object_returns_plain_json() -> None:
    assert CODEC.decode(object, b'[1, {"a": null}]') == [1, {"a": None}]
    assert math.isnan(CODEC.decode(float, b"NaN"))


def test_nan_and_infinity_are_decoded_but_not_written() -> None:
    part = CODEC.decode(ContentPart, b'{"type": "content", "content": [NaN, -Infinity, 1e999]}')

    assert math.isnan(part.content[0])
    assert part.content[1:] == [-math.inf, math.inf]
    assert to_dict(part)["content"][1:] == [-math.inf, math.inf]
    assert to_json(part) == '{"type":"content","content":[null,null,null]}'


def test_encoded_json_is_ascii_and_cannot_contain_nan() -> None:
    assert CODEC.encode({"a": ["é", EventSource.USER]}) == b'{"a":["\\u00e9","user"]}'
    assert CODEC.encode(["😀", "\\ud800"]) == rb'["\ud83d\ude00","\\ud800"]'
    problem = "^extra_body cannot be represented in JSON: Out of range float values"
    with pytest.raises(InvalidArgument, match=problem) as caught:
        CODEC.encode({"part": ContentPart([1, math.nan])}, "extra_body")
    assert caught.value.argument == "extra_body"


# --- checks of classes


@attrs.frozen
class Range(Extensible):
    from_: int
    to: int = attrs.field(default=9, validator=attrs.validators.ge(0))

    def __attrs_post_init__(self) -> None:
        if self.from_ > self.to:
            raise ValueError("from must not be after to")


@attrs.frozen
class Ranges:
    ranges: tuple[Range, ...]
    sizes: list[int] = attrs.field(
        default=attrs.Factory(lambda self: [r.to - r.from_ for r in self.ranges], takes_self=True),
        init=False,
    )


def upper(name: str) -> str:
    return name.upper()


@attrs.frozen
class Upper:
    name: str = attrs.field(converter=upper)


def test_checks_converters_and_computed_fields_of_a_class_are_used() -> None:
    read = CODEC.decode(Ranges, b'{"ranges": [{"from": 1, "to": 3, "new": 4}, {"from": 2}]}')

    assert read == Ranges((Range(1, 3), Range(2)))
    assert read.sizes == [2, 7]
    assert [each.extra for each in read.ranges] == [{"new": 4}, {}]
    assert CODEC.decode(Upper, b'{"name": "a"}') == Upper("A")


@pytest.mark.parametrize(
    ("data", "field", "problem"),
    [
        ({"from": 3, "to": 2}, "ranges[0]", "from must not be after to"),
        ({"from": -2, "to": -1}, "ranges[0]", "must be >= 0"),
        ({"to": 2}, "ranges[0].from", "is missing"),
        ({"from": "1"}, "ranges[0].from", "expected an int, got str"),
    ],
)
def test_failed_check_of_a_class_is_a_decode_error(data: Any, field: str, problem: str) -> None:
    with pytest.raises(DecodeError, match=problem) as caught:
        CODEC.decode(Ranges, json.dumps({"ranges": [data]}).encode())

    assert caught.value.field == field


@attrs.frozen
class Visit(Extensible):
    at: datetime | None = None


@pytest.mark.parametrize(
    ("data", "at"),
    [
        ({}, None),
        ({"at": None}, None),
        ({"at": "2026-11-24T22:38:57Z"}, datetime(2026, 11, 24, 22, 38, 57, tzinfo=timezone.utc)),
        ({"at": "2026-11-24T22:38:57"}, datetime(2026, 11, 24, 22, 38, 57, tzinfo=timezone.utc)),
    ],
)
def test_optional_time_may_be_missing_or_null(data: dict[str, Any], at: datetime | None) -> None:
    read = CODEC.decode(Visit, json.dumps({**data, "new": 1}).encode())

    assert (read.at, read.extra) == (at, {"new": 1})


def test_times_without_a_zone_are_in_utc_whatever_the_zone_of_the_machine_is() -> None:
    noon = "2026-11-24T12:00:00"
    with local_time_zone("EST5"):
        optional = CODEC.decode(Visit, json.dumps({"at": noon}).encode()).at
        required = from_dict(Agent, {**agent(), "created_at": noon}).created_at

    assert optional == required == datetime(2026, 11, 24, 12, tzinfo=timezone.utc)


def test_details_of_a_422_keep_all_fields_of_the_model() -> None:
    known = {"type": "short", "loc": ["body", 0, "title"], "msg": "too short", "input": "x"}
    detail = {**known, "ctx": {"min_length": 3}, "url": "https://errors.pydantic.dev"}

    read = CODEC.decode(HTTPValidationErrorData, json.dumps({"detail": [detail]}).encode())

    assert read.detail == (
        ValidationError(("body", 0, "title"), "too short", "short", "x", {"min_length": 3}),
    )


# --- from_dict and to_dict


def test_from_dict_returns_lists_and_tuples_of_models() -> None:
    one = from_dict(Agent, agent())

    assert from_dict(list[Agent], [agent(), agent()]) == [one, one]
    assert from_dict(tuple[Agent, ...], [agent()]) == (one,)


@pytest.mark.parametrize(
    "model", [42, "Agent", dict, [Agent], {}, ControlOptions("auto"), Listing, RetryConfig]
)
def test_from_dict_rejects_types_that_are_not_models(model: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"flux0\.models") as caught:
        from_dict(model, {"data": [1]})

    assert caught.value.argument == "model"


@attrs.frozen
class ForeignModel:
    value: complex


@pytest.mark.parametrize(
    "model", [list[int], tuple[Agent, Agent], tuple[Agent], list[ForeignModel]]
)
def test_from_dict_rejects_tuples_of_fixed_length_and_items_that_are_not_models(model: Any) -> None:
    with pytest.raises(InvalidArgument, match="must be a class in"):
        from_dict(model, [])
    with pytest.raises(Flux0Error, match="ForeignModel"):
        from_dict(ForeignModel, {"value": 1})


@pytest.mark.parametrize(
    ("offset", "text"),
    [
        (timedelta(0), "2026-11-24T22:38:57Z"),
        (timedelta(hours=2), "2026-11-24T22:38:57+02:00"),
        (timedelta(seconds=30), "2026-11-24T22:38:57+00:00:30"),
    ],
)
def test_times_are_encoded_in_the_form_of_the_server(offset: timedelta, text: str) -> None:
    moment = datetime(2026, 11, 24, 22, 38, 57, tzinfo=timezone(offset))

    encoded = to_dict(Agent(id="i", name="n", type="t", created_at=moment))

    assert encoded["created_at"] == text
    assert from_dict(Agent, encoded).created_at == moment


class Shouting(str):
    __slots__ = ()

    def __str__(self) -> str:
        return self.upper()


class Celsius(float): ...


class Offset(int): ...


def test_subclasses_of_plain_types_are_encoded_as_plain_types() -> None:
    values = Shouting("text"), Celsius(1.5), Offset(7)
    encoded = to_dict(ContentPart(MappingProxyType({Shouting("key"): values})))

    assert encoded == {"type": "content", "content": {"key": ["text", 1.5, 7]}}
    (key,), items = encoded["content"], encoded["content"]["key"]
    assert [type(item) for item in (key, *items)] == [str, str, float, int]


@pytest.mark.parametrize("odd", [{1, 2}, b"bytes", object(), {1: "one"}, [{None: 1}]])
def test_values_without_a_json_form_are_rejected(odd: object) -> None:
    for write in (to_dict, JsonCodec().encode):
        with pytest.raises(InvalidArgument, match=r"JSON|keys must be strings"):
            write(odd)


def test_unknown_members_of_a_model_without_its_type_are_kept() -> None:
    for kind, data in ((ContentPart, {"content": "a"}), (StatusData, {"status": "ok"})):
        assert from_dict(kind, {**data, "new": 1}).extra == {"new": 1}
        assert from_dict(kind, {**data, "new": 1, "type": kind.type}).extra == {"new": 1}
        assert from_dict(kind, data).extra == {}


def test_error_of_an_encoded_value_names_its_argument() -> None:
    for value in ("\ud800", math.nan, object()):
        with pytest.raises(InvalidArgument) as caught:
            JsonCodec().encode({"a": value}, "metadata")
        assert caught.value.argument == "metadata"


def test_to_dict_rejects_a_value_that_is_nested_too_deeply() -> None:
    content: list[Any] = []
    for _ in range(100_000):
        content = [content]

    with pytest.raises(InvalidArgument, match="nested too deeply"):
        to_dict(ContentPart(content))

    while content:  # Deallocate the list level by level, because Python would do it recursively.
        content = content.pop()


def at_recursion_limit(function: Callable[[], object]) -> None:
    """Call `function` with more and more free stack, until it raises no RecursionError."""
    depth = sys.getrecursionlimit()
    raised = 0

    def call(levels: int) -> None:
        if levels:
            call(levels - 1)
        else:
            function()

    while True:
        try:
            call(depth)
        except RecursionError:
            depth -= 1
            raised += 1
        else:
            assert raised
            return


def test_shallow_value_is_not_called_deep_at_the_recursion_limit() -> None:
    at_recursion_limit(lambda: CODEC.encode({"content": [{"text": "Hello"}]}, "extra_body"))
    part = ContentPart({"text": "Hello"})
    at_recursion_limit(lambda: CODEC.encode({"data": (part,)}, "extra_body"))


def test_shared_containers_are_not_counted_twice_for_the_depth() -> None:
    value: Any = []
    for _ in range(5_000):
        value = [value, value]
    with pytest.raises(InvalidArgument, match=r"^extra_body is nested too deeply$"):
        CODEC.encode(value, "extra_body")


# --- events of a stream


def test_status_event_is_decoded() -> None:
    read = streamed("status", status())

    data = StatusData(SessionStatus.PROCESSING, data={"detail": "x"})
    assert read == StatusEvent("", "RID(1)::2", EventSource.AI_AGENT, data)
    assert read.status is SessionStatus.PROCESSING
    text = CODEC.decode_event(ServerSentEvent("status", f" {json.dumps(status())}\n\n"))
    assert text == read, "white space around JSON is ignored"


@pytest.mark.parametrize(("name", "data"), [("message", ""), ("weather", "no JSON"), ("", "{}")])
def test_event_with_an_unknown_name_keeps_its_data_as_text(name: str, data: str) -> None:
    read = CODEC.decode_event(ServerSentEvent(name, data, "7"))

    assert read == UnknownEvent(event=name, data=data, id="7")


@pytest.mark.parametrize(("name", "data"), [("chunk", chunk()), ("status", status())])
def test_text_after_the_json_of_an_event_raises_decode_error(name: str, data: Any) -> None:
    with pytest.raises(DecodeError, match="not JSON"):
        CODEC.decode_event(ServerSentEvent(name, f"{json.dumps(data)} x"))


@pytest.mark.parametrize("name", ["chunk", "status"])
@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "no JSON", '{"a": 1', "{} {}", "\ufeff{}", f"{'1' * 300} x"),
        *("[" * 100_000, f" {'[' * 100_000}", "9" * 5000, f" {'9' * 5000}"),
    ],
)
def test_event_with_invalid_json_raises_decode_error(name: str, text: str) -> None:
    with pytest.raises(DecodeError, match="not JSON") as caught:
        CODEC.decode_event(ServerSentEvent(name, text))

    assert caught.value.body == text[:200]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"correlation_id": None}, "correlation_id"),
        ({"event_id": 1}, "event_id"),
        ({"seq": "0"}, "seq"),
        ({"seq": False}, "seq"),
        ({"patches": ""}, "patches"),
        ({"patches": [["op", "path"]]}, "patches[0]"),
        ({"patches": [{"op": "add", "path": 1, "value": 1}]}, "patches[0].path"),
        ({"patches": [{"op": 1, "path": "", "value": 1}]}, "patches[0].op"),
        ({"patches": [{"path": "", "value": 1}]}, "patches[0].op"),
        ({"patches": [{"op": "move", "path": "", "from": 1}]}, "patches[0].from"),
        ({"metadata": []}, "metadata"),
        ({"timestamp": True}, "timestamp"),
    ],
)
def test_error_for_a_chunk_that_does_not_fit_names_the_field(changes: Any, field: str) -> None:
    sent = chunk(**changes)

    with pytest.raises(DecodeError) as caught:
        streamed("chunk", sent)

    assert caught.value.field == field
    assert caught.value.body == json.dumps(sent)[:200]


@pytest.mark.parametrize("key", ["correlation_id", "event_id", "seq", "patches", "metadata"])
def test_error_for_a_chunk_without_a_required_key_names_the_key(key: str) -> None:
    with pytest.raises(DecodeError, match=f"^{key}: is missing"):
        streamed("chunk", without(chunk(), key))
    with pytest.raises(DecodeError, match="expected a dict"):
        streamed("chunk", [])


def test_timestamp_of_a_chunk_is_optional() -> None:
    assert streamed("chunk", without(chunk(), "timestamp")).timestamp is None
    assert streamed("chunk", chunk(timestamp=None)).timestamp is None
    assert streamed("chunk", chunk(timestamp=12)).timestamp == 12


# --- depth


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 500, 900])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a": 1, "b": ', "}")])
@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("chunk", {"patches": [{"op": "add", "path": "", "value": "deep"}]}),
        ("chunk", {"metadata": {"deep": "deep"}}),
        ("status", {"metadata": {"deep": "deep"}}),
        ("status", {"data": {"type": "status", "status": "x", "data": "deep"}}),
    ],
)
def test_event_that_is_nested_too_deeply_raises_decode_error(
    name: str, changed: dict[str, Any], opening: str, closing: str, levels: int
) -> None:
    sent = json.dumps(chunk(**changed) if name == "chunk" else status(**changed))
    deep = sent.replace(': "deep"', f": {opening * levels}1{closing * levels}")

    with pytest.raises(DecodeError, match=f"more than {MAX_DEPTH} levels deep|not JSON"):
        CODEC.decode_event(ServerSentEvent(name, deep))


def test_depth_is_limited_in_events_and_parts_of_unknown_types() -> None:
    newer = {"type": "newer", "deep": nested(300)}
    for data in (newer, {**MESSAGE, "parts": [newer]}):
        with pytest.raises(DecodeError, match=f"more than {MAX_DEPTH} levels deep"):
            CODEC.from_dict(Events, {"data": [event(data=data)]})


def test_json_of_the_greatest_allowed_depth_can_be_copied_pickled_and_shown() -> None:
    deep = nested(MAX_DEPTH - 1)
    read = streamed("chunk", chunk(patches=[{"op": "add", "path": "/-", "value": deep}]))
    accumulator = MessageAccumulator()
    accumulator.feed(read)
    (message,) = accumulator.messages

    for value in (read, message, AgentError(nested(MAX_DEPTH))):
        assert repr(value)
        again = pickle.loads(pickle.dumps(value))  # noqa: S301 - pickled in this line
        assert repr(again) == repr(copy.deepcopy(value)) == repr(value)
    assert copy.deepcopy(message) == message
    assert from_dict(ChunkEvent, to_dict(read)) == read
    assert from_dict(type(message), to_dict(message)) == message


def test_recursion_error_of_a_shallow_value_is_raised_unchanged() -> None:
    """The caller's own stack is close to the recursion limit."""

    def fail(_: object) -> None:
        raise RecursionError

    with pytest.raises(RecursionError):
        vars(codec)["_convert"](fail, {"a": [1]}, "extra_body")
