"""The routes of the API, which of them a request goes to, and the answers to that."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from urllib.parse import parse_qsl, unquote, urlsplit

from attrs import frozen

from flux0.domain.errors import InvalidArgument
from flux0.domain.headers import Headers
from flux0.ports import Request, Response


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
    """Where a request goes.

    `operation` is empty where there is no such route; `allowed` are then the methods that the path
    does have. `path` is decoded, and begins after a prefix.
    """

    operation: str
    path: str
    arguments: Mapping[str, str]
    query: Mapping[str, str]
    allowed: tuple[str, ...] = ()


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


def is_route(path: str) -> bool:
    """Whether some operation has this path."""
    return any(pattern.match(path) for _, _, pattern in _ROUTES)


def whole_answer(status_code: int, content_type: str, body: bytes) -> Response[bytes]:
    """Return an answer whose body is there."""
    fields = (("content-length", str(len(body))), ("content-type", content_type))
    return Response(status_code, Headers(fields), body)


def server_failure() -> Response[bytes]:
    """Return what the server answers when it fails."""
    return whole_answer(500, "text/plain; charset=utf-8", b"Internal Server Error")
