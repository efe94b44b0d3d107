"""JSON Patch on a document in the making, as the flux0 server applies it.

The operations are those of RFC 6902 on the pointers of RFC 6901. Measured against the released
server (flux0-stream 0.1.0b2 over jsonpatch 1.48), which does more than the RFCs say: before each
operation it creates the parents that the path lacks, and what it created stays when the operation
then fails.
"""

from __future__ import annotations

from itertools import pairwise
from math import isfinite
from sys import maxsize
from typing import TYPE_CHECKING, Any, TypeAlias, cast

if TYPE_CHECKING:
    from flux0.domain.stream_events import JSONPatchOperation

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

# The most lists and objects within each other. Python's own functions, such as `repr` and
# `copy.deepcopy`, follow nested values by recursion, and fail at a few hundred levels.
MAX_DEPTH = 200

# What a value counts as, besides the characters of a text or key: about what Python needs for it.
VALUE_SIZE = 64

_OPERATIONS = frozenset({"add", "remove", "replace", "move", "copy", "test"})


class PatchError(ValueError):
    """An operation cannot be applied; the text says why."""


class MemoryBudget:
    """How much the documents of a turn may hold.

    Each value counts for `VALUE_SIZE` bytes, and each character of a text or key for one more. What
    is removed makes budget again.

    Work that the stream does not pay for with bytes of its own is limited too, and for good: what
    `copy` adds, what `move` looks through, and the items that fill a list up to an index.
    """

    __slots__ = ("left", "limit", "unpaid")

    def __init__(self, limit: int) -> None:
        self.limit: int = limit
        self.left: int = limit
        self.unpaid: int = limit

    def take(self, size: int) -> None:
        """Count what a document gains; raises `PatchError` if there is no budget for it."""
        if size > self.left:
            raise PatchError(f"the turn's messages would hold more than {self.limit:,} bytes")
        self.left -= size

    def work(self, size: int) -> None:
        """Count work that the stream does not pay for; raises `PatchError` if it is too much."""
        if size > self.unpaid:
            raise PatchError(f"the turn has copied or moved more than {self.limit:,} bytes")
        self.unpaid -= size

    def measure(self, value: JSON) -> tuple[int, int]:
        """Return size and depth of what is to be copied or moved, which is work of that size."""
        size, depth = measure(value, most=self.unpaid)
        if size > self.unpaid:
            self.unpaid = 0  # That was work too.
        self.work(size)
        return size, depth


def check_operation(operation: JSONPatchOperation) -> None:
    """Check what can be told without the document.

    Raises:
        PatchError: no such operation, or `path` is not a JSON Pointer.
    """
    if operation.op not in _OPERATIONS:
        raise PatchError(f"unknown operation {operation.op!r}")
    _segments(operation.path)


def apply_operation(document: JSON, operation: JSONPatchOperation, budget: MemoryBudget) -> JSON:
    """Apply one operation to `document` in place and return the document's root from now on.

    None stands for a document that does not exist yet. The operation's value is copied. The cost is
    that of the path, the value and what is removed, not that of the document; but `copy`, and
    `move` to a deeper place, cost as much as what they copy or move, and inserting into a list
    moves what follows.

    Raises:
        PatchError: the operation does not apply, or the document would be too large or too deep. It
            is as it was, except for the parents that were created on the way.
    """
    segments = _segments(operation.path)
    _check_depth(len(segments))
    left = budget.left
    try:
        return _applied(
            _with_parents(document, operation.path, budget), segments, operation, budget
        )
    except PatchError:
        if document is None:  # Then nothing is kept.
            budget.left = left
        raise


def _applied(
    root: JSON, segments: list[str], operation: JSONPatchOperation, budget: MemoryBudget
) -> JSON:
    match operation.op:
        case "add" | "replace":
            size, depth = measure(operation.value)
            _check_depth(len(segments) + depth)
            put = _add if operation.op == "add" else _replace
            return put(root, segments, copied(operation.value), size, budget)
        case "remove":
            parent, key = _existing(root, segments)
            budget.left += measure(parent.pop(key))[0] + _key_size(parent, key)
        case "move":
            return _move(root, segments, _segments(operation.from_), budget)
        case "copy":
            value = _value(root, _segments(operation.from_))
            size, depth = budget.measure(value)
            _check_depth(len(segments) + depth)
            return _add(root, segments, copied(value), size, budget)
        case "test":
            if not _equal(_value(root, segments), operation.value):
                raise PatchError("the value is not the one that was tested for")
        case _:
            check_operation(operation)
    return root


def measure(value: JSON, *, most: int = maxsize) -> tuple[int, int]:
    """Return what a value counts for, and how many lists and objects it has within each other.

    It stops, with less than the whole, once the size is more than `most`.
    """
    size, depth = VALUE_SIZE, 0
    level: list[JSON] = [value]
    while level:
        below: list[JSON] = []
        is_deeper = False
        for item in level:
            if isinstance(item, str):
                size += len(item)
            elif isinstance(item, (list, dict)):
                is_deeper = True
                size += VALUE_SIZE * len(item)
                if size > most:
                    return size, depth
                if isinstance(item, dict):
                    size += sum(map(len, item))
                    below += item.values()
                else:
                    below += item
        depth += is_deeper
        level = below
    return size, depth


def copied(value: JSON, *, finite: bool = False) -> JSON:
    """Return a copy of `value` that shares no list and no dict with it, however deep it is.

    With `finite`, null takes the place of NaN and the infinities.
    """
    if not isinstance(value, (list, dict, float)):
        return value
    holder: list[JSON] = [value]
    pending: list[list[JSON] | dict[str, JSON]] = [holder]
    while pending:
        container = pending.pop()
        slots = cast("dict[Any, JSON]", container)
        items = container.items() if isinstance(container, dict) else enumerate(container)
        for key, item in items:
            if isinstance(item, (list, dict)):
                slots[key] = copy = item.copy()
                pending.append(copy)
            elif finite and isinstance(item, float) and not isfinite(item):
                slots[key] = None
    return holder[0]


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise PatchError(f"more than {MAX_DEPTH} lists and objects would be within each other")


def _key_size(parent: list[JSON] | dict[str, JSON], key: Any) -> int:
    return len(key) if isinstance(parent, dict) else 0


def _segments(pointer: str | None) -> list[str]:
    if not pointer:
        if pointer is None:
            raise PatchError("'from' is missing")
        return []
    if pointer[0] != "/":
        raise PatchError(f"{pointer!r} does not start with '/'")
    segments = pointer.split("/")[1:]
    if "~" in pointer:
        if pointer.count("~") != pointer.count("~0") + pointer.count("~1"):
            raise PatchError(f"{pointer!r} holds a '~' that is neither '~0' nor '~1'")
        segments = [segment.replace("~1", "/").replace("~0", "~") for segment in segments]
    return segments


def _with_parents(root: JSON, path: str, budget: MemoryBudget) -> JSON:
    """Create what `path` leads through, by the server's rule, and return the root.

    The rule is not that of JSON Pointer: slashes at both ends count for nothing, nothing is
    unescaped, and whatever `str.isdigit` accepts is an index.
    """
    parts = path.strip("/").split("/")
    if root is None:
        budget.take(VALUE_SIZE)
        is_list = path not in {"", "/"} and (parts[0] == "-" or parts[0].isdigit())
        root = [] if is_list else {}
    if path in {"", "/"}:
        return root
    node: JSON = root
    for part, following in pairwise(parts):
        if part == "-":
            raise PatchError("'-' can only end a path")
        if part.isdigit():
            if not isinstance(node, list):
                raise PatchError(f"{part!r} needs a list")
            index = _integer(part)
            missing = index + 1 - len(node)
            if missing > 0:
                budget.work((missing - 1) * VALUE_SIZE)
                budget.take(missing * VALUE_SIZE)
                node.extend([] if following.isdigit() else {} for _ in range(missing))
            node = node[index]
        else:
            if not isinstance(node, dict):
                raise PatchError(f"{part!r} needs an object")
            if part not in node:
                budget.take(VALUE_SIZE + len(part))
                node[part] = [] if following.isdigit() else {}
            elif following.isdigit() and not isinstance(node[part], list):
                budget.left += measure(node[part])[0] - VALUE_SIZE
                node[part] = []
            node = node[part]
    return root


def _add(root: JSON, segments: list[str], value: JSON, size: int, budget: MemoryBudget) -> JSON:
    if not segments:
        if value is None:
            raise PatchError("the document cannot be null")
        budget.take(size - measure(root)[0])
        return value
    parent, key = _place(root, segments)
    if isinstance(parent, dict):
        old = measure(parent[key])[0] if key in parent else -len(key)
        budget.take(size - old)
        parent[key] = value
    elif key > len(parent):
        raise PatchError(f"{key} is behind the end of the list")
    else:
        budget.take(size)
        parent.insert(key, value)
    return root


def _replace(root: JSON, segments: list[str], value: JSON, size: int, budget: MemoryBudget) -> JSON:
    if not segments:
        return _add(root, segments, value, size, budget)
    parent, key = _existing(root, segments)
    budget.take(size - measure(parent[key])[0])
    parent[key] = value
    return root


def _move(root: JSON, segments: list[str], source: list[str], budget: MemoryBudget) -> JSON:
    value = _value(root, source)
    if segments == source:
        return root
    if segments[: len(source)] == source:
        raise PatchError("a value cannot move into itself")
    if len(segments) > len(source):
        _check_depth(len(segments) + budget.measure(value)[1])
    parent, key = _existing(root, source)
    del parent[key]
    try:
        # Its size is counted already, and so is the old key's; but that goes.
        root = _add(root, segments, value, 0, budget)
    except PatchError:
        if isinstance(parent, dict):
            parent[key] = value
        else:
            parent.insert(key, value)
        raise
    budget.left += _key_size(parent, key)
    return root


def _value(root: JSON, segments: list[str]) -> JSON:
    if not segments:
        return root
    parent, key = _existing(root, segments)
    value: JSON = parent[key]
    return value


def _existing(root: JSON, segments: list[str]) -> tuple[list[JSON] | dict[str, JSON], Any]:
    """Return `_place(root, segments)`, where there has to be something."""
    if not segments:
        raise PatchError("the whole document cannot be removed")
    parent, key = _place(root, segments)
    if key >= len(parent) if isinstance(parent, list) else key not in parent:
        raise PatchError(f"nothing is at {key!r}")
    return parent, key


def _place(root: JSON, segments: list[str]) -> tuple[list[JSON] | dict[str, JSON], Any]:
    """Return the container that the last segment refers into, and its index or key there.

    The `-` of a list comes back as the list's length.
    """
    node: JSON = root
    for segment in segments[:-1]:
        if isinstance(node, dict):
            if segment not in node:
                raise PatchError(f"nothing is at {segment!r}")
            node = node[segment]
        else:
            items, index = _index(node, segment)
            if index >= len(items):
                raise PatchError(f"nothing is at {segment!r}")
            node = items[index]
    if isinstance(node, dict):
        return node, segments[-1]
    return _index(node, segments[-1])


def _index(node: JSON, segment: str) -> tuple[list[JSON], int]:
    if not isinstance(node, list):
        raise PatchError(f"{segment!r} needs a list or an object")
    if segment == "-":
        return node, len(node)
    if not (segment.isascii() and segment.isdigit()) or (segment[0] == "0" and segment != "0"):
        raise PatchError(f"{segment!r} is not an index")
    return node, _integer(segment)


def _integer(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:
        # A digit such as '²', or more digits than Python reads.
        raise PatchError(f"{digits[:20]!r} is not an index") from None


def _equal(left: JSON, right: JSON) -> bool:
    """Compare as RFC 6902, section 4.6 does: to Python true is 1, to JSON it is not."""
    pending = [(left, right)]
    while pending:
        one, other = pending.pop()
        if isinstance(one, dict) and isinstance(other, dict):
            if one.keys() != other.keys():
                return False
            pending.extend((one[key], other[key]) for key in one)
        elif isinstance(one, list) and isinstance(other, list):
            if len(one) != len(other):
                return False
            pending.extend(zip(one, other, strict=True))
        elif one != other or isinstance(one, bool) != isinstance(other, bool):
            return False
    return True
