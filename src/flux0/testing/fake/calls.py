"""The calls that a fake was made, and the ones that a test expects, as values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from difflib import SequenceMatcher
from http.cookies import SimpleCookie
from typing import Any, Final

from attrs import field, frozen

from flux0.domain.errors import TransportError
from flux0.domain.headers import Headers
from flux0.ports import Request
from flux0.testing.fake.routing import check_operation, target_of

_MISSING = object()


USER_COOKIE: Final = "flux0_user_sub"


@frozen
class CallAnswer:
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
    answer: CallAnswer | TransportError | None = field(default=None, eq=False)

    @property
    def user(self) -> str | None:
        """Whom the cookie `flux0_user_sub` names."""
        cookies = "; ".join(self.headers.get_all("cookie"))
        return next((value for name, value in cookie_pairs(cookies) if name == USER_COOKIE), None)

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
    target = target_of(request)
    body = json_or_bytes(request.body)
    arguments: dict[str, Any] = {**target.query, **target.arguments}
    if isinstance(body, dict):
        arguments.update(body)  # pyright: ignore[reportUnknownArgumentType] - JSON
    elif target.operation == "sessions.list_events" and body is not None:
        arguments["types"] = body
    return Call(
        operation=target.operation,
        method=request.method,
        path=target.path,
        query=target.query,
        headers=request.headers,
        body=body,
        arguments=arguments,
        time=time,
    )


def nearest_call(expected: ExpectedCall, calls: Iterable[Call]) -> str:
    """Return what to tell about a call that was not made: the made one that is most like it."""
    nearest = max(calls, key=lambda call: _likeness(expected, call), default=None)
    if nearest is None:
        return "no call was made"
    return "\n  ".join((f"nearest: {nearest}", *expected.differences(nearest)))


def nearest_expected(call: Call, expected: Iterable[ExpectedCall]) -> str:
    """Return what to tell about a call nobody expected: the expected one that is most like it."""
    nearest = max(expected, key=lambda one: _likeness(one, call), default=None)
    if nearest is None:
        return "no more calls are expected"
    return "\n  ".join((f"nearest expected: {nearest}", *nearest.differences(call)))


def _likeness(expected: ExpectedCall, call: Call) -> tuple[bool, int, float]:
    alike = SequenceMatcher(None, str(expected), str(call)).ratio()
    return expected.operation == call.operation, -len(expected.differences(call)), alike


def cookie_pairs(cookies: str) -> Iterator[tuple[str, str]]:
    """Return the names and values in a cookie field, as the server reads them."""
    for cookie in cookies.split(";"):
        name, _, value = cookie.partition("=")
        yield name.strip(), SimpleCookie().value_decode(value.strip())[0]


def json_or_bytes(body: bytes | None) -> Any:
    """Return the JSON that a body holds, its bytes if that is not JSON, or None if it is empty."""
    if not body:
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body


def _same(expected: object, actual: object, *, in_query: bool) -> bool:
    if expected == actual:
        return True
    try:
        text = json.dumps(expected)
    except TypeError:
        return False
    # A tuple is a list on the wire, and in a query everything is a text.
    return bool(json.loads(text) == actual) or (in_query and text == actual)


def _shown(name: str, arguments: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
