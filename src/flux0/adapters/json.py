"""The codec: the server's JSON to models and back, on cattrs.

Structuring is strict: no value is coerced to the type of its field. Chunks, of which a turn has
thousands, take a short path of their own; whatever does not fit it goes through cattrs, which
tells what is wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any, TypeVar, cast, get_args, get_origin

import attrs
from cattrs import (
    BaseValidationError,
    Converter,
    IterableValidationError,
    IterableValidationNote,
    StructureHandlerNotFoundError,
)
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from flux0.domain.construction import mutable_twin
from flux0.domain.enums import EventSource, EventType, OpenEnum, SessionStatus
from flux0.domain.errors import DecodeError, InvalidArgument
from flux0.domain.models import (
    ContentPart,
    EventData,
    MessageData,
    MessagePart,
    ReasoningPart,
    StatusData,
    ToolCallPart,
    ToolData,
)
from flux0.domain.stream_events import (
    ChunkEvent,
    JSONPatchOperation,
    StatusEvent,
    StreamEvent,
    UnknownEvent,
)
from flux0.ports import ServerSentEvent

T = TypeVar("T")

_PARTS = {part.type: part for part in (ContentPart, ReasoningPart, ToolCallPart)}
_EVENT_DATA = {data.type: data for data in (MessageData, StatusData, ToolData)}
_EXCERPT = 200

# The stubs do not know this attribute, which json.JSONDecoder itself is built on.
_scan: Callable[[str, int], tuple[Any, int]] = cast("Any", json.JSONDecoder()).scan_once


class JsonCodec:
    """The `Codec` of the flux0 server."""

    def __init__(self) -> None:
        self._converter = _make_converter()

    def decode(self, model: type[T], body: bytes) -> T:
        """Return the model that `body` holds as JSON; `object` gives plain JSON."""
        try:
            data = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise _not_json(error, _excerpt(body)) from error
        if model is object:
            return cast("T", data)
        return self._structure(model, data, _excerpt(body))

    def decode_event(self, event: ServerSentEvent) -> StreamEvent:
        """Return what one event of a turn's stream says; an unknown name keeps its data as text."""
        if event.event == "chunk":
            data = _load(event.data)
            return _chunk(data) or self._structure(ChunkEvent, data, event.data[:_EXCERPT])
        if event.event == "status":
            return self._structure(StatusEvent, _load(event.data), event.data[:_EXCERPT])
        return UnknownEvent(event.event, event.data, event.id)

    def encode(self, value: Any) -> bytes:
        """Return a model or plain JSON as the server reads it, in ASCII."""
        return json.dumps(self.to_dict(value), separators=(",", ":")).encode("ascii")

    def from_dict(self, model: type[T], data: Any) -> T:
        """Return the model that plain JSON stands for.

        Raises:
            InvalidArgument: `model` is not a model.
        """
        if not isinstance(model, type) or not attrs.has(model):  # pyright: ignore[reportUnnecessaryIsInstance] - users pass what they like
            raise InvalidArgument("model", f"must be a class of flux0.models, and is {model!r}")
        try:
            return cast("T", self._structure(cast("type[Any]", model), data, ""))
        except StructureHandlerNotFoundError as error:
            problem = f"must be a class of flux0.models, and is {model!r} ({error})"
            raise InvalidArgument("model", problem) from error

    def to_dict(self, value: Any) -> Any:
        """Return the plain JSON that the server uses for `value`.

        Raises:
            InvalidArgument: it is nested too deeply for Python's recursion limit.
        """
        try:
            return self._converter.unstructure(value)
        except RecursionError as error:
            raise InvalidArgument("value", "is nested too deeply") from error

    def _structure(self, model: type[T], data: Any, body: str) -> T:
        try:
            return self._converter.structure(data, model)
        except (BaseValidationError, _WrongType) as error:
            place, problem = _first_problem(error)
            raise DecodeError(problem, field=place, body=body) from error


_MutableChunk = mutable_twin(ChunkEvent)
_MutableOperation = mutable_twin(JSONPatchOperation)


def _load(text: str) -> Any:
    # The scanner alone, without json.loads' checks for what an event's data almost never is.
    try:
        data, end = _scan(text, 0)
        return data if end == len(text) else json.loads(text)
    except StopIteration:
        pass  # Leading white space, or not JSON.
    except (ValueError, RecursionError) as error:
        raise _not_json(error, text[:_EXCERPT]) from error
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _not_json(error, text[:_EXCERPT]) from error


def _chunk(data: Any) -> ChunkEvent | None:
    """Return the chunk, or None where anything about it is not as usual."""
    try:
        correlation_id = data["correlation_id"]
        event_id = data["event_id"]
        seq = data["seq"]
        metadata = data["metadata"]
        timestamp = data["timestamp"]
        operations = data["patches"]
        patches: list[JSONPatchOperation] = []
        for patch in operations:
            op, path = patch["op"], patch["path"]
            if type(op) is not str or type(path) is not str:
                return None
            operation = _MutableOperation(op, path, patch["value"])
            operation.__class__ = JSONPatchOperation
            patches.append(operation)
            if len(patch) != _USUAL_KEYS:
                return None
    except (KeyError, TypeError, IndexError):
        return None
    if (
        type(correlation_id) is str
        and type(event_id) is str
        and type(seq) is int
        and type(operations) is list
        and type(metadata) is dict
        and type(timestamp) is float
    ):
        known = cast("dict[str, Any]", metadata)
        chunk = _MutableChunk(correlation_id, event_id, seq, tuple(patches), known, timestamp)
        chunk.__class__ = ChunkEvent
        return cast("ChunkEvent", chunk)
    return None


_USUAL_KEYS = len(("op", "path", "value"))


class _WrongType(Exception):
    """A value is not what its field holds; `got` names what it is."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(f"expected {expected}, got {got}")


def _json_name(value: object) -> str:
    if value is None:
        return "null"
    return _JSON_NAMES.get(type(value), type(value).__name__)


_JSON_NAMES: Mapping[type, str] = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}


def _strict(kind: type, expected: str) -> Callable[[Any, Any], Any]:
    def structure(value: Any, _: Any) -> Any:
        _require(kind, value, expected)
        return value

    return structure


def _require(kind: type, value: object, expected: str) -> None:
    if type(value) is not kind:
        raise _WrongType(expected, _json_name(value))


def _number(value: Any, _: Any) -> float:
    if type(value) is float or type(value) is int:
        return value
    raise _WrongType("a number", _json_name(value))


def _text_or_integer(value: Any, _: Any) -> str | int:
    if type(value) is str or type(value) is int:
        return value
    raise _WrongType("a text or an integer", _json_name(value))


_FRACTION = re.compile(r"\.(\d+)")


def _datetime(value: Any, _: Any) -> datetime:
    """Return an aware datetime; a time without a zone is taken as UTC, as the server means it."""
    if type(value) is not str:
        raise _WrongType("a date and time", _json_name(value))
    # Python 3.10 reads neither a Z nor a fraction of other than 3 or 6 digits.
    text = _FRACTION.sub(lambda match: f".{match[1][:6]:0<6}", value, count=1)
    if text[-1:] in ("Z", "z"):
        text = f"{text[:-1]}+00:00"
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise _WrongType("a date and time", f"{value[:_EXCERPT]!r}") from None
    return parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=timezone.utc)


def _datetime_text(value: datetime) -> str:
    text = value.isoformat()
    return f"{text[:-6]}Z" if text.endswith("+00:00") else text


def _open_enum(kind: type[OpenEnum]) -> Callable[[Any, Any], OpenEnum | str]:
    def structure(value: Any, _: Any) -> OpenEnum | str:
        if type(value) is not str:
            raise _WrongType("a text", _json_name(value))
        return kind.of(value)

    return structure


def _make_converter() -> Converter:
    converter = Converter(detailed_validation=True, unstruct_collection_overrides={tuple: list})
    converter.register_structure_hook(str, _strict(str, "a text"))
    converter.register_structure_hook(int, _strict(int, "an integer"))
    converter.register_structure_hook(bool, _strict(bool, "a boolean"))
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(datetime, _datetime)
    converter.register_structure_hook(str | int, _text_or_integer)
    for kind in (EventType, EventSource, SessionStatus):
        converter.register_structure_hook(kind | str, _open_enum(kind))
    converter.register_structure_hook_func(_is_object, _strict(dict, "an object"))
    converter.register_structure_hook_factory(_is_tuple, _tuple_hook(converter))
    converter.register_structure_hook_factory(attrs.has, _class_hook(converter))
    converter.register_structure_hook(JSONPatchOperation, _patch(converter))
    converter.register_structure_hook(MessagePart, _by_type(converter, _PARTS))
    converter.register_structure_hook(EventData, _by_type(converter, _EVENT_DATA))
    for tagged in (*_PARTS.values(), *_EVENT_DATA.values(), StatusEvent):
        converter.register_unstructure_hook(tagged, _tagged(converter, tagged))
    converter.register_unstructure_hook(JSONPatchOperation, _patch_dict)
    converter.register_unstructure_hook(datetime, _datetime_text)
    return converter


def _is_object(kind: Any) -> bool:
    return get_origin(kind) is Mapping


def _is_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple


def _tuple_hook(converter: Converter) -> Callable[[Any], Callable[[Any, Any], Any]]:
    def make(kind: Any) -> Callable[[Any, Any], Any]:
        item_type = get_args(kind)[0]
        item = converter.get_structure_hook(item_type)

        def structure(value: Any, _: Any) -> tuple[Any, ...]:
            _require(list, value, "a list")
            done: list[Any] = []
            try:
                for entry in value:
                    done.append(item(entry, item_type))  # noqa: PERF401 - its length is the failing index
            except (BaseValidationError, _WrongType) as error:
                # As cattrs notes it, so that one walk finds the place; 3.10 has no add_note.
                cast("Any", error).__notes__ = [IterableValidationNote("", len(done), item_type)]
                raise IterableValidationError("", [error], kind) from None
            return tuple(done)

        return structure

    return make


def _class_hook(converter: Converter) -> Callable[[Any], Callable[[Any, Any], Any]]:
    def make(kind: Any) -> Callable[[Any, Any], Any]:
        generated = make_dict_structure_fn(kind, converter, _cattrs_detailed_validation=True)

        def structure(value: Any, _: Any) -> Any:
            _require(dict, value, "an object")
            return generated(value, kind)

        return structure

    return make


def _by_type(converter: Converter, kinds: Mapping[str, type[Any]]) -> Callable[[Any, Any], Any]:
    """Return a hook for JSON whose `type` names its class; an unknown one stays as it is."""

    def structure(value: Any, _: Any) -> Any:
        _require(dict, value, "an object")
        name = value.get("type")
        kind = kinds.get(name) if isinstance(name, str) else None
        return value if kind is None else converter.structure(value, kind)

    return structure


def _tagged(converter: Converter, kind: type[Any]) -> Callable[[Any], dict[str, Any]]:
    generated = make_dict_unstructure_fn(kind, converter)

    def unstructure(value: Any) -> dict[str, Any]:
        return {"type": value.type, **generated(value)}

    return unstructure


def _patch(converter: Converter) -> Callable[[Any, Any], Any]:
    generated = make_dict_structure_fn(JSONPatchOperation, converter, from_=override(rename="from"))

    def structure(value: Any, _: Any) -> Any:
        _require(dict, value, "an object")
        return generated(value, JSONPatchOperation)

    return structure


_WITHOUT_VALUE = frozenset({"remove", "move", "copy"})


def _patch_dict(patch: JSONPatchOperation) -> dict[str, Any]:
    data: dict[str, Any] = {"op": patch.op, "path": patch.path}
    if patch.from_ is not None:
        data["from"] = patch.from_
    if patch.op not in _WITHOUT_VALUE:
        data["value"] = patch.value
    return data


def _first_problem(error: BaseException) -> tuple[str, str]:
    """Return where the first thing is wrong, as a path, and what is wrong with it."""
    place = ""
    while isinstance(error, BaseValidationError):
        error = cast("tuple[Exception, ...]", cast("Any", error).exceptions)[0]
        for note in getattr(error, "__notes__", ()):
            if isinstance(note, IterableValidationNote):
                place += f"[{note.index}]"
            else:  # An AttributeValidationNote, in which `from_` stands for a JSON `from`.
                place += f".{note.name.rstrip('_')}"
    problem = "is missing" if isinstance(error, KeyError) else str(error)
    return place.lstrip("."), problem


def _excerpt(body: bytes) -> str:
    return body[:_EXCERPT].decode("utf-8", "replace")


def _not_json(error: Exception, body: str) -> DecodeError:
    return DecodeError(f"not JSON ({error})", body=body)
