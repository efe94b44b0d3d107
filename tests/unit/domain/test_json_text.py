"""JSON text: valid JSON for every number, and its forms."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import given, strategies as st

from flux0.domain.json_text import json_text

FINITE = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, width=32)
ODD = st.sampled_from([math.nan, math.inf, -math.inf])


def values(numbers: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    leaves = numbers | st.text(max_size=3) | st.sampled_from(["NaN", "-Infinity"])
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    )


def reject(constant: str) -> None:
    raise ValueError(f"not valid JSON: {constant}")


@given(values(FINITE | ODD), st.booleans(), st.booleans(), st.sampled_from([None, 2]))
def test_text_is_always_valid_json(value: Any, compact: bool, ascii: bool, indent: Any) -> None:
    text = json_text(value, compact=compact, ascii=ascii, indent=indent)
    expected = json.loads(json.dumps(value), parse_constant=lambda _: None)
    assert json.loads(text, parse_constant=reject) == expected
    assert text.isascii() or not ascii


def test_json_text_is_valid_json_in_the_requested_form() -> None:
    value = {"é": [1, (math.nan,)]}
    assert json_text(value) == '{"\\u00e9": [1, [null]]}'
    assert json_text(value, ascii=False) == '{"é": [1, [null]]}'
    assert json_text(value, compact=True) == '{"\\u00e9":[1,[null]]}'
    assert json_text([1], indent=1) == "[\n 1\n]"
    assert json_text({"a": {1}, "b": math.inf}, default=list) == '{"a": [1], "b": null}'
