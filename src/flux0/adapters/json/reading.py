"""Functions that read models of plain JSON, each written for its model, as attrs writes `__init__`.

What cattrs writes calls a hook for each field. Here plain values, and models within models, are
read in line, and slots are filled without a model's `__init__`: together that takes half the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from types import NoneType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

import attrs

from flux0.domain.enums import OpenEnum

Hook = Callable[[Any, Any], Any]
HookOf = Callable[[Any], Hook]

_FACTORY = cast("type", attrs.Factory)
# What a value must be to be one of these types.
_PLAIN = {
    str: "type({0}) is str",
    int: "type({0}) is int",
    bool: "type({0}) is bool",
    float: "type({0}) is float or type({0}) is int",
}


def is_plain(kind: Any) -> bool:
    """Return whether this is a model whose `__init__` only stores what was read."""
    if not attrs.has(kind) or hasattr(kind, "__attrs_post_init__"):
        return False
    return all(
        field.init and field.validator is None and not isinstance(field.default, _FACTORY)
        for field in attrs.fields(kind)
    )


def reader(model: Any, hook_of: HookOf) -> Hook:
    """Return the function that reads a plain model; `hook_of` gives what reads all other types.

    It raises ValueError, KeyError or TypeError where the JSON does not fit, and does not say why.
    """
    names: dict[str, Any] = {"new": object.__new__, "fromisoformat": datetime.fromisoformat}
    lines = ["def read(data, _):", *_model_lines("data", model, names, hook_of), "return data"]
    exec("\n ".join(lines), names)  # noqa: S102 - it holds names of our own models alone
    return cast("Hook", names["read"])


def _lines(name: str, kind: Any, names: dict[str, Any], hook_of: HookOf) -> list[str]:
    """Return the lines that check the JSON in the variable `name`, and make of it what it is to be.

    What else they use is added to `names`.
    """
    options = get_args(kind)
    if NoneType in options:
        some: Any = Union[tuple(option for option in options if option is not NoneType)]  # noqa: UP007
        return [f"if {name} is not None:", *_indented(_lines(name, some, names, hook_of))]
    if kind in _PLAIN:
        return [f"if not ({_PLAIN[kind].format(name)}): raise ValueError"]
    if get_origin(kind) is tuple:
        item = f"{name}_item"
        return [
            f"if type({name}) is not list: raise ValueError",
            f"{name}_items = []",
            f"for {item} in {name}:",
            *_indented(_lines(item, options[0], names, hook_of)),
            f" {name}_items.append({item})",
            f"{name} = tuple({name}_items)",
        ]
    if is_plain(kind):
        return _model_lines(name, kind, names, hook_of)
    return _hook_lines(name, kind, names, hook_of)


def _hook_lines(name: str, kind: Any, names: dict[str, Any], hook_of: HookOf) -> list[str]:
    """Return the lines that call a hook, but for the usual values of some types."""
    enum = next(iter(get_args(kind)), None)
    if isinstance(enum, type) and issubclass(enum, OpenEnum):
        names[f"known_{name}"] = {member.value: member for member in enum}
        return [
            f"if type({name}) is not str: raise ValueError",
            f"{name} = known_{name}.get({name}, {name})",
        ]
    names[f"hook_{name}"], names[f"kind_{name}"] = hook_of(kind), kind
    hooked = f"{name} = hook_{name}({name}, kind_{name})"
    if kind is datetime:
        return [
            f"try: {name}_read = fromisoformat({name})",
            f"except (TypeError, ValueError): {name}_read = None",
            f"if {name}_read is None or {name}_read.tzinfo is None: {hooked}",
            f"else: {name} = {name}_read",
        ]
    if kind is Any:
        return [f"if type({name}) is not str: {hooked}"]
    if get_origin(kind) is Mapping:
        return [
            f"if type({name}) is not dict: raise ValueError",
            f"for {name}_item in {name}.values():",
            f" if type({name}_item) is not str:",
            f"  {hooked}",
            "  break",
        ]
    return [hooked]


def _model_lines(name: str, model: Any, names: dict[str, Any], hook_of: HookOf) -> list[str]:
    lines, stores = [f"if type({name}) is not dict: raise ValueError"], list[str]()
    types = get_type_hints(model)
    for field in attrs.fields(model):
        value, key = f"{name}_{field.name}", field.name.rstrip("_")  # `from_` stands for `from`.
        lines.append(f"{value} = {name}[{key!r}]")
        if field.default is not attrs.NOTHING:
            names[f"default_{value}"] = field.default
            lines[-1] += f" if {key!r} in {name} else default_{value}"
        lines += _lines(value, types[field.name], names, hook_of)
        names[f"set_{value}"] = getattr(model, field.name).__set__
        stores.append(f"set_{value}({name}_made, {value})")
    names[f"model_{name}"] = model
    return [*lines, f"{name}_made = new(model_{name})", *stores, f"{name} = {name}_made"]


def _indented(lines: list[str]) -> list[str]:
    return [f" {line}" for line in lines]
