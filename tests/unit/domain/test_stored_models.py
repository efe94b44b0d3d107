"""Models: compared with the server's OpenAPI document, recorded events, and random values."""

from __future__ import annotations

import inspect
import json
import pickle
from collections.abc import Callable, Mapping
from copy import deepcopy
from datetime import datetime, timedelta, timezone
from itertools import compress, product
from math import nan
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import attrs
import pytest
from hypothesis import given, settings, strategies as st

from flux0 import from_dict, models, to_dict, to_json
from flux0.adapters.json import JsonCodec
from flux0.adapters.json.structuring import structure_hook
from flux0.client.resources import AgentsResource, SessionsResource
from flux0.domain.enums import OpenEnum
from flux0.domain.errors import DecodeError
from flux0.domain.extensible import Extensible
from flux0.domain.messages.finalizing import TurnMessage
from flux0.domain.messages.history import Reply
from flux0.domain.messages.json_patch import MAX_DEPTH
from flux0.domain.stored_models import (
    Agent,
    Agents,
    ContentPart,
    Event,
    Events,
    MessageData,
    Participant,
    ReasoningPart,
    Sessions,
    StatusData,
)
from flux0.domain.stream_events import ChunkEvent, JSONPatchOperation, StatusEvent
from flux0.models import EventSource, EventType, SessionStatus
from flux0.ports import ServerSentEvent

DATA = Path(__file__).parents[2] / "data"
SCHEMAS: dict[str, dict[str, Any]] = json.loads((DATA / "openapi.json").read_text("utf-8"))[
    "components"
]["schemas"]
TURNS: list[dict[str, Any]] = json.loads((DATA / "accumulator_cases.json").read_text("utf-8"))

# Schemas whose name in the document differs from the name in `flux0.models`.
RENAMED = {
    "HTTPValidationError": "HTTPValidationErrorData",
    "JsonPatchOperationDTO": "JSONPatchOperationDTO",
}
# Schemas without a model: the parameters of methods, and the fields of stream events.
ARGUMENTS: dict[str, Callable[..., Any]] = {
    "AgentCreationParamsDTO": AgentsResource.create,
    "SessionCreationParamsDTO": SessionsResource.create,
    "EventCreationParamsDTO": SessionsResource.create_event,
}
FRAMES: dict[str, Any] = {"ChunkEventStream": ChunkEvent, "EmittedEventStream": StatusEvent}


def model_of(schema: str) -> Any:
    return getattr(models, RENAMED.get(schema, schema))


@pytest.mark.parametrize(
    "schema", sorted(SCHEMAS.keys() - ARGUMENTS.keys() - FRAMES.keys() - {"SessionStream"})
)
def test_every_schema_has_a_model_with_all_properties(schema: str) -> None:
    model, schema_json = model_of(schema), SCHEMAS[schema]

    if "enum" in schema_json:
        assert issubclass(model, OpenEnum)
        assert [member.value for member in model] == schema_json["enum"]
        return
    fields = {field.name: field for field in attrs.fields(model)}
    for name, form in schema_json["properties"].items():
        if name == "type" and name not in fields:
            assert model.type == form.get("const", "status")
        else:
            assert name in fields
    required = {name for name, field in fields.items() if field.default is attrs.NOTHING}
    assert required <= set(schema_json.get("required", ())), (
        "the model requires more than the document"
    )


def test_every_property_of_a_request_schema_is_a_parameter() -> None:
    for schema, method in ARGUMENTS.items():
        parameters = {name.rstrip("_") for name in inspect.signature(method).parameters}

        assert SCHEMAS[schema]["properties"].keys() <= parameters


def test_every_stream_event_schema_has_a_model() -> None:
    for frame, model in FRAMES.items():
        properties = SCHEMAS[frame]["properties"]

        assert model.event == properties["event"]["const"]
        assert model_of(properties["data"]["$ref"].rpartition("/")[2]) is model


def test_other_names_of_the_generated_client_exist() -> None:
    for name in ("APIError", "EventDTOData", "HTTPValidationError", "Part", "SessionStream"):
        assert hasattr(models, name)


@pytest.mark.parametrize("turn", TURNS, ids=[turn["name"] for turn in TURNS])
def test_stored_events_are_unchanged_by_decoding_and_encoding(turn: dict[str, Any]) -> None:
    listed = {"data": turn["persisted"]}

    assert to_dict(from_dict(Events, listed)) == listed


def stored(**changes: Any) -> dict[str, Any]:
    event = {"id": "i", "correlation_id": "c", "type": "message", "source": "user", "offset": 0}
    parts = [{"type": "content", "content": "hi"}]
    rest = {"deleted": False, "created_at": "2026-11-24T22:38:57.617650Z"}
    return {**event, "data": {"type": "message", "parts": parts}, **rest, **changes}


def test_nested_values_are_models_and_unknown_fields_are_kept() -> None:
    data = {
        "type": "message",
        "parts": [{"type": "content", "content": "hi", "new": 1}],
        "participant": {"id": "p", "name": "n", "new": 1},
        "new": 1,
    }

    event = from_dict(Event, stored(new=1, data=data))
    assert isinstance(event.data, MessageData)
    for model in (event, event.data, event.data.parts[0], event.data.participant):
        assert isinstance(model, Extensible)
        assert model.extra == {"new": 1}

    assert event.type is EventType.MESSAGE
    assert event.source is EventSource.USER
    assert event.data == MessageData((ContentPart("hi"),), participant=Participant("p", "n"))
    assert event.created_at == datetime(2026, 11, 24, 22, 38, 57, 617650, timezone.utc)
    assert event.metadata is None


def extended(data: Any) -> Any:
    """Add an unknown member to each object that is a model."""
    if kind_of(data) == "list":
        return [extended(item) for item in data]
    if kind_of(data) != "dict":
        return data
    nested = {
        key: extended(value) if key not in {"metadata", "args", "content", "value"} else value
        for key, value in data.items()
    }
    return {**nested, "new": [{"deep": None}]}


@pytest.mark.parametrize("turn", TURNS, ids=[turn["name"] for turn in TURNS])
def test_unknown_members_at_each_level_are_unchanged_by_decoding_and_encoding(
    turn: dict[str, Any],
) -> None:
    """Tool events are excluded: a result may have a member `data`, which is not a model."""
    stored_events = [event for event in turn["persisted"] if event["type"] == "message"]
    listed = extended({"data": stored_events})

    events = from_dict(Events, listed)

    assert to_dict(events) == listed
    assert (
        from_dict(Events, to_dict(events)) == events == from_dict(Events, {"data": stored_events})
    )
    assert events.extra == {"new": [{"deep": None}]}


UNKNOWN: dict[str, Any] = {"extra": 1, "metadata": {"a": [1]}}
AGENT = {"id": "i", "name": "n", "type": "t", "created_at": "2026-11-24T22:38:57Z"}
CALL: dict[str, Any] = {"tool_call_id": "1", "tool_name": "n", "args": {}}
RESULT: dict[str, Any] = {"data": 1, "metadata": {}, "control": {"mode": "auto", "new": 1}}


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (models.Agent, {**AGENT, "description": None}),
        (models.Agent, AGENT),
        (
            models.Session,
            {
                **dict.fromkeys(("id", "agent_id", "user_id"), "x"),
                "created_at": "2026-11-24T22:38:57Z",
                "consumption_offsets": {"client": 1, "new": 2},
                "metadata": {"theme": "dark"},
                "mode": "record",
            },
        ),
        (models.StatusData, {"type": "status", "status": "ready"}),
        (models.StatusData, {"status": "ready", "data": 1}),
        (models.ToolCallPart, CALL),
        (
            models.ToolData,
            {"tool_calls": [{**CALL, "new": 1, "result": {**RESULT, "new": 1}}]},
        ),
        (models.JSONPatchOperation, {"op": "add", "path": "/-"}),
    ],
)
def test_unknown_members_are_readable_and_kept_by_copies(kind: Any, data: dict[str, Any]) -> None:
    model = from_dict(kind, {**UNKNOWN, **data})
    unknown = {key: value for key, value in UNKNOWN.items() if key not in data}

    assert model.extra == unknown
    assert from_dict(kind, data).extra == {}
    for copied in (
        attrs.evolve(model),
        pickle.loads(pickle.dumps(model)),  # noqa: S301 - pickled here
        deepcopy(model),
        from_dict(kind, to_dict(model)),
    ):
        assert copied.extra == unknown
        assert copied == model == from_dict(kind, data)
        assert to_dict(copied) == to_dict(model)
        assert unknown.items() <= to_dict(model).items()


REQUIRED_AND_OPTIONAL: dict[Any, tuple[dict[str, Any], dict[str, Any]]] = {
    models.Agent: (AGENT, {"description": None}),
    models.ContentPart: ({"content": "x"}, {"type": "content"}),
    models.MessageData: (
        {"parts": []},
        {"type": "message", "participant": {}, "flagged": True, "tags": []},
    ),
    models.StatusData: (
        {"status": "typing"},
        {"type": "status", "acknowledged_offset": 1, "data": 2},
    ),
    models.JSONPatchOperation: ({"op": "add", "path": "/-"}, {"value": 1, "from": "/a"}),
}


@pytest.mark.parametrize("kind", REQUIRED_AND_OPTIONAL)
def test_unknown_members_are_kept_whichever_optional_members_are_missing(kind: Any) -> None:
    required, optional = REQUIRED_AND_OPTIONAL[kind]
    new = {f"new_{number}": number for number in range(len(optional) + 1)}
    for present in product((True, False), repeat=len(optional)):
        known = {**required, **dict(compress(optional.items(), present))}
        for count in range(len(new) + 1):
            unknown = dict([*new.items()][:count])
            assert from_dict(kind, {**known, **unknown}).extra == unknown


def test_status_event_without_types_keeps_its_unknown_members() -> None:
    data = {"status": "typing", "new": 1}
    status = {"id": "", "source": "user", "correlation_id": "c", "data": data, "new": 2}

    event = JsonCodec().decode_event(ServerSentEvent("status", json.dumps(status)))

    assert isinstance(event, StatusEvent)
    assert (event.extra, event.data.extra) == ({"new": 2}, {"new": 1})


def test_only_the_json_of_status_events_has_the_type_of_the_event() -> None:
    status = StatusEvent("", "c", EventSource.AI_AGENT, StatusData(SessionStatus.TYPING))
    events: list[models.StreamEvent] = [
        ChunkEvent("c", "e", 0, (), {}),
        status,
        models.UnknownEvent("note", "text"),
    ]

    assert [event.type for event in events] == ["chunk", "status", "unknown"]
    assert [to_dict(event).get("type") for event in events] == [None, "status", None]
    assert from_dict(list[models.StreamEvent], to_dict(events)) == events
    assert from_dict(ChunkEvent, {**to_dict(events[0]), "type": "x"}).extra == {"type": "x"}


def test_extra_members_of_new_models_are_encoded() -> None:
    part = ContentPart("hi", extra={"mode": "draft"})

    assert part.extra == {"mode": "draft"}
    assert to_dict(part) == {"type": "content", "content": "hi", "mode": "draft"}
    assert to_dict(attrs.evolve(part, extra={"content": "x"})) == to_dict(ContentPart("hi"))
    assert repr(part) == "ContentPart(content='hi')"
    assert attrs.evolve(part, extra={}).extra == ContentPart("hi").extra == {}
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        part.extra = {}  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def test_unknown_members_that_are_nested_too_deeply_are_left_out() -> None:
    deep: Any = None
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]

    assert from_dict(Agent, {**AGENT, "deep": deep, "new": deep[0]}).extra == {"new": deep[0]}


def test_unknown_types_and_names_are_kept_as_plain_json() -> None:
    new_part = {"type": "hologram", "voxels": [1, 2]}
    new_data = {"type": "weather", "sun": True}

    with_part = from_dict(Event, stored(data={"type": "message", "parts": [new_part]}))
    with_data = from_dict(Event, stored(data=new_data, type="weather", source="satellite"))
    status = from_dict(StatusData, {"type": "status", "status": "dreaming"})

    assert isinstance(with_part.data, MessageData)
    assert with_part.data.parts == (new_part,)
    assert with_data.data == new_data
    assert (with_data.type, with_data.source) == ("weather", "satellite")
    assert status.status == "dreaming"
    assert to_dict(with_data)["data"] == new_data


@pytest.mark.parametrize("untyped", [{}, {"type": None}, {"type": ["message"]}, {"type": 1}])
def test_data_and_parts_without_a_valid_type_are_kept_as_plain_json(untyped: Any) -> None:
    assert from_dict(Event, stored(data=untyped)).data == untyped
    assert from_dict(MessageData, {"parts": [untyped]}).parts == (untyped,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-24T22:38:57Z", (22, 38, 57, 0)),
        ("2026-11-24T22:38:57z", (22, 38, 57, 0)),
        ("2026-11-24T22:38:57+00:00", (22, 38, 57, 0)),
        ("2026-11-25T00:38:57+02:00", (22, 38, 57, 0)),
        ("2026-11-24T13:38:57.25-09:00", (22, 38, 57, 250000)),
        ("2026-11-24T22:38:57", (22, 38, 57, 0)),
        ("2026-11-24 22:38:57.6", (22, 38, 57, 600000)),
        ("2026-11-24T22:38Z", (22, 38, 0, 0)),
        ("2026-11-24T22:38:57.123456789Z", (22, 38, 57, 123456)),
        ("2026-11-24", (0, 0, 0, 0)),
    ],
)
def test_decoded_times_are_aware_and_utc_by_default(
    text: str, expected: tuple[int, int, int, int]
) -> None:
    moment = from_dict(Event, stored(created_at=text)).created_at

    assert moment.utcoffset() is not None
    assert moment == datetime(2026, 11, 24, *expected, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    "text",
    [
        *("", "Z", "now", "2026-13-01T00:00:00Z", "2026-11-24T25:00:00Z"),
        *("0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "2026-11-24T22:38:57+99:00", "\ud800"),
    ],
)
def test_invalid_time_is_a_decode_error(text: str) -> None:
    with pytest.raises(DecodeError, match="date and time") as caught:
        from_dict(Event, stored(created_at=text))

    assert caught.value.field == "created_at"


def some_agents(*names: str) -> Agents:
    moment = datetime(2026, 1, 1, tzinfo=timezone.utc)
    return Agents(tuple(Agent(id=name, name=name, type="t", created_at=moment) for name in names))


def test_listing_is_a_sequence() -> None:
    agents = some_agents("a", "b", "c")
    first, second, third = agents

    assert len(agents) == 3
    assert (agents[0], agents[-1]) == (first, third)
    assert agents[1:] == (second, third) == agents.data[1:]
    assert second in agents
    assert some_agents("d")[0] not in agents
    assert list(reversed(agents)) == [third, second, first]
    assert (agents.index(third), agents.count(first)) == (2, 1)
    with pytest.raises(IndexError):
        agents[3]
    assert agents
    assert not some_agents()
    assert agents == some_agents("a", "b", "c") != some_agents("a", "b", "d")
    empty: list[object] = [Agents(()), Sessions(()), ()]
    assert [one == Agents(()) for one in empty] == [True, False, False]


def test_models_are_frozen() -> None:
    for model, name in ((some_agents("a"), "data"), (ContentPart("hi"), "content")):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(model, name, None)


def test_enum_members_print_and_format_as_their_value() -> None:
    assert str(EventType.TOOL) == f"{EventType.TOOL}" == f"{'tool'}"
    assert json.dumps([SessionStatus.READY, EventSource.AI_AGENT]) == '["ready", "ai_agent"]'
    assert f"{EventType.TOOL:>6}" == "  tool"


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
TEXT = st.text(max_size=5)
ZONES = st.integers(-24 * 60 + 1, 24 * 60 - 1).map(lambda m: timezone(timedelta(minutes=m)))


def is_new(data: dict[str, Any]) -> bool:
    known = {"content", "reasoning", "tool_call", "message", "status", "tool_call_result"}
    name = data.get("type")
    return not isinstance(name, str) or name not in known


# Strategies for the values of each type.
FIELDS: dict[Any, st.SearchStrategy[Any]] = {
    Any: JSON,
    str: TEXT,
    int: st.integers(0, 2**53),
    bool: st.booleans(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    type(None): st.none(),
    datetime: st.datetimes(timezones=ZONES | st.just(timezone.utc)),
    Mapping[str, Any]: st.dictionaries(TEXT, JSON, max_size=3).filter(is_new),
    JSONPatchOperation: (
        st.builds(JSONPatchOperation, st.sampled_from(["add", "test", "new"]), TEXT, JSON)
        | st.builds(JSONPatchOperation, st.just("remove"), TEXT)
        | st.builds(JSONPatchOperation, st.just("copy"), TEXT, st.none(), from_=st.none() | TEXT)
    ),
}


def random_values(kind: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for the values of a type, including models."""
    if kind not in FIELDS:
        if attrs.has(kind):
            types = get_type_hints(kind)
            fields = {field.name: random_values(types[field.name]) for field in attrs.fields(kind)}
            FIELDS[kind] = st.builds(kind, **fields)
        elif isinstance(kind, type) and issubclass(kind, OpenEnum):
            FIELDS[kind] = st.sampled_from(list(kind))
        elif get_origin(kind) is tuple:
            FIELDS[kind] = several(random_values(get_args(kind)[0]))
        else:
            FIELDS[kind] = st.one_of([random_values(option) for option in get_args(kind)])
    return FIELDS[kind]


def several(items: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(items, max_size=3).map(tuple)


# The models by class name. `vars(models)` also contains aliases, which have the same class name.
MODELS: dict[str, Any] = {
    model.__name__: model
    for model in vars(models).values()
    if attrs.has(model) and model is not Reply
}


def test_to_json_returns_ascii_without_spaces() -> None:
    assert to_json(ContentPart(["é", nan])) == '{"type":"content","content":["\\u00e9",null]}'


def test_text_of_a_message_has_only_the_parts_that_are_text() -> None:
    parts: list[models.MessagePart] = [{"type": "newer"}]
    for content in ("a", {"not": "text"}, "b"):
        parts += [ContentPart(content), ReasoningPart(content)]
    message = MessageData(tuple(parts))
    assert (message.text, message.reasoning) == ("ab", "ab")


def kinds_in(value: Any) -> set[type]:
    """Return the exact types of all values in plain JSON."""
    if kind_of(value) == "dict":
        return {dict}.union(*map(kinds_in, [*value, *value.values()]))
    if kind_of(value) == "list":
        return {list}.union(*map(kinds_in, value))
    return {type(value)}


def kind_of(value: object) -> str:
    return type(value).__name__


@settings(deadline=None, max_examples=10)
@pytest.mark.parametrize("kind", MODELS.values(), ids=MODELS)
@given(data=st.data())
def test_every_model_is_unchanged_by_encoding_and_decoding(kind: Any, data: st.DataObject) -> None:
    model = data.draw(random_values(kind))
    encoded = to_dict(model)

    again: Any = from_dict(kind, json.loads(json.dumps(encoded)))

    assert kinds_in(encoded) <= {dict, list, str, int, float, bool, type(None)}
    assert again == from_dict(kind, encoded) == model
    assert json.dumps(to_dict(again)) == json.dumps(encoded)
    assert structure_hook(kind)(encoded, kind) == model, "the fast converter reads it, too"
    assert from_dict(list[kind], [encoded]) == [model]
    assert from_dict(tuple[kind, ...], [encoded]) == (model,)
    for union in (models.StreamEvent, models.EventData):
        if kind in get_args(union):
            assert from_dict(union, encoded) == model
    if isinstance(name := getattr(kind, "event", None), str):
        assert JsonCodec().decode_event(ServerSentEvent(name, json.dumps(encoded))) == model


@pytest.mark.parametrize(
    ("model", "data", "field", "problem"),
    [
        (models.StreamEvent, {"event": "newer"}, "data", "is missing"),
        (models.StreamEvent, {"type": "status"}, "id", "is missing"),
        (models.StreamEvent, [], "", "expected a dict, got list"),
        (list[models.StreamEvent], [{"patches": 1}], "[0].correlation_id", "is missing"),
        (list[models.Agent], [{"id": 1}], "[0].id", "expected a str, got int"),
        (list[models.Agent], {}, "", "expected a list, got dict"),
        (list[models.Agent], None, "", "expected a list, got None"),
        (tuple[models.Agent, ...], "", "", "expected a list, got str"),
        (TurnMessage, {"type": "newer"}, "type", "expected one of 'message', 'tool'"),
        (TurnMessage, {"data": {"type": "newer"}}, "data", "must have the type 'message' or 'tool"),
        (TurnMessage, {"data": {}}, "data", "must have the type 'message' or 'tool"),
    ],
)
def test_decode_error_of_a_union_names_the_field(
    model: Any, data: Any, field: str, problem: str
) -> None:
    if model is TurnMessage:
        whole = to_dict(TurnMessage("e", "t", EventType.MESSAGE, MessageData(())))
        data = {**whole, **data}

    with pytest.raises(DecodeError, match=problem) as caught:
        from_dict(model, data)

    assert caught.value.field == field
