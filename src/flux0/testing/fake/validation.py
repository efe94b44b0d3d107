"""The released server's checks of requests, with FastAPI's rules and pydantic's messages.

Observed with flux0-api 0.1.0b3, FastAPI 0.165 and pydantic 2.14.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from math import inf
from typing import Any, Final, TypeAlias, cast

from attrs import field, frozen

from flux0.ports import Request

# A problem with a value: the name of pydantic's error, and the parameters of the error message.
Problem: TypeAlias = tuple[str, dict[str, object]]
Check: TypeAlias = Callable[[Any], Problem | None]

ID_LENGTH: Final = 10

_NO_TEXT: Final = "Input should be a valid string"
MESSAGES: Mapping[str, str] = {
    "bool_parsing": "Input should be a valid boolean, unable to interpret input",
    "enum": "Input should be {expected}",
    "dict_type": "Input should be a valid dictionary",
    "extra_forbidden": "Extra inputs are not permitted",
    "int_parsing": "Input should be a valid integer, unable to parse string as an integer",
    "int_parsing_size": "Unable to parse input string as an integer, exceeded maximum size",
    "json_invalid": "JSON decode error",
    "list_type": "Input should be a valid list",
    "missing": "Field required",
    "model_attributes_type": "Input should be a valid dictionary or object to extract fields from",
    "string_too_long": "String should have at most {max_length} characters",
    "string_too_short": "String should have at least {min_length} characters",
    "string_type": _NO_TEXT,
    "string_unicode": f"{_NO_TEXT}, unable to parse raw data as a unicode string",
}
_NO_BODY = object()
_INTEGER = re.compile(r"[+-]?[0-9]+(?:_[0-9]+)*(?:\.0+)?")
_TOO_LONG = re.compile(r"-?[1-9][0-9]{4300,}")
# The pattern `_SURROGATE` matches a lone surrogate, which JSON can contain as an escape, such as
# `\ud800`.
_SURROGATE = re.compile("[\\ud800-\\udfff]")
_FLAGS = frozenset({"1", "on", "t", "true", "y", "yes", "0", "off", "f", "false", "n", "no"})
_JSON = re.compile(r"\s*application/([^;]*\+)?json\s*(;|$)", re.IGNORECASE)


@frozen
class RequestRejected(Exception):
    """The server rejects a request. `detail` is a string or a list of problems."""

    status_code: int
    detail: object


def text(shortest: int = 0, longest: float = inf) -> Check:
    def check(value: object) -> Problem | None:
        if not isinstance(value, str):
            return "string_type", {}
        if (shortest or longest < inf) and _SURROGATE.search(value):
            return "string_unicode", {}
        if len(value) < shortest:
            return "string_too_short", {"min_length": shortest}
        return ("string_too_long", {"max_length": longest}) if len(value) > longest else None

    return check


def choice(*names: str) -> Check:
    *most, last = (repr(name) for name in names)
    found: Problem = "enum", {"expected": f"{', '.join(most)} or {last}"}
    return lambda value: None if isinstance(value, str) and value in names else found


def optional(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def integer_of(text: str) -> int | None:
    number = text.strip().partition(".")[0].replace("_", "")
    digits = number.lstrip("+-0")
    if not _INTEGER.fullmatch(text.strip()) or len(digits) > 4300:  # noqa: PLR2004
        return None
    return (-1 if number[0] == "-" else 1) * int(digits or 0)


def integer(text: str) -> Problem | None:
    problem = "int_parsing_size" if _TOO_LONG.match(text) else "int_parsing"
    return (problem, {}) if integer_of(text) is None else None


def flag(text: str) -> Problem | None:
    return None if text.lower() in _FLAGS else ("bool_parsing", {})


def mapping(value: object) -> Problem | None:
    return None if isinstance(value, dict) else ("dict_type", {})


IS_ID: Final = text(ID_LENGTH, ID_LENGTH)


@frozen
class Form:
    """The checks of the query, the body and the ids in the path of requests to one operation."""

    # If `members` is not None, the request body must be a JSON object. `members` maps the name of
    # each member to the function that checks the member's value.
    members: Mapping[str, Check] | None = None
    # If `items` is not None, the request body must be a JSON array or missing. The function `items`
    # checks each item of the array.
    items: Check | None = None
    query: Mapping[str, Check] = field(factory=dict[str, Check])

    def read(self, request: Request, arguments: Mapping[str, str], query: Mapping[str, str]) -> Any:
        body: Any = _body_of(request) if self.members or self.items else _NO_BODY
        queries = ((name, query[name]) for name in self.query if name in query)
        checked = (
            *((IS_ID(value), value, "path", name) for name, value in arguments.items()),
            *((self.query[name](value), value, "query", name) for name, value in queries),
            *self._body(body),
        )
        problems = [_problem(found, value, *place) for found, value, *place in checked if found]
        if problems:
            raise RequestRejected(422, problems)
        return [] if body is _NO_BODY or body is None else body

    def _body(self, body: Any) -> Iterator[tuple[Any, ...]]:
        if self.members is not None and body is _NO_BODY:
            yield ("missing", {}), None, "body"
        elif self.members is not None and not isinstance(body, dict):
            yield ("model_attributes_type", {}), body, "body"
        elif self.members is not None:
            members = cast("dict[str, Any]", body)
            for name, check in self.members.items():
                if name in members:
                    yield check(members[name]), members[name], "body", name
                elif check(None):
                    yield ("missing", {}), members, "body", name
            for name, value in members.items():
                if name not in self.members:
                    yield ("extra_forbidden", {}), value, "body", name
        elif self.items is not None and isinstance(body, list):
            for index, item in enumerate(body):  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType] - JSON
                yield self.items(item), item, "body", index
        elif body is not _NO_BODY and body is not None:
            yield ("list_type", {}), body, "body"


def _problem(found: Problem, value: object, *place: str | int) -> dict[str, Any]:
    kind, context = found
    message = MESSAGES[kind].format(**context).replace(" 1 characters", " 1 character")
    problem = {"type": kind, "loc": list(place), "msg": message, "input": value}
    return {**problem, "ctx": context} if context else problem


def is_json(content_type: str) -> bool:
    return bool(_JSON.match(content_type))


def _body_of(request: Request) -> object:
    if not request.body:
        return _NO_BODY
    if not is_json(next(iter(request.headers.get_all("content-type")), "")):
        return request.body.decode("utf-8")
    try:
        return json.loads(request.body)
    except json.JSONDecodeError as error:
        found: Problem = "json_invalid", {"error": error.msg}
        raise RequestRejected(422, [_problem(found, {}, "body", error.pos)]) from None
    except (ValueError, RecursionError):
        raise RequestRejected(400, "There was an error parsing the body") from None
