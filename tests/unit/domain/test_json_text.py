"""JSON text: valid JSON for every number, and the forms of the text."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, strategies as st

from flux0.domain.json_text import json_text, strict_json_text

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


def test_form_of_the_text() -> None:
    value = {"é": [1, (math.nan,)]}
    assert json_text(value) == '{"\\u00e9": [1, [null]]}'
    assert json_text(value, ascii=False) == '{"é": [1, [null]]}'
    assert json_text(value, compact=True) == '{"\\u00e9":[1,[null]]}'
    assert json_text([1], indent=1) == "[\n 1\n]"
    assert json_text({"a": {1}, "b": math.inf}, default=list) == '{"a": [1], "b": null}'


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"a": math.nan}, "has nan at a: JSON has no NaN and no infinities"),
        ({"0": [1], "a": [{}, {"b": [0, -math.inf]}]}, r"has -inf at a\[1\].b\[1\]: "),
        ({"a": 1e999, "b": math.nan}, "has inf at a: "),
    ],
)
def test_strict_text_names_the_member_that_json_cannot_represent(value: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=f"^{problem}"):
        strict_json_text(value)


def test_strict_text_is_compact() -> None:
    assert strict_json_text({"a": ["é", 1.5]}) == '{"a":["\\u00e9",1.5]}'
    with pytest.raises(ValueError, match="limit"):  # Python cannot write it.
        strict_json_text({"a": 10**5000})
