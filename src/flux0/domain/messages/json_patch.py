"""JSON Patch on a document in the making, as the flux0 server applies it.

The operations are those of RFC 6902 on the pointers of RFC 6901. Measured against the released
server (flux0-stream 0.1.0b2 over jsonpatch 1.48), which does more than the RFCs say: before each
operation it creates the parents that the path lacks, and what it created stays when the operation
then fails.
"""

from __future__ import annotations

from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING, Any, TypeAlias, cast

if TYPE_CHECKING:
    from flux0.domain.stream_events import JSONPatchOperation

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

# The server grows a list up to any index; here a few bytes must not claim gigabytes.
GROWTH_LIMIT = 10_000

_OPERATIONS = frozenset({"add", "remove", "replace", "move", "copy", "test"})


class PatchError(ValueError):
    """An operation cannot be applied; the text says why."""


def check_operation(operation: JSONPatchOperation) -> None:
    """Check what can be told without the document.

    Raises:
        PatchError: no such operation, or `path` is not a JSON Pointer.
    """
    if operation.op not in _OPERATIONS:
        raise PatchError(f"unknown operation {operation.op!r}")
    _segments(operation.path)


def apply_operation(document: JSON, operation: JSONPatchOperation) -> JSON:
    """Apply one operation to `document` in place and return the document's root from now on.

    None stands for a document that does not exist yet. The operation's value is copied. The cost
    is that of the path and the value, not of the document; but `copy` and `test` take as long as
    what they copy or compare is large, and inserting into a list moves what follows.

    Raises:
        PatchError: the operation does not apply. The document is as it was, but for the parents
            that were created on the way.
    """
    segments = _segments(operation.path)
    root = _with_parents(document, operation.path)
    match operation.op:
        case "add":
            return _add(root, segments, copied(operation.value))
        case "replace":
            return _replace(root, segments, copied(operation.value))
        case "remove":
            parent, key = _existing(root, segments)
            parent.pop(key)
        case "move":
            return _move(root, segments, _segments(operation.from_))
        case "copy":
            return _add(root, segments, copied(_value(root, _segments(operation.from_))))
        case "test":
            if not _equal(_value(root, segments), operation.value):
                raise PatchError("the value is not the one that was tested for")
        case _:
            check_operation(operation)
    return root


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


def _with_parents(root: JSON, path: str) -> JSON:
    """Create what `path` leads through, by the server's rule, and return the root.

    The rule is not that of JSON Pointer: outer slashes count for nothing, nothing is unescaped,
    and whatever `str.isdigit` accepts is an index.
    """
    if path in {"", "/"}:
        return {} if root is None else root
    parts = path.strip("/").split("/")
    if root is None:
        root = [] if parts[0] == "-" or parts[0].isdigit() else {}
    node: JSON = root
    for part, following in pairwise(parts):
        if part == "-":
            raise PatchError("'-' can only end a path")
        if part.isdigit():
            if not isinstance(node, list):
                raise PatchError(f"{part!r} needs a list")
            index = _integer(part)
            if index >= len(node) + GROWTH_LIMIT:
                raise PatchError(f"{part!r} is too far behind the end of the list")
            while len(node) <= index:
                node.append([] if following.isdigit() else {})
            node = node[index]
        else:
            if not isinstance(node, dict):
                raise PatchError(f"{part!r} needs an object")
            if part not in node:
                node[part] = [] if following.isdigit() else {}
            elif following.isdigit() and not isinstance(node[part], list):
                node[part] = []
            node = node[part]
    return root


def _add(root: JSON, segments: list[str], value: JSON) -> JSON:
    if not segments:
        if value is None:
            raise PatchError("the document cannot be null")
        return value
    parent, key = _place(root, segments)
    if isinstance(parent, dict):
        parent[key] = value
    elif key > len(parent):
        raise PatchError(f"{key} is behind the end of the list")
    else:
        parent.insert(key, value)
    return root


def _replace(root: JSON, segments: list[str], value: JSON) -> JSON:
    if not segments:
        return _add(root, segments, value)
    parent, key = _existing(root, segments)
    parent[key] = value
    return root


def _move(root: JSON, segments: list[str], source: list[str]) -> JSON:
    if segments == source:
        _value(root, source)
        return root
    if segments[: len(source)] == source:
        raise PatchError("a value cannot move into itself")
    parent, key = _existing(root, source)
    value = parent.pop(key)
    try:
        return _add(root, segments, value)
    except PatchError:
        if isinstance(parent, dict):
            parent[key] = value
        else:
            parent.insert(key, value)
        raise


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
