"""Writes JSON text that is valid by RFC 8259, which has no NaN and no infinities.

The server may send these numbers in a stream. For readers of flux0's output they become null, as in
the server's lists of events and in JavaScript's `JSON.stringify`. In a request they are an error,
because the server would store something else than the user has passed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from math import isfinite
from typing import Any, TypeAlias

_JSON: TypeAlias = "float | str | list[_JSON] | dict[str, _JSON] | None"


def json_text(
    value: Any,
    *,
    compact: bool = False,
    ascii: bool = True,
    indent: int | None = None,
    default: Callable[[Any], Any] | None = None,
) -> str:
    """Return the JSON text of plain values, with null for NaN and the infinities.

    By default, the text has the form in which the server writes events.

    Args:
        value: Plain values: dicts, lists, tuples, strings, numbers, bools and None.
        compact: Whether to omit the spaces after commas and colons.
        ascii: Whether to escape characters that are not ASCII, as the server does.
        indent: The width of an indentation level; None writes one line.
        default: Converts other values to plain values. Without it, they raise TypeError.
    """
    encode = _encoder(compact, ascii, indent, default)
    try:
        return encode(value)
    except ValueError:
        text = json.dumps(value, default=default)
        return encode(json.loads(text, parse_constant=lambda _: None))


def strict_json_text(value: Any) -> str:
    """Return the JSON text of plain values, in ASCII and without spaces.

    Raises:
        ValueError: `value` contains NaN or an infinity. The message names the member.
    """
    try:
        return _encoder(compact=True, ascii=True, indent=None, default=None)(value)
    except ValueError:
        for place, number in _non_finite(value, ""):
            problem = f"has {number} at {place}: JSON has no NaN and no infinities"
            raise ValueError(problem) from None
        raise


def _non_finite(value: _JSON, place: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _non_finite(item, f"{place}.{key}" if place else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _non_finite(item, f"{place}[{index}]")
    elif isinstance(value, float) and not isfinite(value):
        yield place, value


@cache
def _encoder(
    compact: bool, ascii: bool, indent: int | None, default: Callable[[Any], Any] | None
) -> Callable[[Any], str]:
    return json.JSONEncoder(
        allow_nan=False,
        ensure_ascii=ascii,
        separators=(",", ":") if compact else None,
        indent=indent,
        default=default,
    ).encode
