"""What is wrong with JSON that no reader could read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast, get_args, get_origin, get_type_hints

import attrs

from flux0.adapters.json.readers import (
    BY_TYPE,
    MISFITS,
    allows_mapping,
    by_type,
    enum_of,
    json_key,
    read_datetime,
    reader,
    stream_event_model,
    without_none,
)
from flux0.domain.messages.json_patch import MAX_DEPTH, measure
from flux0.domain.stream_events import StreamEvent

_EXCERPT = 200


def first_problem(kind: Any, value: Any) -> tuple[str, str] | None:
    """Return the place, such as `.data[0].name`, and the first problem there; None if all fits."""
    some = without_none(kind)
    if some is not None:
        return None if value is None else first_problem(some, value)
    if kind == StreamEvent:
        return first_problem(stream_event_model(value), value)
    if get_origin(kind) in {list, tuple, dict}:
        return _in_items(kind, value)
    if kind in BY_TYPE:
        return _in_union(kind, value)
    if attrs.has(kind):
        return _in_model(kind, value)
    problem = _with_value(kind, value)
    return None if problem is None else ("", problem)


def _in_items(kind: Any, value: Any) -> tuple[str, str] | None:
    is_dict = get_origin(kind) is dict
    if type(value) is not (dict if is_dict else list):
        return "", _expected("a dict" if is_dict else "a list", value)
    items = cast("Any", value)
    for key, item in items.items() if is_dict else enumerate(items):
        found = first_problem(get_args(kind)[is_dict], item)
        if found is not None:
            return f"[{key!r}]{found[0]}", found[1]
    return None


def _in_union(union: Any, value: Any) -> tuple[str, str] | None:
    if type(value) is not dict:
        return "", _expected("a dict", value)
    known = by_type(union, cast("dict[str, Any]", value))
    if known is not None:
        return _in_model(known, value)
    if not allows_mapping(union):
        return ".type", f"expected one of {', '.join(map(repr, BY_TYPE[union]))}"
    problem = _with_value(Any, value)
    return None if problem is None else ("", problem)


def _in_model(model: Any, value: Any) -> tuple[str, str] | None:
    if type(value) is not dict:
        return "", _expected("a dict", value)
    data = cast("dict[str, Any]", value)
    kinds = get_type_hints(model)
    for field in (field for field in attrs.fields(model) if field.init):
        key = json_key(field.name)
        if key in data:
            found = first_problem(kinds[field.name], data[key])
            if found is not None:
                return f".{key}{found[0]}", found[1]
        elif field.default is attrs.NOTHING:
            return f".{key}", "is missing"
    try:
        reader(model)(data)
    except ValueError as error:
        return "", str(error)
    return None


def _with_value(kind: Any, value: Any) -> str | None:
    """Return what is wrong with a value that is no model."""
    if kind is datetime:
        try:
            read_datetime(value)
        except MISFITS:
            given = repr(value[:_EXCERPT]) if type(value) is str else _name(value)
            return f"expected a date and time, got {given}"
        return None
    enum = enum_of(kind)
    if enum is not None and kind is enum and value not in list(enum):
        return f"expected one of {', '.join(repr(member.value) for member in enum)}"
    if kind is not Any:
        expected, kinds = _EXPECTED.get(
            kind if get_args(kind) == (str, int) else get_origin(kind) or kind, ("a str", (str,))
        )
        if type(value) not in kinds:
            return _expected(expected, value)
    if measure(value)[1] > MAX_DEPTH:
        return f"has more than {MAX_DEPTH} lists and objects within each other"
    return None


_EXPECTED: Mapping[Any, tuple[str, tuple[type, ...]]] = {
    int: ("an int", (int,)),
    bool: ("a bool", (bool,)),
    float: ("a number", (float, int)),
    Mapping: ("a dict", (dict,)),
    str | int: ("a str or an int", (str, int)),
}


def _expected(expected: str, value: object) -> str:
    return f"expected {expected}, got {_name(value)}"


def _name(value: object) -> str:
    return "None" if value is None else type(value).__name__
