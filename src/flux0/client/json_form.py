"""Converts models to and from their JSON form."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, overload

from flux0.domain.json_text import json_text

if TYPE_CHECKING:
    from flux0.adapters.json import JsonCodec

T = TypeVar("T")


def to_dict(model: object) -> Any:
    """Convert a model to the JSON form that the server uses: dicts, lists and plain values.

    NaN and infinities are returned unchanged, although JSON has no such values. `to_json` writes
    null for them.
    """
    return _codec().to_dict(model)


def to_json(model: object) -> str:
    """Return the JSON form of a model (see `to_dict`) as JSON text, in ASCII, without spaces."""
    return json_text(to_dict(model), compact=True)


@overload
def from_dict(model: type[T], data: object) -> T: ...
@overload
def from_dict(model: object, data: object) -> Any: ...
def from_dict(model: Any, data: object) -> Any:
    """Build a model from its JSON form, such as the result of `to_dict`.

    Args:
        model: The model class, a union (`StreamEvent`, `EventData` or `MessagePart`), or a list or
            tuple type, such as `list[StreamEvent]`.
        data: The JSON form: dicts, lists and plain values.

    Raises:
        DecodeError: The data does not fit the model.
        InvalidArgument: `model` is not a model.
    """
    return _codec().from_dict(model, data)


@cache
def _codec() -> JsonCodec:
    from flux0.adapters.json import JsonCodec  # noqa: PLC0415 - slow to import

    return JsonCodec()
