"""Readers: functions that make models of plain JSON, in one pass.

A reader is written as source text for each model and compiled, as attrs does for `__init__`. A loop
over the fields would take more than twice as long. A reader raises one of `MISFITS` where the JSON
does not fit; `flux0.adapters.json.problems` tells what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import cache
from types import NoneType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

import attrs

from flux0.domain.enums import OpenEnum
from flux0.domain.messages.json_patch import MAX_DEPTH, measure
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
from flux0.domain.stream_events import ChunkEvent, StatusEvent, StreamEvent, UnknownEvent

# The models that `type` names in some JSON. Where a mapping is allowed too, JSON of an unknown type
# stays as it is.
BY_TYPE: Mapping[Any, Mapping[str, Any]] = {
    MessagePart: {part.type: part for part in (ContentPart, ReasoningPart, ToolCallPart)},
    EventData: {data.type: data for data in (MessageData, StatusData, ToolData)},
    MessageData | ToolData: {data.type: data for data in (MessageData, ToolData)},
}

Reader = Callable[[Any], Any]


class Misfit(ValueError):
    """A value is not what its field holds."""


# What a reader raises; a ValueError may also come from a model that looks at all of its fields.
MISFITS = (ValueError, KeyError)


def by_type(union: Any, data: dict[str, Any]) -> Any:
    """Return which model of `union` the JSON stands for, or None if its type is not known."""
    name = data.get("type")
    return BY_TYPE[union].get(name) if type(name) is str else None


def allows_mapping(union: Any) -> bool:
    """Return whether JSON of an unknown type stays as it is."""
    return any(get_origin(option) is Mapping for option in get_args(union))


def stream_event_model(data: Any) -> Any:
    """Return which event of a stream the JSON stands for."""
    known = cast("dict[str, Any]", data) if type(data) is dict else {}
    if "patches" in known:
        return ChunkEvent
    return StatusEvent if known.get("type") == StatusEvent.type else UnknownEvent


def is_model(kind: Any) -> bool:
    """Return whether this is a class of attrs, not an instance of one."""
    return isinstance(kind, type) and attrs.has(kind)


def without_none(kind: Any) -> Any:
    """Return what else a value of an optional type may be, or None if the type is not optional."""
    options = get_args(kind)
    if NoneType not in options:
        return None
    return Union[tuple(option for option in options if option is not NoneType)]  # noqa: UP007


def enum_of(kind: Any) -> type[OpenEnum] | None:
    """Return the enum whose members are read, be it open to other texts (`Enum | str`) or not."""
    first = (*get_args(kind), kind)[0]
    return first if isinstance(first, type) and issubclass(first, OpenEnum) else None


def json_key(field: str) -> str:
    """Return the JSON key of a model's field: `from_` stands for `from`."""
    return field.rstrip("_")


@cache
def reader(kind: Any) -> Reader:
    """Return the reader of a model, of a union, list or tuple of models, or of a field's type.

    Raises:
        TypeError: there is none.
    """
    if kind == StreamEvent:
        return lambda data: reader(stream_event_model(data))(data)
    if kind in BY_TYPE:
        return _union_reader(kind)
    names: dict[str, Any] = {
        "Misfit": Misfit,
        "check_depth": check_depth,
        "check_items": check_items,
        "read_datetime": read_datetime,
        "fromisoformat": datetime.fromisoformat,
        "utc": timezone.utc,
        "new": object.__new__,
    }
    lines = ["def read(data):", *_lines("data", kind, names), "return data"]
    exec("\n ".join(lines), names)  # noqa: S102 - the source holds names of our own models alone
    return cast("Reader", names["read"])


_FRACTION = re.compile(r"\.(\d+)")


def read_datetime(text: Any) -> datetime:
    """Return the time, also in the forms that `datetime.fromisoformat` does not know."""
    if type(text) is not str:
        raise Misfit
    # Python 3.10 reads neither a Z nor a fraction of other than 3 or 6 digits.
    text = _FRACTION.sub(lambda match: f".{match[1][:6]:0<6}", text, count=1)
    if text[-1:] in ("Z", "z"):
        text = f"{text[:-1]}+00:00"
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise Misfit from None


def check_depth(value: Any) -> None:
    """Raise `Misfit` if JSON is nested too deeply for Python's own functions to follow."""
    if measure(value)[1] > MAX_DEPTH:
        raise Misfit


def check_items(value: dict[str, Any]) -> None:
    """Do as `check_depth` does, at once if nothing is nested, as in the metadata of each chunk."""
    for item in value.values():
        if type(item) is dict or type(item) is list:
            return check_depth(value)
    return None


def _union_reader(union: Any) -> Reader:
    readers = {name: reader(kind) for name, kind in BY_TYPE[union].items()}
    is_open = allows_mapping(union)

    def read(value: Any) -> Any:
        if type(value) is not dict:
            raise Misfit
        data = cast("dict[str, Any]", value)
        name = data.get("type")
        if type(name) is str and name in readers:
            return readers[name](data)
        if not is_open:
            raise Misfit
        check_depth(data)
        return data

    return read


def _lines(name: str, kind: Any, names: dict[str, Any]) -> list[str]:
    """Return the lines that check the JSON in the variable `name` and make of it what `kind` says.

    All other names that the lines use are added to `names`.
    """
    some = without_none(kind)
    if some is not None:
        return [f"if {name} is not None:", *_indented(_lines(name, some, names))]
    if kind in _CHECKS:
        return [_CHECKS[kind].format(name)]
    if kind is datetime:
        return [
            f"try: made = fromisoformat({name})",
            f"except (TypeError, ValueError): made = read_datetime({name})",
            f"{name} = made if made.tzinfo is not None else made.replace(tzinfo=utc)",
        ]
    enum = enum_of(kind)
    if enum is not None:
        names[f"members_{name}"] = {member.value: member for member in enum}
        known = f"members_{name}[{name}]" if kind is enum else f"members_{name}.get({name}, {name})"
        return [_CHECKS[str].format(name), f"{name} = {known}"]
    return _container_lines(name, kind, names)


_CHECKS: Mapping[Any, str] = {
    str: "if type({0}) is not str: raise Misfit",
    int: "if type({0}) is not int: raise Misfit",
    bool: "if type({0}) is not bool: raise Misfit",
    float: "if type({0}) is not float and type({0}) is not int: raise Misfit",
    str | int: "if type({0}) is not str and type({0}) is not int: raise Misfit",
    Any: "if type({0}) is not str and (type({0}) is dict or type({0}) is list): check_depth({0})",
}


def _container_lines(name: str, kind: Any, names: dict[str, Any]) -> list[str]:
    if get_origin(kind) is Mapping:
        return [f"if type({name}) is not dict: raise Misfit", f"if {name}: check_items({name})"]
    if get_origin(kind) is dict:
        item = f"{name}_item"
        values = _indented(_lines(item, get_args(kind)[1], names))
        return [
            f"if type({name}) is not dict: raise Misfit",
            f"for {item} in {name}.values():",
            *values,
        ]
    if get_origin(kind) in {list, tuple}:
        return _items_lines(name, kind, names)
    if is_model(kind):
        return _model_lines(name, kind, names)
    if kind != StreamEvent and kind not in BY_TYPE:
        raise TypeError(f"no reader for {kind!r}")
    names[f"read_{name}"] = reader(kind)
    return [f"{name} = read_{name}({name})"]


def _items_lines(name: str, kind: Any, names: dict[str, Any]) -> list[str]:
    item, items = f"{name}_item", f"{name}_items"
    return [
        f"if type({name}) is not list: raise Misfit",
        f"{items} = []",
        f"for {item} in {name}:",
        *_indented(_lines(item, get_args(kind)[0], names)),
        f" {items}.append({item})",
        f"{name} = {get_origin(kind).__name__}({items})",
    ]


def _model_lines(name: str, model: type[Any], names: dict[str, Any]) -> list[str]:
    if model.__module__.partition(".")[0] != "flux0":
        raise TypeError(f"{model!r} is not a model of flux0")
    names[f"model_{name}"] = model
    kinds = get_type_hints(model)
    lines = [f"if type({name}) is not dict: raise Misfit"]
    arguments: list[str] = []
    stores: list[str] = []
    for field in (field for field in attrs.fields(model) if field.init):
        value, key = f"{name}_{field.name}", json_key(field.name)
        lines.append(f"{value} = {name}[{key!r}]")
        if field.default is not attrs.NOTHING:
            names[f"default_{value}"] = field.default
            lines[-1] += f" if {key!r} in {name} else default_{value}"
        lines += _lines(value, kinds[field.name], names)
        arguments.append(f"{field.alias}={value}")
        names[f"set_{value}"] = getattr(model, field.name).__set__
        stores.append(f"set_{value}({name}_made, {value})")
    if hasattr(model, "__attrs_post_init__"):
        return [*lines, f"{name} = model_{name}({', '.join(arguments)})"]
    # The model is frozen. Its slots are filled as attrs' own `__init__` does it, only faster.
    return [*lines, f"{name}_made = new(model_{name})", *stores, f"{name} = {name}_made"]


def _indented(lines: list[str]) -> list[str]:
    return [f" {line}" for line in lines]
