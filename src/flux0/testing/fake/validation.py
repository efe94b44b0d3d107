"""How the released server checks requests: by FastAPI's rules, in pydantic's words.

Measured against flux0-api 0.1.0b3 with FastAPI 0.165 and pydantic 2.14.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final, TypeAlias, cast

from attrs import field, frozen

from flux0.ports import Request

Location: TypeAlias = tuple[str | int, ...]

NO_BODY: Final = object()

_INTEGER = re.compile(r"[+-]?[0-9]+(?:_[0-9]+)*(?:\.0+)?")
_MOST_DIGITS = 4300
_TOO_LONG = re.compile(rf"-?[1-9][0-9]{{{_MOST_DIGITS},}}")
_TRUE = frozenset({"1", "on", "t", "true", "y", "yes"})
_FALSE = frozenset({"0", "off", "f", "false", "n", "no"})


class Refusal(Exception):
    """The server refuses a request; `detail` is a text, or a list of what is wrong."""

    def __init__(self, status_code: int, detail: object) -> None:
        super().__init__(status_code, detail)
        self.status_code = status_code
        self.detail = detail


class ServerFailure(Exception):
    """The server fails on a request, and answers 500."""


@frozen
class Text:
    """A member of a body that is a text of so many characters."""

    required: bool = True
    shortest: int = 0
    longest: int | None = None


@frozen
class Choice:
    """A member of a body that is one of some names."""

    names: tuple[str, ...]
    required: bool = field(default=True, init=False)


def body_of(request: Request) -> object:
    """Return the JSON that a request brings, or `NO_BODY`.

    What is not declared as JSON is a text. FastAPI reads it before it checks anything else.
    """
    if not request.body:
        return NO_BODY
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


class Checks:
    """The checks of one request, which go on to the last to say all that is wrong."""

    def __init__(self) -> None:
        self._problems: list[dict[str, Any]] = []

    def conclude(self) -> None:
        """Raise a `Refusal` if anything was wrong."""
        if self._problems:
            raise Refusal(422, self._problems)

    def text(
        self, location: Location, value: object, *, shortest: int = 0, longest: int | None = None
    ) -> None:
        """Check a text."""
        if not isinstance(value, str):
            self._refuse("string_type", location, "Input should be a valid string", value)
        elif (shortest or longest is not None) and not _is_unicode(value):
            message = "Input should be a valid string, unable to parse raw data as a unicode string"
            self._refuse("string_unicode", location, message, value)
        elif len(value) < shortest:
            message = f"String should have at least {_characters(shortest)}"
            self._refuse("string_too_short", location, message, value, min_length=shortest)
        elif longest is not None and len(value) > longest:
            message = f"String should have at most {_characters(longest)}"
            self._refuse("string_too_long", location, message, value, max_length=longest)

    def choice(self, location: Location, value: object, names: tuple[str, ...]) -> None:
        """Check that it is one of some names."""
        if not isinstance(value, str) or value not in names:
            *most, last = (repr(name) for name in names)
            expected = f"{', '.join(most)} or {last}"
            self._refuse("enum", location, f"Input should be {expected}", value, expected=expected)

    def integer(self, location: Location, text: str) -> int:
        """Check a text that stands for an integer and return that."""
        digits = text.strip()
        if _INTEGER.fullmatch(digits):
            number = digits.partition(".")[0].replace("_", "")
            if len(number.lstrip("+-0")) <= _MOST_DIGITS:
                sign = -1 if number.startswith("-") else 1
                return sign * int(number.lstrip("+-0") or 0)
        if _TOO_LONG.match(text):
            message = "Unable to parse input string as an integer, exceeded maximum size"
            self._refuse("int_parsing_size", location, message, text)
        else:
            message = "Input should be a valid integer, unable to parse string as an integer"
            self._refuse("int_parsing", location, message, text)
        return 0

    def flag(self, location: Location, text: str) -> None:
        """Check a text that stands for true or false."""
        if text.lower() not in _TRUE | _FALSE:
            message = "Input should be a valid boolean, unable to interpret input"
            self._refuse("bool_parsing", location, message, text)

    def members(self, body: object, members: Mapping[str, Text | Choice]) -> dict[str, Any]:
        """Check a body that is an object with some members and no others, and return it."""
        if body is NO_BODY:
            self._refuse("missing", ("body",), "Field required", None)
            return {}
        if not isinstance(body, dict):
            message = "Input should be a valid dictionary or object to extract fields from"
            self._refuse("model_attributes_type", ("body",), message, body)
            return {}
        given = cast("dict[str, Any]", body)
        for name, member in members.items():
            self._member(given, name, member)
        for name, value in given.items():
            if name not in members:
                message = "Extra inputs are not permitted"
                self._refuse("extra_forbidden", ("body", name), message, value)
        return given

    def names(self, body: object, names: tuple[str, ...]) -> list[str]:
        """Check a body that is a list of names, or is not there, and return it."""
        if body is NO_BODY or body is None:
            return []
        if not isinstance(body, list):
            self._refuse("list_type", ("body",), "Input should be a valid list", body)
            return []
        given = cast("list[str]", body)
        for index, name in enumerate(given):
            self.choice(("body", index), name, names)
        return given

    def _member(self, body: dict[str, Any], name: str, member: Text | Choice) -> None:
        location = ("body", name)
        if member.required and name not in body:
            self._refuse("missing", location, "Field required", body)
        elif not member.required and body.get(name) is None:
            pass
        elif isinstance(member, Choice):
            self.choice(location, body[name], member.names)
        else:
            self.text(location, body[name], shortest=member.shortest, longest=member.longest)

    def _refuse(
        self, kind: str, location: Location, message: str, value: object, **context: object
    ) -> None:
        problem = {"type": kind, "loc": list(location), "msg": message, "input": value}
        self._problems.append({**problem, "ctx": context} if context else problem)


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # A surrogate without its other half, which JSON can spell.
        return False
    return True


def _characters(number: int) -> str:
    return f"{number} character" if number == 1 else f"{number} characters"
