"""JSON Patch with the server's rules."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest

from flux0.domain.messages.json_patch import (
    JSON,
    MAX_DEPTH,
    VALUE_SIZE,
    MemoryBudget,
    PatchError,
    apply_operation as apply_in,
    check_operation,
    copied,
    measure,
)
from flux0.domain.stream_events import JSONPatchOperation as Op


def apply_operation(document: JSON, operation: Op) -> JSON:
    """Apply an operation, and check that the budget is charged for the document's size."""
    budget = MemoryBudget(1_000_000)
    size_before = 0 if document is None else measure(document)[0]
    result = document
    try:
        result = apply_in(document, operation, budget)
    finally:
        size_after = 0 if result is None else measure(result)[0]
        assert size_before + budget.limit - budget.remaining == size_after
    return result


def as_text(document: Any) -> str:
    """Return JSON text, in which 1, 1.0 and true differ, unlike in a comparison with ==."""
    return json.dumps(document, sort_keys=True)


@pytest.mark.parametrize(
    ("document", "operation", "expected"),
    [
        # If there is no document, an operation creates the root.
        (None, Op("add", "", "text"), "text"),
        (None, Op("add", "/-", "a"), ["a"]),
        (None, Op("add", "/0", "a"), ["a"]),
        (None, Op("add", "/0/", "a"), None),
        (None, Op("add", "/a", 1), {"a": 1}),
        (None, Op("add", "/", 1), {"": 1}),
        (None, Op("test", "", {}), {}),
        # add
        (["a"], Op("add", "/-", "b"), ["a", "b"]),
        (["a"], Op("add", "/1", "b"), ["a", "b"]),
        (["a"], Op("add", "/0", "b"), ["b", "a"]),
        (["a"], Op("add", "/2", "b"), None),
        (["a"], Op("add", "/01", "b"), None),
        (["a"], Op("add", "/-1", "b"), None),
        (["a"], Op("add", "/", "b"), None),
        (["a"], Op("add", "/\N{ARABIC-INDIC DIGIT ZERO}", "b"), None),
        ({"a": 1}, Op("add", "/a", 2), {"a": 2}),
        ({"a": 1}, Op("add", "/-", 2), {"a": 1, "-": 2}),
        ({"a": 1}, Op("add", "", None), None),
        ("text", Op("add", "/-", "b"), None),
        ({"a": 1}, Op("add", "/a/b", 2), None),
        # replace
        ("text", Op("replace", "", [1]), [1]),
        ("text", Op("replace", "", None), None),
        (["a"], Op("replace", "/0", "b"), ["b"]),
        (["a"], Op("replace", "/-", "b"), None),
        ({"a": 1}, Op("replace", "/a", None), {"a": None}),
        ({"a": 1}, Op("replace", "/b", 2), None),
        # remove
        (["a", "b"], Op("remove", "/0"), ["b"]),
        (["a"], Op("remove", "/-"), None),
        ({"a": 1}, Op("remove", "/a"), {}),
        ({"a": 1}, Op("remove", "/b"), None),
        ({"a": 1}, Op("remove", ""), None),
        # move
        (["a", "b", "c"], Op("move", "/2", from_="/0"), ["b", "c", "a"]),
        (["a", "b"], Op("move", "/-", from_="/0"), ["b", "a"]),
        (["a", "b"], Op("move", "/2", from_="/0"), None),
        ([["a"], ["b"]], Op("move", "/0/-", from_="/1"), [["a", ["b"]]]),
        ({"a": {"b": 1}}, Op("move", "/c", from_="/a/b"), {"a": {}, "c": 1}),
        ({"a": {"b": 1}}, Op("move", "", from_="/a"), {"b": 1}),
        ({"a": {"b": 1}}, Op("move", "/a/c", from_="/a"), None),
        ([{"a": 1}, {"b": 2}], Op("move", "/0/c", from_="/0"), None),
        ({"a": 1}, Op("move", "/a", from_="/a"), {"a": 1}),
        ({"a": 1}, Op("move", "/b", from_="/b"), None),
        ({"a": 1}, Op("move", "/b", from_=""), None),
        ({"a": 1}, Op("move", "/b"), None),
        # copy
        ({"a": [1]}, Op("copy", "/b", from_="/a"), {"a": [1], "b": [1]}),
        ({"a": 1}, Op("copy", "/b", from_=""), {"a": 1, "b": {"a": 1}}),
        ([1], Op("copy", "/-", from_="/-"), None),
        ({"a": 1}, Op("copy", "/b"), None),
        # test
        ({"a": [1, {"b": None}]}, Op("test", "/a", [1.0, {"b": None}]), {"a": [1, {"b": None}]}),
        ({"a": 1}, Op("test", "/a", value=True), None),
        ({"a": False}, Op("test", "/a", 0), None),
        ({"a": [1]}, Op("test", "/a", [1, 2]), None),
        ({"a": {"b": 1, "c": 1}}, Op("test", "/a", {"b": 1}), None),
        ({"a": {"b": None}}, Op("test", "/a", {"c": None}), None),
        ({"a": "b"}, Op("test", "/a", ["b"]), None),
        ({"a": 1}, Op("test", "", {"a": 1}), {"a": 1}),
        # `~1` is unescaped before `~0`, so `~01` means `~1`.
        ({}, Op("add", "/a~1b", 1), {"a/b": 1}),
        ({}, Op("add", "/a~01", 1), {"a~1": 1}),
        ({"a~b": {"c/d": 1}}, Op("copy", "/x", from_="/a~0b/c~1d"), {"a~b": {"c/d": 1}, "x": 1}),
        ({"a": 1}, Op("copy", "/x", from_="/a~2"), None),
        ({"a": 1}, Op("copy", "/x", from_="a"), None),
        ({"a": 1}, Op("add", "a", 2), None),
        ({"a": 1}, Op("add", "/~~0", 2), None),
        # Unknown operations are rejected.
        ({"a": 1}, Op("append", "/a", "b"), None),
    ],
)
def test_operation_is_applied_or_changes_nothing(
    document: Any, operation: Op, expected: Any
) -> None:
    before, document = document, deepcopy(document)
    if expected is None:
        with pytest.raises(PatchError):
            apply_operation(document, operation)
        assert as_text(document) == as_text(before)
    else:
        assert as_text(apply_operation(document, operation)) == as_text(expected)


@pytest.mark.parametrize(
    ("document", "path", "expected"),
    [
        (None, "/a/b/c", {"a": {"b": {"c": 1}}}),
        (None, "/a/0", {"a": [1]}),
        (None, "/a/0/0", {"a": [[1]]}),
        (None, "/a/1/-", {"a": [{}, {"-": 1}]}),
        ({"rows": []}, "/rows/2/name", {"rows": [{}, {}, {"name": 1}]}),
        ({"rows": []}, "/rows/1/0", {"rows": [[], [1]]}),
        ({"a": {"k": 1}}, "/a/0", {"a": [1]}),
        ({"a": "text"}, "/a/0", {"a": [1]}),
        # The server creates the parent `a~1b` without unescaping its name, and does not remove it.
        ({"a/b": {}}, "/a~1b/c", {"a/b": {"c": 1}, "a~1b": {}}),
        # When the server creates parents, it ignores slashes at the pointer's start and end.
        ({"": {}}, "//a", {"": {"a": 1}}),
        ({"a": {}}, "/a/", {"a": {"": 1}}),
    ],
)
def test_missing_parents_are_created(document: Any, path: str, expected: Any) -> None:
    assert as_text(apply_operation(deepcopy(document), Op("add", path, 1))) == as_text(expected)


REMAINING: list[tuple[JSON, Op, JSON]] = [
    ({}, Op("remove", "/a/b"), {"a": {}}),
    ({"a": {"k": 1}}, Op("replace", "/a/0", 1), {"a": []}),
    ({"a": []}, Op("replace", "/a/1/b", 1), {"a": [{}, {}]}),
    ({}, Op("add", "/a/-/b", 1), {"a": {}}),
    ([], Op("add", "/01/b", 1), [{}, {}]),
    ([], Op("add", "/\N{ARABIC-INDIC DIGIT ZERO}/b", 1), [{}]),
    ({}, Op("add", "/a/\N{SUPERSCRIPT TWO}/b", 1), {"a": []}),
    ({"a": 1}, Op("add", "/0/b", 1), {"a": 1}),
    ({"x": 1}, Op("move", "/a/b/c", from_="/y"), {"x": 1, "a": {"b": {}}}),
    ({"x": 1, "a": []}, Op("move", "/a/5", from_="/x"), {"x": 1, "a": []}),
    # The server creates other parents than the pointer names, so the operation fails.
    ({}, Op("add", "/a~1b/c", 1), {"a~1b": {}}),
    ([[]], Op("add", "/0//a", 1), [[]]),
    ([[]], Op("copy", "/-", from_="/1/a"), [[]]),
    ({"a": {}}, Op("copy", "/b", from_="/a/b/c"), {"a": {}}),
]


@pytest.mark.parametrize(("document", "operation", "remaining"), REMAINING)
def test_created_parents_stay_when_the_operation_fails(
    document: Any, operation: Op, remaining: Any
) -> None:
    with pytest.raises(PatchError):
        apply_operation(document, operation)
    assert as_text(document) == as_text(remaining)


def test_growth_of_a_list_by_an_index_is_limited() -> None:
    budget = MemoryBudget(1000 * VALUE_SIZE)
    document: Any = apply_in([], Op("add", "/499/a", 1), budget)
    assert len(document) == 500
    for index in ("10000", "9" * 12, "9" * 5000):
        with pytest.raises(PatchError):
            apply_in(document, Op("add", f"/{index}/a", 1), budget)
    assert len(document) == 500


def test_invalid_operation_is_detected_without_a_document() -> None:
    check_operation(Op("add", "/a/-/b", 1))
    for operation in (Op("append", "/a"), Op("add", "a"), Op("add", "/~2")):
        with pytest.raises(PatchError):
            check_operation(operation)


def test_value_of_the_operation_is_copied() -> None:
    value: dict[str, Any] = {"args": [{"x": [1]}]}
    operation = Op("add", "/a", value)
    document = apply_operation({}, operation)
    document = apply_operation(document, Op("add", "/a/args/0/x/-", 2))
    assert document == {"a": {"args": [{"x": [1, 2]}]}}
    assert operation.value == {"args": [{"x": [1]}]}


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def test_nesting_depth_is_limited() -> None:
    document = apply_operation({}, Op("add", "/a", nested(MAX_DEPTH - 1)))
    assert apply_operation(document, Op("test", "/a", nested(MAX_DEPTH - 1))) is document
    before = as_text(document)
    for operation in (
        Op("add", "/a", nested(MAX_DEPTH)),
        Op("replace", "", nested(MAX_DEPTH + 1)),
        Op("add", "/b/c", nested(MAX_DEPTH - 1)),
        Op("copy", "/c/b", from_="/a"),
        Op("move", "/c/b", from_="/a"),
        Op("add", "/x" * (MAX_DEPTH + 1), 1),
    ):
        with pytest.raises(PatchError, match=f"nested more than {MAX_DEPTH} levels"):
            apply_operation(document, operation)
    for created in ("b", "c"):
        document.pop(created, None)  # type: ignore[union-attr, call-arg, arg-type]
    assert as_text(document) == before
    assert measure(apply_operation(document, Op("move", "/b", from_="/a")))[1] == MAX_DEPTH


def test_measuring_works_at_any_depth_and_copying_up_to_the_largest_depth() -> None:
    assert measure(nested(50_000))[1] == 50_000
    assert measure(copied(nested(MAX_DEPTH)))[1] == MAX_DEPTH


def test_finite_copy_replaces_nan_and_infinities() -> None:
    odd: Any = {"a": [float("nan"), 1.5, {"b": float("-inf")}], "c": "d"}
    assert copied(odd, finite=True) == {"a": [None, 1.5, {"b": None}], "c": "d"}
    assert copied(float("inf"), finite=True) is None
    assert copied(float("inf")) == float("inf")


@pytest.mark.parametrize(
    "work", [Op("copy", "/b", None, "/a"), Op("move", "/b/c", None, "/a")], ids=["copy", "move"]
)
def test_work_of_all_copies_and_moves_is_limited(work: Op) -> None:
    """The removed values are refunded, but the work is not."""
    budget = MemoryBudget(3000)

    def apply_all() -> None:
        document = None
        for _ in range(100):
            for operation in (Op("add", "/a", "x" * 100), work, Op("replace", "", {})):
                document = apply_in(document, operation, budget)

    with pytest.raises(PatchError, match="moving values in the turn needs more than 3,000 bytes"):
        apply_all()
