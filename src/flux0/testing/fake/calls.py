"""The calls that a fake received, and the calls that a test expects."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from difflib import SequenceMatcher
from typing import Any, Final, TypeVar
from urllib.parse import unquote

from attrs import field, frozen

from flux0.domain.errors import TransportError
from flux0.domain.headers import Headers
from flux0.ports import Request, Response
from flux0.testing.fake.operations import check_operation_name, target_from, user_of

T = TypeVar("T")

_MISSING: Final = object()
# At most `_MAX_COMPARED` characters of each string are compared, because the time for the
# comparison of two strings can grow with the square of their length.
_MAX_COMPARED = 1000


@frozen
class CallResponse:
    """The response to a call, as the client received it.

    Attributes:
        status_code: the response's HTTP status.
        headers: the response's header fields.
        body: the parsed JSON, or the bytes of a body that is not JSON. It is None for a stream or
            an empty body.
    """

    status_code: int
    headers: Headers
    body: Any


@frozen
class ReceivedCall:
    """A request that a fake received.

    Attributes:
        operation: the API operation, such as `sessions.create_event`; empty if the request matches
            no operation.
        method: the request's HTTP method.
        path: the percent-decoded path, without the fake's `path_prefix`.
        query: the query parameters, percent-decoded.
        headers: the request's header fields.
        body: the parsed JSON, or the bytes of a body that is not JSON; None if the body is empty.
        arguments: the parameters from the path, the query and the body, by name. Query parameters
            are strings.
        time: the moment when the fake received the request, in seconds since 1970 on the fake's
            simulated clock.
        response: the response to the call, or the error that the call raised; None while the call
            waits for its response.
    """

    operation: str
    method: str
    path: str
    query: Mapping[str, str]
    headers: Headers
    body: Any
    arguments: Mapping[str, Any]
    time: float = field(default=0.0, eq=False)
    response: CallResponse | TransportError | None = field(default=None, eq=False)

    @property
    def user(self) -> str | None:
        """The user in the last cookie `flux0_user_sub`, percent-decoded; None without a cookie."""
        user = user_of(self.headers)
        return None if user is None else unquote(user)

    @property
    def name(self) -> str:
        """The operation, or the method and the path if the request matches no operation."""
        return self.operation or f"{self.method} {self.path}"

    def __str__(self) -> str:
        return _format_call(self.name, self.arguments)


@frozen
class ExpectedCall:
    operation: str
    arguments: Mapping[str, Any] = field(factory=dict[str, Any])

    def __attrs_post_init__(self) -> None:
        check_operation_name(self.operation)

    def __str__(self) -> str:
        return _format_call(self.operation, self.arguments)

    def differences(self, call: ReceivedCall) -> list[str]:
        lines: list[str] = []
        if call.operation != self.operation:
            lines.append(f"expected {self.operation}, got {call.name}")
        for name, expected in self.arguments.items():
            actual = call.arguments.get(name, _MISSING)
            if actual is _MISSING:
                lines.append(f"{name}: expected {expected!r}, got nothing")
            elif not _matches(expected, actual, in_query=actual == call.query.get(name)):
                lines.append(f"{name}: expected {expected!r}, got {actual!r}")
        return lines


def call_from(request: Request, time: float = 0.0, prefix: str = "") -> ReceivedCall:
    target, body = target_from(request, prefix), json_or_bytes(request.body)
    operation = "" if target.operation is None else target.operation.name
    query, arguments = target.query, {**target.query, **target.arguments}
    if isinstance(body, dict):
        arguments.update(body)  # pyright: ignore[reportUnknownArgumentType] - JSON
    elif operation == "sessions.list_events" and body is not None:
        arguments["types"] = body
    method, headers = request.method, request.headers
    return ReceivedCall(operation, method, target.path, query, headers, body, arguments, time)


def nearest(target: object, candidates: Iterable[T], compare: Callable[[T], Iterable[str]]) -> str:
    def similarity(candidate: T) -> tuple[bool, float]:
        first, second = (str(each)[:_MAX_COMPARED] for each in (target, candidate))
        operations = {text.partition("(")[0].rpartition(" ")[2] for text in (first, second)}
        return len(operations) == 1, SequenceMatcher(None, first, second).ratio()

    found = max(candidates, key=similarity, default=None)
    return "" if found is None else "\n  ".join((str(found), *compare(found)))


def raise_if(heading: str, problems: list[str]) -> None:
    if problems:
        raise AssertionError("\n".join((heading, *problems)))


def json_or_bytes(body: bytes | None) -> Any:
    if not body:
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body


def _matches(expected: object, actual: object, *, in_query: bool) -> bool:
    # `actual` was sent as JSON, in which tuples become lists. Therefore, `actual` also matches
    # `expected` after a conversion of `expected` to JSON and back. In a query, all values are
    # strings, so `actual` also matches the JSON text of `expected`, such as "true".
    text = json.dumps(expected, default=repr)
    return actual in [expected, json.loads(text), *([text] * in_query)]


def _format_call(name: str, arguments: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def complete_response(
    status_code: int, content_type: str, body: bytes, *fields: tuple[str, str]
) -> Response[bytes]:
    own = (("content-length", str(len(body))), ("content-type", content_type))
    return Response(status_code, Headers((*fields, *own)), body)


def internal_server_error() -> Response[bytes]:
    return complete_response(500, "text/plain; charset=utf-8", b"Internal Server Error")
