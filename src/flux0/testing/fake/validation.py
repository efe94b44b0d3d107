"""How the released server checks requests: by FastAPI's rules, in pydantic's words.

Measured against flux0-api 0.1.0b3 with FastAPI 0.165 and pydantic 2.14.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, cast

from attrs import field, frozen

from flux0.ports import Request
from flux0.testing.fake.calls import Target

# What is wrong with a value: pydantic's name for it, its words, and what these are about.
Problem: TypeAlias = tuple[str, str, dict[str, object]]
Check: TypeAlias = Callable[[Any], Problem | None]

ID_LENGTH: Final = 10

_NO_BODY = object()
_INTEGER = re.compile(r"[+-]?[0-9]+(?:_[0-9]+)*(?:\.0+)?")
_MOST_DIGITS = 4300
_TOO_LONG = re.compile(rf"-?[1-9][0-9]{{{_MOST_DIGITS},}}")
_TRUE = frozenset({"1", "on", "t", "true", "y", "yes"})
_FALSE = frozenset({"0", "off", "f", "false", "n", "no"})


class Refusal(Exception):
    """The server refuses a request; `detail` is a text, or a list of what is wrong."""

    def __init__(self, status_code: int, detail: object) -> None:
        super().__init__(status_code, detail)
        self.status_code: int = status_code
        self.detail: object = detail


class ServerFailure(Exception):
    """The server fails on a request, and answers 500."""


def text(shortest: int = 0, longest: int | None = None) -> Check:
    """Return the check of a text of so many characters."""

    def check(value: object) -> Problem | None:
        if not isinstance(value, str):
            return "string_type", "Input should be a valid string", {}
        if (shortest or longest is not None) and not _is_unicode(value):
            message = "Input should be a valid string, unable to parse raw data as a unicode string"
            return "string_unicode", message, {}
        if len(value) < shortest:
            message = f"String should have at least {_characters(shortest)}"
            return "string_too_short", message, {"min_length": shortest}
        if longest is not None and len(value) > longest:
            message = f"String should have at most {_characters(longest)}"
            return "string_too_long", message, {"max_length": longest}
        return None

    return check


def choice(*names: str) -> Check:
    """Return the check of one of some names."""
    *most, last = (repr(name) for name in names)
    expected = f"{', '.join(most)} or {last}"
    problem: Problem = "enum", f"Input should be {expected}", {"expected": expected}
    return lambda value: None if isinstance(value, str) and value in names else problem


def integer_of(text: str) -> int | None:
    """Return the integer that a text stands for, if it does."""
    digits = text.strip()
    number = digits.partition(".")[0].replace("_", "")
    if not _INTEGER.fullmatch(digits) or len(number.lstrip("+-0")) > _MOST_DIGITS:
        return None
    return (-1 if number.startswith("-") else 1) * int(number.lstrip("+-0") or 0)


def integer(text: str) -> Problem | None:
    """Check a text that stands for an integer."""
    if integer_of(text) is not None:
        return None
    if _TOO_LONG.match(text):
        message = "Unable to parse input string as an integer, exceeded maximum size"
        return "int_parsing_size", message, {}
    message = "Input should be a valid integer, unable to parse string as an integer"
    return "int_parsing", message, {}


def flag(text: str) -> Problem | None:
    """Check a text that stands for true or false."""
    if text.lower() in _TRUE | _FALSE:
        return None
    return "bool_parsing", "Input should be a valid boolean, unable to interpret input", {}


IS_ID: Final = text(ID_LENGTH, ID_LENGTH)


@frozen
class Form:
    """What an operation takes beside the ids in its path.

    Attributes:
        query: the checks of its parameters.
        members: the checks of the members of its body, which is an object; None without one.
        optional: those of them that may be missing or null.
        items: the check of the items of its body, which may be a list.
    """

    query: Mapping[str, Check] = field(factory=dict[str, Check])
    members: Mapping[str, Check] | None = None
    optional: frozenset[str] = frozenset()
    items: Check | None = None

    def read(self, request: Request, target: Target) -> Any:
        """Return the body, or raise a `Refusal` that says all that is wrong with a request."""
        body: Any = _body_of(request) if self.members or self.items else _NO_BODY
        problems: list[dict[str, Any]] = []

        def note(found: Problem | None, value: Any, *place: str | int) -> None:
            if found is not None:
                kind, message, context = found
                problem = {"type": kind, "loc": list(place), "msg": message, "input": value}
                problems.append({**problem, "ctx": context} if context else problem)

        for name, value in target.arguments.items():
            note(IS_ID(value), value, "path", name)
        for name, check in self.query.items():
            if name in target.query:
                note(check(target.query[name]), target.query[name], "query", name)
        if self.members is not None:
            self._check_members(body, self.members, note)
        elif self.items is not None and isinstance(body, list):
            for index, item in enumerate(body):  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType] - JSON
                note(self.items(item), item, "body", index)
        elif body is not _NO_BODY and body is not None:
            note(("list_type", "Input should be a valid list", {}), body, "body")
        else:
            body = []
        if problems:
            raise Refusal(422, problems)
        return body  # pyright: ignore[reportUnknownVariableType] - JSON

    def _check_members(
        self, body: Any, members: Mapping[str, Check], note: Callable[..., None]
    ) -> None:
        missing: Problem = "missing", "Field required", {}
        extra: Problem = "extra_forbidden", "Extra inputs are not permitted", {}
        if body is _NO_BODY:
            note(missing, None, "body")
        elif not isinstance(body, dict):
            message = "Input should be a valid dictionary or object to extract fields from"
            note(("model_attributes_type", message, {}), body, "body")
        else:
            given = cast("dict[str, Any]", body)
            for name, check in members.items():
                if name not in given and name not in self.optional:
                    note(missing, given, "body", name)
                elif name not in self.optional or given.get(name) is not None:
                    note(check(given[name]), given[name], "body", name)
            for name, value in given.items():
                if name not in members:
                    note(extra, value, "body", name)


def _body_of(request: Request) -> object:
    """Return the JSON that a request brings, if any.

    What is not declared as JSON is a text. FastAPI reads it before it checks anything else.
    """
    if not request.body:
        return _NO_BODY
    if not _is_json(next(iter(request.headers.get_all("content-type")), "")):
        try:
            return request.body.decode("utf-8")
        except UnicodeDecodeError:
            raise ServerFailure from None
    try:
        return json.loads(request.body)
    except json.JSONDecodeError as error:
        problem = {
            "type": "json_invalid",
            "loc": ["body", error.pos],
            "msg": "JSON decode error",
            "input": {},
            "ctx": {"error": error.msg},
        }
        raise Refusal(422, [problem]) from None
    except (ValueError, RecursionError):
        raise Refusal(400, "There was an error parsing the body") from None


def _is_json(content_type: str) -> bool:
    kind, _, subtype = content_type.partition(";")[0].strip().lower().partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # A surrogate without its other half, which JSON can spell.
        return False
    return True


def _characters(number: int) -> str:
    return f"{number} character" if number == 1 else f"{number} characters"
