"""The routes of the API, which of them a request goes to, and the answers to that."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from urllib.parse import parse_qsl, unquote, urlsplit

from attrs import field, frozen

from flux0.domain.errors import InvalidArgument
from flux0.domain.headers import Headers
from flux0.ports import Request, Response


@frozen
class Route:
    """How one operation of the API is reached."""

    operation: str
    method: str
    template: str
    _pattern: re.Pattern[str] = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        # As in the server, whose `$` also lets a line break through.
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", self.template) + "$"
        object.__setattr__(self, "_pattern", re.compile(pattern))

    def path_arguments(self, path: str) -> Mapping[str, str] | None:
        """Return what stands for the placeholders in `path`, or None if it is not this route's."""
        found = self._pattern.match(path)
        return None if found is None else found.groupdict()


# In the server's order: where no method fits, the first route of a path says what is allowed.
ROUTES = (
    Route("agents.create", "POST", "/api/agents"),
    Route("agents.retrieve", "GET", "/api/agents/{agent_id}"),
    Route("agents.list", "GET", "/api/agents"),
    Route("sessions.create", "POST", "/api/sessions"),
    Route("sessions.retrieve", "GET", "/api/sessions/{session_id}"),
    Route("sessions.list", "GET", "/api/sessions"),
    Route("sessions.create_event", "POST", "/api/sessions/{session_id}/events/stream"),
    Route("sessions.list_events", "GET", "/api/sessions/{session_id}/events"),
)


# A path that the server's are below, as behind a proxy.
_PREFIX = re.compile(r"(?!/api(?:/|$))(?:/[^/]+)+?(?=/api/)")


def check_operation(operation: str) -> None:
    """Raise InvalidArgument unless there is such an operation."""
    names = [route.operation for route in ROUTES]
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
    for route in ROUTES:
        arguments = route.path_arguments(path)
        if arguments is not None:
            if route.method == request.method:
                return Target(route.operation, path, arguments, query)
            allowed.append(route.method)
    return Target("", path, {}, query, tuple(allowed))


def is_route(path: str) -> bool:
    """Whether some operation has this path."""
    return any(route.path_arguments(path) is not None for route in ROUTES)


def whole_answer(status_code: int, content_type: str, body: bytes) -> Response[bytes]:
    """Return an answer whose body is there."""
    fields = (("content-length", str(len(body))), ("content-type", content_type))
    return Response(status_code, Headers(fields), body)


def server_failure() -> Response[bytes]:
    """Return what the server answers when it fails."""
    return whole_answer(500, "text/plain; charset=utf-8", b"Internal Server Error")
