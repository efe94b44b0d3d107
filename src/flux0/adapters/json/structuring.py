"""The cattrs converters that build models from plain JSON.

The converters are strict: a value must have the type of its field. For example, the string "1" is
an error for an integer field, and is not converted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import cache, partial
from typing import Any, cast, get_args, get_origin

import attrs
from cattrs import Converter
from cattrs.cols import list_structure_factory
from cattrs.gen import make_dict_structure_fn, override

from flux0 import models
from flux0.adapters.json.code_generation import (
    Hook,
    generate_hook,
    is_plain,
    set_extra,
    unknown_members,
)
from flux0.adapters.json.plain import json_keys, known_keys, type_tag
from flux0.domain.enums import EventSource, EventType, OpenEnum, SessionStatus
from flux0.domain.extensible import Extensible
from flux0.domain.messages.json_patch import MAX_DEPTH, measure
from flux0.domain.stored_models import EventData, MessageData, MessagePart, ToolData
from flux0.domain.stream_events import StreamEvent

# `_BY_TYPE` maps each union of models to a dictionary. The dictionary maps the value of the JSON
# key `type` to the model.
_BY_TYPE: dict[Any, dict[Any, Any]] = {
    union: {type_tag(kind): kind for kind in get_args(union) if attrs.has(kind)}
    for union in (MessagePart, EventData, MessageData | ToolData)
}
_MODELS = (StreamEvent, MessagePart, EventData, *filter(attrs.has, vars(models).values()))
_EXACT: tuple[tuple[Any, str, tuple[type, ...]], ...] = (
    (str, "a str", (str,)),
    (int, "an int", (int,)),
    (bool, "a bool", (bool,)),
    (float, "a number", (float, int)),
    (str | int, "a str or an int", (str, int)),
)
_MAX_SHOWN_CHARACTERS = 200


class TypeMismatch(ValueError):
    def __init__(self, expected: str, value: object) -> None:
        got = "None" if value is None else type(value).__name__
        super().__init__(f"expected {expected}, got {got}")


@cache
def converter(*, explaining: bool) -> Converter:
    """Return the converter that builds models from plain JSON.

    If `explaining` is True, the converter is slower, but its errors name the wrong value and the
    problem.
    """
    made = Converter(detailed_validation=explaining)
    for kind, expected, types in _EXACT:
        made.register_structure_hook(kind, _exactly(expected, types))
    made.register_structure_hook(datetime, _datetime)
    made.register_structure_hook(EventType, _enum(EventType, is_open=False))
    for enum in (EventType, EventSource, SessionStatus):
        made.register_structure_hook(enum | str, _enum(enum, is_open=True))
    made.register_structure_hook_func(lambda kind: kind is Any, _any)
    made.register_structure_hook_func(_has_origin(Mapping), _mapping)
    for origin in (list, tuple):
        made.register_structure_hook_factory(_has_origin(origin), partial(_sequence, made, origin))
    made.register_structure_hook_factory(attrs.has, partial(_model, made))
    for union, kinds in _BY_TYPE.items():
        made.register_structure_hook(union, _by_type(made, union, kinds))
    made.register_structure_hook(
        StreamEvent, lambda value, _: made.structure(value, _stream_event_class(value))
    )
    return made


@cache
def structure_hook(model: Any) -> Hook:
    return converter(explaining=False).get_structure_hook(model)


def is_model(kind: Any) -> bool:
    if get_origin(kind) in {list, tuple}:
        item, *rest = get_args(kind)
        return is_model(item) and rest == ([] if get_origin(kind) is list else [...])
    return kind in _MODELS  # `_MODELS` is not a set, because some types have no hash.


def _has_origin(origin: Any) -> Callable[[Any], bool]:
    return lambda kind: get_origin(kind) is origin


def _exactly(expected: str, types: tuple[type, ...]) -> Hook:
    def structure(value: Any, _: Any) -> Any:
        if type(value) in types:
            return value
        raise TypeMismatch(expected, value)

    return structure


def _any(value: Any, _: Any) -> Any:
    if type(value) is dict or type(value) is list:
        _check_depth(value)
    return value  # pyright: ignore[reportUnknownVariableType]


def _mapping(value: Any, _: Any) -> Any:
    if type(value) is not dict:
        raise TypeMismatch("a dict", value)
    data: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
    # The depth is measured only if a value in the mapping is nested, because most mappings, such as
    # metadata, are flat.
    for item in data.values():
        if type(item) is dict or type(item) is list:
            _check_depth(data)
            break
    return data


def _check_depth(value: Any) -> None:
    if measure(value)[1] > MAX_DEPTH:
        raise ValueError(f"is nested more than {MAX_DEPTH} levels deep")


_FRACTION = re.compile(r"\.(\d+)")


def _datetime(value: Any, _: Any) -> datetime:
    if type(value) is not str:
        raise TypeMismatch("a date and time", value)
    try:
        parsed = datetime.fromisoformat(value)
    except ValueError:
        # Python 3.10 rejects dates with the time zone "Z", or with a fraction of a second that does
        # not have 3 or 6 digits. Convert such dates to a form that Python 3.10 accepts.
        text = _FRACTION.sub(lambda match: f".{match[1][:6]:0<6}", value, count=1)
        if text[-1:] in ("Z", "z"):
            text = f"{text[:-1]}+00:00"
        try:
            parsed = datetime.fromisoformat(text)
        except ValueError:
            shown = value[:_MAX_SHOWN_CHARACTERS]
            raise ValueError(f"expected a date and time, got {shown!r}") from None
    return parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=timezone.utc)


def _enum(kind: type[OpenEnum], *, is_open: bool) -> Hook:
    members = {member.value: member for member in kind}

    def structure(value: Any, _: Any) -> Any:
        if type(value) is str and (is_open or value in members):
            return members.get(value, value)
        if is_open:
            raise TypeMismatch("a str", value)
        raise ValueError(f"expected one of {', '.join(map(repr, members))}")

    return structure


def _sequence(made: Converter, origin: Callable[[Any], Any], kind: Any) -> Hook:
    # cattrs' hook for lists is used for tuples, too, because its errors contain the index of the
    # wrong item. cattrs' hook accepts any iterable, so `structure` checks the type.
    list_kind: Any = list.__class_getitem__(get_args(kind)[0])
    as_list = list_structure_factory(list_kind, made)

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not list:
            raise TypeMismatch("a list", value)
        return origin(as_list(value, list_kind))

    return structure


def _model(made: Converter, kind: Any) -> Hook:
    if is_plain(kind) and not made.detailed_validation:
        return generate_hook(kind, made.get_structure_hook)
    # cattrs generates the hook of this model, because such a hook calls `__init__`, in which some
    # classes check or convert their arguments.
    changes: Any = {name: override(rename=key) for name, key in json_keys(kind) if name != key}
    if is_extensible := issubclass(kind, Extensible):
        changes["extra"] = override(omit=True)
    generated: Hook = make_dict_structure_fn(
        kind, made, _cattrs_detailed_validation=made.detailed_validation, **changes
    )
    known = known_keys(kind)

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not dict:
            raise TypeMismatch("a dict", value)
        data: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
        model = generated(data, kind)
        if is_extensible:
            set_extra(model, unknown_members(data, known))
        return model

    return structure


def _by_type(made: Converter, union: Any, kinds: Mapping[str, Any]) -> Hook:
    """Return the hook of a union of models. The hook selects the model by the key `type`.

    If the union includes `Mapping`, an object whose type is unknown is returned unchanged.
    """
    hooks = {name: (made.get_structure_hook(kind), kind) for name, kind in kinds.items()}
    is_open = any(get_origin(option) is Mapping for option in get_args(union))

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not dict:
            raise TypeMismatch("a dict", value)
        data: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
        name = data.get("type")
        if type(name) is str and (found := hooks.get(name)) is not None:
            return found[0](data, found[1])
        if not is_open:
            raise ValueError(f"must have the type {' or '.join(map(repr, hooks))}")
        return _mapping(data, None)

    return structure


def _stream_event_class(data: Any) -> Any:
    """Return the class of the stream event that `data`, plain JSON, represents.

    The member `type` selects the class. If there is no `type`, return the class that has the
    largest part of its required members in `data`.
    """
    members = cast("dict[str, Any]", data) if type(data) is dict else {}

    def likeness(kind: Any) -> float:
        if (tag := type_tag(kind)) is not None:
            return members.get("type") == tag
        required = [field.name for field in attrs.fields(kind) if field.default is attrs.NOTHING]
        return sum(name in members for name in required) / len(required)

    return max(get_args(StreamEvent), key=likeness)
