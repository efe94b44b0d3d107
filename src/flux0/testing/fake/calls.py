"""The calls that a fake was made, and the ones that a test expects, as values."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from difflib import SequenceMatcher, get_close_matches
from http.cookies import SimpleCookie
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from attrs import field, frozen

from flux0.domain.errors import InvalidArgument, TransportError
from flux0.domain.headers import Headers
from flux0.ports import Request, Response

T = TypeVar("T")

_MISSING: Final = object()
_LONGEST_COMPARED = 1000  # Characters: comparing two texts may take the product of their lengths.
_JSON = re.compile(r"\s*application/([^;]*\+)?json\s*(;|$)", re.IGNORECASE)


@frozen
class CallResponse:
    """The head of the answer to a call, and its body: the JSON or the bytes; None of a stream."""

    status_code: int
    headers: Headers
    body: Any


@frozen
class Call:
    """One request as it was sent.

    Attributes:
        operation: the API's name for it, such as `sessions.create_event`, or empty.
        method, path, query, headers: as sent, the path and the query decoded.
        body: the JSON that it brought, its bytes if they are not JSON, or None.
        arguments: what the path, the query and the body say, by name. Those of the query are texts.
        time: when it was made, by the fake's clock in seconds since 1970.
        answer: what came back, or the error that came instead; None while there is neither.
    """

    operation: str
    method: str
    path: str
    query: Mapping[str, str]
    headers: Headers
    body: Any
    arguments: Mapping[str, Any]
    time: float = field(default=0.0, eq=False)
    answer: CallResponse | TransportError | None = field(default=None, eq=False)

    @property
    def user(self) -> str | None:
        """Whom the cookie `flux0_user_sub` names."""
        return user_of(self.headers)

    @property
    def name(self) -> str:
        """The operation; of a request that is none, its method and path."""
        return self.operation or f"{self.method} {self.path}"

    def __str__(self) -> str:
        return _shown(self.name, self.arguments)


@frozen
class ExpectedCall:
    """A call of some operation, with at least these arguments."""

    operation: str
    arguments: Mapping[str, Any] = field(factory=dict[str, Any])

    def __attrs_post_init__(self) -> None:
        check_operation(self.operation)

    def __str__(self) -> str:
        return _shown(self.operation, self.arguments)

    def differences(self, call: Call) -> list[str]:
        """Return what is not as expected about `call`, one line each."""
        lines: list[str] = []
        if call.operation != self.operation:
            lines.append(f"expected {self.operation}, got {call.name}")
        for name, expected in self.arguments.items():
            actual = call.arguments.get(name, _MISSING)
            if actual is _MISSING:
                lines.append(f"{name}: expected {expected!r}, got nothing")
            elif not _same(expected, actual, in_query=actual == call.query.get(name)):
                lines.append(f"{name}: expected {expected!r}, got {actual!r}")
        return lines


def call_of(request: Request, time: float = 0.0) -> Call:
    """Return `request` as a call."""
    target, body = target_of(request), json_or_bytes(request.body)
    operation, query = target.operation, target.query
    arguments: dict[str, Any] = {**query, **target.arguments}
    if isinstance(body, dict):
        arguments.update(body)  # pyright: ignore[reportUnknownArgumentType] - JSON
    elif operation == "sessions.list_events" and body is not None:
        arguments["types"] = body
    method, headers = request.method, request.headers
    return Call(operation, method, target.path, query, headers, body, arguments, time)


def nearest(one: object, others: Iterable[T], differences: Callable[[T], Iterable[str]]) -> str:
    """Return, in words, which of `others` is most like `one`, if any, and what is different."""

    def likeness(other: T) -> tuple[bool, float]:
        first, second = (str(each)[:_LONGEST_COMPARED] for each in (one, other))
        operations = {text.partition("(")[0].rpartition(" ")[2] for text in (first, second)}
        return len(operations) == 1, SequenceMatcher(None, first, second).ratio()

    found = max(others, key=likeness, default=None)
    return "" if found is None else "\n  ".join((str(found), *differences(found)))


def user_of(headers: Headers) -> str | None:
    """Return whom the cookie `flux0_user_sub` names, as the server reads it: the last one."""
    user = None
    for cookie in ";".join(headers.get_all("cookie")).split(";"):
        name, _, value = cookie.partition("=")
        if name.strip() == "flux0_user_sub":
            user = SimpleCookie().value_decode(value.strip())[0]
    return user


def is_json(content_type: str) -> bool:
    """Return whether a header field announces JSON."""
    return bool(_JSON.match(content_type))


def json_or_bytes(body: bytes | None) -> Any:
    """Return the JSON that a body holds, its bytes if that is not JSON, or None if it is empty."""
    if not body:
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body


def _same(expected: object, actual: object, *, in_query: bool) -> bool:
    # A tuple is a list on the wire, and in a query everything is a text.
    text = json.dumps(expected, default=repr)
    return actual in [expected, json.loads(text), *([text] * in_query)]


def _shown(name: str, arguments: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def _pattern(template: str) -> re.Pattern[str]:
    # As in the server, whose `$` also lets a line break through.
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", template) + "$")


# In the server's order: where no method fits, the first route of a path says what is allowed.
_ROUTES = (
    ("agents.create", "POST", _pattern("/api/agents")),
    ("agents.retrieve", "GET", _pattern("/api/agents/{agent_id}")),
    ("agents.list", "GET", _pattern("/api/agents")),
    ("sessions.create", "POST", _pattern("/api/sessions")),
    ("sessions.retrieve", "GET", _pattern("/api/sessions/{session_id}")),
    ("sessions.list", "GET", _pattern("/api/sessions")),
    ("sessions.create_event", "POST", _pattern("/api/sessions/{session_id}/events/stream")),
    ("sessions.list_events", "GET", _pattern("/api/sessions/{session_id}/events")),
)
# A path that the server's are below, as behind a proxy.
_PREFIX = re.compile(r"(?!/api(?:/|$))(?:/[^/]+)+?(?=/api/)")


def check_operation(operation: str) -> None:
    """Raise InvalidArgument unless there is such an operation."""
    names = [name for name, _, _ in _ROUTES]
    if operation not in names:
        near = get_close_matches(operation, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"it must be one of {', '.join(names)}"
        raise InvalidArgument("operation", f"is not one of the API, {operation!r}: {hint}")


@frozen
class Target:
    """Where a request goes."""

    operation: str  # Empty where there is no such route.
    path: str  # Decoded, after a prefix.
    arguments: Mapping[str, str]
    query: Mapping[str, str]
    allowed: tuple[str, ...] = ()  # The methods of a path, if this is not among them.


def target_of(request: Request) -> Target:
    """Return where `request` goes. Of a query parameter that is repeated, the last counts."""
    url = urlsplit(request.url)
    path = _PREFIX.sub("", unquote(url.path), count=1)
    query = dict(parse_qsl(url.query, keep_blank_values=True))
    allowed: list[str] = []
    for operation, method, pattern in _ROUTES:
        found = pattern.match(path)
        if found is not None:
            if method == request.method:
                return Target(operation, path, found.groupdict(), query)
            allowed.append(method)
    return Target("", path, {}, query, tuple(allowed))


def whole_answer(
    status_code: int, content_type: str, body: bytes, *fields: tuple[str, str]
) -> Response[bytes]:
    """Return an answer whose body is there; `fields` come first in its head."""
    own = (("content-length", str(len(body))), ("content-type", content_type))
    return Response(status_code, Headers((*fields, *own)), body)


def server_failure() -> Response[bytes]:
    """Return what the server answers when it fails."""
    return whole_answer(500, "text/plain; charset=utf-8", b"Internal Server Error")
