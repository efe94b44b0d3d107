"""Writes JSON text that is valid by RFC 8259, which has no NaN and no infinities.

The server may send these numbers in a stream. For readers of flux0's output they become null, as in
the server's lists of events and in JavaScript's `JSON.stringify`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any


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
        default: A function that converts other values to plain values. Without this function, other
            values raise TypeError.
    """
    encode = _encoder(compact, ascii, indent, default)
    try:
        return encode(value)
    except ValueError:
        text = json.dumps(value, default=default)
        return encode(json.loads(text, parse_constant=lambda _: None))


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
