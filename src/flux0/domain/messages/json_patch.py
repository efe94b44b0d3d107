"""JSON Patch (RFC 6902) as the flux0 server applies it to the document of a message.

Unlike the RFC, the server creates missing parents of a path before each operation, and keeps these
parents if the operation fails. This was measured with flux0-stream 0.1.0b2 and jsonpatch 1.48.
"""

from __future__ import annotations

from itertools import pairwise
from math import isfinite
from sys import maxsize
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from flux0.domain.stream_events import JSONPatchOperation

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
_Root: TypeAlias = "dict[str, JSON]"

# The largest nesting depth of lists and objects. Recursive functions of Python such as `repr` and
# `copy.deepcopy` fail for values that are nested several hundred levels deep.
MAX_DEPTH = 200

# The memory limit counts this number of bytes for each value, in addition to the value's
# characters. A Python object has about this size.
VALUE_SIZE = 64

_OPERATIONS = frozenset({"add", "remove", "replace", "move", "copy", "test"})


class PatchError(ValueError):
    """An operation cannot be applied. The message gives the reason."""


class MemoryBudget:
    """The memory that the documents of one turn may use.

    Each value counts `VALUE_SIZE` bytes, and each character of a string or key counts 1 additional
    byte. When a value is removed, its size is added to `remaining`.

    A short operation can cause much work: `copy` duplicates a value, `move` measures the depth of a
    value, and a large index fills a list. Therefore `remaining_work` limits the turn's total work.
    It starts with as many bytes as `remaining`, and never increases.
    """

    __slots__ = ("limit", "remaining", "remaining_work")

    def __init__(self, limit: int) -> None:
        self.limit: int = limit
        self.remaining: int = limit
        self.remaining_work: int = limit

    def charge(self, size: int) -> None:
        """Subtract `size` from `remaining`; raise `PatchError` if fewer bytes remain.

        A negative `size` refunds memory.
        """
        if size > self.remaining:
            limit = f"{self.limit:,} bytes (max_turn_bytes)"
            raise PatchError(f"the messages of the turn need more than {limit}")
        self.remaining -= size

    def charge_work(self, size: int) -> None:
        self.remaining_work -= size
        if self.remaining_work < 0:
            limit = f"{self.limit:,} bytes (max_turn_bytes)"
            raise PatchError(f"copying and moving values in the turn needs more than {limit}")

    def charge_copy(self, value: JSON) -> tuple[int, int]:
        size, depth = measure(value, most=self.remaining_work)
        self.charge_work(size)
        return size, depth


def check_operation(operation: JSONPatchOperation) -> None:
    """Check an operation without applying it to a document.

    Raises:
        PatchError: `op` is not a JSON Patch operation, or `path` is not a JSON Pointer (RFC 6901).
    """
    if operation.op not in _OPERATIONS:
        raise PatchError(f"unknown operation {operation.op!r}")
    _segments(operation.path)


def apply_operation(document: JSON, operation: JSONPatchOperation, budget: MemoryBudget) -> JSON:
    """Apply one operation to `document` in place, and return the document's new root.

    `operation` must have passed `check_operation`.
    If `document` is None, a new document is created. If parents of the operation's path are
    missing, they are created first, by the rule of `_with_parents`. The operation's value is
    copied.

    The cost is proportional to the sizes of the path, the value and the removed value, not to the
    document's size. There are three exceptions. The cost of `copy` is proportional to the copied
    value, and the cost of `move` to a deeper level is proportional to the moved value. An insertion
    into a list shifts the following items.

    Raises:
        PatchError: the operation cannot be applied, or makes the document too large or too deeply
            nested. The document is unchanged, except for the created parents.
    """
    segments = _segments(operation.path)
    _check_depth(segments)
    remaining = budget.remaining
    try:
        root = {"": _with_parents(document, operation.path, budget)}
        _apply(root, segments, operation, budget)
    except PatchError:
        # If the operation fails, a document that `_with_parents` has created is dropped. Refund the
        # document's size to the memory budget.
        if document is None:
            budget.remaining = remaining
        raise
    return root[""]


# An argument of the type `_Root` is a dict whose only value is the message's document. The key is
# the empty string, which is the first segment of each JSON Pointer.


def _apply(
    root: _Root, segments: list[str], operation: JSONPatchOperation, budget: MemoryBudget
) -> None:
    match operation.op:
        case "add" | "replace":
            size, depth = measure(operation.value)
            _check_depth(segments, depth)
            # `_replace` checks that the replaced value exists. The whole document always exists, so
            # `_add` replaces the document without a check.
            apply = _replace if operation.op == "replace" and len(segments) > 1 else _add
            apply(root, segments, copied(operation.value), size, budget)
        case "remove":
            if len(segments) == 1:
                raise PatchError("the whole document cannot be removed")
            parent, key = _place(root, segments)
            budget.remaining += measure(_item(parent, key))[0] + _key_size(parent, key)
            del parent[key]
        case "move":
            _move(root, segments, _segments(operation.from_), budget)
        case "copy":
            value = _value(root, _segments(operation.from_))
            size, depth = budget.charge_copy(value)
            _check_depth(segments, depth)
            _add(root, segments, copied(value), size, budget)
        case _:  # The operation is "test", because `check_operation` rejects unknown names.
            if not _equal(_value(root, segments), operation.value):
                raise PatchError(f"the value at {operation.path!r} differs from the tested value")


def measure(value: JSON, *, most: int = maxsize) -> tuple[int, int]:
    """Return the size of a value in bytes, as `MemoryBudget` counts it, and its nesting depth.

    If the size exceeds `most`, the function stops early and returns incomplete results.
    """
    size, depth = VALUE_SIZE, 0
    level: list[JSON] = [value]
    while level:
        next_level: list[JSON] = []
        is_nested = False
        for item in level:
            if isinstance(item, str):
                size += len(item)
            elif isinstance(item, (list, dict)):
                is_nested = True
                size += VALUE_SIZE * len(item)
                if size > most:
                    return size, depth
                if isinstance(item, dict):
                    size += sum(map(len, item))
                    next_level += item.values()
                else:
                    next_level += item
        depth += is_nested
        level = next_level
    return size, depth


def copied(value: JSON, *, finite: bool = False) -> JSON:
    """Return a deep copy of `value`, which must not be nested more than `MAX_DEPTH` levels deep.

    If `finite` is true, NaN and the infinities are replaced by None.
    """
    if isinstance(value, dict):
        return {key: copied(item, finite=finite) for key, item in value.items()}
    if isinstance(value, list):
        return [copied(item, finite=finite) for item in value]
    return None if finite and isinstance(value, float) and not isfinite(value) else value


def _check_depth(segments: list[str], depth: int = 0) -> None:
    if len(segments) - 1 + depth > MAX_DEPTH:
        raise PatchError(f"the document would be nested more than {MAX_DEPTH} levels deep")


def _key_size(parent: list[JSON] | dict[str, JSON], key: Any) -> int:
    return len(key) if isinstance(parent, dict) else 0


def _segments(pointer: str | None) -> list[str]:
    if pointer is None:
        raise PatchError("'from' is missing")
    segments = pointer.split("/")
    if segments[0]:
        raise PatchError(f"{pointer!r} does not start with '/'")
    if "~" in pointer:
        if pointer.count("~") != pointer.count("~0") + pointer.count("~1"):
            raise PatchError(f"{pointer!r} has a '~' that is not part of '~0' or '~1'")
        segments = [segment.replace("~1", "/").replace("~0", "~") for segment in segments]
    return segments


def _with_parents(root: JSON, path: str, budget: MemoryBudget) -> JSON:
    """Create the missing parents of `path` by the server's rule, and return the root.

    The server's rule differs from JSON Pointer: slashes at both ends of the path are ignored, `~0`
    and `~1` are not unescaped, and each segment for which `str.isdigit` is True is an index.
    """
    parts = path.strip("/").split("/")
    if root is None:
        budget.charge(VALUE_SIZE)
        root = [] if parts[0] == "-" or parts[0].isdigit() else {}
    node: JSON = root
    for part, following in pairwise(parts):
        if part == "-":
            raise PatchError("'-' must be the last segment of a path")
        if part.isdigit():
            if not isinstance(node, list):
                raise PatchError(f"{part!r} is an index, but its parent is not a list")
            index = _integer(part)
            missing = index + 1 - len(node)
            if missing > 0:
                budget.charge_work((missing - 1) * VALUE_SIZE)
                budget.charge(missing * VALUE_SIZE)
                node.extend([] if following.isdigit() else {} for _ in range(missing))
            node = node[index]
        else:
            if not isinstance(node, dict):
                raise PatchError(f"{part!r} is a key, but its parent is not an object")
            if part not in node:
                budget.charge(VALUE_SIZE + len(part))
                node[part] = [] if following.isdigit() else {}
            elif following.isdigit() and not isinstance(node[part], list):
                budget.remaining += measure(node[part])[0] - VALUE_SIZE
                node[part] = []
            node = node[part]
    return root


def _add(root: _Root, segments: list[str], value: JSON, size: int, budget: MemoryBudget) -> None:
    if value is None and len(segments) == 1:
        raise PatchError("the document cannot be null")
    parent, key = _place(root, segments)
    if isinstance(parent, dict):
        old = measure(parent[key])[0] if key in parent else -len(key)
        budget.charge(size - old)
        parent[key] = value
    elif key > len(parent):
        raise PatchError(f"index {key} is beyond the end of the list")
    else:
        budget.charge(size)
        parent.insert(key, value)


def _replace(
    root: _Root, segments: list[str], value: JSON, size: int, budget: MemoryBudget
) -> None:
    parent, key = _place(root, segments)
    budget.charge(size - measure(_item(parent, key))[0])
    parent[key] = value


def _move(root: _Root, segments: list[str], source: list[str], budget: MemoryBudget) -> None:
    parent, key = _place(root, source)
    value = _item(parent, key)
    if segments == source:
        return
    if segments[: len(source)] == source:
        raise PatchError("a value cannot be moved into itself")
    if len(segments) > len(source):
        _check_depth(segments, budget.charge_copy(value)[1])
    del parent[key]
    try:
        # Pass the size 0 to `_add`, because the memory budget already includes the moved value.
        _add(root, segments, value, 0, budget)
    except PatchError:
        if isinstance(parent, dict):
            parent[key] = value
        else:
            parent.insert(key, value)
        raise
    budget.remaining += _key_size(parent, key)


def _value(root: _Root, segments: list[str]) -> JSON:
    return _item(*_place(root, segments))


def _place(root: _Root, segments: list[str]) -> tuple[list[JSON] | dict[str, JSON], Any]:
    """Return the list or object that contains a value, and the index or key of the value.

    The value need not exist, but its parent must. The index of `-` is the length of the list.
    """
    parent: list[JSON] | dict[str, JSON] = root
    key: Any = segments[0]
    for segment in segments[1:]:
        parent, key = _key(_item(parent, key), segment)
    return parent, key


def _key(node: JSON, segment: str) -> tuple[list[JSON] | dict[str, JSON], Any]:
    if isinstance(node, dict):
        return node, segment
    if not isinstance(node, list):
        raise PatchError(f"the parent of {segment!r} is not a list or an object")
    if segment == "-":
        return node, len(node)
    if not (segment.isascii() and segment.isdigit()) or (segment[0] == "0" and segment != "0"):
        raise PatchError(f"{segment!r} is not an index")
    return node, _integer(segment)


def _item(parent: list[JSON] | dict[str, JSON], key: Any) -> JSON:
    try:
        item: JSON = parent[key]
    except LookupError:
        raise PatchError(f"{key!r} does not exist") from None
    return item


def _integer(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:
        # `str.isdigit` accepts characters such as '²', which `int` rejects. `int` also rejects very
        # long strings.
        raise PatchError(f"{digits[:20]!r} is not an index") from None


def _equal(left: JSON, right: JSON) -> bool:
    """Return whether two values are equal by RFC 6902, section 4.6: true and 1 are different."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_equal(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_equal, left, right))
    return left == right and isinstance(left, bool) == isinstance(right, bool)
