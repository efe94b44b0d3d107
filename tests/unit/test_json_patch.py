"""JSON Patch as the server applies it: by table, and against a plain model of the rules."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any, cast

import pytest
from hypothesis import given, strategies as st

from flux0.domain.messages.json_patch import (
    JSON,
    MAX_DEPTH,
    VALUE_SIZE,
    PatchError,
    Room,
    apply_operation as apply_in,
    check_operation,
    copied,
    measure,
)
from flux0.domain.stream_events import JSONPatchOperation as Op


def apply_operation(document: JSON, operation: Op) -> JSON:
    return apply_in(document, operation, Room(1_000_000))


def as_text(document: Any) -> str:
    """JSON text tells 1, 1.0 and true apart, where Python's == does not."""
    return json.dumps(document, sort_keys=True)


@pytest.mark.parametrize(
    ("document", "operation", "expected"),
    [
        # The root comes into being.
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
        (["a"], Op("add", "/b", "b"), None),
        (["a"], Op("add", "/", "b"), None),
        (["a"], Op("add", "/\N{ARABIC-INDIC DIGIT ZERO}", "b"), None),
        ({"a": 1}, Op("add", "/a", 2), {"a": 2}),
        ({"a": 1}, Op("add", "/-", 2), {"a": 1, "-": 2}),
        ({"a": 1}, Op("add", "/0", 2), {"a": 1, "0": 2}),
        ({"a": 1}, Op("add", "", None), None),
        ("text", Op("add", "/-", "b"), None),
        ({"a": 1}, Op("add", "/a/b", 2), None),
        # replace
        ("text", Op("replace", "", [1]), [1]),
        (["a"], Op("replace", "/0", "b"), ["b"]),
        (["a"], Op("replace", "/1", "b"), None),
        (["a"], Op("replace", "/-", "b"), None),
        ({"a": 1}, Op("replace", "/a", None), {"a": None}),
        ({"a": 1}, Op("replace", "/b", 2), None),
        ({"a": 1}, Op("replace", "", None), None),
        # remove
        (["a", "b"], Op("remove", "/0"), ["b"]),
        (["a"], Op("remove", "/-"), None),
        (["a"], Op("remove", "/1"), None),
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
        ({"a": None}, Op("move", "", from_="/a"), None),
        ({"a": {"b": 1}}, Op("move", "/a/c", from_="/a"), None),
        ({"a": 1}, Op("move", "/a", from_="/a"), {"a": 1}),
        ({"a": 1}, Op("move", "/b", from_="/b"), None),
        ({"a": 1}, Op("move", "", from_=""), {"a": 1}),
        ({"a": 1}, Op("move", "/b", from_=""), None),
        ({"a": 1}, Op("move", "/b"), None),
        # copy
        ({"a": [1]}, Op("copy", "/b", from_="/a"), {"a": [1], "b": [1]}),
        ({"a": 1}, Op("copy", "/b", from_=""), {"a": 1, "b": {"a": 1}}),
        ({"a": 1}, Op("copy", "/b", from_="/c"), None),
        ([1], Op("copy", "/-", from_="/-"), None),
        ({"a": 1}, Op("copy", "/b"), None),
        # test
        ({"a": [1, {"b": None}]}, Op("test", "/a", [1.0, {"b": None}]), {"a": [1, {"b": None}]}),
        ({"a": 1}, Op("test", "/a", value=True), None),
        ({"a": False}, Op("test", "/a", 0), None),
        ({"a": [1]}, Op("test", "/a", [1, 2]), None),
        ({"a": {"b": 1}}, Op("test", "/a", {"c": 1}), None),
        ({"a": {"b": 1, "c": 1}}, Op("test", "/a", {"b": 1}), None),
        ({"a": "b"}, Op("test", "/a", ["b"]), None),
        (["a"], Op("test", "/-", "a"), None),
        ({"a": 1}, Op("test", "", {"a": 1}), {"a": 1}),
        # Pointers are unescaped, in the right order.
        ({}, Op("add", "/a~1b", 1), {"a/b": 1}),
        ({}, Op("add", "/a~01", 1), {"a~1": 1}),
        ({"a~b": {"c/d": 1}}, Op("copy", "/x", from_="/a~0b/c~1d"), {"a~b": {"c/d": 1}, "x": 1}),
        ({"a": 1}, Op("copy", "/x", from_="/a~2"), None),
        ({"a": 1}, Op("copy", "/x", from_="a"), None),
        ({"a": 1}, Op("add", "a", 2), None),
        ({"a": 1}, Op("add", "/~", 2), None),
        ({"a": 1}, Op("add", "/~~0", 2), None),
        # Anything else is no operation.
        ({"a": 1}, Op("append", "/a", "b"), None),
    ],
)
def test_an_operation_applies_or_changes_nothing(
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
        (None, "/0/a", [{"a": 1}]),
        (None, "/a/0/0", {"a": [[1]]}),
        (None, "/a/1/-", {"a": [{}, {"-": 1}]}),
        (None, "/a/-", {"a": {"-": 1}}),
        ({"rows": []}, "/rows/2/name", {"rows": [{}, {}, {"name": 1}]}),
        ({"rows": []}, "/rows/1/0", {"rows": [[], [1]]}),
        ({"a": {"k": 1}}, "/a/0", {"a": [1]}),
        ({"a": "text"}, "/a/0", {"a": [1]}),
        # The server does not unescape here, and leaves this behind.
        ({"a/b": {}}, "/a~1b/c", {"a/b": {"c": 1}, "a~1b": {}}),
        # Outer slashes count for the pointer, not for the parents.
        ({"": {}}, "//a", {"": {"a": 1}}),
        ({"a": {}}, "/a/", {"a": {"": 1}}),
    ],
)
def test_missing_parents_are_created(document: Any, path: str, expected: Any) -> None:
    assert as_text(apply_operation(deepcopy(document), Op("add", path, 1))) == as_text(expected)


LEFT_BEHIND: list[tuple[JSON, Op, JSON]] = [
    ({}, Op("remove", "/a/b"), {"a": {}}),
    ({"a": {"k": 1}}, Op("replace", "/a/0", 1), {"a": []}),
    ({"a": []}, Op("replace", "/a/1/b", 1), {"a": [{}, {}]}),
    ({}, Op("add", "/a/-/b", 1), {"a": {}}),
    ([], Op("add", "/01/b", 1), [{}, {}]),
    ([], Op("add", "/\N{ARABIC-INDIC DIGIT ZERO}/b", 1), [{}]),
    ({}, Op("add", "/a/\N{SUPERSCRIPT TWO}/b", 1), {"a": []}),
    ({"a": 1}, Op("add", "/0/b", 1), {"a": 1}),
    ([], Op("add", "/a/b", 1), []),
    ({}, Op("add", "/a/5", 1), {"a": []}),
    ({"x": 1}, Op("move", "/a/b/c", from_="/y"), {"x": 1, "a": {"b": {}}}),
    ({"x": 1, "a": []}, Op("move", "/a/5", from_="/x"), {"x": 1, "a": []}),
    # The pointer leads elsewhere than the parents that were created.
    ({}, Op("add", "/a~1b/c", 1), {"a~1b": {}}),
    ([[]], Op("add", "/0//a", 1), [[]]),
    ([[]], Op("copy", "/-", from_="/1/a"), [[]]),
    ({"a": {}}, Op("copy", "/b", from_="/a/b/c"), {"a": {}}),
]


@pytest.mark.parametrize(("document", "operation", "left"), LEFT_BEHIND)
def test_created_parents_stay_when_the_operation_fails(
    document: Any, operation: Op, left: Any
) -> None:
    with pytest.raises(PatchError):
        apply_operation(document, operation)
    assert as_text(document) == as_text(left)


def test_a_list_is_not_grown_without_end() -> None:
    room = Room(1000 * VALUE_SIZE)
    grown: Any = apply_in([], Op("add", "/499/a", 1), room)
    assert len(grown) == 500
    for index in ("10000", "9" * 12, "9" * 5000):
        with pytest.raises(PatchError):
            apply_in(grown, Op("add", f"/{index}/a", 1), room)
    assert len(grown) == 500


def test_what_is_no_operation_is_told_without_a_document() -> None:
    check_operation(Op("add", "/a/-/b", 1))
    for operation in (Op("append", "/a"), Op("add", "a"), Op("add", "/~2")):
        with pytest.raises(PatchError):
            check_operation(operation)


def test_the_value_is_copied() -> None:
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


def test_values_are_as_deep_as_the_limit_allows_and_no_deeper() -> None:
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
        with pytest.raises(PatchError, match=f"more than {MAX_DEPTH} lists and objects"):
            apply_operation(document, operation)
    for created in ("b", "c"):
        document.pop(created, None)  # type: ignore[union-attr, call-arg, arg-type]
    assert as_text(document) == before
    assert measure(apply_operation(document, Op("move", "/b", from_="/a")))[1] == MAX_DEPTH


def test_moving_uses_no_room_up() -> None:
    room = Room(10_000)
    document = apply_in({}, Op("add", "/first", {"a": ["x"]}), room)
    left = room.left
    for _ in range(10):
        document = apply_in(document, Op("move", "/another", from_="/first"), room)
        document = apply_in(document, Op("move", "/first", from_="/another"), room)
    assert room.left == left


def test_any_depth_is_copied_and_measured() -> None:
    deep: Any = nested(50_000)
    assert measure(copied(deep))[1] == 50_000


def test_a_copy_can_be_held_to_the_numbers_of_json() -> None:
    odd: Any = {"a": [float("nan"), 1.5, {"b": float("-inf")}], "c": "d"}
    assert copied(odd, finite=True) == {"a": [None, 1.5, {"b": None}], "c": "d"}
    assert copied(float("inf"), finite=True) is None
    assert copied(float("inf")) == float("inf")


# --- a plain model of the same rules, which copies the document for each operation


class Refused(Exception):
    """The model's PatchError."""


def refuse_unless(condition: object) -> None:
    if not condition:
        raise Refused


def model_segments(pointer: str) -> list[str]:
    unescaped = pointer.replace("~0", "").replace("~1", "")
    refuse_unless((not pointer or pointer.startswith("/")) and "~" not in unescaped)
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]


def model_index(segment: str, *, end: int) -> int:
    """An index up to and including `end`, in the only way to write it."""
    for index in range(end + 1):
        if segment == str(index):
            return index
    raise Refused


def value_at(node: JSON, segments: list[str]) -> JSON:
    if not segments:
        return node
    if isinstance(node, list):
        return value_at(node[model_index(segments[0], end=len(node) - 1)], segments[1:])
    if isinstance(node, dict) and segments[0] in node:
        return value_at(node[segments[0]], segments[1:])
    raise Refused


def with_value(node: JSON, segments: list[str], value: JSON) -> JSON:
    """The document with `value` added, sharing nothing that changes with `node`."""
    if not segments:
        return value
    first, rest = segments[0], segments[1:]
    if rest:
        value = with_value(value_at(node, [first]), rest, value)
    if isinstance(node, dict):
        return {**node, first: value}
    if not isinstance(node, list):
        raise Refused
    index = len(node) if first == "-" else model_index(first, end=len(node))
    return [*node[:index], value, *node[index + bool(rest) :]]


def without_value(node: JSON, segments: list[str]) -> JSON:
    refuse_unless(segments)
    value_at(node, segments)
    first, rest = segments[0], segments[1:]
    if isinstance(node, dict):
        kept = {key: value for key, value in node.items() if key != first}
        return {**kept, first: without_value(node[first], rest)} if rest else kept
    if not isinstance(node, list):
        raise Refused
    index = int(first)
    middle = [without_value(node[index], rest)] if rest else []
    return [*node[:index], *middle, *node[index + 1 :]]


def tagged(value: JSON) -> object:
    """A value that Python compares as JSON does."""
    if isinstance(value, dict):
        return {key: tagged(item) for key, item in value.items()}
    if isinstance(value, list):
        return [tagged(item) for item in value]
    return (isinstance(value, bool), value)


def model_parents(node: JSON, parts: list[str]) -> None:
    """Create, in place, what leads to the last of `parts`."""
    first, rest = parts[0], parts[1:]
    if not rest:
        return
    new: JSON = [] if rest[0].isdigit() else {}
    refuse_unless(first != "-")
    if first.isdigit():
        if not isinstance(node, list):
            raise Refused
        node.extend(deepcopy(new) for _ in range(len(node), int(first) + 1))
        model_parents(node[int(first)], rest)
    else:
        if not isinstance(node, dict):
            raise Refused
        if first not in node or (rest[0].isdigit() and not isinstance(node[first], list)):
            node[first] = new
        model_parents(node[first], rest)


def moved(document: JSON, path: list[str], source: list[str]) -> JSON:
    value = value_at(document, source)
    if path == source:
        return document
    refuse_unless(path[: len(source)] != source)
    return with_value(without_value(document, source), path, value)


def model_result(document: JSON, operation: Op) -> JSON:
    path = model_segments(operation.path)
    if operation.op == "add":
        return with_value(document, path, operation.value)
    if operation.op in {"move", "copy"}:
        if operation.from_ is None:
            raise Refused
        source = model_segments(operation.from_)
        if operation.op == "move":
            return moved(document, path, source)
        return with_value(document, path, deepcopy(value_at(document, source)))
    if operation.op == "test":
        refuse_unless(tagged(value_at(document, path)) == tagged(operation.value))
        return document
    without = without_value(document, path) if path else None
    return without if operation.op == "remove" else with_value(without, path, operation.value)


def model_apply(document: JSON, operation: Op) -> tuple[JSON, bool]:
    """The document after the operation, and whether it applied."""
    root: JSON = document
    try:
        parts = operation.path.strip("/").split("/")
        if root is None:
            is_list = operation.path.strip("/") and (parts[0] == "-" or parts[0].isdigit())
            root = cast("JSON", [] if is_list else {})
        model_parents(root, parts)
        result = model_result(deepcopy(root), operation)
        refuse_unless(result is not None)
    except Refused:
        return document, False
    return result, True


SEGMENTS = st.sampled_from(
    ["a", "b", "0", "1", "2", "-", "", "a~1b", "~01", "01", "\N{ARABIC-INDIC DIGIT THREE}"]
)
PATHS = st.lists(SEGMENTS, max_size=4).map(lambda parts: "".join(f"/{part}" for part in parts))
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from([None, True, False, 0, 1, 1.0, "", "a"]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["a", "b", "0", "", "a/b", "~1"]), inner, max_size=3),
    ),
    max_leaves=6,
)
OPERATIONS = st.one_of(
    st.builds(Op, st.sampled_from(["add", "add", "replace", "test"]), PATHS, VALUES),
    st.builds(Op, st.just("remove"), PATHS),
    st.builds(Op, st.sampled_from(["move", "copy"]), PATHS, from_=st.one_of(st.none(), PATHS)),
)


@given(st.one_of(st.none(), VALUES), st.lists(OPERATIONS, min_size=1, max_size=8))
def test_any_program_does_what_the_plain_model_does(start: Any, program: list[Op]) -> None:
    room = Room(1_000_000)
    document: Any = deepcopy(start)
    room.left -= 0 if start is None else measure(start)[0]
    expected: Any = deepcopy(start)
    for operation in program:
        expected, applies = model_apply(expected, deepcopy(operation))
        try:
            document = apply_in(document, operation, room)
        except PatchError:
            assert not applies, operation
        else:
            assert applies, operation
        assert as_text(document) == as_text(expected)
        held = 0 if document is None else measure(document)[0]
        assert room.limit - room.left == held
