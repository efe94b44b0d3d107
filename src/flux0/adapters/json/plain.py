"""Converts models to plain JSON: dict, list, str, int, float, bool and None.

The result contains no instances of subclasses of these types.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import Enum
from functools import cache
from typing import Any, cast

import attrs

from flux0.domain.extensible import Extensible, with_extra
from flux0.domain.stream_events import JSONPatchOperation

_SCALARS = frozenset((str, int, float, bool, type(None)))


def plain(value: Any) -> Any:
    """Convert a model, or a container of models, to the JSON form that the server uses.

    Raises:
        TypeError: a value or a key cannot be represented in JSON.
    """
    kind: Any = type(value)  # pyright: ignore[reportUnknownVariableType]
    if kind in _SCALARS:
        return value
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in cast("Any", value)]
    if attrs.has(kind):
        return _fields(value)
    if isinstance(value, Mapping):
        return {_key(key): plain(item) for key, item in cast("Any", value).items()}
    return _plain_scalar(value)


def is_nested(value: Any, levels: int) -> bool:
    """Return whether `value` has at least `levels` levels of containers, without recursion."""
    level = [value]
    for _ in range(levels):
        items = (item for each in level for item in _items(each))
        # A container that the level contains several times is looked at once.
        level = [*{id(item): item for item in items}.values()]
    return bool(level)


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, (list, tuple)):
        return cast("Iterable[Any]", value)
    if attrs.has(cast("Any", type(value))):
        return [getattr(value, field.name) for field in attrs.fields(cast("Any", type(value)))]
    return cast("Any", value).values() if isinstance(value, Mapping) else ()


def _plain_scalar(value: Any) -> Any:
    if isinstance(value, datetime):
        text = value.isoformat()
        return f"{text[:-6]}Z" if text.endswith("+00:00") else text
    if isinstance(value, Enum):
        return plain(value.value)
    for scalar in (str, int, float):
        # `__add__` converts an instance of a subclass to the base class. `str(value)` and
        # `int(value)` are not suitable, because they call methods that the subclass can override.
        if isinstance(value, scalar):
            return cast("Any", scalar).__add__(value, scalar())
    raise TypeError(f"it contains an object of type {type(value).__name__}")


def _fields(model: Any) -> dict[str, Any]:
    if isinstance(model, JSONPatchOperation):
        return {key: plain(value) for key, value in model.to_json().items()}
    kind: Any = model.__class__
    tag = type_tag(kind)
    data: dict[str, Any] = {} if tag is None else {"type": tag}
    for name, key in json_keys(kind):
        data[key] = plain(getattr(model, name))
    if isinstance(model, Extensible) and model.extra:
        return with_extra(data, plain(model.extra))
    return data


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"it contains a mapping with the key {key!r}; keys must be strings")
    return str.__str__(key)


@cache
def json_keys(kind: Any) -> tuple[tuple[str, str], ...]:
    """Return the name and the JSON key of each field; only `from_` and its key `from` differ."""
    names = [field.name for field in attrs.fields(kind)]
    return tuple((name, name.rstrip("_")) for name in names if name != "extra")


@cache
def type_tag(kind: Any) -> str | None:
    tag = getattr(kind, "type", None)
    return tag if type(tag) is str and getattr(kind, "type_in_json", True) else None


@cache
def known_keys(kind: Any) -> frozenset[str]:
    keys = (key for _, key in json_keys(kind))
    return frozenset(keys if type_tag(kind) is None else (*keys, "type"))
