"""Compares sent requests with recorded requests, and describes the differences in a few lines."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, Final
from urllib.parse import parse_qs

from flux0.domain.headers import Headers
from flux0.ports import Request
from flux0.testing.cassettes.cassette import RecordedRequest
from flux0.testing.fake.calls import ReceivedCall, call_from

# If one of two compared requests does not have a member, its value is `_NOTHING`. `_NOTHING` is not
# None, because None is a JSON value (null).
_NOTHING: Final = object()
_MAX_DIFFERENCES: Final = 5
_MAX_SHOWN: Final = 100  # The largest number of characters of a value in an error message.
_MAX_ARGUMENT: Final = 40  # The largest number of characters of an argument in an error message.
# The number of characters that an error message shows before and after the first difference.
_CONTEXT: Final = 30


def members_of(request: RecordedRequest) -> dict[str, Any]:
    members: dict[str, Any] = {"method": request.method, "path": path_of(request)}
    for name, values in parse_qs(request.query, keep_blank_values=True).items():
        members[f"query {name}"] = values if len(values) > 1 else values[0]
    if request.body is not None:
        members["body"] = request.body.data
        with suppress(ValueError, RecursionError):
            members["body"] = json.loads(request.body.data)
    return members


def path_of(request: RecordedRequest) -> str:
    """Return the path from `/api/` on, without a prefix that may differ between two servers."""
    return request.path[max(request.path.find("/api/"), 0) :]


def canonical_json(value: object) -> str:
    """Return `value` as JSON text. It differs for True and 1, which are equal in Python."""
    return json.dumps(value, sort_keys=True, default=repr)


def call_of(request: RecordedRequest) -> ReceivedCall:
    url = f"http://recorded{path_of(request)}?{request.query}"
    headers = Headers(tuple(request.headers.items()))
    body = None if request.body is None else request.body.data
    return call_from(Request(request.method, url, headers, body))


def describe_request(request: RecordedRequest) -> str:
    call = call_of(request)
    items = call.arguments.items()
    arguments = (f"{name}={shorten(repr(value), _MAX_ARGUMENT)}" for name, value in items)
    return shorten(f"{call.name}({', '.join(arguments)})", 3 * _MAX_SHOWN)


def differences(recorded_request: RecordedRequest, sent_request: RecordedRequest) -> list[str]:
    recorded, sent = members_of(recorded_request), members_of(sent_request)
    bodies = recorded.get("body"), sent.get("body")
    if isinstance(bodies[0], dict) and isinstance(bodies[1], dict):
        for members in (recorded, sent):
            body: dict[str, Any] = members.pop("body")
            members |= {f"body {name}": value for name, value in body.items()}
    lines: list[str] = []
    for name in {**recorded, **sent}:
        before, now = recorded.get(name, _NOTHING), sent.get(name, _NOTHING)
        if canonical_json(before) != canonical_json(now):
            lines.append(f"{shorten(name)}: {_difference(before, now)}")
    more = len(lines) - _MAX_DIFFERENCES
    return lines if more <= 0 else [*lines[:_MAX_DIFFERENCES], f"{more} more differences"]


def shorten(text: str, limit: int = _MAX_SHOWN) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} characters)"


def _difference(before: Any, now: Any) -> str:
    values = ["nothing" if value is _NOTHING else repr(value) for value in (before, now)]
    note = ""
    if type(before) is type(now) and max(map(len, values)) > _MAX_SHOWN:
        if not isinstance(before, (str, bytes)):
            before, now = canonical_json(before), canonical_json(now)
        pairs = enumerate(zip(before, now, strict=False))
        start = next((n for n, (a, b) in pairs if a != b), min(len(before), len(now)))
        excerpt = slice(max(0, start - _CONTEXT), start + _CONTEXT)
        values = [repr(before[excerpt]), repr(now[excerpt])]
        note = f" (excerpts: the first difference is at character {start + 1:,})"
    return f"recorded {shorten(values[0])}, got {shorten(values[1])}{note}"
